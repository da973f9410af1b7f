"""A mistake ends the run on every rank, with one sentence and without a hang."""

import json
import os
import signal
import subprocess

import pytest

from swift_kd_plugin.recipes.run_status import read_status
from tests.json_lines import read_json_lines
from tests.launching.commands import HAS_GPU, environment, flags_to_argv, megatron_rlhf
from tests.launching.left_behind import unsupervised, wait_for_moment

ERROR = "swift_kd_plugin [rank"


def sentences(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith(ERROR)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./missing"}, "--model ./missing does not exist"),
        (
            {"dataset": "pair.jsonl"},
            "--dataset pair.jsonl does not exist; did you mean 'pairs.jsonl' in the same folder?",
        ),
        (
            {"global_batch_size": 64, "train_iters": None, "num_train_epochs": 1},
            "32 rows make no step of --global_batch_s",
        ),
        ({"tensor_model_parallel_size": 3}, "does not divide the 4 attention heads"),
        ({"kd_gradnorm": "stock"}, "unknown on the command line: --kd_gradnorm (did you mean 'kd_grad_norm'?)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_said_before_a_rank_starts(flags, tmp_path, changes, message):
    (tmp_path / "pairs.jsonl").write_text("")
    run = megatron_rlhf(tmp_path, {**flags, **changes}, processes=2, timeout=90, literal=True)
    assert run.code == 1
    said = run.log.splitlines()
    assert any(line.startswith("swift_kd_plugin: error: ") and message in line for line in said), run.log[-3000:]
    assert "[rank" not in run.log
    assert "Traceback" not in run.log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp8_format": "hybrid"}, "fp8 is not available on the CPU backend"),
        (
            {"max_length": 8},
            "--max_length 8: none of the 32 rows of --dataset fits into it, the shortest has ",
        ),
        (
            {"tensor_model_parallel_size": 2, "global_batch_size": 1, "micro_batch_size": 1},
            "a --global_batch_size of at least the number of ranks; raise it.",
        ),
        (
            {"lr": 1e30, "lr_warmup_fraction": 0, "train_iters": 3},
            "the gradient is no finite number in this step, and the run ends before it is applied; lower --lr",
        ),
    ],
    ids=["fp8", "max_length", "batch", "NaN"],
)
def test_a_mistake_that_ranks_say(flags, material, tmp_path, changes, message):
    if "fp8_format" in changes and HAS_GPU:
        pytest.skip("a GPU has fp8")
    # Of this form the launcher counts no tokens.
    (tmp_path / "sums.json").write_text(json.dumps(read_json_lines(material / "sums.jsonl")))
    changes = {**changes, "dataset": tmp_path / "sums.json"}
    run = megatron_rlhf(tmp_path, {**flags, **changes}, processes=2, timeout=90)
    assert run.code == 1
    assert any(message in line for line in sentences(run.log)), run.log[-3000:]


def test_rows_that_make_no_step_are_said_when_they_are_read(flags, material, tmp_path):
    """Of files whose rows are not counted before."""
    (tmp_path / "sums.json").write_text(json.dumps(read_json_lines(material / "sums.jsonl")))
    changes = {"dataset": tmp_path / "sums.json", "global_batch_size": 64, "train_iters": None, "num_train_epochs": 1}
    run = megatron_rlhf(tmp_path, {**flags, **changes})
    assert run.code == 1
    assert any("32 rows make no step of --global_batch_size 64; give" in line for line in sentences(run.log)), run.log


def test_a_model_that_is_not_supported(flags, material, tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for file in (material / "student").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    run = megatron_rlhf(tmp_path, {**flags, "model": folder, "model_type": None}, 2, timeout=90)
    assert run.code == 1
    assert any(f"Model: {folder} is not supported" in line for line in sentences(run.log)), run.log[-3000:]
    assert "Traceback" not in run.log


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"note": "what?"}', "it has the columns 'note', and needs messages"),
        ('{"prompt": "say 8", "chosen": "8", "rejected": "9"}', "it has no response to distil on, and no model writes"),
    ],
)
def test_a_row_that_cannot_be_used(flags, material, tmp_path, row, reason):
    data = tmp_path / "rows.jsonl"
    data.write_text(f"{(material / 'sums.jsonl').read_text()}{row}\n")
    run = megatron_rlhf(tmp_path, {**flags, "dataset": data}, processes=2, timeout=90)
    assert run.code == 1
    said = f"{data}, line 33 cannot be used: {reason}"
    assert any(said in line for line in sentences(run.log)), run.log[-3000:]
    assert "Traceback" not in run.log


def test_a_dead_rank_ends_the_others(flags, tmp_path):
    argv = ["megatron", "rlhf", *flags_to_argv({**flags, "train_iters": 10000, "output_dir": tmp_path / "output"})]
    log = tmp_path / "log.txt"
    with unsupervised(argv, tmp_path, environment(2), log) as process:
        wait_for_moment(process, lambda: "step 3/10000" in log.read_text(), log)
        ranks = find_ranks(process.pid)
        assert len(ranks) == 2, log.read_text()[-3000:]
        os.kill(ranks[1], signal.SIGKILL)
        assert process.wait(60) != 0
        assert not any(is_alive(rank) for rank in ranks)
    (run,) = (tmp_path / "output").iterdir()
    assert f"The whole log: {run / 'train.log'}" in log.read_text()
    status = read_status(run)
    assert status.state == "failed"
    assert "rank 1 was killed by signal 9" in status.error


def find_ranks(pid: int) -> list[int]:
    import psutil

    children = psutil.Process(pid).children(recursive=True)
    return [p.pid for p in children if any(part.endswith("_megatron/rlhf.py") for part in p.cmdline()[1:3])]


def is_alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def can_mount() -> bool:
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    return probe.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="a small full disk is a tmpfs in a mount namespace of its own")
def test_a_full_disk_at_checkpoint_time(flags, material, tmp_path):
    """The disk holds the first checkpoint and not the second."""
    output = tmp_path / "output"
    output.mkdir()
    kilobytes = sum(f.stat().st_size for f in (material / "student").iterdir()) // 1024 + 300
    saving = {"save_steps": 1, "no_save_optim": True, "no_save_rng": True, "tensorboard_dir": tmp_path / "logs"}
    argv = flags_to_argv({**flags, **saving, "output_dir": output, "add_version": False})
    # What is left when the run ends can only be seen in the same namespace.
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs {output} || exit 99; "
        f'megatron rlhf "$@"; code=$?; echo "left: $(ls {output} | tr "\\n" " ")"; '
        f'python -c "from safetensors.torch import load_file; '
        f"load_file('{output}/checkpoint-1/model.safetensors'); print('readable')\"; exit $code"
    )
    run = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, "bash", *argv],
        cwd=tmp_path,
        env=environment(2),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    log = run.stdout + run.stderr
    assert run.returncode == 1, log[-3000:]
    said = [line for line in sentences(log) if "checkpoint-2 failed" in line]
    assert said, log[-3000:]
    assert "No space left on device" in said[0]
    assert f"the last good checkpoint is {output}/checkpoint-1" in said[0]
    left = next(line for line in log.splitlines() if line.startswith("left: ")).split()
    assert "checkpoint-1" in left
    assert "checkpoint-2" not in left
    assert "readable" in log
