"""Hidden states to gradients of hidden states and head: the fused losses against ms-swift's way over whole logits.

python -m scripts.dev.bench_fused [--tokens N] [--vocab N] [--hidden N] [--device cpu|cuda] [--check]
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from scripts.dev.bench_losses import BETAS, MODULES, Device, has_liger, stock
from scripts.dev.bench_tools import (
    MIB,
    PAGE,
    describe_machine,
    in_fresh_processes,
    process_memory,
    relative_difference,
    table,
    write_json,
)
from swift_kd_plugin.losses import fused_linear_divergence

DIVERGENCES = ("jsd", "forward_kl")
# What ours takes at most of what ms-swift's way takes, on a CPU. The share of time is the losses': the products with
# the heads are the same on both ways, and outweigh the losses where hidden states are wide and products are slow.
MOST = {"seconds": 0.7, "extra_mib": 0.05}
# However few the tokens: two blocks of 2**25 fp32 elements and the tensors of a chunk.
MOST_MIB = 320
LABELS = {"seconds": "time", "extra_mib": "memory"}
# Bytes that a teacher hands over per response token, at most.
MOST_PAYLOAD = 8300
PAYLOAD_HIDDEN, PAYLOAD_VOCAB = 4096, 151_936
LINE_TOKENS = (256, 512, 1024, 2048, 4096, 8192)
LINE_VOCAB, LINE_HIDDEN = 16_384, 256
# Tensors of the logits' size that ms-swift's way holds at once, both sides' logits included: measured 9.5.
STOCK_COPIES = 10


@dataclass(frozen=True)
class Shape:
    tokens: int
    vocab: int
    hidden: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.tokens:,} tokens x {self.hidden:,} hidden x {self.vocab:,} ids, {dtype}"


# Hidden states [T, H] and weight [V, H] of the student, then of the teacher.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Way = Callable[..., Tensor]


def make_inputs(shape: Shape) -> Inputs:
    """The student's are close to the teacher's; logits have a spread of about 3."""
    generator = torch.Generator(shape.device).manual_seed(0)
    options = {"dtype": shape.dtype, "device": shape.device}

    def normal(rows: int, spread: float) -> Tensor:
        return torch.empty(rows, shape.hidden, **options).normal_(0, spread, generator=generator)

    hidden, weight = normal(shape.tokens, 1.0), normal(shape.vocab, 3.0 / shape.hidden**0.5)
    own_hidden = normal(shape.tokens, 0.3).add_(hidden)
    return own_hidden.requires_grad_(), weight.clone().requires_grad_(), hidden, weight


def ours(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, divergence: str) -> Tensor:
    return fused_linear_divergence(hidden, weight, teacher_hidden, teacher_weight, divergence=divergence).sum()


def stock_way(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, divergence: str
) -> Tensor:
    with torch.no_grad():
        teacher = teacher_hidden @ teacher_weight.t()
    return stock(hidden @ weight.t(), teacher, divergence)


def liger(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, divergence: str) -> Tensor:
    """Liger returns the mean over tokens."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=BETAS[divergence])
    return loss(hidden, weight, teacher_hidden, teacher_weight) * len(hidden)


WAYS: dict[str, Way] = {"ours": ours, "stock": stock_way, "liger": liger}


def measure_here(name: str, divergence: str, shape: Shape, threads: int) -> dict[str, float]:
    """Seconds and extra MiB of one forward and backward, in this process, which must be fresh.

    The gradients of hidden states and weight are what either way is for: their memory is left out of both.
    """
    torch.set_num_threads(threads)
    small = make_inputs(replace(shape, tokens=2, vocab=64))
    WAYS[name](*small, divergence).backward()
    inputs = make_inputs(shape)
    before, start = process_memory("VmRSS"), time.perf_counter()
    value = WAYS[name](*inputs, divergence)
    value.backward()
    seconds = time.perf_counter() - start
    gradients = sum(leaf.grad.nbytes for leaf in inputs[:2]) / MIB
    extra = max(PAGE, process_memory("VmHWM") - before - gradients)
    return {"seconds": seconds, "extra_mib": extra, "value": value.item()}


def measure(name: str, divergence: str, shape: Shape, repeats: int) -> dict[str, float]:
    """Medians over processes of their own."""
    call = (name, divergence, shape, torch.get_num_threads())
    runs = in_fresh_processes(measure_here, [call] * repeats, imported=MODULES)
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def fitting(shape: Shape) -> Shape:
    """As many tokens, halved until ms-swift's way fits into the memory that is free."""
    fixed = 4 * shape.vocab * shape.hidden
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    elements = int(line.split()[1]) * 1024 / shape.dtype.itemsize * 0.9
    while shape.tokens > 1 and fixed + STOCK_COPIES * shape.tokens * shape.vocab > elements:
        shape = replace(shape, tokens=shape.tokens // 2)
    return shape


def compare(shape: Shape, repeats: int) -> list[dict]:
    """A row for each divergence and way, ours first."""
    rows = []
    for divergence in DIVERGENCES:
        for name in ("ours", "stock"):
            rows.append({"divergence": divergence, "way": name, **measure(name, divergence, shape, repeats)})
    return rows


def hold_to_targets(rows: list[dict]) -> list[dict]:
    """Ours as a share of ms-swift's way, and whether it is small enough."""
    found, ratios = {(row["divergence"], row["way"]): row for row in rows}, []
    for divergence in DIVERGENCES:
        for key, most in MOST.items():
            theirs = found[divergence, "stock"][key]
            most = max(most, MOST_MIB / theirs) if key == "extra_mib" else most
            ratio = found[divergence, "ours"][key] / theirs
            row = {"divergence": divergence, "what": LABELS[key], "ratio": ratio, "target": most}
            ratios.append(row | {"holds": ratio <= most})
    return ratios


def differences(shape: Shape) -> list[dict]:
    """How far both ways' values and gradients are apart, on some tokens of the same inputs."""
    rows = []
    for divergence in DIVERGENCES:
        found = []
        for name in ("ours", "stock"):
            inputs = make_inputs(replace(shape, tokens=min(shape.tokens, 32)))
            value = WAYS[name](*inputs, divergence)
            value.backward()
            found.append((value.detach()[None], inputs[0].grad, inputs[1].grad))
        apart = [relative_difference(mine, theirs) for mine, theirs in zip(*found, strict=True)]
        rows.append({"divergence": divergence, **dict(zip(("value", "hidden", "weight"), apart, strict=True))})
    return rows


def payload() -> dict:
    """Bytes of one response token in what a teacher hands to the loss, bf16: its hidden state and where that lies,
    against its logits."""
    hidden = torch.empty(1, PAYLOAD_HIDDEN, dtype=torch.bfloat16).nbytes + torch.empty(1, dtype=torch.long).nbytes
    logits = torch.empty(1, PAYLOAD_VOCAB, dtype=torch.bfloat16).nbytes
    return {"ours": hidden, "stock": logits, "target": MOST_PAYLOAD, "holds": hidden <= MOST_PAYLOAD}


def measure_line(shape: Shape, repeats: int) -> dict:
    """The time of ours over the number of tokens, and the straight line through it (least squares)."""
    counts = [tokens for tokens in LINE_TOKENS if tokens <= shape.tokens]
    seconds = []
    for tokens in (counts[0], *counts):  # the first is a warm-up
        runs = []
        for _ in range(repeats):
            inputs = make_inputs(replace(shape, tokens=tokens))
            start = time.perf_counter()
            ours(*inputs, "jsd").backward()
            runs.append(time.perf_counter() - start)
        seconds.append(statistics.median(runs))
    return {"shape": str(shape), "tokens": counts, "seconds": seconds[1:], **fit_line(counts, seconds[1:])}


def fit_line(counts: list[int], seconds: list[float]) -> dict[str, float]:
    slope, intercept = statistics.linear_regression(counts, seconds)
    rest = sum((y - slope * x - intercept) ** 2 for x, y in zip(counts, seconds, strict=True))
    spread = sum((y - statistics.mean(seconds)) ** 2 for y in seconds)
    return {"slope": slope, "intercept": intercept, "r_squared": 1 - rest / spread}


def run_cpu(shape: Shape, repeats: int, longest: int) -> dict:
    fits = fitting(shape)
    rows = compare(fits, repeats)
    line = measure_line(Shape(longest, min(shape.vocab, LINE_VOCAB), min(shape.hidden, LINE_HIDDEN)), repeats)
    return {
        "asked": str(shape),
        "shape": str(fits),
        "ways": rows,
        "targets": hold_to_targets(rows),
        "differences": differences(shape),
        "line": line,
    }


def run_cuda(shape: Shape, repeats: int) -> dict:
    """One after the other in this process: CUDA counts the memory of each."""
    rows = []
    for divergence in DIVERGENCES:
        for name in ("ours", "stock", *(["liger"] if has_liger() and 0 < BETAS[divergence] < 1 else [])):
            rows.append({"divergence": divergence, "way": name, **measure_cuda(name, divergence, shape, repeats)})
    return {"shape": str(shape), "ways": rows}


def measure_cuda(name: str, divergence: str, shape: Shape, repeats: int) -> dict:
    inputs, seconds = make_inputs(shape), []
    try:
        for _ in range(1 + repeats):  # the first is a warm-up
            for leaf in inputs[:2]:
                leaf.grad = None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, start = torch.cuda.memory_allocated(), time.perf_counter()
            value = WAYS[name](*inputs, divergence)
            value.backward()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    gradients = sum(leaf.grad.nbytes for leaf in inputs[:2])
    extra = (torch.cuda.max_memory_allocated() - before - gradients) / MIB
    return {"seconds": statistics.median(seconds[1:]), "extra_mib": extra, "value": value.item()}


def print_ways(result: dict) -> None:
    print(f"\n{result['shape']}: hidden states to the gradients of hidden states and head")
    if result.get("asked", result["shape"]) != result["shape"]:
        print(f"(asked for {result['asked']}, which ms-swift's way has no memory for on this machine)")
    columns = {"divergence": "divergence", "way": "way", "seconds": "seconds:.2f", "extra_mib": "extra MiB:,.0f"}
    if any("failed" in row for row in result["ways"]):
        columns["failed"] = "failed"
    print(table(result["ways"], columns))
    print("Extra memory is without the two gradients, which either way returns.")


def print_cpu(result: dict) -> None:
    print_ways(result)
    print("\nOurs as a share of ms-swift's way")
    columns = {"divergence": "divergence", "what": "what", "ratio": "ratio:.3f", "target": "at most:.2f"}
    print(table(result["targets"], columns | {"holds": "holds"}))
    print("\nLargest differences, relative to the largest number")
    columns = {"divergence": "divergence", "value": "value:.0e", "hidden": "hidden:.0e", "weight": "weight:.0e"}
    print(table(result["differences"], columns))
    line = result["line"]
    print(f"\nTime of jsd over the tokens, {line['shape']} at most")
    rows = [{"tokens": n, "seconds": s} for n, s in zip(line["tokens"], line["seconds"], strict=True)]
    print(table(rows, {"tokens": "tokens:,", "seconds": "seconds:.3f"}))
    print(
        f"{line['slope'] * 1e6:.0f} microseconds per token and {line['intercept'] * 1e3:+.0f} ms, "
        f"R^2 {line['r_squared']:.5f}"
    )


def main(
    tokens: Annotated[int, typer.Option(help="Tokens.")] = 2048,
    vocab: Annotated[int, typer.Option(help="Ids.")] = 151_936,
    hidden: Annotated[int, typer.Option(help="Features of the hidden states of either side.")] = 1024,
    threads: Annotated[int, typer.Option(help="Threads on the CPU; 0 leaves the choice to torch.")] = 0,
    repeats: Annotated[int, typer.Option(help="Timed calls, of which the median counts.")] = 1,
    longest: Annotated[int, typer.Option(help="Tokens of the longest run in the line of time over tokens.")] = 8192,
    device: Annotated[Device, typer.Option(help="auto: the CPU, and the GPU where there is one.")] = Device.auto,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("output/bench_fused.json"),
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a target does not hold.")] = False,
) -> None:
    """Compare the fused losses with ms-swift's way over whole logits."""
    if threads:
        torch.set_num_threads(threads)
    shape = Shape(tokens, vocab, hidden)
    result = {"machine": describe_machine(), "repeats": repeats, "payload": payload()}
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    given = result["payload"]
    print(f"\nBytes per response token, hidden size {PAYLOAD_HIDDEN:,}, {PAYLOAD_VOCAB:,} ids, bf16:", end=" ")
    print(f"{given['ours']:,} of hidden states, {given['stock']:,} of logits")
    if device != "cuda":
        result["cpu"] = run_cpu(shape, repeats, longest)
        print_cpu(result["cpu"])
    if device != "cpu" and torch.cuda.is_available():
        result["cuda"] = run_cuda(replace(shape, tokens=4 * tokens, dtype=torch.bfloat16, device="cuda"), repeats)
        print_ways(result["cuda"])
        if not has_liger():
            print("Liger's loss is left out: liger_kernel is not installed.")
    elif device != "cpu":
        print("\nThe GPU part is left out: there is no CUDA device.")
    write_json(output, result)
    failed = [row for row in [given, *result.get("cpu", {}).get("targets", [])] if not row["holds"]]
    print(f"\n{output} is written; " + (f"{len(failed)} targets do not hold." if failed else "all targets hold."))
    if check and failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
