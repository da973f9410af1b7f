"""The table of a row's columns, from `data/columns.py`."""

from pathlib import Path

import yaml

from scripts.dev.table_cells import in_code
from swift_kd_plugin.data.columns import COLUMNS

MEANINGS = Path(__file__).with_name("columns.yaml")
HEADS = {
    "en": "| column | other names | whose | in place of | |",
    "zh": "| 列 | 别名 | 谁看到 | 代替 | |",
}
ROLES = {
    "en": {"view": "both", "teacher": "teacher", "response": "of the response"},
    "zh": {"view": "双方", "teacher": "教师", "response": "属于回复"},
}


def column_table(language: str) -> str:
    """All columns that a source may have; those that only say where a row comes from are made, not read."""
    meanings = yaml.safe_load(MEANINGS.read_text(encoding="utf-8"))
    lines = [HEADS[language], "|---|---|---|---|---|"]
    for name, column in COLUMNS.items():
        if column.role == "place":
            continue
        stands_for = f"`{column.stands_for}`" if column.stands_for else ""
        whose = ROLES[language][column.role]
        meaning = meanings[name][language]
        lines.append(f"| `{name}` | {in_code(column.aliases)} | {whose} | {stands_for} | {meaning} |")
    return "\n".join(lines)
