"""An external plugin for tests: writes the weights of a quantised teacher, whole, under their names in its files.

The file's name comes from KD_TEST_QUANTISED.
"""

import os

import torch
from safetensors.torch import save_file
from torch import distributed as dist

from swift_kd_plugin.host.teacher.quantised_teacher import QuantisedTeacher

stock_init = QuantisedTeacher.__init__


@torch.no_grad()
def init(self, trainer):
    stock_init(self, trainer)
    for _, parameter, quantised in self.layers.weights.values():
        parameter.data = quantised.whole()
    weights = {name: weight.clone().contiguous() for name, weight in self.bridge.export_weights([self.model])}
    self.layers.clear(self.model)
    if dist.get_rank() == dist.get_world_size() - 1:
        save_file(weights, os.environ["KD_TEST_QUANTISED"])
    dist.barrier()


QuantisedTeacher.__init__ = init
