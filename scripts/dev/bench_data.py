"""Rows of files to datasets: ours against ms-swift's MessagesPreprocessor on the same rows, and the join's memory.

python -m scripts.dev.bench_data [--rows N] [--join N] [--check]
python -m scripts.dev.bench_data --rows 0 --join 1000000    # two files of 2 GB, 8 GB of disk, some ten minutes
"""

import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from scripts.dev.bench_tools import describe_machine, in_fresh_processes, table, write_json

# What ours takes at most, from files to stored rows, of what ms-swift takes from the same files to a dataset.
# It has no join to be compared with.
MOST_SECONDS = 1.5
WITHOUT_TARGET = ("exp_noexp",)
# The join holds keys and a few batches, whatever the rows are.
MOST_JOIN_MIB = 1024
JOIN_ROW_BYTES = 2048
ROW_BYTES = 720
YAML = """
rows: {type: rows, source: exp.jsonl}
exp_noexp: {type: exp_noexp, exp: exp.jsonl, noexp: noexp.jsonl, on: id}
thinking_mix: {type: thinking_mix, source: exp.jsonl, thinking_share: 0.5, without_thought: non_thinking}
mix: {type: mix, sources: {exp.jsonl: 0.7, noexp.jsonl: 0.3}}
"""
READS_BOTH = ("exp_noexp", "mix")


def write_files(folder: Path, rows: int, size: int) -> None:
    """exp.jsonl with an experience in view and an answer, noexp.jsonl in another order without; `size` bytes a row."""
    order = random.Random(0)
    numbers = list(range(rows))
    for name, system in (("exp", "You know that " + "the answer is four. " * (size // 60)), ("noexp", "")):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in numbers:
                question = f"Question {number}: " + "what is two plus two? " * (size // (66 if system else 25))
                messages = [{"role": "system", "content": system}] if system else []
                messages += [{"role": "user", "content": question}]
                messages += [{"role": "assistant", "content": "It is 4. " * (size // 30)}] if system else []
                file.write(json.dumps({"id": f"q-{number}", "messages": messages}) + "\n")
        order.shuffle(numbers)
    (folder / "data.yaml").write_text(YAML)


def stock(folder: Path, name: str) -> dict[str, float]:
    """ms-swift's preprocessor, and the reading of the file by `datasets` before it."""
    os.environ.update(MODELSCOPE_CACHE=str(folder / "swift"), HF_DATASETS_CACHE=str(folder / "hf"))
    from datasets import load_dataset
    from swift.dataset import MessagesPreprocessor

    start = time.perf_counter()
    rows = load_dataset("json", data_files=str(folder / f"{name}.jsonl"), split="train")
    read = time.perf_counter()
    made = MessagesPreprocessor()(rows, load_from_cache_file=False)
    return {"rows": len(made), "seconds": time.perf_counter() - read, "reading": read - start}


def ours(folder: Path, name: str) -> dict[str, float]:
    """A dataset of the YAML, from the files to the stored rows."""
    from swift_kd_plugin.data.build import Builder
    from swift_kd_plugin.data.data_yaml import read_data_yaml

    node = read_data_yaml(folder / "data.yaml")[name]
    start = time.perf_counter()
    made, _ = Builder(folder / "ours").dataset(node)
    return {"rows": len(made), "seconds": time.perf_counter() - start}


WAYS: dict[str, Callable[[Path, str], dict[str, float]]] = {"stock": stock, "ours": ours}


def measure_here(way: str, folder: Path, name: str) -> dict[str, float]:
    """Runs one way on one core: what it took, with the peak of memory that no file can give back."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peak, done = [anonymous_memory()], threading.Event()
    before = peak[0]

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = WAYS[way](folder, name)
    done.set()
    watcher.join()
    return {**found, "peak_mib": peak[0], "extra_mib": peak[0] - before}


def anonymous_memory() -> float:
    """MiB of this process that lie in memory alone; pages of mapped files do not count, the kernel may drop them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def measure(way: str, folder: Path, name: str) -> dict[str, float]:
    return in_fresh_processes(measure_here, [(way, folder, name)])[0]


def compare(folder: Path, rows: int) -> list[dict]:
    """Each dataset of the YAML beside ms-swift's preprocessor on the files that it reads."""
    write_files(folder, rows, ROW_BYTES)
    theirs = {name: measure("stock", folder, name) for name in ("exp", "noexp")}
    lines = []
    for name in ("rows", *READS_BOTH, "thinking_mix"):
        found = measure("ours", folder, name)
        parts = theirs.values() if name in READS_BOTH else [theirs["exp"]]
        reading, preprocessor = (sum(part[key] for part in parts) for key in ("reading", "seconds"))
        line = {"dataset": name, "rows": found["rows"], "seconds": found["seconds"]}
        line |= {"stock_reading": reading, "stock_preprocessor": preprocessor}
        line["ratio"] = found["seconds"] / (reading + preprocessor)
        line["holds"] = None if name in WITHOUT_TARGET else line["ratio"] <= MOST_SECONDS
        lines.append({**line, "extra_mib": found["extra_mib"]})
    return lines


def measure_join(folder: Path, rows: int) -> dict:
    """Two files of `rows` rows, joined by id."""
    write_files(folder, rows, JOIN_ROW_BYTES)
    size = sum((folder / f"{name}.jsonl").stat().st_size for name in ("exp", "noexp"))
    found = measure("ours", folder, "exp_noexp")
    found |= {"gib_read": size / 2**30, "bytes_a_row": size / 2 / rows}
    return {**found, "holds": found["rows"] == rows and found["extra_mib"] <= MOST_JOIN_MIB}


def main(
    rows: Annotated[int, typer.Option(help="Rows of each file to compare on; 0: do not compare.")] = 100_000,
    join: Annotated[int, typer.Option(help="Rows of 2 KB of each file to join.")] = 50_000,
    check: Annotated[bool, typer.Option("--check", help="End with exit code 1 if a target is missed.")] = False,
    output: Annotated[Path, typer.Option(help="The figures as JSON.")] = Path("output/bench_data.json"),
) -> None:
    """Time and memory of datasets, on one core."""
    result = {"machine": describe_machine()}
    if rows:
        with tempfile.TemporaryDirectory() as work:
            result["datasets"] = compare(Path(work), rows)
        heads = {"dataset": "dataset", "rows": "rows:,", "seconds": "seconds:.2f"}
        heads |= {"stock_reading": "ms-swift reads:.2f", "stock_preprocessor": "and preprocesses:.2f"}
        heads |= {"ratio": "ratio:.2f", "holds": f"at most {MOST_SECONDS}", "extra_mib": "peak MiB:.0f"}
        print(table(result["datasets"], heads))
    with tempfile.TemporaryDirectory() as work:
        result["join"] = measure_join(Path(work), join)
    heads = {
        "rows": "joined:,",
        "bytes_a_row": "bytes a row:,.0f",
        "gib_read": "GiB read:.2f",
        "seconds": "seconds:.1f",
    }
    heads |= {"extra_mib": "peak MiB:.0f", "holds": f"at most {MOST_JOIN_MIB}"}
    print(table([result["join"]], heads))
    write_json(output, result)
    missed = any(line["holds"] is False for line in [*result.get("datasets", []), result["join"]])
    print("a target is missed" if missed else "all targets hold")
    if missed and check:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
