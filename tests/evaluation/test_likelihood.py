"""Perplexity against a row-by-row reference in float64, whatever is padded with what."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from swift_kd_plugin.evaluation.likelihood import Likelihood, measure_likelihoods, takes_logits_to_keep
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import PromptError
from tests.generation.ask_engine import MAX_LENGTH, load_base_template, make_prompts, too_long
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL

pytestmark = needs_cpu_backend
ANSWERS = ["5332", "7", "1 2 3 and more words", "<think>\nN2X9\n</think>\n\n41", "", "say BE E3 " * 9]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32).eval()


@pytest.fixture
def codec():
    return Codec(load_base_template(), "transformers", MAX_LENGTH)


@pytest.fixture
def asked():
    prompts = make_prompts(18)
    return [(prompt, ANSWERS[number % len(ANSWERS)]) for number, prompt in enumerate(prompts)]


def reference(codec, prompt, text) -> Likelihood:
    """The text as the chat template writes the whole conversation, one row at a time, in float64."""
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float64).eval()
    written = codec.tokenizer.apply_chat_template(
        prompt.messages, add_generation_prompt=True, tokenize=False, **prompt.chat_template_kwargs
    )
    before = codec.tokenizer.encode(written, add_special_tokens=False)
    ids = codec.tokenizer.encode(written + text + "<|im_end|>", add_special_tokens=False)
    assert ids[: len(before)] == before
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nll = -sum(log_p[at - 1, ids[at]].item() for at in range(len(before), len(ids)))
    return Likelihood(nll, len(ids) - len(before), len(text))


def test_it_is_the_references(model, codec, asked):
    found = dict(measure_likelihoods(model, codec, asked))
    assert found.keys() == set(range(len(asked)))
    for index, (prompt, text) in enumerate(asked):
        wanted = reference(codec, prompt, text)
        assert (found[index].tokens, found[index].characters) == (wanted.tokens, wanted.characters)
        assert found[index].nll == pytest.approx(wanted.nll, rel=1e-5, abs=1e-5), text
        assert math.isfinite(found[index].nll)


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_batches_nor_the_tokenizers_padding_change_it(model, codec, asked, side, monkeypatch):
    codec.tokenizer.padding_side = side
    together = dict(measure_likelihoods(model, codec, asked))
    monkeypatch.setattr("swift_kd_plugin.evaluation.likelihood.BATCH_ROWS", 1)
    monkeypatch.setattr("swift_kd_plugin.evaluation.likelihood.CHUNK", 2)
    alone = dict(measure_likelihoods(model, codec, asked))
    for index in alone:
        assert together[index].nll == pytest.approx(alone[index].nll, rel=1e-5, abs=1e-5)


def test_a_model_that_takes_no_logits_to_keep_gives_the_same(model, codec, asked, monkeypatch):
    wanted = dict(measure_likelihoods(model, codec, asked))
    assert takes_logits_to_keep(model)
    monkeypatch.setattr("swift_kd_plugin.evaluation.likelihood.takes_logits_to_keep", lambda _: False)
    found = dict(measure_likelihoods(model, codec, asked))
    assert {n: round(one.nll, 3) for n, one in found.items()} == {n: round(one.nll, 3) for n, one in wanted.items()}


def test_what_does_not_fit_is_said(model, codec, asked):
    found = dict(measure_likelihoods(model, codec, [asked[0], (too_long(), "7"), (asked[0][0], "7 " * 300)]))
    assert isinstance(found[0], Likelihood)
    assert isinstance(found[1], PromptError)
    assert "the context ends at 256" in str(found[2])
