"""kd_* flags and the checks that need no process group."""

import json
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")


def make_args(folder, **changes):
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4, **changes.pop("config", {})}
    (folder / "config.json").write_text(json.dumps(config))
    defaults = {
        "model": str(folder),
        "teacher_model": None,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "context_parallel_size": 1,
        "cp_partition_mode": "zigzag",
        "max_length": None,
    }
    return SimpleNamespace(**{**defaults, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./missing"}, "--model ./missing does not exist"),
        ({"teacher_model": "/missing"}, "--teacher_model /missing does not exist"),
        ({"tensor_model_parallel_size": 3}, "does not divide the 4 attention heads"),
        ({"tensor_model_parallel_size": 4, "config": {"num_key_value_heads": 3}}, "does not fit the 3 key-value heads"),
        ({"pipeline_model_parallel_size": 8}, "is more than the 4 layers"),
        ({"expert_model_parallel_size": 4, "config": {"num_experts": 6}}, "does not divide the 6 experts"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(tmp_path, changes, message):
    from swift_kd_plugin.host.model_checks import check_models

    with pytest.raises(ValueError, match=message):
        check_models(make_args(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"tensor_model_parallel_size": 4},
        {"pipeline_model_parallel_size": 4},
        {"model": "Qwen/Qwen3-8B"},
        {"expert_model_parallel_size": 2, "config": {"num_experts": 4}},
        {"tensor_model_parallel_size": 2, "config": {"text_config": {"num_attention_heads": 6}}},
    ],
)
def test_a_model_that_fits_passes(tmp_path, changes):
    from swift_kd_plugin.host.model_checks import check_models

    check_models(make_args(tmp_path, **changes))


def test_a_folder_without_a_model_is_refused(tmp_path):
    from swift_kd_plugin.host.model_checks import check_models

    args = make_args(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check_models(args)


def test_context_parallelism_must_divide_the_length(tmp_path):
    from swift_kd_plugin.host.model_checks import check_length

    check_length(make_args(tmp_path, context_parallel_size=2, max_length=256))
    with pytest.raises(ValueError, match="not divisible by 4; use --max_length 248"):
        check_length(make_args(tmp_path, context_parallel_size=2, max_length=250))


def test_a_partition_that_the_attention_does_not_know_is_refused(tmp_path):
    from megatron.core.packed_seq_params import PackedSeqParams

    from swift_kd_plugin.host.model_checks import check_length

    assert not hasattr(PackedSeqParams(), "cp_partition_mode")
    check_length(make_args(tmp_path, cp_partition_mode="contiguous"))
    with pytest.raises(ValueError, match="cp_partition_mode contiguous is not known"):
        check_length(make_args(tmp_path, context_parallel_size=2, max_length=256, cp_partition_mode="contiguous"))


def test_kd_flags_need_gkd():
    from dataclasses import dataclass

    from swift_kd_plugin.arguments import KDArguments

    class Host:
        def __post_init__(self):
            pass

    @dataclass
    class Arguments(KDArguments, Host):
        rlhf_type: str = "dpo"

    Arguments()
    Arguments(rlhf_type="gkd", kd_grad_norm="exact")
    with pytest.raises(ValueError, match="--kd_grad_norm has a meaning for --rlhf_type gkd only"):
        Arguments(kd_grad_norm="exact")


def test_the_defaults_have_one_home_and_a_help_text():
    from dataclasses import fields

    from swift_kd_plugin.arguments import KDArguments

    assert all(field.name.startswith("kd_") and field.metadata["help"] for field in fields(KDArguments))
