"""The teacher_messages column through the real command: the teacher sees its own view of the same response."""

import pytest

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import megatron_rlhf

HINT = "Add the numbers one by one."


def write_rows(file, material, make_columns):
    rows = read_json_lines(material / "sums.jsonl")
    made = [{**row, **make_columns(index, row["messages"][0]["content"])} for index, row in enumerate(rows)]
    return write_json_lines(file, made)


def run_with(flags, material, folder, make_columns, **changes):
    folder.mkdir()
    data = write_rows(folder / "rows.jsonl", material, make_columns)
    return megatron_rlhf(folder, {**flags, "dataset": data, **changes}, processes=1)


@pytest.fixture(scope="module")
def by_stock_column(flags, material, tmp_path_factory):
    """Losses where the teacher's view is given by stock's teacher_prompt, which swaps the last user message."""
    folder = tmp_path_factory.mktemp("view") / "prompt"
    return run_with(flags, material, folder, lambda i, text: {"teacher_prompt": f"{HINT} {text}"}).expect_success()


def test_it_says_what_teacher_prompt_says(flags, material, tmp_path, by_stock_column):
    def view(index, text):
        return {"teacher_messages": [{"role": "user", "content": f"{HINT} {text}"}]}

    run = run_with(flags, material, tmp_path / "run", view).expect_success()
    assert run.losses == by_stock_column.losses


def test_it_takes_a_system_prompt_and_history(flags, material, tmp_path, by_stock_column):
    def view(index, text):
        history = [{"role": "user", "content": "What is 1 plus 1?"}, {"role": "assistant", "content": "2"}]
        return {"teacher_messages": [{"role": "system", "content": HINT}, *history, {"role": "user", "content": text}]}

    run = run_with(flags, material, tmp_path / "run", view).expect_success()
    assert len(run.losses) == len(by_stock_column.losses)
    assert run.losses != by_stock_column.losses


def test_rows_with_and_without_a_view_mix(flags, material, tmp_path):
    def view(index, text):
        return {"teacher_messages": [{"role": "user", "content": text}]} if index % 2 else {}

    mixed = run_with(flags, material, tmp_path / "mixed", view).expect_success()
    plain = run_with(flags, material, tmp_path / "plain", lambda index, text: {}).expect_success()
    assert mixed.losses == plain.losses


def long_or_short(index, text):
    """The teacher's prompt is 8 or 200 tokens longer (each " 7" is one)."""
    return {"teacher_prompt": " 7" * (8, 200)[index % 2] + text}


def test_stock_stops_under_context_parallelism(flags, material, tmp_path):
    """Each rank cuts both views on its own and counts other response tokens in them; the layouts' table has ours."""
    changes = {"external_plugins": None, "micro_batch_size": 1, "context_parallel_size": 2}
    data = write_rows(tmp_path / "rows.jsonl", material, long_or_short)
    stock = megatron_rlhf(tmp_path / "stock", {**flags, "dataset": data, **changes}, processes=2, literal=True)
    assert stock.code == 1
    assert "Label count mismatch" in stock.log


def test_stocks_loss_is_refused_there(flags, material, tmp_path):
    changes = {"kd_divergence": "stock", "context_parallel_size": 2}
    data = write_rows(tmp_path / "rows.jsonl", material, long_or_short)
    run = megatron_rlhf(tmp_path / "run", {**flags, "dataset": data, **changes}, processes=2)
    assert run.code == 1
    assert "A teacher view (teacher_messages, teacher_prompt) with --context_parallel_size above 1" in run.log
    assert "Traceback" not in run.log


def with_a_trained_history(index, text):
    """Row 5 makes the teacher's view train on a turn of its history too."""
    history = [{"role": "user", "content": text}, {"role": "assistant", "content": "3", "loss": index == 4}]
    return {"teacher_messages": [*history, {"role": "user", "content": text}], "id": f"q-{index}"}


def test_a_sample_with_other_tokens_is_named(flags, material, tmp_path):
    run = run_with(flags, material, tmp_path / "run", with_a_trained_history, train_iters=8)
    assert run.code == 1
    assert "rows.jsonl, line 5 (id 'q-4') has different response tokens in its two views" in run.log
    assert "Traceback" not in run.log


def test_a_sample_with_other_tokens_can_be_dropped(flags, material, tmp_path):
    changes = {"train_iters": 8, "kd_on_mismatch": "drop"}
    run = run_with(flags, material, tmp_path / "run", with_a_trained_history, **changes).expect_success()
    shares = [step["dropped_share"] for step in run.steps]
    assert sorted(shares) == [0.0] * 7 + [1 / flags["global_batch_size"]]
