"""Which responses are kept, by what can be seen of a response alone."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.errors import KDError

NGRAM = 4
HAN, KANA, HANGUL = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff", r"\u3040-\u30ff", r"\u1100-\u11ff\uac00-\ud7af"
# By language, the letters that it is written in. Languages that share letters are not told apart.
SCRIPTS = {
    "zh": HAN,
    "ja": HAN + KANA,
    "ko": HANGUL,
    "en": r"A-Za-z\u00c0-\u024f",
    "ru": r"\u0400-\u04ff",
    "el": r"\u0370-\u03ff",
    "ar": r"\u0600-\u06ff",
    "he": r"\u0590-\u05ff",
    "hi": r"\u0900-\u097f",
    "th": r"\u0e00-\u0e7f",
}
# Shares of a text's letters: of the language's own at least, and of kana in Japanese (Chinese has fewer).
MOST_LETTERS, SOME_KANA = 0.5, 0.1
_UNIT = re.compile(rf"[{HAN}{KANA}]|[^\W_]+")


@dataclass(frozen=True)
class Filters:
    """What a response must be like; None leaves out a check.

    Args:
        min_length, max_length: of a response in tokens, its thought and end token included.
        max_repetition: greatest share of repeated 4-grams, see `repetition`.
        language: one of `SCRIPTS`.
        finish: "stop" takes no response that was cut off.

    Raises:
        KDError: the language is unknown.
    """

    min_length: int | None = None
    max_length: int | None = None
    max_repetition: float | None = None
    language: str | None = None
    finish: Literal["stop", "any"] = "stop"

    def __post_init__(self):
        if self.language is not None and self.language not in SCRIPTS:
            raise KDError(f"--language {self.language} is not known; languages are {', '.join(SCRIPTS)}.")

    def check_form(self, tokens: int, finish_reason: str) -> None:
        """Raises RowError for a length or an end that is not wanted."""
        if self.finish == "stop" and finish_reason != "stop":
            raise RowError("cut off", f"it was cut off after {tokens} tokens")
        if self.min_length is not None and tokens < self.min_length:
            raise RowError("too short", f"it has {tokens} tokens")
        if self.max_length is not None and tokens > self.max_length:
            raise RowError("too long", f"it has {tokens} tokens")

    def check_text(self, text: str, answer: str) -> None:
        """Raises RowError for a text that repeats itself, or an answer in another language."""
        if self.max_repetition is not None and (share := repetition(text)) > self.max_repetition:
            raise RowError("repeats itself", f"{share:.0%} of its {NGRAM}-grams are repeated")
        if self.language is not None and not is_written_in(answer, self.language):
            raise RowError("language", f"it is not written in {self.language}")


def units(text: str) -> list[str]:
    """A text's words; each Chinese character, and each of Japanese, is a word."""
    return _UNIT.findall(text)


def repetition(text: str) -> float:
    """The share of a text's 4-grams that stood in it before; of words, or of characters in Chinese and Japanese."""
    parts = units(text.casefold())
    grams = list(zip(*(parts[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_written_in(text: str, language: str) -> bool:
    """Whether at least half of a text's letters are the language's own; a text without letters is in every language.

    Japanese has a tenth of kana among its letters at least, and Chinese less than that.
    """
    letters = [letter for letter in text if unicodedata.category(letter)[0] == "L"]
    if not letters:
        return True
    share = len(re.findall(f"[{SCRIPTS[language]}]", "".join(letters))) / len(letters)
    kana = len(re.findall(f"[{KANA}]", "".join(letters))) / len(letters)
    if language in ("zh", "ja") and (kana >= SOME_KANA) != (language == "ja"):
        return False
    return share >= MOST_LETTERS
