"""--bits against models whose files hold the quantised values."""

import pytest
import torch

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import load_template
from swift_kd_plugin.generation.model_setup import ModelOptions
from swift_kd_plugin.generation.transformers_engine import load_model
from tests.plain_quantisation import quantised_model
from tests.tiny_models import make_adapter, make_dense, make_moe

IDS = torch.tensor([[5, 9, 20, 33, 7, 11]])


def template_of(model, kind):
    return load_template(str(model), "qwen3", kind, torch.bfloat16)


@torch.no_grad()
def logits(model, template, adapters=(), bits=None):
    return load_model(str(model), template, adapters, bits)(IDS).logits


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("make", "kind"), [(make_dense, "qwen3"), (make_moe, "qwen3_moe")])
def test_weights_are_those_of_the_formulas(make, kind, bits, tmp_path):
    model = make(tmp_path / "model")
    template = template_of(model, kind)
    expected = logits(quantised_model(model, tmp_path / "files", bits), template)
    assert torch.equal(logits(model, template, bits=bits), expected)
    assert not torch.equal(logits(model, template), expected)


def test_an_adapter_is_merged_before(tmp_path):
    model = make_dense(tmp_path / "model")
    adapter = make_adapter(tmp_path / "adapter", model)
    template = template_of(model, "qwen3")
    merged = load_model(str(model), template, [adapter]).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "merged" / name).write_bytes((model / name).read_bytes())
    expected = logits(quantised_model(tmp_path / "merged", tmp_path / "files", 8), template)
    assert torch.equal(logits(model, template, [adapter], 8), expected)


def test_no_weight_stays_whole(tmp_path):
    template = template_of(model := make_dense(tmp_path / "model", hidden=256), "qwen3")
    layers = [
        sum(
            part.numel() * part.element_size()
            for part in load_model(str(model), template, (), bits).model.layers.parameters()
        )
        for bits in (None, 8, 4)
    ]
    assert layers[1] < 0.53 * layers[0]
    assert layers[2] < 0.30 * layers[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"engine": "vllm"}, "--bits 8 goes with --engine transformers"),
        ({"bits": 5}, "--bits 5 of m: it must be 8 or 4"),
        ({"server": "http://host:8000"}, "--bits 8 is about a model that is loaded here"),
    ],
)
def test_what_does_not_go_with_it(flags, said):
    options = ModelOptions(**{"engine": "auto", "server": None, "bits": 8, "model": "m", **flags})
    with pytest.raises(KDError) as error:
        _ = options.engine_name
    assert said in str(error.value)


def test_the_library_is_asked_for(monkeypatch):
    for place in ("swift_kd_plugin.generation.few_bits.find_spec", "importlib.util.find_spec"):
        monkeypatch.setattr(place, lambda name: None)
    with pytest.raises(
        KDError, match=r"needs bitsandbytes, which is not installed; `pip install 'swift-kd-plugin\[bits\]'`"
    ):
        _ = ModelOptions(engine="auto", server=None, bits=4).engine_name
    assert ModelOptions(engine="auto", server=None, bits=None).engine_name == "transformers"
