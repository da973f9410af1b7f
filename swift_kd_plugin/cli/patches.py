"""`swift-kd patches`: every symbol of the host that the plugin replaces."""

import json

import typer

from swift_kd_plugin.host.start.host_patches import LEDGER


def patches(as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text.")) -> None:
    """Lists every patched symbol of the host with why it is patched and when the patch can be removed."""
    rows = [{"symbol": p.symbol, "why": p.why, "remove_when": p.remove_when} for p in LEDGER.patches]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['symbol']}\n    why:         {row['why']}\n    remove when: {row['remove_when']}")
