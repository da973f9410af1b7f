"""The site has every page, in both languages; `make docs` builds it and refuses what leads nowhere."""

import re

from tests.docs.pages import NAMES, README
from tests.paths import ROOT

ENGLISH = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
CHINESE = (ROOT / "mkdocs.zh.yml").read_text(encoding="utf-8")


def test_the_navigation_has_every_page_once():
    pages = re.findall(r"[\w/]+\.md", ENGLISH.split("\nnav:\n")[1])
    assert pages[0] == "index.md"  # the README
    assert sorted(pages[1:]) == NAMES


def test_the_navigation_has_its_words_in_chinese():
    assert "\nnav:" not in CHINESE
    words = re.findall(r"^  - (\w+):", ENGLISH.split("\nnav:\n")[1], re.MULTILINE)
    assert re.findall(r"(\w+): ", re.search(r"sections: \{(.*)\}", CHINESE)[1]) == words


def test_the_readme_lists_the_pages_in_the_order_of_the_navigation():
    """Folder by folder, as its table has them."""
    linked = [link.removeprefix("docs/en/") for link in README.english.links if link.startswith("docs/en/")]
    table = linked[linked.index("start/install.md", linked.index("evidence/benchmarks.md")) :]
    folders = [name.partition("/")[0] for name in table[: len(NAMES)]]
    assert list(dict.fromkeys(folders)) == ["start", "guides", "reference", "evidence", "contributing"]
    assert sorted(table[: len(NAMES)]) == NAMES
