"""What a run has made, as numbers and as a page that needs nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from swift_kd_plugin.data.row_report import Report, shorten
from swift_kd_plugin.data.rows import Place, RowError, text_of
from swift_kd_plugin.generation.judging import Verdict
from swift_kd_plugin.generation.shard_store import Record
from swift_kd_plugin.generation.tasks import PromptTask, shown_mode

SHOWN_TASKS = 12
SHOWN_TEXT = 2000


@dataclass
class Tally:
    """Counts of a run, in the order of its tasks.

    Args:
        seconds: that the engine worked, over all starts of the run.
        refused: samples by reason, and prompts that were not answered.
        lengths: tokens of the accepted responses by mode.
        by_source: prompts, samples and accepted rows of each source.
        shown: some prompts with their samples, for the page.
        input: what became of the rows of the datasets.
    """

    prompts: int = 0
    samples: int = 0
    accepted: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    refused: Report = field(default_factory=Report)
    finish: Counter = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    by_source: dict[str, Counter] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)
    input: Report = field(default_factory=Report)

    def start(self, task: PromptTask, record: Record) -> None:
        """Counts a prompt."""
        place = Place.of(task.row)
        self.prompts += 1
        self.skipped += record.skipped is not None
        self.samples += len(record.samples)
        self.prompt_tokens += record.prompt_tokens
        self.tokens += sum(sample.tokens for sample in record.samples)
        self.by_source.setdefault(place.source, Counter()).update(prompts=1, samples=len(record.samples))
        if record.refused is not None:
            self.refused.leave_out(RowError("prompt is not answered", record.refused), place)

    def count(self, task: PromptTask, verdict: Verdict) -> None:
        """Counts a sample."""
        self.finish[verdict.sample.finish_reason] += 1
        place = Place.of(task.row)
        if verdict.row is None:
            text = " ".join(verdict.sample.text.split())
            self.refused.leave_out(RowError(verdict.error.kind, f"{verdict.error}: {text}"), place)
            return
        self.accepted += 1
        self.by_source[place.source]["accepted"] += 1
        self.lengths.setdefault(shown_mode(task, verdict.row), []).append(verdict.sample.tokens)

    def show(self, task: PromptTask, verdicts: Sequence[Verdict]) -> None:
        """Keeps the first prompts for the page."""
        if len(self.shown) == SHOWN_TASKS:
            return
        prompt = task.prompt(0).messages
        self.shown.append(
            {
                "place": str(Place.of(task.row)),
                "mode": task.mode,
                "prompt": [[turn["role"], shorten(text_of(turn["content"]), SHOWN_TEXT)] for turn in prompt],
                "samples": [
                    {
                        "text": shorten(verdict.sample.text, SHOWN_TEXT),
                        "tokens": verdict.sample.tokens,
                        "score": verdict.sample.score,
                        "refused": None if verdict.row is not None else verdict.error.kind,
                    }
                    for verdict in verdicts
                ],
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Every count."""
        page = {name: getattr(self, name) for name in ("prompts", "skipped", "samples", "accepted")}
        page["acceptance"] = self.accepted / self.samples if self.samples else None
        page |= {"prompt_tokens": self.prompt_tokens, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
        page["tokens_per_second"] = round(self.tokens / self.seconds, 1) if self.seconds else None
        page["finish_reasons"] = dict(self.finish)
        page["refused"] = self.refused.as_json()["left_out"]
        page["lengths"] = {mode: _summary(lengths) for mode, lengths in self.lengths.items()}
        page["sources"] = {source: dict(counts) for source, counts in self.by_source.items()}
        return page

    def lines(self, quiet: bool = False) -> list[str]:
        """The counts as text.

        Args:
            quiet: without examples of what was refused.
        """
        speed = f", {self.tokens / self.seconds:,.0f} tokens/s" if self.seconds else ""
        lines = [
            f"{self.prompts:,} prompts, {self.samples:,} samples, {self.accepted:,} accepted",
            f"{self.tokens:,} tokens in {self.seconds:,.1f} s{speed}",
        ]
        return [*lines, *self.refused.summary(quiet, "refused")]


def _summary(lengths: list[int]) -> dict[str, Any]:
    ordered = sorted(lengths)
    last = len(ordered) - 1
    parts = {f"p{share}": ordered[round(last * share / 100)] for share in (5, 95)}
    return {
        "rows": len(ordered),
        "mean": round(mean(ordered), 1),
        "median": median(ordered),
        **parts,
        "max": ordered[-1],
    }
