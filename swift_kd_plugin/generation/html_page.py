"""The report as one HTML file: figures drawn with matplotlib as SVG inside it, nothing from a network."""

import io
from collections.abc import Callable
from html import escape
from typing import Any

from swift_kd_plugin.generation.generation_report import Tally

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2530; background: #f6f7f9; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 10px; }
.sub { color: #5b6675; margin: 0 0 20px; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; }
.tile, .card { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; } .tile span { color: #5b6675; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 10px; }
.plots svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; background: #fff; }
th, td { text-align: left; padding: 6px 10px; border: 1px solid #e1e5ea; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.45 ui-monospace, monospace; }
.card { margin-bottom: 12px; } .role { color: #5b6675; font-size: 12px; text-transform: uppercase; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 8px; margin-top: 10px; }
.sample { border-left: 4px solid #2a8f5b; background: #f2f8f4; padding: 8px 10px; border-radius: 4px; }
.sample.no { border-color: #b4474c; background: #faf2f2; } .meta { color: #5b6675; font-size: 12px; }
"""
INK, ACCENT, REFUSED = "#1d2530", ("#2f6fb0", "#d98a2b", "#6b7684"), "#b4474c"


def render(tally: Tally, identity: dict[str, Any]) -> str:
    """The page of a run."""
    counts = tally.as_json()
    parts = [
        f"<h1>Generated responses</h1><p class=sub>{escape(str(identity.get('model')))}</p>",
        _tiles(tally, counts),
        f"<h2>At a glance</h2><div class=plots>{''.join(_plots(tally))}</div>",
        "<h2>Refused</h2>" + _refused(counts["refused"]),
        "<h2>Samples</h2>" + "".join(map(_card, tally.shown)),
        "<h2>The run</h2>" + _table(["flag", "value"], [[name, _said(value)] for name, value in identity.items()]),
    ]
    title = "<!doctype html><html lang=en><meta charset=utf-8><title>swift-kd generate</title>"
    view = '<meta name=viewport content="width=device-width, initial-scale=1">'
    return f"{title}{view}<style>{STYLE}</style><main>{''.join(parts)}</main></html>\n"


def _tiles(tally: Tally, counts: dict[str, Any]) -> str:
    speed, share = counts["tokens_per_second"], counts["acceptance"]
    tiles = {
        "prompts": f"{tally.prompts:,}",
        "samples": f"{tally.samples:,}",
        "accepted": f"{tally.accepted:,}",
        "acceptance": "-" if share is None else f"{share:.1%}",
        "tokens": f"{tally.tokens:,}",
        "seconds": f"{tally.seconds:,.1f}",
        "tokens/s": "-" if speed is None else f"{speed:,.0f}",
    }
    if tally.skipped:
        tiles["not asked, quota full"] = f"{tally.skipped:,}"
    inner = "".join(f"<div class=tile><b>{value}</b><span>{name}</span></div>" for name, value in tiles.items())
    return f"<div class=tiles>{inner}</div>"


def _plots(tally: Tally) -> list[str]:
    plots = []
    if tally.lengths:
        plots.append(_plot("Tokens of accepted responses", lambda axes: _draw_lengths(axes, tally.lengths)))
    if tally.refused.left_out:
        reasons = {kind: entry.count for kind, entry in tally.refused.left_out.items()}
        plots.append(_plot("Reasons of refusal", lambda axes: _draw_bars(axes, reasons, REFUSED, "{:,.0f}")))
    shares = {
        source: 100 * counts["accepted"] / counts["samples"]
        for source, counts in tally.by_source.items()
        if counts["samples"]
    }
    if shares:
        plots.append(_plot("Accepted, by source (%)", lambda axes: _draw_bars(axes, shares, ACCENT[0], "{:.1f}", 100)))
    return plots


def _plot(title: str, draw: Callable[[Any], None]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "swift-kd", "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return f"<div class=card>{out.getvalue()[out.getvalue().index('<svg') :]}</div>"


def _draw_lengths(axes: Any, lengths: dict[str, list[int]]) -> None:
    longest = max(max(values) for values in lengths.values())
    bins = min(40, longest) or 1
    for (mode, values), colour in zip(lengths.items(), ACCENT, strict=False):
        axes.hist(values, bins=bins, range=(0, longest), label=f"{mode} ({len(values):,})", color=colour, alpha=0.65)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(lengths))
    axes.set_ylabel("responses")


def _draw_bars(axes: Any, values: dict[str, float], colour: str, form: str, whole: float | None = None) -> None:
    """Bars from 0 to the largest, or to the whole that they are shares of."""
    # matplotlib reads a pair of dollars as mathematics.
    names = [(name if len(name) <= 28 else "…" + name[-27:]).replace("$", r"\$") for name in values]
    bars = axes.barh(range(len(names)), list(values.values()), color=colour, height=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3)
    axes.set_xlim(0, (whole or max(values.values())) * 1.15)
    axes.set_ylim(max(len(names), 4) - 0.5, -0.5)


def _refused(refused: dict[str, Any]) -> str:
    if not refused:
        return "<p>Nothing was refused.</p>"
    rows = [
        [kind, f"{entry['count']:,}", "\n".join(f"{e['place']}: {e['text']}" for e in entry["examples"])]
        for kind, entry in refused.items()
    ]
    return _table(["reason", "count", "examples"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td><pre>{escape(str(cell))}</pre></td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _card(shown: dict[str, Any]) -> str:
    mode = f" · {shown['mode']}" if shown["mode"] else ""
    turns = "".join(f"<div class=role>{escape(role)}</div><pre>{escape(text)}</pre>" for role, text in shown["prompt"])
    samples = "".join(_sample(sample) for sample in shown["samples"])
    head = f"<div class=meta>{escape(shown['place'])}{mode}</div>"
    return f"<div class=card>{head}{turns}<div class=samples>{samples}</div></div>"


def _sample(sample: dict[str, Any]) -> str:
    score = "" if sample["score"] is None else f" · score {sample['score']:g}"
    verdict = "accepted" if sample["refused"] is None else f"refused: {escape(sample['refused'])}"
    kind = "sample" if sample["refused"] is None else "sample no"
    meta = f"<div class=meta>{verdict} · {sample['tokens']:,} tokens{score}</div>"
    return f'<div class="{kind}">{meta}<pre>{escape(sample["text"])}</pre></div>'


def _said(value: Any) -> str:
    return "-" if value is None else str(value)
