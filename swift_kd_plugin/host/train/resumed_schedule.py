"""The schedule of a resumed run is that of its flags.

Megatron takes the checkpoint's, which ends where the old run did: with more iterations the rest is trained at rate 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swift.utils import get_logger

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.train.checkpoint_manifest import read_saved_args

logger = get_logger()
# The flag behind each setting of OptimizerParamScheduler; those in samples are said in iterations.
FLAGS = {
    **{"max_lr": "lr", "min_lr": "min_lr", "lr_warmup_steps": "lr_warmup_iters", "lr_decay_steps": "lr_decay_iters"},
    **{"lr_decay_style": "lr_decay_style", "start_wd": "start_weight_decay", "end_wd": "end_weight_decay"},
    **{"wd_incr_steps": "train_iters", "wd_incr_style": "weight_decay_incr_style"},
}
IN_SAMPLES = ("lr_warmup_steps", "lr_decay_steps", "wd_incr_steps")
STATE = ("params", "step", "lr", "weight_decay")  # of a group; the last two follow from the schedule


@contextmanager
def schedule_of_flags(trainer: HostTrainer) -> Iterator[None]:
    """Around loading a checkpoint. Where flags and checkpoint agree it changes nothing."""
    scheduler, optimizer, args = trainer.opt_param_scheduler, trainer.optimizer, trainer.args
    asked, groups = _settings(scheduler), [_flags_of(group) for group in optimizer.param_groups]
    yield
    if not scheduler.num_steps:  # none was loaded
        return
    loaded, loaded_groups = _settings(scheduler), [_flags_of(group) for group in optimizer.param_groups]
    saved_batch = _saved_batch_size(args)
    if (asked, groups, args.global_batch_size) == (loaded, loaded_groups, saved_batch):
        return
    vars(scheduler).update(asked)
    for group, flags in zip(optimizer.param_groups, groups, strict=True):
        group.update(flags)
    scheduler.num_steps = scheduler.num_steps * args.global_batch_size // saved_batch
    scheduler.step(0)
    _say(asked, loaded, args.global_batch_size, saved_batch)


def warn_if_finished(trainer: HostTrainer) -> None:
    iteration, end = trainer.state.iteration, trainer.args.train_iters
    if iteration and end and iteration >= end:
        logger.warning(
            f"The checkpoint is of iteration {iteration}, and the run ends at {end}: nothing is trained. Give a larger "
            "--train_iters (or --num_train_epochs) to go on."
        )


def _settings(scheduler) -> dict[str, Any]:
    return {name: value for name, value in scheduler.state_dict().items() if name in FLAGS}


def _flags_of(group: dict[str, Any]) -> dict[str, Any]:
    """What flags have made of a group of weights: rates, betas and the like."""
    return {name: value for name, value in group.items() if name not in STATE}


def _saved_batch_size(args) -> int:
    """Samples of an iteration of the run that wrote the checkpoint."""
    saved = read_saved_args(Path(args.mcore_adapter or args.mcore_model))
    return saved.get("global_batch_size", args.global_batch_size)


def _say(asked: dict[str, Any], loaded: dict[str, Any], batch: int, saved_batch: int) -> None:
    changes = [] if batch == saved_batch else [f"global_batch_size {saved_batch} -> {batch}"]
    for name, flag in FLAGS.items():
        old, new = loaded[name], asked[name]
        if name in IN_SAMPLES:
            old, new = old / saved_batch, new / batch
        if old != new and not (name == "wd_incr_steps" and asked["wd_incr_style"] == "constant"):
            changes.append(f"{flag} {_text(old)} -> {_text(new)}")
    logger.info(
        "The resumed run has the schedule of its own flags, not that of the checkpoint"
        f"{': ' if changes else ''}{', '.join(changes)}."
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"
