"""ms-swift's own commands open what was trained, with the plugin installed and without it."""

import json
import sys
from urllib.request import Request, urlopen

import pytest

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import environment, megatron_rlhf, run_command
from tests.machine import needs_cpu_backend
from tests.paths import EXAMPLES, ROOT
from tests.servers import swift_deploy, wait_for
from tests.tiny_models import make_moe, make_vision_model

pytestmark = needs_cpu_backend

LORA = {"tuner_type": "lora", "target_modules": "all-linear"}
QUESTION = {"messages": [{"role": "user", "content": "1 + 2?"}]}


@pytest.fixture(scope="module")
def checkpoints(flags, material, tmp_path_factory) -> dict:
    """Folders by kind."""
    folder = tmp_path_factory.mktemp("kinds")
    moe, vision = make_moe(folder / "moe"), make_vision_model(folder / "vision", "qwen2_5_vl")
    of_moe = {"model": moe, "teacher_model": moe, "model_type": "qwen3_moe", "teacher_model_type": "qwen3_moe"}
    of_vision = {"model": vision, "teacher_model": vision, "template": "qwen2_5_vl"}
    # The user's own plugins stay in args.json, and are found there.
    of_vision |= {"external_plugins": ["swift_kd_plugin", EXAMPLES / "without_torchvision.py"]}
    of_vision |= {"model_type": "qwen2_5_vl", "teacher_model_type": "qwen2_5_vl"}
    kinds = {
        "full": {},
        "LoRA": LORA | {"lr": 3e-3},
        "MoE": of_moe,
        "MoE, LoRA": of_moe | LORA | {"lora_dropout": 0.0},
        "multimodal": of_vision,
        "multimodal, LoRA": of_vision | LORA,
    }
    runs = {
        kind: megatron_rlhf(folder / kind, {**flags, **own, "no_save_optim": True}, 1) for kind, own in kinds.items()
    }
    return {kind: run.expect_success().output / "checkpoint-2" for kind, run in runs.items()}


def is_adapter(kind: str) -> bool:
    return "LoRA" in kind


@pytest.mark.parametrize("plugin", ["installed", "without"])
def test_infer_and_export_open_each_kind(checkpoints, plugin, tmp_path):
    write_json_lines(tmp_path / "asked.jsonl", [QUESTION])
    todo = []
    for number, (kind, checkpoint) in enumerate(checkpoints.items()):
        asked = [
            "--val_dataset",
            "asked.jsonl",
            "--load_data_args",
            "false",
            "--max_new_tokens",
            "3",
            "--temperature",
            "0",
        ]
        asked += ["--infer_backend", "transformers"]
        models = [["--model", str(checkpoint)]]
        if is_adapter(kind):
            models = [
                ["--adapters", str(checkpoint)],
                ["--model", f"{checkpoint}-merged"],
                ["--model", f"merged-{number}"],
            ]
            todo.append(
                ["export", ["--adapters", str(checkpoint), "--merge_lora", "true", "--output_dir", f"merged-{number}"]]
            )
        todo += [["infer", [*model, *asked, "--result_path", f"{kind}-{n}.jsonl"]] for n, model in enumerate(models)]
    (tmp_path / "todo.json").write_text(json.dumps(todo))
    argv = [sys.executable, "-m", "tests.runs.stock_commands", "todo.json", *([plugin] if plugin == "without" else [])]
    env = environment(None, PYTHONPATH=str(ROOT), TORCH_DEVICE_BACKEND_AUTOLOAD="1" if plugin == "installed" else "0")
    env.pop("SWIFT_KD_DEVICE")
    code, log, _ = run_command(argv, tmp_path, env)
    assert code == 0, log[-4000:]
    for kind in checkpoints:
        answers = [read_json_lines(file)[0]["response"] for file in sorted(tmp_path.glob(f"{kind}-*.jsonl"))]
        assert len(answers) == (3 if is_adapter(kind) else 1)
        assert len(set(answers)) == 1, (kind, answers)  # the adapter, what was saved merged, and what export merges


@pytest.mark.parametrize("kind", ["full", "LoRA", "MoE", "multimodal"])
def test_deploy_opens_each_kind(checkpoints, kind, tmp_path):
    model, adapter = (None, checkpoints[kind]) if is_adapter(kind) else (checkpoints[kind], None)
    of_itself = {"model_type": None, "template": None, "torch_dtype": None, "infer_backend": "transformers"}
    with swift_deploy(model, tmp_path, adapters=adapter, **of_itself) as url:
        page = {"model": kind, "max_tokens": 3, **QUESTION}
        with urlopen(wait_for(url) + "/v1/models") as answer:
            page["model"] = json.load(answer)["data"][-1]["id"]
        asked = Request(f"{url}/v1/chat/completions", json.dumps(page).encode(), {"Content-Type": "application/json"})
        with urlopen(asked) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
