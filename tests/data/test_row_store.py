"""Rows on disk: what is written comes back, in batches of bounded size."""

import pyarrow as pa
import pytest

from swift_kd_plugin.data import row_store
from swift_kd_plugin.data.row_store import read_dataset, to_rows, write_rows
from swift_kd_plugin.errors import KDError


def row(number: int, **columns) -> dict:
    turns = [{"role": "user", "content": f'{number} 七\u2028"\\'}, {"role": "assistant", "content": "a", "loss": False}]
    return {"messages": turns, "kd_source": "a.jsonl", "kd_row": number, **columns}


ROWS = [
    row(1, tools=[{"name": "f"}, "text"], columns={"id": 1, "nested": {"a": [1, None]}}, think_loss=0),
    row(2, images=[{"bytes": b"\xff\x00", "path": None}, {"bytes": None, "path": "a.png"}], teacher_tools=[]),
    row(3, chat_template_kwargs={"enable_thinking": False}, teacher_thought="", videos=["a.mp4"], kd_id="x"),
]


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_rows_come_back(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(row_store, "BATCH_ROWS", batch)
    assert write_rows(tmp_path / "x.arrow", iter(ROWS)) == 3
    assert list(to_rows(read_dataset(tmp_path / "x.arrow"))) == ROWS
    assert [file.name for file in tmp_path.iterdir()] == ["x.arrow"]


def test_images_count_for_the_size_of_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(row_store, "BATCH_BYTES", 5000)
    rows = [row(number, images=[{"bytes": b"x" * 1000, "path": None}] * 2) for number in range(10)]
    write_rows(tmp_path / "x.arrow", rows)
    with pa.OSFile(str(tmp_path / "x.arrow")) as source:
        assert [len(batch) for batch in pa.ipc.open_stream(source)] == [3, 3, 3, 1]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KDError, match=r"file/x\.arrow cannot be written: "):
        write_rows(tmp_path / "file" / "x.arrow", ROWS)
