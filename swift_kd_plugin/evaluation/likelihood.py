"""How probable a model finds given responses: one forward pass of transformers for many of them."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Prompt, PromptError

# Of a batch: its tokens with padding, and its rows. A row that is longer is a batch of its own.
BATCH_TOKENS, BATCH_ROWS = 4096, 64
# Logits become float32 this many tokens at a time.
CHUNK = 256


@dataclass(frozen=True)
class Likelihood:
    """Of one response.

    Args:
        nll: negative log-likelihood of its tokens, summed, in nats.
        tokens: with the token that ends the turn.
        characters: of its text.
    """

    nll: float
    tokens: int
    characters: int


@dataclass(frozen=True)
class _Encoded:
    index: int
    prompt: list[int]
    response: list[int]
    characters: int

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


def measure_likelihoods(
    model: nn.Module, codec: Codec, asked: Sequence[tuple[Prompt, str]]
) -> Iterator[tuple[int, Likelihood | PromptError]]:
    """Yields (number, likelihood of the response, or why there is none), longest first.

    Args:
        asked: prompts and responses.
    """
    encoded: list[_Encoded] = []
    for index, (prompt, text) in enumerate(asked):
        try:
            encoded.append(_encode(index, prompt, text, codec))
        except PromptError as error:
            yield index, error
    for batch in _batches(sorted(encoded, key=lambda one: (-one.length, one.index))):
        for one, nll in zip(batch, sum_nll(model, codec, [(one.prompt, one.response) for one in batch]), strict=True):
            yield one.index, Likelihood(nll, len(one.response), one.characters)


def _encode(index: int, prompt: Prompt, text: str, codec: Codec) -> _Encoded:
    if prompt.has_media:
        raise PromptError("a prompt has images, videos or audio, and perplexity is measured of text alone.")
    ids = codec.encode(prompt)["input_ids"]
    response = codec.response_ids(ids, text)
    codec.check_length(len(ids) + len(response) - 1)
    return _Encoded(index, list(ids), response, len(text))


def _batches(encoded: Sequence[_Encoded]) -> Iterator[list[_Encoded]]:
    """Cuts what is sorted, longest first."""
    start = 0
    while start < len(encoded):
        rows = max(1, min(BATCH_ROWS, BATCH_TOKENS // encoded[start].length))
        yield list(encoded[start : start + rows])
        start += rows


@torch.no_grad()
def sum_nll(model: nn.Module, codec: Codec, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """The summed negative log-likelihood of each response, in nats.

    Args:
        pairs: ids of prompts and of responses. They are padded on the left, so that responses end together and no
            logits are made of prompts.
    """
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    longest = max(len(response) for _, response in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, response) in enumerate(pairs):
        ids[row, width - len(prompt) - len(response) :] = torch.tensor(prompt + response)
        mask[row, width - len(prompt) - len(response) :] = 1
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device), "use_cache": False}
    if not codec.template.model_meta.is_multimodal:  # those count positions by themselves
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0).to(model.device)
    if takes_logits_to_keep(model):
        inputs["logits_to_keep"] = longest + 1
    logits = model(**inputs).logits[:, -longest - 1 : -1]
    return [
        _nll_of(logits[row, longest - len(response) :], torch.tensor(response, device=logits.device))
        for row, (_, response) in enumerate(pairs)
    ]


def takes_logits_to_keep(model: nn.Module) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def _nll_of(logits: Tensor, ids: Tensor) -> float:
    """Of logits [T, V] before their tokens [T]."""
    parts = zip(logits.split(CHUNK), ids.split(CHUNK), strict=True)
    return sum(F.cross_entropy(part.float(), wanted, reduction="none").double().sum().item() for part, wanted in parts)
