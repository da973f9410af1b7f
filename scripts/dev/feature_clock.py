"""An external plugin for bench_features.py: each train step is made twice on the same rows, once without features.

Writes `<KD_CLOCK>`: a JSON list with, of each step, the processor's seconds with and without.
"""

import copy
import json
import os
import time
from pathlib import Path

from swift_kd_plugin.host.train.trainer import KDTrainer

FILE = Path(os.environ["KD_CLOCK"])
STEPS: list[tuple[float, float]] = []


def train_step(self, data_iterator):
    rows = [next(data_iterator) for _ in range(self.args.num_microbatches)]
    matched = self.kd.features, self.kd.source.features
    seconds = {}
    for with_features in ((True, False), (False, True))[len(STEPS) % 2]:
        self.kd.features, self.kd.source.features = matched if with_features else (None, None)
        start = time.process_time()
        result = stock_step(self, iter(copy.deepcopy(rows)))
        seconds[with_features] = time.process_time() - start
    self.kd.features, self.kd.source.features = matched
    STEPS.append((seconds[True], seconds[False]))
    FILE.write_text(json.dumps(STEPS), encoding="utf-8")
    return result


stock_step = KDTrainer.train_step
KDTrainer.train_step = train_step
