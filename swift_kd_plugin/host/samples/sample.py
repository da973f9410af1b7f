"""A training sample with two views: what the student sees and what the teacher sees, around one shared response."""

import copy
import os
from dataclasses import dataclass
from typing import Any

from swift.rl_core.data import GKDSample

from swift_kd_plugin.data.rows import Filler, Message
from swift_kd_plugin.data.views import has_teacher_view, teachers_own
from swift_kd_plugin.errors import KDError


@dataclass
class KDSample(GKDSample):
    """`GKDSample` plus what only the teacher sees; what is not given (None) is the student's.

    Args:
        teacher_view: system, history and last user turn without the response, from the column `teacher_messages`.
        teacher_tools: in place of `tools`; an empty list takes them away.
        teacher_chat_template_kwargs: in place of `chat_template_kwargs`.
        teacher_thought: in place of what the response's think block holds; '' empties it.
        think_loss: weight of the loss on the response's think block in both views, 0 to 1; None is 1.
        written_by: "dataset", "student" or "teacher".
        left_out: the response has no loss.
        fills_batch: nothing of it is counted.
        seed: of a written response's draws, where its engine takes one.

    Stock's columns `teacher_prompt` and `teacher_images` keep their meaning; `teacher_prompt` and `teacher_messages`
    exclude each other.
    """

    teacher_view: list[Message] | None = None
    teacher_tools: list[Any] | None = None
    teacher_chat_template_kwargs: dict[str, Any] | None = None
    teacher_thought: str | None = None
    think_loss: float | None = None
    written_by: str = "dataset"
    left_out: bool = False
    fills_batch: bool = False
    seed: int | None = None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "KDSample":
        fills_batch, row = isinstance(row, Filler), dict(row)
        view = row.pop("teacher_messages", None)
        columns = {name: row.pop(name) for name in ("written_by", "left_out", "fills_batch", "seed") if name in row}
        sample = super().from_row(row)
        sample.extra.update(columns)
        sample.fills_batch = sample.left_out = fills_batch
        sample.teacher_view = [dict(message) for message in view] if view else None
        if (kwargs := row.get("teacher_chat_template_kwargs")) is not None:
            # Arrow fills the keys that other rows have with null.
            sample.teacher_chat_template_kwargs = {key: value for key, value in kwargs.items() if value is not None}
        if sample.teacher_view and sample.teacher_prompt:
            raise KDError(f"{sample.name} has both teacher_messages and teacher_prompt; keep one of the two columns.")
        return sample

    @property
    def name(self) -> str:
        """What a message to a person calls this sample: file or dataset, row counted from 1, and its column `id`."""
        source, number, row_id = (self.extra.get(key) for key in ("kd_source", "kd_row", "kd_id"))
        source = source or self.extra.get("dataset")
        if number is None and row_id is None:
            return f"The sample with the last user message {self.last_user_text()!r}"
        name = _short(source) if source else "The dataset"
        name += "" if number is None else f", row {number}"
        return name if row_id is None else f"{name} (id {row_id!r})"

    def last_user_text(self, length: int = 80) -> str:
        """The start of the student's last user message."""
        turns = [str(message["content"]) for message in self.messages if message["role"] == "user"]
        return turns[-1][:length] if turns else ""

    def response_message(self) -> Message:
        """The assistant turn that both views share. Raises KDError when there is none."""
        if not self.has_response:
            raise KDError(
                f"{self.name} has no response to distil on; give it an assistant message, or let the student "
                "(--lmbda 1 --use_vllm true) or the teacher (--seq_kd true) write it."
            )
        return dict(self.messages[-1])

    @property
    def turns_of_ids(self) -> list[list[int]]:
        """Token ids of a written response by turn, which ms-swift has flat where there is one; [] of the dataset's."""
        ids = self.response_token_ids
        return [list(ids)] if ids and isinstance(ids[0], int) else [list(turn) for turn in ids]

    @property
    def written_ids(self) -> list[int]:
        """Token ids of a written response, of all its turns; [] of the dataset's."""
        return [token for turn in self.turns_of_ids for token in turn]

    @property
    def has_response(self) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def answered(self, ids: list[int], text: str, finish_reason: str) -> "KDSample":
        """A copy with a sampled response in place of what it may have."""
        sample = copy.copy(self)
        turns = self.messages[:-1] if self.has_response else self.messages
        sample.messages = [*turns, {"role": "assistant", "content": text}]
        sample.response_token_ids, sample.response_loss_mask = [list(ids)], []
        sample.finish_reason, sample.add_eos = finish_reason, False
        return sample

    def teacher_prompt_messages(self) -> list[Message]:
        """What the teacher sees in front of the response."""
        if self.teacher_view is not None:
            return [dict(turn) for turn in self.teacher_view]
        turns = [dict(turn) for turn in self.messages]
        if self.has_response:
            turns.pop()
        last_user = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
        if self.teacher_prompt and last_user:
            last_user["content"] = self.teacher_prompt
        return turns

    def teachers_own(self) -> dict[str, Any]:
        """What the teacher has in place of the student's, by the student's column; its turns are apart."""
        return {name: value for name, value in teachers_own(vars(self)).items() if name != "messages"}

    def build_teacher_view(self) -> bool:
        """Fills `teacher_messages` from the view and the current response. True if the teacher sees its own view."""
        if self.teacher_view is not None:
            self.teacher_messages = [dict(message) for message in self.teacher_view] + [self.response_message()]
            return True
        self.teacher_messages = None  # of an earlier response
        if super().build_teacher_view():
            return True
        return has_teacher_view(vars(self))

    def to_teacher_template_dict(self) -> dict[str, Any]:
        encoded = super().to_teacher_template_dict()
        if self.teacher_messages is None:
            encoded["messages"] = self.messages
        return encoded | self.teachers_own()


def _short(dataset: str) -> str:
    """A file without its folders; the id of a dataset on a hub as it is."""
    return os.path.basename(dataset) if os.path.splitext(dataset)[1] else dataset
