"""Per-token parts of the loss, made into the [sum, count] pairs that ms-swift reduces and logs."""

import torch
from torch import Tensor

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.responses import RESPONSE_MODES, SOURCES
from swift_kd_plugin.losses.label_ce import STUDENT_CE, TEACHER_CE

REMOVED = ("removed_teacher_mass", "removed_student_mass")
REMOVED_LIMIT = 1e-3
BASIC = ("loss", "divergence", "ce")
LABEL_CES = (TEACHER_CE, STUDENT_CE)
EXTENDED = ("forward_kl", "reverse_kl", "teacher_entropy", "student_entropy", "top1_agreement", *LABEL_CES)


def metric_names(of_outputs: tuple[str, ...], extended: bool) -> tuple[str, ...]:
    """What a run logs. Every rank has the same list, also where it holds no token.

    Args:
        of_outputs: what is measured of the form of this teacher's outputs alone.
    """
    return BASIC + REMOVED + (EXTENDED + of_outputs if extended else ())


def make_metrics(
    names: tuple[str, ...], parts: dict[str, Tensor], ce: Tensor, source: Tensor, thinking: Tensor, device
) -> dict[str, Tensor]:
    """[sum, count] over this rank's tokens for each name, in all and by source and thinking mode.

    Args:
        parts: per token [T]; a missing part counts no token.
        ce: which tokens have a cross-entropy, bool [T].
        source, thinking: indices of SOURCES and RESPONSE_MODES per token [T].
    """
    metrics = {}
    groups = {name: source == index for index, name in enumerate(SOURCES)}
    groups |= {name: thinking == index for index, name in enumerate(RESPONSE_MODES)}
    for name in names:
        values = parts.get(name)
        if values is None:
            values = torch.zeros(0, device=device)
        counted = ce if name == "ce" else torch.ones_like(ce)
        counted = counted[: len(values)]
        if name in LABEL_CES:  # without the labels that a side does not have
            counted = counted & torch.isfinite(values)
            values = torch.where(counted, values, 0.0)
        metrics[name] = _pair(values, counted)
        for group, inside in groups.items():
            metrics[f"{name}_{group}"] = _pair(values, counted & inside[: len(values)])
    return metrics


def _pair(values: Tensor, counted: Tensor) -> Tensor:
    return torch.stack([(values * counted).sum(), counted.sum()]).float()


def describe_rollout(responses) -> dict[str, Tensor]:
    """[sum, count] over a micro-batch's responses of who wrote them, their lengths, and which met the length limit."""
    counted = responses.counted
    metrics = {}
    for index, name in enumerate(SOURCES):
        inside = (responses.source == index) & counted
        metrics[f"{name}_share"] = _pair(inside, counted)
        metrics[f"{name}_length"] = _pair(responses.length, inside)
        if name != "dataset":
            metrics[f"{name}_truncated"] = _pair(responses.truncated, inside)
    metrics["thinking_share"] = _pair(responses.thinking == RESPONSE_MODES.index("thinking"), counted)
    return metrics


def drop_lonely_groups(logs: dict) -> None:
    """Removes from the logs, in place, the metrics of a group that all tokens belong to: they repeat the total."""
    for family in (SOURCES, RESPONSE_MODES):
        for name in list(logs):
            present = [f"{name}_{group}" for group in family if f"{name}_{group}" in logs]
            if len(present) == 1:
                del logs[present[0]]


def check_removed_mass(logs: dict[str, Tensor], allowed: bool) -> None:
    """Raises KDError when the ids that only one side has held more than a thousandth of its probability."""
    for name in REMOVED:
        if name not in logs or allowed:
            continue
        mass = float(logs[name][0] / logs[name][1])
        if mass > REMOVED_LIMIT:
            side, other = ("teacher", "student") if "teacher" in name else ("student", "teacher")
            raise KDError(
                f"On average {mass:.2%} of the {side}'s probability lies on token ids that the {other} does not have "
                f"and was left out of the loss; choose models whose vocabularies fit, or --kd_allow_removed_mass true."
            )
