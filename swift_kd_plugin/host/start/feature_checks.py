"""Which layers of student and teacher are matched, told by the flags and both config.json, before a model is loaded."""

import re
from pathlib import Path

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.model_checks import read_config
from swift_kd_plugin.host.start.resume_check import resumed_flag
from swift_kd_plugin.host.train.checkpoint_manifest import projected_pairs, read_saved_args

AUTO, AUTO_PAIRS = "auto", 4
Pairs = list[tuple[int, int]]


def check_features(args, student: str | None, teacher: str | None) -> tuple[Pairs, tuple[int, int]] | None:
    """The pairs of layers and the hidden sizes of student and teacher; None where nothing is matched or known.

    Args:
        student, teacher: folders of the models; without one of the teacher's own the student is it.

    Raises:
        KDError: the map names no pairs of layers, or layers or sizes that these models do not have.
    """
    if not (args.kd_feature_weight or args.kd_feature_weight_final):
        _check_projections(args, [])
        return None
    pairs = None if args.kd_feature_layers == AUTO else _read_pairs(args.kd_feature_layers)
    sides = [_read_sizes(folder) for folder in (student, teacher or student)]
    if None in sides:
        return None
    (layers, width), (teacher_layers, teacher_width) = sides
    if pairs is None:
        pairs = spread(layers, teacher_layers)
    for side, flag, folder, there in ((0, "model", student, layers), (1, "teacher_model", teacher, teacher_layers)):
        if (number := pairs[-1][side]) > there:
            raise KDError(
                f"--kd_feature_layers {args.kd_feature_layers} names layer {number} of --{flag} {folder}, which has "
                f"{there}; give layers from 1 to {there}."
            )
    if width != teacher_width and args.kd_feature_projection == "none":
        raise KDError(
            f"--kd_feature_projection none compares hidden states of one size, and --model has {width:,} and "
            f"--teacher_model has {teacher_width:,}; use --kd_feature_projection linear."
        )
    _check_projections(args, pairs if width != teacher_width else [])
    return pairs, (width, teacher_width)


def spread(layers: int, teacher_layers: int) -> Pairs:
    """At most AUTO_PAIRS pairs in even distances, with the last layers among them."""
    count = min(AUTO_PAIRS, layers, teacher_layers)
    return [tuple(round(number * of / count) for of in (layers, teacher_layers)) for number in range(1, count + 1)]


def _check_projections(args, now: Pairs) -> None:
    """The projections of matched features are a part of what the optimizer of a resumed run holds."""
    if (flag := resumed_flag(args)) is None:
        return
    folder = Path(getattr(args, flag)).expanduser()
    before = projected_pairs(read_saved_args(folder))
    if now != before:
        old, new = (",".join(f"{s}:{t}" for s, t in some) or "no layers" for some in (before, now))
        raise KDError(
            f"--{flag} {folder} was saved with projections of {old} (--kd_feature_layers), and this run has them of "
            f"{new}: its optimizer cannot be loaded so. Keep the old features, or let optimizer and schedule begin "
            "anew: --no_load_optim true --no_load_rng true."
        )


def _read_pairs(text: str) -> Pairs:
    if not re.fullmatch(r"\s*\d+\s*:\s*\d+\s*(,\s*\d+\s*:\s*\d+\s*)*", text):
        raise KDError(
            f"--kd_feature_layers {text} is no list of student:teacher layers, such as 4:8,8:16; give one, or auto."
        )
    pairs = [tuple(map(int, pair.split(":"))) for pair in text.split(",")]
    before = (0, 0)
    for pair in pairs:
        if pair[0] <= before[0] or pair[1] <= before[1]:
            raise KDError(
                f"--kd_feature_layers {text}: {pair[0]}:{pair[1]} does not lie behind {before[0]}:{before[1]}; layers "
                "are counted from 1, and both numbers must grow from pair to pair."
                if before != (0, 0)
                else f"--kd_feature_layers {text}: layers are counted from 1."
            )
        before = pair
    return pairs


def _read_sizes(folder: str | None) -> tuple[int, int] | None:
    """Number of layers and hidden size."""
    config = read_config(folder) if folder else None
    sizes = tuple((config or {}).get(name) for name in ("num_hidden_layers", "hidden_size"))
    return sizes if all(type(size) is int for size in sizes) else None
