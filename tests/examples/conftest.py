"""The tiny models of the recipes."""

from pathlib import Path

import pytest

from examples.tiny_models import main as make_tiny_models


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """What examples/tiny_models.py makes."""
    folder = tmp_path_factory.mktemp("tiny_models")
    make_tiny_models(folder)
    return folder
