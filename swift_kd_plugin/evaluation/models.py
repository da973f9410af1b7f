"""Which models are compared: --model, and the flags that belong to one of them."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.model_setup import ModelOptions

# Flags that take VALUE for every model or NAME=VALUE for one, and whether they may have several values.
PER_MODEL_FLAGS = {
    "adapters": True,
    **dict.fromkeys(("server", "server_adapter", "template", "model_type", "bits"), False),
}
_NAME = re.compile(r"[\w.-]+")


def read_models(options: ModelOptions) -> dict[str, ModelOptions]:
    """The flags of each model by its name, in order.

    Raises:
        KDError: two models have one name, or a flag is for a model that is not there.
    """
    folders = [_name_folder(text) for text in options.model]
    names = [name for name, _ in folders]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise KDError(f"--model: two models are called {twice[0]}; name them, as in --model student={folders[0][1]}.")
    flags_by_name: dict[str, dict[str, Any]] = {
        name: {"model": folder, **dict.fromkeys(PER_MODEL_FLAGS), "adapters": []} for name, folder in folders
    }
    for flag in PER_MODEL_FLAGS:
        for text in getattr(options, flag) or ():
            name, value = _split(text)
            if name is not None and name not in names:
                raise KDError(
                    f"--{flag} {text}: no model is called {name}{suggest(name, names)}; they are {', '.join(names)}."
                )
            for chosen in names if name is None else [name]:
                _set(flags_by_name[chosen], flag, value, chosen)
    for flags in flags_by_name.values():
        # A model with a server is asked there, whatever answers for the others.
        flags["bits"] = int(bits) if (bits := flags["bits"] or "").isdecimal() else flags["bits"]
        flags["engine"] = "server" if flags["server"] else options.engine
    return {name: ModelOptions(**{**vars(options), **flags}) for name, flags in flags_by_name.items()}


def _name_folder(text: str) -> tuple[str, str]:
    name, folder = _split(text)
    if "://" in folder:
        raise KDError(
            f"--model {text} is an address; give --model NAME=FOLDER, whose tokenizer is used, and --server NAME=URL."
        )
    name = name or Path(folder).name or Path(folder).resolve().name
    if not _NAME.fullmatch(name):
        raise KDError(f"--model {text} needs a name of letters and digits: --model NAME={folder}.")
    return name, folder


def _split(text: str) -> tuple[str | None, str]:
    """NAME and VALUE. What is not NAME=VALUE (a path with an equals sign in it, an address) has no name."""
    name, equals, value = text.partition("=")
    is_named = equals and _NAME.fullmatch(name) and not Path(text).exists()
    return (name, value) if is_named else (None, text)


def _set(flags: dict[str, Any], flag: str, value: str, model: str) -> None:
    if PER_MODEL_FLAGS[flag]:
        flags[flag].append(value)
    elif flags[flag] is None:
        flags[flag] = value
    else:
        raise KDError(f"--{flag} is given twice for {model} ({flags[flag]} and {value}); give it once.")
