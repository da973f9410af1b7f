"""What can be known about a model from its config.json, before a process group or a weight is touched."""

import os
from pathlib import Path

from swift_kd_plugin.data.files import is_local
from swift_kd_plugin.data.near_checkpoints import did_you_mean
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.engines import VLLM_HOTTEST
from swift_kd_plugin.generation.model_folder import has_tokenizer, no_tokenizer
from swift_kd_plugin.host.start.weight_files import check_weight_files, read_object

HUB_MARKERS = (".msc", ".mdl", ".git")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def is_plain_folder(path: str) -> bool:
    """A folder that was not downloaded from a hub."""
    return os.path.isdir(path) and not any(os.path.exists(os.path.join(path, marker)) for marker in HUB_MARKERS)


def check_models(args) -> None:
    """Raises KDError if --model or --teacher_model is a missing folder or does not fit the parallel layout."""
    if not any((args.model, args.mcore_model, args.mcore_adapter, args.adapters)):
        raise KDError("--model is missing; give a folder or the id of a model on a hub.")
    for flag in ("model", "teacher_model"):
        path = getattr(args, flag, None)
        if not path:
            continue
        _check_folder(flag, path)
        if flag != "model" or not args.mcore_model:
            check_weight_files(flag, path)
        config = read_config(path)
        if config:
            _check_layout(args, path, config)


def check_tokenizers(args) -> None:
    """Raises KDError if the folder of a model has no tokenizer."""
    for flag in ("model", "teacher_model"):
        path = os.path.expanduser(getattr(args, flag, None) or "")
        if os.path.isfile(os.path.join(path, "config.json")) and not has_tokenizer(Path(path)):
            raise KDError(f"--{flag} {no_tokenizer(path)}")


def check_length(args) -> None:
    """Raises KDError if context parallelism cannot cut --max_length into equal parts."""
    cp = args.context_parallel_size
    if cp > 1 and args.cp_partition_mode == "contiguous" and not _attention_knows_partition():
        raise KDError(
            "--cp_partition_mode contiguous is not known to the attention of this Megatron-Core, which takes every "
            "sequence for cut in zigzag order and would mix up its positions; leave the flag out."
        )
    parts = 2 * cp if args.cp_partition_mode == "zigzag" else cp
    if cp > 1 and args.max_length and args.max_length % parts:
        nearest = max(parts, args.max_length // parts * parts)
        raise KDError(
            f"--context_parallel_size {cp} cuts a sequence into {parts} equal parts, and --max_length "
            f"{args.max_length} is not divisible by {parts}; use --max_length {nearest}."
        )


def check_row_count(args, train_dataset) -> None:
    """Raises KDError if the rows that were read make no step, which ms-swift finds out with the models loaded."""
    if not hasattr(train_dataset, "__len__") or args.kd_teacher_cache_mode == "fill":
        return
    rows, at_once = len(train_dataset), args.micro_batch_size * args.data_parallel_size
    if rows < at_once:
        raise KDError(fewer_than_at_once(rows, args.micro_batch_size, args.data_parallel_size))
    if args.train_iters < 1:
        raise KDError(too_few_rows(rows, args))


def fewer_than_at_once(rows: int, micro_batch: int, replicas: int) -> str:
    """The sentence for rows that do not fill one micro-batch of each replica."""
    are = "1 row is" if rows == 1 else f"{rows:,} rows are"
    return (
        f"{are} fewer than --micro_batch_size {micro_batch} x {replicas} replicas of the model take at a time; "
        "lower it, or give more rows."
    )


def too_few_rows(rows: int, args) -> str:
    """The sentence for rows that make no step."""
    epochs = f" in {args.num_train_epochs} epochs" if args.num_train_epochs > 1 else ""
    makes = "1 row makes" if rows == 1 else f"{rows:,} rows make"
    return f"{makes} no step of --global_batch_size {args.global_batch_size}{epochs}; give more, or lower it."


def check_supported(args) -> None:
    """Raises KDError for what distillation would do wrong without a word."""
    if str(args.torch_dtype).removeprefix("torch.") == "float32" and args.fp16 is None and args.bf16 is None:
        raise KDError("--torch_dtype float32 trains in fp16; add --fp16 false --bf16 false to train in float32.")
    if args.mtp_num_layers:
        raise KDError(
            "--mtp_num_layers: distillation gives the multi-token prediction layers no loss, so they would be saved "
            "untrained; leave the flag out."
        )


def check_sampling(args) -> None:
    """Raises KDError for sampling that vLLM would refuse when the models are loaded."""
    if args.use_vllm and (args.lmbda or args.seq_kd) and args.temperature > VLLM_HOTTEST:
        raise KDError(
            f"--temperature {args.temperature:g}: vLLM writes responses with {VLLM_HOTTEST} at most; lower it, give "
            "the loss one of its own (--kd_temperature), or let transformers write (--kd_student_engine transformers)."
        )


def _attention_knows_partition() -> bool:
    from megatron.core.packed_seq_params import PackedSeqParams

    return "cp_partition_mode" in PackedSeqParams.__dataclass_fields__


def _check_folder(flag: str, path: str) -> None:
    folder, colon, part = path.rpartition(":")
    path = os.path.expanduser(os.path.join(folder, part) if colon and os.path.isdir(folder) else path)
    if not os.path.isdir(path):
        meant = did_you_mean(Path(path))
        if is_local(path) or meant:
            meant = meant or "give an existing folder or the id of a model on a hub."
            raise KDError(f"--{flag} {path} does not exist; {meant}")
        return
    if not os.path.exists(os.path.join(path, "config.json")):
        meant = did_you_mean(Path(path), otherwise="give the folder of a Hugging Face model.")
        raise KDError(f"--{flag} {path} has no config.json; {meant}")


def read_config(path: str) -> dict | None:
    file = os.path.join(os.path.expanduser(path), "config.json")
    if not os.path.exists(file):
        return None
    config = read_object(file)
    text_config = config.get("text_config", config)
    return text_config if isinstance(text_config, dict) else config


def _check_layout(args, path: str, config: dict) -> None:
    tp, pp, ep = (
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.expert_model_parallel_size,
    )
    config = {name: value for name, value in config.items() if type(value) is int}
    heads = config.get("num_attention_heads")
    groups = config.get("num_key_value_heads", heads)
    layers = config.get("num_hidden_layers")
    experts = next((config[name] for name in EXPERT_COUNTS if config.get(name)), None)
    if heads and heads % tp:
        raise KDError(f"--tensor_model_parallel_size {tp} does not divide the {heads} attention heads of {path}.")
    if groups and groups % tp and tp % groups:
        raise KDError(f"--tensor_model_parallel_size {tp} does not fit the {groups} key-value heads of {path}.")
    if layers and layers < pp:
        raise KDError(f"--pipeline_model_parallel_size {pp} is more than the {layers} layers of {path}.")
    if experts and experts % ep:
        raise KDError(f"--expert_model_parallel_size {ep} does not divide the {experts} experts of {path}.")
