"""The whole command on the small model: its figures against an independent count, and every file that it writes."""

import csv
import math
import re
import sys

import pytest
import torch

from swift_kd_plugin.evaluation import run_cells
from swift_kd_plugin.evaluation.run_eval import SCREEN
from swift_kd_plugin.evaluation.scoring import answer_of
from swift_kd_plugin.generation.transformers_engine import TransformersEngine
from tests.evaluation.eval_command import (
    QUESTIONS,
    entry_of,
    read_answers,
    read_report,
    run_eval,
    without_times,
)
from tests.json_lines import read_json_lines, write_json_lines
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL
from tests.tiny_models import make_adapter

pytestmark = needs_cpu_backend
METRICS = ["exact", "numeric", "bleu", "rouge", "ppl"]
PER_TASK = 16


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """As many of each task."""
    rows = read_json_lines(QUESTIONS)
    some = [row for task in ("say", "sum") for row in [row for row in rows if row["task"] == task][:PER_TASK]]
    return write_json_lines(tmp_path_factory.mktemp("rows") / "some.jsonl", some)


@pytest.fixture(scope="module")
def whole(questions, tmp_path_factory):
    """Both views and modes with every metric."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    result = run_eval(folder, dataset=questions, thinking="both", metric=METRICS, tag_column="task")
    return folder, result


@pytest.mark.parametrize("mode", ["thinking", "non_thinking"])
def test_with_the_book_every_answer_is_right(whole, mode):
    figures = entry_of(read_report(whole[0]), view="with", thinking=mode)["figures"]
    assert figures["exact"] == {"value": 1.0, "low": pytest.approx(0.8928, abs=1e-4), "high": 1.0, "n": 32}
    assert figures["numeric"]["value"] == 1.0
    assert figures["rouge1"]["value"] == 1.0


def test_without_the_book_it_guesses(whole):
    report = read_report(whole[0])
    assert entry_of(report, view="without", thinking="non_thinking")["figures"]["exact"]["value"] < 0.2
    assert entry_of(report, view="without", thinking="non_thinking", tag="say")["figures"]["exact"]["value"] == 0
    found = [entry_of(report, view=view, thinking="non_thinking")["figures"]["ppl"] for view in ("with", "without")]
    assert found[0]["high"] < 1.1 < found[1]["low"]


def test_the_figures_are_those_of_an_independent_count(whole):
    folder, _ = whole
    report, answers = read_report(folder), read_answers(folder)
    assert len(answers) == 4 * 32
    for cell in report["cells"]:
        mine = [row for row in answers if all(row[key] == cell[key] for key in ("model", "view", "thinking"))]
        if cell["tag"] is not None:
            mine = [row for row in mine if f"-{cell['tag']}-" in row["id"]]
        texts = [row["response"].rpartition("</think>")[2].strip() for row in mine]
        right = sum(text == row["gold"] for text, row in zip(texts, mine, strict=True))
        assert cell["rows"] == cell["answered"] == len(mine) == cell["figures"]["exact"]["n"]
        assert cell["figures"]["exact"]["value"] == right / len(mine)
        assert cell["mean_tokens"] == sum(row["tokens"] for row in mine) / len(mine)
        assert cell["truncated"] == sum(row["finish_reason"] == "length" for row in mine) / len(mine) == 0
        assert {row["scores"]["exact"] for row in mine} <= {0, 1}


def test_the_perplexity_of_a_cell_is_that_of_its_tokens(whole):
    folder, _ = whole
    rows = read_json_lines(folder / "cells" / "base.with.non_thinking" / "likelihoods.jsonl")[1:]
    assert len(rows) == 32
    figures = entry_of(read_report(folder), view="with", thinking="non_thinking")["figures"]
    total = math.fsum(row["nll"] for row in rows)
    assert figures["ppl"]["value"] == pytest.approx(math.exp(total / sum(row["tokens"] for row in rows)))
    assert figures["nll_per_char"]["value"] == pytest.approx(total / sum(row["characters"] for row in rows))
    assert {row["tokens"] for row in rows} == {2, 5}  # the answer and the token that ends it


def test_gold_without_a_thought_is_not_measured_in_thinking_mode(whole):
    folder, result = whole
    assert entry_of(read_report(folder), view="with", thinking="thinking")["figures"]["ppl"] is None
    assert "note: 64 x gold response is not measured" in result.output
    assert "it has no thought, and the mode is thinking" in result.output


def test_gold_with_a_thought_is_measured_with_it(tmp_path):
    file = QUESTIONS.with_name("thoughts.jsonl")
    rows = read_json_lines(file)[:6]
    for row in rows:
        row["teacher_messages"] = [
            {"role": "system", "content": row.pop("experience")},
            {"role": "user", "content": row["query"]},
        ]
    rows_file = write_json_lines(tmp_path / "rows.jsonl", rows)
    run_eval(tmp_path / "out", dataset=rows_file, gold=None, view="with", thinking="both", metric=["ppl", "exact"])
    report = read_report(tmp_path / "out")
    rows = {
        mode: read_json_lines(tmp_path / "out" / "cells" / f"base.with.{mode}" / "likelihoods.jsonl")[1:]
        for mode in ("thinking", "non_thinking")
    }
    counts = {mode: [row["tokens"] for row in found] for mode, found in rows.items()}
    assert counts == {"thinking": [14] * 6, "non_thinking": [5] * 6}
    for mode in rows:
        figures = entry_of(report, thinking=mode)["figures"]
        assert figures["exact"]["value"] == 1
        assert figures["ppl"]["value"] < 1.1
    run_eval(tmp_path / "plain", dataset=rows_file, gold=None, view="with", thinking="row", metric=["ppl"])
    assert read_report(tmp_path / "plain")["cells"][0]["figures"]["ppl"] == figures["ppl"], "rows that name no mode"


def test_a_thought_that_was_cut_off_is_no_answer(tmp_path):
    """Cut within the thought, whose last number is the gold answer."""
    cut = "<think>\nIt must be 5332"
    assert [answer_of(text) for text in (cut, f"{cut}</think>\n\n7", "5332 ", "7 <think>")] == [
        "",
        "7",
        "5332",
        "7 <think>",
    ]
    run_eval(tmp_path, view="with", thinking="on", max_new_tokens=6, limit=4, metric=["exact", "numeric", "rouge"])
    cell = entry_of(read_report(tmp_path), view="with")
    assert cell["truncated"] == 1
    assert [cell["figures"][name]["value"] for name in ("exact", "numeric", "rouge1")] == [0, 0, 0]


def test_the_report_says_how_it_was_made(whole):
    report = read_report(whole[0])
    assert report["metrics"]["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert "no Chinese characters" in report["metrics"]["bleu"]["tokenizer"]
    assert re.fullmatch(r"base_model \(\w{16}\)", report["models"]["base"]["model"])
    assert report["versions"].keys() >= {"swift-kd-plugin", "ms-swift", "torch", "transformers", "sacrebleu"}
    assert report["flags"]["seed"] == 42
    assert report["flags"]["temperature"] == 0
    assert "Wilson" in report["intervals"]
    assert report["dataset"].startswith("32 rows (")


def test_the_csv_has_every_cell_and_tag(whole):
    with (whole[0] / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = read_report(whole[0])["cells"]
    assert len(rows) == len(cells) == 4 * 3
    for row, cell in zip(rows, cells, strict=True):
        assert (row["view"], row["thinking"], row["tag"] or None) == (cell["view"], cell["thinking"], cell["tag"])
        for name, figure in cell["figures"].items():
            said = [row[f"{name}{part}"] for part in ("", "_low", "_high", "_n")]
            assert said == [""] * 4 if figure is None else list(map(float, said)) == list(figure.values())


def test_the_page_shows_disagreements_first_and_what_was_written(whole):
    folder, result = whole
    page, report = (folder / "report.md").read_text(), read_report(folder)
    head, table = page.split("\n\n")[:3:2]
    assert head == "# Evaluation"
    assert max(map(len, result.stdout.splitlines())) <= SCREEN
    assert all(name in result.stdout for name in (*METRICS[:3], "rougeL", "ppl", "non-thinking"))
    assert table.count("\n") == 1 + 12
    assert len(report["samples"]) == 8
    assert all({a["right"] for a in sample["answers"]} == {True, False} for sample in report["samples"])
    assert "| base  | with       | thinking     | ✓   | &#60;think&#62;<br>L5E3E3N2<br>" in page
    assert "say LEEN" in page


def test_samples_go_on_with_rows_that_agree(questions, tmp_path):
    run_eval(tmp_path, dataset=questions, view="with", limit=4, samples=3)
    samples = read_report(tmp_path)["samples"]
    assert [sample["place"].split(",")[1] for sample in samples] == [
        f" line {n} (id 'test-say-{letters}')" for n, letters in ((1, "LEEN"), (2, "JGVU"), (3, "UGJT"))
    ]


def test_a_finished_run_loads_no_model_and_takes_other_metrics(whole, questions, tmp_path, monkeypatch):
    folder, _ = whole
    before = (folder / "answers.jsonl").read_bytes(), without_times(read_report(folder))
    monkeypatch.setattr(TransformersEngine, "__init__", None)
    run_eval(folder, dataset=questions, thinking="both", metric=METRICS, tag_column="task")
    assert ((folder / "answers.jsonl").read_bytes(), without_times(read_report(folder))) == before
    run_eval(folder, dataset=questions, thinking="both", metric="exact")
    assert entry_of(read_report(folder), view="with", thinking="thinking")["figures"].keys() == {"exact"}


def test_a_models_memory_is_given_back_before_the_next_is_loaded(questions, tmp_path, monkeypatch):
    """When a model is loaded, no other one is alive."""
    import gc

    import swift_kd_plugin.generation.transformers_engine as engine

    load, alive = engine.load_model, []

    def counting(*args):
        gc.collect()
        alive.append(sum(type(found).__name__ == "Qwen3ForCausalLM" for found in gc.get_objects()))
        return load(*args)

    monkeypatch.setattr(engine, "load_model", counting)
    models = [f"{name}={BASE_MODEL}" for name in "abc"]
    run_eval(tmp_path, model=models, dataset=questions, limit=4, metric=["exact", "ppl"])
    assert alive == [alive[0]] * 3


def test_a_function_of_the_user_scores(questions, tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "def score(row, response):\n    return sum(a == b for a, b in zip(response, row['gold'])) / len(row['gold'])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run_eval(tmp_path / "out", dataset=questions, metric=["own_metric:score", "exact"])
    del sys.modules["own_metric"]
    report = read_report(tmp_path / "out")
    assert entry_of(report, view="with")["figures"]["own_metric:score"]["value"] == 1
    guessed = entry_of(report, view="without")["figures"]
    assert guessed["exact"]["value"] <= guessed["own_metric:score"]["value"] < 0.5
    rows = [row for row in read_answers(tmp_path / "out") if row["view"] == "without"]
    mean = sum(row["scores"]["own_metric:score"] for row in rows) / len(rows)
    assert guessed["own_metric:score"]["value"] == pytest.approx(mean)


def test_an_adapter_belongs_to_one_model(questions, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", BASE_MODEL)
    changes = {"model": [f"base={BASE_MODEL}", f"tuned={BASE_MODEL}"], "adapters": f"tuned={adapter}"}
    run_eval(tmp_path / "out", dataset=questions, view="with", metric=["exact", "ppl"], **changes)
    report = read_report(tmp_path / "out")
    base, tuned = (entry_of(report, model=name)["figures"] for name in ("base", "tuned"))
    assert base["exact"]["value"] == 1 > tuned["exact"]["value"]
    assert tuned["ppl"]["low"] > base["ppl"]["high"]
    assert report["models"]["base"]["adapters"] == []
    assert report["models"]["tuned"]["adapters"][0].startswith("adapter (")


def test_free_memory_gives_back_what_nothing_holds():
    class Ring:
        def __init__(self):
            self.me, self.weight = self, torch.zeros(1)

    import weakref

    ring = weakref.ref(Ring())
    run_cells.free_memory()
    assert ring() is None
