"""--kd_teacher_bits: the local teacher in 8 or 4 bits, quantised as it is loaded, weight by weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from mcore_bridge.utils.safetensors import SafetensorLazyLoader
from swift.megatron.model import get_mcore_model
from swift.utils import get_logger
from torch import nn
from transformers import AutoConfig

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.teacher.bits_flag import WHOLE
from swift_kd_plugin.host.teacher.hidden_states import language_model
from swift_kd_plugin.host.teacher.quantised_layers import QuantisedLayers
from swift_kd_plugin.host.teacher.teacher_adapters import AdapterMerge

logger = get_logger()
MIB = 2**20


class QuantisedTeacher:
    """The teacher of a trainer with quantised linear weights.

    Made, it stands in the trainer as ms-swift's own `_load_teacher_model` leaves it. Of a linear weight of the files
    only the part that is being quantised is on the device, and the whole one if it is stored with scales.

    Raises:
        KDError: an adapter does not fit, or a weight is not in the teacher's files.
    """

    def __init__(self, trainer: HostTrainer):
        args = trainer.args
        self.folder, self.merge = args.teacher_model_dir, AdapterMerge(args)
        self.compared = False
        trainer.teacher_hf_config = AutoConfig.from_pretrained(self.folder, trust_remote_code=True)
        with _linear_weights_nowhere(args):
            trainer.teacher_models = get_mcore_model(args, trainer.teacher_hf_config)
        (self.model,) = trainer.teacher_models
        trainer.teacher_config = self.model.config
        self.bridge = self.model.config.bridge
        head_bits = None if args.kd_teacher_head_bits == WHOLE else args.kd_teacher_head_bits
        self.layers = QuantisedLayers(self.model, args.kd_teacher_bits, head_bits)
        _make_the_others(self.model)
        self.model.requires_grad_(False).eval()
        with self._writing():
            self.bridge.load_weights([self.model], self.folder, converter=self.merge.convert)
        self.merge.finish()
        if name := self.layers.missing():
            raise KDError(f"The teacher {self.folder} has no weight for {name}; give a folder with all its files.")
        self._log(args.kd_teacher_bits, head_bits)

    def _log(self, bits: int, head_bits: int | None) -> None:
        kept = [(quantised, parameter.dtype) for _, parameter, quantised in self.layers.weights.values()]
        held = sum(part.numel() * part.element_size() for weight, _ in kept for part in weight.parameters())
        whole = sum(torch.Size(weight.weight_shape).numel() * dtype.itemsize for weight, dtype in kept)
        head = "Embedding, norms, biases, routers and the output layer are not quantised."
        if head_bits:
            head = f"The output layer is kept in {head_bits}; embedding, norms, biases and routers are not quantised."
        logger.info(
            f"The teacher's linear weights are kept in {bits} bits: {held / MIB:,.2f} MiB on this rank in place of "
            f"{whole / MIB:,.2f} MiB. {head}"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within it the bridge's writes of linear weights go through `self.layers`."""
        stock = self.bridge._set_param

        self.bridge._set_param = partial(self.layers.write, stock=stock)
        try:
            yield
        finally:
            del self.bridge._set_param

    @contextmanager
    def unquantised(self) -> Iterator[None]:
        """Within it one forward runs with the weights of the teacher's files, read again layer by layer: those of one
        layer are on the device at a time."""
        decoder = language_model(self.model).decoder.layers
        with torch.no_grad(), SafetensorLazyLoader(self.folder) as loader, self._writing():
            state = dict(self.merge.convert(key, value) for key, value in loader.get_state_dict().items())
            self.bridge._disable_tqdm = True
            steps = self.bridge._convert([self.model], state, "", True)  # one for what is before the first layer
            hooks = [layer.register_forward_pre_hook(lambda *_: next(steps)) for layer in decoder]
            hooks += [layer.register_forward_hook(lambda layer, *_: self.layers.clear(layer)) for layer in decoder]
            if len(decoder):

                def read_the_rest(*_) -> None:  # the output layer, behind the last one
                    for _ in steps:
                        pass

                hooks.append(decoder[-1].register_forward_hook(read_the_rest))
            self.layers.unquantised = True
            try:
                next(steps)
                yield
            finally:
                self.layers.unquantised = False
                self.layers.clear(self.model)
                for hook in hooks:
                    hook.remove()


@contextmanager
def _linear_weights_nowhere(args) -> Iterator[None]:
    """Within it a model is built whose layers of Transformer Engine have no memory for their weights."""
    settings = {"use_cpu_initialization": args.use_cpu_initialization}
    args.use_cpu_initialization, args.init_model_with_meta_device = False, True
    try:
        yield
    finally:
        vars(args).update(settings)
        del args.init_model_with_meta_device


def _make_the_others(model: nn.Module) -> None:
    """Puts on the device, not yet written, what has no memory and is not quantised: norms and biases."""
    device = torch.cuda.current_device()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device))
    model.cuda(device)
