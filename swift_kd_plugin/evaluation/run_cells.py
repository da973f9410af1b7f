"""Fills the cells of one model: its answers, and how probable it finds the gold responses. What is there stays.

cells/MODEL.VIEW.MODE/    a store of `swift_kd_plugin.generation.shard_store`
    likelihoods.jsonl     of the gold responses, one a line, behind a line that says which these are
"""

import gc
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.data.think_block import NON_THINKING, THINKING, split_thought
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.evaluation.cells import CELL_MODES, Cell, EvalView
from swift_kd_plugin.evaluation.likelihood import Likelihood, measure_likelihoods
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import Prompt, PromptError, Sampling
from swift_kd_plugin.generation.filters import Filters
from swift_kd_plugin.generation.generation_run import GenerationPlan, ShardRunner
from swift_kd_plugin.generation.judging import Judge
from swift_kd_plugin.generation.model_setup import (
    ModelOptions,
    default_mode,
    describe_model,
    describe_rows,
    make_engine,
    make_template,
)
from swift_kd_plugin.generation.shard_store import Record, Store
from swift_kd_plugin.generation.verifiers import Gold

CELLS, LIKELIHOODS = "cells", "likelihoods.jsonl"
# Flags of a model that change what it answers.
MODEL_FLAGS = ("template", "model_type", "torch_dtype", "system", "max_model_len")
# A likelihood, or why there is none.
Found = Likelihood | str


@dataclass(frozen=True)
class EvalModel:
    """A model that is asked.

    Args:
        options: flags, of which those about a model are its own.
        template: ms-swift's.
        who: the model and its adapters with their fingerprints, and the engine.
    """

    name: str
    options: ModelOptions
    template: Any
    who: dict[str, Any]

    @classmethod
    def find(cls, name: str, options: ModelOptions) -> "EvalModel":
        """Raises KDError if there is no such model, tokenizer, template or adapter; weights are not read."""
        engine_name, template = options.engine_name, make_template(options)
        who = describe_model(options, Path(template.processor.model_info.model_dir), engine_name)
        return cls(name, options, template, who)


@dataclass
class CellResult:
    """What is known of a cell.

    Args:
        who: answered, as in `EvalModel`.
        numbers: of the rows in the whole dataset, in the order of the records.
        seconds: that the engine worked, over all starts.
        likelihoods: of the gold responses by the number of the row; empty if they were not asked for.
    """

    cell: Cell
    who: dict[str, Any]
    numbers: list[int]
    records: list[Record]
    seconds: float
    likelihoods: dict[int, Found] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """What is asked of every model.

    Args:
        folder: of the output.
        views: rows as they are asked.
        digest: of all rows.
        thinking: as the flag.
        gold: where the gold response stands.
        likelihoods: measure them too.
    """

    folder: Path
    views: Sequence[EvalView]
    digest: str
    thinking: str
    seed: int
    sampling: Sampling
    gold: Gold
    likelihoods: bool

    def measure(self, subject: EvalModel) -> list[CellResult]:
        """Every cell of a model, which is freed at the end.

        Raises:
            KDError: the model cannot be loaded or asked, or a cell's folder holds another run.
        """
        with ExitStack() as held:
            works = [
                self._open(Cell(subject.name, view.name, mode), view, subject, held)
                for view in self.views
                for mode in CELL_MODES[self.thinking]
            ]
            model = answer(works, subject)
            if self.likelihoods and subject.who["engine"] != "server":
                self._measure_gold(works, subject, model)
            del model
            free_memory()
            return [work.result(subject.who, self.gold) for work in works]

    def _open(self, cell: Cell, view: EvalView, subject: EvalModel, held: ExitStack) -> "Work":
        judge = Judge(Filters(finish="any"))
        plan = GenerationPlan(view.dataset, self.sampling, judge, CELL_MODES[self.thinking][cell.mode], self.seed)
        flags = {name: getattr(subject.options, name) for name in MODEL_FLAGS}
        settings = {"view": cell.view, "thinking": cell.mode, "seed": self.seed, **asdict(self.sampling)}
        identity = {**subject.who, **flags, **describe_rows(view.dataset, self.digest), **settings}
        store = Store(self.folder / CELLS / cell.folder, identity, plan.tasks, subject.options.shard_size)
        return Work(cell, view, plan, held.enter_context(store))

    def _measure_gold(self, works: Sequence["Work"], subject: EvalModel, model: Any) -> None:
        """Measures the likelihoods that are not there, with a model that is loaded if it is needed."""
        options, template = subject.options, subject.template
        codec = Codec(template, "transformers", options.max_model_len)
        for work in works:
            if work.read_likelihoods(self.gold) is not None:
                continue
            if model is None:
                from swift_kd_plugin.generation.transformers_engine import load_model

                model = load_model(options.model, template, options.adapters, options.bits)
            work.measure_likelihoods(self.gold, model, codec)


@dataclass(frozen=True)
class Work:
    """A cell with its rows and its folder."""

    cell: Cell
    view: EvalView
    plan: GenerationPlan
    store: Store

    @property
    def runner(self) -> ShardRunner:
        return ShardRunner(self.plan, self.store, str(self.cell), counts_accepted=False)

    def measure_likelihoods(self, gold: Gold, model: Any, codec: Codec) -> None:
        """Measures and writes them."""
        results: dict[int, Found] = {}
        numbers, pairs = self._gold_responses(gold, default_mode(codec.template), results)
        with tqdm(total=len(pairs), desc=f"{self.cell}: gold responses", unit="row", disable=None) as bar:
            for index, result in measure_likelihoods(model, codec, pairs):
                results[numbers[index]] = str(result) if isinstance(result, PromptError) else result
                bar.update()
        lines = [{"gold": gold.column}]
        for number, result in sorted(results.items()):
            entry = {"refused": result} if isinstance(result, str) else asdict(result)
            lines.append({"row": number, **entry})
        write_atomically(self._file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def _gold_responses(
        self, gold: Gold, default: str | None, refused: dict[int, Found]
    ) -> tuple[list[int], list[tuple[Prompt, str]]]:
        """Numbers of rows, and their prompts with the gold response, whose thought stays where one is asked for.

        Args:
            default: the mode of prompts whose row names none.
        """
        numbers, pairs = [], []
        tasks = self.plan.tasks_in(range(self.plan.tasks))
        for number, task in zip(self.view.numbers, tasks, strict=True):
            text = gold.response_of(task.row)
            if text is None:
                continue
            thought, answer = split_thought(text)
            if task.mode == THINKING and not thought:
                refused[number] = "it has no thought, and the mode is thinking"
                continue
            numbers.append(number)
            asked = task.mode or default
            pairs.append((task.prompt(self.plan.seed), answer if asked == NON_THINKING else text))
        return numbers, pairs

    def read_likelihoods(self, gold: Gold) -> dict[int, Found] | None:
        """None if they were not measured, or of other gold responses."""
        if not self._file.exists():
            return None
        try:
            head, *lines = map(json.loads, self._file.read_text(encoding="utf-8").splitlines())
            if head["gold"] != gold.column:
                return None
            return {line.pop("row"): line["refused"] if "refused" in line else Likelihood(**line) for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KDError(f"{self._file} is damaged; remove it, and start again to have it made anew.") from error

    def result(self, who: dict[str, Any], gold: Gold) -> CellResult:
        """What the folder has."""
        parts = [self.store.read(shard) for shard in range(self.store.shards)]
        records = [record for part, _ in parts for record in part]
        seconds = sum(seconds for _, seconds in parts)
        return CellResult(self.cell, who, self.view.numbers, records, seconds, self.read_likelihoods(gold) or {})

    @property
    def _file(self) -> Path:
        return self.store.folder / LIKELIHOODS


def answer(works: Sequence[Work], subject: EvalModel) -> Any:
    """Fills the cells that have answers missing, with one engine; returns its model, if transformers has one loaded."""
    missing = [runner for work in works if not (runner := work.runner).is_done()]
    if not missing:
        return None
    with make_engine(subject.options, subject.template, subject.who["engine"]) as engine:
        for runner in missing:
            runner.run(engine)
        model = getattr(engine, "model", None)
    del engine
    free_memory()  # before the next model is loaded
    return model


def free_memory() -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
