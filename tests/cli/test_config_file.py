"""Flags that take several values, and what ends them."""

import pytest
from typer.main import get_command

from swift_kd_plugin.cli.main import app


def parse(command: str, *arguments: str) -> dict:
    """The values of a command's flags. Raises what the parser raises."""
    group = get_command(app)
    with group.make_context("swift-kd", [command, *arguments]) as ctx:
        _, found, _ = group.resolve_command(ctx, [command])
        return found.make_context(command, list(arguments), parent=ctx).params


GENERATE = ("generate", "--model", "m")
EVAL = ("eval", "--dataset", "d")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*GENERATE, "--dataset", "a", "-o", "out"), {"dataset": ["a"], "output": "out"}),
        ((*GENERATE, "--dataset", "a", "b", "-o", "out"), {"dataset": ["a", "b"], "output": "out"}),
        ((*GENERATE, "--dataset", "a", "b", "-oout"), {"dataset": ["a", "b"], "output": "out"}),
        ((*GENERATE, "--dataset", "a", "b", "--output=out"), {"dataset": ["a", "b"], "output": "out"}),
        ((*GENERATE, "--dataset=a", "b", "-o", "out"), {"dataset": ["a", "b"]}),
        ((*GENERATE, "--dataset", "a", "--n", "2", "--dataset", "b", "c", "-o", "out"), {"dataset": ["a", "b", "c"]}),
        ((*GENERATE, "-o", "out", "--dataset", "a", "--dedup", "--quota", "5", "x=1"), {"quota": ["5", "x=1"]}),
        ((*GENERATE, "--dataset", "-", "a", "", "-o", "out"), {"dataset": ["-", "a", ""]}),
        ((*GENERATE, "--dataset", "a", "-o", "out", "--stop_words", "---"), {"stop_words": ["---"]}),
        ((*EVAL, "--model", "s=a", "t=b", "--metric", "exact", "-o", "out"), {"metric": ["exact"], "output": "out"}),
        ((*EVAL, "--model", "a", "--view", "with", "-o", "out"), {"view": ["with"], "output": "out"}),
    ],
)
def test_several_values_end_at_the_next_flag(arguments, expected):
    found = parse(*arguments)
    shown = {name: str(found[name]) if name == "output" else list(found[name]) for name in expected}
    assert shown == expected


@pytest.mark.parametrize("arguments", [(*GENERATE, "--dataset"), (*GENERATE, "--dataset", "a", "-o")])
def test_a_flag_without_its_value_is_refused(arguments):
    with pytest.raises(Exception, match="requires an argument"):
        parse(*arguments)


def test_what_looks_like_a_flag_is_never_a_further_value():
    with pytest.raises(Exception, match="No such option: -1"):
        parse(*GENERATE, "-o", "out", "--dataset", "a", "-1")
