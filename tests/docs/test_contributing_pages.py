"""The pages for contributors: the map is the one that the imports are held to, and all that they name is there."""

import re

import pytest

from tests.paths import ROOT
from tests.rooms import ROOMS

PAGES = ("architecture", "where_to_change", "new_host_version")
LANGUAGES = ("en", "zh")
PATH = re.compile(r"`((?:tests/|scripts/|examples/)?[\w/]+\.(?:py|md|yaml))`")


def page(language: str, name: str) -> str:
    return (ROOT / "docs" / language / "contributing" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_map_is_that_of_the_imports(language):
    rows = re.findall(r"^\| `([\w/]+)` \|[^|]*\|([^|]*)\|$", page(language, "architecture"), re.MULTILINE)
    assert {room: set(re.findall(r"`([\w/]+)`", imports)) for room, imports in rows} == {
        room: set(imports.split()) for room, imports in ROOMS.items()
    }


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_named_is_there(language, name):
    named = PATH.findall(page(language, name))
    assert named
    for path in named:
        places = (
            ROOT / path,
            ROOT / "swift_kd_plugin" / path,
            ROOT / "docs" / language / path,
            ROOT / "docs" / language / "contributing" / path,
        )
        assert any(place.is_file() for place in places), path


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_name_the_same(name):
    english, chinese = (re.findall(r"`([^`\n]+)`", page(language, name)) for language in LANGUAGES)
    assert sorted(english) == sorted(chinese)
