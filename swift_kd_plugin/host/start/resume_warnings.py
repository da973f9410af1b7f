"""What of a resumed run is not as it would have been without the break, though its checkpoint can be loaded."""

from pathlib import Path
from typing import Any

from swift.utils import get_logger

from swift_kd_plugin.host.start.resume_check import checkpoint_of
from swift_kd_plugin.host.train.checkpoint_manifest import read_saved_args

# What decides which rows come at which step, beside the rows themselves; the last ones of streams alone.
ORDER = (
    *("dataset", "split_dataset_ratio", "interleave_prob", "stopping_strategy", "streaming", "data_seed"),
    *("dataset_shuffle", "train_dataloader_shuffle", "group_by_length", "data_sharding", "shuffle_buffer_size"),
)
OF_STREAMS = ("shuffle_buffer_size",)
logger = get_logger()


def warn_of_other_rows(args) -> None:
    """Says by which flags a resumed run takes other rows than the uninterrupted one would have taken."""
    flag, folder = checkpoint_of(args)
    if flag is None:
        return
    saved = read_saved_args(folder)
    names = [name for name in ORDER if args.streaming or name not in OF_STREAMS]
    changed = [name for name in names if name in saved and saved[name] != getattr(args, name)]
    if changed:
        changes = ", ".join(f"--{name} {_text(saved[name])} -> {_text(getattr(args, name))}" for name in changed)
        logger.warning(
            f"The run that wrote --{flag} {folder} took its rows in another order, and where it stopped says nothing "
            f"about this one: {changes}. Rows may be used twice or not at all; give the old flags to go on as it "
            "would have."
        )


def warn_of_idle_steps(args) -> None:
    """Warns of steps behind the end of the schedule, whose rate is 0."""
    end, style = args.lr_decay_iters, args.lr_decay_style
    if end is None or style == "constant" or args.min_lr or not args.lr or not args.train_iters:
        return
    flag, folder = checkpoint_of(args)
    begin = 0 if flag is None or args.no_load_optim else _iteration(folder)
    idle = args.train_iters - max(begin, end)
    if idle > 0:
        behind = f", which go on from iteration {begin} of --{flag} {folder}," if begin else ""
        logger.warning(
            f"--lr_decay_iters {end} and --min_lr 0: {idle} of the {args.train_iters - begin} steps{behind} have the "
            "learning rate 0 and train nothing; give a larger --lr_decay_iters, or a --min_lr."
        )


def warn_of_fresh_start(args) -> None:
    """Warns where a checkpoint of the run's own folder is given and its weights alone are loaded."""
    folder = args.mcore_adapter or args.mcore_model
    if not folder or not args.finetune or Path(args.output_dir).resolve() not in Path(folder).resolve().parents:
        return
    flag = "mcore_adapter" if args.mcore_adapter else "mcore_model"
    logger.warning(
        f"--{flag} {folder} is a checkpoint of this --output_dir, and its weights alone are loaded: optimizer, "
        "schedule and rows begin anew. To go on where it stopped give --finetune false."
    )


def _iteration(folder: Path) -> int:
    """Of a checkpoint; 0 where its folder does not say it."""
    file = folder / "latest_checkpointed_iteration.txt"
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else 0


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
