"""Is a response right? Built-in comparisons with a gold answer, or a user's function."""

import importlib
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from math import isfinite
from typing import Any

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.export import public_row
from swift_kd_plugin.data.gold_answers import gold_text
from swift_kd_plugin.data.rows import Place, Row, response_text
from swift_kd_plugin.data.think_block import split_thought
from swift_kd_plugin.errors import KDError, named_line

# (row as it stands in a file, response) -> whether it is right, or how good it is
Verifier = Callable[[dict[str, Any], str], bool | float]

# Not within a word of Latin letters; a sign behind a number is a minus between two.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?"
)
_MARK = re.compile(r"\\boxed\s*\{|####")
_FRACTION = re.compile(r"(?:(?<!\d)(\d+)\s*)?\\[cdt]?frac(?:\{([^{}]*)\}\{([^{}]*)\}|\s*(\d)\s*(\d))")
_POWER_OF_TEN = re.compile(r"(?:(?<!\s)\s+)?(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))")
_UNIT = re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]*\}(?:\s*\^\s*(?:\{[^{}]*\}|\d))?")
_SPACING = re.compile(r"\\[,;:! ]|\{,\}(?=\d{3})")
_EXPONENT = re.compile(r"[eE][-+]?0*\d{4,}")  # larger than any answer, and than what can be computed with
MINUS = str.maketrans("\N{MINUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{EN DASH}", "---")
MOST_DIGITS = 50_000  # reading them takes a quarter of a second, and its square for more
CLOSE_TO = Fraction(1, 10**6)


class VerifierError(KDError):
    """A verifier raised or returned something that is no score; the message names it, the row and the error."""


@dataclass(frozen=True)
class Gold:
    """Where the right answer of a row stands.

    Args:
        column: its column; None: the response that the row has in the dataset.
        pattern: what finds the answer in a response, its group 1 or the whole match; of several matches the last.
    """

    column: str | None = None
    pattern: str | None = None

    def of(self, row: Row) -> str | None:
        """The right answer, without a thought."""
        response = self.response_of(row)
        return None if response is None else split_thought(response)[1]

    def response_of(self, row: Row) -> str | None:
        """The same with the thought that it has."""
        if self.column is None:
            return response_text(row)
        return gold_text(row.get("columns", {}).get(self.column))


def normalise_answer(text: str) -> str:
    """Without regard to case, width and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def find_number(text: str) -> Fraction | None:
    r"""The last number of a text, or behind the last ####; of what stands in the last \boxed{} the only one, as of an
    expression such as 5\sqrt{2} no number is the answer.

    None also for what is written as a number and is none: a fraction over 0, a power of ten beyond 999.
    """
    marked, is_boxed = _marked(text)
    marked = _POWER_OF_TEN.sub(lambda match: f"e{match[1] or match[2]}", marked.translate(MINUS))
    marked = _FRACTION.sub(_as_division, _UNIT.sub(" ", _SPACING.sub("", marked)))
    numbers = _NUMBER.findall(marked)
    if (
        not numbers
        or (is_boxed and len(numbers) > 1)
        or _EXPONENT.search(numbers[-1])
        or len(numbers[-1]) > MOST_DIGITS
    ):
        return None
    above, slash, below = numbers[-1].replace(",", "").partition("/")
    # By way of Decimal, which reads any number of digits; int refuses more than 4,300.
    divisor = Fraction(Decimal(below.strip())) if slash else Fraction(1)
    return Fraction(Decimal(above.strip())) / divisor if divisor else None


def _marked(text: str) -> tuple[str, bool]:
    r"""What stands in the last \boxed{} or behind the last ####, or the whole text; and whether it is boxed."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return text, False
    rest = text[marks[-1].end() :]
    if marks[-1][0] == "####":
        return rest.lstrip().partition("\n")[0], False
    depth = 1
    for index, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return rest[:index], True
    return rest, True


def _as_division(match: re.Match) -> str:
    r"""2\frac{1}{2} as 5/2, \frac{3}{-4} as -3/4."""
    whole, above, below = match[1], (match[2] or match[4]).strip(), (match[3] or match[5]).strip()
    if below.startswith("-"):
        above, below = above.removeprefix("-") if above.startswith("-") else f"-{above}", below[1:]
    if whole and above.isdecimal() and below.isdecimal():
        digits = len(whole) + len(above) + len(below)
        if digits > MOST_DIGITS:
            return "9" * digits  # no number either
        with localcontext(prec=digits + 1):  # exact
            return f"{Decimal(whole) * Decimal(below) + Decimal(above):f}/{below}"
    return f"{whole or ''} {above}/{below}"


def find_pattern(text: str, pattern: str) -> str | None:
    """Group 1 of the last match, or the whole match."""
    matches = list(re.finditer(pattern, text))
    return None if not matches else matches[-1][1 if matches[-1].re.groups else 0]


def extract(kind: str, text: str, gold: Gold) -> Any:
    """The answer in a response, of which equal ones are counted by a majority; None if there is none."""
    answer = split_thought(text)[1]
    if kind == "numeric":
        return find_number(answer)
    if kind == "regex" and gold.pattern is not None:
        excerpt = find_pattern(answer, gold.pattern)
        return None if excerpt is None else normalise_answer(excerpt)
    return normalise_answer(answer)


def is_exact(response: str, gold: str, pattern: str | None) -> bool:
    return normalise_answer(response) == normalise_answer(gold)


def is_same_number(response: str, gold: str, pattern: str | None) -> bool:
    number, wanted = find_number(response), find_number(gold)
    if None in (number, wanted) or number == wanted:
        return number is not None and number == wanted
    both_whole = number.denominator == wanted.denominator == 1
    return not both_whole and abs(number - wanted) <= CLOSE_TO * abs(wanted)


def matches(response: str, gold: str, pattern: str | None) -> bool:
    """The pattern finds the gold answer; without one, the gold answer is the pattern."""
    if pattern is None:
        return re.search(gold, response) is not None
    excerpt = find_pattern(response, pattern)
    return excerpt is not None and normalise_answer(excerpt) == normalise_answer(gold)


BUILT_IN = {"exact": is_exact, "numeric": is_same_number, "regex": matches}


@dataclass(frozen=True)
class Scorer:
    """Scores responses.

    Args:
        name: a built-in one, or module:function.
        gold: for the built-in ones.
        function: the user's.
        instead: what else can be done where it fails, for the sentence of that error.
    """

    name: str
    gold: Gold
    function: Verifier | None = None
    instead: str = ", or give --verifier_errors reject"

    @classmethod
    def find(cls, name: str, gold: Gold, flag: str = "--verifier", also: Sequence[str] = ()) -> "Scorer":
        """A verifier by its name.

        Args:
            flag: that names it.
            also: what else the flag takes.

        Raises:
            KDError: there is no such verifier, or the pattern is none.
        """
        try:
            re.compile(gold.pattern or "")
        except re.error as error:
            raise KDError(f"--pattern {gold.pattern!r} is no regular expression: {error}.") from error
        function = None if name in BUILT_IN else _find_function(name, flag, (*BUILT_IN, *also))
        return cls(name, gold, function, cls.instead if flag == "--verifier" else "")

    def score(self, row: Row, response: str) -> float:
        """1 and 0 for right and wrong, or what the user's function says.

        Args:
            row: of the dataset.
            response: the whole text; built-in verifiers compare its answer without the thought.

        Raises:
            VerifierError: the function raised or returned no score, or the row has no gold answer.
        """
        try:
            if self.function is None:
                gold = self.gold.of(row)
                if gold is None:
                    where = f"column {self.gold.column!r}" if self.gold.column else "response to compare with"
                    raise ValueError(f"the row has no {where}")
                return float(BUILT_IN[self.name](split_thought(response)[1], gold, self.gold.pattern))
            score = self.function(public_row(row), response)
            if not isinstance(score, (bool, int, float)) or not isfinite(score):
                raise TypeError(f"it returned {score!r}, which is neither a bool nor a number")
            return float(score)
        except Exception as error:  # of any kind: it is the user's code
            raise VerifierError(
                f"The verifier {self.name} failed on {Place.of(row)}: {named_line(error)}; mend it and start again, "
                f"which goes on from here{self.instead}."
            ) from error


def _find_function(name: str, flag: str, known: Sequence[str]) -> Verifier:
    module, colon, function = name.partition(":")
    if not colon:
        raise KDError(f"{flag} {name} is not known{suggest(name, known)}; give {', '.join(known)} or module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        verifier = getattr(importlib.import_module(module), function)
    except Exception as error:  # of any kind: it is the user's code
        raise KDError(
            f"{flag} {name} cannot be imported from here or from Python's path ({named_line(error)}); "
            "give module:function."
        ) from error
    if not callable(verifier):
        raise KDError(f"{flag} {name} is no function.")
    return verifier
