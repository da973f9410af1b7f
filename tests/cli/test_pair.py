"""`swift-kd pair`, as a process."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import BIN, environment, run_command, run_tool


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
def folder(tmp_path):
    system = turn("system", "X is 4")
    exp = [{"id": n, "messages": [system, turn("user", f"{n}?"), turn("assistant", f"{n}.")]} for n in range(5)]
    noexp = [{"id": n, "messages": [turn("user", f"{n}?")], "topic": "七"} for n in range(1, 6)]
    write_json_lines(tmp_path / "exp.jsonl", exp)
    write_json_lines(tmp_path / "noexp.jsonl", noexp)
    return tmp_path


def swift_kd(folder, *arguments: str) -> tuple[int, str]:
    code, log, _ = run_tool(["swift-kd", *arguments], folder, environment(None))
    return code, log


FILES = ("--exp", "exp.jsonl", "--noexp", "noexp.jsonl", "-o", "out/pairs.jsonl")


def test_it_writes_pairs_and_says_what_is_missing(folder):
    code, log = swift_kd(folder, "pair", *FILES, "--report", "report.json")
    assert code == 0, log
    rows = read_json_lines(folder / "out/pairs.jsonl")
    assert [row["id"] for row in rows] == [1, 2, 3, 4]
    assert rows[0] == {
        "id": 1,
        "topic": "七",
        "messages": [turn("user", "1?"), turn("assistant", "1.")],
        "teacher_messages": [turn("system", "X is 4"), turn("user", "1?")],
    }
    assert "left out: 1 x only in exp.jsonl\n    exp.jsonl, line 1 (id '0')" in log
    assert "4 rows are in out/pairs.jsonl" in log
    page = json.loads((folder / "report.json").read_text())
    assert {kind: entry["rows"] for kind, entry in page["left_out"].items()} == {
        "only in exp.jsonl": {"exp.jsonl": "1"},
        "only in noexp.jsonl": {"noexp.jsonl": "5"},
    }


def test_strict_ends_in_one_sentence_and_writes_nothing(folder):
    code, log = swift_kd(folder, "pair", *FILES, "--strict")
    assert code == 1
    assert "swift-kd pair: error: exp.jsonl, line 1 (id '0') cannot be used" in log
    assert "Traceback" not in log
    assert not (folder / "out").exists()


def test_a_missing_file_is_one_sentence(folder):
    code, log = swift_kd(folder, "pair", "--exp", "ex.jsonl", *FILES[2:])
    assert code == 1
    assert log.startswith("swift-kd pair: error: ex.jsonl")
    assert len(log.splitlines()) == 1


def test_what_it_writes_loads_in_stock_ms_swift(folder):
    assert swift_kd(folder, "pair", *FILES)[0] == 0
    script = (
        "from swift.dataset import load_dataset; "
        "print(load_dataset(['out/pairs.jsonl'], remove_unused_columns=False)[0][0]['teacher_messages'])"
    )
    env = environment(None, MODELSCOPE_CACHE=str(folder / "cache"), HF_DATASETS_CACHE=str(folder / "hf"))
    code, log, _ = run_command([str(BIN / "python"), "-c", script], folder, env)
    assert code == 0, log
    assert "X is 4" in log.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "exp.jsonl"], "--output exp.jsonl is the file of --exp, too; choose another"),
        (["-o", "link.jsonl"], "--output link.jsonl is the file of --noexp, too; choose another"),
        (["--report", "out/pairs.jsonl"], "--report out/pairs.jsonl is the file of --output, too; choose another"),
        (["--report", "./noexp.jsonl"], "--report noexp.jsonl is the file of --noexp, too; choose another"),
        (["-o", "pairs.csv"], "--output pairs.csv must be named .jsonl, because such a file is what it writes"),
        (["-o", "."], "--output . must be named .jsonl"),
        (["-o", "exp.jsonl/pairs.jsonl"], "exp.jsonl/pairs.jsonl cannot be written: "),
        (["-o", "folder.jsonl"], "folder.jsonl cannot be written: Is a directory"),
        (["-o", "/proc/none/pairs.jsonl"], "/proc/none/pairs.jsonl cannot be written: No such file or directory"),
        (["--report", "."], ". cannot be written: "),
        (["--exp", "empty.parquet"], "empty.parquet cannot be read as Parquet"),
        (["--exp", "empty.json"], "empty.json cannot be used: it is not JSON"),
        (["--exp", "empty.csv"], "empty.csv has no header"),
        (
            ["--exp", "i.parquet", "--noexp", "j.parquet"],
            "j.parquet, row 1 (id '1') holds an image as bytes",
        ),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(folder, arguments, message):
    (folder / "link.jsonl").symlink_to("noexp.jsonl")
    (folder / "folder.jsonl").mkdir()
    for suffix in ("parquet", "json", "csv"):
        (folder / f"empty.{suffix}").touch()
    turns = [turn("user", "<image>What?"), turn("assistant", "A cat.")]
    image = {"id": 1, "messages": turns, "images": [{"bytes": b"cat", "path": None}]}
    pq.write_table(pa.Table.from_pylist([image]), folder / "j.parquet")
    pq.write_table(pa.Table.from_pylist([{**image, "system": "A zoo."}]), folder / "i.parquet")
    before = {file: file.read_bytes() for file in folder.glob("*.jsonl") if file.is_file()}
    code, log = swift_kd(folder, "pair", *FILES, *arguments)
    assert code == 1
    assert f"swift-kd pair: error: {message}" in log
    assert "Traceback" not in log
    assert {file: file.read_bytes() for file in before} == before


NOTHING = "no pair could be made, and keep.jsonl is not written; for --on and --gold "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "qid"], f"{NOTHING}exp.jsonl has the columns id; noexp.jsonl has the columns id, topic."),
        (["--response", "gold"], NOTHING),
        (["--response", "gold", "--gold", "topics"], NOTHING),
        (["--on", "topic"], NOTHING),
        (["--exp", "empty.jsonl"], f"{NOTHING}empty.jsonl has no rows; noexp.jsonl has the columns id, topic."),
        (["--noexp", "empty.csv"], f"{NOTHING}exp.jsonl has the columns id; empty.csv has no rows."),
        (["--exp", "leaking.jsonl", "--noexp", "leaked.jsonl", "--leaks", "drop"], NOTHING),
        (["--exp", "twice.jsonl"], NOTHING),
    ],
)
def test_without_a_pair_a_good_file_stays(folder, arguments, message):
    (folder / "empty.jsonl").write_text("")
    (folder / "empty.csv").write_text("id,query\n")
    answered = [*read_json_lines(folder / "exp.jsonl"), *read_json_lines(folder / "exp.jsonl")]
    write_json_lines(folder / "twice.jsonl", [{**row, "number": number} for number, row in enumerate(answered)])
    book, question = "the book says that X is 4", turn("user", "X?")
    exp = [turn("system", book), question, turn("assistant", "4")]
    write_json_lines(folder / "leaking.jsonl", [{"id": number, "messages": exp} for number in range(5)])
    noexp = [turn("system", f"well, {book}"), question]
    write_json_lines(folder / "leaked.jsonl", [{"id": number, "messages": noexp} for number in range(5)])
    (folder / "keep.jsonl").write_text("good\n")
    code, log = swift_kd(folder, "pair", *FILES, "-o", "keep.jsonl", "--report", "report.json", *arguments)
    assert code == 1, log
    assert f"swift-kd pair: error: {message}" in log
    assert (folder / "keep.jsonl").read_text() == "good\n"
    assert json.loads((folder / "report.json").read_text())["facts"]["keep.jsonl"]["rows"] == 0


def test_other_kinds_of_files_are_paired(folder):
    (folder / "noexp.csv").write_text("id,query,topic\n" + "".join(f"{n},{n}?,七\n" for n in range(1, 6)))
    rows = read_json_lines(folder / "exp.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), folder / "exp.parquet")
    assert swift_kd(folder, "pair", *FILES)[0] == 0
    assert swift_kd(folder, "pair", "--exp", "exp.parquet", "--noexp", "noexp.csv", "-o", "other.jsonl")[0] == 0
    first, second = (read_json_lines(folder / name) for name in ("out/pairs.jsonl", "other.jsonl"))
    assert [{**row, "id": int(row["id"])} for row in second] == first


def test_files_without_an_experience_between_them(folder):
    """One file twice is refused; exchanged files are made, with a note."""
    code, log = swift_kd(folder, "pair", "--exp", "exp.jsonl", "--noexp", "exp.jsonl", "-o", "out/pairs.jsonl")
    assert code == 1
    said = "swift-kd pair: error: teacher and student see the same in all 5 rows of exp.jsonl and exp.jsonl, so that"
    assert said in log
    assert "Traceback" not in log
    assert not (folder / "out").exists()
    exchanged = ("--exp", "noexp.jsonl", "--noexp", "exp.jsonl", "--response", "none", "-o", "out/pairs.jsonl")
    code, log = swift_kd(folder, "pair", *exchanged)
    assert code == 0, log
    assert "note: 4 x student sees more" in log
    assert "the student sees all that the teacher sees, and more; are exp and noexp exchanged?" in log
