"""Pairs of files and a data.yaml as hypothesis draws them: rows of every form, and broken ones, in every format."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from tests.data.broken_rows import BROKEN

COLUMNS = ["id", "gold", "system", "query", "response", "instruction", "output", "tools", "think_loss", "topic"]
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
        texts = [{name: str(item[name]) if name in item else None for name in COLUMNS} for item in items]
        pq.write_table(pa.Table.from_pylist(texts, pa.schema([(name, pa.string()) for name in COLUMNS])), file)
    else:
        with open(file, "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, COLUMNS, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(items)


def write_yaml(folder: Path, **datasets: dict) -> Path:
    (folder / "data.yaml").write_text(yaml.safe_dump(datasets, sort_keys=False), encoding="utf-8")
    return folder / "data.yaml"


def make_pairs(folder: Path, exp, noexp, suffixes, options) -> tuple[str, str]:
    """Writes both files and a YAML; returns the names of the files."""
    names = f"exp{suffixes[0]}", f"noexp{suffixes[1]}"
    for name, side, lines in zip(names, ("exp", "noexp"), (exp, noexp), strict=True):
        write_file(folder / name, lines, side)
    write_yaml(folder, pairs={"type": "exp_noexp", "exp": names[0], "noexp": names[1], **options})
    return names
