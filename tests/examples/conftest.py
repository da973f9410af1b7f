"""The quickstart's modules, importable by name as they import one another; and the tiny models of the recipes."""

import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "examples" / "quickstart"), str(REPO / "scripts" / "dev"), str(Path(__file__).parent)]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """What examples/tiny_models.py makes."""
    from examples.tiny_models import main

    folder = tmp_path_factory.mktemp("tiny_models")
    main(folder)
    return folder
