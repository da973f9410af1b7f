"""What `swift-kd generate` does: reads rows, starts an engine, runs, and writes rows and reports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.think_block import NON_THINKING, THINKING
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.engines import VLLM_HOTTEST, Sampling
from swift_kd_plugin.generation.filters import Filters
from swift_kd_plugin.generation.generation_report import Tally
from swift_kd_plugin.generation.generation_run import GenerationPlan, ShardRunner, write_dataset
from swift_kd_plugin.generation.html_page import render
from swift_kd_plugin.generation.judging import Judge
from swift_kd_plugin.generation.model_folder import check_model_folder
from swift_kd_plugin.generation.model_setup import (
    ModelOptions,
    describe_model,
    describe_rows,
    make_engine,
    make_template,
    open_rows,
    say_mode,
)
from swift_kd_plugin.generation.quotas import Quotas
from swift_kd_plugin.generation.shard_store import PAGE, REPORT, Store
from swift_kd_plugin.generation.verifiers import BUILT_IN, Gold, Scorer

# Flags that change how a run goes and not what it makes.
IDENTITY_EXEMPT_FLAGS = (
    *(
        "output",
        "kd_datasets",
        "dataset",
        "server",
        "overwrite",
        "strict",
        "server_timeout",
        "trust_remote_code",
        "bits",
    ),
    *("gpu_memory_utilization", "tensor_parallel_size", "max_num_seqs", "enforce_eager", "verifier_errors"),
)
VALUES_SEEN = 1000  # of a column; a quota of a value beyond them is not checked
DRAWN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class Options(ModelOptions):
    """The flags of the command by name; `swift_kd_plugin.cli.generate` says what they mean."""

    @property
    def judge(self) -> Judge:
        """Raises KDError for a filter or verifier that does not exist."""
        gold = Gold(self.gold, self.pattern)
        return Judge(
            Filters(self.min_length, self.max_length, self.max_repetition, self.language, self.finish),
            Scorer.find(self.verifier, gold) if self.verifier else None,
            self.verifier_errors == "reject",
            self.min_score,
            self.select,
            self.vote or (self.verifier if self.verifier in BUILT_IN else "exact"),
            gold,
        )

    def sampling(self, folder: Path) -> Sampling:
        """What is given, else what the model's generation config says. Raises KDError for a value out of range."""
        config = _read_json(folder / "generation_config.json")
        values = {name: _first(getattr(self, name), config.get(name), usual) for name, usual in DRAWN.items()}
        return Sampling(n=self.n, max_new_tokens=self.max_new_tokens, stop=tuple(self.stop_words or ()), **values)


def generate_rows(options: Options, opener: Callable[[str], Any]) -> Tally:
    """The whole command.

    Args:
        opener: loads a dataset by an id that is no file.

    Returns:
        The counts; `input` is what became of the input rows.

    Raises:
        KDError: anything that the user can mend.
    """
    judge, engine_name = options.judge, options.engine_name
    check_model_folder(options.model)
    quotas = Quotas.parse(options.quota or ())
    dataset, rows_digest, report = open_rows(options, opener)
    check_columns(dataset, options.gold, quotas)
    check_modes(options.thinking, quotas)
    template = make_template(options)
    say_mode(template, dataset, options.thinking, report)
    folder = Path(template.processor.model_info.model_dir)
    sampling = options.sampling(folder)
    if engine_name == "vllm" and sampling.temperature > VLLM_HOTTEST:
        raise KDError(f"temperature is {sampling.temperature:g}; vLLM takes {VLLM_HOTTEST} at most.")
    plan = GenerationPlan(
        dataset, sampling, judge, options.thinking, options.seed, tuple(options.quota or ()), options.dedup
    )
    identity = identify(options, plan, rows_digest, folder, engine_name)
    with Store(options.output, identity, plan.tasks, options.shard_size, options.overwrite) as store:
        runner = ShardRunner(plan, store)
        if not runner.is_done():
            with make_engine(options, template, engine_name) as engine:
                runner.run(engine)
        tally = write_dataset(plan, store)
        tally.input = report
        write_atomically(store.folder / PAGE, render(tally, identity))
        page = {"run": identity, **tally.as_json(), "input": report.as_json()}
        write_atomically(store.folder / REPORT, json.dumps(page, ensure_ascii=False, indent=2) + "\n")
    return tally


def check_modes(thinking: str, quotas: Quotas) -> None:
    """Raises KDError for a quota of a mode in which nothing is asked."""
    absent = {"on": NON_THINKING, "off": THINKING}.get(thinking)
    if absent and any(quota.name == absent for quota in quotas.quotas):
        raise KDError(f"--quota {absent}=N: no row is asked in this mode with --thinking {thinking}; give both.")


def check_columns(dataset: Dataset, gold: str | None, quotas: Quotas) -> None:
    """Raises KDError if no row has the column with the gold answers, or what a quota counts."""
    asked = {"--gold": [(gold, None)] if gold else [], "--quota": quotas.columns}
    if not any(asked.values()):
        return
    values: dict[str, set[str]] = {}
    for row in to_rows(dataset):
        for name, value in row.get("columns", {}).items():
            found = values.setdefault(name, set())
            if len(found) < VALUES_SEEN:
                found.add(str(value))
    there = f"they have the columns {', '.join(sorted(values))}" if values else "they have no further columns"
    for flag, columns in asked.items():
        for name, value in columns:
            if name not in values:
                raise KDError(f"{flag} {name}: no row has such a column{suggest(name, values)}; {there}.")
            if value is not None and value not in values[name] and len(values[name]) < VALUES_SEEN:
                hint = suggest(value, values[name])
                raise KDError(f"{flag} {name}:{value}: no row has this value in its column {name!r}{hint}.")


def identify(
    options: Options, plan: GenerationPlan, rows_digest: str, folder: Path, engine_name: str
) -> dict[str, Any]:
    """Everything that decides a run's rows, by the flag that says it."""
    flags = {name: value for name, value in vars(options).items() if name not in IDENTITY_EXEMPT_FLAGS}
    model, rows = describe_model(options, folder, engine_name), describe_rows(plan.dataset, rows_digest)
    sampling = {name: getattr(plan.sampling, name) for name in DRAWN}
    return {**model, **rows, **{name: value for name, value in flags.items() if name not in model}, **sampling}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise KDError(f"{file} cannot be read: {error}.") from error


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
