"""Writes examples/data: the quickstart's training pairs and its held-out questions. The same seed, the same bytes.

python scripts/dev/make_example_data.py [--out FOLDER]
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "examples" / "quickstart"))

from code_book import BOOK_SEED, Book, Question, answer, make_split, prompt  # noqa: E402


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
    """Write exp.jsonl, noexp.jsonl and test.jsonl."""
    split = make_split(seed)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "exp.jsonl", (experienced_row(split.book, question) for question in split.train))
    write_rows(out / "noexp.jsonl", (bare_row(question) for question in split.train))
    write_rows(out / "test.jsonl", (held_out_row(split.book, question) for question in split.test))
    print(f"{len(split.train)} training pairs and {len(split.test)} held-out questions are in {out}")


if __name__ == "__main__":
    typer.run(main)
