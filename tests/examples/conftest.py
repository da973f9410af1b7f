"""The modules of quickstart and proof, importable by name; and the tiny models of the recipes."""

import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ("examples/quickstart", "examples/proof", "scripts/dev", "tests/examples")
sys.path[:0] = [str(REPO / folder) for folder in FOLDERS]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """What examples/tiny_models.py makes."""
    from examples.tiny_models import main

    folder = tmp_path_factory.mktemp("tiny_models")
    main(folder)
    return folder
