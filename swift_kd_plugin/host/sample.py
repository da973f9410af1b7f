"""A training sample with two views: what the student sees and what the teacher sees, around one shared response."""

from dataclasses import dataclass
from typing import Any

from swift.rl_core.data import GKDSample

from swift_kd_plugin.errors import KDError

Message = dict[str, Any]


@dataclass
class KDSample(GKDSample):
    """`GKDSample` plus `teacher_view`: the teacher's system, history and last user turn, without the response.

    It comes from the dataset column `teacher_messages`. Stock's columns `teacher_prompt` and `teacher_images` keep
    their meaning; `teacher_prompt` cannot be given together with `teacher_messages`.
    """

    teacher_view: list[Message] | None = None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "KDSample":
        row = dict(row)
        view = row.pop("teacher_messages", None)
        sample = super().from_row(row)
        sample.teacher_view = [dict(message) for message in view] if view else None
        if sample.teacher_view and sample.teacher_prompt:
            raise KDError(
                f"A row has both teacher_messages and teacher_prompt (its last user message: "
                f"{sample.last_user_text()!r}); keep one of the two columns."
            )
        return sample

    def last_user_text(self, length: int = 80) -> str:
        """The start of the student's last user message: how a message to a person names this sample."""
        turns = [str(message["content"]) for message in self.messages if message["role"] == "user"]
        return turns[-1][:length] if turns else ""

    def response_message(self) -> Message:
        """The assistant turn that both views share. Raises KDError when there is none."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise KDError(
                f"The sample with the last user message {self.last_user_text()!r} has no response to distil on; "
                "give it an assistant message or let the student write it (--lmbda 1 --use_vllm true)."
            )
        return dict(self.messages[-1])

    def build_teacher_view(self) -> bool:
        """Fills `teacher_messages` from the view and the current response. True if the teacher sees its own view."""
        if self.teacher_view is None:
            return super().build_teacher_view()
        self.teacher_messages = [dict(message) for message in self.teacher_view] + [self.response_message()]
        return True

    def to_teacher_template_dict(self) -> dict[str, Any]:
        encoded = super().to_teacher_template_dict()
        if self.teacher_messages is None:
            # A batch may mix samples with and without a teacher view; without one the teacher sees the student's.
            encoded["messages"] = self.messages
        return encoded
