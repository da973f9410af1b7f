"""The quickstart's task: a code book that gives letters their digits, and questions that can only be answered with it.

The experience is the book as a system prompt, "N2 X9 A8 ...". "say LEEN" asks for the digit of every letter
("5332"), "sum LU" for the sum of two of them, modulo ten. Without the book only a guess is possible: one in ten for
"sum", one in ten thousand for "say". This file is the one definition of the task; pretraining, data making, training
and evaluation all use it. It needs the standard library only.
"""

import random
from dataclasses import dataclass
from typing import Literal

KEYS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = list("0123456789")
LETTERS_ASKED = {"say": 4, "sum": 2}
TASKS = tuple(LETTERS_ASKED)

BOOK_SEED = 12345
BOOK_LETTERS = 16
TRAIN_QUESTIONS = {"say": 256, "sum": 128}
TEST_SAY_QUESTIONS = 256

Task = Literal["say", "sum"]
Book = dict[str, int]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """One question: the task and the letters it asks for."""

    task: Task
    letters: str

    @property
    def text(self) -> str:
        return f"{self.task} {self.letters}"


@dataclass(frozen=True)
class Split:
    """A fixed book with disjoint training and held-out questions."""

    book: Book
    train: list[Question]
    test: list[Question]


def random_book(rng: random.Random, size: int) -> Book:
    """Gives `size` random letters a random digit each."""
    return {key: rng.randrange(10) for key in rng.sample(KEYS, size)}


def book_text(book: Book) -> str:
    """The experience as it stands in the system prompt."""
    return " ".join(f"{letter}{digit}" for letter, digit in book.items())


def random_question(rng: random.Random, book: Book, task: Task) -> Question:
    """A question over the letters of `book`; a letter may be asked twice."""
    letters = list(book)
    return Question(task, "".join(rng.choice(letters) for _ in range(LETTERS_ASKED[task])))


def answer(book: Book, question: Question) -> str:
    """The gold answer."""
    digits = [book[letter] for letter in question.letters]
    return "".join(map(str, digits)) if question.task == "say" else str(sum(digits) % 10)


def thought(book: Book, question: Question) -> str:
    """What a thinking model writes between <think> and </think>: the entries it looks up."""
    return "".join(f"{letter}{book[letter]}" for letter in question.letters)


def prompt(question: Question, book: Book | None = None) -> Messages:
    """Chat messages that ask `question`, with the book in the system prompt or without it."""
    system = [{"role": "system", "content": book_text(book)}] if book else []
    return [*system, {"role": "user", "content": question.text}]


def final_answer(text: str) -> str:
    """What counts of a generated text: all that follows the thought."""
    return text.split("</think>")[-1].strip()


def make_split(seed: int = BOOK_SEED) -> Split:
    """The book of this seed, 256 "say" and 128 "sum" questions to train on, as many others to test on."""
    rng = random.Random(seed)
    book = random_book(rng, BOOK_LETTERS)
    letters = list(book)
    say: set[str] = set()
    while len(say) < TRAIN_QUESTIONS["say"] + TEST_SAY_QUESTIONS:
        say.add(random_question(rng, book, "say").letters)
    questions: dict[Task, list[str]] = {"say": sorted(say), "sum": [x + y for x in letters for y in letters]}
    train, test = [], []
    for task in TASKS:
        rng.shuffle(questions[task])
        cut = TRAIN_QUESTIONS[task]
        train += [Question(task, asked) for asked in questions[task][:cut]]
        test += [Question(task, asked) for asked in questions[task][cut:]]
    return Split(book, train, test)
