"""Datasets built from real files and a real data.yaml: nothing is lost, nothing depends on order, nothing is stale."""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.config import read_config
from swift_kd_plugin.data.report import Report
from swift_kd_plugin.data.rows import digest
from swift_kd_plugin.data.store import to_rows
from tests.data.test_rows_properties import BROKEN

# Without shrinking: a failing example is small, and each try writes files.
PROPERTY = settings(
    deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), phases=[Phase.reuse, Phase.generate]
)
BROKEN_LINES = [line for line in BROKEN.values() if len(line) < 2000]
BROKEN_ITEMS = [5, None, {}, {"messages": []}, {"messages": [{"role": "user", "content": 5}]}, {"topic": "x"}]
BROKEN_CELLS = [{"query": "q", "tools": "[5]"}, {"query": "q", "think_loss": "2"}, {"topic": "x"}]


@dataclass(frozen=True)
class Line:
    """What one line of a file is drawn as: a broken one, or a row whose content `key` and `variant` decide."""

    key: int | None
    variant: int
    form: int
    broken: int | None
    answered: bool


LINES = st.lists(
    st.builds(
        Line,
        key=st.none() | st.integers(0, 4),
        variant=st.integers(0, 1),
        form=st.integers(0, 3),
        broken=st.none() | st.none() | st.none() | st.integers(0, 50),
        answered=st.sampled_from([True, True, True, False]),
    ),
    max_size=7,
)
SUFFIXES = st.sampled_from([".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet"])
OPTIONS = st.fixed_dictionaries(
    {
        "on": st.sampled_from(["id", "last_user_message", "order"]),
        "duplicates": st.sampled_from(["refuse", "first", "all"]),
        "response": st.sampled_from(["exp", "gold", "none"]),
        "leaks": st.sampled_from(["report", "drop"]),
        "quotes": st.sampled_from(["report", "drop"]),
    }
)


def system_of(line: Line) -> str:
    return f"The book of letters says {'none' if line.key is None else line.key} is {line.variant}."


def raw_of(line: Line, side: str, suffix: str) -> dict:
    """A row in one of the usual forms. An experienced row of variant 1 speaks of its experience."""
    name = "none" if line.key is None else str(line.key)
    question = f"What is letter {name}?"
    answer = f"Letter {name} is {line.variant}." + (" According to the hint." if line.variant else "")
    system = system_of(line) if side == "exp" else None
    if side == "noexp" and line.variant:
        question = f"what is  LETTER {name}?"
    answer = answer if line.answered else None
    own = {"id": line.key, "gold": f"gold {name}" if line.variant else None}
    turns = [("system", system), ("user", question), ("assistant", answer)]
    turns = [(role, text) for role, text in turns if text]
    form = line.form if suffix in (".jsonl", ".json") else 2 + line.form % 2
    if form == 0:
        row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    elif form == 1:
        speakers = {"system": "system", "user": "human", "assistant": "gpt"}
        row = {"conversations": [{"from": speakers[role], "value": text} for role, text in turns]}
    elif form == 2:
        row = {"system": system, "query": question, "response": answer}
    else:
        row = {"system": system, "instruction": question, "input": None, "output": answer}
        if answer is None:  # only with one of the two is it alpaca's form
            row = {"system": system, "instruction": question}
    return {name: value for name, value in {**row, **own}.items() if value is not None}


def write_file(file: Path, lines: list[Line], side: str) -> None:
    suffix = file.suffix
    raws = [None if line.broken is not None else raw_of(line, side, suffix) for line in lines]
    broken = {".jsonl": BROKEN_LINES, ".json": BROKEN_ITEMS}.get(suffix, BROKEN_CELLS)
    chosen = [broken[(line.broken or 0) % len(broken)] for line in lines]
    items = [bad if raw is None else raw for raw, bad in zip(raws, chosen, strict=True)]
    if suffix == ".jsonl":
        parts = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
        file.write_bytes(b"".join(part + b"\n" for part in parts))
    elif suffix == ".json":
        file.write_text(json.dumps(items))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{k: str(v) for k, v in item.items()} for item in items]), file)
    else:
        columns = ["id", "gold", "system", "query", "response", "instruction", "output", "tools", "think_loss", "topic"]
        with open(file, "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, columns, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(items)


def write_yaml(folder: Path, **datasets: dict) -> Path:
    (folder / "data.yaml").write_text(yaml.safe_dump(datasets, sort_keys=False), encoding="utf-8")
    return folder / "data.yaml"


def build(folder: Path, name: str = "pairs", store: str = "store", **settings) -> tuple[list[dict], Report]:
    dataset, report = Builder(folder / store, **settings).dataset(read_config(folder / "data.yaml")[name])
    return list(to_rows(dataset)), report


def make_pairs(folder: Path, exp, noexp, suffixes, options) -> tuple[str, str]:
    """Writes both files and a YAML; returns the names of the files."""
    names = f"exp{suffixes[0]}", f"noexp{suffixes[1]}"
    for name, side, lines in zip(names, ("exp", "noexp"), (exp, noexp), strict=True):
        write_file(folder / name, lines, side)
    write_yaml(folder, pairs={"type": "exp_noexp", "exp": names[0], "noexp": names[1], **options})
    return names


def lost_rows(report: Report) -> list[tuple[str, int]]:
    return [(s, n) for entry in report.left_out.values() for s, numbers in entry.rows.items() for n in numbers]


def content(row: dict) -> bytes:
    return digest({**row, "kd_row": None})


@PROPERTY
@given(LINES, LINES, st.tuples(SUFFIXES, SUFFIXES), OPTIONS)
def test_every_row_of_both_files_is_in_the_output_or_in_the_report(tmp_path_factory, exp, noexp, suffixes, options):
    folder = tmp_path_factory.mktemp("build")
    names = make_pairs(folder, exp, noexp, suffixes, options)
    rows, report = build(folder)
    lost = lost_rows(report)
    assert report.read == {names[0]: len(exp), names[1]: len(noexp)}
    assert len(lost) == len(set(lost))
    used = {(row["kd_source"], row["kd_row"]) for row in rows}
    of_noexp = {(names[1], number) for number in range(1, len(noexp) + 1)}
    assert used.isdisjoint(lost)
    assert used | {place for place in lost if place[0] == names[1]} == of_noexp
    # The experienced row of an output row is told by its system turn, which equal rows share.
    kept = [line for number, line in enumerate(exp, start=1) if (names[0], number) not in lost]
    assert not any(line.broken is not None for line in kept)
    assert Counter(row["teacher_messages"][0]["content"] for row in rows) == Counter(map(system_of, kept))
