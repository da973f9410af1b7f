"""A run of `swift-kd generate`: tasks go to the engine, samples into shards, and at the end rows into one file."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from datasets import Dataset
from tqdm import tqdm

from swift_kd_plugin.data.export import write_jsonl
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.rows import Row, RowError, digest
from swift_kd_plugin.generation.engines import Answer, Engine, Prompt, PromptError, Sampling
from swift_kd_plugin.generation.generation_report import Tally
from swift_kd_plugin.generation.judging import Judge, Sample, Verdict
from swift_kd_plugin.generation.quotas import Quotas
from swift_kd_plugin.generation.shard_store import RESPONSES, Record, Store
from swift_kd_plugin.generation.tasks import (
    MADE,
    PROMPT_MODES,
    REPLACED_COLUMN,
    PromptTask,
    Thinking,
    own_answer,
    shown_mode,
    tasks_of,
)


@dataclass(frozen=True)
class GenerationPlan:
    """What a run makes, apart from who answers.

    Args:
        dataset: stored rows.
        seed: of the run.
        quotas: texts as `Quota.parse` takes them.
        dedup: whether a row that is equal to an earlier one, response included, is left out.
    """

    dataset: Dataset
    sampling: Sampling
    judge: Judge
    thinking: Thinking = "row"
    seed: int = 42
    quotas: tuple[str, ...] = ()
    dedup: bool = False

    @property
    def tasks(self) -> int:
        return len(self.dataset) * len(PROMPT_MODES[self.thinking])

    def tasks_in(self, indices: range) -> Iterator[PromptTask]:
        """Tasks by index, in order."""
        if not indices:
            return
        modes = len(PROMPT_MODES[self.thinking])
        first, last = indices[0] // modes, indices[-1] // modes
        rows = to_rows(self.dataset.select(range(first, last + 1)))
        for number, row in enumerate(rows, start=first):
            yield from (task for task in tasks_of(row, number, self.thinking) if task.index in indices)


@dataclass
class Collector:
    """Takes verdicts in the order of the tasks: quotas and duplicates depend on what came before.

    Args:
        tally: counts, for the report.
    """

    plan: GenerationPlan
    tally: Tally = field(default_factory=Tally)
    quotas: Quotas = field(init=False)
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self):
        self.quotas = Quotas.parse(self.plan.quotas)

    def take(self, task: PromptTask, record: Record) -> Iterator[Row]:
        """The rows of a task."""
        self.tally.start(task, record)
        if record.samples:
            verdicts = self.plan.judge.examine(task, record.samples)
            verdicts = [self._admit(task, verdict) for verdict in verdicts]
            for number, verdict in enumerate(verdicts):
                self.tally.count(task, verdict)
                if verdict.row is not None:
                    yield self._finished(task, number, verdict)
            self.tally.show(task, verdicts)

    def _admit(self, task: PromptTask, verdict: Verdict) -> Verdict:
        if verdict.row is None:
            return verdict
        mode = shown_mode(task, verdict.row)
        if (group := self.quotas.closed(verdict.row, mode)) is not None:
            return replace(verdict, row=None, error=RowError("quota is full", f"the quota of {group} is full"))
        if self.plan.dedup:
            key = digest([verdict.row["messages"], verdict.row.get("teacher_thought")])
            if key in self.seen:
                return replace(verdict, row=None, error=RowError("duplicate", "an equal row came before"))
            self.seen.add(key)
        self.quotas.take(verdict.row, mode)
        return verdict

    def _finished(self, task: PromptTask, number: int, verdict: Verdict) -> Row:
        """The row with how it was made, and the dataset's own response, beside it."""
        sample, columns = verdict.sample, dict(verdict.row.get("columns", {}))
        made = {"sample": number, "tokens": sample.tokens, "finish_reason": sample.finish_reason}
        made |= {"mode": shown_mode(task, verdict.row)} | ({} if sample.score is None else {"score": sample.score})
        if (response := own_answer(task.row)) is not None:
            columns.setdefault(REPLACED_COLUMN, response)
        return {**verdict.row, "columns": {**columns, MADE: made}}


class ShardRunner:
    """Generates what is missing in a store. What it has done survives an error: it goes into unfinished shards.

    Args:
        title: of the progress bar.
        counts_accepted: show the share of accepted samples beside it.
    """

    def __init__(self, plan: GenerationPlan, store: Store, title: str = "generating", counts_accepted: bool = True):
        self.plan, self.store, self.title, self.counts_accepted = plan, store, title, counts_accepted
        self.open: dict[int, dict[int, Record]] = {}
        self.front, self.ahead = Collector(plan), 0
        self.asked: dict[int, PromptTask] = {}
        self.tokens = self.samples = self.accepted = 0

    def is_done(self) -> bool:
        """Whether nothing is missing."""
        self._advance()
        return self.front.quotas.full or all(map(self.store.is_whole, range(self.store.shards)))

    def run(self, engine: Engine) -> None:
        """Answers every task that no shard has, until the quotas are full."""
        self.started = self.last_write = time.monotonic()
        done = sum(len(self.store.tasks_of(s)) for s in range(self.store.shards) if self.store.is_whole(s))
        with tqdm(total=self.plan.tasks, initial=done, desc=self.title, unit="prompt", disable=None) as bar:
            self.bar = bar
            try:
                for number, answer in engine.stream(self._prompts(), self.plan.sampling):
                    self._keep(self.asked.pop(number), answer)
                    if self.front.quotas.full:
                        break
            finally:
                for shard, records in self.open.items():
                    if records and not self.store.is_whole(shard):
                        self.store.write_part(shard, records.values())

    def _prompts(self) -> Iterator[Prompt]:
        number = 0
        for shard in range(self.store.shards):
            if self.store.is_whole(shard):
                continue
            indices = self.store.tasks_of(shard)
            records = self.open[shard] = {record.task: record for record in self.store.read_part(shard)}
            self.bar.update(len(records))
            for task in self.plan.tasks_in(indices):
                if self.front.quotas.full:
                    return
                if task.index in records:
                    self._rescore(shard, task)
                elif (group := self.front.quotas.closed(task.row, task.mode)) is not None:
                    self._add(shard, Record(task.index, skipped=group))
                else:
                    self.asked[number] = task
                    yield task.prompt(self.plan.seed)
                    number += 1
            self._finish(shard)

    def _rescore(self, shard: int, task: PromptTask) -> None:
        record = self.open[shard][task.index]
        self.open[shard][task.index] = replace(record, samples=tuple(self.plan.judge.score(task, record.samples)))

    def _keep(self, task: PromptTask, answer: Answer) -> None:
        shard = task.index // self.store.shard_size
        if isinstance(answer, PromptError):
            self._add(shard, Record(task.index, refused=str(answer)))
        else:
            samples = tuple(Sample(one.text, len(one.token_ids), one.finish_reason) for one in answer)
            record = Record(task.index, answer[0].prompt_tokens, samples)
            # Not lost if the verifier fails.
            self.open[shard][task.index] = record
            record = replace(record, samples=tuple(self.plan.judge.score(task, samples)))
            self._show_progress(task, record)
            self._add(shard, record)
        self._finish(shard)

    def _add(self, shard: int, record: Record) -> None:
        self.open[shard][record.task] = record
        self.bar.update()

    def _finish(self, shard: int) -> None:
        """Writes a shard that is complete."""
        records = self.open.get(shard, {})
        if len(records) < len(self.store.tasks_of(shard)) or self.store.is_whole(shard):
            return
        now = time.monotonic()
        self.store.write(shard, records.values(), now - self.last_write)
        self.last_write = now
        del self.open[shard]
        self._advance()

    def _advance(self) -> None:
        """Takes the shards that are whole with all before them, to know which quotas are full."""
        while self.plan.quotas and self.ahead < self.store.shards and self.store.is_whole(self.ahead):
            for _ in collect(self.plan, self.store, self.front, range(self.ahead, self.ahead + 1)):
                pass
            self.ahead += 1

    def _show_progress(self, task: PromptTask, record: Record) -> None:
        self.tokens += sum(sample.tokens for sample in record.samples)
        self.samples += len(record.samples)
        if self.bar.disable:
            return
        speed = self.tokens / max(time.monotonic() - self.started, 1e-9)
        shown = {"tokens/s": f"{speed:,.0f}"}
        if self.counts_accepted:
            verdicts = self.plan.judge.examine(task, record.samples)
            self.accepted += sum(verdict.row is not None for verdict in verdicts)
            shown["accepted"] = f"{self.accepted / self.samples:.0%}"
        self.bar.set_postfix(shown, refresh=False)


def collect(plan: GenerationPlan, store: Store, collector: Collector, shards: range) -> Iterator[Row]:
    """The rows of whole shards, in the order of the dataset."""
    for shard in shards:
        if not store.is_whole(shard):
            return  # the quotas were full before it
        records, seconds = store.read(shard)
        collector.tally.seconds += seconds
        for task, record in zip(plan.tasks_in(store.tasks_of(shard)), records, strict=True):
            yield from collector.take(task, record)


def write_dataset(plan: GenerationPlan, store: Store) -> Tally:
    """Writes the rows of a finished run, unless there are none, and returns what there is to say about it."""
    collector = Collector(plan)
    rows = collect(plan, store, collector, range(store.shards))
    if (first := next(rows, None)) is not None:
        write_jsonl(store.folder / RESPONSES, chain([first], rows))
    return collector.tally


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows."""
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
