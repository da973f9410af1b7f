"""The real base model: it answers with the book in its view and cannot without, and its tokenizer is the script's."""

import json
from pathlib import Path

import pytest

from examples.quickstart.code_book import Question, prompt
from examples.quickstart.evaluate import TEST_FILE, accuracy, generate, load_checkpoint, read_rows
from scripts.dev.tiny_qwen3 import build_model, build_tokenizer
from tests.paths import BASE_MODEL

BOOK = {"A": 7, "B": 5, "C": 1}
PER_TASK = 64


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint(BASE_MODEL)


@pytest.fixture(scope="module")
def rows():
    every = read_rows(TEST_FILE)
    return [row for task in ("say", "sum") for row in [row for row in every if row["task"] == task][:PER_TASK]]


def test_with_the_book_it_answers(loaded, rows):
    shares = accuracy(*loaded, rows, with_experience=True)
    assert shares["say"] >= 0.99
    assert shares["sum"] >= 0.99


def test_thinking_it_answers_too(loaded, rows):
    shares = accuracy(*loaded, rows, with_experience=True, thinking=True)
    assert shares["say"] >= 0.99
    assert shares["sum"] >= 0.99


def test_without_the_book_it_guesses(loaded, rows):
    shares = accuracy(*loaded, rows)
    assert shares["say"] <= 0.02
    assert shares["sum"] <= 0.3


def test_batches_and_padding_do_not_change_a_response(loaded):
    prompts = [prompt(Question("say", letters), BOOK) for letters in ("ABCA", "C", "BBBBB")]
    assert generate(*loaded, prompts) == generate(*loaded, prompts, batch_size=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A fresh, untrained model as the script builds it."""
    folder = tmp_path_factory.mktemp("built")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    build_model(tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_the_script_builds_the_committed_tokenizer(name: str, built: Path):
    assert (built / name).read_bytes() == (BASE_MODEL / name).read_bytes()


def test_the_script_builds_the_committed_architecture(built: Path):
    configs = [json.loads((folder / "config.json").read_text()) for folder in (built, BASE_MODEL)]
    for config in configs:
        del config["transformers_version"]
    assert configs[0] == configs[1]


def test_a_book_entry_is_one_token(loaded):
    _, tokenizer = loaded
    assert tokenizer.tokenize("N2 X9") == ["N2", "Ġ", "X9"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is not a Hugging Face checkpoint"):
        load_checkpoint(tmp_path)
