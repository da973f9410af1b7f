"""Every page stands in both languages, with the same commands, tables, names, figures and links."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import CHINESE, ENGLISH, NAMES, README, Page, Text, every_page
from tests.paths import ROOT


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def figures_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)*", text, re.ASCII)


def structure_of(code: str, language: str) -> object:
    """What is left without comments."""
    if language == "python":
        return ast.dump(ast.parse(code))
    if language == "mermaid":  # without the texts in its boxes and on its arrows
        return re.sub(r"\[.*?\]|\{.*?\}|(?<=-- ).*?(?= -->)", "", code)
    return yaml.safe_load(code) if language in ("yaml", "json") else re.sub(r"(?m)(^|\s)#.*$", "", code)


def without_tables_of_code(text: Text) -> str:
    """Long texts in tables of code say the same in other words; their rows are compared."""
    return re.sub(r"<!-- (\S.*?) -->.*?<!-- end of \1 -->", "", text.prose, flags=re.DOTALL)


def target_of(link: str, file: Path) -> str:
    """Where a link leads, without its anchor and the same for both languages."""
    place = (file.parent / link.partition("#")[0]).resolve().relative_to(ROOT) if link[0] != "#" else file
    return re.sub(r"^docs/zh/|^docs/en/", "", str(place)).replace("README.zh-CN", "README")


def test_both_languages_have_the_same_pages():
    assert sorted(file.relative_to(CHINESE).as_posix() for file in CHINESE.rglob("*.md")) == NAMES
    assert not [file for file in ENGLISH.rglob("*") if file.is_file() and file.suffix != ".md"]


def test_the_readmes_name_each_other():
    english, chinese = (text.source.splitlines()[1] for text in (README.english, README.chinese))
    assert english == "English | [简体中文](README.zh-CN.md)"
    assert chinese == "[English](README.md) | 简体中文"


@every_page
def test_the_same_headings(page: Page):
    assert [level for level, _ in page.english.headings] == [level for level, _ in page.chinese.headings]


@every_page
def test_the_same_code_but_for_comments(page: Page):
    english, chinese = (
        [(block.language, block.mark, structure_of(block.text, block.language)) for block in text.blocks]
        for text in (page.english, page.chinese)
    )
    assert english == chinese


@every_page
def test_the_same_names(page: Page):
    english, chinese = (names_in(without_tables_of_code(text)) for text in (page.english, page.chinese))
    assert not english ^ chinese


@every_page
def test_the_same_tables(page: Page):
    for english, chinese in zip(page.english.rows, page.chinese.rows, strict=True):
        assert english.count("|") == chinese.count("|"), chinese
        assert names_in(english) == names_in(chinese), chinese
        assert sorted(figures_in(english)) == sorted(figures_in(chinese)), chinese


@every_page
def test_the_same_figures(page: Page):
    sections = (re.split(r"^#+ ", text.prose, flags=re.MULTILINE) for text in (page.english, page.chinese))
    for english, chinese in zip(*sections, strict=True):
        assert sorted(figures_in(english)) == sorted(figures_in(chinese)), chinese.splitlines()[0]


@every_page
def test_the_same_links(page: Page):
    english, chinese = (
        sorted(target_of(link, text.file) for link in text.links) for text in (page.english, page.chinese)
    )
    assert english == chinese


@pytest.mark.parametrize("mark", ["parity table"])
def test_the_same_measured_table(mark):
    pattern = f"<!-- {mark} -->.*<!-- end of {mark} -->"
    english, chinese = (folder / "evidence" / "parity.md" for folder in (ENGLISH, CHINESE))
    tables = [re.search(pattern, file.read_text(encoding="utf-8"), re.DOTALL)[0] for file in (english, chinese)]
    assert tables[0] == tables[1]
