"""Datasets of a data.yaml through ms-swift's own loading."""

import json

import pytest

from swift_kd_plugin.errors import KDError
from tests.json_lines import write_json_lines

pytestmark = pytest.mark.usefixtures("cpu_backend")
ROWS = 40


def question(number: int) -> list:
    return [{"role": "user", "content": f"What is {number} plus 1?"}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two files of pairs, a file of other rows with a broken one, and a YAML that names them."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    system = {"role": "system", "content": "Add them one by one."}
    answers = [{"role": "assistant", "content": str(number + 1)} for number in range(ROWS)]
    write_json_lines(
        tmp_path / "exp.jsonl",
        [{"id": n, "level": n % 3, "messages": [system, *question(n), answers[n]]} for n in range(ROWS)],
    )
    write_json_lines(
        tmp_path / "noexp.jsonl", [{"id": n, "level": n % 3, "messages": question(n)} for n in range(ROWS)]
    )
    rows = [{"query": f"{n}?", "response": str(n)} for n in range(ROWS)]
    write_json_lines(tmp_path / "plain.jsonl", [*rows, {"query": "?", "response": 3}])
    (tmp_path / "data.yaml").write_text("""
        pairs: {type: exp_noexp, exp: exp.jsonl, noexp: noexp.jsonl, on: id}
        plain: {type: rows, source: plain.jsonl}
        lenient: {type: rows, source: plain.jsonl, bad_rows: drop}
        mixed: {type: mix, sources: {pairs: 0.5, lenient: 0.5}}
        thinking: {type: thinking_mix, source: pairs, mode: non_thinking}
    """)
    return tmp_path


@pytest.fixture
def load(folder):
    from swift.dataset import load_dataset
    from swift.dataset.dataset_meta import DATASET_MAPPING

    from swift_kd_plugin.host.rows.named_datasets import register_named_datasets
    from swift_kd_plugin.host.rows.row_loader import Reading
    from swift_kd_plugin.host.start.host_patches import HOST_LEDGER

    HOST_LEDGER.arm()
    before = dict(DATASET_MAPPING)

    def load_named(*names, keep=(), **kwargs):
        reading = Reading(keep)
        register_named_datasets(str(folder / "data.yaml"), reading)
        train, val = load_dataset(list(names), **{"strict": True, **kwargs})
        return train, val, reading.reports

    yield load_named
    DATASET_MAPPING.clear()
    DATASET_MAPPING.update(before)
    HOST_LEDGER.disarm()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_is_a_dataset(load, streaming):
    train, _, _ = load("pairs", streaming=streaming)
    rows = list(train)
    assert len(rows) == ROWS
    assert rows[3]["messages"] == [*question(3), {"role": "assistant", "content": "4"}]
    assert rows[3]["teacher_messages"][0]["role"] == "system"
    assert (rows[3]["dataset"], rows[3]["kd_source"], rows[3]["kd_row"]) == ("pairs", "noexp.jsonl", 4)


def test_rows_make_samples(load):
    from swift_kd_plugin.host.samples.sample import KDSample

    for streaming in (False, True):
        sample = KDSample.from_row(next(iter(load("thinking", streaming=streaming)[0])))
        assert sample.build_teacher_view()
        assert [turn["role"] for turn in sample.teacher_messages] == ["system", "user", "assistant"]
        assert sample.extra["chat_template_kwargs"] == {"enable_thinking": False}
        assert sample.name == "noexp.jsonl, line 1 (id '0')"


def test_a_number_of_rows_and_a_split(load):
    assert len(load("pairs#10")[0]) == 10
    train, val, _ = load("pairs", split_dataset_ratio=0.25)
    assert (len(train), len(val)) == (30, 10)


def test_names_mix_with_files(load, folder):
    train, _, _ = load("pairs", str(folder / "noexp.jsonl"), "mixed#20")
    assert len(train) == ROWS + ROWS + 20
    assert [row["messages"] for row in train.select([0, ROWS])] == [
        [*question(0), {"role": "assistant", "content": "1"}],
        question(0),
    ]


def test_columns_are_kept_on_demand(load):
    assert "level" not in load("pairs")[0].column_names
    kept = load("pairs", keep=("level",))[0]
    assert kept["level"][:4] == [0, 1, 2, 0]


def test_a_bad_row_ends_a_strict_run(load):
    with pytest.raises(KDError, match=r"plain\.jsonl, line 41 cannot be used: .*--kd_bad_rows drop"):
        load("plain")
    with pytest.raises(KDError, match=r"plain\.jsonl, line 41"):
        list(load("plain", streaming=True)[0])


@pytest.mark.parametrize(("name", "strict"), [("plain", False), ("lenient", True)])
def test_a_bad_row_can_be_left_out(load, name, strict):
    for _ in range(2):  # made, then found again
        train, _, reports = load(name, strict=strict)
        assert len(train) == ROWS
        (entry,) = reports[name].left_out.values()
        assert entry.rows == {"plain.jsonl": [41]}


def test_what_was_built_is_found_again_until_a_source_changes(load, folder):
    first = load("pairs")[0].cache_files
    assert load("pairs")[0].cache_files == first
    with (folder / "noexp.jsonl").open("a") as file:
        file.write(json.dumps({"id": 0, "messages": question(0)}) + "\n")
    train, _, reports = load("pairs", strict=False)
    assert train.cache_files != first
    assert reports["pairs"].left_out


def test_registering_again_replaces_and_a_name_of_ms_swift_is_refused(load, folder):
    from swift_kd_plugin.host.rows.named_datasets import register_named_datasets
    from swift_kd_plugin.host.rows.row_loader import Reading

    load("pairs")
    load("pairs")
    (folder / "data.yaml").write_text("self-cognition: {type: rows, source: plain.jsonl}")
    with pytest.raises(KDError, match="'self-cognition' is the name of a dataset of ms-swift"):
        register_named_datasets(str(folder / "data.yaml"), Reading())


def test_a_mistyped_name_is_found_before_a_hub_is_asked(load):
    from swift_kd_plugin.host.rows.named_datasets import check_names

    load("pairs")
    check_names("data.yaml", ["pairs#10", "AI-ModelScope/alpaca", "hf::x"])
    with pytest.raises(KDError, match=r"data.yaml has no dataset 'pars' \(did you mean 'pairs'\?\)"):
        check_names("data.yaml", ["pars#10"])


def test_columns_of_the_command_line_are_refused(load):
    with pytest.raises(KDError, match="--columns has no effect on 'pairs'"):
        load("pairs", columns={"q": "query"})


def test_reports_are_written(load, tmp_path, monkeypatch):
    from swift_kd_plugin.host.rows.named_datasets import log_reports

    _, _, reports = load("mixed")
    log_reports(reports, str(tmp_path / "out"))
    page = json.loads((tmp_path / "out" / "kd_data_report.json").read_text())["mixed"]
    assert page["facts"]["mixed"]["taken"] == {"pairs": ROWS, "lenient": ROWS}
    (entry,) = page["left_out"].values()
    assert entry["rows"] == {"plain.jsonl": "41"}


def test_the_report_of_a_stream_says_where_its_rows_are_told(load, tmp_path):
    from swift_kd_plugin.host.rows.named_datasets import log_reports

    _, _, reports = load("pairs", streaming=True)
    log_reports(reports, str(tmp_path / "out"))
    page = json.loads((tmp_path / "out" / "kd_data_report.json").read_text())
    assert page["pairs"]["facts"]["pairs"] == {
        "stream": "its rows are read while they are trained on, and the log says what is left out"
    }


def test_an_id_is_loaded_by_ms_swift(load, folder):
    """A folder is what a hub's dataset is after its download."""
    (folder / "hub" / "own").mkdir(parents=True)
    write_json_lines(
        folder / "hub" / "own" / "train.jsonl", [{"instruction": "a", "input": "b", "output": "c", "id": "x"}]
    )
    (folder / "data.yaml").write_text(f"ids: {{type: rows, source: '{folder}/hub/own'}}")
    (row,) = load("ids")[0]
    assert [turn["content"] for turn in row["messages"]] == ["a\nb", "c"]


def register_with(preprocessor, path):
    from swift.dataset import DatasetMeta, register_dataset

    register_dataset(
        DatasetMeta(dataset_name="own", dataset_path=str(path), preprocess_func=preprocessor), exist_ok=True
    )


def test_preprocessors_can_be_taken_one_by_one(load, folder, monkeypatch):
    from swift_kd_plugin.host.rows import preprocessors as p

    monkeypatch.chdir(folder)
    write_json_lines(
        folder / "hints.jsonl", [{"query": "2 + 2?", "hint": "Add.", "response": "<think>\nhm\n</think>\n\n4"}]
    )
    cases = [
        (p.RowsPreprocessor(), "hints.jsonl", {}),
        (p.ExperiencePreprocessor(experience="hint"), "hints.jsonl", {"teacher_messages": ["Add.", "2 + 2?"]}),
        (p.ThinkingPreprocessor(mode="non_thinking"), "hints.jsonl", {"messages": ["2 + 2?", "4"]}),
        (p.PairPreprocessor(noexp="noexp.jsonl", on="id"), "exp.jsonl", {"messages": ["What is 0 plus 1?", "1"]}),
        (p.MixPreprocessor(sources={"dataset": {"fraction": 1.0}}), "hints.jsonl", {}),
    ]
    for preprocessor, file, expected in cases:
        register_with(preprocessor, folder / file)
        row = load(str(folder / file), load_from_cache_file=False)[0][0]
        for column, contents in expected.items():
            assert [turn["content"] for turn in row[column]] == contents
