"""Flags from a YAML or JSON file, and flags that take several values, as ms-swift's do."""

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from swift_kd_plugin.cli.reporting import errors_in_one_sentence
from swift_kd_plugin.config.mapping_files import read_mapping, resolve
from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.errors import KDError


class ManyValues(TyperCommand):
    """A command whose flags of several values take them one after the other: `--dataset a b -o out`.

    A flag's first value may begin with a dash; the next argument that does so is a flag, as the parser sees it.
    """

    def make_parser(self, ctx: typer.Context) -> Any:
        parser = super().make_parser(ctx)
        for option in {*parser._long_opt.values(), *parser._short_opt.values()}:
            if option.action == "append":
                _take_all(option)
        return parser


def _take_all(option: Any) -> None:
    take_one = option.process

    def take(value: str, state: Any) -> None:
        take_one(value, state)
        while state.rargs and not (state.rargs[0][:1] in option.prefixes and len(state.rargs[0]) > 1):
            take_one(state.rargs.pop(0), state)

    option.process = take


def read_defaults(ctx: typer.Context, file: Path | None) -> Path | None:
    """Callback of --config: the file's keys become the defaults of the other flags."""
    if file is not None:
        with errors_in_one_sentence(ctx.info_name):
            known = {parameter.name: parameter for parameter in ctx.command.params if parameter.name != "config"}
            named = f"--config {file}"
            flags = resolve(read_mapping(file, named, "flags to values, for example `temperature: 0.7`"), named)
            ctx.default_map = {name: _value(known, name, value, file) for name, value in flags.items()}
    return file


def _value(known: dict[str, Any], name: str, value: Any, file: Path) -> Any:
    if name not in known:
        raise KDError(f"--config {file} has the unknown key {name!r}{suggest(name, known)}; see --help for the flags.")
    parameter = known[name]
    if isinstance(value, dict):
        raise KDError(f"--config {file}: {name} is a mapping; it must be a value{' or a list' * parameter.multiple}.")
    if parameter.multiple:
        return value if isinstance(value, list) else [value]
    if isinstance(value, list):
        raise KDError(f"--config {file}: {name} is a list; it must be one value.")
    # YAML reads on and off as true and false.
    words = {True: "on", False: "off"}
    return words[value] if isinstance(value, bool) and not parameter.is_flag else value
