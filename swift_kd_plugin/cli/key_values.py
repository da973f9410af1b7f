"""Commands that take the flags of a training as KEY=VALUE: `--lr 1e-5` is met with how it is written."""

import re
from typing import Any

import typer
from typer.core import TyperCommand

from swift_kd_plugin.cli.reporting import errors_in_one_sentence
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.flag_aliases import FLAG_ALIASES, VALUES
from swift_kd_plugin.host.start.megatron_flags import megatron_flags

FLAG = re.compile(r"--(\w[\w-]*)(?:=(.*))?", re.DOTALL)


class KeyValues(TyperCommand):
    """A command whose arguments behind the file are keys of a training."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> Any:
        with errors_in_one_sentence(ctx.info_name):
            self._refuse_flags(ctx.info_name, args)
        return super().parse_args(ctx, args)

    def _refuse_flags(self, command: str, args: list[str]) -> None:
        own = {"--help", *(option for parameter in self.params for option in parameter.opts)}
        for index, word in enumerate(args):
            flag = FLAG.fullmatch(word)
            if flag is None or word.partition("=")[0] in own:
                continue
            name = flag[1].replace("-", "_")
            key = FLAG_ALIASES.get(name, name)
            if key in megatron_flags():
                following = args[index + 1] if index + 1 < len(args) else ""
                value = flag[2] or (following if following and not following.startswith("--") else "true")
                given = "..." if name in VALUES else value
                raise KDError(
                    f"--{flag[1]} is a flag of the run and none of `swift-kd {command}`, which takes it as key=value: "
                    f"write {key}={given}."
                )
