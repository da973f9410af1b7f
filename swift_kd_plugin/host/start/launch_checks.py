"""The flags of `megatron rlhf`, checked before a rank is started: names, values, files, and sizes that must divide.

A rank takes seconds to import what it needs before it can say the same.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.files import why_not_opened
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.adapter_checks import check_continued_adapter, check_targets
from swift_kd_plugin.host.start.megatron_flags import megatron_defaults, megatron_flags
from swift_kd_plugin.host.start.model_checks import (
    check_length,
    check_models,
    check_sampling,
    check_supported,
    too_few_rows,
)
from swift_kd_plugin.host.teacher.adapter_files import check_teacher_adapters

# As trl, transformers and `swift sft` call them.
ALIASES = {
    "learning_rate": "lr",
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "max_steps": "train_iters",
    "warmup_ratio": "lr_warmup_fraction",
    "warmup_steps": "lr_warmup_iters",
    "lr_scheduler_type": "lr_decay_style",
    "max_grad_norm": "clip_grad",
    "num_epochs": "num_train_epochs",
    "train_type": "tuner_type",
    "max_seq_length": "max_length",
    "alpha": "kd_ce_alpha",
}
FOLDERS = ("mcore_model", "mcore_adapter", "adapters", "kd_teacher_adapters")
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".yaml", ".yml")
WORDS = {"true": True, "false": False, "yes": True, "no": False, "t": True, "f": False, "y": True, "n": False}


def check_command(words: Sequence[str], env: Mapping[str, str]) -> None:
    """Raises KDError for what a rank would refuse later, or stumble over.

    Args:
        words: behind `megatron rlhf`.
        env: with what decides the number of processes.
    """
    if not find_spec("transformer_engine") and env.get("SWIFT_KD_DEVICE") != "cpu":
        raise KDError(
            "there is no Transformer Engine here: on GPUs `pip install 'swift-kd-plugin[gpu]'`, without one set "
            "SWIFT_KD_DEVICE=cpu."
        )
    if {"-h", "--help"} & set(words):
        return
    args = parse(words)
    check_kd_flags(args)
    check_models(args)
    check_files(args)
    if args.cp_partition_mode == "zigzag":  # the other one takes a look at Megatron
        check_length(args)
    check_targets(args)
    check_continued_adapter(args)
    check_teacher_adapters(args)
    check_sizes(args, processes_of(env))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags as ms-swift's parser will read them. Raises KDError as that one would."""
    flags = megatron_flags()
    given, unknown = _parser().parse_known_args(list(words))
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        meant = f" (here it is --{ALIASES[name]})" if name in ALIASES else suggest(name, flags)
        raise KDError(f"unknown on the command line: {unknown[0]}{meant}; see `megatron rlhf --help` for the flags.")
    return argparse.Namespace(**megatron_defaults() | vars(given))


@cache
def _parser() -> argparse.ArgumentParser:
    flags = megatron_flags()
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for name, hint in flags.items():
        parser.add_argument(*_spellings(name), dest=name, **_reader_of(hint))
        if bool in _options_of(hint) and f"no_{name}" not in flags:
            parser.add_argument(*_spellings(f"no_{name}"), dest=name, action="store_false")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise KDError(f"{message}; see `megatron rlhf --help`.")


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _options_of(hint: Any) -> list[Any]:
    """What a hint allows besides None."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [option for option in options if option is not type(None)]


def _reader_of(hint: Any) -> dict[str, Any]:
    """How argparse reads a flag with this hint; of several kinds of values, as text."""
    options = _options_of(hint)
    if len(options) > 1:
        return {"nargs": "+"} if any(get_origin(option) is list for option in options) else {}
    (option,) = options
    if option is bool:
        return {"type": _read_bool, "nargs": "?", "const": True}
    if get_origin(option) is Literal:
        known = {str(choice): choice for choice in get_args(option)}
        return {"type": lambda text: known.get(text, text), "choices": list(known.values())}
    if get_origin(option) is list:
        return {
            "nargs": "+",
            **{key: value for key, value in _reader_of(get_args(option)[0]).items() if key != "nargs"},
        }
    return {"type": option} if option in (int, float) else {}


def _read_bool(text: str) -> bool:
    if (lower := text.lower()) in WORDS or lower in ("0", "1"):
        return WORDS.get(lower, lower == "1")
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def check_kd_flags(args: argparse.Namespace) -> None:
    """Raises KDError for kd_* flags as their own class would, and for what distillation cannot do."""
    flags = object.__new__(KDArguments)
    vars(flags).update(vars(args))
    flags.check_kd_flags()
    if args.rlhf_type == "gkd":
        check_supported(args)
        check_sampling(args)


def check_files(args: argparse.Namespace) -> None:
    """Raises KDError for a file or folder that does not exist."""
    for flag in ("dataset", "val_dataset", "cached_dataset"):
        for given in getattr(args, flag) or ():
            _check_dataset(flag, given)
    if args.kd_datasets and not Path(args.kd_datasets).expanduser().is_file():
        raise _missing("kd_datasets", args.kd_datasets)
    for flag in FOLDERS:
        for folder in _as_list(getattr(args, flag)):
            if _looks_local(folder) and not Path(folder).expanduser().is_dir():
                raise KDError(f"--{flag} {folder} does not exist; give an existing folder.")


def _check_dataset(flag: str, given: str) -> None:
    """Of a file, which may be followed by #ROWS; ids are looked up by ms-swift."""
    name = given if os.path.exists(given) else given.rpartition("#")[0] or given
    if (_looks_local(name) or name.lower().endswith(DATA_FILES)) and not Path(name).expanduser().exists():
        raise _missing(flag, name)


def _missing(flag: str, file: str) -> KDError:
    return KDError(f"--{flag} {why_not_opened(Path(file).expanduser(), FileNotFoundError())}")


def _looks_local(path: str) -> bool:
    return path.startswith(("/", ".", "~"))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def processes_of(env: Mapping[str, str]) -> int | None:
    """Ranks of all machines; None where torchrun counts devices itself."""
    try:
        return int(env.get("NPROC_PER_NODE", "1")) * int(env.get("NNODES", "1"))
    except ValueError:
        return None


def check_sizes(args: argparse.Namespace, processes: int | None) -> None:
    """Raises KDError for a batch that cannot be cut, or a run of no steps."""
    for flag in ("train_iters", "num_train_epochs", "micro_batch_size", "global_batch_size"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise KDError(f"--{flag} {value} must be at least 1.")
    if args.train_iters is None and args.num_train_epochs is None:
        raise KDError("nothing says how long to train; give --num_train_epochs or --train_iters.")
    if processes is not None:
        _check_batches(args, processes)
    _check_rows(args)


def _check_batches(args: argparse.Namespace, processes: int) -> None:
    tp, pp, cp = (getattr(args, f"{kind}_parallel_size") for kind in ("tensor_model", "pipeline_model", "context"))
    if processes % (tp * pp * cp):
        raise KDError(
            f"--tensor_model_parallel_size {tp} x --pipeline_model_parallel_size {pp} x --context_parallel_size {cp} "
            f"does not divide the {processes} processes (NPROC_PER_NODE x NNODES)."
        )
    replicas = processes // (tp * pp * cp)
    if args.global_batch_size % (args.micro_batch_size * replicas):
        raise KDError(
            f"--global_batch_size {args.global_batch_size} is no multiple of --micro_batch_size "
            f"{args.micro_batch_size} x {replicas} replicas of the model."
        )


def _check_rows(args: argparse.Namespace) -> None:
    """Counts no further than it must."""
    if args.train_iters is not None or args.streaming:
        return
    enough = -(-args.global_batch_size // args.num_train_epochs)
    rows = 0
    for given in args.dataset or ():
        if not (given.endswith(".jsonl") and os.path.isfile(given)):
            return
        with open(given, "rb") as lines:
            rows += sum(1 for line in islice((line for line in lines if line.strip()), enough))
    if args.dataset and rows < enough:
        raise KDError(too_few_rows(rows, args))
