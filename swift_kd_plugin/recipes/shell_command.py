"""Keys of a recipe as a command: checked flags, environment, and a line for a shell."""

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from swift_kd_plugin.config.typed_keys import fits, suggest, wanted
from swift_kd_plugin.errors import NAME, KDError
from swift_kd_plugin.host.start.flag_aliases import meant_by

NPROC = "NPROC_PER_NODE"
PREPARE = "prepare"
LAUNCH_KEYS: dict[str, Any] = {"nproc_per_node": int | None, "env": dict | None, PREPARE: dict | None}
VARIABLE = re.compile(r"[A-Za-z_]\w*")
Where = Callable[[str], str]


@dataclass(frozen=True)
class Command:
    """A program with its arguments and what it needs in its environment."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    def shell(self) -> str:
        """The command as it is typed into a shell, a flag a line."""
        lines = [" ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.env.items()), *self.argv[:2]])]
        for word in self.argv[2:]:
            if word.startswith("--"):
                lines.append(shlex.quote(word))
            else:
                lines[-1] += f" {shlex.quote(word)}"
        return " \\\n    ".join(lines)


def check_keys(keys: Mapping[str, Any], hints: Mapping[str, Any], where: Where) -> None:
    """Raises KDError for a key that is not in `hints` or whose value has another type; null is always right.

    Args:
        where: the place of a key in words.
    """
    known = {**hints, **LAUNCH_KEYS}
    for key, value in keys.items():
        if key not in known:
            meant = meant_by(key, known, dashes="") or suggest(key, known)
            raise KDError(f"{where(key)}: unknown key {key!r}{meant}.")
        if value is not None and not fits(value, known[key]) and not _fits_as_list(value, known[key]):
            raise KDError(f"{where(key)}: {key} is {value!r}; it must be {wanted(value, known[key])}.")
        if value == []:
            raise KDError(f"{where(key)}: {key} is an empty list, which no flag can say; leave the key out.")


def _fits_as_list(value: Any, hint: Any) -> bool:
    """Whether one value stands for a list of one, as on the command line."""
    options = [hint, *get_args(hint)]
    return any(get_origin(option) is list and fits([value], option) for option in options)


def megatron_command(keys: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Command:
    """`megatron rlhf` with checked keys; the plugin's own flags are added.

    Raises:
        KDError: rlhf_type is another one, a value cannot be written as a flag, or env is not valid.
    """
    flags = {name: value for name, value in keys.items() if name not in LAUNCH_KEYS and value is not None}
    kind = flags.pop("rlhf_type", "gkd")
    if kind != "gkd":
        raise KDError(f"rlhf_type is {kind}; swift-kd trains with gkd alone, so leave the key out.")
    plugins = _as_list(flags.pop("external_plugins", []))
    flags = {"rlhf_type": kind, "external_plugins": [*([] if NAME in plugins else [NAME]), *plugins], **flags}
    argv = [word for name, value in flags.items() for word in _as_words(name, value)]
    return Command(("megatron", "rlhf", *argv), launch_environment(keys, environ))


def launch_environment(keys: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that `env` and `nproc_per_node` ask for; one that is set keeps its value, as in ms-swift."""
    wanted = {}
    if keys.get("nproc_per_node") is not None:
        wanted[NPROC] = str(keys["nproc_per_node"])
    for name, value in (keys.get("env") or {}).items():
        if not isinstance(name, str) or not VARIABLE.fullmatch(name):
            raise KDError(f"env has {name!r}, which is no name of an environment variable.")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise KDError(
                f"env: {name} is {value!r}; it must be a text or a number (write texts like 'true' in quotes)."
            )
        wanted[name] = str(value)
    return {name: environ.get(name, value) for name, value in wanted.items()}


def program_command(argv: tuple[str, ...], keys: Mapping[str, Any]) -> Command:
    """A command of `swift-kd` with checked keys: a list repeats its flag, true is the bare flag, false no flag."""
    words = []
    for name, value in keys.items():
        if name in LAUNCH_KEYS or value is None or value is False:
            continue
        words += [f"--{name}"] if value is True else [f"--{name}={_as_word(item)}" for item in _as_list(value)]
    return Command((*argv, *words), launch_environment(keys))


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, list) else [value]


def _as_words(name: str, value: Any) -> list[str]:
    words = [_as_word(item) for item in _as_list(value)]
    dashed = [word for word in words if word.startswith("-") and not _is_number(word)]
    if dashed and len(words) == 1:
        return [f"--{name}={words[0]}"]
    if dashed:
        raise KDError(f"{name} has {dashed[0]!r}: an item of a list cannot begin with '-' on a command line.")
    return [f"--{name}", *words]


def _as_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _is_number(word: str) -> bool:
    # argparse's own idea of a negative number (before Python 3.14): no exponent.
    return re.fullmatch(r"-\d+|-\d*\.\d+", word) is not None
