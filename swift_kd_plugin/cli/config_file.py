"""Flags from a YAML or JSON file, and flags that take several values, as ms-swift's do."""

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from swift_kd_plugin.cli.options import errors_in_one_sentence
from swift_kd_plugin.data.mapping import read_mapping, resolve
from swift_kd_plugin.data.schema import suggest
from swift_kd_plugin.errors import KDError


class ManyValues(TyperCommand):
    """A command whose flags of several values take them one after the other: `--dataset a b`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        many = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        expanded: list[str] = []
        flag = None
        for argument in args:
            if argument.startswith("--"):
                flag = argument if argument in many else None
            elif flag and expanded[-1] != flag:
                expanded.append(flag)
            expanded.append(argument)
        return super().parse_args(ctx, expanded)


def read_defaults(ctx: typer.Context, file: Path | None) -> Path | None:
    """Callback of --config: the file's keys become the defaults of the other flags."""
    if file is not None:
        with errors_in_one_sentence(ctx.info_name):
            known = {parameter.name: parameter for parameter in ctx.command.params if parameter.name != "config"}
            named = f"--config {file}"
            flags = resolve(read_mapping(file, named, "flags to values, for example `temperature: 0.7`"), named)
            ctx.default_map = {name: _value(known, name, given, file) for name, given in flags.items()}
    return file


def _value(known: dict[str, Any], name: str, given: Any, file: Path) -> Any:
    if name not in known:
        raise KDError(f"--config {file} has the unknown key {name!r}{suggest(name, known)}; see --help for the flags.")
    parameter = known[name]
    if isinstance(given, dict):
        raise KDError(f"--config {file}: {name} is a mapping; it must be a value{' or a list' * parameter.multiple}.")
    if parameter.multiple:
        return given if isinstance(given, list) else [given]
    if isinstance(given, list):
        raise KDError(f"--config {file}: {name} is a list; it must be one value.")
    # YAML reads on and off as true and false.
    words = {True: "on", False: "off"}
    return words[given] if isinstance(given, bool) and not parameter.is_flag else given
