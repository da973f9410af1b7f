"""How texts are cut into tokens for BLEU and ROUGE, so that Chinese is compared too."""

import re
from collections.abc import Iterable
from typing import Literal

from swift_kd_plugin.generation.filters import HAN, HANGUL, KANA, SOME_KANA, units

Language = Literal["auto", "en", "zh", "ja", "ko"]
# sacrebleu's tokenizers. Its ja-mecab and ko-mecab need packages of their own.
BLEU_TOKENIZERS = {"en": "13a", "zh": "zh", "ja": "char", "ko": "char"}


class UnitTokenizer:
    """For rouge-score, whose own tokenizer drops every letter but a to z: two equal Chinese texts would have ROUGE 0.

    Words in lower case as there, in any script; each Chinese character, and each of Japanese, is a word.
    """

    def tokenize(self, text: str) -> list[str]:
        return units(text.lower())


def choose_language(wanted: Language, texts: Iterable[str]) -> tuple[str, str]:
    """The language whose tokenizer cuts texts for BLEU, and why.

    Args:
        texts: the gold answers, which tell it if `wanted` is auto.
    """
    if wanted != "auto":
        return wanted, f"--text_language {wanted}"
    counts = dict.fromkeys(("Chinese characters", "kana", "hangul"), 0)
    for text in texts:
        for name, letters in zip(counts, (HAN, KANA, HANGUL), strict=True):
            counts[name] += len(re.findall(f"[{letters}]", text))
    han, kana, hangul = counts.values()
    summary = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    if not summary:
        return "en", "the gold answers have no Chinese characters, kana or hangul"
    east_asian = "ja" if kana >= SOME_KANA * (han + kana) else "zh"
    language = "ko" if hangul > han + kana else east_asian
    return language, f"the gold answers have {summary}"
