"""kd_* flags and the checks that need no process group."""

import json
import subprocess
import sys
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import get_args

import pytest

from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.megatron_flags import megatron_defaults
from swift_kd_plugin.losses.divergences import DIVERGENCES, parameters

pytestmark = pytest.mark.usefixtures("cpu_backend")


def make_args(folder, **changes):
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4, **changes.pop("config", {})}
    (folder / "config.json").write_text(json.dumps(config))
    return SimpleNamespace(**{**megatron_defaults(), "model": str(folder), **changes})


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
    from swift_kd_plugin.host.start.model_checks import check_models

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
    from swift_kd_plugin.host.start.model_checks import check_models

    check_models(make_args(tmp_path, **changes))


def test_a_folder_without_a_model_is_refused(tmp_path):
    from swift_kd_plugin.host.start.model_checks import check_models

    args = make_args(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check_models(args)


def test_context_parallelism_must_divide_the_length(tmp_path):
    from swift_kd_plugin.host.start.model_checks import check_length

    check_length(make_args(tmp_path, context_parallel_size=2, max_length=256))
    with pytest.raises(ValueError, match="not divisible by 4; use --max_length 248"):
        check_length(make_args(tmp_path, context_parallel_size=2, max_length=250))


def test_a_partition_that_the_attention_does_not_know_is_refused(tmp_path):
    from megatron.core.packed_seq_params import PackedSeqParams

    from swift_kd_plugin.host.start.model_checks import check_length

    assert not hasattr(PackedSeqParams(), "cp_partition_mode")
    check_length(make_args(tmp_path, cp_partition_mode="contiguous"))
    with pytest.raises(ValueError, match="cp_partition_mode contiguous is not known"):
        check_length(make_args(tmp_path, context_parallel_size=2, max_length=256, cp_partition_mode="contiguous"))


class Host:
    def __post_init__(self):
        pass


@dataclass
class Arguments(KDArguments, Host):
    """The flags of ours with the few of ms-swift that they look at."""

    rlhf_type: str = "gkd"
    sft_alpha: float = 0.0
    gkd_logits_topk: int | None = None
    beta: float = 0.5
    temperature: float = 0.9
    lmbda: float = 0.0
    seq_kd: bool = False
    use_vllm: bool = True
    vllm_mode: str | None = None
    teacher_model_server: str | None = None
    teacher_model: str | None = "teacher"
    sleep_level: int = 0


def test_kd_flags_need_gkd():
    Arguments(rlhf_type="dpo")
    Arguments(kd_grad_norm="exact")
    with pytest.raises(ValueError, match="--kd_grad_norm has a meaning for --rlhf_type gkd only"):
        Arguments(rlhf_type="dpo", kd_grad_norm="exact")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"kd_beta": 1.5}, "--kd_beta is 1.5; it must lie between 0 and 1"),
        ({"kd_ce_alpha": -0.1}, "--kd_ce_alpha is -0.1"),
        ({"kd_temperature": 0.0}, "--kd_temperature is 0.0; it must be above 0"),
        ({"kd_topk": 0}, "--kd_topk is 0"),
        ({"kd_token_rho": 2.0}, "--kd_token_rho must be at most 1"),
        ({"kd_temperature_final": 1.0}, "say with --kd_temperature where it begins"),
        ({"kd_temperature": 2.0, "kd_temperature_final": 1.0}, "needs --kd_schedule linear or cosine"),
        ({"kd_ce_alpha": 0.5, "sft_alpha": 0.5}, "keep one of them"),
        ({"kd_topk": 4, "gkd_logits_topk": 8}, "are the same setting"),
        ({"kd_divergence": "stock", "kd_temperature": 2.0}, "has no effect on ms-swift's own loss"),
        ({"kd_divergence": "tvd", "kd_beta": 0.3}, "--kd_beta belongs to --kd_divergence jsd"),
        ({"kd_lambda": 0.2}, "--kd_lambda belongs to --kd_divergence skew_kl or skew_rkl"),
        ({"kd_divergence": "adaptive_kl", "kd_token_policy": "clip"}, "not adaptive_kl"),
        ({"lmbda": 1.5}, "--lmbda is 1.5; it must lie between 0 and 1"),
        ({"kd_lmbda_final": 1.0}, "--kd_lmbda_final needs --kd_schedule linear or cosine"),
        ({"kd_seq_kd_prob": 0.5}, "--kd_seq_kd_prob is about responses that the teacher writes; add --seq_kd true"),
        ({"kd_thinking_prob": 0.5}, "--kd_thinking_prob is about written responses; give --lmbda above 0"),
        ({"kd_truncated": "mask"}, "--kd_truncated is about written responses"),
        ({"seq_kd": True, "kd_divergence": "stock"}, "--seq_kd true needs a loss of the plugin"),
        ({"seq_kd": True, "kd_teacher_engine": "server"}, "needs the address of the server"),
        (
            {"seq_kd": True, "kd_teacher_engine": "vllm", "teacher_model_server": "http://a:1"},
            "--kd_teacher_engine vllm needs a local teacher",
        ),
        (
            {"seq_kd": True, "kd_teacher_engine": "transformers", "kd_teacher_adapters": ["a"]},
            "--kd_teacher_engine transformers does not merge --kd_teacher_adapters",
        ),
        (
            {"seq_kd": True, "lmbda": 0.5, "vllm_mode": "colocate", "sleep_level": 2},
            "--sleep_level 2 throws the weights of both sleeping engines away",
        ),
        ({"seq_kd": True, "kd_teacher_temperature": -1.0}, "--kd_teacher_temperature is -1.0; it must be at least 0"),
        ({"lmbda": 1.0, "kd_student_engine": "vllm", "use_vllm": False}, "contradicts --use_vllm false"),
        ({"lmbda": 0.5}, "say where: --vllm_mode colocate .or server., or give --lmbda 0"),
        ({"lmbda": 1.0, "kd_thinking_prob": 0.5, "kd_divergence": "stock"}, "has no effect on ms-swift's own loss"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**flags)


@pytest.mark.parametrize(
    ("flags", "loss"),
    [
        ({}, "jsd(beta=0.5), scaled=False at T=0.9"),
        ({"beta": 0.0, "temperature": 1.0, "sft_alpha": 0.1}, "0.1 * CE + jsd(beta=0), scaled=False at T=1"),
        ({"kd_divergence": "reverse_kl"}, "reverse_kl at T=0.9"),
        ({"kd_divergence": "skew_kl", "kd_temperature": 2.0}, "skew_kl, lam=0.1 at T=2 * T^2"),
        ({"kd_temperature": 2.0, "kd_t_squared": False, "kd_divergence": "tvd"}, "tvd at T=2"),
        ({"kd_divergence": "adaptive_kl"}, "adaptive_kl, head_mass=0.5, fixed_weights=False at T=0.9"),
        (
            {"kd_beta": 0, "kd_beta_final": 1, "kd_schedule": "linear", "kd_jsd_scaled": True, "sft_alpha": 0.1},
            "0.1 * CE + jsd(beta=0 -> 1 (linear)), scaled=True at T=0.9",
        ),
        (
            {"kd_ce_alpha": 0.3, "kd_temperature": 5, "kd_temperature_final": 1, "kd_schedule": "cosine", "kd_beta": 0},
            "0.3 * CE + (1 - 0.3) * jsd(beta=0), scaled=False at T=5 -> 1 (cosine) * T^2",
        ),
    ],
)
def test_the_objective_that_flags_mean(flags, loss):
    from swift_kd_plugin.host.train.objective_flags import make_objective

    assert str(make_objective(Arguments(**flags))) == loss


def test_a_beta_of_ms_swift_that_jsd_does_not_have_is_refused():
    from swift_kd_plugin.host.train.objective_flags import make_objective

    with pytest.raises(KDError, match=r"--beta is 1\.5; it must lie between 0 and 1"):
        Arguments(beta=1.5)
    assert make_objective(Arguments(beta=1.5, kd_beta=0.3)).params["beta"].start == 0.3
    assert make_objective(Arguments(beta=1.5, kd_divergence="tvd")).params == {}


def test_topk_is_the_hosts_own_setting():
    assert Arguments(kd_topk=8).gkd_logits_topk == 8


def test_every_divergence_is_a_value_of_the_flag():
    (choices, _) = get_args(KDArguments.__dataclass_fields__["kd_divergence"].type)
    assert get_args(choices) == (*DIVERGENCES, "stock")


OWNED = [(owner, parameter) for parameter, owners in parameters().items() for owner in owners]
RANGED = [
    (owner, flag, parameter.limits)
    for owner, parameter in OWNED
    if parameter.limits is not None
    for flag in parameter.flags
]


def given(flag: str, value: float, begin: float) -> dict:
    """The value, and what else a flag of a schedule's end needs."""
    start = flag.removesuffix("_final")
    return {flag: value} if start == flag else {start: begin, flag: value, "kd_schedule": "linear"}


@pytest.mark.parametrize(("owner", "parameter"), OWNED)
def test_every_parameter_is_a_flag_with_the_default_of_the_table(owner, parameter):
    flag = KDArguments.__dataclass_fields__[parameter.flag]
    assert flag.default == (None if parameter.stock else parameter.default)
    assert flag.metadata["help"].partition(": ")[0].split(", ").count(owner) == 1
    assert flag.type == (float | None if parameter.stock else type(parameter.default))
    if parameter.scheduled:
        assert KDArguments.__dataclass_fields__[parameter.final_flag].default is None


@pytest.mark.parametrize(("owner", "flag", "limits"), RANGED)
def test_a_parameter_out_of_its_range_is_refused(owner, flag, limits):
    low, high = limits
    for value in limits:
        Arguments(kd_divergence=owner, **given(flag, value, low))
    for value in (low - 1, high + 1, float("nan")):
        message = f"^--{flag} is {value}; it must lie between {low:g} and {high:g}[.]$"
        with pytest.raises(KDError, match=message):
            Arguments(kd_divergence=owner, **given(flag, value, low))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_parameter_of_another_divergence_is_refused(name):
    for parameter, owners in parameters().items():
        flags = {"kd_divergence": name, parameter.flag: True if parameter.default is False else 0.25}
        if name in owners:
            Arguments(**flags)
        else:
            with pytest.raises(KDError, match=f"--{parameter.flag} belongs to --kd_divergence {' or '.join(owners)}"):
                Arguments(**flags)


def test_flags_of_jsd_need_no_name():
    Arguments(kd_beta=0.25, kd_jsd_scaled=True)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_clip_goes_with_sums_over_the_vocabulary(name):
    flags = {"kd_divergence": name, "kd_token_policy": "clip"}
    if DIVERGENCES[name].mix is None:
        Arguments(**flags)
    else:
        with pytest.raises(KDError, match=f"sum over the vocabulary, not {name}"):
            Arguments(**flags)


def test_flags_are_read_without_torch():
    code = "import sys, swift_kd_plugin.arguments; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_temperature_that_vllm_refuses_is_refused_before_it_starts():
    from swift_kd_plugin.host.start.model_checks import check_row_count, check_sampling

    flags = {"use_vllm": True, "lmbda": 1, "seq_kd": False, "temperature": 2.5}
    with pytest.raises(
        KDError, match=r"--temperature 2.5: vLLM writes responses with 2 at most; lower it, give the loss"
    ):
        check_sampling(SimpleNamespace(**flags))
    for changes in ({"temperature": 2.0}, {"lmbda": 0}, {"use_vllm": False}):
        check_sampling(SimpleNamespace(**{**flags, **changes}))

    sizes = {
        "kd_teacher_cache_mode": "auto",
        "micro_batch_size": 4,
        "data_parallel_size": 2,
        "global_batch_size": 16,
        "num_train_epochs": 1,
    }
    check_row_count(SimpleNamespace(**sizes, train_iters=2), [0] * 8)
    with pytest.raises(
        KDError, match="7 rows are fewer than --micro_batch_size 4 x 2 replicas of the model take at a time"
    ):
        check_row_count(SimpleNamespace(**sizes, train_iters=2), [0] * 7)
    with pytest.raises(KDError, match="15 rows make no step of --global_batch_size 16; give more, or lower it"):
        check_row_count(SimpleNamespace(**sizes, train_iters=0), [0] * 15)


def test_multi_token_prediction_is_refused():
    from swift_kd_plugin.host.start.model_checks import check_supported

    check_supported(SimpleNamespace(**megatron_defaults()))
    with pytest.raises(ValueError, match="would be saved untrained"):
        check_supported(SimpleNamespace(**{**megatron_defaults(), "mtp_num_layers": 1}))


def test_the_defaults_have_one_home_and_a_help_text():
    assert all(field.name.startswith("kd_") and field.metadata["help"] for field in fields(KDArguments))
