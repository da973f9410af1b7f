"""An external plugin for bench_rollout.py: what each step spends from samples to responses, in the engine and in syncs.

Writes `<KD_CLOCK>`: a JSON list with the seconds of each step under step, rollout, engine, sync.
"""

import json
import os
import time
from functools import wraps
from pathlib import Path

from swift.infer_engine import GRPOVllmEngine
from swift.megatron.trainers.base import BaseMegatronTrainer
from swift.megatron.trainers.rollout_mixin import MegatronRolloutMixin

from swift_kd_plugin.host.train import trainer

FILE = Path(os.environ["KD_CLOCK"])
STEPS: list[dict[str, float]] = [{}]


def time_calls(owner, name: str, label: str) -> None:
    stock = getattr(owner, name)

    @wraps(stock)
    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = stock(*args, **kwargs)
        STEPS[-1][label] = STEPS[-1].get(label, 0.0) + time.perf_counter() - start
        return result

    setattr(owner, name, timed)


def train_step(self, *args):
    result = stock_step(self, *args)
    FILE.write_text(json.dumps(STEPS), encoding="utf-8")
    STEPS.append({})
    return result


time_calls(GRPOVllmEngine, "infer", "engine")
time_calls(MegatronRolloutMixin, "_move_model_to_vllm", "sync")
if os.environ["KD_CLOCK_SIDE"] == "ours":
    for function in ("write_responses", "log_completions"):
        time_calls(trainer, function, "rollout")
else:
    for method in ("_get_local_rollout_batch", "_generate_completions", "_gather_rollout_results"):
        time_calls(MegatronRolloutMixin, method, "rollout")
    time_calls(MegatronRolloutMixin, "_log_completions_from_samples", "rollout")
time_calls(BaseMegatronTrainer, "train_step", "step")
stock_step = BaseMegatronTrainer.train_step
BaseMegatronTrainer.train_step = train_step
