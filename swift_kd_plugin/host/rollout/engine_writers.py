"""Writers on the engines of `generation/`: a copy of the model in transformers, and the teacher's servers."""

import os
from contextlib import contextmanager
from dataclasses import replace

import torch
from mcore_bridge.model.rope import EXTENDED_ROPE_INIT_FUNCTIONS
from swift.model import get_model_processor
from swift.rlhf_trainers.gkd_helpers import route_samples_to_teachers
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.engines import Engine, PromptError, Sampling
from swift_kd_plugin.generation.quantised_model import quantise_model
from swift_kd_plugin.generation.server_engine import ServerEngine
from swift_kd_plugin.generation.transformers_engine import TransformersEngine
from swift_kd_plugin.host.rollout.completions import as_prompt, prompt_refusal
from swift_kd_plugin.host.rollout.response_writer import ResponseWriter
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.bits_flag import FLAG
from swift_kd_plugin.serving.transport import KEY_VARIABLE


def answer_samples(engine: Engine, samples: list[KDSample], sampling: Sampling) -> list[KDSample]:
    """The samples with responses of an engine. Raises KDError that names the sample that cannot be answered."""
    prompts = [replace(as_prompt(sample), seed=sample.seed) for sample in samples]
    answers = {}
    for index, answer in engine.stream(prompts, sampling):
        if isinstance(answer, PromptError):
            raise prompt_refusal(samples[index], answer)
        (completion,) = answer
        text = engine.codec.text(completion.token_ids)
        answers[index] = samples[index].answered(completion.token_ids, text, completion.finish_reason)
    return [answers[index] for index in range(len(samples))]


class CopyWriter(ResponseWriter):
    """A whole copy of the model on each device, run by transformers.

    Args:
        side: "student" or "teacher"; the student's weights are copied anew when they have changed, and the teacher's
            are kept in --kd_teacher_bits as those are that score.

    Raises:
        KDError: transformers' model has other weights than the bridge exports.
    """

    split = True

    def __init__(self, trainer: HostTrainer, side: str, folder: str, model_type: str, sampling: Sampling):
        self.trainer, self.sampling, self.loaded = trainer, sampling, None
        self.follows = side == "student"
        args = trainer.args
        with transformers_own_ropes():
            settings = {"torch_dtype": args.torch_dtype, "device_map": "cpu"}
            model, _ = get_model_processor(folder, model_type=model_type, **settings)
        if args.kd_teacher_bits and not self.follows:
            quantise_model(model, args.kd_teacher_bits, trainer.device, FLAG)
        model = model.to(trainer.device).eval().requires_grad_(False)
        self.engine = TransformersEngine(model, trainer.template, max_model_len=args.vllm_max_model_len)

    def write(self, samples: list[KDSample]) -> list[KDSample]:
        if self.follows and self.loaded != self.trainer._step:
            copy_weights(self.trainer, self.engine.model)
            self.loaded = self.trainer._step
        return answer_samples(self.engine, samples, self.sampling)

    def held(self) -> tuple[int, str]:
        weights = self.engine.model.parameters()
        return sum(weight.numel() * weight.element_size() for weight in weights), "a copy of the model in transformers"

    def close(self) -> None:
        self.engine.close()


class ServerWriter(ResponseWriter):
    """The servers of --teacher_model_server, each for the samples of its tag; every rank asks for its own part."""

    split = True

    def __init__(self, trainer: HostTrainer, sampling: Sampling):
        self.trainer, self.sampling = trainer, sampling
        self.configs = trainer.kd.source.configs
        key, flag = os.environ.get(KEY_VARIABLE), "--teacher_model_server"
        self.engines = [
            ServerEngine(config.url, trainer.template, config.adapter, key, flag=flag) for config in self.configs
        ]

    def write(self, samples: list[KDSample]) -> list[KDSample]:
        answered = list(samples)
        routes = route_samples_to_teachers(samples, self.configs, self.trainer.args.teacher_tag_key)
        for number, engine in enumerate(self.engines):
            chosen = routes[number]
            for index, sample in zip(
                chosen, answer_samples(engine, [samples[index] for index in chosen], self.sampling), strict=True
            ):
                answered[index] = sample
        return answered

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


@contextmanager
def transformers_own_ropes():
    """mcore-bridge puts functions for its own configurations into transformers' table, which transformers' models
    would be built with."""
    taken = {name: ROPE_INIT_FUNCTIONS.get(name) for name in EXTENDED_ROPE_INIT_FUNCTIONS}
    for name, function in taken.items():
        if function is EXTENDED_ROPE_INIT_FUNCTIONS[name]:
            del ROPE_INIT_FUNCTIONS[name]
    try:
        yield
    finally:
        ROPE_INIT_FUNCTIONS.update({name: function for name, function in taken.items() if function})


@torch.no_grad()
def copy_weights(trainer: HostTrainer, model: nn.Module) -> None:
    """Copies the student's weights, its LoRA merged, into a transformers model. All ranks must call it."""
    targets = model.state_dict()
    copied = set()
    merges = trainer.args.tuner_type in ("lora", "lora_llm")
    if merges:
        trainer.merge_lora_adapters()
    try:
        for name, weight in trainer.bridge.export_weights(trainer.unwrapped_models):
            if name not in targets or targets[name].shape != weight.shape:
                raise KDError(
                    f"transformers' model has no {name} of shape {list(weight.shape)} to copy the student's into; "
                    "use --kd_student_engine megatron, or vLLM."
                )
            targets[name].copy_(weight)
            copied.add(targets[name].data_ptr())
    finally:
        if merges:
            trainer.unmerge_lora_adapters()
    if missing := [name for name, _ in model.named_parameters() if targets[name].data_ptr() not in copied]:
        raise KDError(
            f"The student's {missing[0]} is not among the weights that the bridge exports; use --kd_student_engine "
            "megatron, or vLLM."
        )
