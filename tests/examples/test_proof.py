"""The proof's rows are disjoint and show the book to the right side; its plain PyTorch, its choices and its page."""

import json
import math

import pytest
import torch

from examples.proof import page as proof_page
from examples.proof import plain
from examples.proof.measure import Measured, asked
from examples.proof.proof import RATES, STEPS, choose_rates
from examples.proof.runs import BASE_MODEL, METHODS, Run
from examples.proof.scenarios import SCENARIOS, SEEDS, TEST, TRAIN, VALIDATION, make_material, to_train_on
from examples.quickstart.code_book import book_text, final_answer
from examples.quickstart.evaluate import load_checkpoint
from tests.docs.pages import page as page_of_docs
from tests.paths import EXAMPLES

PROOF = EXAMPLES / "proof"
PERFECT, LONG, WRONG, THINKING = SCENARIOS
EVERYWHERE = [(scenario, seed) for scenario in SCENARIOS for seed in SEEDS]


@pytest.mark.parametrize(("scenario", "seed"), EVERYWHERE, ids=lambda part: str(getattr(part, "name", part)))
def test_no_question_stands_in_two_parts(scenario, seed):
    material = make_material(scenario, seed)
    own = [row for row in material.train if "teacher_messages" in row]
    parts = [{row["messages"][0]["content"] for row in rows} for rows in (own, material.validation, material.test)]
    assert list(map(len, parts)) == [sum(count.values()) for count in (TRAIN, VALIDATION, TEST)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    books = [
        {row["messages"][0]["content"] for row in rows}
        for rows in (material.train[len(own) :], material.others_validation, material.others_test)
    ]
    assert len(set.union(*books)) == sum(map(len, books)), "a book of the measurement was trained on"


def test_only_the_teacher_sees_the_book_and_a_wrong_rule_is_wrong_for_it_alone():
    right, wrong = (make_material(scenario, 0).test for scenario in (PERFECT, WRONG))
    for one, other in zip(right, wrong, strict=True):
        assert len(one["messages"]) == 2
        assert one["messages"] == other["messages"]
        assert one["experience"] == one["teacher_messages"] == other["experience"]
    book, seen = (row["teacher_messages"][0]["content"].split() for row in (right[0], wrong[0]))
    (changed,) = [pair for pair in zip(book, seen, strict=True) if pair[0] != pair[1]]
    letter = changed[0][0]
    for row in wrong:
        if row["task"] == "say" or row["messages"][0]["content"].count(letter) == 1:
            assert (row["gold"] != row["taught"]) == (letter in row["messages"][0]["content"][4:])


def test_the_same_seed_gives_the_same_rows_and_another_seed_another_book():
    assert make_material(PERFECT, 0) == make_material(PERFECT, 0)
    assert make_material(PERFECT, 0).test != make_material(PERFECT, 1).test
    assert book_text({"A": 1}) == "A1"


def test_a_thinking_teacher_and_a_student_that_answers_at_once():
    row = to_train_on(make_material(THINKING, 0).train[0])
    assert row["teacher_chat_template_kwargs"] == {"enable_thinking": True}
    assert row["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"gold", "taught", "experience"} & row.keys()


@pytest.fixture(scope="module")
def base():
    return load_checkpoint(BASE_MODEL)


def test_plain_prompts_are_those_of_the_chat_template(base):
    _, tokenizer = base
    renderer = plain.Renderer(tokenizer)
    row = {**to_train_on(make_material(THINKING, 0).train[0]), "teacher_thought": "L5U1"}
    student, teacher = (tokenizer.decode(renderer.prompt(row, side)) for side in ("student", "teacher"))
    question = row["messages"][0]["content"]
    assert student == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    book = row["teacher_messages"][0]["content"]
    asks = f"<|im_start|>system\n{book}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert teacher == f"{asks}<think>\nL5U1\n</think>\n\n"


@pytest.mark.parametrize("method", ["skd", "gkd_jsd", "gkd_rkl"])
def test_plain_divergences_are_the_sums_over_the_vocabulary(method):
    torch.manual_seed(0)
    student, teacher = (torch.randn(5, 11, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for s, t in zip(student.softmax(-1).tolist(), teacher.softmax(-1).tolist(), strict=True):
        for q, p in zip(s, t, strict=True):
            m = (p + q) / 2
            jsd = (p * math.log(p / m) + q * math.log(q / m)) / 2
            total += {"skd": p * math.log(p / q), "gkd_rkl": q * math.log(q / p), "gkd_jsd": jsd}[method]
    assert plain.divergence(student, teacher, method).item() == pytest.approx(total / 5, abs=1e-12)


def test_the_rate_is_megatrons():
    settings = plain.Settings(batch=1, steps=100, rate=1.0, warmup=0.1, least=0.1)
    assert [settings.rate_at(step) for step in (5, 10, 100)] == pytest.approx([0.5, 1.0, 0.1])
    assert settings.rate_at(55) == pytest.approx(0.55)


@pytest.mark.parametrize("method", ["sft", "skd", "gkd_jsd"])
def test_plain_training_learns(base, method):
    model, tokenizer = base
    rows = [to_train_on(row) for row in make_material(PERFECT, 0).train[:64]]
    settings = plain.Settings(batch=16, steps=12, rate=1e-3, warmup=0.05, least=1e-4)
    renderer = plain.Renderer(tokenizer)
    (_, first), *_, (_, last) = (
        (step, plain.loss_of(student, model, renderer, rows[:32], method).item())
        for step, student in plain.train(model, tokenizer, rows, method, settings)
    )
    assert last < 0.8 * first


def test_little_forgotten_then_more_right_answers_then_fewer_steps():
    def point(step, own, others):
        return Measured(step, {"say": own, "sum": own}, {"say": others, "sum": others})

    points = [point(50, 0.8, 1.0), point(100, 1.0, 0.97), point(150, 0.9, 0.99), point(200, 0.9, 0.99)]
    assert max(points, key=lambda one: one.merit).step == 150
    assert max([point(50, 0.8, 0.97), point(100, 1.0, 0.9)], key=lambda one: one.merit).step == 100


def test_the_base_model_reads_books_and_knows_none(base):
    rows = make_material(PERFECT, 0).test
    assert asked(*base, rows)["say"] == 0
    assert asked(*base, rows, with_experience=True) == {"say": 1.0, "sum": 1.0}
    assert asked(*base, [{**row, "gold": final_answer("9")} for row in rows])["say"] == 0


def test_without_a_teacher_the_run_is_the_same_for_teachers_with_the_same_book():
    trained = {method: [Run(method, scenario, 0, 1e-3).trained_as for scenario in SCENARIOS] for method in METHODS}
    assert trained["sft"][0] == trained["sft"][2] != trained["sft"][1] == trained["sft"][3]
    assert all(len(set(names)) == len(SCENARIOS) for method, names in trained.items() if method != "sft")
    for one, other in ((PERFECT, WRONG), (LONG, THINKING)):
        gold = [[row["messages"] for row in make_material(scenario, 0).train] for scenario in (one, other)]
        assert gold[0] == gold[1]


def result(method, rate, seed, share, others=1.0, scenario="perfect"):
    point = {"step": 100, "validation": {"say": share, "sum": share}, "others_validation": {"say": 1.0, "sum": 1.0}}
    shares = {"say": share, "sum": share}
    chosen = {**point, "test": shares, "taught": shares, "again": shares, "others": {"say": others, "sum": others}}
    page = {"method": method, "scenario": scenario, "seed": seed, "rate": rate, "seconds": 60.0, "tokens": 1000}
    return {**page, "curve": [point], "chosen": chosen, "last": shares}


def page_of(share, others=1.0, plain_share=None):
    methods = ("skd", "gkd_jsd")
    whole = {"say": 1.0, "sum": 1.0}
    before = {"say": 0.0, "sum": 0.1}
    teacher = {"scenario": "perfect", "before": before, "test": whole, "taught": whole, "others": whole}
    tried = [result(method, rate, 0, share) for method in methods for rate in RATES]
    again = share if plain_share is None else plain_share
    return {
        "rates": choose_rates(tried),
        "tried": tried,
        "teachers": [{**teacher, "seed": seed} for seed in SEEDS],
        "results": [result(method, 1e-3, seed, share, others) for seed in SEEDS for method in methods],
        "plain": [
            {"method": method, "scenario": "perfect", "seed": seed, "test": {"say": again, "sum": again}}
            for seed in SEEDS
            for method in methods
        ],
        "date": "2026-11-22",
        "versions": {"torch": "2.13.0"},
    }


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (page_of(1.0), []),
        (page_of(0.96), ["the best method has 0.960 of its teacher, below 0.98"]),
        (page_of(0.9), ["below 0.98", "SKD has 0.900 of its teacher", "GKD, jsd has 0.900 of its teacher"]),
        (page_of(1.0, others=0.97), ["SKD forgot 0.030", "GKD, jsd forgot 0.030"]),
        (page_of(1.0, plain_share=0.96), ["SKD and plain PyTorch are 0.040 apart", "GKD, jsd and plain"]),
    ],
)
def test_a_target_that_is_missed_is_said(page, said):
    missed = proof_page.missed_targets(page)
    assert len(missed) == len(said)
    for sentence, part in zip(missed, said, strict=True):
        assert part in sentence


def test_the_page_has_every_figure(tmp_path):
    page = page_of(0.96)
    assert page["rates"] == dict.fromkeys(("skd", "gkd_jsd"), RATES[0])
    text = proof_page.write_page(page, tmp_path)
    assert "| SKD | 0.960 (0.96/0.96) |" in text
    assert "| before, without the book | 0.050 (0.00/0.10) |" in text
    assert (tmp_path / "proof.md").read_text(encoding="utf-8") == text
    assert json.loads((tmp_path / "proof.json").read_text(encoding="utf-8")) == page
    assert (tmp_path / "proof.png").stat().st_size > 10_000


def test_the_committed_result_is_the_pages_and_meets_every_target():
    page = json.loads((PROOF / "result" / "proof.json").read_text(encoding="utf-8"))
    assert proof_page.missed_targets(page) == []
    assert proof_page.accuracy_table(page) in page_of_docs("evidence/proof.md").english.source
    runs = {(run["scenario"], run["seed"], run["method"]) for run in page["results"]}
    assert runs == {(scenario.name, seed, method) for scenario, seed in EVERYWHERE for method in METHODS}
    assert page["steps"] == STEPS
    assert {run["rate"] for run in page["tried"]} == set(RATES)
