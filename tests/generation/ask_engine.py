"""The questions that every engine is asked, and its answers as JSON. As a script: asks vLLM in this process.

python -m tests.generation.ask_engine OUTPUT [adapter]
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from swift_kd_plugin.generation.codec import load_template
from swift_kd_plugin.generation.engines import Engine, Prompt, PromptError, Sampling
from tests.json_lines import read_json_lines
from tests.paths import BASE_MODEL, DATA

QUESTIONS = 24
MAX_LENGTH = 256
GREEDY = Sampling(temperature=0, max_new_tokens=24)
SETTINGS = {
    "greedy": GREEDY,
    "drawn": Sampling(n=3, temperature=1.5, top_k=20, top_p=0.95, min_p=0.01, max_new_tokens=12),
    "penalised": Sampling(temperature=0, repetition_penalty=1.3, max_new_tokens=24),
    "stopped": Sampling(temperature=0, max_new_tokens=24, stop=("</think>",)),
    "cut": Sampling(temperature=0, max_new_tokens=3),
}


def load_base_template(model: Path = BASE_MODEL):
    import torch

    return load_template(model, "qwen3", "qwen3", torch.float32)


def make_prompts(count: int = QUESTIONS) -> list[Prompt]:
    """Questions of unequal length, every second one to be thought about."""
    prompts = []
    for number, row in enumerate(read_json_lines(DATA / "exp.jsonl")[:count]):
        messages = row["messages"][:-1]
        if number % 3 == 0:
            # An earlier round makes the prompt longer.
            messages[1:1] = [{"role": "user", "content": "say TT"}, {"role": "assistant", "content": "55"}]
        prompts.append(Prompt(messages, chat_template_kwargs={"enable_thinking": number % 2 == 1}, seed=7000 * number))
    return prompts


def too_long() -> Prompt:
    return Prompt([{"role": "user", "content": "say " + "BE " * MAX_LENGTH}])


def ask(engine: Engine) -> dict:
    """Completions by setting; the prompts of `alone` come one by one, those of `shuffled` in another order."""
    prompts = make_prompts()
    found = {name: engine.generate(prompts, sampling) for name, sampling in SETTINGS.items()}
    found["alone"] = [engine.generate([prompt], SETTINGS["drawn"])[0] for prompt in prompts[:6]]
    found["shuffled"] = engine.generate(prompts[::-1], SETTINGS["drawn"])[::-1]
    found = {name: [[asdict(one) for one in many] for many in answers] for name, answers in found.items()}
    some = [prompts[0], too_long(), prompts[1]]
    streamed = dict(engine.stream(some, GREEDY))
    found["refused"] = str(streamed[1]) if isinstance(streamed[1], PromptError) else None
    found["beside"] = [[asdict(one) for one in streamed[number]] for number in (0, 2)]
    found["none"] = engine.generate([], GREEDY)
    return found


def requests_by_step(engine) -> list[int]:
    """How many of the prompts vLLM has at each of its steps, as they are written greedily."""
    vllm, found = engine.engine.engine, []
    step = vllm.step
    vllm.step = lambda: found.append(vllm.get_num_unfinished_requests()) or step()
    try:
        engine.generate(make_prompts(), GREEDY)
    finally:
        del vllm.step
    return found


if __name__ == "__main__":
    from swift_kd_plugin.generation.vllm_engine import VllmEngine

    adapters = sys.argv[2:]
    with VllmEngine(BASE_MODEL, load_base_template(), adapters, max_model_len=MAX_LENGTH, max_num_seqs=8) as engine:
        Path(sys.argv[1]).write_text(json.dumps({**ask(engine), "requests": requests_by_step(engine)}))
