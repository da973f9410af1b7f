"""The README and the pages of the docs, each in both languages, and what stands in them."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.paths import ROOT

ENGLISH, CHINESE = ROOT / "docs" / "en", ROOT / "docs" / "zh"
FENCED = re.compile(r"(?:<!-- (run[^>\n]*?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of code; `mark` is the comment in front of it that says how it is run."""

    language: str
    text: str
    mark: str | None


@dataclass(frozen=True)
class Text:
    """A page in one language."""

    file: Path

    @cached_property
    def source(self) -> str:
        return self.file.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return [Block(language, text, mark or None) for mark, language, text in FENCED.findall(self.source)]

    @cached_property
    def prose(self) -> str:
        return FENCED.sub("", self.source)

    @cached_property
    def rows(self) -> list[str]:
        return [line for line in self.prose.splitlines() if line.startswith("|")]

    @cached_property
    def headings(self) -> list[tuple[int, str]]:
        found = re.findall(r"^(#+) (.*)$", self.prose, re.MULTILINE)
        return [(len(marks), title) for marks, title in found]

    @cached_property
    def anchors(self) -> list[str]:
        """As GitHub and the site make them of the headings."""
        return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in self.headings]

    @cached_property
    def links(self) -> list[str]:
        """Targets within the repository."""
        return [target for target in LINK.findall(self.prose) if not re.match(r"[a-z]+:", target)]

    def code(self, language: str) -> list[str]:
        return [block.text for block in self.blocks if block.language == language]


@dataclass(frozen=True)
class Page:
    """A page in both languages; its name is its path below docs/en."""

    name: str
    english: Text
    chinese: Text


README = Page("README.md", Text(ROOT / "README.md"), Text(ROOT / "README.zh-CN.md"))
NAMES = sorted(file.relative_to(ENGLISH).as_posix() for file in ENGLISH.rglob("*.md"))
PAGES = [README, *(Page(name, Text(ENGLISH / name), Text(CHINESE / name)) for name in NAMES)]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def page(name: str) -> Page:
    (found,) = (each for each in PAGES if each.name == name)
    return found
