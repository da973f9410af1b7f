"""think_loss and teacher_thought through the real command."""

import pytest

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import megatron_rlhf
from tests.recorders.recorded_runs import train_and_record_losses

BLOCK = "<think>\nAdd the numbers one by one.\n</think>\n\n"


def write_rows(file, material, change):
    """The sums with a thought before every answer, as `change(index, row, answer)` leaves them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, row in enumerate(read_json_lines(material / "sums.jsonl")):
        answer = row["messages"][-1]["content"]
        row["messages"][-1]["content"] = BLOCK + answer
        rows.append({**row, **change(index, row, answer)})
    return write_json_lines(file, rows)


def with_weight(weight):
    return lambda index, row, answer: {"think_loss": weight}


def test_weight_0_trains_as_if_the_block_had_no_labels(flags, material, tmp_path):
    def in_parts(index, row, answer):
        parts = {"role": "assistant", "content": BLOCK, "loss": False}, {"role": "assistant", "content": answer}
        return {"messages": [*row["messages"][:-1], *parts]}

    runs = []
    for name, change in (("weight", with_weight(0)), ("parts", in_parts), ("whole", with_weight(None))):
        data = write_rows(tmp_path / name / "rows.jsonl", material, change)
        runs.append(megatron_rlhf(tmp_path / name, {**flags, "dataset": data}).expect_success())
    weight, parts, whole = runs
    assert weight.losses == parts.losses
    assert weight.grad_norms == parts.grad_norms
    assert weight.losses != whole.losses


def test_weights_between_0_and_1_are_those_of_the_loss(flags, material, tmp_path):
    """In the first step the summed loss of each micro-batch is linear in the weight."""
    sums = {}
    for weight in (0, 0.25, 1):
        data = write_rows(tmp_path / f"{weight}.jsonl", material, with_weight(weight))
        changes = {"dataset": data, "train_iters": 1, "kd_fused_loss": True}
        _, (records,) = train_and_record_losses(tmp_path / f"run-{weight}", flags, **changes)
        sums[weight] = [step["loss"].item() for step in records]
    for none, quarter, whole in zip(sums[0], sums[0.25], sums[1], strict=True):
        assert quarter == pytest.approx(0.75 * none + 0.25 * whole, rel=1e-4)
        assert whole > 1.1 * none


def with_thoughts(index, row, answer):
    """A teacher that thinks (shortly or long) while the student does not, the other way round, a weight, nothing."""
    bare = [*row["messages"][:-1], {"role": "assistant", "content": answer}]
    columns = (
        {"messages": bare, "teacher_thought": " 7" * (8 if index % 8 else 200)},
        {"teacher_thought": ""},
        {"think_loss": 0.5},
        {},
    )
    return columns[index % 4]


def test_thoughts_and_weights_train_the_same_under_context_parallelism(flags, material, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", material, with_thoughts)
    changes = {"dataset": data, "kd_grad_norm": "exact"}
    single = megatron_rlhf(tmp_path / "single", {**flags, **changes}).expect_success()
    spread = megatron_rlhf(tmp_path / "cp2", {**flags, **changes, "context_parallel_size": 2}, 2).expect_success()
    assert spread.losses == pytest.approx(single.losses, rel=0.005)
    assert spread.grad_norms == pytest.approx(single.grad_norms, rel=0.02)


def test_a_weight_that_contradicts_a_thought_is_named(flags, material, tmp_path):
    def wrong(index, row, answer):
        return {"teacher_thought": "a", "think_loss": 0.5} if index == 4 else {}

    data = write_rows(tmp_path / "rows.jsonl", material, wrong)
    run = megatron_rlhf(tmp_path / "run", {**flags, "dataset": data})
    assert run.code == 1
    assert "it has think_loss 0.5 beside teacher_thought" in run.log
    assert "rows.jsonl, line 5" in run.log
    assert "Traceback" not in run.log
