"""The teacher scores the tokens that the student is trained on: the same ids, in the same order, in both views."""

from swift_kd_plugin.errors import KDError

IGNORED = -100


def check_shared_response(sample, student_labels: list[int], teacher_labels: list[int], template) -> None:
    """Raises KDError naming the sample and the first differing position if the two views train on other tokens.

    Args:
        sample: a KDSample, for the message.
        student_labels: token ids of the student's view, IGNORED where nothing is trained.
        teacher_labels: the same for the teacher's view.
        template: ms-swift template, to show tokens as text.
    """
    student = [token for token in student_labels if token != IGNORED]
    teacher = [token for token in teacher_labels if token != IGNORED]
    if student == teacher:
        return
    position = next((i for i, pair in enumerate(zip(student, teacher, strict=False)) if pair[0] != pair[1]), None)
    if position is None:
        position = min(len(student), len(teacher))

    def show(tokens: list[int]) -> str:
        return repr(template.safe_decode(tokens[position : position + 1])) if position < len(tokens) else "nothing"

    raise KDError(
        f"The sample with the last user message {sample.last_user_text()!r} has different response tokens in its two "
        f"views ({len(student)} for the student, {len(teacher)} for the teacher, first difference at position "
        f"{position}: {show(student)} and {show(teacher)}); the views must end with the same response."
    )
