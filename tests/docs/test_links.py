"""Links lead somewhere, the README is short, and what people ask for is two clicks from it."""

from pathlib import Path

import pytest
import yaml

from tests.docs.pages import CHINESE, ENGLISH, PAGES, README, Text
from tests.paths import ROOT

OTHERS = [Text(ROOT / name) for name in ("CHANGELOG.md", "tests/README.md", "examples/README.md")]
TEXTS = [text for page in PAGES for text in (page.english, page.chinese)] + OTHERS
QUESTIONS = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8"))
LONGEST, LINES = 8192, 130


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.file.relative_to(ROOT)))
def test_links_lead_somewhere(text: Text):
    for link in text.links:
        path, _, anchor = link.partition("#")
        target = (text.file.parent / path).resolve() if path else text.file
        assert target.is_file(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in Text(target).anchors, f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.file.relative_to(ROOT)))
def test_a_heading_has_one_anchor(text: Text):
    if text.file.name != "CHANGELOG.md":
        assert len(set(text.anchors)) == len(text.anchors)


@pytest.mark.parametrize("text", [README.english, README.chinese], ids=["en", "zh"])
def test_the_readme_is_two_screens(text: Text):
    assert text.file.stat().st_size <= LONGEST
    assert len(text.source.splitlines()) <= LINES


@pytest.mark.parametrize(("text", "folder"), [(README.english, ENGLISH), (README.chinese, CHINESE)], ids=["en", "zh"])
def test_every_page_is_one_click_from_the_readme(text: Text, folder: Path):
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in text.links}
    assert not set(folder.rglob("*.md")) - linked


def test_there_are_questions():
    assert len(QUESTIONS) >= 20


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["where do I"])
def test_a_question_is_answered_within_two_clicks(question: dict):
    """One click on a link of the README, a second one on the section in the page's contents."""
    name, _, anchor = question["answer"].partition("#")
    assert name in {link.removeprefix("docs/en/").partition("#")[0] for link in README.english.links}
    answer = Text(ENGLISH / name)
    assert answer.headings[0][0] == 1
    assert not anchor or anchor in answer.anchors
