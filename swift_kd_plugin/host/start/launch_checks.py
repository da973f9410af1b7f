"""The flags of `megatron rlhf`, checked before a rank is started: names, values, files, and sizes that must divide.

A rank takes seconds to import what it needs before it can say the same.
"""

import argparse
import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.config.mapping_files import read_mapping
from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.files import is_local, why_not_opened
from swift_kd_plugin.data.near_checkpoints import MODEL, RESUMABLE, did_you_mean
from swift_kd_plugin.errors import HELP, NAME, KDError
from swift_kd_plugin.generation.adapters import CONFIG as ADAPTER
from swift_kd_plugin.host.start.adapter_checks import check_continued_adapter, check_lora
from swift_kd_plugin.host.start.feature_checks import check_features
from swift_kd_plugin.host.start.flag_aliases import meant_by
from swift_kd_plugin.host.start.length_check import check_some_row_fits
from swift_kd_plugin.host.start.megatron_flags import megatron_defaults, megatron_flags
from swift_kd_plugin.host.start.model_checks import (
    check_length,
    check_models,
    check_sampling,
    check_supported,
    check_tokenizers,
    fewer_than_at_once,
    too_few_rows,
)
from swift_kd_plugin.host.start.resume_check import check_resume
from swift_kd_plugin.host.teacher.adapter_files import check_teacher_adapters
from swift_kd_plugin.host.teacher.bits_flag import check_teacher_bits
from swift_kd_plugin.host.train.shard_size import bytes_of

# Folders and files of this machine, and what may be the id of a model on a hub, too.
LOCAL_FOLDERS = ("mcore_model", "mcore_adapter", "mcore_ref_model", "mcore_ref_adapter", "kd_teacher_adapters")
FOLDERS_OR_IDS = ("adapters", "ref_adapters", "cached_dataset", "cached_val_dataset")
LOCAL_FILES = ("external_plugins", "custom_register_path", "custom_dataset_info")
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
SIZES = (
    *("train_iters", "num_train_epochs", "micro_batch_size", "global_batch_size", "max_length"),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    *("expert_model_parallel_size", "expert_tensor_parallel_size", "virtual_pipeline_model_parallel_size"),
)
WORDS = {"true": True, "false": False, "yes": True, "no": False, "t": True, "f": False, "y": True, "n": False}


def check_command(words: Sequence[str], env: Mapping[str, str], file: str = "", keys: Container[str] = ()) -> None:
    """Raises KDError for what a rank would refuse later, or stumble over.

    Args:
        words: behind `megatron rlhf`.
        env: with what decides the number of processes.
        file, keys: the flags that come from a file.
    """
    if not find_spec("transformer_engine") and env.get("SWIFT_KD_DEVICE") != "cpu":
        raise KDError(
            "there is no Transformer Engine here: on GPUs `pip install 'swift-kd-plugin[gpu]'`, without one set "
            "SWIFT_KD_DEVICE=cpu."
        )
    if {"-h", "--help"} & set(words):
        return
    args = parse(words, file, keys)
    check_kd_flags(args)
    _check_positive(args)
    check_models(args)
    check_features(args, args.model, args.teacher_model)
    check_files(args)
    if args.cp_partition_mode == "zigzag":  # the other one takes a look at Megatron
        check_length(args)
    check_weights_flags(args)
    check_sizes(args, processes_of(env))
    check_tokenizers(args)
    check_some_row_fits(args)


def check_weights_flags(args) -> None:
    """Raises KDError for adapters, checkpoints and sizes of files of weights that a run cannot go on from or write."""
    check_lora(args)
    check_continued_adapter(args)
    check_teacher_adapters(args)
    check_teacher_bits(args)
    check_resume(args)
    bytes_of(args.max_shard_size)


def parse(words: Sequence[str], file: str = "", keys: Container[str] = ()) -> argparse.Namespace:
    """The flags as ms-swift's parser will read them. Raises KDError as that one would."""
    flags = megatron_flags()
    namespace, unknown = _parser().parse_known_args(list(words))
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        meant = meant_by(name, flags) or _begun(name, flags) or suggest(name, flags)
        if unknown[0].endswith((".yaml", ".yml", ".json")) and not unknown[0].startswith("-"):
            raise KDError(why_not_opened(Path(unknown[0]), FileNotFoundError()))
        if name in keys:
            raise KDError(f"{file}: unknown key {name!r}{meant}; see `{HELP}` for the flags.")
        raise KDError(f"unknown on the command line: {unknown[0]}{meant}; see `{HELP}` for the flags.")
    return argparse.Namespace(**megatron_defaults() | vars(namespace))


@cache
def _parser() -> argparse.ArgumentParser:
    flags, defaults = megatron_flags(), megatron_defaults()
    # argparse would take a misspelt --num_train_epoch for --num_train_epochs.
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name, hint in flags.items():
        parser.add_argument(*_spellings(name), dest=name, **_reader_of(hint))
        if bool in _options_of(hint) and defaults[name] is True:
            parser.add_argument(*_spellings(f"no_{name}"), dest=name, action="store_false")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise KDError(f"{message}; see `{HELP}`.")


def _begun(name: str, flags: Iterable[str]) -> str:
    """`` (did you mean --num_train_epochs?)`` for the beginning of a few flags, or nothing."""
    found = [flag for flag in flags if flag.startswith(name)]
    return f" (did you mean {' or '.join(f'--{flag}' for flag in found)}?)" if 0 < len(found) < 5 else ""


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
    names = _names_of(args.kd_datasets)
    for flag in ("dataset", "val_dataset"):
        for dataset in getattr(args, flag) or ():
            if dataset.rpartition("#")[0] not in names and dataset not in names:
                _check_dataset(flag, dataset)
    for flag in (*LOCAL_FOLDERS, *FOLDERS_OR_IDS):
        for folder in as_list(getattr(args, flag)):
            path = Path(folder if os.path.isdir(folder) else folder.partition("#")[0]).expanduser()
            if (flag in LOCAL_FOLDERS or is_local(folder)) and not path.is_dir():
                holds = RESUMABLE if flag.startswith("mcore") else ADAPTER if flag.endswith("adapters") else MODEL
                meant = did_you_mean(path, holds, "give an existing folder.")
                raise KDError(f"--{flag} {folder} does not exist; {meant}")
    if args.kd_teacher_cache:
        _check_cache_folder(args.kd_teacher_cache, args.kd_teacher_cache_mode)
        if args.kd_teacher_cache_mode == "read" and not args.teacher_model_server:
            from swift_kd_plugin.host.teacher.cache_choice import check_read_cache  # needs torch

            check_read_cache(args)
    for flag in LOCAL_FILES:
        for file in as_list(getattr(args, flag)):
            if file != NAME and file.endswith((".py", ".json")) and not Path(file).expanduser().is_file():
                raise _missing(flag, file)


def _check_cache_folder(folder: str, mode: str) -> None:
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise KDError(f"--kd_teacher_cache {folder} is a file; give a folder.")
    if mode == "read" and not path.is_dir():
        raise KDError(f"--kd_teacher_cache {folder} does not exist, and --kd_teacher_cache_mode read only reads it.")


def _names_of(data_yaml: str | None) -> set[str]:
    if data_yaml is None:
        return set()
    file = Path(data_yaml).expanduser()
    if not file.is_file():
        raise _missing("kd_datasets", data_yaml)
    return {str(name) for name in read_mapping(file)}


def _check_dataset(flag: str, dataset: str) -> None:
    """Of a file, which may be followed by #ROWS, or of a folder with :SUBSET#ROWS; ids are looked up by ms-swift."""
    if re.match("(hf|ms)::", dataset, re.IGNORECASE):
        return
    name, number = dataset, ""
    if not os.path.exists(dataset) and "#" in dataset:
        name, _, number = dataset.rpartition("#")
        if not number.strip().isdecimal():
            raise KDError(f"--{flag} {dataset}: what stands behind # is no number of rows.")
    file = Path(name).expanduser()
    if file.is_file():
        if file.suffix.lower() not in DATA_FILES:
            raise KDError(f"--{flag} {name} is none of the files that are read: {', '.join(DATA_FILES)}.")
    elif file.is_dir():
        if name.lower().endswith(DATA_FILES):
            raise _missing(flag, name)
    elif not os.path.exists(place := name.partition(":")[0]) and (is_local(place) or name.lower().endswith(DATA_FILES)):
        raise _missing(flag, name)


def _missing(flag: str, file: str) -> KDError:
    return KDError(f"--{flag} {why_not_opened(Path(file).expanduser(), FileNotFoundError())}")


def as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def processes_of(env: Mapping[str, str]) -> int | None:
    """Ranks of all machines; None where torchrun counts devices itself."""
    if not env.keys() & {"NPROC_PER_NODE", "NNODES"}:  # one process, which another launcher may have started
        return int(world) if (world := env.get("WORLD_SIZE", "1")).isdecimal() else None
    try:
        return int(env.get("NPROC_PER_NODE", "1")) * int(env.get("NNODES", "1"))
    except ValueError:
        return None


def _check_positive(args: argparse.Namespace) -> None:
    for flag in SIZES:
        if (value := getattr(args, flag)) is not None and value < 1:
            raise KDError(f"--{flag} {value} must be at least 1.")


def check_sizes(args: argparse.Namespace, processes: int | None) -> None:
    """Raises KDError for a batch that cannot be cut, or a run of no steps."""
    if args.train_iters is None and args.num_train_epochs is None:
        raise KDError("nothing says how long to train; give --num_train_epochs or --train_iters.")
    if args.streaming:
        _check_stream(args)
    _check_rows(args, 1 if processes is None else _check_batches(args, processes))


def _check_stream(args: argparse.Namespace) -> None:
    """Of a stream nobody knows the number of rows."""
    if args.train_iters is None:
        raise KDError("--streaming true: a stream has no end that is known before; give --train_iters.")
    if args.eval_iters < 0 and (args.val_dataset or args.cached_val_dataset):
        raise KDError("--streaming true: --val_dataset is a stream too; give --eval_iters, or 0 to evaluate nothing.")
    if args.save_strategy == "epoch":
        raise KDError("--streaming true: a stream has no epochs that are known before; give --save_steps.")


def _check_batches(args: argparse.Namespace, processes: int) -> int:
    """Returns how many replicas of the model there are."""
    tp, pp, cp = (getattr(args, f"{kind}_parallel_size") for kind in ("tensor_model", "pipeline_model", "context"))
    if processes % (tp * pp * cp):
        raise KDError(
            f"--tensor_model_parallel_size {tp} x --pipeline_model_parallel_size {pp} x --context_parallel_size {cp} "
            f"does not divide the {processes} processes (NPROC_PER_NODE x NNODES)."
        )
    ep, etp = args.expert_model_parallel_size, args.expert_tensor_parallel_size or 1
    if processes % (ep * etp * pp):
        raise KDError(
            f"--expert_model_parallel_size {ep} x --pipeline_model_parallel_size {pp} x --expert_tensor_parallel_size "
            f"{etp} does not divide the {processes} processes (NPROC_PER_NODE x NNODES)."
        )
    replicas = processes // (tp * pp * cp)
    if args.global_batch_size % (args.micro_batch_size * replicas):
        raise KDError(
            f"--global_batch_size {args.global_batch_size} is no multiple of --micro_batch_size "
            f"{args.micro_batch_size} x {replicas} replicas of the model."
        )
    return replicas


def _check_rows(args: argparse.Namespace, replicas: int) -> None:
    """Counts no further than it must."""
    fills = args.kd_teacher_cache_mode == "fill"
    at_once = 1 if fills else args.micro_batch_size * replicas
    of_step = 1 if fills or args.train_iters is not None else -(-args.global_batch_size // args.num_train_epochs)
    uncounted = args.streaming or args.cached_dataset or args.interleave_prob
    if args.dataset and not uncounted and (rows := _count_rows(args.dataset, max(at_once, of_step))) is not None:
        if not rows:
            raise KDError(f"--dataset {args.dataset[0]} has no rows.")
        if rows < of_step:
            raise KDError(too_few_rows(rows, args))
        if rows < at_once:
            raise KDError(fewer_than_at_once(rows, args.micro_batch_size, replicas))
    for file in args.val_dataset or ():
        if _count_rows([file], 1) == 0:
            raise KDError(f"--val_dataset {file} has no rows.")


def _count_rows(files: Sequence[str], enough: int) -> int | None:
    """Rows of .jsonl files, at most `enough` of each; None if one of them is something else."""
    rows = 0
    for file in files:
        if not (file.endswith(".jsonl") and os.path.isfile(file)):
            return None
        with open(file, "rb") as lines:
            rows += sum(1 for line in islice((line for line in lines if line.strip()), enough))
    return rows
