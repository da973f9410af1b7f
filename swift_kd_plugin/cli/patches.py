"""`swift-kd patches`: every symbol of the host that the plugin replaces or overrides."""

import json

import typer

from swift_kd_plugin.host.start.host_patches import HOST_LEDGER
from swift_kd_plugin.host.start.seams import SEAMS


def patches(as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text.")) -> None:
    """Lists every patched symbol of the host with why it is patched and when the patch can be removed, and the methods
    of its trainer that are overridden."""
    rows = [{"symbol": p.symbol, "why": p.why, "remove_when": p.remove_when} for p in HOST_LEDGER.patches]
    overridden = [{"symbol": seam.symbol, "parameters": seam.parameters, "why": seam.why} for seam in SEAMS]
    if as_json:
        typer.echo(json.dumps({"patches": rows, "overridden": overridden}, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['symbol']}\n    why:         {row['why']}\n    remove when: {row['remove_when']}")
    typer.echo("\noverridden, not replaced:")
    for row in overridden:
        typer.echo(f"{row['symbol']}({row['parameters']})\n    for:         {row['why']}")
