"""What a data.yaml may say, and how a mistake in it is said."""

import pytest

from swift_kd_plugin.data.data_yaml import read_data_yaml, read_node
from swift_kd_plugin.data.dataset_specs import (
    DatasetId,
    ExperienceSpec,
    File,
    MixSpec,
    PairsSpec,
    RowsSpec,
    ThinkingMixSpec,
)
from swift_kd_plugin.errors import KDError
from tests.paths import DATA

EXAMPLE = DATA / "data.yaml"


@pytest.fixture
def read(tmp_path):
    for name in ("exp.jsonl", "noexp.jsonl", "a.json"):
        (tmp_path / name).touch()

    def read_text(text: str):
        (tmp_path / "data.yaml").write_text(text)
        return read_data_yaml(tmp_path / "data.yaml")

    return read_text


def test_the_example():
    nodes = read_data_yaml(EXAMPLE)
    kinds = {name: type(node) for name, node in nodes.items()}
    assert kinds == {
        "pairs": PairsSpec,
        "pairs_val": RowsSpec,
        "thoughts": ExperienceSpec,
        "modes": ThinkingMixSpec,
        "silent": ThinkingMixSpec,
        "mixed": MixSpec,
    }
    assert nodes["pairs"].exp.source == File(EXAMPLE.parent.resolve() / "exp.jsonl", "exp.jsonl")
    assert [(part.label, part.weight) for part in nodes["mixed"].parts] == [("pairs", 0.7), ("alpaca.json", 0.3)]
    assert isinstance(nodes["mixed"].parts[0].source, PairsSpec)


def test_paths_are_relative_to_the_file(read, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert read("a: {type: rows, source: a.json}")["a"].source.path == (tmp_path / "a.json").resolve()


def test_types_nest(read):
    node = read("""
        mixed:
          type: mix
          sources:
            inner:
              weight: 1
              source:
                type: thinking_mix
                mode: thinking
                source: {type: exp_noexp, exp: exp.jsonl, noexp: noexp.jsonl}
            a.json: 2
    """)["mixed"]
    assert isinstance(node.parts[0].source.source, PairsSpec)
    assert node.parts[0].source.source.name == "mixed.inner.source"


def test_ids_are_left_to_ms_swift(read):
    assert read("a: {type: rows, source: 'AI-ModelScope/alpaca#500'}")["a"].source == DatasetId(
        "AI-ModelScope/alpaca#500"
    )


def test_two_sources_one_for_each_mode(read):
    node = read("m: {type: thinking_mix, thinking: exp.jsonl, non_thinking: noexp.jsonl, thinking_share: 0.25}")["m"]
    assert [(part.source.modes.mode, part.weight) for part in node.parts] == [
        ("thinking", 0.25),
        ("non_thinking", 0.75),
    ]
    all_rows = read("m: {type: thinking_mix, thinking: exp.jsonl, non_thinking: noexp.jsonl}")["m"]
    assert [part.fraction for part in all_rows.parts] == [1.0, 1.0]


def test_values_can_be_shared_by_interpolation(read):
    text = "a: {type: rows, source: a.json, keep: [x]}\nb: {type: rows, source: '${a.source}'}"
    assert read(text)["b"].source.label == "a.json"


PAIR = "exp: exp.jsonl, noexp: noexp.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {type: rows, sorce: a.json}", r"data.yaml: a has the unknown key 'sorce' \(did you mean 'source'\?\)"),
        ("a: {type: row}", r"a: type is 'row' \(did you mean 'rows'\?\); it must be one of rows, exp_noexp"),
        ("a: {}", "a: type is None; it must be one of"),
        ("a: 3", "a must be a mapping with a type"),
        ("a: {type: rows, source: 3}", "a: source is 3; it must be a text or a mapping"),
        ("a: {type: rows, source: b.jsonl}", "a: there is no file 'b.jsonl' in /"),
        ("a: {type: rows}", "a lacks the key 'source': a text or a mapping"),
        ("a: {type: rows, source: a.json, keep: x}", "keep is 'x'; it must be a list, each item a text"),
        ("a: {type: rows, source: a.json, bad_rows: skip}", "bad_rows is 'skip'; it must be error or drop"),
        ("a: {type: mix, sources: {pears: 1}}\npairs: {type: rows, source: a.json}", r"did you mean 'pairs'\?"),
        ("a: {type: mix, sources: {a: 1}}", "a -> a goes in a circle"),
        ("a: {type: mix, sources: {b: 1}}\nb: {type: mix, sources: {a: 1}}", "a -> b -> a goes in a circle"),
        ("a: {type: mix}", "a needs sources"),
        ("a: {type: mix, sources: {a.json: {}}}", "a.json needs a weight"),
        ("a: {type: mix, sources: {a.json: 1, exp.jsonl: {fraction: 1}}}", "every source a weight, or every source"),
        ("a: {type: mix, sources: {a.json: -1}}", "the weight of a.json is -1"),
        ("a: {type: mix, sources: {a.json: 0}}", "all weights are 0"),
        ("a: {type: mix, sources: {a.json: {fraction: 1.5}}}", "the fraction of a.json is 1.5"),
        ("a: {type: mix, sources: {a.json: 1}, total: 0}", "total is 0"),
        ("a: {type: mix, sources: {a.json: .nan}}", "a.json is nan; it must be a weight or a mapping"),
        ("a: {type: mix, sources: {a.json: {weight: .inf}}}", "weight is inf; it must be a number"),
        ("a: {type: mix, sources: {a.json: 1}, seed: -1}", "seed is -1; it must be at least 0"),
        ("a: {type: thinking_mix, source: a.json, seed: -1}", "seed is -1; it must be at least 0"),
        (
            "a: {type: thinking_mix, thinking: a.json, non_thinking: a.json, total: 0}",
            "total is 0; it must be at least 1",
        ),
        ("a: {type: mix, sources: {a.json: true}}", "a.json is True; it must be a weight"),
        ("a: {type: exp_noexp, exp: exp.jsonl}", "needs exp and noexp"),
        (f"a: {{type: exp_noexp, {PAIR}, source: a.json}}", "give either exp, noexp and on, or source"),
        ("a: {type: exp_noexp, source: a.json, template: x}", "template has no {experience}"),
        (f"a: {{type: exp_noexp, {PAIR}, quote_patterns: ['(']}}", "is no regular expression"),
        (
            "m: {type: mix, sources: {a.json: 1}}\na: {type: exp_noexp, exp: m, noexp: a.json, on: order}",
            "on: order needs one file on each side",
        ),
        ("a: {type: thinking_mix, source: a.json, thinking_share: 2}", "thinking_share is 2; it must lie between"),
        ("a: {type: thinking_mix, source: a.json, mode: keep, mode_column: m}", "give one of mode, mode_column"),
        ("a: {type: thinking_mix, thinking: a.json}", "needs source, or thinking and non_thinking"),
        ("a: {type: thinking_mix, source: a.json, total: 3}", "total and replacement belong to two sources"),
        (
            "a: {type: thinking_mix, source: a.json, mode: thinking, teacher: non_thinking, think_loss: 1}",
            "so think_loss must be 0",
        ),
        ("'a#b': {type: rows, source: a.json}", "the name 'a#b' cannot be given to --dataset"),
        ("a: [", "is not valid YAML"),
        ("", "must map names to datasets"),
        ("a: {type: rows, source: '${nothing}'}", "a.source: Interpolation key 'nothing' not found"),
    ],
)
def test_mistakes_are_said_in_one_sentence(read, text, message):
    with pytest.raises(KDError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KDError, match=r"none.yaml cannot be read: No such file"):
        read_data_yaml(tmp_path / "none.yaml")


def test_a_node_can_be_read_without_a_file():
    keys = {"type": "thinking_mix", "source": "dataset"}
    node = read_node({**keys, "mode": "thinking"}, "ThinkingPreprocessor", "dataset")
    assert node.source == RowsSpec("dataset", DatasetId("dataset"))
    with pytest.raises(KDError, match="ThinkingPreprocessor has the unknown key 'mod'"):
        read_node({**keys, "mod": "thinking"}, "ThinkingPreprocessor", "dataset")
