"""LoRA that Megatron cannot hold, or that ms-swift would train or save as another model: told by flags and files."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import CONFIG, WEIGHTS, is_tied, opened, read_settings, why_more_than_matrices

# Megatron fuses these, which then share one lora_A; the first of each names the fused layer.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# By a layer's name on Hugging Face: Megatron's.
MEGATRON_NAMES = dict.fromkeys(FUSED[0], "linear_qkv") | dict.fromkeys(FUSED[1], "linear_fc1")
MEGATRON_NAMES |= {"o_proj": "linear_proj", "down_proj": "linear_fc2"}
INPUT_EMBEDDING = ("all-embedding", "embedding", "word_embeddings")
VOCABULARY = (*INPUT_EMBEDDING, "output_layer")
# By the name of a module that is trained as a whole on Hugging Face: Megatron's.
SAVED_NAMES = {"lm_head": "output_layer", "embed_tokens": "word_embeddings", "norm": "final_layernorm"}
MATRIX = re.compile(r"(?P<place>.*\.)(?P<layer>\w+)\.lora_A\.weight")
END = re.compile(r"\b(embed_tokens|wte|lm_head|embed_out)\.lora_")
VISION = re.compile(r"\b(visual|vision\w*)\.")  # PEFT's own modules, each with a lora_A of its own


def check_lora(args) -> None:
    """Raises KDError for flags of LoRA with which the saved adapter, a resumed run or the teacher is another model."""
    if args.tuner_type != "lora" and not args.adapters and not args.mcore_adapter:
        return
    if args.lora_rank < 1:
        raise KDError(f"--lora_rank {args.lora_rank} must be at least 1.")
    if args.lora_bias != "none":
        raise KDError(
            f"--lora_bias {args.lora_bias}: ms-swift trains biases and saves none of them beside the adapter, so that "
            "a resumed run is another one; leave it at none, or train all weights (--tuner_type full)."
        )
    _check_targets(args)
    if (args.expert_tensor_parallel_size or 1) > 1 and _adapts_experts(args):
        raise KDError("--expert_tensor_parallel_size above 1: Megatron's LoRA has no such experts; leave it at 1.")
    _check_saved_modules(args)
    _check_own_teacher(args)


def _check_targets(args) -> None:
    """An embedding or output layer as a target, which PEFT refuses late."""
    if args.target_regex:
        raise KDError("--target_regex: ms-swift cannot save such an adapter; name the layers with --target_modules.")
    if layers := sorted(set(VOCABULARY) & set(_targets(args))):
        raise KDError(
            f"--target_modules {layers[0]}: Megatron's embedding and output layer take no adapter; leave it out, or "
            "train them as they are (--tuner_type full --trainable_parameters)."
        )


def _targets(args) -> list[str]:
    return args.target_modules if isinstance(args.target_modules, list) else []


def _adapts_experts(args) -> bool:
    return bool({"all-linear", "linear_fc1", "linear_fc2"} & set(_targets(args)))


def _check_saved_modules(args) -> None:
    """Modules that are trained as a whole: of fused layers and tied ends ms-swift saves another model."""
    for name in args.modules_to_save or ():
        last = name.rpartition(".")[2]
        if last.startswith("linear_") or last == "router":
            raise KDError(
                f"--modules_to_save {name}: ms-swift does not save this layer beside the adapter; give it to "
                "--target_modules, or train all weights (--tuner_type full)."
            )
        if last in SAVED_NAMES:
            raise KDError(f"--modules_to_save {name} is Hugging Face's name; here it is {SAVED_NAMES[last]}.")
        if last in INPUT_EMBEDDING and args.model and is_tied(Path(args.model).expanduser()):
            raise KDError(
                f"--modules_to_save {name}: the embedding of {args.model} is its output layer, too, and the saved "
                "adapter holds one of them; use --tuner_type full."
            )


def _check_own_teacher(args) -> None:
    """With LoRA and one model for both, the teacher is the student without its adapter."""
    if args.rlhf_type != "gkd" or args.teacher_model is None or args.teacher_model != args.model:
        return
    why = None
    if {"all-router", "router"} & set(_targets(args)):
        why = "--target_modules all-router stays in the router when the adapter is switched off"
    elif args.mcore_model:
        why = f"--mcore_model {args.mcore_model} is loaded in its place"
    if why:
        raise KDError(
            f"{why}, and with LoRA and the same --teacher_model as --model the teacher is the student without its "
            "adapter; give the teacher as another folder."
        )


def check_continued_adapter(args) -> None:
    """Raises KDError if --adapters names what Megatron would hold in part, as another model, or not at all."""
    for adapter in args.adapters or ():
        folder = Path(adapter).expanduser()
        if not folder.is_dir():  # may be the id of one on a hub
            continue
        settings = read_settings(folder, "--adapters")
        _check_continued_modules(folder, settings, args)
        settings = {**settings, "modules_to_save": None}
        if (why := why_more_than_matrices(settings)) or (why := _patterns(settings)):
            raise KDError(
                f"--adapters {folder} {why}, which Megatron's LoRA does not have; merge it (`swift export --merge_lora "
                "true`) and train a new adapter on the merged model."
            )
        if not (folder / WEIGHTS).is_file():
            raise KDError(f"--adapters {folder} has no {WEIGHTS}; save it with safetensors.")
        with opened(folder / WEIGHTS) as matrices:
            _check_ends(folder, matrices.keys())
            _check_shared(folder, matrices)
            _check_same_targets("--adapters", folder, matrices.keys(), args)
    _check_resumed_adapter(args)


def _check_continued_modules(folder: Path, settings: dict[str, Any], args) -> None:
    """Modules that were trained as a whole must be trained so again."""
    saved = {name.rpartition(".")[2] for name in settings.get("modules_to_save") or ()}
    modules = {name.rpartition(".")[2] for name in args.modules_to_save or ()}
    if left := sorted(name for name in saved if SAVED_NAMES.get(name, name) not in modules):
        raise KDError(
            f"--adapters {folder} has trained {', '.join(left)} as a whole, which would be left out; give "
            f"--modules_to_save {' '.join(sorted(SAVED_NAMES.get(name, name) for name in saved))}."
        )


def _check_ends(folder: Path, names: Iterable[str]) -> None:
    if ends := sorted(name for name in names if END.search(name)):
        raise KDError(
            f"--adapters {folder} changes {END.search(ends[0])[1]}, and Megatron's embedding and output layer take no "
            "adapter; merge it (`swift export --merge_lora true`) and train a new adapter on the merged model."
        )


def _check_resumed_adapter(args) -> None:
    """--mcore_adapter: the flags must be those of the checkpoint, which ms-swift takes from the command line."""
    folder = Path(args.mcore_adapter or "").expanduser()
    if args.mcore_adapter is None or not (folder / CONFIG).is_file():
        return
    settings = read_settings(folder, "--mcore_adapter")
    for name, flag in (("r", "lora_rank"), ("lora_alpha", "lora_alpha"), ("use_rslora", "use_rslora")):
        if name in settings and settings[name] != getattr(args, flag):
            raise KDError(
                f"--mcore_adapter {folder} was trained with --{flag} {_shown(settings[name])}, and here it is "
                f"{_shown(getattr(args, flag))}; give the same."
            )
    if (folder / WEIGHTS).is_file():
        with opened(folder / WEIGHTS) as matrices:
            _check_same_targets("--mcore_adapter", folder, matrices.keys(), args)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _patterns(settings: dict[str, Any]) -> str | None:
    names = ("rank_pattern", "alpha_pattern", "layers_to_transform")
    return next((f"has {name} {settings[name]!r}" for name in names if settings.get(name)), None)


def _check_shared(folder: Path, matrices: Any) -> None:
    names = set(matrices.keys())
    for name in sorted(names):
        match = MATRIX.fullmatch(name)
        if match is None or VISION.search(name) or f"{match['place']}kv_a_proj_with_mqa.lora_A.weight" in names:
            continue  # MLA has a q_proj alone
        group = next((group for group in FUSED if match["layer"] == group[0]), ())
        for other in group[1:]:
            partner = f"{match['place']}{other}.lora_A.weight"
            if partner in names and matrices.get_tensor(partner).equal(matrices.get_tensor(name)):
                continue
            if partner not in names and other == "v_proj":
                continue  # there are models without it
            why = "have a lora_A each" if partner in names else f"are not both adapted ({other} is not)"
            raise KDError(
                f"--adapters {folder}: {group[0]} and {other} of {match['place'].rstrip('.')} {why}, as PEFT and "
                "`swift sft` make them, and in Megatron they share one; merge it (`swift export --merge_lora true`) "
                "and train a new adapter on the merged model."
            )


def _check_same_targets(flag: str, folder: Path, names: Iterable[str], args) -> None:
    """The layers that an adapter has must be those that the flags say; of other layers than these nothing is known."""
    layers = {match["layer"] for name in names if (match := MATRIX.fullmatch(name)) and not VISION.search(name)}
    if not layers <= MEGATRON_NAMES.keys():
        return
    there, targets = {MEGATRON_NAMES[layer] for layer in layers}, _targets(args)
    wanted = set(MEGATRON_NAMES.values()) if "all-linear" in targets else set(targets)
    if wanted <= set(MEGATRON_NAMES.values()) and wanted != there:
        raise KDError(
            f"{flag} {folder} has adapted {', '.join(sorted(layers))}, and --target_modules says "
            f"{' '.join(targets)}; give --target_modules {' '.join(sorted(there))}."
        )
