"""Preprocessors that a user registers from Python, as ms-swift calls them: copied, on several ranks, with streams."""

import os
import pickle
import re
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import MISSING, fields
from inspect import Parameter, getdoc, signature
from typing import get_type_hints

import pytest
from datasets import Dataset

from tests.docs.pages import page
from tests.gloo_ranks import run_distributed
from tests.json_lines import write_json_lines

pytestmark = pytest.mark.usefixtures("cpu_backend")
COUNT = 6
THOUGHT = "<think>\nhm\n</think>\n\n"


@pytest.fixture(autouse=True)
def disarmed():
    """Making a preprocessor installs the plugin."""
    yield
    from swift_kd_plugin.host.start.host_patches import HOST_LEDGER

    HOST_LEDGER.disarm()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    write_json_lines(tmp_path / "noexp.jsonl", [{"id": n, "query": f"{n}?"} for n in range(COUNT)])
    write_json_lines(tmp_path / "exp.jsonl", rows("A"))
    return tmp_path


def rows(answer: str) -> list[dict]:
    shared = {"system": "Be brief.", "hint": "Add."}
    return [{"id": n, "query": f"{n}?", "response": f"{THOUGHT}{answer}{n}", **shared} for n in range(COUNT)]


def make(name: str):
    from swift_kd_plugin.host.rows import preprocessors as p

    made = {
        "rows": lambda: p.RowsPreprocessor(gold="hint"),
        "experience": lambda: p.ExperiencePreprocessor(experience="hint"),
        "pair": lambda: p.PairPreprocessor(noexp="noexp.jsonl"),
        "thinking": lambda: p.ThinkingPreprocessor(thinking_share=0.5),
        "mix": lambda: p.MixPreprocessor(sources={"dataset": 1, "noexp.jsonl": 1}),
    }
    return made[name]()


NAMES = ["rows", "experience", "pair", "thinking", "mix"]


# The keys of a data.yaml that a preprocessor does not take: the dataset stands in their place, or they have no meaning.
OTHER_KEYS = {
    "RowsPreprocessor": ("rows", {"source"}),
    "ExperiencePreprocessor": ("exp_noexp", {"source", "exp", "noexp", "on", "duplicates", "unmatched"}),
    "PairPreprocessor": ("exp_noexp", {"source", "exp", "experience", "place", "template", "separator"}),
    "ThinkingPreprocessor": ("thinking_mix", {"source", "thinking", "non_thinking", "total", "replacement"}),
    "MixPreprocessor": ("mix", set()),
}


@pytest.mark.parametrize("name", OTHER_KEYS)
def test_signatures_are_those_of_the_data_yaml(name):
    from swift_kd_plugin.data.data_yaml_keys import TYPES
    from swift_kd_plugin.host.rows import preprocessors

    kind, others = OTHER_KEYS[name]
    schema, hints = {field.name: field for field in fields(TYPES[kind])}, get_type_hints(TYPES[kind])
    made = getattr(preprocessors, name)
    arguments, annotations = signature(made.__init__).parameters, get_type_hints(made.__init__)
    assert arguments["unknown"].kind is Parameter.VAR_KEYWORD
    keys = [key for key in arguments if key not in ("self", "unknown")]
    assert {*keys} == {*schema} - others - {"type"}
    for key in keys:
        argument, field = arguments[key], schema[key]
        assert argument.kind is Parameter.KEYWORD_ONLY
        assert re.search(rf"^    (\w+, )*{key}(, \w+)*: ", getdoc(made), re.MULTILINE), f"{name} does not explain {key}"
        if argument.default is Parameter.empty:  # what the preprocessor needs
            assert key in ("noexp", "sources")
            assert hints[key] in (annotations[key], annotations[key] | None)
        elif field.default_factory is not MISSING:
            assert argument.default is None
            assert annotations[key] == hints[key] | None
        else:
            assert (argument.default, annotations[key]) == (field.default, hints[key])


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        (
            "PairPreprocessor",
            {"noexp": "noexp.jsonl", "onn": "id"},
            r"has the unknown key 'onn' \(did you mean 'on'\?\)",
        ),
        ("ThinkingPreprocessor", {"thinking_shere": 0.5}, r"'thinking_shere' \(did you mean 'thinking_share'\?\)"),
        ("ExperiencePreprocessor", {"source": "other.jsonl"}, "unknown key 'source'; known are experience, place"),
        ("RowsPreprocessor", {"gold": 3}, ": gold is 3; it must be a text"),
        ("MixPreprocessor", {"sources": {"dataset": 1}, "bad_rows": "omit"}, "bad_rows is 'omit'; it must be error or"),
    ],
)
def test_a_wrong_key_is_said(folder, name, keys, message):
    from swift_kd_plugin.host.rows import preprocessors

    with pytest.raises(ValueError, match=rf"^{name}.*{message}"):
        getattr(preprocessors, name)(**keys)


def test_public_names_of_the_module():
    from swift_kd_plugin.host.rows import preprocessors

    assert {*OTHER_KEYS, "KDPreprocessor"} == {*preprocessors.__all__} == {*dir(preprocessors)}


def without_nulls(dataset) -> list[dict]:
    """Rows without what they do not have and without our store of columns, which only a stream shows."""
    return [{key: value for key, value in row.items() if value is not None and key != "columns"} for row in dataset]


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_does_the_same(folder, name):
    preprocessor, dataset = make(name), Dataset.from_list(rows("A"))
    expected = without_nulls(preprocessor(dataset))
    for copy in (deepcopy(preprocessor), pickle.loads(pickle.dumps(preprocessor))):
        assert without_nulls(copy(dataset, num_proc=4, load_from_cache_file=True, strict=True)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_another_dataset_gives_other_rows_stored_or_streamed(folder, name):
    """One preprocessor serves all subsets of a dataset, of which only those in memory have a fingerprint."""
    preprocessor, answers = make(name), {}
    for answer in ("A", "B"):
        dataset = Dataset.from_list(rows(answer))
        made = without_nulls(preprocessor(dataset))
        assert without_nulls(preprocessor(dataset.to_iterable_dataset())) == made
        answers[answer] = {row["messages"][-1]["content"] for row in made} - {"Add."}
        assert not any("B" in text for text in answers["A"])
    assert answers["A"] != answers["B"] or name == "rows"


def test_subsets_have_copies(folder):
    from swift.dataset import DatasetMeta, SubsetDataset

    meta = DatasetMeta(dataset_name="own", preprocess_func=make("pair"), subsets=["a", "b"])
    subsets = [SubsetDataset(name).set_default(meta) for name in ("a", "b")]
    datasets = [Dataset.from_list(rows(answer)) for answer in "AB"]
    made = [subset.preprocess_func(dataset) for subset, dataset in zip(subsets, datasets, strict=True)]
    assert [dataset[0]["messages"][-1]["content"] for dataset in made] == [f"{THOUGHT}A0", f"{THOUGHT}B0"]


def test_a_strict_call_names_the_row(folder):
    bad = Dataset.from_list([*rows("A"), {"id": 9, "query": None}])
    assert len(make("experience")(bad)) == COUNT
    with pytest.raises(ValueError, match=rf"^dataset, row {COUNT + 1} \(id '9'\) cannot be used: "):
        make("experience")(bad, strict=True)


def load_on_a_rank(rank: int, folder: str, environ: dict) -> list:
    os.environ.update(environ)
    os.chdir(folder)
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from swift.dataset import DatasetMeta, load_dataset, register_dataset

    from swift_kd_plugin.data import build
    from swift_kd_plugin.host.start.host_patches import HOST_LEDGER

    HOST_LEDGER.arm()
    built, write_rows = [], build.write_rows

    def write_slowly(*args):
        built.append(rank)
        time.sleep(1)
        return write_rows(*args)

    build.write_rows = write_slowly
    path = f"{folder}/exp.jsonl"
    register_dataset(DatasetMeta(dataset_name="own", dataset_path=path, preprocess_func=make("pair")))
    train, _ = load_dataset([path], num_proc=2, strict=True)
    return [built, [row["messages"] for row in train]]


def test_ranks_build_once_and_have_the_same_rows(folder):
    environ = {name: os.environ[name] for name in ("MODELSCOPE_CACHE", "HF_DATASETS_CACHE")}
    (first, mine), (second, theirs) = run_distributed(load_on_a_rank, 2, str(folder), environ)
    assert mine == theirs
    assert len(mine) == COUNT
    assert first == [0] * 3  # both sides and the pairs
    assert second == []


def test_a_run_asks_them_for_responses_too(folder):
    dataset = Dataset.from_list([*rows("A"), {"id": 9, "query": "9?", "hint": "Add."}])
    preprocessor = make("thinking")
    assert len(preprocessor(dataset)) == COUNT + 1
    preprocessor.trains = "last_round"
    assert len(preprocessor(dataset)) == COUNT


def test_the_example_of_the_page_is_a_plain_script(folder):
    """The teacher's columns survive although no command line names the plugin, also of the CPU backend and a stream."""
    (example,) = page("guides/data.md").english.code("python")
    script = example + (
        "from swift.dataset import load_dataset\n"
        "for streaming in (False, True):\n"
        '    row = next(iter(load_dataset(["hints"], streaming=streaming)[0]))\n'
        '    print("SEEN", row["teacher_messages"][-1]["content"].splitlines())\n'
    )
    (folder / "script.py").write_text(script, encoding="utf-8")
    write_json_lines(folder / "hints.jsonl", rows("A"))
    for device in ({}, {"SWIFT_KD_DEVICE": "cpu"}):
        env = {name: value for name, value in os.environ.items() if name != "SWIFT_KD_DEVICE"} | device
        run = subprocess.run([sys.executable, "script.py"], cwd=folder, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.count("SEEN ['Use this: Add.', '', '0?']") == 2, run.stdout
