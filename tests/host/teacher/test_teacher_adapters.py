"""What --kd_teacher_adapters reads from a PEFT adapter, and which adapters it refuses."""

import json
import math

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from swift_kd_plugin.errors import KDError

pytestmark = pytest.mark.usefixtures("cpu_backend")
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(folder, tensors=None, **settings):
    folder.mkdir()
    config = {**LoraConfig(r=4, lora_alpha=8).to_dict(), "peft_type": "LORA", **settings}
    config = {name: value for name, value in config.items() if isinstance(value, (str, int, dict, list, type(None)))}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    matrices = {f"{LAYER}.lora_A.weight": torch.randn(4, 6), f"{LAYER}.lora_B.weight": torch.randn(5, 4)}
    save_file({**matrices, **(tensors or {})}, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 12}}, 3.0),
        ({"alpha_pattern": {"v_proj": 12}}, 2.0),
        ({"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 16}, "use_rslora": True}, 2.0),
    ],
)
def test_a_delta_is_scaled_as_peft_scales_it(tmp_path, settings, scale):
    from swift_kd_plugin.host.teacher.teacher_adapters import read_adapters

    folder = write_adapter(tmp_path / "adapter", **settings)
    deltas = read_adapters([folder, folder])
    assert list(deltas) == ["model.layers.0.self_attn.q_proj.weight"]
    (found, again) = next(iter(deltas.values()))
    tensors = load_file(f"{folder}/adapter_model.safetensors")
    truth = scale * tensors[f"{LAYER}.lora_B.weight"] @ tensors[f"{LAYER}.lora_A.weight"]
    torch.testing.assert_close(found.compute(), truth)
    assert again == found
    assert found.shape() == (5, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "has use_dora True, which cannot be merged"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save \['lm_head'\]"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out True"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "has target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "was started from pissa_niter_4, which changes the base model"),
        ({"peft_type": "IA3"}, "is IA3 and not LoRA, which cannot be merged"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path, settings, message):
    from swift_kd_plugin.host.teacher.teacher_adapters import read_adapters

    with pytest.raises(KDError, match=message):
        read_adapters([write_adapter(tmp_path / "adapter", **settings)])


def test_a_tensor_that_would_be_lost_is_refused(tmp_path):
    from swift_kd_plugin.host.teacher.teacher_adapters import read_adapters

    folder = write_adapter(tmp_path / "adapter", {"base_model.model.lm_head.weight": torch.zeros(2, 2)})
    with pytest.raises(KDError, match=r"holds base_model.model.lm_head.weight, which is not a LoRA matrix"):
        read_adapters([folder])


def test_what_is_no_adapter(tmp_path):
    from swift_kd_plugin.host.teacher.teacher_adapters import read_adapters

    with pytest.raises(KDError, match="missing is no folder"):
        read_adapters([str(tmp_path / "missing")])
    with pytest.raises(KDError, match=r"has no adapter_config.json"):
        read_adapters([str(tmp_path)])
    folder = tmp_path / "adapter"
    write_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(KDError, match=r"has no adapter_model.safetensors"):
        read_adapters([str(folder)])
