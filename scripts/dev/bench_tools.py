"""What a benchmark of losses needs besides the losses: inputs, time, extra memory, the machine, tables, files."""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
# (student logits, teacher logits) -> the loss summed over the tokens
Loss = Callable[[Tensor, Tensor], Tensor]
FAVOURITES = 32
# Rows that are drawn; the others repeat them, which takes less time.
DRAWN = 32
MIB = 2**20
PAGE = 4096 / MIB


@dataclass(frozen=True)
class Shape:
    tokens: int
    vocab: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


def in_fresh_processes(
    function: Callable[..., Any], calls: Iterable[tuple], at_once: int = 1, imported: Iterable[str] = ()
) -> list[Any]:
    """What `function` returns for each call's arguments, each in a process that has done nothing but `imported`."""
    multiprocessing.set_forkserver_preload([__name__, *imported])
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        return [future.result() for future in [pool.submit(function, *call) for call in calls]]


def make_logits(shape: Shape, kind: str = "peaked") -> tuple[Tensor, Tensor]:
    """Student and teacher [T, V], written in place: making them takes no memory besides theirs.

    Args:
        kind: "peaked" as language models are, most of the probability on a few ids and mostly the same ones;
            "broad", half of it on some 200 of 151,936 ids; "flat", half of it on some 24,000, an untrained model.
    """
    generator = torch.Generator(shape.device).manual_seed(0)

    def normal(spread: float) -> Tensor:
        logits = torch.empty(shape.tokens, shape.vocab, dtype=shape.dtype, device=shape.device)
        drawn = logits[:DRAWN].normal_(0, spread, generator=generator)
        for rows in logits[DRAWN:].split(DRAWN):
            rows.copy_(drawn[: len(rows)])
        return logits

    if kind != "peaked":
        spread = {"broad": 3.0, "flat": 1.0}[kind]
        return normal(spread), normal(spread)
    student, teacher = normal(2.0), normal(2.0)
    ids = torch.randint(shape.vocab, (shape.tokens, FAVOURITES), device=shape.device, generator=generator)
    values = torch.empty(ids.shape, device=shape.device).uniform_(8, 18, generator=generator)
    moved = values + torch.empty_like(values).normal_(generator=generator)
    teacher.scatter_(1, ids, values.to(shape.dtype))
    student.scatter_(1, ids, moved.to(shape.dtype))
    return student, teacher


@dataclass
class Run:
    """What one loss took and gave; `extra_mib` is measured on CUDA only, `failed` says why there is nothing else."""

    seconds: float | None = None
    extra_mib: float | None = None
    value: float | None = None
    gradient: Tensor | None = None
    failed: str | None = None
    # Relative to the first loss of the round.
    value_difference: float | None = None
    gradient_difference: float | None = None

    def compare(self, first: "Run") -> None:
        if not (self.failed or first.failed):
            self.value_difference = abs(self.value - first.value) / abs(first.value)
            self.gradient_difference = relative_difference(self.gradient, first.gradient)


def call_once(loss: Loss, student: Tensor, teacher: Tensor, inplace: bool) -> Run:
    """Forward and backward, once. A loss that writes into the student's logits gets a copy, made before the clock."""
    leaf = (student.clone() if inplace else student.detach()).requires_grad_()
    cuda = student.is_cuda
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    try:
        value = loss(leaf, teacher)
        value.backward()
    except torch.OutOfMemoryError:
        return Run(failed="out of memory")
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    extra = (torch.cuda.max_memory_allocated() - before) / MIB if cuda else None
    return Run(seconds, extra, float(value.detach()), leaf.grad)


def run_interleaved(losses: dict[str, Loss], student: Tensor, teacher: Tensor, repeats: int) -> dict[str, Run]:
    """Each loss in turn, `repeats` times after a warm-up, so that all meet the same noise; `seconds` are medians."""
    warm_up = slice(None) if student.is_cuda else slice(8)
    for name, loss in losses.items():
        call_once(loss, student[warm_up], teacher[warm_up], is_inplace(name))
    runs: dict[str, list[Run]] = {name: [] for name in losses}
    for repeat in range(repeats):
        first = None
        for name, loss in losses.items():
            run = call_once(loss, student, teacher, is_inplace(name))
            if repeat == 0:
                first = first or run
                run.compare(first)
            if run is not first:
                run.gradient = None
            runs[name].append(run)
        if first:
            first.gradient = None
    results = {name: found[0] for name, found in runs.items()}
    for name, found in runs.items():
        if not any(run.failed for run in found):
            results[name].seconds = statistics.median(run.seconds for run in found)
    return results


def is_inplace(name: str) -> bool:
    return name.endswith("in place")


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """The largest difference relative to the largest reference. Row by row, for tensors that fill the memory."""
    pairs = list(zip(value.split(64), reference.split(64), strict=True))
    scale = max(float(expected.abs().max()) for _, expected in pairs)
    return max(float((actual.double() - expected.double()).abs().max()) for actual, expected in pairs) / scale


def extra_memory_here(loss: Loss, shape: Shape, kind: str = "peaked") -> float:
    """Peak MiB above student and teacher logits of one forward and backward, in this process, which must be fresh.

    The kernel's own marks are read: `ru_maxrss` is inherited from the parent process.
    """
    small = Shape(2, 64)
    student, teacher = make_logits(small)
    loss(student.requires_grad_(), teacher).backward()
    student, teacher = make_logits(shape, kind)
    student.requires_grad_()
    before = process_memory("VmRSS")
    loss(student, teacher).backward()
    return max(PAGE, process_memory("VmHWM") - before)


def process_memory(mark: str) -> float:
    """MiB resident now (VmRSS) or at the most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{mark}:"))


def copy_bandwidth(device: str, size: int = 2**31) -> float:
    """Bytes read and written per second by a copy of `size` bytes on a CUDA device: the median of ten."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(11):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds[1:])


def describe_machine() -> dict:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "cpu": models[0].split(":")[1].strip() if models else platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def table(rows: Iterable[dict], columns: dict[str, str]) -> str:
    """Rows as aligned text; `columns` gives for each key its heading and format: "seconds:.3f"."""
    heads = [spec.split(":")[0] for spec in columns.values()]
    lines = [heads]
    for row in rows:
        cells = []
        for key, spec in columns.items():
            value = row.get(key)
            form = spec.partition(":")[2]
            if isinstance(value, bool):
                value = "yes" if value else "NO"
            cells.append("-" if value is None else value if isinstance(value, str) else format(value, form))
        lines.append(cells)
    widths = [max(len(line[index]) for line in lines) for index in range(len(heads))]
    numeric = [":" in spec for spec in columns.values()]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def write_json(path: Path, content: dict) -> None:
    """All or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
