"""Time, extra memory and exactness of the losses, against ms-swift's, TRL's and Liger's on the same tensors.

python -m scripts.dev.bench_losses [--tokens N] [--vocab N] [--device cpu|cuda] [--check]
"""

import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from scripts.dev.bench_tools import (
    Loss,
    Shape,
    copy_bandwidth,
    describe_machine,
    extra_memory_here,
    in_fresh_processes,
    make_logits,
    relative_difference,
    run_interleaved,
    table,
    write_json,
)
from swift_kd_plugin.losses import DIVERGENCES, token_divergence

BETAS = {"jsd": 0.5, "forward_kl": 0.0, "reverse_kl": 1.0}
OTHERS = [name for name in DIVERGENCES if name not in BETAS]
RIVALS = ("stock", "trl")
# What ours takes at most of what a rival takes, on a CPU. Seen on 2 cores of three machines: 0.10 to 0.21 for jsd; of
# stock 0.23 to 0.40 for the KLs, of TRL 0.39 to 0.67, most where the system is slow to hand out new pages.
MOST_TIME = {
    "stock": {"jsd": 0.25, "forward_kl": 0.5, "reverse_kl": 0.6},
    "trl": {"jsd": 0.25, "forward_kl": 0.75, "reverse_kl": 0.75},
}
MOST_MEMORY = {"ours": 0.3, "ours in place": 0.1}
LABELS = {"seconds": "time", "extra_mib": "memory"}
# Where the rivals' losses are.
MODULES = ("swift.rlhf_trainers.gkd_loss", "trl.experimental.gkd")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def ours(student: Tensor, teacher: Tensor, divergence: str, inplace: bool = False) -> Tensor:
    return token_divergence(student, teacher, divergence=divergence, inplace_grad=inplace).sum()


def stock(student: Tensor, teacher: Tensor, divergence: str) -> Tensor:
    from swift.rlhf_trainers.gkd_loss import TeacherOutput, gkd_loss

    labels = torch.zeros(1, len(student), dtype=torch.long, device=student.device)
    return gkd_loss(student[None], TeacherOutput(full_logits=teacher[None]), labels, BETAS[divergence], 1.0)[0]


def trl(student: Tensor, teacher: Tensor, divergence: str, reduction: str = "sum") -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=BETAS[divergence], temperature=1.0, reduction=reduction
    )


def liger(student: Tensor, teacher: Tensor, divergence: str) -> Tensor:
    """Liger takes log-probabilities and returns the mean over tokens."""
    from liger_kernel.transformers import LigerJSD

    loss = LigerJSD(beta=BETAS[divergence])
    return loss(student.log_softmax(-1), teacher.log_softmax(-1)) * len(student)


def has_liger() -> bool:
    try:
        import liger_kernel.transformers  # noqa: F401
    except ImportError:
        return False
    return True


def find_loss(name: str, divergence: str) -> Loss:
    losses = {"ours": ours, "ours in place": partial(ours, inplace=True), "stock": stock, "trl": trl, "liger": liger}
    return partial(losses[name], divergence=divergence)


def extra_memory(cases: list[tuple[str, str]], shape: Shape) -> dict[tuple[str, str], float]:
    """MiB of each (loss, divergence) in a process of its own; two at a time, which share the threads."""
    threads = max(1, torch.get_num_threads() // 2)
    found = in_fresh_processes(memory_of, [(*case, shape, threads) for case in cases], at_once=2, imported=MODULES)
    return dict(zip(cases, found, strict=True))


def memory_of(name: str, divergence: str, shape: Shape, threads: int) -> float:
    torch.set_num_threads(threads)
    return extra_memory_here(find_loss(name, divergence), shape)


def compare(names: list[str], shape: Shape, repeats: int) -> list[dict]:
    """One row for every loss of `names` and every divergence that all have; the first is what others are held to."""
    student, teacher = make_logits(shape)
    rows = []
    for divergence in BETAS:
        runs = run_interleaved({name: find_loss(name, divergence) for name in names}, student, teacher, repeats)
        for name, run in runs.items():
            found = {key: value for key, value in vars(run).items() if key != "gradient"}
            rows.append({"divergence": divergence, "loss": name, **found})
    return rows


def hold_to_targets(rows: list[dict]) -> list[dict]:
    """Ours as a share of each rival's time and memory, and whether it is small enough."""
    found = {(row["divergence"], row["loss"]): row for row in rows}
    ratios = []
    for divergence in BETAS:
        for rival in RIVALS:
            goals = [("ours", "seconds", MOST_TIME[rival][divergence])]
            goals += [(name, "extra_mib", most) for name, most in MOST_MEMORY.items()]
            for name, what, most in goals:
                ratio = found[divergence, name][what] / found[divergence, rival][what]
                row = {"divergence": divergence, "loss": name, "against": rival, "what": LABELS[what]}
                ratios.append(row | {"ratio": ratio, "target": most, "holds": ratio <= most})
    return ratios


def measure_others(shape: Shape, repeats: int, stock_row: dict) -> list[dict]:
    """The divergences that only we have, as a share of what stock takes for jsd."""
    cases = [(name, "peaked") for name in OTHERS] + [("adaptive_kl", "broad"), ("adaptive_kl", "flat")]
    memory = extra_memory([("ours", name) for name in OTHERS], shape)
    rows = []
    for kind in ("peaked", "broad", "flat"):
        logits = make_logits(shape, kind)
        names = [name for name, its_kind in cases if its_kind == kind]
        for name, run in run_interleaved({n: find_loss("ours", n) for n in names}, *logits, repeats).items():
            row = {"divergence": name, "logits": kind, "seconds": run.seconds}
            row["time_ratio"] = run.seconds / stock_row["seconds"]
            if kind == "peaked":
                row["extra_mib"] = memory["ours", name]
                row["memory_ratio"] = row["extra_mib"] / stock_row["extra_mib"]
            rows.append(row)
        del logits
    return rows


def measure_errors(shape: Shape) -> list[dict]:
    """fp32 errors against TRL's formula in float64, and what a student that equals its teacher costs.

    "model": logits as the times are taken on; "far": up to +-200, a student unlike its teacher; "close": one like it.
    """
    generator = torch.Generator().manual_seed(0)
    teacher, far = (torch.empty(16, 8192).uniform_(-200, 200, generator=generator) for _ in range(2))
    close = teacher + 0.01 * torch.empty(16, 8192).normal_(generator=generator)
    model = make_logits(Shape(min(16, shape.tokens), shape.vocab, device=shape.device))
    pairs = {"model": model, "far": (far, teacher), "close": (close, teacher)}
    rows = []
    for divergence in BETAS:
        for name in ("ours", *RIVALS):
            loss = find_loss(name, divergence)
            row = {"divergence": divergence, "loss": name}
            for kind, pair in pairs.items():
                pair = [logits.to(shape.device) for logits in pair]
                row[f"{kind}_value"], row[f"{kind}_gradient"] = errors(loss, *pair, divergence)
            for dtype in (torch.float32, torch.bfloat16):
                same = make_logits(Shape(16, 8192, dtype, shape.device))[1]
                row[f"equal_{str(dtype).removeprefix('torch.')}"] = float(loss(same, same)) / len(same)
            rows.append(row)
    return rows


def errors(loss: Loss, student: Tensor, teacher: Tensor, divergence: str) -> tuple[float, float]:
    """The largest error of a token's value, relative, and of the gradient, relative to its largest entry."""
    exact, leaf = student.double().requires_grad_(), student.clone().requires_grad_()
    expected = trl(exact, teacher.double(), divergence, reduction="none")[0].sum(-1)
    expected.sum().backward()
    loss(leaf, teacher).backward()
    values = torch.stack([loss(*pair) for pair in zip(student.split(1), teacher.split(1), strict=True)])
    return float(((values - expected) / expected).abs().max().detach()), relative_difference(leaf.grad, exact.grad)


def run_cpu(shape: Shape, repeats: int) -> dict:
    names = ["ours", "ours in place", *RIVALS]
    memory = extra_memory([(name, divergence) for divergence in BETAS for name in names], shape)
    rows = compare(names, shape, repeats)
    for row in rows:
        row["extra_mib"] = memory[row["loss"], row["divergence"]]
    stock_jsd = next(row for row in rows if (row["divergence"], row["loss"]) == ("jsd", "stock"))
    return {
        "shape": [shape.tokens, shape.vocab],
        "dtype": "float32",
        "losses": rows,
        "targets": hold_to_targets(rows),
        "others": measure_others(shape, repeats, stock_jsd),
        "numerics": measure_errors(shape),
    }


def run_cuda(shape: Shape, repeats: int) -> dict:
    """The floor is what any exact loss moves: both sides read twice, the gradient written once."""
    names = ["ours", "ours in place", *RIVALS, *(["liger"] if has_liger() else [])]
    copied = copy_bandwidth(shape.device) / 1e9
    torch.cuda.empty_cache()
    rows = compare(names, shape, repeats)
    floor = 5 * shape.tokens * shape.vocab * shape.dtype.itemsize
    for row in rows:
        if row["seconds"]:
            row["gigabytes_per_second"] = floor / row["seconds"] / 1e9
            row["of_copy"] = row["gigabytes_per_second"] / copied
    return {
        "shape": [shape.tokens, shape.vocab],
        "dtype": "bfloat16",
        "copy_gigabytes_per_second": copied,
        "floor_bytes": floor,
        "losses": rows,
        "numerics": measure_errors(shape),
    }


def print_losses(result: dict) -> None:
    cuda = "floor_bytes" in result
    columns = {"divergence": "divergence", "loss": "loss", "seconds": "seconds:.3f", "extra_mib": "extra MiB:,.0f"}
    if cuda:
        columns |= {"gigabytes_per_second": "GB/s:,.0f", "of_copy": "of copy:.2f"}
    columns |= {"value_difference": "value differs:.0e", "gradient_difference": "gradient differs:.0e"}
    if any(row["failed"] for row in result["losses"]):
        columns["failed"] = "failed"
    print(f"\n{' x '.join(f'{n:,}' for n in result['shape'])} {result['dtype']} logits, forward and backward")
    print(table(result["losses"], columns))
    if cuda:
        print(f"A copy moves {result['copy_gigabytes_per_second']:,.0f} GB/s.", end=" ")
        print(f"GB/s counts the floor of {result['floor_bytes'] / 1e9:.1f} GB.")


def print_targets(ratios: list[dict]) -> None:
    print("\nOurs as a share of theirs")
    columns = {"divergence": "divergence", "loss": "loss", "against": "against", "what": "what"}
    print(table(ratios, columns | {"ratio": "ratio:.3f", "target": "at most:.2f", "holds": "holds"}))


def print_others(rows: list[dict]) -> None:
    print("\nThe other divergences, ours alone; shares are of what stock takes for jsd")
    columns = {"divergence": "divergence", "logits": "logits", "seconds": "seconds:.3f", "time_ratio": "share:.3f"}
    print(table(rows, columns | {"extra_mib": "extra MiB:,.0f", "memory_ratio": "share:.3f"}))


def print_numerics(rows: list[dict]) -> None:
    print(
        "\nLargest relative errors in fp32: on logits as above, and up to +-200 with a student far from its teacher and"
    )
    print("with one close to it; and the loss per token of a student that equals its teacher")
    columns = {"divergence": "divergence", "loss": "loss"}
    for kind in ("model", "far", "close"):
        columns |= {f"{kind}_value": f"{kind}:.0e", f"{kind}_gradient": "gradient:.0e"}
    print(table(rows, columns | {"equal_float32": "equal fp32:.1e", "equal_bfloat16": "equal bf16:.1e"}))


def main(
    tokens: Annotated[int | None, typer.Option(help="Tokens; 512 on a CPU and 8,192 on a GPU if not given.")] = None,
    vocab: Annotated[int, typer.Option(help="Columns of the logits.")] = 151_936,
    threads: Annotated[int, typer.Option(help="Threads on the CPU; 0 leaves the choice to torch.")] = 0,
    repeats: Annotated[int, typer.Option(help="Timed calls of each loss, after one that is not timed.")] = 3,
    device: Annotated[Device, typer.Option(help="auto: the CPU, and the GPU where there is one.")] = Device.auto,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("output/bench_losses.json"),
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a target does not hold.")] = False,
) -> None:
    """Compare the losses with those of ms-swift, TRL and Liger."""
    if threads:
        torch.set_num_threads(threads)
    shape = Shape(tokens or 512, vocab)
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("There is no CUDA device here.", param_hint="--device")
    result = {"machine": describe_machine(), "repeats": repeats}
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    if device != "cuda":
        result["cpu"] = run_cpu(shape, repeats)
        print_losses(result["cpu"])
        print_targets(result["cpu"]["targets"])
        print_others(result["cpu"]["others"])
        print_numerics(result["cpu"]["numerics"])
    if device != "cpu" and torch.cuda.is_available():
        result["cuda"] = run_cuda(Shape(tokens or 8192, vocab, torch.bfloat16, "cuda"), repeats)
        print_losses(result["cuda"])
        print_numerics(result["cuda"]["numerics"])
        if not has_liger():
            print("Liger's loss is left out: liger_kernel is not installed.")
    elif device != "cpu":
        print("\nThe GPU part is left out: there is no CUDA device.")
    write_json(output, result)
    failed = [row for row in result.get("cpu", {}).get("targets", []) if not row["holds"]]
    print(f"\n{output} is written; " + (f"{len(failed)} targets do not hold." if failed else "all targets hold."))
    if check and failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
