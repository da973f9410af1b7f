"""An external plugin for tests: after the last step each rank moves its weights to vLLM `KD_TEST_SYNCS` times, lets the
student answer the rows of `<KD_TEST_RECORD>/asked.jsonl`, and writes `<KD_TEST_RECORD>/sync<rank>.json`:

- `resident`: bytes in memory after each sync
- `answers`: prompt ids and sampled ids of each row
"""

import json
import os
from pathlib import Path

import psutil
from swift.megatron.trainers.base import BaseMegatronTrainer
from torch import distributed as dist

from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.host.rollout.completions import as_prompt

FOLDER = Path(os.environ["KD_TEST_RECORD"])
SYNCS = int(os.environ["KD_TEST_SYNCS"])
stock_finalize = BaseMegatronTrainer.finalize_training


def finalize_training(self):
    stock_finalize(self)
    process, resident = psutil.Process(), []
    for _ in range(SYNCS):
        self._move_model_to_vllm()
        resident.append(process.memory_info().rss)
    rows = [json.loads(line) for line in (FOLDER / "asked.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = [self.sample_cls.from_row(row) for row in rows]
    codec = Codec(self.template, "vllm")
    prompts = [list(codec.encode(as_prompt(sample))["input_ids"]) for sample in samples]
    answered = [sample.written_ids for sample in self.kd.writers["student"].write(samples)]
    record = {"resident": resident, "answers": list(zip(prompts, answered, strict=True))}
    (FOLDER / f"sync{dist.get_rank()}.json").write_text(json.dumps(record), encoding="utf-8")


BaseMegatronTrainer.finalize_training = finalize_training
