"""Datasets built from real files and a real data.yaml: nothing is lost, nothing depends on order, nothing is stale."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.pairing import ANSWERS_SEEN
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.rows import digest
from swift_kd_plugin.errors import KDError
from tests.data.drawn_files import LINES, OPTIONS, SUFFIXES, make_pairs, system_of, write_yaml
from tests.json_lines import write_json_lines
from tests.paths import ROOT

# Without shrinking: a failing example is small, and each try writes files.
PROPERTY = settings(
    deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), phases=[Phase.reuse, Phase.generate]
)


def build(folder: Path, name: str = "pairs", store: str = "store", **settings) -> tuple[list[dict], Report]:
    dataset, report = Builder(folder / store, **settings).dataset(read_data_yaml(folder / "data.yaml")[name])
    return list(to_rows(dataset)), report


def lost_rows(report: Report) -> list[tuple[str, int]]:
    return [(s, n) for entry in report.left_out.values() for s, numbers in entry.rows.items() for n in numbers]


def content(row: dict) -> bytes:
    return digest({**row, "kd_row": None})


@PROPERTY
@given(LINES, LINES, st.tuples(SUFFIXES, SUFFIXES), OPTIONS)
def test_every_row_of_both_files_is_in_the_output_or_in_the_report(tmp_path_factory, exp, noexp, suffixes, options):
    folder = tmp_path_factory.mktemp("build")
    names = make_pairs(folder, exp, noexp, suffixes, options)
    rows, report = build(folder)
    lost = lost_rows(report)
    assert report.read == {names[0]: len(exp), names[1]: len(noexp)}
    assert len(lost) == len(set(lost))
    used = {(row["kd_source"], row["kd_row"]) for row in rows}
    of_noexp = {(names[1], number) for number in range(1, len(noexp) + 1)}
    assert used.isdisjoint(lost)
    assert used | {place for place in lost if place[0] == names[1]} == of_noexp
    # The experienced row of an output row is told by its system turn, which equal rows share.
    kept = [line for number, line in enumerate(exp, start=1) if (names[0], number) not in lost]
    assert not any(line.broken is not None for line in kept)
    assert Counter(row["teacher_messages"][0]["content"] for row in rows) == Counter(map(system_of, kept))


UNMATCHED = st.sampled_from(["error", "drop", None])


@PROPERTY
@given(LINES, LINES, st.tuples(SUFFIXES, SUFFIXES), OPTIONS, UNMATCHED, st.booleans())
def test_a_strict_build_uses_every_row_or_says_why_not(
    tmp_path_factory, exp, noexp, suffixes, options, unmatched, by_dataset
):
    folder = tmp_path_factory.mktemp("strict")
    strictness = {"bad_rows": "error"} if by_dataset else {}
    names = make_pairs(folder, exp, noexp, suffixes, {**options, **strictness, "unmatched": unmatched})
    allowed = {"leak", "quote", *(f"only in {name}" for name in names if unmatched == "drop")}
    report, refusal = Report(), None
    try:
        report = build(folder, strict=not by_dataset)[1]
    except KDError as error:
        refusal = str(error)
    assert set(report.left_out) <= allowed
    if refusal is not None:
        assert re.fullmatch(rf"({'|'.join(names)}), (line|row) \d+( \(id .*\))? cannot be used: .*; mend .*", refusal)


@PROPERTY
@given(LINES, LINES, st.sampled_from(["id", "last_user_message"]), OPTIONS, st.randoms(use_true_random=False))
def test_the_order_of_lines_makes_no_difference(tmp_path_factory, exp, noexp, on, options, random):
    first, second = (tmp_path_factory.mktemp("order") for _ in range(2))
    options = {**options, "on": on, "duplicates": "all" if options["duplicates"] == "first" else "refuse"}
    make_pairs(first, exp, noexp, (".jsonl", ".jsonl"), options)
    random.shuffle(exp)
    random.shuffle(noexp)
    make_pairs(second, exp, noexp, (".jsonl", ".jsonl"), options)
    (rows, report), (shuffled, other) = build(first), build(second)
    assert Counter(map(content, rows)) == Counter(map(content, shuffled))
    for mine, theirs in ((report.left_out, other.left_out), (report.notes, other.notes)):
        assert {kind: entry.count for kind, entry in mine.items()} == {kind: e.count for kind, e in theirs.items()}


@PROPERTY
@given(LINES, LINES, st.tuples(SUFFIXES, SUFFIXES), OPTIONS)
def test_a_second_build_and_a_stream_give_the_same_rows(tmp_path_factory, exp, noexp, suffixes, options):
    folder = tmp_path_factory.mktemp("twice")
    make_pairs(folder, exp, noexp, suffixes, options)
    rows, report = build(folder)
    stored = {file: file.stat().st_mtime_ns for file in (folder / "store").iterdir()}
    again, found = build(folder)
    assert {file: file.stat().st_mtime_ns for file in (folder / "store").iterdir()} == stored
    assert again == rows
    assert found.as_json() == report.as_json()
    assert found.lines() == report.lines()
    assert streamed(folder, "pairs") == rows


def streamed(folder: Path, name: str) -> list[dict]:
    stream = Builder(folder / "stream").stream(read_data_yaml(folder / "data.yaml")[name])
    return [{key: value for key, value in row.items() if value is not None} for row in stream]


COUNT = 30
THOUGHT = "<think>\nIt stands in the book.\n</think>\n\n"


def make_files(folder: Path, count: int = COUNT, shuffle: int | None = None) -> None:
    """Pairs of which every second answer thinks; other rows of which the last is broken."""
    numbers = list(range(count))
    if shuffle is not None:
        random.Random(shuffle).shuffle(numbers)
    exp, noexp, plain = [], [], []
    for number in numbers:
        asked = {"role": "user", "content": f"What is letter {number}?"}
        told = {"role": "system", "content": f"The book of letters says {number}."}
        answer = {"role": "assistant", "content": THOUGHT * (number % 2) + str(number)}
        exp.append({"id": number, "level": number % 3, "messages": [told, asked, answer]})
        noexp.append({"id": number, "level": number % 3, "mode": number % 2 == 0, "messages": [asked]})
        plain.append({"query": f"{number}?", "response": f"{THOUGHT}{number}", "topic": "x"})
    for name, rows in (("exp", exp), ("noexp", noexp), ("plain", [*plain, {"query": "?", "response": 3}])):
        write_json_lines(folder / f"{name}.jsonl", rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_files(tmp_path)
    return tmp_path


PAIRS = {"type": "exp_noexp", "exp": "exp.jsonl", "noexp": "noexp.jsonl"}
PLAIN = {"type": "rows", "source": "plain.jsonl"}


def answers(rows: list[dict]) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def stored(folder: Path) -> set[str]:
    return {file.name for file in (folder / "store").iterdir()}


def test_a_build_that_breaks_off_leaves_nothing_that_is_taken_for_whole(folder, monkeypatch):
    from swift_kd_plugin.data import build as module

    def broken_off(*args):
        for number, row in enumerate(rows_in_modes(*args)):
            if number == COUNT // 2:
                raise KeyboardInterrupt
            yield row

    rows_in_modes = module.rows_in_modes
    write_yaml(folder, modes={"type": "thinking_mix", "source": PAIRS})
    monkeypatch.setattr(module, "rows_in_modes", broken_off)
    with pytest.raises(KeyboardInterrupt):
        build(folder, "modes")
    monkeypatch.undo()
    assert not any(name.startswith(".") for name in stored(folder))
    rows, report = build(folder, "modes")
    assert len(rows) == report.facts["modes"]["rows"] == COUNT


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(folder):
    script = (
        "import os, sys; from pathlib import Path; from swift_kd_plugin.data import build\n"
        "from swift_kd_plugin.data.data_yaml import read_data_yaml\n"
        "build.write_atomically = lambda *args: os.kill(os.getpid(), 9)\n"
        "build.Builder(Path('store')).dataset(read_data_yaml('data.yaml')['plain'])"
    )
    write_yaml(folder, plain=PLAIN)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], cwd=folder, env=env).returncode == -9
    assert len(stored(folder)) == 1
    rows, report = build(folder, "plain")
    assert len(rows) == COUNT
    assert report.read == {"plain.jsonl": COUNT + 1}


def cut(file: Path, part: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("suffix", [".arrow", ".json"])
def test_a_stored_file_that_was_damaged_is_made_anew(folder, suffix, part):
    """After a power failure a file may have its name and not its content."""
    write_yaml(folder, pairs=PAIRS)
    rows, report = build(folder)
    for file in (folder / "store").glob(f"*{suffix}"):
        cut(file, part)
    again, found = build(folder)
    assert again == rows
    assert found.as_json() == report.as_json()


def test_a_stored_file_with_fewer_rows_is_made_anew(folder, monkeypatch):
    """An Arrow stream that ends between two batches can be read."""
    from swift_kd_plugin.data import row_store

    monkeypatch.setattr(row_store, "BATCH_ROWS", 10)
    write_yaml(folder, plain=PLAIN)
    rows, _ = build(folder, "plain")
    (file,) = (folder / "store").glob("*.arrow")
    with pa.OSFile(str(file)) as source:
        batches = list(pa.ipc.open_stream(source))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        writer.write_batch(batches[0])
    assert build(folder, "plain")[0] == rows


def test_a_changed_source_or_option_builds_anew(folder):
    write_yaml(folder, pairs=PAIRS)
    before, known = build(folder)[0], stored(folder)
    with open(folder / "noexp.jsonl", "a") as file:
        file.write(json.dumps({"id": 0, "messages": [{"role": "user", "content": "Another?"}]}) + "\n")
    assert len(build(folder)[0]) == COUNT - 1
    assert len(stored(folder) - known) == 4  # the pairs and the changed side, with a report each
    write_yaml(folder, pairs={**PAIRS, "duplicates": "first"})
    assert answers(build(folder)[0]) == answers(before)
    write_yaml(folder, pairs={**PAIRS, "response": "none"})
    assert {row["messages"][-1]["role"] for row in build(folder)[0]} == {"user"}


def test_the_same_file_under_another_path_is_its_own(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    make_files(other, 5)
    for place in (folder, other):
        write_yaml(place, plain=PLAIN)
    store = str(folder / "store")
    assert [len(build(place, "plain", store=store)[0]) for place in (folder, other)] == [COUNT, 5]


def test_a_thinking_mix_of_a_mix_of_pairs(folder):
    mixed = {"type": "mix", "sources": {"pairs": 0.5, "plain.jsonl": 0.5}, "total": 20}
    write_yaml(folder, pairs=PAIRS, modes={"type": "thinking_mix", "mode": "non_thinking", "source": mixed})
    rows, report = build(folder, "modes")
    assert len(rows) == 20
    assert all(THOUGHT not in answer for answer in answers(rows))
    assert Counter(row["kd_source"] for row in rows) == {"noexp.jsonl": 10, "plain.jsonl": 10}
    assert report.facts["modes.source"]["available"] == {"pairs": COUNT, "plain.jsonl": COUNT}
    assert report.facts["modes.source"]["taken"] == {"pairs": 10, "plain.jsonl": 10}
    assert report.facts["modes"] == {"thinking": 0, "non_thinking": 20, "thinking_share": 0.0, "rows": 20}
    assert report.read == {"exp.jsonl": COUNT, "noexp.jsonl": COUNT, "plain.jsonl": COUNT + 1}
    assert lost_rows(report) == [("plain.jsonl", COUNT + 1)]
    assert streamed(folder, "modes") == rows


def test_pairs_of_thinking_mixes(folder):
    """Each side is in its own mode; the response and the teacher's thought are the experienced side's."""
    silent = {"type": "thinking_mix", "mode": "non_thinking"}
    exp = {**silent, "source": "exp.jsonl", "teacher": "thinking", "without_thought": "non_thinking"}
    write_yaml(folder, pairs={**PAIRS, "exp": exp, "noexp": {**silent, "source": "noexp.jsonl"}})
    rows, report = build(folder)
    assert answers(rows) == [str(number) for number in range(COUNT)]
    assert {row.get("teacher_thought") for row in rows[1::2]} == {"It stands in the book."}
    assert not any("teacher_thought" in row for row in rows[::2])
    assert {row["chat_template_kwargs"]["enable_thinking"] for row in rows} == {False}
    assert {"pairs.exp", "pairs.noexp", "pairs"} == report.facts.keys()


def test_columns_are_kept_by_the_dataset_that_says_so(folder):
    write_yaml(
        folder,
        pairs={**PAIRS, "keep": ["level"]},
        mixed={"type": "mix", "sources": {"pairs": 1, "plain.jsonl": 1}, "keep": ["topic"]},
    )
    assert [row["level"] for row in build(folder)[0]][:4] == [0, 1, 2, 0]
    mixed, _ = build(folder, "mixed")
    assert {row.get("topic") for row in mixed} == {None, "x"}
    dataset, _ = Builder(folder / "store", keep=("level",)).dataset(read_data_yaml(folder / "data.yaml")["mixed"])
    assert {"topic", "level"} <= set(dataset.column_names)


def test_a_column_of_ours_is_kept_anyway(folder):
    names = ["messages", "chat_template_kwargs", "level", "columns", "kd_row"]
    write_yaml(folder, plain=PAIRS, pairs={**PAIRS, "keep": names})
    rows, _ = build(folder)
    assert [{key: value for key, value in row.items() if key != "level"} for row in rows] == build(folder, "plain")[0]
    assert rows[2]["level"] == 2
    assert streamed(folder, "pairs") == rows


@pytest.mark.parametrize(
    ("run", "outer", "inner", "ends"),
    [
        (False, None, None, False),
        (True, None, None, True),
        (True, "drop", None, False),
        (False, "error", None, True),
        (False, None, "error", True),
        (True, None, "drop", False),
        (False, "drop", "error", True),
        (True, "error", "drop", False),
    ],
)
def test_the_nearest_level_says_what_becomes_of_bad_rows(folder, run, outer, inner, ends):
    plain = {**PLAIN, **({"bad_rows": inner} if inner else {})}
    mixed = {"type": "mix", "sources": {"plain": 1}, **({"bad_rows": outer} if outer else {})}
    write_yaml(folder, plain=plain, mixed=mixed)
    if ends:
        with pytest.raises(KDError, match=rf"^plain\.jsonl, line {COUNT + 1} cannot be used: "):
            build(folder, "mixed", strict=run)
    else:
        rows, report = build(folder, "mixed", strict=run)
        assert len(rows) == COUNT
        assert lost_rows(report) == [("plain.jsonl", COUNT + 1)]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_thinking_rows_does_not_depend_on_their_order(tmp_path, share):
    made = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        make_files(folder, 400, seed)
        modes = {"type": "thinking_mix", "source": "plain.jsonl", "thinking_share": share}
        write_yaml(folder, modes=modes, shared={**modes, "source": PAIRS, "without_thought": "non_thinking"})
        rows, report = build(folder, "modes")
        thinking = [row["messages"][0]["content"] for row in rows if row["chat_template_kwargs"]["enable_thinking"]]
        low, high = binom.interval(1 - 1e-6, 400, share)
        assert low <= len(thinking) == report.facts["modes"]["thinking"] <= high
        made.append((Counter(map(content, rows)), Counter(map(content, build(folder, "shared")[0]))))
    assert made[0] == made[1]


@pytest.mark.parametrize(("options", "expected"), [({}, (15, 15)), ({"thinking_share": 0.25, "total": 8}, (2, 6))])
def test_each_mode_can_have_its_own_source(folder, options, expected):
    source = {"thinking": "exp.jsonl", "non_thinking": {**PAIRS, "response": "none"}}
    write_yaml(folder, modes={"type": "thinking_mix", **source, **options, "bad_rows": "drop"})
    rows, report = build(folder, "modes")
    counts = Counter(row["chat_template_kwargs"]["enable_thinking"] for row in rows)
    assert (counts[True], counts[False]) == (expected[0], expected[1] if options else COUNT)
    taken = report.facts["modes"]["taken"]
    assert taken == {"thinking": counts[True], "non_thinking": counts[False]}
    assert report.facts["modes"]["available"] == {"thinking": 15, "non_thinking": COUNT}
    assert len(report.left_out["no thought"].rows["exp.jsonl"]) == 15


MIXES = st.fixed_dictionaries(
    {},
    optional={"total": st.integers(1, 40), "replacement": st.booleans(), "seed": st.integers(0, 5)},
)
WEIGHTS = st.dictionaries(st.sampled_from(["pairs", "plain", "modes"]), st.integers(1, 9), min_size=1)


@PROPERTY
@given(WEIGHTS, MIXES)
def test_a_mix_says_of_every_source_what_was_taken_and_what_was_there(tmp_path_factory, weights, options):
    folder = tmp_path_factory.mktemp("mix")
    make_files(folder, 10)
    modes = {"type": "thinking_mix", "source": "exp.jsonl", "mode": "thinking"}
    write_yaml(folder, pairs=PAIRS, plain=PLAIN, modes=modes, mix={"type": "mix", "sources": weights, **options})
    sizes = {"pairs": 10, "plain": 10, "modes": 5}
    rows, refusal, report = [], "", Report()
    try:
        rows, report = build(folder, "mix")
    except KDError as error:
        refusal = str(error)
    if refusal:
        assert re.match(r"mix needs \d+ rows of '\w+', which has \d+; ", refusal)
        return
    facts = report.facts["mix"]
    assert facts["available"] == {name: sizes[name] for name in weights}
    assert sum(facts["taken"].values()) == facts["rows"] == len(rows)
    sources = {"pairs": "noexp.jsonl", "plain": "plain.jsonl", "modes": "exp.jsonl"}
    assert Counter(row["kd_source"] for row in rows) == Counter({sources[n]: c for n, c in facts["taken"].items() if c})
    assert streamed(folder, "mix") == rows
    assert build(folder, "mix")[1].as_json() == report.as_json()


def test_an_empty_source_of_a_mix_says_why_it_is_empty(folder):
    (folder / "bad.jsonl").write_text('{"query": "?", "response": 3}\n')
    write_yaml(folder, mix={"type": "mix", "sources": {"plain.jsonl": 1, "bad.jsonl": 1}})
    with pytest.raises(KDError, match=r"mix: its source 'bad\.jsonl' has no rows left.*bad\.jsonl, line 1: its column"):
        build(folder, "mix")


WHERE_NOBODY_WRITES = """
plain: {type: rows, source: rows.jsonl}
gold: {type: rows, source: rows.jsonl, gold: chosen}
mixed: {type: mix, sources: {plain: {fraction: 1.0}, twice: {source: plain, fraction: 1.0}}}
modes: {type: thinking_mix, source: plain, mode: non_thinking}
pairs: {type: exp_noexp, exp: exp.jsonl, noexp: rows.jsonl}
for_student: {type: exp_noexp, exp: exp.jsonl, noexp: rows.jsonl, response: none}
hints: {type: exp_noexp, source: hints.jsonl, experience: hint, response: gold, gold: chosen}
"""


@pytest.mark.parametrize(
    ("name", "count"),
    [("plain", 1), ("gold", 2), ("mixed", 2), ("modes", 1), ("pairs", 2), ("for_student", 0), ("hints", 2)],
)
def test_where_nobody_writes_every_row_has_a_response(tmp_path, name, count):
    """What makes a response of a column or of another row is asked for none before."""
    rows = [{"id": 1, "query": "a", "response": "x", "chosen": "x"}, {"id": 2, "query": "b", "chosen": "y"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    write_json_lines(tmp_path / "hints.jsonl", [row | {"hint": "h"} for row in rows])
    write_json_lines(tmp_path / "exp.jsonl", [row | {"system": "s", "response": "z"} for row in rows])
    (tmp_path / "data.yaml").write_text(WHERE_NOBODY_WRITES)
    made, report = build(tmp_path, name, trains="last_round")
    assert (len(made), "no response" in report.left_out) == (count, count < 2 or name == "mixed")
    assert len(build(tmp_path, name)[0]) >= len(made)
    if "no response" in report.left_out:
        with pytest.raises(KDError, match="cannot be used: it has no response"):
            build(tmp_path, name, store="strict", trains="last_round", strict=True)


def test_a_stream_says_the_first_of_each_kind_at_once(tmp_path, monkeypatch):
    """Its pass may never end."""
    said = []
    monkeypatch.setattr("swift_kd_plugin.data.build.logger.warning", said.append)
    good, misread = ({"query": "q", "response": "a"} | more for more in ({}, {"weight": 0}))
    write_json_lines(tmp_path / "rows.jsonl", [{"query": 5}, good, misread, misread, {"query": 6}, good])
    (tmp_path / "data.yaml").write_text("all: {type: rows, source: rows.jsonl}")
    stream = iter(Builder(tmp_path / "store").stream(read_data_yaml(tmp_path / "data.yaml")["all"]))
    next(stream)
    assert [line.partition(",")[0] for line in said] == ["left out: format"]
    next(stream)
    assert said[1].startswith("note: the column 'weight', which is not read, first rows.jsonl, line 3")
    assert len(list(stream)) == 2
    assert any(line.startswith("left out: 2 x format") for line in said[2:])


def test_all_rows_that_cannot_be_used_are_named_at_once(tmp_path):
    bad = {"messages": [{"role": "assistant", "content": "a"}]}
    write_json_lines(tmp_path / "r.jsonl", [bad, {"query": "q", "response": "a"}, bad, bad])
    (tmp_path / "data.yaml").write_text(
        "r: {type: rows, source: r.jsonl}\nt: {type: rows, source: r.jsonl, thought: cot}\n"
        "d: {type: rows, source: r.jsonl, bad_rows: drop}\ne: {type: rows, source: r.jsonl, bad_rows: error}\n"
    )
    said = r"r.jsonl, line 1 cannot be used: .* \(3 rows cannot: r.jsonl 1, 3-4\); mend them"
    for name in ("r", "t"):  # t has no thoughts either, which is said when its rows can be used
        with pytest.raises(KDError, match=said):
            build(tmp_path, name, strict=True)
    assert not list((tmp_path / "store").glob("*.arrow"))
    assert len(build(tmp_path, "d", strict=True)[0]) == 1
    with pytest.raises(KDError, match=said):
        build(tmp_path, "e")
    assert len(build(tmp_path, "e", tolerant=True)[0]) == 1


def test_a_stream_ends_early_where_the_column_of_thoughts_is_misspelt(tmp_path):
    rows = [{"query": "q", "response": "a", "reasoning": "hm"}] * (ANSWERS_SEEN + 500)
    write_json_lines(tmp_path / "r.jsonl", rows)
    (tmp_path / "data.yaml").write_text("r: {type: rows, source: r.jsonl, thought: reasonin}\n")
    stream = iter(Builder(tmp_path / "store").stream(read_data_yaml(tmp_path / "data.yaml")["r"]))
    read = 0
    with pytest.raises(KDError, match=r"column 'reasonin' \(did you mean 'reasoning'\?\), which is to hold"):  # noqa: PT012
        for _ in stream:
            read += 1
    assert read < ANSWERS_SEEN
