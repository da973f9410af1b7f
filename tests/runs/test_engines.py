"""Every engine answers as the others: real vLLM, real servers, and transformers, on the small model that speaks."""

import json
import re
from contextlib import ExitStack

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.engines import Prompt, PromptError, Sampling
from swift_kd_plugin.generation.server_engine import ServerEngine
from swift_kd_plugin.generation.transformers_engine import TransformersEngine
from swift_kd_plugin.serving.transport import Limits
from tests.evaluation.eval_command import entry_of, read_answers, run_eval
from tests.evaluation.eval_command import read_report as read_evaluation
from tests.generation.ask_engine import (
    GREEDY,
    MAX_LENGTH,
    QUESTIONS,
    SETTINGS,
    ask,
    load_base_template,
    make_prompts,
    too_long,
)
from tests.generation.generate_command import read_rows, run_generate
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL
from tests.servers import swift_deploy, vllm_server, wait_for
from tests.teacher.fake_vllm import serve
from tests.vllm_script import run_script

pytestmark = needs_cpu_backend
# In float32: in bfloat16 the engines round at other places.
# On a CPU vLLM ends at a seeded request that it reads in parts: "CPU Generator does not use offset".
WHOLE = '{"enable_chunked_prefill": false}'
PRECISE = {"torch_dtype": "float32", "vllm_max_model_len": MAX_LENGTH, "vllm_engine_kwargs": WHOLE}
VLLM = {"dtype": "float32", "max-model-len": MAX_LENGTH, "no-enable-chunked-prefill": []}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """swift deploy as it is, and without its template; vLLM's own server."""
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        urls = {
            "swift": stack.enter_context(swift_deploy(BASE_MODEL, folder / "swift", **PRECISE)),
            "raw": stack.enter_context(
                swift_deploy(BASE_MODEL, folder / "raw", use_chat_template=False, **PRECISE),
            ),
            "vllm": stack.enter_context(vllm_server(BASE_MODEL, folder / "vllm", **VLLM)),
        }
        yield urls


@pytest.fixture(scope="module")
def template():
    return load_base_template()


@pytest.fixture(scope="module")
def answers(servers, template, tmp_path_factory) -> dict[str, dict]:
    """What every engine answers to the same questions; the servers get ready meanwhile."""
    folder = tmp_path_factory.mktemp("answers")
    log = run_script("python", "-m", "tests.generation.ask_engine", str(folder / "vllm.json"), folder=folder)
    for noise in ("Invalid process group", "Traceback", "Exception ignored", "core dumped"):
        assert noise not in log
    found = {"in process": json.loads((folder / "vllm.json").read_text())}
    with TransformersEngine(BASE_MODEL, template, batch_size=8, max_model_len=MAX_LENGTH) as engine:
        found["transformers"] = ask(engine)
    for name, url in servers.items():
        with ServerEngine(wait_for(url), template, max_model_len=MAX_LENGTH) as engine:
            found[f"server {name}"] = ask(engine)
    return found


@pytest.mark.parametrize("setting", ["greedy", "penalised", "stopped", "cut"])
def test_all_engines_write_the_same(answers, setting):
    truth = answers["transformers"][setting]
    assert len(truth) == QUESTIONS
    for name, found in answers.items():
        assert found[setting] == truth, name


def test_servers_draw_as_vllm_in_process(answers):
    for name in ("server swift", "server raw", "server vllm"):
        assert answers[name]["drawn"] == answers["in process"]["drawn"]


def test_the_answers_are_those_of_the_model(answers):
    """Greedy search by hand: one forward pass over all tokens for each next one."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32).eval()
    for prompt, (answer,) in list(zip(make_prompts(), answers["in process"]["greedy"], strict=True))[:6]:
        ids = tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, return_dict=False, **prompt.chat_template_kwargs
        )
        assert answer["prompt_tokens"] == len(ids)
        with torch.no_grad():
            for token in answer["token_ids"]:
                logits = model(torch.tensor([ids])).logits[0, -1]
                assert logits[token] > logits.max() - 1e-3
                ids.append(token)
        assert answer["token_ids"][-1] == tokenizer.eos_token_id
        assert answer["text"] == tokenizer.decode(answer["token_ids"][:-1])


def test_a_thinking_prompt_is_thought_about(answers):
    for number, (answer,) in enumerate(answers["in process"]["greedy"]):
        assert answer["text"].startswith("<think>\n") == (number % 2 == 1)
        assert answer["finish_reason"] == "stop"


def test_responses_are_cut_and_stopped(answers):
    found = [answers["in process"][setting] for setting in ("greedy", "cut", "stopped")]
    for (whole,), (cut,), (stopped,) in zip(*found, strict=True):
        assert cut["token_ids"] == whole["token_ids"][:3]
        assert cut["finish_reason"] == ("length" if len(whole["token_ids"]) > 3 else "stop")
        assert stopped["text"] == whole["text"].split("</think>")[0]
        assert stopped["finish_reason"] == "stop"


def test_a_sample_depends_on_its_seed_alone(answers):
    for name, found in answers.items():
        assert found["alone"] == found["drawn"][:6], name
        assert found["shuffled"] == found["drawn"], name
        assert len({json.dumps(one) for many in found["drawn"] for one in many}) > QUESTIONS, name


def test_the_first_step_of_vllm_is_a_full_one(answers):
    """A step with one prompt would take as long, and be one more."""
    assert answers["in process"]["requests"][0] >= 8


def test_a_prompt_that_is_too_long_is_refused_alone(answers):
    for name, found in answers.items():
        assert found["refused"].startswith("a prompt has 782 tokens, and the context ends at 256"), name
        assert found["beside"] == [found["greedy"][0], found["greedy"][1]], name
        assert found["none"] == []


def test_generate_ends_at_a_prompt_that_is_refused(template):
    with (
        TransformersEngine(BASE_MODEL, template, max_model_len=MAX_LENGTH) as engine,
        pytest.raises(PromptError, match="the context ends at 256"),
    ):
        engine.generate([too_long()], GREEDY)


def test_a_prompt_that_no_template_can_write_is_refused(template):
    with (
        TransformersEngine(BASE_MODEL, template) as engine,
        pytest.raises(PromptError, match="written by the template"),
    ):
        engine.generate([Prompt([{"role": "nobody", "content": "say BE"}])], GREEDY)


def test_a_loaded_model_is_used_with_its_present_weights(template):
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32).train()
    with TransformersEngine(model, template) as engine:
        assert engine.model is model
        before = engine.generate(make_prompts(2), GREEDY)
        with torch.no_grad():
            model.model.norm.weight.neg_()
        after = engine.generate(make_prompts(2), GREEDY)
    assert before != after
    assert model.training
    assert model.model.norm.weight.requires_grad
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()


def test_draws_follow_the_distribution(template):
    """600 first tokens of one prompt against the model's probabilities, by top-k, top-p and temperature together."""
    sampling = Sampling(n=600, temperature=3.0, top_k=8, top_p=0.9, max_new_tokens=1)
    prompt = make_prompts(1)[0]
    with TransformersEngine(BASE_MODEL, template, batch_size=100) as engine:
        (found,) = engine.generate([prompt], sampling)
        ids = engine.codec.encode(prompt)["input_ids"]
        with torch.no_grad():
            probabilities = (engine.model(torch.tensor([ids])).logits[0, -1] / 3).softmax(-1)
    best = probabilities.topk(8)
    kept = best.values / best.values.sum()
    kept = kept[: int((kept.cumsum(0) < 0.9).sum()) + 1]
    wanted = kept / kept.sum()
    counts = torch.zeros(len(probabilities)).index_add(
        0, torch.tensor([one.token_ids[0] for one in found]), torch.ones(600)
    )
    assert counts[best.indices[: len(wanted)]].sum() == 600
    chi = ((counts[best.indices[: len(wanted)]] - 600 * wanted) ** 2 / (600 * wanted)).sum()
    assert chi < 30  # 7 degrees of freedom at most: beyond 1 in 10,000


def test_samples_without_a_seed_differ(template):
    prompt = Prompt(make_prompts(1)[0].messages)
    sampling = Sampling(n=4, temperature=5.0, max_new_tokens=8)
    with TransformersEngine(BASE_MODEL, template) as engine:
        first, second = engine.generate([prompt], sampling), engine.generate([prompt], sampling)
    assert first != second


def test_media_only_go_where_they_are_understood(servers, template):
    prompt = Prompt([{"role": "user", "content": "<image>say BE"}], images=["none.png"])
    with (
        ServerEngine(wait_for(servers["vllm"]), template) as engine,
        pytest.raises(PromptError, match="cannot go as token ids to http"),
    ):
        engine.generate([prompt], GREEDY)


def test_a_server_with_another_template_is_refused(servers, template):
    from swift.template import get_template

    other = get_template(template.processor, template_type="qwen3", default_system="Speak.")
    with (
        ServerEngine(wait_for(servers["swift"]), other) as engine,
        pytest.raises(KDError, match="makes other tokens of a prompt"),
    ):
        engine.generate([Prompt([{"role": "user", "content": "say BE"}])], GREEDY)


@pytest.mark.parametrize("name", ["swift", "vllm"])
def test_the_command_asks_a_server(servers, name, tmp_path):
    changes = {"limit": 20, "thinking": "both", "temperature": 0, "shard_size": 8}
    run_generate(tmp_path / "served", **changes, engine="auto", server=wait_for(servers[name]))
    run_generate(tmp_path / "here", **changes)
    assert read_rows(tmp_path / "served") == read_rows(tmp_path / "here")
    assert len(read_rows(tmp_path / "served")) == 40


def test_eval_asks_a_server_beside_a_model_of_its_own(servers, tmp_path):
    models = {"model": [f"{name}={BASE_MODEL}" for name in ("here", "served")], "limit": 12, "metric": ["exact", "ppl"]}
    run_eval(tmp_path, **models, server=f"served={wait_for(servers['vllm'])}")
    found = {
        name: [row["response"] for row in read_answers(tmp_path) if row["model"] == name] for name in ("here", "served")
    }
    assert found["here"] == found["served"]
    assert len(found["here"]) == 24
    report = read_evaluation(tmp_path)
    assert report["models"]["served"]["engine"] == "server"
    assert entry_of(report, model="served", view="with")["figures"]["ppl"] is None
    assert entry_of(report, model="here", view="with")["figures"]["ppl"]["value"] < 1.1


@pytest.mark.parametrize("swift", [False, True])
def test_a_server_of_another_model_is_refused(swift, template):
    """Its texts for token ids are not those of the tokenizer here."""
    with serve(swift=swift) as other, pytest.raises(KDError, match="has another tokenizer than --model: id "):
        ServerEngine(other.url, template)


def test_a_server_that_is_slow_is_named(template):
    limits = Limits(timeout=0.3, attempts=2, pause=0.01)
    with (
        serve(faults=["silence", "silence"]) as slow,
        pytest.raises(
            KDError, match=r"no answer in 2 attempts \(silent for 0.3 s\); see that it runs and that --server"
        ),
    ):
        ServerEngine(slow.url, template, limits=limits)


def test_an_adapter_that_a_server_does_not_have_is_named(template):
    with serve() as other, pytest.raises(KDError, match="has no adapter coder; it has teacher, lora"):
        ServerEngine(other.url, template, "coder")


def test_an_adapter_writes(template, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    torch.manual_seed(3)
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=projections, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with TransformersEngine(BASE_MODEL, template, [tmp_path / "adapter"], max_model_len=MAX_LENGTH) as engine:
        adapted = ask(engine)
    with TransformersEngine(BASE_MODEL, template, max_model_len=MAX_LENGTH) as engine:
        assert engine.generate(make_prompts(4), GREEDY) != adapted["greedy"][:4]
    run_script("python", "-m", "tests.generation.ask_engine", "vllm.json", str(tmp_path / "adapter"), folder=tmp_path)
    found = json.loads((tmp_path / "vllm.json").read_text())
    assert found["greedy"] == adapted["greedy"]


def test_an_engine_that_cannot_start_is_said_in_one_sentence(tmp_path):
    run_script(
        "python",
        "-m",
        "tests.generation.failing_vllm_engines",
        str(tmp_path),
        folder=tmp_path,
        without=["VLLM_CPU_KVCACHE_SPACE"],
        literal=True,
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert "head_dim=16" in found["head size"]
    assert "use --engine transformers" in found["head size"]
    assert re.search(r"vLLM cannot start with .*base_model: Available memory .*; lower --gpu_mem", found["memory"])
    assert "raise --gpu_memory_utilization, or lower --max_model_len" in found["cache"]
    assert re.search(r"max_model_len \(100000\) is greater than .*; lower --max_model_len\.", found["context"])
    assert found["none"] is None
    assert not any("\n" in said or "pydantic" in said for said in found.values() if said)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n", 0), ("temperature", -1), ("top_p", 0), ("top_k", -2), ("min_p", 2), ("max_new_tokens", 0), ("stop", ("",))],
)
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(KDError, match=f"^{setting} is "):
        Sampling(**{setting: value})


def test_settings_cover_every_field():
    usual = vars(Sampling())
    asked = {name for sampling in SETTINGS.values() for name, value in vars(sampling).items() if value != usual[name]}
    assert asked == set(usual)
