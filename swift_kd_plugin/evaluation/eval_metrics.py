"""What is measured of an answer. A figure is made of sums over rows, so that it has an interval and parts by tag."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from swift_kd_plugin.data.rows import Row
from swift_kd_plugin.evaluation.intervals import bootstrap, wilson
from swift_kd_plugin.evaluation.likelihood import Likelihood
from swift_kd_plugin.evaluation.texts import BLEU_TOKENIZERS, Language, UnitTokenizer, choose_language
from swift_kd_plugin.generation.verifiers import Gold, Scorer, find_number

# A score from which an answer counts as right where it is marked.
RIGHT = 0.5
SAID = {
    "exact": "share of answers equal to the gold answer but for case, width and white space",
    "numeric": "share of answers whose last (or boxed) number is the gold answer's, to a millionth",
    "regex": "share of answers in which --pattern finds the gold answer",
}


@dataclass(frozen=True)
class Item:
    """A row as one cell answered it.

    Args:
        number: of the row, from 0.
        gold: the gold answer without its thought.
        response: the whole text; None if the prompt was not answered.
        answer: the same without its thought, of which nothing counts.
        likelihood: of the gold response.
    """

    number: int
    row: Row
    gold: str | None
    response: str | None = None
    answer: str | None = None
    likelihood: Likelihood | None = None


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval, of `n` rows."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Quantity:
    """How sums over rows become a figure.

    Args:
        value: the figure for sums [k].
        is_share: if each row adds 0 or 1, it has Wilson's interval.
    """

    value: Callable[[np.ndarray], float]
    is_share: bool = False

    def figure(self, rows: Sequence[Sequence[float]], seed: int) -> Figure | None:
        """None if there are no rows."""
        if not rows:
            return None
        added = np.array(rows, dtype=np.float64)
        sums = added.sum(0)
        if self.is_share and np.isin(added[:, 0], (0, 1)).all():
            low, high = wilson(sums[0], len(rows))
        else:
            low, high = bootstrap(added, self.value, seed)
        return Figure(float(self.value(sums)), low, high, len(rows))


class Metric(ABC):
    """One value of --metric; `name` is that value, and `quantities` are its figures by name."""

    name: str
    quantities: dict[str, Quantity]
    needs_gold = True

    @abstractmethod
    def rows(self, item: Item) -> dict[str, Sequence[float]] | None:
        """What a row adds to the sums of each quantity; None if it cannot be measured."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What it is, and what another needs to know to measure the same."""

    def can_use(self, gold: str) -> bool:
        """Whether answers can be compared with a gold answer."""
        return True

    def prepare(self, golds: Sequence[str]) -> None:  # noqa: B027 (most need nothing)
        """Told the gold answers before the first row."""

    def scores(self, added: dict[str, Sequence[float]]) -> dict[str, float]:
        """What a row's own line says, of what `rows` returned."""
        return {name: float(self.quantities[name].value(np.array(sums))) for name, sums in added.items()}


def _mean(sums: np.ndarray) -> float:
    return sums[0] / sums[1]


class Rightness(Metric):
    """A verifier's score: the built-in ones say 1 or 0, and a user's function what it likes."""

    def __init__(self, scorer: Scorer):
        self.name, self.scorer = scorer.name, scorer
        self.needs_gold = scorer.function is None
        self.quantities = {self.name: Quantity(_mean, is_share=True)}

    def rows(self, item: Item) -> dict[str, Sequence[float]] | None:
        if item.response is None or (self.needs_gold and (item.gold is None or not self.can_use(item.gold))):
            return None
        text = item.response if self.scorer.function else item.answer
        return {self.name: (self.scorer.score(item.row, text), 1)}

    def can_use(self, gold: str) -> bool:
        return self.name != "numeric" or find_number(gold) is not None

    def describe(self) -> dict[str, Any]:
        text = SAID.get(self.name, "mean of what the function says (the share of right answers, if it says 0 or 1)")
        return {"what": text, **({"pattern": self.scorer.gold.pattern} if self.name == "regex" else {})}


class Bleu(Metric):
    """Corpus BLEU by sacrebleu, 0 to 100."""

    name = "bleu"

    def __init__(self, language: Language):
        self.wanted = language
        self.quantities = {"bleu": Quantity(self._value)}

    def prepare(self, golds: Sequence[str]) -> None:
        from sacrebleu.metrics import BLEU

        self.language, self.why = choose_language(self.wanted, golds)
        tokenizer = BLEU_TOKENIZERS[self.language]
        self.corpus = BLEU(tokenize=tokenizer)
        # The same counts; without effective_order it warns that a sentence's BLEU is none.
        self.sentence = BLEU(tokenize=tokenizer, effective_order=True)
        self.corpus.corpus_score(["-"], [["-"]])  # only then it knows its signature
        self.signature = str(self.corpus.get_signature())
        self.is_defined = any(self.sentence.sentence_score(gold, [gold]).totals[-1] for gold in golds)

    def rows(self, item: Item) -> dict[str, Sequence[float]] | None:
        if item.answer is None or item.gold is None:
            return None
        bleu = self.sentence.sentence_score(item.answer, [item.gold])
        return {"bleu": (bleu.sys_len, bleu.ref_len, *bleu.counts, *bleu.totals)}

    def scores(self, added: dict[str, Sequence[float]]) -> dict[str, float]:
        """None: a row has no corpus."""
        return {}

    def _value(self, sums: np.ndarray) -> float:
        words, wanted, *counts = (int(count) for count in sums)
        order, settings = self.corpus.max_ngram_order, self.corpus
        bleu = settings.compute_bleu(
            counts[:order], counts[order:], words, wanted, settings.smooth_method, settings.smooth_value
        )
        return bleu.score

    def describe(self) -> dict[str, Any]:
        return {
            "what": "corpus BLEU of the answers without their thoughts, 0 to 100, by sacrebleu",
            "signature": self.signature,
            "tokenizer": f"{BLEU_TOKENIZERS[self.language]} for {self.language} ({self.why})",
            **({} if self.is_defined else {"note": "no gold answer has the four tokens that it takes, so it is 0"}),
        }


class Rouge(Metric):
    """ROUGE-1, -2 and -L by rouge-score, F1 from 0 to 1, the mean over rows."""

    name = "rouge"
    types = ("rouge1", "rouge2", "rougeL")

    def __init__(self):
        self.quantities = {name: Quantity(_mean) for name in self.types}

    def prepare(self, golds: Sequence[str]) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self.scorer = RougeScorer(list(self.types), tokenizer=UnitTokenizer())

    def rows(self, item: Item) -> dict[str, Sequence[float]] | None:
        if item.answer is None or item.gold is None:
            return None
        return {name: (score.fmeasure, 1) for name, score in self.scorer.score(item.gold, item.answer).items()}

    def describe(self) -> dict[str, Any]:
        return {
            "what": "mean F1 of the answers without their thoughts, 0 to 1, by rouge-score",
            "version": version("rouge-score"),
            "tokenizer": "words in lower case, each Chinese or Japanese character a word; no stemming",
        }


class Perplexity(Metric):
    """How probable the gold response is: exp(mean negative log-likelihood), and the same per character."""

    name = "ppl"

    def __init__(self):
        self.quantities = {
            "ppl": Quantity(lambda sums: math.exp(min(_mean(sums), 700.0))),  # exp(710) is no float
            "nll_per_char": Quantity(_mean),
        }

    def rows(self, item: Item) -> dict[str, Sequence[float]] | None:
        likelihood = item.likelihood
        if likelihood is None or not likelihood.characters:
            return None
        return {"ppl": (likelihood.nll, likelihood.tokens), "nll_per_char": (likelihood.nll, likelihood.characters)}

    def describe(self) -> dict[str, Any]:
        return {
            "what": "exp of the mean negative log-likelihood of the gold response's tokens, behind the prompt of the "
            "cell; nll_per_char is the sum over the characters, in nats, which compares models of other tokenizers",
            "tokens": "the gold response, with its think block unless the mode is non-thinking, and the token that "
            "ends the turn, without the line break behind it, which training counts; not of models behind a server",
        }


OTHERS = {
    "bleu": lambda options: Bleu(options.text_language),
    "rouge": lambda _: Rouge(),
    "ppl": lambda _: Perplexity(),
}


def find_metrics(options: Any, gold: Gold) -> list[Metric]:
    """The metrics of --metric. Raises KDError for one that does not exist or cannot be imported."""
    names = list(dict.fromkeys(options.metric))
    return [
        OTHERS[name](options) if name in OTHERS else Rightness(Scorer.find(name, gold, "--metric", tuple(OTHERS)))
        for name in names
    ]
