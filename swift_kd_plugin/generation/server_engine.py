"""A model behind `swift deploy` or `vllm serve`: many requests at a time, answers with their token ids."""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

from swift.infer_engine.protocol import MultiModalRequestMixin

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Answer, Completion, Engine, Prompt, PromptError, Sampling
from swift_kd_plugin.serving.model_server import TeacherServer, check_same_texts
from swift_kd_plugin.serving.scoring_routes import SwiftRoute, VllmRoute
from swift_kd_plugin.serving.transport import Limits, Refused, Unavailable

IN_FLIGHT = 64
ROUNDS_AHEAD = 2
CONTEXT_WORDS = ("context length", "max_model_len", "too long", "maximum model length", "longer than")


@dataclass(frozen=True)
class _Request:
    prompt: Prompt
    ids: list[int]
    room: int


class ServerEngine(Engine):
    """A server, which is asked at once what it is.

    Args:
        url: its address, without a route.
        template: ms-swift's, with the served model's tokenizer: it makes the ids of prompts and the texts of answers.
        adapter: name of a LoRA adapter that `vllm serve` was started with.
        key: the server's API key.
        limits: how patient to be; in_flight is raised to 64 where it is not given.
        max_model_len: tokens of prompt and response together, where the server does not say it.
        flag: where the user gave the address.

    Raises:
        KDError: it cannot be reached, is no such server, has no such adapter, or has another tokenizer.
    """

    name = "server"

    def __init__(
        self,
        url: str,
        template,
        adapter: str | None = None,
        key: str | None = None,
        limits: Limits | None = None,
        max_model_len: int | None = None,
        flag: str = "--server",
    ):
        self.codec = Codec(template, "vllm", max_model_len)
        self.limits = limits or Limits(in_flight=IN_FLIGHT)
        self.server = TeacherServer(url, 1, adapter, key, self.limits, flag)
        if adapter and not self.server.speaks_swift():
            # vLLM scores no prompt with some adapters, which is how a connection is tried.
            self.server.route = VllmRoute(self.server.choose_model())
        else:
            check_same_texts(self.codec.tokenizer, self.server.connect(), self.server.name, "--model")
        served = [length for length in (self.server.max_length, max_model_len) if length]
        self.codec.max_model_len = min(served, default=self.codec.max_model_len)

    @property
    def description(self) -> str:
        """What is asked, for a line of the log."""
        what = "messages" if self.server.needs_messages else "token ids"
        return f"{self.server.name} answers {what} through {self.server.route.name}"

    def stream(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        numbered, pending = enumerate(prompts), {}
        with ThreadPoolExecutor(self.limits.in_flight) as pool:
            try:
                while True:
                    taken = list(islice(numbered, ROUNDS_AHEAD * self.limits.in_flight - len(pending)))
                    for index, prompt in taken:
                        try:
                            request = self._request(prompt, sampling)
                        except PromptError as error:
                            yield index, error
                        else:
                            pending[pool.submit(self._answer, request, sampling)] = index
                    if not pending and not taken:
                        return
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in sorted(done, key=pending.get):
                        yield pending.pop(future), _result(future)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, prompt: Prompt, sampling: Sampling) -> _Request:
        if prompt.has_media:
            if not self.server.needs_messages:
                raise PromptError(
                    f"a prompt with images, videos or audio cannot go as token ids to {self.server.name}; start it as "
                    "swift deploy, without --use_chat_template false."
                )
            # The server makes the tokens of media.
            return _Request(prompt, [], sampling.max_new_tokens)
        ids = self.codec.encode(prompt)["input_ids"]
        return _Request(prompt, ids, self.codec.room(len(ids), sampling))

    def _answer(self, request: _Request, sampling: Sampling) -> list[Completion]:
        server, stops = self.server, self.codec.stops(sampling)
        is_swift = isinstance(server.route, SwiftRoute)
        body = self._swift_body(request, sampling) if is_swift else self._vllm_body(request, sampling)
        try:
            reply = self._post(body, request)
        except Refused as error:
            if any(word in error.reason for word in CONTEXT_WORDS):
                raise PromptError(f"a prompt is refused by {server.name}: {error.reason}.") from error
            raise server.advise(error) from error
        try:
            prompt_ids, choices = self._read(reply[0] if is_swift else reply, request)
            return [
                self.codec.completion(prompt_ids, list(choice["token_ids"]), choice["finish_reason"], stops)
                for choice in sorted(choices, key=lambda choice: choice["index"])
            ]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise KDError(
                f"The server {server.name} gave an answer that cannot be used ({type(error).__name__}: {error})."
            ) from error

    def _post(self, body: dict, request: _Request) -> Any:
        """As `Endpoint.post`; but swift deploy answers 500 without a reason also to what will never work."""
        endpoint, route = self.server.endpoint, self.server.route
        if not isinstance(route, SwiftRoute):
            return endpoint.post(route.path, body)
        try:
            return endpoint.post(route.path, body, attempts=1)
        except Unavailable as error:
            if error.status == 500 and self.server.works():
                raise PromptError(
                    f"a prompt of {len(request.ids) or 'an unknown number of'} tokens is answered with status 500 by "
                    f"{self.server.name}, which answers others; its log says why: mostly --vllm_max_model_len is "
                    "too small for it."
                ) from error
        return endpoint.post(route.path, body)

    def _read(self, reply: dict, request: _Request) -> tuple[list[int], list[dict]]:
        """The prompt's ids and the choices. Raises KDError if the server made other ids of the prompt."""
        if not isinstance(self.server.route, SwiftRoute):
            return request.ids, reply["choices"]
        server_ids = list(reply["prompt_token_ids"])
        if request.ids and server_ids != request.ids:
            place = next((n for n, (a, b) in enumerate(zip(server_ids, request.ids, strict=False)) if a != b), None)
            place = min(len(server_ids), len(request.ids)) if place is None else place
            raise KDError(
                f"The server {self.server.name} makes other tokens of a prompt than --model and --template here, from "
                f"position {place} of {len(request.ids)}; start it with the same --model, --template and --system."
            )
        return server_ids, reply["choices"]

    def _settings(self, request: _Request, sampling: Sampling) -> dict[str, Any]:
        return {
            "n": sampling.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "max_tokens": request.room,
            "seed": request.prompt.seed,
            "stop": list(sampling.stop),
        }

    def _vllm_body(self, request: _Request, sampling: Sampling) -> dict[str, Any]:
        settings = self._settings(request, sampling) | {"stop": self.codec.stops(sampling)}
        ends = {"stop_token_ids": self.codec.end_ids, "skip_special_tokens": False, "return_token_ids": True}
        return {"model": self.server.route.model, "prompt": request.ids, **settings, **ends}

    def _swift_body(self, request: _Request, sampling: Sampling) -> dict[str, Any]:
        if self.server.needs_messages:
            infer_request = _as_messages(request.prompt)
        else:
            infer_request = self.server.route.request_of(request.ids)
        config = {**self._settings(request, sampling), "return_details": True}
        return {"infer_requests": [infer_request], "request_config": config}


def _as_messages(prompt: Prompt) -> dict[str, Any]:
    media = {name: [_as_text(item) for item in getattr(prompt, name)] for name in ("images", "videos", "audios")}
    extras = {"tools": prompt.tools, "objects": prompt.objects, "chat_template_kwargs": prompt.chat_template_kwargs}
    return {"messages": prompt.messages, **media, **{name: value for name, value in extras.items() if value}}


def _as_text(item: Any) -> str:
    """A medium as an address or base64, since the server may not see this machine's files."""
    try:
        return MultiModalRequestMixin.to_base64(item)
    except (OSError, ValueError) as error:
        raise PromptError(f"a prompt has a medium that cannot be read: {error}.") from error


def _result(future: Future) -> Answer:
    try:
        return future.result()
    except PromptError as error:
        return error
