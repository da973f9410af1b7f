"""The teacher scores the tokens that the student is trained on: the same ids, in the same order, in both views."""

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.response_labels import IGNORED, Mismatch, match_tokens, trained_tokens


def match_views(
    samples, student: list[dict], teacher: list[dict], template, on_mismatch: str, strategy: str
) -> list[int]:
    """Compares the response tokens of both views, sample by sample, before collation.

    Args:
        samples: KDSamples, named in errors.
        student, teacher: their encoded views; `labels` are token ids, IGNORED where nothing is trained. Position 0 has
            no prediction and never a label: ms-swift's encoding and truncation clear it.
        template: ms-swift template, to show tokens as text.
        on_mismatch: "error", or "drop" to take a sample that differs out of the training: its `labels` become IGNORED
            and its `loss_scale` 0 in both views, which keep their lengths.
        strategy: `--loss_scale`, which says what turns are trained.

    Returns:
        The indices of the dropped samples.

    Raises:
        KDError: naming the sample, the first differing position and both tokens.
    """
    dropped = []
    for index, views in enumerate(zip(student, teacher, strict=True)):
        mismatch = match_tokens(*(trained_tokens(view["labels"]) for view in views))
        if mismatch is None:
            continue
        if on_mismatch == "error":
            raise KDError(_describe(samples[index], mismatch, template, strategy))
        for view in views:
            _leave_out(view)
        dropped.append(index)
    return dropped


def _leave_out(view: dict) -> None:
    view["labels"] = [IGNORED] * len(view["labels"])
    if view.get("loss_scale") is not None:
        view["loss_scale"] = [0.0] * len(view["loss_scale"])


def _describe(sample, mismatch: Mismatch, template, strategy: str) -> str:
    def show(token: int | None) -> str:
        return "nothing" if token is None else f"{template.safe_decode([token])!r} (id {token})"

    number = sample.trained_before(strategy)
    alone = f"; turn {number} is trained, too, and the teacher's view lacks it" if number else ""
    return (
        f"{sample.name} has different response tokens in its two views ({mismatch.student_count} for the student, "
        f"{mismatch.teacher_count} for the teacher; the first difference is at position {mismatch.position}: "
        f"{show(mismatch.student)} for the student, {show(mismatch.teacher)} for the teacher{alone}); both views must "
        "end with the same response. Mend the row, or pass --kd_on_mismatch drop to leave such samples out."
    )
