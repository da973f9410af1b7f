"""A training sample with two views: what the student sees and what the teacher sees, around one shared response."""

import copy
import json
from dataclasses import dataclass
from typing import Any

from swift.rl_core.data import GKDSample

from swift_kd_plugin.data.rows import SPEAKS, Filler, Message, Place, split_response
from swift_kd_plugin.data.trained_turns import turn_weights
from swift_kd_plugin.data.turn_keys import new_weights
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
        source = source or "the dataset"
        if number is None:
            return f"{source}, the row with the id {row_id!r}"
        return str(Place(source, number, row_id))

    def last_user_text(self, length: int = 80) -> str:
        """The start of the student's last user message."""
        turns = [str(message["content"]) for message in self.messages if message["role"] == "user"]
        return turns[-1][:length] if turns else ""

    @property
    def response_turns(self) -> list[Message]:
        """The turns of the response, which both views share; none where it is still to be written."""
        return [dict(turn) for turn in split_response(self.messages)[1]]

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
    def prompt_turns(self) -> list[Message]:
        """The turns in front of the response."""
        return split_response(self.messages)[0]

    @property
    def has_response(self) -> bool:
        return bool(self.response_turns)

    def to_infer_request(self, include_extra: bool = False):
        """Of turns as ms-swift's requests have them: a role and a text; what tools are asked and answer is JSON."""
        plain = copy.copy(self)
        plain.messages = [_request_turn(turn) for turn in self.messages]
        return GKDSample.to_infer_request(plain, include_extra)

    def answered(self, ids: list[int], text: str, finish_reason: str) -> "KDSample":
        """A copy with a sampled response in place of what it may have."""
        sample = copy.copy(self)
        response = {"role": "assistant", "content": text, **new_weights(self.response_turns)}
        sample.messages = [*self.prompt_turns, response]
        sample.response_token_ids, sample.response_loss_mask = [list(ids)], []
        sample.finish_reason, sample.add_eos = finish_reason, False
        return sample

    def trained_before(self, strategy: str) -> int | None:
        """The number of the first turn in front of the response that is trained and that the teacher does not see."""
        theirs = [turn["content"] for turn in self.teacher_view or self.messages if turn["role"] in SPEAKS]
        turns = zip(self.prompt_turns, turn_weights(self.messages, strategy), strict=False)
        numbered = ((number, turn) for number, (turn, weight) in enumerate(turns, 1) if weight)
        own = (number for number, turn in numbered if turn["role"] in SPEAKS and turn["content"] not in theirs)
        return next(own, None)

    def teacher_prompt_messages(self) -> list[Message]:
        """What the teacher sees in front of the response."""
        if self.teacher_view is not None:
            return [dict(turn) for turn in self.teacher_view]
        turns = [dict(turn) for turn in self.prompt_turns]
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
            if not self.has_response:
                raise KDError(
                    f"{self.name} has no response to distil on; give it an assistant message, or let the student "
                    "(--lmbda 1 --use_vllm true) or the teacher (--seq_kd true) write it."
                )
            view = _with_weights_of(self.prompt_turns, self.teacher_view)
            self.teacher_messages = [*view, *self.response_turns]
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


def _with_weights_of(history: list[Message], view: list[Message]) -> list[Message]:
    """The teacher's turns with the weights of the student's, from the end on as long as both said the same."""
    view = [dict(turn) for turn in view]
    sides = ([turn for turn in reversed(turns) if turn["role"] in SPEAKS] for turns in (history, view))
    for student, teacher in zip(*sides, strict=False):
        if student["content"] != teacher["content"]:
            break
        teacher |= {key: student[key] for key in ("loss", "loss_scale") if student.get(key) is not None}
    return view


def _request_turn(turn: Message) -> Message:
    content = turn["content"]
    as_json = turn["role"] not in ("system", "user", "assistant") and not isinstance(content, str)
    return {"role": turn["role"], "content": json.dumps(content, ensure_ascii=False) if as_json else content}
