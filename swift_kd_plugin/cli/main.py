"""The console script `swift-kd`."""

import typer

from swift_kd_plugin.cli.cache import cache
from swift_kd_plugin.cli.config_file import ManyValues
from swift_kd_plugin.cli.eval import evaluate
from swift_kd_plugin.cli.generate import generate
from swift_kd_plugin.cli.key_values import KeyValues
from swift_kd_plugin.cli.pair import pair
from swift_kd_plugin.cli.patches import patches
from swift_kd_plugin.cli.score import score
from swift_kd_plugin.cli.show import show
from swift_kd_plugin.cli.train import train
from swift_kd_plugin.version import __version__

app = typer.Typer(
    help="Knowledge distillation for Megatron-SWIFT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(pair)
app.command()(show)
app.command(cls=KeyValues)(train)
app.command(cls=KeyValues)(score)
app.command()(patches)
app.add_typer(cache, name="cache")
app.command(cls=ManyValues)(generate)
app.command("eval", cls=ManyValues)(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Training is `megatron rlhf --rlhf_type gkd --external_plugins swift_kd_plugin ...`, or `swift-kd train FILE`."""
