"""What stands in a row's columns comes out as it went in, on every road."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.export import public_row
from swift_kd_plugin.data.row_store import to_rows
from tests.host.rows.test_row_loader import load  # noqa: F401
from tests.json_lines import write_json_lines

pytestmark = pytest.mark.usefixtures("cpu_backend")
TEXTS = ["007", "1.50", "null", "true", "NaN", "1e5", "[1,2]", '"q"', " 2 ", "-0", "x"]
MIXED = [*TEXTS, 5, 2.5, True, None, {"a": None, "b": "1"}, ["1", 1, None]]
TYPES = {
    "rows": {"type": "rows", "source": "gold.jsonl"},
    "pairs": {"type": "exp_noexp", "exp": "told.jsonl", "noexp": "gold.jsonl"},
    "hints": {"type": "exp_noexp", "source": "gold.jsonl", "experience": "hint"},
    "modes": {"type": "thinking_mix", "source": "gold.jsonl"},
    "mix": {"type": "mix", "sources": {"gold.jsonl": 1.0}},
}
ADD = {"name": "add", "parameters": {"x": {"default": None, "enum": ["a", None]}}}
SAY = {"name": "say", "parameters": {"y": {"default": "s"}, "required": []}}


def rows_of(golds: list) -> list[dict]:
    return [{"id": n, "query": f"{n}?", "hint": "h", "response": "a", "gold": gold} for n, gold in enumerate(golds)]


@pytest.fixture
def folder(tmp_path):
    write_json_lines(tmp_path / "gold.jsonl", rows_of(MIXED))
    write_json_lines(tmp_path / "told.jsonl", [{**row, "system": "h"} for row in rows_of(MIXED)])
    (tmp_path / "gold.json").write_text(json.dumps(rows_of(MIXED)))
    with open(tmp_path / "gold.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "query", "hint", "response", "gold"])
        writer.writeheader()
        writer.writerows(rows_of(TEXTS))
    pq.write_table(pa.Table.from_pylist(rows_of(TEXTS)), tmp_path / "gold.parquet")
    (tmp_path / "data.yaml").write_text(json.dumps({name: {**keys, "keep": ["gold"]} for name, keys in TYPES.items()}))
    return tmp_path


def golds_of(rows) -> list:
    """With their types, in the order of the questions."""
    ordered = sorted(rows, key=lambda row: row["kd_row"])
    return [(type(row["gold"]), row["gold"]) for row in ordered]


def typed(values: list) -> list:
    return [(type(value), value) for value in values]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("ending", "golds"), [("jsonl", MIXED), ("json", MIXED), ("csv", TEXTS), ("parquet", TEXTS)])
def test_of_a_file(folder, load, ending, golds, streaming):  # noqa: F811
    rows = load(str(folder / f"gold.{ending}"), keep=("gold",), streaming=streaming)
    assert golds_of(rows) == typed(golds)
    assert golds_of(rows.map(lambda row: row)) == typed(golds)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_of_a_name(folder, load, name, streaming):  # noqa: F811
    from swift_kd_plugin.host.rows.named_datasets import register_named_datasets
    from swift_kd_plugin.host.rows.row_loader import Reading

    register_named_datasets(str(folder / "data.yaml"), Reading())
    assert golds_of(load(name, streaming=streaming)) == typed(MIXED)


def test_what_is_written_and_read_again(folder):
    from swift_kd_plugin.data.build import Builder

    builder = Builder(folder / "store", keep=("gold",))
    for name in TYPES:
        written = [public_row(row) for row in to_rows(builder.dataset(read_data_yaml(folder / "data.yaml")[name])[0])]
        golds = [row.get("gold") for row in sorted(written, key=lambda row: row["id"])]
        assert typed(golds) == typed(MIXED)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("road", ["script", "run"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_a_preprocessor(folder, load, road, streaming, kind, monkeypatch):  # noqa: F811
    """A folder is what ms-swift loads of a hub; `datasets` reads its rows, here without mixed types."""
    from swift.dataset import DatasetMeta, load_dataset, register_dataset

    from swift_kd_plugin.host.rows import preprocessors as p

    monkeypatch.chdir(folder)
    (folder / "hub" / "golds").mkdir(parents=True)
    write_json_lines(folder / "hub" / "golds" / "train.jsonl", rows_of(TEXTS))
    golds, where = (MIXED, "gold.jsonl") if kind == "file" else (TEXTS, f"{folder}/hub/golds")
    key = "dataset_path" if kind == "file" else "ms_dataset_id"
    made = {
        "rows": p.RowsPreprocessor(keep=["gold"]),
        "hints": p.ExperiencePreprocessor(experience="hint", keep=["gold"]),
        "modes": p.ThinkingPreprocessor(mode="keep", keep=["gold"]),
        "mix": p.MixPreprocessor(sources={"dataset": 1.0}, keep=["gold"]),
        "pairs": p.PairPreprocessor(noexp="told.jsonl", bad_rows="drop", keep=["gold"]),
    }
    for name, preprocessor in made.items():
        meta = DatasetMeta(dataset_name=f"own-{name}", preprocess_func=preprocessor, **{key: where})
        register_dataset(meta, exist_ok=True)
        rows = load_dataset([meta.dataset_name], streaming=streaming)[0] if road == "script" else None
        rows = rows or load(meta.dataset_name, streaming=streaming, keep=("hint",))
        assert golds_of(rows) == typed(golds), name
        assert road == "script" or {row["hint"] for row in rows} == {"h"}


CALLS = [{"function": {"name": "add", "arguments": {"x": 1}}}, {"function": {"name": "say", "arguments": {"y": "s"}}}]
RESULT = {"role": "tool", "content": "1"}
CALLED = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": CALLS}, RESULT, RESULT]


@pytest.mark.parametrize("streaming", [False, True])
def test_tools_of_a_file_keep_their_nulls(load, streaming):  # noqa: F811
    rows = load([{"messages": CALLED, "tools": [ADD, SAY]}, {"query": "q", "tools": [SAY]}], streaming=streaming)
    for made in (rows, rows.map(lambda row: row)):
        assert [row["tools"] for row in made] == [[ADD, SAY], [SAY]]


def test_tools_and_calls_get_no_nulls_of_arrow(folder, monkeypatch):
    from swift_kd_plugin.host.rows.preprocessors import RowsPreprocessor

    monkeypatch.setenv("MODELSCOPE_CACHE", str(folder / "cache"))
    tools = [{"name": "add", "parameters": {"x": {"default": 1}}}, SAY]
    source = Dataset.from_list([{"messages": CALLED, "tools": tools}, {"messages": CALLED[:1], "tools": [SAY]}])
    assert source[0]["tools"] != tools
    made = RowsPreprocessor()(source)
    assert made["tools"][:] == [tools, [SAY]]
    assert [turn["content"]["arguments"] for turn in made[0]["messages"] if turn["role"] == "tool_call"] == [
        {"x": 1},
        {"y": "s"},
    ]
    made.to_json(folder / "again.jsonl")
    again = RowsPreprocessor()(
        Dataset.from_list([json.loads(line) for line in (folder / "again.jsonl").read_text().splitlines()])
    )
    assert again["tools"][:] == [tools, [SAY]]


def test_what_datasets_has_changed_already_is_said(folder, monkeypatch):
    from swift_kd_plugin.data.build import Builder
    from swift_kd_plugin.data.data_yaml import read_node

    source = Dataset.from_list(rows_of(["x", "007", 7]), on_mixed_types="use_json")
    assert source["gold"][:] == ["x", 7, 7]
    builder = Builder(folder / "store", lambda name: source)
    _, report = builder.dataset(read_node({"type": "rows", "source": "dataset"}, "rows", "dataset"))
    assert list(report.notes) == ["the column 'gold' of mixed types"]
    assert "give the file itself" in report.notes["the column 'gold' of mixed types"].examples[0]["text"]
