"""What `swift-kd eval` refuses, each time in one sentence."""

import pytest

from tests.evaluation.eval_command import QUESTIONS, read_report, run_eval, try_eval
from tests.generation.generate_command import run_generate
from tests.json_lines import read_json_lines, write_json_lines
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL

pytestmark = needs_cpu_backend
PLAIN = {"messages": [{"role": "user", "content": "say BE"}]}


def error_of(folder, *switches, **changes) -> str:
    result = try_eval(folder, *switches, **changes)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("swift-kd eval: error: ")]
    assert "Traceback" not in result.output
    return line.removeprefix("swift-kd eval: error: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"gold": None},
            "--metric exact compares with a gold answer, and the rows have no response; give --gold COLUMN",
        ),
        ({"gold": "right"}, "and the rows have no column 'right'; give --gold COLUMN with the column that has it."),
        ({"metric": "exat"}, "--metric exat is not known (did you mean 'exact'?); give exact, numeric, regex, bleu"),
        ({"metric": "no_module:score"}, "--metric no_module:score cannot be imported from here"),
        ({"metric": "regex", "pattern": "("}, "--pattern '(' is no regular expression"),
        ({"view": "both"}, "--view both is not known; give without, with"),
        ({"tag_column": "kind"}, "--tag_column kind: no row has such a column."),
        ({"temperature": -1}, "temperature is -1.0; it must be at least 0."),
        ({"model": "./nowhere"}, "nowhere is no folder of a model; check the path."),
        ({"adapters": "nowhere"}, "--adapters nowhere is no folder; give the folder of a PEFT adapter."),
        ({"model": [f"base={BASE_MODEL}", "./nowhere"]}, "nowhere is no folder of a model; check the path."),
        ({"dataset": "nothing.jsonl"}, "nothing.jsonl"),
        ({"engine": "server"}, "--engine server and --server URL belong together."),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_bad_input_is_said_in_one_sentence(changes, said, tmp_path):
    assert said in error_of(tmp_path / "out", **changes)


def test_rows_without_the_experience_are_counted_or_refused(tmp_path):
    row = read_json_lines(QUESTIONS)[0]
    plain = write_json_lines(tmp_path / "plain.jsonl", [{**PLAIN, "gold": "1"}] * 2)
    mixed = write_json_lines(tmp_path / "mixed.jsonl", [row, {**PLAIN, "gold": "1"}, row])
    assert "--view with: no row has the experience in view" in error_of(tmp_path / "out", dataset=plain, view="with")
    log = run_eval(tmp_path / "mixed", dataset=mixed).output
    assert "note: 1 x no experience" in log
    assert "mixed.jsonl, line 2: it has no teacher_messages" in log
    assert {(c["view"], c["rows"]) for c in read_report(tmp_path / "mixed")["cells"]} == {("without", 3), ("with", 2)}
    run_eval(tmp_path / "plain", dataset=plain)
    assert {cell["view"] for cell in read_report(tmp_path / "plain")["cells"]} == {"without"}


def test_gold_answers_without_a_number_are_counted_or_refused(tmp_path):
    golds = ["7", "seven", None, "eight"]
    rows = write_json_lines(tmp_path / "rows.jsonl", [{**PLAIN, "gold": gold} for gold in golds])
    log = run_eval(tmp_path / "out", dataset=rows, metric=["numeric", "exact"]).output
    assert "note: 2 x gold answer without a number" in log
    assert "rows.jsonl 2, 4)" in log
    assert "note: 1 x no gold answer" in log
    assert "rows.jsonl, line 3: it has no column 'gold'" in log
    figures = read_report(tmp_path / "out")["cells"][0]["figures"]
    assert (figures["numeric"]["n"], figures["exact"]["n"]) == (1, 3)
    words = write_json_lines(tmp_path / "words.jsonl", [{**PLAIN, "gold": "seven"}])
    assert "no gold answer has a number" in error_of(tmp_path / "words", dataset=words, metric="numeric")


def test_a_prompt_that_is_too_long_is_counted(tmp_path):
    long = {"messages": [{"role": "user", "content": "say " + "BE " * 300}], "gold": "1"}
    rows = write_json_lines(tmp_path / "rows.jsonl", [{**PLAIN, "gold": "1"}, long])
    log = run_eval(tmp_path / "out", dataset=rows, metric=["exact", "bleu", "rouge", "ppl"]).output
    assert "note: 1 x prompt is not answered" in log
    assert "the context ends at 512" in log
    cell = read_report(tmp_path / "out")["cells"][0]
    assert (cell["rows"], cell["answered"], cell["figures"]["exact"]["n"], cell["figures"]["ppl"]["n"]) == (2, 1, 1, 1)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(BASE_MODEL / name)
    assert f"{tmp_path} has no tokenizer" in error_of(tmp_path / "out", model=tmp_path)
    (tmp_path / "runs" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "runs" / "checkpoint-4" / "config.json").write_text("{}")
    said = error_of(tmp_path / "out", model=tmp_path / "runs")
    assert f"runs is the folder of a run; did you mean {tmp_path}/runs/checkpoint-4?" in said
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "lora is a LoRA adapter; give its base model, and" in error_of(tmp_path / "out", model=tmp_path / "lora")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64}, "size mismatch for base_model.model.model.layers.0"),
        ({"num_hidden_layers": 6}, "it changes model.layers.4.self_attn.q_proj, which the model does not have"),
    ],
)
def test_an_adapter_of_another_model_is_refused(change, said, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(BASE_MODEL, **change)
    config.layer_types = config.layer_types[:1] * config.num_hidden_layers
    other = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(target_modules=["q_proj", "v_proj"]))
    other.save_pretrained(tmp_path / "adapter")
    found = error_of(tmp_path / "out", adapters=tmp_path / "adapter", limit=2)
    assert found.startswith(f"The adapter {tmp_path / 'adapter'} does not fit {BASE_MODEL}: ")
    assert said in found


def test_a_metric_that_raises_says_where_and_loses_no_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_metric.py").write_text("def score(row, response):\n    return row['nothing']\n")
    changes = {"limit": 2, "view": "with", "metric": "broken_metric:score"}
    said = error_of(tmp_path / "out", **changes)
    assert said.startswith("The verifier broken_metric:score failed on ")
    assert "line 1 (id 'test-say-LEEN'): KeyError: 'nothing'; mend it and start again, which goes on from here." in said
    assert list((tmp_path / "out" / "cells").glob("*/shards/*.jsonl"))


def test_a_folder_of_another_run_is_refused_by_what_differs(tmp_path):
    changes = {"limit": 2, "view": "with"}
    run_eval(tmp_path / "out", **changes)
    assert 'its dataset is "2 rows' in error_of(tmp_path / "out", **{**changes, "limit": 3})
    assert "its max_new_tokens is 24, and now it is 8" in error_of(tmp_path / "out", **changes, max_new_tokens=8)
    run_eval(tmp_path / "out", "--overwrite", **changes, max_new_tokens=8)
    assert read_report(tmp_path / "out")["flags"]["max_new_tokens"] == 8
    run_generate(tmp_path / "generated", limit=1)
    assert 'its command is null, and now it is "swift-kd eval"' in error_of(tmp_path / "generated", **changes)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "report.json").write_text("{}")
    assert "of an unknown run; choose another folder" in error_of(tmp_path / "foreign", **changes)
