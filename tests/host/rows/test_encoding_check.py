"""Rows that the template cannot encode, or that are too long, without a launch."""

from types import SimpleNamespace

import pytest
from datasets import Dataset
from PIL import Image

from swift_kd_plugin.data.rows import Filler
from swift_kd_plugin.errors import KDError

pytestmark = pytest.mark.usefixtures("cpu_backend")


def row(number: int, question: str = "3+4", **columns) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "7"}]
    return {"messages": turns, "kd_source": "sums.jsonl", "kd_row": number, **columns}


def checked(template, rows: list[dict], val_rows: list[dict] | None = None, **changes):
    from swift_kd_plugin.host.rows.encoding_check import check_datasets

    given = {"max_length": 40, "truncation_strategy": "delete", "kd_bad_rows": "error", "dataloader_num_workers": 2}
    data = [None if some is None else Dataset.from_list(some) for some in (rows, val_rows)]
    return check_datasets(SimpleNamespace(**given | changes), template, data)


def left_out(report) -> dict[str, dict[str, list[int]]]:
    return {kind: entry.rows for kind, entry in report.left_out.items()}


LONG = [row(1), row(2, "1+" * 60), row(3), row(4, "1+" * 80)]
BROKEN = [row(1, tools=None), row(2, tools=["{"]), row(3, tools=None)]


def test_long_rows_are_left_out_and_named(template):
    (train, val), reports = checked(template, LONG, LONG[:2])
    assert train["kd_row"] == [1, 3]
    assert val["kd_row"] == [1]
    assert left_out(reports["--dataset"]) == {"longer than --max_length": {"sums.jsonl": [2, 4]}}
    lines = reports["--val_dataset"].lines()
    assert lines[0] == "left out: 1 x longer than --max_length"
    assert lines[1].startswith("    sums.jsonl, line 2: it has ")
    assert template.max_length == 2048


def test_without_a_long_row_nothing_changes(template):
    (train, val), reports = checked(template, LONG[::2])
    assert (len(train), val, reports) == (2, None, {})


@pytest.mark.parametrize("strategy", ["left", "right", "split"])
def test_no_response_is_cut(template, monkeypatch, strategy):
    from swift_kd_plugin.host.rows import encoding_check

    lines = []
    monkeypatch.setattr(encoding_check.logger, "warning", lines.append)
    (train, _), reports = checked(template, LONG, truncation_strategy=strategy)
    assert (len(train), reports) == (4, {})
    (said,) = lines
    assert said.startswith("2 of 4 rows of --dataset are longer than --max_length 40 (up to ")
    assert f"--truncation_strategy {strategy} does nothing" in said


def test_when_none_fits_it_is_said(template):
    with pytest.raises(KDError, match=r"--max_length 40: none of the 2 rows of --dataset fits into it, the shortest"):
        checked(template, LONG[1::2])


def test_a_row_that_cannot_be_encoded_is_named(template):
    with pytest.raises(KDError, match=r"^sums\.jsonl, line 2 cannot be used: the template .*--kd_bad_rows drop .*\.$"):
        checked(template, BROKEN)


def test_it_can_be_left_out(template):
    (train, _), reports = checked(template, BROKEN, kd_bad_rows="drop")
    assert train["kd_row"] == [1, 3]
    assert left_out(reports["--dataset"]) == {"cannot be encoded": {"sums.jsonl": [2]}}


def test_many_rows_are_judged_by_processes(template, monkeypatch):
    from swift_kd_plugin.host.rows import encoding_check

    monkeypatch.setattr(encoding_check, "ROWS_FOR_WORKERS", 4)
    rows = [row(number, "1+" * (60 if number % 50 == 7 else 1), tools=None) for number in range(1, 201)]
    rows[9]["tools"] = ["{"]
    (train, _), reports = checked(template, rows, kd_bad_rows="drop")
    assert left_out(reports["--dataset"]) == {
        "longer than --max_length": {"sums.jsonl": [7, 57, 107, 157]},
        "cannot be encoded": {"sums.jsonl": [10]},
    }
    assert len(train) == 195


def row_filter(template, strategy: str = "delete", strict: bool = True):
    from swift_kd_plugin.host.rows.encoding_check import LengthRule, RowFilter

    return RowFilter(template, LengthRule(40, strategy, strict))


def test_a_row_with_media_leaves_a_place_that_counts_nothing(template):
    rows = row_filter(template, strict=False)
    bad = row(2, "<image>", images=["none.png"])
    filled = rows.fill([row(1), bad, row(3)])
    assert [one["kd_row"] for one in filled] == [1, 3, 3]
    assert [isinstance(one, Filler) for one in filled] == [False, False, True]
    assert rows.fill([bad])[0]["kd_row"] == 3
    assert [str(place) for place in rows.left_out] == ["sums.jsonl, line 2"]


def test_a_row_with_media_may_come_first(template):
    rows, bad = row_filter(template, strict=False), row(2, "<image>", images=["none.png"])
    (filler,) = rows.fill([bad])
    assert isinstance(filler, Filler)
    assert template.encode(dict(filler))["input_ids"]
    assert rows.fill([row(1)])[0]["kd_row"] == 1
    assert rows.fill([bad])[0]["kd_row"] == 1


def test_rows_with_media_of_which_none_can_be_used(template):
    rows, bad = row_filter(template, strict=False), row(2, "<image>", images=["none.png"])
    rows.fill([bad])
    with pytest.raises(
        KDError, match=r"None of the 1 rows that were met can be used \(sums.jsonl, line 2: the template"
    ):
        rows.fill([bad])


def test_when_no_row_can_be_encoded_it_is_said(template):
    with pytest.raises(KDError, match=r"--dataset has no row that can be used \(sums.jsonl, line 2: the template"):
        checked(template, BROKEN[1:2], kd_bad_rows="drop")


def test_long_views_of_the_teacher_are_said(template, monkeypatch):
    from swift_kd_plugin.host.rows import teacher_lengths

    lines = []
    monkeypatch.setattr(teacher_lengths.logger, "warning", lines.append)
    args = SimpleNamespace(max_length=40)
    long = [{"role": "system", "content": "1+" * 60}, {"role": "user", "content": "3+4"}]
    short = [{"role": "system", "content": "1"}, {"role": "user", "content": "3+4"}]
    rows = [row(1, teacher_messages=long), row(2, teacher_messages=short), row(3, "1+" * 60, teacher_messages=None)]
    without = [row(1), row(2)]
    for train, val, flag in ((rows, None, "--dataset"), (without, rows, "--val_dataset"), (without, None, None)):
        lines.clear()
        data = [None if some is None else Dataset.from_list(some) for some in (train, val)]
        teacher_lengths.say_long_teacher_views(args, template, data)
        assert len(lines) == (flag is not None)
        said = f"1 of 2 rows of {flag} that were looked at are longer than --max_length 40 in the teacher's view"
        assert not lines or lines[0].startswith(said)
    args.max_length = None
    teacher_lengths.say_long_teacher_views(args, template, [Dataset.from_list(rows), None])
    assert lines == []


def test_an_image_is_called_by_its_file(template, tmp_path):
    from swift_kd_plugin.host.rows.encoding_check import Judge

    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    for name, said in (("none", "the image none does not exist"), ("bad", "bad.png is no image that can be read")):
        paths = [str(tmp_path / "good.png"), str(tmp_path / "bad.png") if name == "bad" else name]
        images = [{"bytes": None, "path": path} for path in paths]
        assert said in str(Judge(template)(row(2, "<image><image>", images=images)).error)
    images = [{"bytes": b"no image", "path": None}]
    assert "image 1 of the row is no image" in str(Judge(template)(row(2, "<image>", images=images)).error)


def test_a_stream_goes_on_where_it_was(template):
    from itertools import chain, islice

    from swift_kd_plugin.host.rows.row_stream import JudgedBatch, StreamBatches

    stream = [row(number, "1+" * (60 if number in (2, 9) else 1)) for number in range(1, 12)]

    def read(used: int) -> list[int]:
        rows = row_filter(template)
        batches = map(JudgedBatch(rows.judge), ([one] for one in stream))
        passes = StreamBatches(Again(batches), rows, 4, used)
        taken = chain.from_iterable(chain.from_iterable(passes for _ in range(5)))
        return [one["kd_row"] for one in islice(taken, 32 - used)]

    whole = read(0)
    assert whole == ([1, 3, 4, 5, 6, 7, 8, 10, 11] * 4)[:32]
    for used in (4, 12, 20):
        assert read(used) == whole[used:]


class Again:
    """A loader that begins anew each time."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2_5", "llama3_2", "chatml", "deepseek_r1"])
def test_what_surely_fits_fits(make_template, kind):
    from swift_kd_plugin.host.rows.encoding_check import Judge

    judge = Judge(make_template(kind))
    for system in (None, "", "Add."):
        for questions in (["3+4"], ["", "ABC" * 20], ["1", "2", "3"]):
            turns = [{"role": "system", "content": system}] if system is not None else []
            for question in questions:
                turns += [{"role": "user", "content": question}, {"role": "assistant", "content": "7"}]
            for messages in (turns, turns[:-1]):
                length = judge({"messages": messages}).length
                assert length is not None
                assert not judge.surely_fits({"messages": messages}, length - 1)
                assert judge.surely_fits({"messages": messages}, 2000)


@pytest.mark.parametrize(
    "change",
    [
        {"tools": ["{"]},
        {"images": ["a.png"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}] * 2},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss_scale": 2}]},
        {"messages": []},
    ],
)
def test_what_is_not_plain_is_encoded(template, change):
    from swift_kd_plugin.host.rows.encoding_check import Judge

    assert not Judge(template).surely_fits(row(1) | change, None)
