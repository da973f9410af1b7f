"""What `swift-kd generate` does: reads rows, starts an engine, runs, and writes rows and reports."""

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset, concatenate_datasets

from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.config import EXTENSIONS, read_config
from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.data.nodes import DatasetId, File, Node, Rows
from swift_kd_plugin.data.report import Report
from swift_kd_plugin.data.schema import suggest
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.engines import Engine, Sampling
from swift_kd_plugin.generation.filters import Filters
from swift_kd_plugin.generation.judging import Judge
from swift_kd_plugin.generation.page import render
from swift_kd_plugin.generation.report import Tally
from swift_kd_plugin.generation.run import Plan, Runner, limited, write_responses
from swift_kd_plugin.generation.store import PAGE, REPORT, Store
from swift_kd_plugin.generation.verifiers import BUILT_IN, Gold, Scorer
from swift_kd_plugin.teacher.transport import KEY_VARIABLE, Limits

TRANSFORMERS_ROWS = 32
# Flags that change how a run goes and not what it makes.
FREE = (
    *("output", "kd_datasets", "dataset", "server", "overwrite", "strict", "server_timeout", "trust_remote_code"),
    *("gpu_memory_utilization", "tensor_parallel_size", "max_num_seqs", "enforce_eager", "verifier_errors"),
)
DRAWN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
SAMPLED_BYTES = 1 << 20
FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model")


class Options(SimpleNamespace):
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

    @property
    def engine_name(self) -> str:
        """Who answers. Raises KDError if --engine and --server disagree."""
        if (self.engine == "server") != (self.server is not None) and self.engine != "auto":
            raise KDError("--engine server and --server URL belong together.")
        if self.engine != "auto":
            return self.engine
        if self.server:
            return "server"
        return "vllm" if importlib.util.find_spec("vllm") else "transformers"

    def sampling(self, folder: Path) -> Sampling:
        """What is given, else what the model's generation config says. Raises KDError for a value out of range."""
        own = _read_json(folder / "generation_config.json")
        values = {name: _first(getattr(self, name), own.get(name), usual) for name, usual in DRAWN.items()}
        return Sampling(n=self.n, max_new_tokens=self.max_new_tokens, stop=tuple(self.stop_words or ()), **values)


def run(options: Options, opener: Callable[[str], Any]) -> Tally:
    """The whole command.

    Args:
        opener: loads a dataset by an id that is no file.

    Returns:
        The counts; `input` is what became of the input rows.

    Raises:
        KDError: anything that the user can mend.
    """
    judge, engine_name = options.judge, options.engine_name
    dataset, rows_digest, report = open_rows(options, opener)
    template = make_template(options)
    folder = Path(template.processor.model_info.model_dir)
    sampling = options.sampling(folder)
    plan = Plan(dataset, sampling, judge, options.thinking, options.seed, tuple(options.quota or ()), options.dedup)
    identity = identify(options, plan, rows_digest, folder, engine_name)
    with Store(options.output, identity, plan.tasks, options.shard_size, options.overwrite) as store:
        runner = Runner(plan, store)
        if not runner.is_done():
            with make_engine(options, template, engine_name) as engine:
                runner.run(engine)
        tally = write_responses(plan, store)
        tally.input = report
        write_atomically(store.folder / PAGE, render(tally, identity))
        page = {"run": identity, **tally.as_json(), "input": report.as_json()}
        write_atomically(store.folder / REPORT, json.dumps(page, ensure_ascii=False, indent=2) + "\n")
    return tally


def open_rows(options: Options, opener: Callable[[str], Any]) -> tuple[Dataset, str, Report]:
    """The rows of every --dataset, one after the other, their digest, and what became of the input.

    Raises:
        KDError: a name that is none, or a row that cannot be used and --strict.
    """
    named = read_config(options.kd_datasets) if options.kd_datasets else {}
    report, parts, digests = Report(), [], []
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder), opener, options.strict)
        for name in options.dataset:
            part, made = builder.dataset(_node(name, named, options.kd_datasets))
            report.merge(made)
            parts.append(part)
            digests += [_file_digest(file["filename"]) for file in part.cache_files]
        # The files are mapped, and stay until they are let go.
        return limited(concatenate_datasets(parts), options.limit), "-".join(digests), report


def _node(name: str, named: dict[str, Node], file: Path | None) -> Node:
    if name in named:
        return named[name]
    path = Path(name)
    if path.suffix.lower() in EXTENSIONS or path.exists():
        return Rows(name, File(path, name))
    if named and "/" not in name and ":" not in name:
        raise KDError(f"--dataset {name}: {file} has no such dataset{suggest(name, named)}; it has {', '.join(named)}.")
    return Rows(name, DatasetId(name))


def make_template(options: Options) -> Any:
    """ms-swift's template of --model; its logger and vLLM's say what is wrong and nothing else."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from swift.utils import get_logger

    from swift_kd_plugin.generation.codec import load_template

    get_logger().setLevel(logging.ERROR)
    dtype = getattr(torch, options.torch_dtype) if options.torch_dtype else None
    return load_template(options.model, options.template, options.model_type, dtype, default_system=options.system)


def make_engine(options: Options, template: Any, name: str) -> Engine:
    """The engine that answers. Raises KDError if it cannot start, or the server cannot be reached."""
    if name == "server":
        from swift_kd_plugin.generation.server_engine import ServerEngine

        if options.adapters:
            raise KDError("--adapters are for an engine in this process; a server has its own (--server_adapter).")
        key, limits = os.environ.get(KEY_VARIABLE), Limits(options.server_timeout, in_flight=options.max_num_seqs)
        return ServerEngine(options.server, template, options.server_adapter, key, limits, options.max_model_len)
    adapters = options.adapters or []
    if name == "transformers":
        from swift_kd_plugin.generation.transformers_engine import TransformersEngine

        batch = min(options.max_num_seqs, TRANSFORMERS_ROWS)
        return TransformersEngine(options.model, template, adapters, batch, options.max_model_len)
    from swift_kd_plugin.generation.vllm_engine import VllmEngine

    settings = {"tensor_parallel_size": options.tensor_parallel_size, "max_num_seqs": options.max_num_seqs}
    if options.gpu_memory_utilization is not None:
        settings["gpu_memory_utilization"] = options.gpu_memory_utilization
    if options.enforce_eager:
        settings["enforce_eager"] = True
    trust = options.trust_remote_code
    return VllmEngine(options.model, template, adapters, options.max_model_len, trust_remote_code=trust, **settings)


def identify(options: Options, plan: Plan, rows_digest: str, folder: Path, engine_name: str) -> dict[str, Any]:
    """Everything that decides a run's rows, by the flag that says it."""
    flags = {name: value for name, value in vars(options).items() if name not in FREE}
    adapters = [f"{Path(adapter).name} ({fingerprint(Path(adapter))})" for adapter in options.adapters or ()]
    said = {"model": f"{folder.name} ({fingerprint(folder)})", "adapters": adapters, "engine": engine_name}
    rows = {"dataset": f"{len(plan.dataset):,} rows ({rows_digest})"}
    drawn = {name: getattr(plan.sampling, name) for name in DRAWN}
    return {**said, **rows, **{name: value for name, value in flags.items() if name not in said}, **drawn}


def fingerprint(folder: Path) -> str:
    """A digest of a model's files: of small ones the content, of large ones the size, the start and the end."""
    said = hashlib.blake2b(digest_size=8)
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern)}):
        size = file.stat().st_size
        said.update(f"{file.name}:{size}".encode())
        with open(file, "rb") as content:
            said.update(content.read(SAMPLED_BYTES))
            content.seek(max(0, size - SAMPLED_BYTES))
            said.update(content.read())
    return said.hexdigest()


def _file_digest(file: str) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise KDError(f"{file} cannot be read: {error}.") from error


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
