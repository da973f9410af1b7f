"""YAML and JSON files that map names to values, as OmegaConf reads them."""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from swift_kd_plugin.errors import KDError

# Values for a key that a file leaves open.
EXAMPLES = {
    "dataset": "questions.jsonl",
    "kd_teacher_adapters": "[ADAPTER]",
    "model": "MODEL",
    "teacher_model": "MODEL",
}


def read_mapping(file: Path, named: str | None = None, example: str = "") -> DictConfig:
    """The keys of a file; interpolations are not resolved yet.

    Args:
        named: what a sentence calls the file.
        example: what it should hold.

    Raises:
        KDError: it cannot be read, or is no mapping.
    """
    named = named or str(file)
    try:
        if file.suffix == ".json":
            config = OmegaConf.create(json.loads(file.read_text(encoding="utf-8")))
        else:
            config = OmegaConf.load(file)
    except OSError as error:
        raise KDError(f"{named} cannot be read: {error.strerror}.") from error
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        kind = "JSON" if file.suffix == ".json" else "YAML"
        raise KDError(f"{named} is not valid {kind}: {' '.join(str(error).split())}.") from error
    if not isinstance(config, DictConfig):
        raise KDError(f"{named} must map {example}.")
    return config


def resolve(config: DictConfig, named: str | Path) -> dict[str, Any]:
    """The config as plain values, interpolations resolved. Raises KDError naming file and key of one that fails."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        missing = sorted(OmegaConf.missing_keys(config))
        given = " ".join(f"{key}={EXAMPLES.get(key.rpartition('.')[2], 'VALUE')}" for key in missing)
        raise KDError(f"{named} leaves {' and '.join(missing)} to you; give it: {given}") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise KDError(f"{named}: {f'{key}: ' if key else ''}{first_line(error)}.") from error


def first_line(error: Exception) -> str:
    """What OmegaConf says, without the lines about its nodes."""
    line = str(error).strip().splitlines()[0].rstrip(".")
    return re.sub(r"^\w+ raised while resolving interpolation: ", "", line).strip("\"'")
