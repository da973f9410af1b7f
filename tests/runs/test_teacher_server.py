"""Teachers behind real servers against the same weights in this process, and the real trainer in front of them.

The servers compute in float32: in bfloat16 a server and the trainer round at other places, and only that would show.
"""

import json
import random
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from swift_kd_plugin.losses import token_divergence, topk_divergence
from swift_kd_plugin.serving.model_server import TeacherServer
from swift_kd_plugin.serving.scoring_routes import Sequence
from swift_kd_plugin.teacher.cache_contents import read_contents
from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import Run, environment, megatron_rlhf, run_tool
from tests.machine import needs_cpu_backend
from tests.runs.test_teacher_cache import used
from tests.servers import swift_deploy, vllm_server, wait_for
from tests.tiny_models import VOCABULARY

pytestmark = needs_cpu_backend
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def adapter(material, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "adapter"
    torch.manual_seed(3)
    config = LoraConfig(r=8, lora_alpha=32, target_modules=PROJECTIONS, init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(material / "teacher"), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def servers(material, adapter, tmp_path_factory):
    """vllm: base and adapter; merged: swift deploy with the adapter; templating: swift deploy as stock wants it."""
    folder, model = tmp_path_factory.mktemp("servers"), material / "teacher"
    swift = {"torch_dtype": "float32", "max_logprobs": VOCABULARY}
    loras = {"lora-modules": f"lora={adapter}", "lora-target-modules": PROJECTIONS}
    precise = {"dtype": "float32", "max-logprobs": VOCABULARY}
    with ExitStack() as stack:
        # argparse takes a flag without a value as an empty list.
        vllm = vllm_server(model, folder / "vllm", **precise, **{"enable-lora": []}, **loras)
        merged = {"adapters": adapter, "merge_lora": True, "use_chat_template": False, "served_model_name": "teacher"}
        urls = {
            "vllm": stack.enter_context(vllm),
            "merged": stack.enter_context(swift_deploy(model, folder / "merged", **swift, **merged)),
            "templating": stack.enter_context(swift_deploy(model, folder / "templating", **swift)),
        }
        yield {name: wait_for(url) for name, url in urls.items()}


def load_teacher(material, adapter: Path | None) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(material / "teacher", dtype=torch.float32)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


@torch.no_grad()
@pytest.mark.parametrize(("name", "lora"), [("vllm", None), ("vllm", "lora"), ("merged", None)])
def test_a_server_tells_what_the_weights_say(servers, material, adapter, name, lora):
    rng = random.Random(0)
    sequences = [[rng.randrange(5, 380) for _ in range(rng.randint(10, 60))] for _ in range(5)]
    server = TeacherServer(servers[name], VOCABULARY, lora)
    server.connect()
    found = server.score([Sequence(ids, list(range(4, len(ids)))) for ids in sequences])
    teacher = load_teacher(material, adapter if lora or name == "merged" else None)
    student = AutoModelForCausalLM.from_pretrained(material / "student", dtype=torch.float32).eval()
    for ids, scores in zip(sequences, found, strict=True):
        told = torch.full((len(ids) - 4, VOCABULARY), torch.nan).scatter_(1, scores.ids, scores.log_probs)
        logits, own = (model(torch.tensor([ids])).logits[0, 3:-1] for model in (teacher, student))
        assert (told - logits.log_softmax(-1)).abs().max() < 1e-4  # seen: 1.5e-5
        for divergence in ("forward_kl", "reverse_kl"):
            truth = token_divergence(own, logits, divergence=divergence)
            through_server = topk_divergence(own, scores.log_probs, scores.ids, divergence=divergence)
            torch.testing.assert_close(through_server.float(), truth.float(), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def remote(flags):
    return {**flags, "teacher_model": None, "teacher_model_type": None, "kd_topk": VOCABULARY, "temperature": 1.0}


@pytest.mark.parametrize(
    ("processes", "changes"), [(2, {"tensor_model_parallel_size": 2}), (2, {"context_parallel_size": 2}), (2, {})]
)
def test_the_trainer_learns_from_it_as_from_a_local_teacher(
    servers, remote, evaluated, local_run, tmp_path, processes, changes
):
    changes = {**changes, **evaluated, "teacher_model_server": servers["vllm"]}
    run = megatron_rlhf(tmp_path / "run", {**remote, **changes}, processes)
    run.expect_success()
    connected = run.log.index("scores token ids through vLLM's /v1/completions")
    assert connected < run.log.index(LOADED) < run.log.index("Of the teacher its most probable tokens are kept.")
    assert run.losses == pytest.approx(local_run.losses, rel=1e-3)
    assert evaluation(run) == pytest.approx(evaluation(local_run), rel=1e-3)


def evaluation(run: Run) -> dict[str, float]:
    (figures,) = [row for row in read_json_lines(run.output / "logging.jsonl") if "eval_loss" in row]
    return {name: figures[name] for name in ("eval_loss", "eval_teacher_ce", "eval_student_ce", "eval_divergence")}


@pytest.fixture(scope="module")
def evaluated(flags, tmp_path_factory):
    """Rows to evaluate that fill no batch."""
    file = tmp_path_factory.mktemp("validation") / "rows.jsonl"
    write_json_lines(file, list(read_json_lines(flags["dataset"]))[:5])
    return {"val_dataset": file, "eval_steps": flags["train_iters"]}


@pytest.fixture(scope="module")
def local_run(flags, evaluated, tmp_path_factory):
    changes = {"kd_topk": VOCABULARY, "temperature": 1.0, **evaluated}
    return megatron_rlhf(tmp_path_factory.mktemp("local") / "run", {**flags, **changes}).expect_success()


LOADED = "model_parameter_info"  # what ms-swift logs of a model that it has loaded


class NothingHere(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    do_POST = do_GET


def test_what_is_no_teacher_server_is_said_before_a_model_is_loaded(remote, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), NothingHere) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{other.server_port}"
        changes = {"teacher_model_server": address, "pipeline_model_parallel_size": 2}
        run = megatron_rlhf(tmp_path / "run", {**remote, **changes}, 2)
        other.shutdown()
    assert run.code == 1
    assert run.log.count(f"error: The teacher server {address} ") == 2  # by each rank
    assert "Traceback" not in run.log
    assert LOADED not in run.log


def test_a_template_that_differs_ends_every_rank_where_stock_trains_on(servers, remote, tmp_path):
    changes = {"teacher_model_server": servers["templating"], "system": "Be brief.", "tensor_model_parallel_size": 2}
    ours = megatron_rlhf(tmp_path / "ours", {**remote, **changes}, 2)
    assert ours.code == 1
    assert f"error: The teacher server {servers['templating']} scored other tokens" in ours.log
    assert "Traceback" not in ours.log
    stock = megatron_rlhf(tmp_path / "stock", {**remote, **changes, "kd_divergence": "stock"}, 2).expect_success()
    assert "number of tokens returned by the teacher server differs" in stock.log


@pytest.fixture(scope="module")
def rows_of_server(remote, servers, tmp_path_factory):
    """Flags for all rows in one batch, so that no order changes a loss, and the run that asks a server at each step."""
    folder = tmp_path_factory.mktemp("rows")
    file = write_json_lines(folder / "rows.jsonl", list(read_json_lines(remote["dataset"]))[:8])
    changes = {"dataset": file, "global_batch_size": 8, "train_iters": 3, "teacher_model_server": servers["vllm"]}
    flags = {**remote, **changes, "kd_topk": 64}
    return flags, megatron_rlhf(folder / "run", flags).expect_success()


def test_a_server_is_asked_once_for_each_sample(rows_of_server, tmp_path):
    """By two replicas, of which each writes; a run in another layout reads it, and the server may be gone."""
    flags, online = rows_of_server
    cached = {**flags, "kd_teacher_cache": tmp_path / "cache"}
    wrote = megatron_rlhf(tmp_path / "wrote", {**cached, "seed": 5}, 2)
    assert used(wrote) == (16, 8)
    assert wrote.losses == pytest.approx(online.losses, rel=1e-3)
    gone = {"teacher_model_server": "http://127.0.0.1:9", "kd_teacher_cache_mode": "read"}
    read = megatron_rlhf(tmp_path / "read", {**cached, **gone, "tensor_model_parallel_size": 2}, 2)
    assert used(read) == (24, 0)
    assert read.losses == pytest.approx(online.losses, rel=1e-3)
    other = write_json_lines(tmp_path / "other.jsonl", [*list(read_json_lines(flags["dataset"]))[:7], NEW_ROW])
    lacks = megatron_rlhf(tmp_path / "lacks", {**cached, **gone, "dataset": other})
    assert lacks.code == 1
    assert "line 8 is not among the 8 samples of this teacher in --kd_teacher_cache" in " ".join(lacks.log.split())


NEW_ROW = {"messages": [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]}


def test_a_server_scores_without_a_student(rows_of_server, tmp_path):
    """On two replicas, by the training run's own file; the run that follows asks it nothing."""
    flags, online = rows_of_server
    keys = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    keys |= {"external_plugins": None, "rlhf_type": None, "teacher_model": None, "teacher_model_type": None}
    keys = {name: value for name, value in keys.items() if value is not None}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys | {"output_dir": "output", "nproc_per_node": 2}))
    command = ["swift-kd", "score", "run.yaml", f"kd_teacher_cache={tmp_path / 'cache'}"]
    code, log, _ = run_tool(command, tmp_path, environment(None))
    assert code == 0, log[-3000:]
    assert "0 samples were read, 8 scored" in log
    assert LOADED not in log
    run = megatron_rlhf(tmp_path / "run", {**flags, "kd_teacher_cache": tmp_path / "cache"})
    assert used(run) == (24, 0)
    assert run.losses == pytest.approx(online.losses, rel=1e-3)
    (contents,) = read_contents(tmp_path / "cache")
    assert contents.about["teacher"].startswith("teacher behind ")
    assert contents.samples == 8


def test_a_cache_tells_servers_apart(rows_of_server, servers, tmp_path):
    """By name and adapter, and by what they say where both are the same."""
    cached = {**rows_of_server[0], "kd_teacher_cache": tmp_path / "cache", "train_iters": 1}
    assert used(megatron_rlhf(tmp_path / "base", cached)) == (0, 8)
    entry = {"url": servers["vllm"], "tags": [], "adapter": "lora"}
    lora = {"teacher_model_server": json.dumps([entry])}
    assert used(megatron_rlhf(tmp_path / "lora", {**cached, **lora})) == (0, 8)
    merged = megatron_rlhf(tmp_path / "merged", {**cached, "teacher_model_server": servers["merged"]})
    assert merged.code == 1
    said = " ".join(merged.log.split())
    assert f"the teacher server {servers['merged']} says something else of a fixed text than when" in said
    assert "it serves other weights as teacher; give another --kd_teacher_cache, or clear that teacher" in said
    both = [{"url": servers["vllm"], "tags": ["a"]}, {"url": servers["merged"], "tags": ["b"]}]
    new = {"teacher_model_server": json.dumps(both), "kd_teacher_cache": tmp_path / "both"}
    run = megatron_rlhf(tmp_path / "tagged", {**cached, **new})
    assert run.code == 1
    assert "both call their model teacher and say different things" in " ".join(run.log.split())
    changes = {"kd_topk": 9, "kd_teacher_cache_mode": "read"}
    fewer = megatron_rlhf(tmp_path / "fewer", {**cached, **changes})
    assert fewer.code == 1
    assert "holds no rows of a teacher server with its 9 most probable tokens" in " ".join(fewer.log.split())
