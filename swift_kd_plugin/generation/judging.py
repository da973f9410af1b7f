"""Which samples of a prompt become rows: what is seen of each, what a verifier says, and a choice among them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from swift_kd_plugin.data.rows import Row, RowError
from swift_kd_plugin.data.think_block import split_thought
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.filters import Filters
from swift_kd_plugin.generation.tasks import PromptTask, write_response
from swift_kd_plugin.generation.verifiers import Gold, Scorer, VerifierError, extract

Select = Literal["all", "first_pass", "best", "majority"]


@dataclass(frozen=True)
class Sample:
    """A response as it is stored.

    Args:
        tokens: that were sampled.
        score: the verifier's; None as long as it was not asked.
        failure: why the verifier has no score.
    """

    text: str
    tokens: int
    finish_reason: str
    score: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A row, or why a sample makes none."""

    sample: Sample
    row: Row | None = None
    error: RowError | None = None


@dataclass(frozen=True)
class Judge:
    """Judges the samples of one prompt at a time.

    Args:
        scorer: the verifier, or None.
        reject_errors: a verifier that fails refuses the sample; else its error is raised.
        min_score: a score from which a sample passes.
        select: which of the samples that pass are taken.
        vote: how a majority reads the answer in a response: exact, numeric or regex.
    """

    filters: Filters = field(default_factory=Filters)
    scorer: Scorer | None = None
    reject_errors: bool = False
    min_score: float = 0.5
    select: Select = "all"
    vote: str = "exact"
    gold: Gold = field(default_factory=Gold)

    def __post_init__(self):
        if self.select == "best" and self.scorer is None:
            raise KDError("--select best takes the sample with the highest score; give a --verifier.")

    def score(self, task: PromptTask, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with scores where they are needed. Raises VerifierError."""
        if self.scorer is None:
            return list(samples)
        return [self._scored(task, sample) for sample in samples]

    def _scored(self, task: PromptTask, sample: Sample) -> Sample:
        if sample.score is not None or sample.failure is not None or self._seen(task, sample).error:
            return sample
        try:
            return replace(sample, score=self.scorer.score(task.row, sample.text))
        except VerifierError as error:
            if not self.reject_errors:
                raise
            cause = error.__cause__
            return replace(sample, failure=f"{type(cause).__name__}: {cause}")

    def examine(self, task: PromptTask, samples: Sequence[Sample]) -> list[Verdict]:
        """A verdict for each scored sample, in order."""
        verdicts = [self._seen(task, sample) for sample in samples]
        if self.select == "majority":
            return [self._passed(verdict) for verdict in self._only(verdicts, self._elected(verdicts))]
        verdicts = [self._passed(verdict) for verdict in verdicts]
        passing = [number for number, verdict in enumerate(verdicts) if verdict.row is not None]
        if self.select == "all" or not passing:
            return verdicts
        best = max(passing, key=lambda number: samples[number].score) if self.select == "best" else passing[0]
        return self._only(verdicts, best)

    def _seen(self, task: PromptTask, sample: Sample) -> Verdict:
        """What can be told without a verifier."""
        try:
            self.filters.check_form(sample.tokens, sample.finish_reason)
            row = write_response(task, sample.text)
            self.filters.check_text(sample.text, split_thought(sample.text)[1])
        except RowError as error:
            return Verdict(sample, error=error)
        return Verdict(sample, row)

    def _passed(self, verdict: Verdict) -> Verdict:
        if verdict.row is None or self.scorer is None:
            return verdict
        if verdict.sample.failure is not None:
            return replace(verdict, row=None, error=RowError("verifier error", verdict.sample.failure))
        if verdict.sample.score < self.min_score:
            error = RowError("fails the verifier", f"{self.scorer.name} gives it {verdict.sample.score:g}")
            return replace(verdict, row=None, error=error)
        return verdict

    def _elected(self, verdicts: list[Verdict]) -> int | None:
        """The first sample with the answer that most samples give; of two such answers the earlier one."""
        answers = {
            number: extract(self.vote, verdict.sample.text, self.gold)
            for number, verdict in enumerate(verdicts)
            if verdict.row is not None
        }
        votes = Counter(answer for answer in answers.values() if answer is not None)
        if not votes:
            return None
        winner = votes.most_common(1)[0][0]
        return next(number for number, answer in answers.items() if answer == winner)

    def _only(self, verdicts: list[Verdict], chosen: int | None) -> list[Verdict]:
        error = RowError("not selected", f"another sample of its prompt is taken (--select {self.select})")
        if chosen is None:
            error = RowError("not selected", f"no answer is found in it (--vote {self.vote})")
        return [
            replace(verdict, row=None, error=error) if verdict.row is not None and number != chosen else verdict
            for number, verdict in enumerate(verdicts)
        ]
