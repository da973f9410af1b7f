"""Reads a recipe: a YAML or JSON file, the files that it is based on, its section `tiny`, and `key=value` overrides."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from swift_kd_plugin.config.mapping_files import first_line, read_mapping, resolve
from swift_kd_plugin.data.files import why_not_opened
from swift_kd_plugin.errors import KDError

BASE, TINY = "base", "tiny"
COMMAND_LINE = "the command line"


@dataclass(frozen=True)
class Recipe:
    """What a file and its bases say together.

    Args:
        file: the file that was named.
        config: all keys, merged; interpolations are not resolved yet.
        origins: where each dotted key was given last: a file, the section tiny of one, or the command line.
    """

    file: Path
    config: DictConfig
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where a dotted key, or the nearest mapping around it, was given."""
        while key not in self.origins and "." in key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, str(self.file))


def read_recipe(file: str | Path, overrides: list[str] | tuple[str, ...] = (), tiny: bool = False) -> Recipe:
    """Reads a recipe. Raises KDError naming file and key of a mistake.

    Args:
        overrides: `key=value` each; they win over everything.
        tiny: put the section `tiny` on top of the file and its bases; otherwise it is dropped.
    """
    config, origins = _load(Path(file), ())
    config, origins = _apply_tiny(config, origins, file, tiny)
    for override in overrides:
        key, changed = _parse_override(override)
        parent = key.rpartition(".")[0]
        if parent and parent.split(".")[0] != "env" and not isinstance(_select(config, parent), DictConfig):
            raise KDError(
                f"{override!r} on the command line: {file} has no section {parent!r} that could have this key."
            )
        config = _merge(config, changed, f"{override!r} on the command line")
        origins |= _origins(changed, COMMAND_LINE)
    return Recipe(Path(file), config, origins)


def _apply_tiny(
    config: DictConfig, origins: dict[str, str], file: str | Path, wanted: bool
) -> tuple[DictConfig, dict[str, str]]:
    """A config and its origins with the section `tiny` on top if it is wanted, and without it otherwise."""
    small = config.pop(TINY, None)
    if not isinstance(small, DictConfig | None):
        raise KDError(f"{origins[TINY]}: tiny is {small!r}; it must map keys to the values of a small run.")
    if not wanted:
        return config, origins
    if small is None:
        raise KDError(f"--tiny: {file} has no section tiny, whose keys would make a small run of it.")
    inside = {key.removeprefix(f"{TINY}."): place for key, place in origins.items() if key.startswith(f"{TINY}.")}
    places = {key: f"{place}, section tiny" for key, place in inside.items()}
    return _merge(config, small, f"{file}, section tiny"), origins | places


def _select(config: DictConfig, key: str) -> Any:
    return OmegaConf.select(config, key, throw_on_resolution_failure=False)


def _load(file: Path, below: tuple[Path, ...]) -> tuple[DictConfig, dict[str, str]]:
    """A file on top of its bases, and the origin of each key."""
    if file.resolve() in [path.resolve() for path in below]:
        raise KDError(f"base: {' -> '.join(str(path) for path in (*below, file))} goes in a circle.")
    content = _read(file, below)
    config, origins = OmegaConf.create(), {}
    for base in _bases(content, file):
        base_config, base_origins = _load(file.parent / base, (*below, file))
        config = _merge(config, base_config, f"{file}, base {base}")
        origins |= base_origins
    return _merge(config, content, str(file)), origins | _origins(content, str(file))


def _merge(below: DictConfig, above: DictConfig, name: str) -> DictConfig:
    """Both, where `above` wins key by key. Raises KDError if one has a list where the other has a mapping."""
    try:
        return OmegaConf.merge(below, above)
    except (TypeError, OmegaConfBaseException) as error:
        raise KDError(f"{name} does not fit on what it is put on: {first_line(error)}.") from error


def _read(file: Path, below: tuple[Path, ...]) -> DictConfig:
    if not file.is_file():
        of = f"{below[-1]}: base " if below else ""
        raise KDError(f"{of}{why_not_opened(file, FileNotFoundError())}")
    named = f"{file}, which {below[-1]} names as its base," if below else str(file)
    return read_mapping(file, named, "the flags of `megatron rlhf` to values, for example `model: Qwen/Qwen3-8B`")


def _bases(content: DictConfig, file: Path) -> list[str]:
    """Takes the key `base` out of a file and returns what it names."""
    value = resolve(OmegaConf.create({BASE: content.pop(BASE)}), file)[BASE] if BASE in content else []
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise KDError(f"{file}: base is {value!r}; it must be a file or a list of files, relative to this file.")
    return bases


def _origins(config: DictConfig, name: str, prefix: str = "") -> dict[str, str]:
    origins = {}
    for key in config:
        dotted = f"{prefix}{key}"
        origins[dotted] = name
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            origins |= _origins(node, name, f"{dotted}.")
    return origins


def _parse_override(override: str) -> tuple[str, DictConfig]:
    key, sign, _ = override.partition("=")
    if not sign or not key or key.startswith("-"):
        raise KDError(f"{override!r} on the command line is no key=value; write lr=1e-5 or off_policy.lr=1e-5.")
    try:
        return key, OmegaConf.from_dotlist([override])
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise KDError(f"{override!r} on the command line is not valid: {first_line(error)}.") from error
