"""What every command that asks a model starts with: rows, a template, an engine, and what they are known by."""

import hashlib
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset, concatenate_datasets

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.asked_columns import Asked
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.dataset_specs import DatasetId, DatasetSpec, File, RowsSpec, with_asked
from swift_kd_plugin.data.row_report import Report, no_row_left
from swift_kd_plugin.data.sources import READERS
from swift_kd_plugin.data.think_block import NON_THINKING, THINKING, mode_of
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import check_adapter
from swift_kd_plugin.generation.engines import Engine
from swift_kd_plugin.generation.few_bits import BITS, check_bitsandbytes
from swift_kd_plugin.generation.generation_run import limited
from swift_kd_plugin.serving.transport import KEY_VARIABLE, Limits

TRANSFORMERS_ROWS = 32
SAMPLED_BYTES = 1 << 20
FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model")


class ModelOptions(SimpleNamespace):
    """Flags by name, of which the ones about rows, one model and its engine are read here."""

    @property
    def engine_name(self) -> str:
        """Who answers. Raises KDError if --engine, --server and --bits disagree."""
        if self.bits is not None:
            return self._quantised_engine()
        if (self.engine == "server") != (self.server is not None) and self.engine != "auto":
            raise KDError("--engine server and --server URL belong together.")
        if self.engine != "auto":
            return self.engine
        if self.server:
            return "server"
        return "vllm" if importlib.util.find_spec("vllm") else "transformers"

    def _quantised_engine(self) -> str:
        if self.bits not in BITS:
            raise KDError(f"--bits {self.bits} of {self.model}: it must be {' or '.join(map(str, BITS))}.")
        if self.server or self.engine == "server":
            raise KDError(
                f"--bits {self.bits} is about a model that is loaded here; quantise that of a server where it is "
                "served (vllm serve --quantization bitsandbytes)."
            )
        if self.engine == "vllm":
            raise KDError(f"--bits {self.bits} goes with --engine transformers, as vLLM keeps weights in other forms.")
        check_bitsandbytes(f"--bits {self.bits}")
        return "transformers"


def open_rows(options: ModelOptions, opener: Callable[[str], Any]) -> tuple[Dataset, str, Report]:
    """The rows of every --dataset, one after the other, their digest, and what became of the input.

    Raises:
        KDError: a name that is none, no row that can be used, or --strict and one that cannot.
    """
    named = read_data_yaml(options.kd_datasets) if options.kd_datasets else {}
    report, parts, digests = Report(), [], []
    asked = Asked(gold=(options.gold,) if getattr(options, "gold", None) else ())
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder), opener, options.strict)
        for name in options.dataset:
            node = _node(name, named, options.kd_datasets)
            part, made = builder.dataset(with_asked(node, asked))
            if not len(part):
                raise no_row_left(f"--dataset {name}", made)
            report.merge(made)
            parts.append(part)
            digests += [_file_digest(file["filename"]) for file in part.cache_files]
        # The files are mapped, and stay until they are let go.
        return limited(concatenate_datasets(parts), options.limit), "-".join(digests), report


def _node(name: str, named: dict[str, DatasetSpec], file: Path | None) -> DatasetSpec:
    if name in named:
        return named[name]
    path = Path(name)
    if path.suffix.lower() in READERS or path.exists():
        return RowsSpec(name, File(path, name))
    if named and "/" not in name and ":" not in name:
        raise KDError(f"--dataset {name}: {file} has no such dataset{suggest(name, named)}; it has {', '.join(named)}.")
    return RowsSpec(name, DatasetId(name))


def make_template(options: ModelOptions) -> Any:
    """ms-swift's template of --model; its logger and vLLM's say what is wrong and nothing else."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from swift.utils import get_logger

    from swift_kd_plugin.generation.codec import load_template

    get_logger().setLevel(logging.ERROR)
    dtype = getattr(torch, options.torch_dtype) if options.torch_dtype else None
    return load_template(options.model, options.template, options.model_type, dtype, default_system=options.system)


def default_mode(template: Any) -> str | None:
    """The mode in which a row that names none is asked; None if the model does not have both."""
    if not template.template_meta.non_thinking_prefix:
        return None
    return THINKING if template.enable_thinking else NON_THINKING


def say_mode(template: Any, dataset: Dataset, thinking: str, report: Report) -> bool:
    """Says at once, and in the report, in which mode a model that has both is asked by rows that name none.

    It is the mode in which rollouts write such rows, and in which a response without a thought is trained; the model's
    own chat template may have another.

    Returns:
        Whether there was something to say.
    """
    mode = default_mode(template)
    if thinking != "row" or mode is None:
        return False
    count = sum(mode_of(kwargs) is None for kwargs in dataset["chat_template_kwargs"])
    if count:
        text = f"{mode}, as rollouts ask them (--thinking on asks for thoughts)"
        report.state("prompts", **{"rows without a mode": count, "asked as": text})
        print(f"{count:,} rows name no thinking mode and are asked as {text}", file=sys.stderr, flush=True)
    return bool(count)


def make_engine(options: ModelOptions, template: Any, name: str) -> Engine:
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
        return TransformersEngine(options.model, template, adapters, batch, options.max_model_len, options.bits)
    settings = {"tensor_parallel_size": options.tensor_parallel_size, "max_num_seqs": options.max_num_seqs}
    if options.gpu_memory_utilization is not None:
        settings["gpu_memory_utilization"] = options.gpu_memory_utilization
    if options.enforce_eager:
        settings["enforce_eager"] = True
    trust = options.trust_remote_code
    try:
        from swift_kd_plugin.generation.vllm_engine import VllmEngine

        return VllmEngine(options.model, template, adapters, options.max_model_len, trust_remote_code=trust, **settings)
    except ImportError as error:
        raise KDError(
            f"vLLM cannot be loaded ({error}); without a GPU set SWIFT_KD_DEVICE=cpu, or use --engine transformers."
        ) from error


def describe_model(options: ModelOptions, folder: Path, engine_name: str) -> dict[str, Any]:
    """Who answers, for a run's identity. `folder` is the model's. Raises KDError if an adapter does not fit it."""
    for adapter in options.adapters or ():
        check_adapter(Path(adapter), folder, engine_name)
    adapters = [f"{Path(adapter).name} ({fingerprint(Path(adapter))})" for adapter in options.adapters or ()]
    who = {"model": f"{folder.name} ({fingerprint(folder)})", "adapters": adapters, "engine": engine_name}
    return who | {"bits": options.bits} if options.bits else who


def describe_rows(dataset: Dataset, digest: str) -> dict[str, Any]:
    """What is asked, likewise."""
    return {"dataset": f"{len(dataset):,} rows ({digest})"}


def fingerprint(folder: Path) -> str:
    """A digest of a model's files: of small ones the content, of large ones the size, the start and the end."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with open(file, "rb") as content:
            digest.update(content.read(SAMPLED_BYTES))
            content.seek(max(0, size - SAMPLED_BYTES))
            digest.update(content.read())
    return digest.hexdigest()


def _file_digest(file: str) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
