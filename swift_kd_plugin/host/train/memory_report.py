"""What a rank's memory goes to, read from the real models and optimizer, and the peak that is measured."""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.distributed import DistributedDataParallel
from swift.utils import get_logger
from torch import distributed as dist

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.teacher.vocabulary import config_of_teacher
from swift_kd_plugin.losses.request import block_tokens, chunk_tokens
from swift_kd_plugin.memory.memory_table import MemoryPlan, memory_table, render_memory, total_row

logger = get_logger()


class MemoryReport:
    """Logs the table of the rank that needs most: what is expected at the start, and its total beside the measured peak
    after one step.

    Args:
        payload_on_host: teacher outputs wait on the CPU for their micro-batch.
    """

    def __init__(self, payload_on_host: bool):
        self.payload_on_host = payload_on_host

    def at_start(self, trainer: HostTrainer) -> None:
        """Call on every rank, with models and optimizer in place."""
        self.rows = memory_table(read_plan(trainer, self.payload_on_host))
        self._log(total_row(self.rows).device, None)

    def after_first_step(self, trainer: HostTrainer) -> None:
        """Call on every rank after a train step."""
        measured = torch.cuda.max_memory_allocated()
        self._log(measured, measured)

    def _log(self, need: int, measured: int | None) -> None:
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, (need, self.rows, device_memory(), measured))
        largest = max(range(len(ranks)), key=lambda rank: ranks[rank][0])
        _, rows, capacity, peak = ranks[largest]
        title = f"Memory of rank {largest} of {len(ranks)}, " + ("expected" if peak is None else "after a train step")
        table = render_memory(rows, capacity, peak)
        if peak is not None:  # the other rows are those of the start
            head, *_, total, measured_row = table.splitlines()
            table = "\n".join((head, total, measured_row))
        logger.info(f"{title}:\n{table}")


def device_memory() -> int:
    """Memory of this rank's device in bytes."""
    return torch.cuda.mem_get_info()[1]


def read_plan(trainer: HostTrainer, payload_on_host: bool) -> MemoryPlan:
    """Reads a trainer that knows its form of the teacher's outputs, and whether its loss is fused."""
    args, config = trainer.args, trainer.config
    outputs, reads_only = trainer.kd.source.outputs, trainer.kd.source.reads_only
    teacher_config = config_of_teacher(trainer)
    optimizer, optimizer_on_host = optimizer_bytes(trainer.optimizer, trainer.unwrapped_models)
    tensor_parallel = mpu.get_tensor_model_parallel_world_size()
    width, device = config.padded_vocab_size // tensor_parallel, torch.device(torch.cuda.current_device())
    engine, engine_note = _engines(trainer)
    payload_tokens, batch_tokens = _tokens(trainer)
    last = mpu.is_pipeline_last_stage(ignore_virtual=True)
    return MemoryPlan(
        weights=weight_bytes(trainer.unwrapped_models),
        trainable=weight_bytes(trainer.unwrapped_models, trainable=True),
        gradients=gradient_bytes(trainer.wrapped_models),
        optimizer=optimizer,
        optimizer_on_host=optimizer_on_host,
        teacher=trainer.kd.source.head_bytes if reads_only else weight_bytes(trainer.teacher_models or []),
        teacher_note="its output layer alone; the rest is read" if reads_only else "",
        teacher_bits=None if reads_only else args.kd_teacher_bits,
        teacher_offloaded=bool(trainer.teacher_models) and args.offload_teacher_model,
        outputs=outputs.name,
        output_bytes=outputs.bytes_per_token(
            teacher_config.hidden_size, teacher_config.padded_vocab_size, trainer.gkd_logits_topk or 0
        ),
        outputs_by_columns=outputs.by_columns,
        payload_tokens=payload_tokens if last else 0,
        feature_bytes=trainer.kd.source.feature_bytes,
        feature_tokens=payload_tokens if trainer.kd.source.feature_bytes else 0,
        payload_on_host=payload_on_host,
        batch_tokens=batch_tokens if last else 0,
        fused=trainer.kd.fused,
        hidden=config.hidden_size,
        vocabulary=config.padded_vocab_size,
        chunk=chunk_tokens(width, device),
        block=block_tokens(width, device),
        tensor_parallel=tensor_parallel,
        engine=engine,
        engine_note=engine_note,
    )


def weight_bytes(models: list[torch.nn.Module], trainable: bool = False) -> int:
    """Of all parameters, or of those that are trained; one that two modules share counts once."""
    params = {id(p): p for model in models for p in model.parameters() if p.requires_grad or not trainable}
    return sum(_bytes(param) for param in params.values())


def gradient_bytes(wrapped_models: list[torch.nn.Module]) -> int:
    """Of the buffers that Megatron's DDP sums gradients in; of trained weights where there is no DDP."""
    count = 0
    for model in wrapped_models:
        if isinstance(model, DistributedDataParallel):
            buffers = [*model.buffers, *model.expert_parallel_buffers]
            count += sum(_bytes(buffer.grad_data) for buffer in buffers)
        else:
            count += weight_bytes([model], trainable=True)
    return count


def optimizer_bytes(optimizer, models: list[torch.nn.Module]) -> tuple[int, int]:
    """Main weights and states, on the device and on the CPU, of this rank's shard.

    States are made in the first step; their size follows from the parameters that the optimizer holds.
    """
    of_models = {param.untyped_storage().data_ptr() for model in models for param in model.parameters()}
    device = host = 0
    for config, leaf, on_host in _leaves(optimizer):
        for param in (param for group in leaf.param_groups for param in group["params"]):
            shared = param.untyped_storage().data_ptr() in of_models
            count = (0 if shared else _bytes(param)) + param.numel() * _state_bytes(config, leaf, param, shared)
            device, host = (device, host + count) if on_host else (device + count, host)
    return device, host


def _leaves(optimizer) -> Iterator[tuple[Any, torch.optim.Optimizer, bool]]:
    """Megatron's configuration, the torch optimizer, and whether it works on the CPU, for each torch optimizer."""
    if hasattr(optimizer, "chained_optimizers"):
        for part in optimizer.chained_optimizers:
            yield from _leaves(part)
        return
    inner = optimizer.optimizer
    if hasattr(inner, "cpu_optimizers"):
        yield from ((optimizer.config, leaf, True) for leaf in inner.cpu_optimizers)
        inner = inner.gpu_optimizer
    if inner is not None:
        yield optimizer.config, inner, False


def _state_bytes(config, leaf: torch.optim.Optimizer, param: torch.Tensor, shared: bool) -> int:
    """Bytes of the states of one value."""
    if config.use_precision_aware_optimizer and shared:
        # The states hold the main weight too; of an fp32 one beside a bf16 weight only the lower half.
        remainder = config.store_param_remainders and param.dtype == torch.bfloat16
        main = 0 if param.dtype == torch.float32 else 2 if remainder else config.main_params_dtype.itemsize
        return main + config.exp_avg_dtype.itemsize + config.exp_avg_sq_dtype.itemsize
    moments = 2 if "adam" in type(leaf).__name__.lower() else 1
    return moments * param.element_size()


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tokens(trainer: HostTrainer) -> tuple[int, int]:
    """The most response tokens of a generation cycle on this rank, and the most tokens of a micro-batch."""
    args = trainer.args
    written = args.max_completion_length if trainer.kd.writers else 0
    response = max(written, 0 if all_are_written(trainer) else args.max_length)
    sample = args.max_length + written
    # A teacher that is the student itself is asked anew in every train step.
    steps = 1 if trainer._is_self_distillation else trainer.steps_per_generation
    batches = steps * args.num_microbatches
    return batches * args.micro_batch_size * response, args.micro_batch_size * sample // args.context_parallel_size


def all_are_written(trainer: HostTrainer) -> bool:
    """Whether no response of the dataset is ever trained on."""
    args, writers = trainer.args, trainer.kd.writers
    by_student = "student" in writers and args.lmbda >= 1 and args.kd_lmbda_final in (None, 1)
    by_teacher = "teacher" in writers and args.kd_seq_kd_prob >= 1
    return (by_student or by_teacher) and args.kd_truncated != "drop"


def _engines(trainer: HostTrainer) -> tuple[int, str]:
    """What the engines of the run's writers hold; one that writes for both sides counts once."""
    held = [writer.held() for writer in {id(writer): writer for writer in trainer.kd.writers.values()}.values()]
    return sum(count for count, _ in held), "; ".join(note for _, note in held) or "none"
