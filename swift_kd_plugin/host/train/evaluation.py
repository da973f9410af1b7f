"""Evaluation: the same rows each time, every metric one quotient of sums over all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from swift.utils import get_logger, is_last_rank
from torch import Tensor

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rows.validation_rows import FirstRows, ValidationRows, read_stream
from swift_kd_plugin.host.samples.host_trainer import HostTrainer

logger = get_logger()


def validation_rows(trainer: HostTrainer, dataset) -> ValidationRows | None:
    """What every evaluation of a run takes; None where nothing is evaluated."""
    args = trainer.args
    count = args.eval_iters * args.global_batch_size
    if dataset is None or (count <= 0 and not _is_empty(dataset)):
        return None
    if not hasattr(dataset, "__len__"):
        rows = read_stream(dataset, count, trainer.kd.rows_filter, mpu.get_data_parallel_group())
    else:
        rows = FirstRows(dataset, count)
    if not rows:
        raise KDError(
            "--val_dataset has no row that can be evaluated, all are left out; mend them, or leave the flag out."
        )
    interleaved = args.virtual_pipeline_model_parallel_size is not None
    return ValidationRows(
        rows,
        args.global_batch_size,
        args.micro_batch_size,
        mpu.get_data_parallel_rank(),
        mpu.get_data_parallel_world_size(),
        groups_of=trainer.config.microbatch_group_size_per_vp_stage if interleaved else 1,
    )


def _is_empty(dataset) -> bool:
    """Of rows that were read, all of which have been left out; ms-swift sets --eval_iters to 0 then."""
    return hasattr(dataset, "__len__") and len(dataset) == 0


@torch.no_grad()
def sum_metrics(trainer: HostTrainer, rows: ValidationRows) -> dict[str, Any]:
    """[sum, count] of each metric over all rows, where this rank has them, and `n_steps`."""
    totals: dict[str, Any] = {"n_steps": 0}
    for batches in rows.steps():
        with micro_batches(trainer.args, len(batches)):
            metrics = _forward(trainer, batches)
        trainer.call_event("on_eval_step")
        of_step: dict[str, Any] = {}
        trainer._aggregated_metrics(metrics, of_step)
        for name, value in of_step.items():
            totals[name] = totals.get(name, 0) + (value.double() if isinstance(value, Tensor) else value)
    if totals.keys() == {"n_steps"} and is_last_rank():
        logger.warning_if(
            f"The evaluation has no figures: none of its {len(rows.rows):,} rows could be used.", cond=True
        )
    return totals


def _forward(trainer: HostTrainer, batches: list[list[dict]]) -> list[dict]:
    args = trainer.args
    stages = args.virtual_pipeline_model_parallel_size
    data = iter(batches) if stages is None else [iter(batches)] * stages
    metrics = get_forward_backward_func()(
        forward_step_func=trainer.forward_step,
        data_iterator=trainer._replace_data_iterator(data),
        model=trainer.wrapped_models,
        num_microbatches=args.num_microbatches,
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        forward_only=True,
    )
    return metrics + trainer.kd.features.collect() if trainer.kd.features else metrics


@contextmanager
def micro_batches(args, number: int) -> Iterator[None]:
    """Within the block a step has so many micro-batches."""
    before, args.num_microbatches = args.num_microbatches, number
    try:
        yield
    finally:
        args.num_microbatches = before


def as_numbers(logs: dict[str, Any]) -> None:
    """Makes quotients of the [sum, count] pairs, in place."""
    for name, value in logs.items():
        if isinstance(value, Tensor):
            logs[name] = (value[0] / value[1] if value.numel() == 2 else value).item()


def comparable(metrics: dict[str, float] | None, name: str) -> tuple[dict[str, float] | None, str | None]:
    """What may choose the best checkpoint, and the sentence for what may not.

    Args:
        metrics: of an evaluation, or None where there was none.
        name: of the metric, as the user gave it: with or without `eval_`.
    """
    if metrics is None:
        return None, None
    value = metrics.get(name.removeprefix("eval_"))
    if value is None:
        known = ", ".join(sorted(metrics)) or "no figures"
        return None, f"--metric_for_best_model {name}: no checkpoint is the best, as the evaluation has but {known}."
    if not isfinite(value):
        return None, f"{name} is {value} in this evaluation, so its checkpoint cannot be the best."
    return {**metrics, name: value}, None
