"""`swift-kd pair`, as a process."""

import json

import pytest

from tests.launch import BIN, environment, run_command


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
def folder(tmp_path):
    system = turn("system", "X is 4")
    exp = [{"id": n, "messages": [system, turn("user", f"{n}?"), turn("assistant", f"{n}.")]} for n in range(5)]
    noexp = [{"id": n, "messages": [turn("user", f"{n}?")], "topic": "七"} for n in range(1, 6)]
    write(tmp_path / "exp.jsonl", exp)
    write(tmp_path / "noexp.jsonl", noexp)
    return tmp_path


def write(file, rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def swift_kd(folder, *arguments: str) -> tuple[int, str]:
    code, log, _ = run_command([str(BIN / "swift-kd"), *arguments], folder, environment(None))
    return code, log


FILES = ("--exp", "exp.jsonl", "--noexp", "noexp.jsonl", "-o", "out/pairs.jsonl")


def test_it_writes_pairs_and_says_what_is_missing(folder):
    code, log = swift_kd(folder, "pair", *FILES, "--report", "report.json")
    assert code == 0, log
    rows = [json.loads(line) for line in (folder / "out/pairs.jsonl").read_text(encoding="utf-8").splitlines()]
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
