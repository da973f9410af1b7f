"""The real trainer's loss and the gradient in its logits, against the definition in float64, in several layouts."""

import json

import pytest
import torch

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import megatron_rlhf
from tests.losses import reference
from tests.recorders.recorded_runs import train_and_record_losses
from tests.tiny_models import make_dense

TP = "tensor_model_parallel_size"


def whole(shards: list[torch.Tensor]) -> torch.Tensor:
    """The ranks' columns of a vocabulary, side by side, a row for each token: [tokens, V] in float64."""
    return torch.cat([shard.flatten(0, -2) for shard in shards], dim=-1).double()


def teacher_logits(shards: list[dict]) -> torch.Tensor:
    """What the teacher's output layer makes of the hidden states that were kept: [tokens, V] in float64."""
    rows = shards[0]["teacher"]["rows"][0]
    return whole([rows @ shard["teacher_weights"][0].t() for shard in shards])


def assert_right(ranks: list[list[dict]], divergence, temperature=0.9, weight=1.0, ce_weight=0.0) -> None:
    """Loss, gradient and number of tokens of every micro-batch; `divergence(student, teacher)` is [T] over its tokens.

    `temperature`, `weight` and `ce_weight` are numbers or functions of the iteration.
    """
    for shards in zip(*ranks, strict=True):
        first = shards[0]
        now = [f(first["iteration"]) if callable(f) else f for f in (temperature, weight, ce_weight)]
        logits = whole([shard["student"] for shard in shards]).requires_grad_()
        rows = (first["labels"].flatten() != -100).nonzero()[:, 0]
        vocab = first["vocabularies"][0]
        losses = now[1] * divergence(logits[rows], shards, now[0])
        losses = losses + now[2] * reference.cross_entropy(logits[rows], first["labels"].flatten()[rows], vocab)
        if first["loss_scale"] is not None:
            losses = losses * first["loss_scale"].flatten()[rows]
        losses.sum().backward()
        torch.testing.assert_close(first["loss"].double(), losses.sum().detach(), rtol=2e-6, atol=1e-7)
        gradient = whole([shard["gradient"] for shard in shards])
        torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-7)
        assert first["count"] == len(rows) > 0
        assert all(shard["loss"] == first["loss"] for shard in shards)


def dense(name: str, **params):
    def divergence(student, shards, temperature):
        sizes = dict(zip(("student_vocab", "teacher_vocab"), shards[0]["vocabularies"], strict=True))
        return reference.dense(student, teacher_logits(shards), name, temperature, **sizes, **params)

    return divergence


def topk(name: str, tail: str):
    def divergence(student, shards, temperature):
        teacher = shards[0]["teacher"]
        assert teacher["temperature"] == temperature
        return reference.topk(student, *teacher["rows"][:2], name, temperature, temperature, tail)

    return divergence


@pytest.mark.parametrize(
    ("processes", "layout"),
    [
        pytest.param(1, {}, id="one process"),
        pytest.param(2, {TP: 2}, id="TP2"),
        pytest.param(2, {TP: 2, "sequence_parallel": True}, id="TP2 + SP"),
    ],
)
def test_the_fused_loss_from_hidden_states(flags, tmp_path, processes, layout):
    """Loss and gradient in the hidden states; both logits are rounded to bf16 on the way, as an output layer's are."""
    changes = {"kd_fused_loss": True, "kd_divergence": "reverse_kl", "kd_ce_alpha": 0.3, "kd_temperature": 2.0}
    _, ranks = train_and_record_losses(tmp_path / "run", flags, processes, **changes, **layout)
    for shards in zip(*ranks, strict=True):
        first = shards[0]
        batch, length = first["labels"].shape
        rows = (first["labels"].flatten() != -100).nonzero()[:, 0]
        weight = torch.cat([shard["weight"] for shard in shards]).double()
        hidden = first["student"].double().requires_grad_()
        logits = hidden[rows % length * batch + rows // length] @ weight.t()
        losses = 0.7 * 4.0 * reference.dense(logits, teacher_logits(shards), "reverse_kl", 2.0)
        losses = losses + 0.3 * reference.cross_entropy(logits, first["labels"].flatten()[rows], weight.shape[0])
        losses.sum().backward()
        torch.testing.assert_close(first["loss"].double(), losses.sum().detach(), rtol=1e-3, atol=1e-6)
        for shard in shards:
            found = shard["gradient"].double()
            assert (found - hidden.grad).norm() < 0.01 * hidden.grad.norm()
            assert found[hidden.grad.abs().sum(-1) == 0].abs().max() == 0


def test_without_flags_it_is_stocks_loss(flags, tmp_path):
    run, ranks = train_and_record_losses(tmp_path / "ours", flags, kd_metrics=False)
    assert_right(ranks, dense("jsd", beta=0.5))
    assert ranks[0][0]["student"].dtype == torch.float32
    assert ranks[0][0]["teacher"]["form"] == "hidden"
    assert {"loss", "divergence", "tokens_per_second"} <= run.steps[0].keys()


def test_cross_entropy_schedules_and_loss_scale(flags, material, tmp_path):
    rows = read_json_lines(material / "sums.jsonl")
    for index, row in enumerate(rows):
        row["messages"][-1]["loss_scale"] = 0.5 + index % 2
    scaled = tmp_path / "scaled.jsonl"
    write_json_lines(scaled, rows)
    changes = {
        "dataset": scaled,
        "kd_divergence": "skew_kl",
        "kd_lambda": 0.3,
        "kd_ce_alpha": 0.2,
        "kd_ce_alpha_final": 0.4,
        "kd_temperature": 4,
        "kd_temperature_final": 1,
        "kd_schedule": "cosine",
        "kd_token_policy": "position",
        "train_iters": 5,
        "save_steps": 3,
        "no_save_optim": False,
    }
    temperatures = [4.0, 1 + 3 * (1 + 0.5**0.5) / 2, 2.5, 1 + 3 * (1 - 0.5**0.5) / 2, 1.0]

    def temperature(iteration):
        return temperatures[iteration]

    def alpha(iteration):
        return 0.2 + 0.2 * (4 - temperatures[iteration]) / 3

    def weight(iteration):
        return (1 - alpha(iteration)) * temperature(iteration) ** 2

    run, ranks = train_and_record_losses(tmp_path / "run", flags, **changes)
    for step in ranks[0]:
        for number in range(2):
            scale = step["loss_scale"][(step["labels"] != -100) & (step["index"] == number)]
            assert scale[0] in (0.5, 1.5)
            assert scale[-1] == scale[0] / 2  # the end has the turn's weight, and is the last
            assert scale[1] < scale[0]
    assert_right(ranks, dense("skew_kl", lam=0.3), temperature, weight, alpha)
    assert [step["temperature"] for step in run.steps] == pytest.approx(temperatures, abs=1e-6)

    resumed, _ = train_and_record_losses(
        tmp_path / "resumed", flags, **changes, mcore_model=run.output / "checkpoint-3", finetune=False
    )
    keys = ("loss", "ce", "divergence", "temperature", "ce_alpha", "grad_norm")
    assert [[s[k] for k in keys] for s in resumed.steps] == [[s[k] for k in keys] for s in run.steps[3:]]


@pytest.fixture(scope="module")
def larger_teacher(tmp_path_factory):
    """390 ids against the student's 384: under TP 2 the shards begin at different ids."""
    return make_dense(tmp_path_factory.mktemp("models") / "teacher", hidden=128, seed=1, vocab_size=390)


def test_unequal_vocabularies_under_tensor_parallelism(flags, larger_teacher, tmp_path):
    changes = {"teacher_model": larger_teacher, "kd_divergence": "forward_kl", "tensor_model_parallel_size": 2}
    run, ranks = train_and_record_losses(tmp_path / "tp2", flags, 2, **changes, kd_allow_removed_mass=True)
    assert ranks[0][0]["vocabularies"] == (384, 390)
    assert_right(ranks, dense("forward_kl"))
    assert 1e-3 < run.steps[0]["removed_teacher_mass"] < 0.1
    refused = megatron_rlhf(tmp_path / "refused", {**flags, **changes, "external_plugins": "swift_kd_plugin"}, 2)
    assert refused.code == 1
    assert "of the teacher's probability lies on token ids that the student does not have" in refused.log


def test_a_topk_teacher_under_tensor_parallelism(flags, tmp_path):
    changes = {"kd_topk": 6, "kd_divergence": "reverse_kl", "tensor_model_parallel_size": 2}
    run, ranks = train_and_record_losses(tmp_path / "run", flags, 2, **changes)
    assert_right(ranks, topk("reverse_kl", "bucket"))
    assert 0.2 < run.steps[0]["teacher_tail_mass"] < 1


def test_padding_and_interleaved_stages_change_nothing(flags, tmp_path):
    changes = {"kd_divergence": "adaptive_kl", "padding_free": False, "kd_fused_loss": False}
    single, ranks = train_and_record_losses(tmp_path / "single", flags, **changes)
    assert_right(ranks, dense("adaptive_kl"))
    staged = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    interleaved = megatron_rlhf(tmp_path / "vpp", {**flags, **changes, **staged}, 2).expect_success()
    keys = ("loss", "divergence", "grad_norm")
    for found, truth in zip(interleaved.steps, single.steps, strict=True):
        assert [found[key] for key in keys] == pytest.approx([truth[key] for key in keys], rel=1e-6)


def test_the_least_sure_tokens_do_not_depend_on_the_layout(flags, tmp_path):
    changes = {"kd_token_policy": "student_top_rho", "kd_divergence": "forward_kl"}
    single = megatron_rlhf(tmp_path / "single", {**flags, **changes}).expect_success()
    spread = megatron_rlhf(tmp_path / "cp2", {**flags, **changes, "context_parallel_size": 2}, 2).expect_success()
    assert spread.losses == pytest.approx(single.losses, rel=1e-2)
    assert all(step["loss"] < 0.5 * step["divergence"] for step in single.steps)


def test_another_tokenizer_is_refused(flags, material, tmp_path):
    teacher = make_dense(tmp_path / "teacher", hidden=64, seed=2)
    file = teacher / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    file.write_text(json.dumps(tokenizer))
    run = megatron_rlhf(tmp_path / "run", {**flags, "teacher_model": teacher})
    assert run.code == 1
    assert "2 token ids mean different tokens to student and teacher" in run.log
    assert "is 'A' and 'B'" in run.log
    assert "Traceback" not in run.log


def test_self_distillation_is_evaluated_and_its_metrics_reach_tensorboard(flags, material, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = read_json_lines(material / "sums.jsonl")
    for row in rows:
        row["teacher_prompt"] = "Add up. " + row["messages"][0]["content"]
    for row in rows[::2]:
        row["messages"][-1]["content"] = "<think>\nAdd.\n</think>\n\n" + row["messages"][-1]["content"]
    write_json_lines(tmp_path / "mixed.jsonl", rows)
    changes = {"teacher_model": material / "student", "tuner_type": "lora", "split_dataset_ratio": 0.25}
    changes |= {"dataset": tmp_path / "mixed.jsonl", "eval_steps": 2, "lr": 1e-2}
    run = megatron_rlhf(tmp_path, {**flags, **changes}).expect_success()
    evaluated = read_json_lines(run.output / "logging.jsonl")
    assert next(row["eval_divergence"] for row in evaluated if "eval_divergence" in row) > 1e-3
    (events,) = run.output.rglob("events.out.tfevents.*")
    logged = EventAccumulator(str(events.parent)).Reload().Tags()["scalars"]
    names = ("divergence", "forward_kl", "student_entropy", "top1_agreement", "topk_overlap", "tokens_per_second")
    for name in (*names, "teacher_ce", "student_ce"):
        assert f"train/{name}" in logged
    assert {"train/divergence_thinking", "train/divergence_non_thinking"} <= set(logged)
    assert not [name for name in logged if name.endswith("_dataset")]


def test_a_column_chooses_the_rows_with_a_cross_entropy(flags, material, tmp_path):
    rows = read_json_lines(material / "sums.jsonl")
    file = tmp_path / "gold.jsonl"
    write_json_lines(file, ({**row, "gold": index % 2 == 0} for index, row in enumerate(rows)))
    changes = {"dataset": file, "kd_ce_alpha": 0.5, "kd_ce_column": "gold"}
    _, ranks = train_and_record_losses(tmp_path / "run", flags, **changes)
    counts = [step["metrics"]["ce"][1] / step["count"] for step in ranks[0]]
    assert 0 < sum(counts) < len(counts)


def test_fault_10_stock_drops_loss_scale(flags, material, tmp_path):
    losses = []
    for scale in (0.2, 0.8):
        rows = read_json_lines(material / "sums.jsonl")
        for row in rows:
            row["messages"][-1]["loss_scale"] = scale
        file = tmp_path / f"scaled-{scale}.jsonl"
        write_json_lines(file, rows)
        changes = {**flags, "dataset": file, "train_iters": 1}
        losses += megatron_rlhf(tmp_path / f"jsd-{scale}", {**changes, "kd_divergence": "jsd"}).expect_success().losses
    assert losses[0] / losses[1] == pytest.approx(0.25, rel=1e-5)
    stock = megatron_rlhf(tmp_path / "stock", {**changes, "kd_divergence": "stock"})
    assert stock.code == 1
    assert "has a turn with a loss_scale, and ms-swift's own loss has no weights" in stock.log
    assert "Traceback" not in stock.log
