"""Keys as a command: what a shell and ms-swift's own parser read is what the file says."""

import json
import subprocess
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from swift_kd_plugin.recipes.shell_command import Command, check_keys, megatron_command
from tests.recipes.swift_parser import real_parser

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
OURS = ("rlhf_type", "external_plugins")
# Flags that ms-swift's parser reads otherwise than its annotations say: as a text, and in the first of its types.
READ_OTHERWISE = ("cp_comm_type", "quant_bits")


def values_of(hint) -> st.SearchStrategy:
    origin = get_origin(hint)
    if origin is Literal:
        return st.sampled_from([option for option in get_args(hint) if option is not None])
    if origin in (Union, UnionType):
        return st.one_of(*(values_of(option) for option in get_args(hint) if option is not NoneType))
    if origin is list:
        return st.lists(values_of(get_args(hint)[0]).filter(lambda item: not str(item).startswith("-")), min_size=1)
    numbers = {int: st.integers(-(10**6), 10**6), float: st.floats(allow_nan=False, allow_infinity=False)}
    return {**numbers, bool: st.booleans(), dict: st.dictionaries(TEXT, st.integers(), max_size=2), str: TEXT}[hint]


SOME_KEYS = st.lists(st.sampled_from(sorted(set(megatron_flags()) - {*OURS, *READ_OTHERWISE})), max_size=6, unique=True)


@pytest.fixture(scope="module")
def parse():
    with real_parser() as ask:
        yield ask


def words_of(command: Command) -> list[str]:
    """What `megatron` is given by a real shell that runs the printed command."""
    script = 'megatron() { printf "%s\\0" "$@"; }\n' + command.shell()
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return done.stdout.decode("utf-8").split("\0")[:-1]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), names=SOME_KEYS)
def test_a_shell_and_the_real_parser_read_the_same(parse, data, names):
    keys = {name: data.draw(values_of(megatron_flags()[name]), label=name) for name in names}
    check_keys(keys, megatron_flags(), lambda key: "here")
    command = megatron_command(keys, {})
    words = words_of(command)
    assert words == list(command.argv[1:])
    read = parse(words[1:])
    assert read["rlhf_type"] == "gkd"
    assert read["external_plugins"] == ["swift_kd_plugin"]
    for name, value in keys.items():
        found = read[name]
        if isinstance(value, dict) and isinstance(found, str):
            found = json.loads(found)
        assert found == value, name


def test_the_environment_stands_in_front():
    keys = {"nproc_per_node": 2, "env": {"A": "x y", "B": 1}, "lr": 1e-5, "model": None}
    command = megatron_command(keys, {"B": "2"})
    assert command.shell().splitlines()[0] == "NPROC_PER_NODE=2 A='x y' B=2 megatron rlhf \\"
    assert "--model" not in command.argv


def test_other_plugins_stay():
    keys = {"external_plugins": ["mine.py"]}
    argv = megatron_command(keys, {}).argv
    assert argv[argv.index("--external_plugins") + 1 :][:2] == ("swift_kd_plugin", "mine.py")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1}, r"run.yaml: unknown key 'learning_rat'"),
        ({"kd_temperatur": 1}, r"unknown key 'kd_temperatur' \(did you mean 'kd_temperature'\?\)"),
        ({"lr": "fast"}, "lr is 'fast'; it must be a number"),
        ({"use_vllm": "true"}, "use_vllm is 'true'; it must be true or false"),
        ({"train_iters": 1.5}, "train_iters is 1.5; it must be a whole number"),
        ({"train_iters": True}, "it must be a whole number"),
        ({"sleep_level": True}, "sleep_level is True; it must be 0 or 1 or 2"),
        ({"kd_bad_rows": "skip"}, "kd_bad_rows is 'skip'; it must be error or drop"),
        ({"dataset": [1]}, "dataset is .1.; it must be a list, each item a text"),
        ({"dataset": []}, "dataset is an empty list"),
        ({"nproc_per_node": "two"}, "nproc_per_node is 'two'; it must be a whole number"),
        ({True: 1}, "unknown key True"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(KDError, match=message):
        check_keys(keys, megatron_flags(), lambda key: "run.yaml")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rlhf_type": "dpo"}, "rlhf_type is dpo; swift-kd trains with gkd alone"),
        ({"dataset": ["a", "-b"]}, "dataset has '-b'"),
        ({"env": {"A B": 1}}, "'A B', which is no name"),
        ({"env": {"A": True}}, "A is True; it must be a text or a number"),
        ({"env": {"A": [1]}}, "A is .1.; it must be a text or a number"),
    ],
)
def test_what_no_command_can_say(keys, message):
    with pytest.raises(KDError, match=message):
        megatron_command(keys, {})
