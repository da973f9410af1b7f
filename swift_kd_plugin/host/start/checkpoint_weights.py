"""The names of a checkpoint's weights, by its safetensors files alone."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import safe_open

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Weights:
    """Of the model in a folder; none of a folder without safetensors."""

    folder: Path

    @cached_property
    def file_of(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: self.folder / file for name, file in names.items()}
        files = sorted(self.folder.glob("*.safetensors"))
        return {name: file for file in files for name in _names(file)}

    def find(self, pattern: str) -> str | None:
        """The first name in which the pattern is found."""
        return next((name for name in self.file_of if re.search(pattern, name)), None)

    def find_nonzero(self, pattern: str) -> str | None:
        """The first such name whose weight is not all zeros."""
        for name, file in self.file_of.items():
            if re.search(pattern, name):
                with safe_open(file, "pt") as opened:
                    if opened.get_tensor(name).any():
                        return name
        return None


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())
