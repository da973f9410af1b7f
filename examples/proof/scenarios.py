"""What is proven on which material: a book for each seed, its questions, and what the teacher sees of them.

Every row is written once; a scenario changes only what its teacher has in view. Validation and test questions are
disjoint from each other and from the training questions.
"""

import random
from dataclasses import dataclass
from typing import Any

from examples.quickstart.code_book import (
    BOOK_LETTERS,
    KEYS,
    TASKS,
    Book,
    Question,
    answer,
    prompt,
    random_book,
    random_question,
)

SEEDS = (0, 1, 2)
BOOK_SEED = 12345
TRAIN = {"say": 128, "sum": 128}
VALIDATION = {"say": 64, "sum": 32}
TEST = {"say": 256, "sum": 96}
# Sums take more steps to learn, and are the first to be forgotten.
SHOWN = {"say": 1, "sum": 2}
REPLAYED = {"say": 48, "sum": 144}
OTHER_TEST = {"say": 256, "sum": 256}
OTHER_VALIDATION = {"say": 64, "sum": 64}
OTHERS = (REPLAYED, OTHER_VALIDATION, OTHER_TEST)
THINKING = {"enable_thinking": True}
DIRECT = {"enable_thinking": False}
TRAINED = ("messages", "teacher_messages", "chat_template_kwargs", "teacher_chat_template_kwargs", "teacher_thought")

Row = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """A teacher.

    Args:
        letters: of its book.
        wrong: how many letters have another digit in the teacher's book than in the truth.
        thinks: it looks the letters up in a thought first; the student answers at once.
    """

    name: str
    letters: int = BOOK_LETTERS
    wrong: int = 0
    thinks: bool = False

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "_")


SCENARIOS = (
    Scenario("perfect"),
    Scenario("long book", letters=len(KEYS)),
    Scenario("one rule wrong", wrong=1),
    Scenario("thinking", letters=len(KEYS), thinks=True),
)


@dataclass(frozen=True)
class Material:
    """The rows of one scenario and seed; `train` has gold answers, `others` are questions on other books."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    others_validation: list[Row]
    others_test: list[Row]


def make_material(scenario: Scenario, seed: int) -> Material:
    """The same scenario and seed, the same rows."""
    state = random.Random(f"{BOOK_SEED} {seed} {scenario.letters}")
    book = random_book(state, scenario.letters)
    seen = dict(book)
    for letter in list(book)[: scenario.wrong]:
        seen[letter] = (book[letter] + 3) % 10
    parts = split_questions(state, book)
    rows = [[question_row(scenario, question, book, seen) for question in part] for part in parts]
    others = random.Random(f"{BOOK_SEED} {seed} others")
    other = [[other_row(others, task) for task in TASKS for _ in range(count[task])] for count in OTHERS]
    train = [row for row in rows[0] for _ in range(SHOWN[row["task"]])]
    return Material(train + other[0], rows[1], rows[2], other[1], other[2])


def split_questions(state: random.Random, book: Book) -> list[list[Question]]:
    """Training, validation and test questions over one book, without a question in two of them."""
    parts: list[list[Question]] = [[], [], []]
    for task in TASKS:
        counts = [TRAIN[task], VALIDATION[task], TEST[task]]
        letters: dict[str, None] = {}
        while len(letters) < sum(counts):
            letters[random_question(state, book, task).letters] = None
        asked = iter(letters)
        for part, count in zip(parts, counts, strict=True):
            part += [Question(task, next(asked)) for _ in range(count)]
    return parts


def question_row(scenario: Scenario, question: Question, book: Book, seen: Book) -> Row:
    """A question on the book to be internalised: the teacher sees a book, the student none.

    `gold` is the right answer, `taught` what the teacher's book says, `experience` the question behind the true book.
    """
    row = _row(question, book)
    row["teacher_messages"] = prompt(question, seen)
    row["experience"], row["taught"] = prompt(question, book), answer(seen, question)
    if scenario.thinks:
        row["teacher_chat_template_kwargs"] = THINKING
    return row


def other_row(state: random.Random, task: str) -> Row:
    """A question on a fresh book that both see, so that reading a book is not forgotten."""
    book = random_book(state, BOOK_LETTERS)
    question = random_question(state, book, task)
    row = _row(question, book)
    row["messages"] = [*prompt(question, book), row["messages"][-1]]
    return row


def to_train_on(row: Row) -> Row:
    """The columns that a training run reads."""
    return {name: row[name] for name in TRAINED if name in row}


def _row(question: Question, book: Book) -> Row:
    gold = answer(book, question)
    messages = [*prompt(question), {"role": "assistant", "content": gold}]
    return {"task": question.task, "gold": gold, "messages": messages, "chat_template_kwargs": DIRECT}
