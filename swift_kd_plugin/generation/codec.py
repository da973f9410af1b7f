"""Prompts as token ids and sampled ids as text, by ms-swift's template."""

from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from swift.infer_engine import InferRequest
from swift.model import get_processor
from swift.template import Template, TemplateMeta, get_template, get_template_meta
from transformers import GenerationConfig

from swift_kd_plugin.data.think_block import OPEN
from swift_kd_plugin.errors import KDError, named_line, one_line
from swift_kd_plugin.generation.engines import Completion, FinishReason, Prompt, PromptError, Sampling
from swift_kd_plugin.generation.model_folder import check_model_folder
from swift_kd_plugin.generation.tool_text import say_other_tool_text, write_tools_as_the_model

# The start of a think block that stands at a prompt's end has this many tokens at most.
TAIL = 8


def load_template(
    model: str | Path,
    template: str | None = None,
    model_type: str | None = None,
    torch_dtype: Any = None,
    **settings: Any,
) -> Template:
    """ms-swift's template from a model's tokenizer; no weights are read.

    Args:
        template: its type; the model's own by default.
        torch_dtype: what an engine that takes the template loads the weights in; the model's own by default.
        settings: of `swift.template.get_template`, such as default_system.

    Raises:
        KDError: ms-swift does not know the model or the template.
    """
    processor, _ = load_processor(model, template, model_type, torch_dtype)
    made = get_template(processor, template_type=template, **settings)
    write_tools_as_the_model(made)
    return made


def load_processor(
    model: str | Path, template: str | None = None, model_type: str | None = None, torch_dtype: Any = None
) -> tuple[Any, TemplateMeta]:
    """The model's processor and what ms-swift knows of its template; arguments and errors as `load_template`."""
    check_model_folder(model)
    try:
        processor = get_processor(str(model), model_type=model_type, torch_dtype=torch_dtype)
        return processor, get_template_meta(processor.model_info, processor.model_meta, template_type=template)
    except (ValueError, OSError) as error:
        raise KDError(f"{model} has no template here: {one_line(error)}.") from error


class Codec:
    """Between prompts and ids.

    Args:
        template: ms-swift's, in any mode; it is not changed.
        mode: for whom the prompts are, as ms-swift calls it.
        max_model_len: tokens of prompt and response together; the model's own by default.
    """

    def __init__(self, template: Template, mode: Literal["vllm", "transformers"], max_model_len: int | None = None):
        self.template = copy(template)
        # A training template's length, packing and padding have no say here.
        self.template.max_length, self.template.sequence_parallel_size = None, 1
        self.template.padding_free = self.template.use_megatron = False
        self.template.set_mode(mode)
        self.tokenizer = template.tokenizer
        limit = template.processor.model_info.max_model_len
        self.max_model_len = max_model_len or limit
        words = [self._ids_of(word) for word in self.template.template_meta.stop_words if word]
        single = [ids[0] for ids in words if len(ids) == 1]
        self.end_ids = sorted({self.tokenizer.eos_token_id, *single, *self._model_end_ids()} - {None})
        self._open_block = lru_cache(1000)(self._read_open_block)  # most prompts end alike
        self.stop_words = tuple(self.tokenizer.decode(ids) for ids in words if len(ids) > 1)

    def _ids_of(self, word: str | list[int]) -> list[int]:
        return self.tokenizer.encode(word, add_special_tokens=False) if isinstance(word, str) else list(word)

    def _model_end_ids(self) -> list[int]:
        folder = Path(self.template.processor.model_info.model_dir)
        if not (folder / "generation_config.json").is_file():
            return []
        ids = GenerationConfig.from_pretrained(folder).eos_token_id
        return ids if isinstance(ids, list) else [ids]

    def encode(self, prompt: Prompt) -> dict[str, Any]:
        """The inputs of an engine of ms-swift, `input_ids` among them.

        Raises:
            PromptError: the template cannot write it, or no token fits behind it.
        """
        request = InferRequest(
            messages=prompt.messages,
            tools=prompt.tools,
            images=list(prompt.images),
            videos=list(prompt.videos),
            audios=list(prompt.audios),
            objects=prompt.objects or {},
            chat_template_kwargs=prompt.chat_template_kwargs or {},
        )
        if prompt.tools:
            say_other_tool_text(self.template)
        try:
            encoded = self.template.encode(request, return_template_inputs=True)
        except Exception as error:  # of any kind, as each template and each reader of media has its own
            raise PromptError(f"a prompt cannot be written by the template: {named_line(error)}.") from error
        self.check_length(len(encoded["input_ids"]))
        return encoded

    def check_length(self, count: int) -> None:
        """Raises PromptError if a prompt of `count` tokens leaves no room for a response."""
        if self.max_model_len is not None and count >= self.max_model_len:
            raise PromptError(
                f"a prompt has {count} tokens, and the context ends at {self.max_model_len}; raise --max_model_len if "
                "the model can read more, or leave the row out."
            )

    def room(self, count: int, sampling: Sampling) -> int:
        """Tokens that a response behind a prompt of `count` tokens may have."""
        return min(sampling.max_new_tokens, (self.max_model_len or count + sampling.max_new_tokens) - count)

    def stops(self, sampling: Sampling) -> list[str]:
        """Texts that end a response: the user's, and those of the template's that are several tokens."""
        return [*sampling.stop, *self.stop_words]

    def completion(
        self, prompt_ids: list[int], ids: list[int], reason: FinishReason, stops: list[str], prompt_tokens: int = 0
    ) -> Completion:
        """What was sampled behind a prompt.

        Args:
            prompt_tokens: of the prompt with its media; by default the number of its ids.
        """
        text = self._open_block(tuple(prompt_ids[-TAIL:])) + self.text(ids)
        ends = [text.index(word) for word in stops if word in text]
        return Completion(text[: min(ends, default=None)], ids, reason, prompt_tokens or len(prompt_ids))

    def response_ids(self, prompt_ids: list[int], text: str) -> list[int]:
        """The ids of a text as the response behind a prompt, with the token that ends the turn in training.

        The inverse of `completion`: a think block that the prompt has opened already is not opened again.
        """
        written = text.removeprefix(self._open_block(tuple(prompt_ids[-TAIL:])))
        suffix = [i for item in self.template.template_meta.suffix for i in self._ids_of(item)]
        return [*self._ids_of(written), *[i for i in suffix if i in self.end_ids][:1]]

    def text(self, ids: list[int]) -> str:
        """Sampled ids without their end token as text."""
        written = ids[:-1] if ids and ids[-1] in self.end_ids else ids
        return self.tokenizer.decode(written, spaces_between_special_tokens=False)

    def _read_open_block(self, last_ids: tuple[int, ...]) -> str:
        """The start of the think block that a prompt ends with, as templates of models that always think have it."""
        tail = self.tokenizer.decode(last_ids)
        return tail[tail.rindex(OPEN) :] if tail.rstrip().endswith(OPEN) else ""
