"""What is generated: each row's prompt in the teacher's view, and the row that a response makes of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from swift_kd_plugin.data.rows import Row, RowError, digest, response_of, response_text, text_of, without_response
from swift_kd_plugin.data.think_block import (
    CLOSE,
    NON_THINKING,
    OPEN,
    SWITCH,
    THINKING,
    mode_of,
    place_thought,
    split_thought,
)
from swift_kd_plugin.data.turn_keys import new_weights
from swift_kd_plugin.data.validate import check_row
from swift_kd_plugin.data.views import teacher_view
from swift_kd_plugin.generation.engines import Prompt

Thinking = Literal["row", "on", "off", "both"]
# The modes in which each row is asked; None is as the row says.
PROMPT_MODES: dict[str, tuple[bool | None, ...]] = {
    "row": (None,),
    "on": (True,),
    "off": (False,),
    "both": (True, False),
}
# Seeds that JSON holds exactly, with room for the numbers of samples.
SEED_BITS = 48
REPLACED_COLUMN = "replaced_response"
MADE = "generation"


@dataclass(frozen=True)
class PromptTask:
    """A row to be answered in one mode.

    Args:
        index: its number in the run, in the order of the dataset.
        row: with template settings of the mode.
    """

    index: int
    row: Row

    @property
    def writer_settings(self) -> dict[str, Any]:
        """The chat template settings of who writes."""
        return teacher_view(self.row).chat_template_kwargs or {}

    @property
    def mode(self) -> str | None:
        """Whether the writer is told to think; None if nothing is said."""
        return mode_of(self.writer_settings)

    def prompt(self, seed: int) -> Prompt:
        """The writer's view, with a seed of its own that depends on the run's seed and this view alone."""
        view = teacher_view(self.row)
        media = [_media(view.images), view.videos or (), view.audios or ()]
        settings = self.writer_settings
        shown = [str(item)[:1000] for items in media for item in items]
        prompt_seed = int.from_bytes(digest([seed, view.messages, view.tools, shown, settings])) >> (128 - SEED_BITS)
        return Prompt(view.messages, view.tools or None, *media, view.objects, settings, prompt_seed)


def tasks_of(row: Row, number: int, thinking: Thinking) -> Iterator[PromptTask]:
    """The tasks of a row, the `number`-th of the run counted from 0."""
    modes = PROMPT_MODES[thinking]
    for offset, mode in enumerate(modes):
        yield PromptTask(number * len(modes) + offset, row if mode is None else _in_mode(row, mode))


def write_response(task: PromptTask, text: str) -> Row:
    """The row with a text as its response; both views stay as they are.

    The loss_scale of the response in whose place it stands stays, but not that it is off. What was thought by a teacher
    for a student that does not think becomes `teacher_thought`.

    Raises:
        RowError: the text is none that can be trained on in the row's mode.
    """
    thought, answer = split_thought(text)
    writer, student = task.mode, mode_of(task.row.get("chat_template_kwargs"))
    row = {key: value for key, value in task.row.items() if key not in ("teacher_thought", "messages")}
    if thought is not None and not answer.strip():
        raise RowError("empty", "it has a think block and no answer")
    if writer == NON_THINKING and thought:
        raise RowError("think block", "it has a thought, though the mode is non-thinking")
    if writer == THINKING and not (thought or OPEN in text or CLOSE in text):
        raise RowError("think block", "it has no thought, though the mode is thinking")
    if writer and student and writer != student:
        text, row["teacher_thought"] = place_thought(thought, answer, writer, student)
    elif student == NON_THINKING or thought == "":
        text = answer
    response = {"role": "assistant", "content": text, **new_weights(response_of(task.row))}
    row["messages"] = [*without_response(task.row["messages"]), response]
    check_row(row)
    return row


def shown_mode(task: PromptTask, row: Row) -> str:
    """The mode in which a response was written: as told, else as it shows."""
    return task.mode or (THINKING if split_thought(response_text(row))[0] else NON_THINKING)


def own_answer(row: Row) -> str | None:
    """The answer of the response that the dataset has, without its thought and with its calls of tools."""
    response = response_of(row)
    return split_thought("".join(text_of(turn["content"]) for turn in response))[1] if response else None


def _in_mode(row: Row, mode: bool) -> Row:
    changed = {"chat_template_kwargs": {**(row.get("chat_template_kwargs") or {}), SWITCH: mode}}
    if row.get("teacher_chat_template_kwargs") is not None:
        changed["teacher_chat_template_kwargs"] = {**row["teacher_chat_template_kwargs"], SWITCH: mode}
    return {**row, **changed}


def _media(images: list[dict[str, Any]] | None) -> list[Any]:
    """Images as ms-swift's requests take them: a path, or bytes."""
    return [image["path"] if image.get("bytes") is None else image["bytes"] for image in images or ()]
