"""Writes the rows of examples/data: training pairs, thoughts, other books, conversations and held-out questions. The
same seed, the same bytes.

python -m scripts.dev.make_example_data [--out FOLDER]
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from examples.quickstart.code_book import (
    BOOK_LETTERS,
    BOOK_SEED,
    TASKS,
    Book,
    Question,
    answer,
    book_text,
    make_split,
    prompt,
    random_book,
    random_question,
    thought,
)

REPO = Path(__file__).resolve().parents[2]
OTHER_BOOKS = 128
CONVERSATIONS = 128


def row_id(part: str, question: Question) -> str:
    """A readable, unique id: "train-say-LEEN"."""
    return f"{part}-{question.task}-{question.letters}"


def experienced_row(book: Book, question: Question) -> dict[str, Any]:
    """The question with the book in view, and the answer found there."""
    response = {"role": "assistant", "content": answer(book, question)}
    return {"id": row_id("train", question), "messages": [*prompt(question, book), response]}


def bare_row(question: Question) -> dict[str, Any]:
    """The same question as the student will meet it."""
    return {"id": row_id("train", question), "messages": prompt(question)}


def thoughtful_row(book: Book, question: Question) -> dict[str, Any]:
    """The question with the book in a column of its own, and an answer that looks the letters up first."""
    response = f"<think>\n{thought(book, question)}\n</think>\n\n{answer(book, question)}"
    columns = {"query": question.text, "experience": book_text(book), "response": response}
    return {"id": row_id("train", question), **columns}


def other_book_row(random_state: random.Random, task: str) -> dict[str, Any]:
    """An alpaca row with another book in view, so that a student does not forget how to read one."""
    book = random_book(random_state, BOOK_LETTERS)
    question = random_question(random_state, book, task)
    return {"system": book_text(book), "instruction": question.text, "input": "", "output": answer(book, question)}


def conversation_row(random_state: random.Random) -> dict[str, Any]:
    """One book and a question of each task about it, as MiniMind's data have it."""
    book = random_book(random_state, BOOK_LETTERS)
    turns = [{"role": "system", "content": book_text(book)}]
    for task in TASKS:
        question = random_question(random_state, book, task)
        turns += [*prompt(question), {"role": "assistant", "content": answer(book, question)}]
    return {"conversations": turns}


def held_out_row(book: Book, question: Question) -> dict[str, Any]:
    """A question for evaluation, in both views, with its gold answer."""
    return {
        "id": row_id("test", question),
        "task": question.task,
        "messages": prompt(question),
        "teacher_messages": prompt(question, book),
        "gold": answer(book, question),
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = REPO / "examples" / "data",
    seed: Annotated[int, typer.Option(help="Seed of the code book and of the questions.")] = BOOK_SEED,
) -> None:
    """Write exp.jsonl, noexp.jsonl, thoughts.jsonl, alpaca.json, conversations.jsonl and test.jsonl."""
    split = make_split(seed)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "exp.jsonl", (experienced_row(split.book, question) for question in split.train))
    write_rows(out / "noexp.jsonl", (bare_row(question) for question in split.train))
    write_rows(out / "thoughts.jsonl", (thoughtful_row(split.book, question) for question in split.train))
    state = random.Random(seed + 1)
    others = [other_book_row(state, TASKS[number % len(TASKS)]) for number in range(OTHER_BOOKS)]
    (out / "alpaca.json").write_text(json.dumps(others, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    state = random.Random(seed + 2)
    write_rows(out / "conversations.jsonl", (conversation_row(state) for _ in range(CONVERSATIONS)))
    write_rows(out / "test.jsonl", (held_out_row(split.book, question) for question in split.test))
    print(f"{len(split.train)} training pairs and {len(split.test)} held-out questions are in {out}")


if __name__ == "__main__":
    typer.run(main)
