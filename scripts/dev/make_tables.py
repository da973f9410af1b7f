"""Writes the tables of the docs that are made of the code, in both languages.

python -m scripts.dev.make_tables
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.dev.make_column_table import column_table
from scripts.dev.make_flag_table import flag_table
from scripts.dev.make_key_table import key_table
from scripts.dev.make_patch_table import patch_table

REPO = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Table:
    """A table between `<!-- mark -->` and `<!-- end of mark -->` of a page; `make` gets the language."""

    page: str
    mark: str
    make: Callable[[str], str]

    def file(self, language: str) -> Path:
        return REPO / "docs" / language / self.page

    def put(self, text: str, language: str) -> str:
        """The page with the table between its two marks."""
        begin, end = f"<!-- {self.mark} -->", f"<!-- end of {self.mark} -->"
        before, rest = text.split(begin)
        return f"{before}{begin}\n{self.make(language)}\n{end}{rest.split(end)[1]}"


TABLES = (
    Table("reference/flags.md", "flag table", flag_table),
    Table("reference/columns.md", "column table", column_table),
    Table("reference/data_yaml.md", "data.yaml table", key_table),
    Table("reference/patches.md", "patch table", patch_table),
)


def main() -> None:
    for table in TABLES:
        for language in LANGUAGES:
            file = table.file(language)
            file.write_text(table.put(file.read_text(encoding="utf-8"), language), encoding="utf-8")


if __name__ == "__main__":
    main()
