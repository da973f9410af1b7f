"""Rows on their way through ms-swift's own preprocessing, with the plugin's patches."""

import json

import pytest

from tests.json_lines import write_json_lines

pytestmark = pytest.mark.usefixtures("cpu_backend")
GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
VIEW = [{"role": "system", "content": "book"}, {"role": "user", "content": "q"}]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads rows through `swift.dataset.load_dataset` with every row patch applied, as a run does."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    from swift.dataset import load_dataset

    from swift_kd_plugin.host.rows.datasets import locate_bad_row
    from swift_kd_plugin.host.start.host_patches import LEDGER

    LEDGER.arm()

    def load_rows(rows, strict=True, **kwargs):
        file = tmp_path / "rows.jsonl"
        write_json_lines(file, rows)
        kwargs = {"load_from_cache_file": False, "remove_unused_columns": False, **kwargs}
        with locate_bad_row([str(file)]):
            return load_dataset([str(file)], strict=strict, **kwargs)[0]

    yield load_rows
    LEDGER.disarm()


def test_the_teacher_column_survives(load):
    tool = [*VIEW, {"role": "tool", "content": "4", "name": "add"}]
    rows = load([{**GOOD, "teacher_messages": VIEW}, {**GOOD, "teacher_messages": tool}, GOOD])
    assert rows["teacher_messages"] == [VIEW, tool, None]
    assert rows["messages"] == [GOOD["messages"]] * 3


ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}}
SAY = {"type": "function", "function": {"name": "say", "description": "aloud"}}


@pytest.mark.parametrize("streaming", [False, True])
def test_all_columns_of_the_teacher_survive(load, streaming):
    rows = load(
        [
            {**GOOD, "teacher_tools": [ADD], "teacher_chat_template_kwargs": {"enable_thinking": True}},
            {**GOOD, "teacher_tools": [SAY], "teacher_images": ["a.png"]},
            {**GOOD, "teacher_tools": [], "teacher_chat_template_kwargs": {"reasoning_effort": "low"}},
        ],
        streaming=streaming,
    )
    rows = list(rows)
    assert [row["teacher_tools"] for row in rows] == [[ADD], [SAY], []]
    assert [row["teacher_images"] for row in rows] == [None, [{"bytes": None, "path": "a.png"}], None]
    given = [row["teacher_chat_template_kwargs"] for row in rows]
    assert (given[0]["enable_thinking"], given[1], given[2]["reasoning_effort"]) == (True, None, "low")


@pytest.mark.parametrize("streaming", [False, True])
def test_thoughts_weights_and_sources_survive(load, streaming):
    rows = load(
        [
            {**GOOD, "teacher_thought": "Count.", "kd_source": "exp.jsonl"},
            {**GOOD, "teacher_thought": "", "think_loss": 0},
            {**GOOD, "think_loss": 0.5},
            {**GOOD, "think_loss": 1},
        ],
        streaming=streaming,
    )
    rows = list(rows)
    assert [row["teacher_thought"] for row in rows] == ["Count.", "", None, None]
    assert [row["think_loss"] for row in rows] == [None, 0, 0.5, 1]
    assert [row["kd_source"] for row in rows] == ["exp.jsonl", None, None, None]


def test_whole_and_fractional_weights_of_two_files_mix(load, tmp_path):
    from swift.dataset import load_dataset

    files = []
    for number, columns in enumerate(({"think_loss": 0}, {"think_loss": 0.5}, {"teacher_thought": "a"}, {})):
        files.append(str(tmp_path / f"{number}.jsonl"))
        write_json_lines(tmp_path / f"{number}.jsonl", [{**GOOD, **columns}])
    rows = load_dataset(files, strict=True, load_from_cache_file=False)[0]
    assert [row.get("think_loss") for row in rows] == [0, 0.5, None, None]
    assert [row.get("teacher_thought") for row in rows] == [None, None, "a", None]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_have_numbers_keep_them(load, streaming):
    """Those of the file that they came from, where rows were merged or chosen before."""
    rows = [{**GOOD, "kd_source": "exp.jsonl", "kd_row": number, "kd_id": "q", "id": 1} for number in (7, 9)]
    loaded = list(load(rows, streaming=streaming))
    assert [(row["kd_source"], row["kd_row"], row["kd_id"]) for row in loaded] == [
        ("exp.jsonl", 7, "q"),
        ("exp.jsonl", 9, "q"),
    ]


def test_a_bad_row_is_named_by_the_file_that_it_came_from(load):
    rows = [{**GOOD, "kd_source": "exp.jsonl", "kd_row": number} for number in (7, 9)]
    rows[1]["messages"] = []
    with pytest.raises(ValueError, match=r"\(exp\.jsonl, row 9: ") as caught:
        load(rows)
    assert "kd_" not in str(caught.value).replace("--kd_bad_rows", "")


def test_tools_may_be_json_text(load):
    assert load([{**GOOD, "teacher_tools": json.dumps([ADD])}])["teacher_tools"] == [[ADD]]


def test_teacher_images_may_be_paths_or_dicts(load):
    path = {"bytes": None, "path": "b.png"}
    for given in ("b.png", ["b.png"], {"path": "b.png"}, [{"path": "b.png"}]):
        assert load([{**GOOD, "teacher_images": given}])["teacher_images"] == [[path]]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_keeps_its_number_and_dataset(load, streaming):
    from swift_kd_plugin.host.samples.sample import KDSample

    rows = list(load([{**GOOD, "id": f"q-{i}"} for i in range(40)], shuffle=True, streaming=streaming))
    assert sorted(row["kd_row"] for row in rows) == list(range(1, 41))
    assert rows[0]["kd_row"] != 1
    name = KDSample.from_row(rows[0]).name
    assert name.startswith(f"rows.jsonl, row {rows[0]['kd_row']}")
    if not streaming:  # in a stream ms-swift drops every column that it does not know
        assert name.endswith(f"(id 'q-{rows[0]['kd_row'] - 1}')")


def test_numbers_change_nothing_else(load, tmp_path):
    from swift.dataset import load_dataset

    load([GOOD] * 3)
    first, again = (load_dataset([str(tmp_path / "rows.jsonl")], remove_unused_columns=False)[0] for _ in range(2))
    assert set(first.column_names) == {"messages", "dataset", "kd_row"}
    assert first._fingerprint == again._fingerprint
    assert first.cache_files == again.cache_files != []


def test_numbers_are_those_of_the_whole_dataset(load):
    from datasets import Dataset
    from swift.dataset import MessagesPreprocessor

    sampled = MessagesPreprocessor(dataset_sample=2, random_state=0)(
        Dataset.from_list([GOOD] * 50), load_from_cache_file=False
    )
    assert max(sampled["kd_row"]) > 2
    selected = MessagesPreprocessor()(Dataset.from_list([GOOD] * 50).select([7, 9]), load_from_cache_file=False)
    assert "kd_row" not in selected.column_names


def test_stock_drops_the_teacher_column(tmp_path):
    from swift.dataset import load_dataset

    file = tmp_path / "rows.jsonl"
    write_json_lines(file, [{**GOOD, "teacher_messages": VIEW}])
    rows = load_dataset([str(file)], load_from_cache_file=False)[0]
    assert "teacher_messages" not in rows.column_names


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"other": 1}, "it has no messages"),
        ({"messages": []}, "it has no messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"messages": [{"role": "user", "content": None}]}, "None"),
        ({**GOOD, "teacher_messages": []}, "teacher_messages is not a list of messages"),
        ({**GOOD, "teacher_messages": [{"role": "user"}]}, "lacks a known role or a content"),
        ({**GOOD, "teacher_messages": GOOD["messages"]}, "ends with the role 'assistant'"),
        ({**GOOD, "teacher_messages": VIEW, "teacher_prompt": "q"}, "both teacher_messages and teacher_prompt"),
        ({**GOOD, "teacher_tools": [3]}, "teacher_tools holds 3"),
        ({**GOOD, "teacher_chat_template_kwargs": "thinking"}, "teacher_chat_template_kwargs is 'thinking', not an"),
        ({**GOOD, "teacher_chat_template_kwargs": {"response_prefix": "So"}}, "sets response_prefix"),
        ({**GOOD, "teacher_images": [{"path": ""}]}, "has neither bytes nor path"),
        ({**GOOD, "teacher_thought": ["a"]}, "teacher_thought is ['a'], not a text"),
        ({**GOOD, "teacher_thought": "<think>a</think>"}, "teacher_thought holds a <think> or </think>"),
        ({**GOOD, "think_loss": 1.5}, "think_loss is 1.5, not a number from 0 to 1"),
        ({**GOOD, "think_loss": -1}, "think_loss is -1"),
        ({**GOOD, "think_loss": True}, "think_loss is True, not a number"),
        ({**GOOD, "think_loss": "all"}, "think_loss is 'all'"),
        ({**GOOD, "teacher_thought": "", "think_loss": 0.5}, "it has think_loss 0.5 beside teacher_thought"),
    ],
)
def test_a_bad_row_is_named_with_its_line(load, row, reason):
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3") as caught:
        load([GOOD, GOOD, row])
    assert reason in str(caught.value)
    assert "--kd_bad_rows drop" in str(caught.value)
    assert "kd_row" not in str(caught.value)


def test_a_bad_row_without_a_file_is_named_by_its_number(load):
    from datasets import Dataset
    from swift.dataset import MessagesPreprocessor

    rows = Dataset.from_list([GOOD, {"messages": [{"role": "wizard", "content": "x"}]}])
    with pytest.raises(ValueError, match=r"\(row 2: "):
        MessagesPreprocessor()(rows, strict=True, load_from_cache_file=False)


def test_bad_rows_can_be_dropped(load):
    assert len(load([GOOD, {"messages": []}, GOOD], strict=False)) == 2


def test_a_batch_that_fails_although_its_rows_pass_keeps_its_error():
    from swift_kd_plugin.host.rows.datasets import preprocess_or_name_the_row

    def preprocess(batch, strict):
        if len(batch["messages"]) > 1:
            raise RuntimeError("too many at once")
        return batch

    with pytest.raises(RuntimeError, match="too many at once"):
        preprocess_or_name_the_row(preprocess, {"messages": [GOOD["messages"]] * 2}, False)


def test_a_preprocessor_may_filter_on_purpose(load):
    from swift.dataset import MessagesPreprocessor

    class OnlyShort(MessagesPreprocessor):
        def preprocess(self, row):
            return super().preprocess(row) if len(row["messages"]) == 2 else None

    from datasets import Dataset

    rows = Dataset.from_list([GOOD, {"messages": GOOD["messages"] * 2}])
    assert len(OnlyShort()(rows, strict=True, load_from_cache_file=False)) == 1
