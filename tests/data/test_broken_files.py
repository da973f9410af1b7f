"""Ten thousand broken rows through a data.yaml and through the real `swift-kd pair`: reported, never a traceback."""

import json
import random
import re
from pathlib import Path

import pytest
import yaml

from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.row_report import from_ranges
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.errors import KDError
from tests.data.broken_rows import BROKEN
from tests.json_lines import read_json_lines
from tests.launching.commands import BIN, environment, run_command

GOOD, BAD, LONG = 500, 10_000, 50 << 20
FILES = ("exp.jsonl", "noexp.jsonl")


def good(side: str, number, answer: str = "a") -> bytes:
    turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}]
    turns = [{"role": "system", "content": f"Hint {number}."}, *turns] if side == "exp" else turns[:1]
    return json.dumps({"id": number, "messages": turns}).encode()


def expected_of(side: str) -> dict[str, list[bytes]]:
    """Lines that can be read and have no partner that could be used, by kind."""
    other = "noexp.jsonl" if side == "exp" else "exp.jsonl"
    own, only = f"{side} only", f"only in {side}.jsonl"
    lines = {
        "no key": [good(side, None), good(side, ""), good(side, [1])],
        only: [good(side, own), good(side, f"conflict of {other.partition('.')[0]}")],
        "duplicate": [good(side, 0)],
        "conflicting duplicates": [good(side, f"conflict of {side}", "a"), good(side, f"conflict of {side}", "b")],
        "no response": [json.dumps({"id": "silent", "messages": [{"role": "user", "content": "q"}]}).encode()],
    }
    if side == "noexp":  # its rows have no answers to differ in
        lines["conflicting duplicates"][1] = lines["conflicting duplicates"][1].replace(b"Question", b"Other")
    return lines


def write_side(file: Path, side: str) -> dict[str, list[int]]:
    """Writes a file of good and bad lines; returns the numbers of the lines by what is to become of them."""
    sorts = list(BROKEN.values())
    lines = [(good(side, number), "used") for number in range(GOOD)]
    lines += [(sorts[number % len(sorts)], "broken") for number in range(BAD)]
    lines += [(line, kind) for kind, found in expected_of(side).items() for line in found]
    random.Random(side).shuffle(lines)
    lines.append(lines.pop(next(n for n, (_, kind) in enumerate(lines) if kind == "duplicate")))  # behind its equal
    numbers: dict[str, list[int]] = {}
    with open(file, "wb") as out:
        for number, (line, kind) in enumerate(lines, start=1):
            out.write(line + b"\n")
            numbers.setdefault(kind, []).append(number)
        for number in (1, 2):
            out.write(b'{"prompt": "' + b"x" * LONG + b'"}\n')
            numbers["broken"].append(len(lines) + number)
    return numbers


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    pairs = {"type": "exp_noexp", "exp": FILES[0], "noexp": FILES[1]}
    modes = {"type": "thinking_mix", "source": "pairs", "mode": "non_thinking"}
    (folder / "data.yaml").write_text(yaml.safe_dump({"pairs": pairs, "modes": modes}))
    return folder, {file: write_side(folder / file, file.partition(".")[0]) for file in FILES}


def assert_complete(page: dict, numbers: dict[str, dict[str, list[int]]]) -> None:
    read_kinds = {"unreadable", "format", "messages", "empty", "think", "media"}
    for file, by_kind in numbers.items():
        found = {kind: from_ranges(e["rows"][file]) for kind, e in page["left_out"].items() if file in e["rows"]}
        assert sorted(n for kind in read_kinds & found.keys() for n in found[kind]) == sorted(by_kind["broken"])
        rest = {kind: rows for kind, rows in found.items() if kind not in read_kinds}
        assert rest == {kind: rows for kind, rows in by_kind.items() if kind not in ("used", "broken")}
        assert page["read"][file] == sum(map(len, by_kind.values()))
    for entry in page["left_out"].values():
        assert entry["count"] == sum(len(from_ranges(rows)) for rows in entry["rows"].values())


def test_a_data_yaml_reports_every_row(broken, tmp_path):
    folder, numbers = broken
    dataset, report = Builder(tmp_path).dataset(read_data_yaml(folder / "data.yaml")["modes"])
    assert {row["columns"]["id"] for row in to_rows(dataset)} == set(range(GOOD))
    assert len(dataset) == GOOD
    assert_complete(report.as_json(), numbers)


def test_a_strict_data_yaml_ends_at_the_first_broken_row(broken, tmp_path):
    folder, numbers = broken
    first = min(numbers["exp.jsonl"]["broken"])
    with pytest.raises(KDError, match=rf"^exp\.jsonl, line {first}( \(id .*\))? cannot be used: ") as error:
        Builder(tmp_path, strict=True).dataset(read_data_yaml(folder / "data.yaml")["modes"])
    assert "\n" not in str(error.value)


def pair(folder: Path, output: Path, *more: str) -> tuple[int, str]:
    argv = ["pair", "--exp", FILES[0], "--noexp", FILES[1], "-o", str(output), *more]
    code, log, _ = run_command([str(BIN / "swift-kd"), *argv], folder, environment(None))
    return code, log


def test_swift_kd_pair_reports_every_row(broken, tmp_path):
    folder, numbers = broken
    code, log = pair(folder, tmp_path / "pairs.jsonl", "--report", str(tmp_path / "report.json"))
    assert code == 0, log
    assert "Traceback" not in log
    rows = read_json_lines(tmp_path / "pairs.jsonl")
    assert sorted(row["id"] for row in rows) == list(range(GOOD))
    assert f"{GOOD} rows are in {tmp_path / 'pairs.jsonl'}" in log
    assert_complete(json.loads((tmp_path / "report.json").read_text(encoding="utf-8")), numbers)


def test_a_strict_swift_kd_pair_is_one_sentence(broken, tmp_path):
    folder, _ = broken
    code, log = pair(folder, tmp_path / "out" / "pairs.jsonl", "--strict", "--report", str(tmp_path / "report.json"))
    assert code == 1
    assert re.fullmatch(r"swift-kd pair: error: exp\.jsonl, line \d+.* cannot be used: .*\n", log)
    assert list(tmp_path.iterdir()) == []
