"""Step time and size of a teacher in 8 and 4 bits, against the same run with the teacher as it is.

python -m scripts.dev.bench_bits [--steps N] [--rounds N] [--check]

The models are those of bench_cache: the teacher is twice as wide as the student, with random weights. Runs take turns,
and compared is the median of the shares of neighbours.
"""

import re
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from scripts.dev.bench_cache import WARM_UP, make_material, train
from scripts.dev.bench_tools import describe_machine, table, write_json

MOST_BYTES = {8: 0.53, 4: 0.30}  # of the linear weights in bf16
MOST_SHARE = 1.15  # of a step, in 8 bits
SAID = re.compile(r"linear weights are kept in \d bits: ([\d.,]+) MiB on this rank in place of ([\d.,]+) MiB")


def bytes_share(log: str) -> float:
    held, whole = (float(number.replace(",", "")) for number in SAID.search(log).groups())
    return held / whole


def measure(bits: int, flags: dict[str, Any], folder: Path, rounds: int) -> dict[str, Any]:
    shares, log = [], ""
    for number in range(rounds):
        plain, _ = train(folder / f"plain{bits}-{number}", flags)
        quantised, log = train(folder / f"bits{bits}-{number}", flags | {"kd_teacher_bits": bits})
        shares.append(quantised / plain)
    return {"bits": f"{bits} bits", "step": statistics.median(shares), "bytes": bytes_share(log), "shares": shares}


def main(
    steps: Annotated[int, typer.Option(min=WARM_UP + 1)] = 12,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = Path("output/bench_bits.json"),
    check: Annotated[bool, typer.Option("--check", help="Fail where a target is not held.")] = False,
) -> None:
    """Prints shares of the run with the teacher as it is, as a table and as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = make_material(folder) | {"train_iters": steps}
        rows = [measure(bits, flags, folder, rounds) for bits in MOST_BYTES]
    print(table(rows, {"bits": "teacher", "step": "step:.3f", "bytes": "linear weights:.3f"}))
    holds = rows[0]["step"] <= MOST_SHARE and all(
        row["bytes"] <= most for row, most in zip(rows, MOST_BYTES.values(), strict=True)
    )
    print(
        f"targets: a step of at most {MOST_SHARE} in 8 bits, weights of 0.53 and 0.30: {'hold' if holds else 'MISSED'}"
    )
    write_json(output, {"machine": describe_machine(), "rows": rows, "holds": holds})
    if check and not holds:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
