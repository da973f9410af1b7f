"""Which part of a teacher cache a run works with, and sentences for what it lacks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift.utils import get_logger
from torch import distributed as dist

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.teacher.cache_keys import CacheEntry
from swift_kd_plugin.teacher.cache_identity import VERSION, CacheIdentity
from swift_kd_plugin.teacher.cache_shards import Shard, read_shard
from swift_kd_plugin.teacher.teacher_cache import TeacherCache, caches_in
from swift_kd_plugin.teacher.weight_digests import REMEMBERED, bytes_to_read, fingerprint

logger = get_logger()
FLAG = "--kd_teacher_cache"
AUTO = "let --kd_teacher_cache_mode auto score what is missing"
NOTHING = f"{{}} {{}} holds no rows of any teacher; check the path, or {AUTO}."
BUILT = ("rope_scaling", "moe_expert_capacity_factor")
FULL = 16  # bits
FEATURES = "features"  # codec
SAID = 1e9  # bytes: below, the weights are read in no time


def cache_folder(args) -> Path:
    return Path(args.kd_teacher_cache).expanduser()


def make_identity(args, config, folder: str) -> CacheIdentity:
    """What the teacher of a run would be known by. All ranks call it; one of them reads the weights.

    Args:
        config: of the teacher as Megatron builds it.
        folder: of its weights.

    Raises:
        KDError: the weights cannot be read.
    """
    prints: list = [None, None]
    if dist.get_rank() == 0:
        try:
            prints = [_fingerprints(args, Path(folder)), None]
        except KDError as error:
            prints = [None, str(error)]
    dist.broadcast_object_list(prints, src=0)
    if prints[1] is not None:
        raise KDError(prints[1])
    teacher, adapters = prints[0]
    settings = {"hidden": config.hidden_size}
    if args.gkd_logits_topk is not None:
        vocabulary = config.padded_vocab_size
        k = min(args.gkd_logits_topk, vocabulary)
        settings = {"k": k, "vocabulary": vocabulary, "temperature": _temperature(args)}
    return CacheIdentity(
        teacher=teacher,
        adapters=tuple(adapters),
        bits=args.kd_teacher_bits or FULL,
        dtype=str(config.params_dtype).removeprefix("torch."),
        codec="hidden" if args.gkd_logits_topk is None else "topk",
        settings=settings,
        built={name: getattr(args, name) for name in BUILT if getattr(args, name) is not None},
    )


def _temperature(args) -> float:
    """At which top-k rows are taken."""
    return args.temperature if args.kd_temperature is None else args.kd_temperature


def _fingerprints(args, folder: Path) -> tuple[str, list[str]]:
    """Of the teacher's weights and of its adapters'."""
    memory = cache_folder(args) / REMEMBERED
    if (size := bytes_to_read(folder, memory)) > SAID:
        logger.info(f"{FLAG} knows the teacher by its weights: {size / 1e9:.1f} GB of {folder} are read once.")
    adapters = [fingerprint(Path(adapter), "adapter_config.json", memory) for adapter in args.kd_teacher_adapters]
    return fingerprint(folder, memory=memory), adapters


def identity_of_layer(teacher: CacheIdentity, hidden: int, layer: int) -> CacheIdentity:
    """Of what an inner layer of the same teacher puts out, whatever else is kept of it.

    Args:
        hidden: size of its hidden states.
    """
    return replace(teacher, codec=FEATURES, settings={"hidden": hidden, "layer": layer})


def check_read_cache(args) -> None:
    """Raises KDError if --kd_teacher_cache_mode read finds nothing of this teacher, as far as flags and files tell.

    Weights that have not been read before are compared when the models are loaded, as is what Megatron builds of them.
    """
    folder = cache_folder(args)
    shards = [read_shard(files[0]) for files in caches_in(folder)]
    if not shards:
        raise KDError(NOTHING.format(FLAG, folder))
    topk = args.kd_topk or args.gkd_logits_topk
    wanted = {"version": VERSION, "bits": args.kd_teacher_bits or FULL, "codec": "hidden" if topk is None else "topk"}
    if topk is not None:
        wanted |= {"k": topk, "temperature": _temperature(args)}
    teacher = Path(args.teacher_model or args.model or "").expanduser()
    memory = folder / REMEMBERED
    if teacher.is_dir() and not bytes_to_read(teacher, memory):
        wanted["teacher"] = fingerprint(teacher, memory=memory)
    held = [(CacheIdentity.from_json(shard.identity), json.loads(shard.about)) for shard in shards]
    found = [(_differences(one, wanted), about) for one, about in held if one.codec != FEATURES]
    if found and all(differences for differences, _ in found):
        differences, about = min(found, key=lambda item: len(item[0]))
        name, (there, here) = next(iter(differences.items()))
        raise KDError(_of_another(folder, _differs_in(name, about.get("teacher", "a teacher"), there, here)))


def _differences(held: CacheIdentity, wanted: dict) -> dict[str, tuple]:
    """What is stored otherwise than wanted, by name: there and here."""
    there = {"version": held.version, "bits": held.bits, "codec": held.codec, "teacher": held.teacher, **held.settings}
    clipped = dict(wanted)
    if held.codec == "topk" and "k" in wanted:
        clipped["k"] = min(wanted["k"], held.settings["vocabulary"])
    return {name: (there.get(name), value) for name, value in clipped.items() if there.get(name) != value}


def why_nothing(folder: Path, wanted: CacheIdentity) -> str:
    """The sentence for a folder without a sample of this teacher: what is nearest to it there."""
    shards = [read_shard(files[0]) for files in caches_in(folder)]
    if not shards:
        return NOTHING.format(FLAG, folder)

    def distance(shard: Shard) -> tuple[bool, int]:
        identity = CacheIdentity.from_json(shard.identity)
        return identity.codec == FEATURES, len(identity.differs_in(wanted))

    shard = min(shards, key=distance)
    found = CacheIdentity.from_json(shard.identity).differs_in(wanted)
    name, (there, here) = next(iter(found.items()))
    of = json.loads(shard.about).get("teacher", "a teacher")
    return _of_another(folder, _differs_in("version" if "version" in found else name, of, there, here))


def _of_another(folder: Path, said: str) -> str:
    return f"{FLAG} {folder} holds no rows of this teacher: {said}; give the same teacher and codec, or {AUTO}."


def _differs_in(name: str, of: str, there: Any, here: Any) -> str:
    if name == "version":
        return f"those of {of} were written by an older version of the plugin, which knew teachers less exactly"
    if name == "teacher":
        return f"those are of {of}, whose weights or config.json are others than this run's"
    if name == "adapters":
        return f"those of {of} were written with {len(there)} adapters, and are not those of this run"
    return f"those of {of} have {name} {there}, and this run has {here}"


def why_no_layer(folder: Path, wanted: CacheIdentity) -> str:
    """The sentence for a folder that has rows of this teacher, and nothing of one of its inner layers."""
    identities = [CacheIdentity.from_json(read_shard(files[0]).identity) for files in caches_in(folder)]
    differences = [one.differs_in(wanted) for one in identities]
    layers = sorted(found["layer"][0] for found in differences if list(found) == ["layer"])
    held = f"the layers {', '.join(map(str, layers))}" if layers else "no inner layer"
    return (
        f"{FLAG} {folder} holds {held} of this teacher, and --kd_feature_layers asks for layer "
        f"{wanted.settings['layer']}; match other layers, or {AUTO}."
    )


def why_missing(folder: Path, cache: TeacherCache, entry: CacheEntry) -> str:
    """The sentence for a sample that a run needs and does not find."""
    before = {json.loads(shard.about).get("template") for shard in cache.shards}
    template = cache.about["template"]
    hint = "they are of other rows, another view, or another system prompt"
    if entry.written:
        hint = "a model has just written its response, which is among them only if the same was written before"
    elif template not in before:
        hint = f"they were encoded with the template {', '.join(sorted(map(str, before)))}, and this run has {template}"
    layer = cache.identity.settings.get("layer")
    of = f"layer {layer} of this teacher" if layer else "this teacher"
    return f"{entry.name} is not among the {len(cache):,} samples of {of} in {FLAG} {folder}: {hint}; {AUTO}."
