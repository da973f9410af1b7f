"""transformers' own generation: slower than vLLM and runs everywhere; batches with KV reuse and left padding."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from swift.model import get_model_processor
from swift.template.utils import StopWordsCriteria
from swift.tuners import Swift
from swift.utils import get_device, to_device
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from swift_kd_plugin.errors import KDError, one_line
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Answer, Completion, Engine, Prompt, PromptError, Sampling
from swift_kd_plugin.generation.quantised_model import quantise_model
from swift_kd_plugin.generation.sampling import choose, draws


@dataclass
class _Asked:
    """A prompt on its way: its inputs, and its samples by number."""

    index: int
    prompt: Prompt
    inputs: dict[str, Any]
    done: dict[int, Completion] = field(default_factory=dict)


BatchRow = tuple[_Asked, int]


class TransformersEngine(Engine):
    """A model in transformers.

    Args:
        model: a folder or id, or a model that is loaded already; its weights may change between calls.
        template: ms-swift's; its processor says the type of the weights.
        adapters: folders of adapters, put on a model that is loaded here.
        batch_size: responses that are written at a time.
        max_model_len: tokens of prompt and response together.
        bits: 8 or 4, of the linear weights of a model that is loaded here, adapters merged before.

    Raises:
        KDError: the model cannot be loaded.
    """

    name = "transformers"

    def __init__(
        self,
        model: str | Path | nn.Module,
        template,
        adapters: Sequence[str | Path] = (),
        batch_size: int = 16,
        max_model_len: int | None = None,
        bits: int | None = None,
    ):
        self.codec = Codec(template, "transformers", max_model_len)
        self.model = model if isinstance(model, nn.Module) else load_model(str(model), template, adapters, bits)
        self.batch_size = batch_size

    def stream(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """As `Engine.stream`. A response depends on its batch only as far as rounding does."""
        refused: list[tuple[int, PromptError]] = []
        waiting = self._rows(prompts, sampling, refused)
        while rows := list(islice(waiting, self.batch_size)):
            yield from refused
            refused.clear()
            for (request, number), completion in zip(rows, self._write(rows, sampling), strict=True):
                request.done[number] = completion
                if len(request.done) == sampling.n:
                    yield request.index, [request.done[number] for number in range(sampling.n)]
        yield from refused

    def _rows(self, prompts: Iterable[Prompt], sampling: Sampling, refused: list) -> Iterator[BatchRow]:
        for index, prompt in enumerate(prompts):
            try:
                request = _Asked(index, prompt, self.codec.encode(prompt))
            except PromptError as error:
                refused.append((index, error))
            else:
                yield from ((request, number) for number in range(sampling.n))

    @torch.no_grad()  # not inference mode: a model of a trainer keeps what it computes once
    def _write(self, rows: Sequence[BatchRow], sampling: Sampling) -> list[Completion]:
        template, device = self.codec.template, self.model.device
        inputs = [{k: v for k, v in request.inputs.items() if k != "template_inputs"} for request, _ in rows]
        batch = to_device(template.data_collator(inputs), device)
        batch.pop("labels", None)
        if template.model_meta.is_multimodal:
            _, batch = template.pre_forward_hook(self.model, None, batch)
        prompts = [request.inputs["input_ids"] for request, _ in rows]
        rooms = [self.codec.room(len(ids), sampling) for ids in prompts]
        stops = self.codec.stops(sampling)
        ends = _Ends(self.codec, stops, rooms)
        was_training = self.model.training
        self.model.eval()
        try:
            template.generate(
                self.model,
                **batch,
                generation_config=self._config(max(rooms)),
                logits_processor=LogitsProcessorList([_Choice(rows, prompts, sampling, max(rooms), device)]),
                stopping_criteria=StoppingCriteriaList([ends]),
            )
        finally:
            self.model.train(was_training)
        return [
            self.codec.completion(ids, written, reason, stops)
            for ids, (written, reason) in zip(prompts, ends.results(), strict=True)
        ]

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        """Of plain greedy search: `_Choice` leaves one token, and `_Ends` says where it ends."""
        tokenizer = self.codec.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=pad)


def load_model(model: str, template, adapters: Sequence[str | Path], bits: int | None = None) -> nn.Module:
    """The model in the weights' type that the template's processor names.

    Raises:
        KDError: it cannot be loaded, or an adapter does not fit it.
    """
    info = template.processor.model_info
    place = {"device_map": "cpu"} if bits else {}
    try:
        loaded, _ = get_model_processor(model, model_type=info.model_type, torch_dtype=info.torch_dtype, **place)
    except (ValueError, OSError, RuntimeError) as error:
        raise KDError(f"{model} cannot be loaded by transformers: {one_line(error)}.") from error
    for adapter in adapters:
        try:
            loaded = Swift.from_pretrained(loaded, str(adapter))
        except (ValueError, OSError, RuntimeError) as error:
            raise KDError(f"The adapter {adapter} does not fit {model}: {one_line(error)}.") from error
    if bits:
        loaded = loaded.merge_and_unload() if adapters else loaded
        quantise_model(loaded, bits, get_device())
    return loaded.eval()


class _Choice(LogitsProcessor):
    """Draws each row's next token by the row's own seed, and leaves it alone with a logit.

    transformers draws all rows from one generator, so that a response would depend on the batch around it.
    """

    def __init__(self, rows: Sequence[BatchRow], prompts: list[list[int]], sampling: Sampling, steps: int, device):
        self.sampling, self.step = sampling, 0
        self.prompts = prompts if sampling.repetition_penalty != 1 else None
        self.seen: Tensor | None = None
        if sampling.temperature:
            self.draws = torch.stack([draws(request.prompt.seed, number, steps) for request, number in rows]).to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = self._penalised(input_ids, scores.float())
        numbers = self.draws[:, self.step] if self.sampling.temperature else None
        self.step += 1
        chosen = choose(scores, self.sampling, numbers)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

    def _penalised(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As transformers' own, but padding in front of a prompt is nothing that was said."""
        if self.prompts is None:
            return scores
        if self.seen is None:
            self.seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, ids in enumerate(self.prompts):
                self.seen[row, torch.tensor(ids, device=scores.device)] = True
        else:
            self.seen.scatter_(1, input_ids[:, -1:], True)
        penalty = self.sampling.repetition_penalty
        return torch.where(self.seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


class _Ends(StoppingCriteria):
    """Ends each row at an end token, a stop word or the end of its room, and remembers what it wrote."""

    def __init__(self, codec: Codec, stops: list[str], rooms: list[int]):
        self.ends = torch.tensor(codec.end_ids)
        self.words = StopWordsCriteria(codec.tokenizer, stops) if stops else None
        self.rooms = rooms
        self.written: list[list[int]] = [[] for _ in rooms]
        self.reasons: list[str | None] = [None] * len(rooms)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        last = input_ids[:, -1].cpu()
        ended = torch.isin(last, self.ends)
        if self.words:
            ended |= self.words(input_ids, scores).cpu()
        for row, (token, stops) in enumerate(zip(last.tolist(), ended.tolist(), strict=True)):
            if self.reasons[row] is None:
                self.written[row].append(token)
                if stops:
                    self.reasons[row] = "stop"
                elif len(self.written[row]) == self.rooms[row]:
                    self.reasons[row] = "length"
        done = [reason is not None for reason in self.reasons]
        return torch.tensor(done, device=input_ids.device)

    def results(self) -> list[tuple[list[int], Any]]:
        """The ids of each row and why it ended."""
        return list(zip(self.written, self.reasons, strict=True))
