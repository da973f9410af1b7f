"""What every engine takes and gives: prompts and sampling settings in, completions with their token ids out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swift_kd_plugin.errors import KDError

FinishReason = Literal["stop", "length"]
VLLM_HOTTEST = 2  # vLLM 0.32 refuses a higher temperature


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Args:
        messages: the turns before the response.
        images, videos, audios, objects, tools: as in ms-swift's requests.
        chat_template_kwargs: such as {"enable_thinking": False}.
        seed: of its first sample; sample k is drawn with seed + k, whatever is generated beside it. None: any.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    audios: Sequence[Any] = ()
    objects: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    seed: int | None = None

    @property
    def has_media(self) -> bool:
        return bool(self.images or self.videos or self.audios)


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; nothing is taken from the model's own generation config.

    Args:
        n: samples of each prompt.
        temperature: 0 takes the most probable token.
        top_k: 0 or -1 is off.
        max_new_tokens: of each response, fewer where the context ends.
        stop: words that end a response and are not part of its text.

    Raises:
        KDError: a value that no engine can sample with.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        allowed = {
            "n": (self.n >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= -1, "at least 1, or 0 for off"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "stop": (all(self.stop), "words that are not empty"),
        }
        for name, (holds, wanted) in allowed.items():
            if not holds:
                raise KDError(f"{name} is {getattr(self, name)!r}; it must be {wanted}.")
        if self.n > 1 and not self.temperature:
            raise KDError(
                f"n is {self.n} and temperature 0, which would write one response {self.n} times; change one."
            )


@dataclass(frozen=True)
class Completion:
    """One response.

    Args:
        text: what the model wrote, with its think block if it wrote one (whose start may stand in the prompt), without
            the end token and stop words.
        token_ids: exactly the ids that were sampled, with the end token if it was sampled.
        finish_reason: "stop" at an end token or stop word, "length" where it was cut off.
        prompt_tokens: tokens of the prompt.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int


class PromptError(KDError):
    """One prompt that cannot be answered; the others can. The message starts with "a prompt"."""


Answer = list[Completion] | PromptError


class Engine(ABC):
    """Answers prompts. To be closed, or used as a context manager."""

    name: str

    @abstractmethod
    def stream(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Yields (number of the prompt, its n completions in order, or why there are none) as they finish.

        Prompts are taken as they are needed: always enough to keep the engine busy, never all.

        Raises:
            KDError: the engine or server cannot go on.
        """

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """The completions of each prompt, in order. Raises PromptError at the first that cannot be answered."""
        completions: dict[int, list[Completion]] = {}
        for index, answer in self.stream(prompts, sampling):
            if isinstance(answer, PromptError):
                raise answer
            completions[index] = answer
        return [completions[index] for index in range(len(prompts))]

    def close(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Gives back what the engine holds; it answers no more."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error) -> None:
        self.close()
