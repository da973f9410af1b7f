"""One batch of every stage in a temporary folder: what would fail after hours fails now."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.plan import GENERATE, Stage
from swift_kd_plugin.recipes.stages import StageRunner, complete_keys

CACHE = "teacher_cache"
# Schedules that are longer than one step, and what keeps checkpoints.
LEFT_OUT = ("num_train_epochs", "finetune", "lr_warmup_iters", "lr_decay_iters", "save_total_limit", "save_strategy")
ONE_STEP = {
    "train_iters": 1,
    "eval_iters": 1,
    "save_steps": 1,
    "eval_steps": 1,
    "logging_steps": 1,
    "no_save_optim": True,
}


def check_stages(stages: list[Stage], runner: StageRunner) -> None:
    """Runs each stage for one step. A stage that trains what another one leaves takes that one's own model instead.

    Args:
        stages: a plan whose folders are temporary.

    Raises:
        KDError: a stage fails.
    """
    for number, stage in enumerate(stages):
        keys = _with_cache_apart(complete_keys(stage, _stand_in), stages[:number], stage.root)
        keys = keys | {"limit": _rows_of_a_batch(stages)} if stage.kind == GENERATE else _one_step(keys)
        stage = replace(stage, keys=keys)
        stage.folder.mkdir(parents=True, exist_ok=True)
        runner.run(stage, runner.command(stage, keys))
        if stage.kind != GENERATE:
            shutil.rmtree(stage.folder)  # a checkpoint is large


def _with_cache_apart(keys: dict[str, Any], before: list[Stage], root: Path) -> dict[str, Any]:
    """Keys whose teacher cache, if it would be written to, lies in the temporary folder.

    One that is only read stays where it is, unless a stage before this one is to fill it.
    """
    cache = keys.get("kd_teacher_cache")
    filled_here = any(_fills(stage.keys, cache) for stage in before)
    if cache is None or (keys.get("kd_teacher_cache_mode") == "read" and not filled_here):
        return keys
    return keys | {"kd_teacher_cache": str(root / CACHE), "kd_teacher_cache_mode": None}


def _fills(keys: dict[str, Any], cache: str | None) -> bool:
    other = keys.get("kd_teacher_cache")
    same = None not in (cache, other) and Path(cache).expanduser().resolve() == Path(other).expanduser().resolve()
    return same and keys.get("kd_teacher_cache_mode") != "read"


def _one_step(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in LEFT_OUT} | ONE_STEP


def _rows_of_a_batch(stages: list[Stage]) -> int:
    """As many prompts as the largest batch has; half as many rows may be left where some are held out or refused."""
    return 2 * max((stage.keys.get("global_batch_size") or 16) for stage in stages)


def _stand_in(stage: Stage) -> str:
    model = stage.keys.get("model")
    if stage.kind != GENERATE and model is None:
        raise KDError(f"{stage.name} has no model to begin with; give one at the top or in `students`.")
    return str(model)
