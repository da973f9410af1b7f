"""Files on bases, overrides and interpolation."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from swift_kd_plugin.config.mapping_files import resolve
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.source import read_recipe

KEYS = st.sampled_from(["lr", "model", "dataset", "off_policy", "env"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text("ab", max_size=2))
FILES = st.dictionaries(KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=3)), max_size=4)


def write(file, **content):
    file.write_text(json.dumps(content) if file.suffix == ".json" else yaml.safe_dump(content))
    return file


def read(file, *overrides, tiny=False):
    recipe = read_recipe(file, overrides, tiny)
    return resolve(recipe.config, recipe.file)


def on_top(below: dict, above: dict) -> dict:
    """What the later file says wins, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = on_top(below[key], value) if both else value
    return merged


@given(st.lists(FILES, min_size=1, max_size=4), st.booleans())
def test_later_files_win(tmp_path_factory, contents, as_list):
    folder = tmp_path_factory.mktemp("bases")
    truth: dict = {}
    for number, content in enumerate(contents):
        truth = on_top(truth, content)
        if not as_list and number:  # each file on the one before
            content = {**content, "base": f"{number - 1}.yaml"}
        write(folder / f"{number}.yaml", **content)
    file = folder / f"{len(contents) - 1}.yaml"
    if as_list:
        file = write(folder / "all.json", base=[f"{number}.yaml" for number in range(len(contents))])
    assert read(file) == truth


def test_a_list_takes_the_place_of_a_list(tmp_path):
    write(tmp_path / "base.yaml", dataset=["a", "b"])
    assert read(write(tmp_path / "run.yaml", base="base.yaml", dataset=["c"])) == {"dataset": ["c"]}


def test_a_base_is_relative_to_its_file(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "common.yaml", lr=1, model="a")
    write(tmp_path / "deep" / "middle.yaml", base="../common.yaml", lr=2)
    assert read(write(tmp_path / "run.yaml", base="deep/middle.yaml")) == {"lr": 2, "model": "a"}


def test_overrides_win_and_may_be_nested(tmp_path):
    file = write(tmp_path / "run.yaml", lr=1, off_policy={"lr": 2, "beta": 0})
    keys = read(file, "lr=1e-5", "off_policy.lr=3", "dataset=[a.jsonl#5,b]", "model=null", "env.X=y")
    assert keys == {
        "lr": 1e-5,
        "off_policy": {"lr": 3, "beta": 0},
        "dataset": ["a.jsonl#5", "b"],
        "model": None,
        "env": {"X": "y"},
    }


def test_interpolation_sees_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_TEST_DATA", "/data")
    write(tmp_path / "base.yaml", dataset="${oc.env:KD_TEST_DATA}/${name}.jsonl", name="a")
    assert read(write(tmp_path / "run.yaml", base="base.yaml", name="b"))["dataset"] == "/data/b.jsonl"


def test_origins_name_the_file_that_said_it_last(tmp_path):
    base = write(tmp_path / "base.yaml", lr=1, off_policy={"lr": 1, "beta": 0})
    file = write(tmp_path / "run.yaml", base="base.yaml", off_policy={"lr": 2})
    recipe = read_recipe(file, ["lr=3"])
    assert recipe.origin("lr") == "the command line"
    assert recipe.origin("off_policy.lr") == str(file)
    assert recipe.origin("off_policy.beta") == str(base)


def test_the_tiny_section_wins_over_the_file_and_its_bases_only_when_asked_for(tmp_path):
    write(
        tmp_path / "base.yaml", lr=1, model="large", tiny={"model": "small", "env": {"A": 1}, "off_policy": {"lr": 7}}
    )
    own = {"lr": 2, "model": "larger", "off_policy": {"lr": 3, "beta": 0}, "tiny": {"lr": 5, "env": {"B": 2}}}
    file = write(tmp_path / "run.yaml", base="base.yaml", **own)
    assert read(file) == {"lr": 2, "model": "larger", "off_policy": {"lr": 3, "beta": 0}}
    small = {"lr": 5, "model": "small", "off_policy": {"lr": 7, "beta": 0}, "env": {"A": 1, "B": 2}}
    assert read(file, tiny=True) == small
    assert read(file, "lr=9", "env.A=null", tiny=True) == small | {"lr": 9, "env": {"A": None, "B": 2}}


def test_origins_name_the_tiny_section(tmp_path):
    file = write(tmp_path / "run.yaml", lr=1, off_policy={"lr": 1}, tiny={"off_policy": {"lr": 2}})
    assert read_recipe(file).origin("off_policy.lr") == str(file)
    recipe = read_recipe(file, tiny=True)
    assert recipe.origin("off_policy.lr") == f"{file}, section tiny"
    assert recipe.origin("lr") == str(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1", "--tiny: .*run.yaml has no section tiny"),
        ("tiny: null", "--tiny: .*run.yaml has no section tiny"),
        ("tiny: 3", "run.yaml: tiny is 3; it must map keys"),
        ("env: {A: 1}\ntiny: {env: [1]}", "run.yaml, section tiny does not fit on what it is put on"),
    ],
)
def test_mistakes_of_the_tiny_section(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(KDError, match=message):
        read(tmp_path / "run.yaml", tiny=True)


def test_the_command_line_cannot_change_a_section_that_was_dropped(tmp_path):
    file = write(tmp_path / "run.yaml", tiny={"lr": 1})
    with pytest.raises(KDError, match="has no section 'tiny'"):
        read(file, "tiny.lr=2")


@pytest.mark.parametrize(
    ("files", "overrides", "message"),
    [
        ({"run.yaml": "base: run.yaml"}, [], "run.yaml -> .*run.yaml goes in a circle"),
        ({"run.yaml": "base: a.yaml", "a.yaml": "base: run.yaml"}, [], "run.yaml -> .*a.yaml -> .*run.yaml goes in"),
        ({"run.yaml": "base: none.yaml"}, [], "run.yaml: base .*none.yaml does not exist"),
        ({}, [], "run.yaml does not exist; check the path"),
        ({"run.yaml": "base: 3"}, [], "base is 3; it must be a file or a list"),
        ({"run.yaml": "lr: [1"}, [], "run.yaml is not valid YAML: .*line"),
        ({"run.yaml": "lr: 1\nlr: 2"}, [], "duplicate key lr"),
        ({"run.yaml": "- a"}, [], "must map the flags"),
        ({"run.yaml": "lr: ${none}"}, [], "run.yaml: lr: Interpolation key 'none' not found"),
        ({"run.yaml": "lr: ${oc.env:KD_NOT_SET}"}, [], "lr: Environment variable 'KD_NOT_SET' not found"),
        ({"run.yaml": "lr: ???"}, [], "run.yaml leaves lr to you; give it: lr=VALUE"),
        ({"run.yaml": "base: a.yaml\nenv: {}", "a.yaml": "env: [1]"}, [], "run.yaml does not fit on what it is put on"),
        ({"run.yaml": "lr: 1"}, ["lr"], "'lr' on the command line is no key=value"),
        ({"run.yaml": "lr: 1"}, ["--lr=1"], "is no key=value"),
        ({"run.yaml": "lr: 1"}, ["lr=[1"], "on the command line is not valid"),
        ({"run.yaml": "lr: 1"}, ["off_policy.lr=1"], "has no section 'off_policy'"),
    ],
)
def test_mistakes(tmp_path, files, overrides, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(KDError, match=message):
        read(tmp_path / "run.yaml", *overrides)


def test_json_that_is_none(tmp_path):
    (tmp_path / "run.json").write_text("{lr: 1}")
    with pytest.raises(KDError, match="is not valid JSON"):
        read(tmp_path / "run.json")
