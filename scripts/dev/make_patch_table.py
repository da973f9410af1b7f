"""The tables of what the plugin replaces and overrides in its host, from the ledger and the list of seams."""

from scripts.dev.table_cells import marked
from swift_kd_plugin.host.start.host_patches import HOST_LEDGER
from swift_kd_plugin.host.start.seams import SEAMS

HEADS = {
    "en": ("| replaced | why | remove when |", "| overridden | for |"),
    "zh": ("| 替换 | 原因 | 删除条件 |", "| 覆盖 | 用途 |"),
}


def patch_table(language: str) -> str:
    replaced, overridden = HEADS[language]
    lines = [replaced, "|---|---|---|"]
    lines += [f"| `{p.symbol}` | {_cell(p.why)} | {_cell(p.remove_when)} |" for p in HOST_LEDGER.patches]
    lines += ["", overridden, "|---|---|"]
    lines += [f"| `{seam.symbol}({', '.join(seam.parameters.split())})` | {_cell(seam.why)} |" for seam in SEAMS]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return marked(text.replace("|", "\\|"))
