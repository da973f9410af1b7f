"""The committed data are what the script writes; training and test are disjoint; the student never sees the book."""

import re
from pathlib import Path

import pytest

from examples.quickstart.code_book import (
    BOOK_LETTERS,
    BOOK_SEED,
    Question,
    answer,
    book_text,
    final_answer,
    make_split,
    prompt,
    thought,
)
from examples.quickstart.evaluate import read_rows
from examples.quickstart.quickstart import read_pairs
from scripts.dev.make_example_data import main as make_example_data
from tests.paths import DATA

BOOK_ENTRY = re.compile(r"[A-Z][0-9]")
BOOK = {"A": 7, "B": 5}


def test_script_reproduces_the_data_byte_for_byte(tmp_path: Path):
    make_example_data(out=tmp_path, seed=BOOK_SEED)
    written = sorted(path.name for path in tmp_path.iterdir())
    names = ["alpaca.json", "conversations.jsonl", "exp.jsonl", "noexp.jsonl", "test.jsonl", "thoughts.jsonl"]
    assert written == names
    for name in written:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


@pytest.mark.parametrize("seed", [BOOK_SEED, 1, 2])
def test_training_and_test_questions_are_disjoint(seed: int):
    split = make_split(seed)
    assert len(split.book) == BOOK_LETTERS
    for part in (split.train, split.test):
        assert [sum(question.task == task for question in part) for task in ("say", "sum")] == [256, 128]
    assert len(set(split.train) | set(split.test)) == 2 * (256 + 128)


def test_committed_questions_are_disjoint():
    asked = [
        {row["messages"][-1]["content"] for row in read_rows(DATA / name)} for name in ("noexp.jsonl", "test.jsonl")
    ]
    assert len(asked[0]) == len(asked[1]) == 384
    assert not asked[0] & asked[1]


def test_pairs_show_the_book_to_the_teacher_alone():
    book = book_text(make_split().book)
    rows = read_pairs()
    assert len(rows) == 384
    for row in rows:
        assert row["teacher_messages"][0] == {"role": "system", "content": book}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0] == row["teacher_messages"][-1]
        assert not any(BOOK_ENTRY.search(message["content"]) for message in row["messages"])


def test_held_out_rows_hide_book_and_answer_from_the_student():
    for row in read_rows(DATA / "test.jsonl"):
        assert [message["role"] for message in row["messages"]] == ["user"]
        assert not BOOK_ENTRY.search(row["messages"][0]["content"])
        assert row["gold"] not in row["messages"][0]["content"]


def test_answers():
    assert answer(BOOK, Question("say", "ABBA")) == "7557"
    assert answer(BOOK, Question("sum", "AB")) == "2"
    assert thought(BOOK, Question("sum", "AB")) == "A7B5"
    assert final_answer("<think>\nA7B5\n</think>\n\n2") == final_answer("2") == "2"
    assert prompt(Question("sum", "AB"), BOOK) == [
        {"role": "system", "content": "A7 B5"},
        {"role": "user", "content": "sum AB"},
    ]
