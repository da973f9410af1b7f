"""The two routes that score token ids: vLLM's own /v1/completions, and /infer/ of `swift deploy`.

Both answer with vLLM's prompt_logprobs: for each token of the prompt an object from token id (a string) to
{"logprob", "rank", "decoded_token"}, with the K most probable tokens and, where it is not among them, the token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# vLLM's OpenAI server writes -inf, which JSON lacks, as this number.
MINUS_INFINITY = -9999.0


@dataclass(frozen=True)
class Sequence:
    """Tokens to score.

    Args:
        ids: a prompt and its response.
        positions: indices of the tokens wanted, rising, each above 0.
        request: the same as an ms-swift request (messages, images, ...), for a server that templates by itself.
    """

    ids: list[int]
    positions: list[int]
    request: dict[str, Any] | None = None


@dataclass(frozen=True)
class ServerScores:
    """What a teacher says of the wanted tokens of one sequence, in their order, sorted by probability.

    Args:
        log_probs: float32 [n, K] over the teacher's whole vocabulary, -inf where an entry has no probability.
        ids: int64 [n, K].
    """

    log_probs: Tensor
    ids: Tensor


@dataclass(frozen=True)
class ServerAnswer:
    """What a server says of one sequence: the ids that it scored and the entries of each of them."""

    ids: list[int]
    entries: list[dict[str, dict] | None]


class VllmRoute:
    """`vllm serve`: token ids as the prompt; adapters by name."""

    path = "/v1/completions"
    name = "vLLM's /v1/completions"

    def __init__(self, model: str):
        self.model = model

    def body(self, sequences: list[Sequence], topk: int) -> dict:
        return {
            "model": self.model,
            "prompt": [sequence.ids for sequence in sequences],
            "prompt_logprobs": topk,
            "return_token_ids": True,
            "max_tokens": 1,
            "temperature": 0.0,
        }

    def read(self, reply: Any) -> list[ServerAnswer]:
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        return [ServerAnswer(choice["prompt_token_ids"], choice["prompt_logprobs"]) for choice in choices]


class SwiftRoute:
    """`swift deploy`: an assistant turn made of token ids, or where the server templates, the sample's own turns.

    Args:
        front: what a server with --use_chat_template false puts in front of the ids (a BOS token).
    """

    path = "/infer/"
    name = "swift deploy's /infer/"

    def __init__(self, front: list[int] = (), templates: bool = False):
        self.front, self.templates = list(front), templates

    def body(self, sequences: list[Sequence], topk: int) -> dict:
        config = {"prompt_logprobs": topk, "return_details": True, "max_tokens": 1, "temperature": 0.0}
        return {"infer_requests": [self._request(sequence) for sequence in sequences], "request_config": config}

    def _request(self, sequence: Sequence) -> dict:
        return sequence.request if self.templates else self.request_of(sequence.ids)

    def request_of(self, ids: list[int]) -> dict:
        """Token ids as a request of ms-swift, for a server that does not template."""
        if ids[: len(self.front)] == self.front:
            ids = ids[len(self.front) :]
        # As a bare list of ids, ms-swift 4.6 takes the content for a list of media and answers 500.
        return {"messages": [{"role": "assistant", "content": {"token_ids": ids}}], "add_eos": False}

    def read(self, reply: Any) -> list[ServerAnswer]:
        return [ServerAnswer(answer["prompt_token_ids"], answer["prompt_logprobs"]) for answer in reply]


def read_scores(answer: ServerAnswer, positions: list[int], topk: int) -> ServerScores:
    """The K most probable tokens at `positions`.

    Raises:
        ValueError: a position has fewer than K entries.
        KeyError, IndexError, TypeError: the answer is not made as promised.
    """
    ids, log_probs = [], []
    for position in positions:
        entries = answer.entries[position]
        if len(entries) < topk:
            raise ValueError(f"{len(entries)} log-probabilities where {topk} were asked for")
        missing = topk + 1 - len(entries)
        ids += [*map(int, entries), *[0] * missing]
        log_probs += [*(entry["logprob"] for entry in entries.values()), *[-torch.inf] * missing]
    values = torch.tensor(log_probs, dtype=torch.float32).view(len(positions), topk + 1)
    # The token itself may be the K + 1st entry, less probable than the others.
    best = values.masked_fill(values <= MINUS_INFINITY, -torch.inf).topk(topk, dim=-1)
    return ServerScores(best.values, torch.tensor(ids).view(len(positions), topk + 1).gather(1, best.indices))
