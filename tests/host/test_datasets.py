"""Rows on their way through ms-swift's own preprocessing, with the plugin's patches."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")
GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
VIEW = [{"role": "system", "content": "book"}, {"role": "user", "content": "q"}]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads rows through `swift.dataset.load_dataset` with every row patch applied, as a run does."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    from swift.dataset import load_dataset

    from swift_kd_plugin.host.datasets import locate_bad_row
    from swift_kd_plugin.host.patches import LEDGER

    LEDGER.arm()

    def load_rows(rows, strict=True):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with locate_bad_row([str(file)]):
            return load_dataset([str(file)], strict=strict, load_from_cache_file=False)[0]

    yield load_rows
    LEDGER.disarm()


def test_the_teacher_column_survives(load):
    tool = [*VIEW, {"role": "tool", "content": "4", "name": "add"}]
    rows = load([{**GOOD, "teacher_messages": VIEW}, {**GOOD, "teacher_messages": tool}, GOOD])
    assert rows["teacher_messages"] == [VIEW, tool, None]
    assert rows["messages"] == [GOOD["messages"]] * 3


def test_stock_drops_the_teacher_column(tmp_path):
    from swift.dataset import load_dataset

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**GOOD, "teacher_messages": VIEW}) + "\n")
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
    ],
)
def test_a_bad_row_is_named_with_its_line(load, row, reason):
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3") as caught:
        load([GOOD, GOOD, row])
    assert reason in str(caught.value)
    assert "--kd_bad_rows drop" in str(caught.value)


def test_bad_rows_can_be_dropped(load):
    assert len(load([GOOD, {"messages": []}, GOOD], strict=False)) == 2


def test_a_batch_that_fails_although_its_rows_pass_keeps_its_error():
    from swift_kd_plugin.host.datasets import preprocess_or_name_the_row

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
