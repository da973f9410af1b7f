"""Who writes a response: the student, the teacher or the dataset, each sample for itself."""

import copy
import time
from contextlib import contextmanager

import torch
from swift.megatron.trainers.utils import gather_object
from swift.utils import get_logger
from torch import distributed as dist

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rollout.ranks import any_rank
from swift_kd_plugin.host.rollout.response_writer import ResponseWriter
from swift_kd_plugin.host.rollout.rng_states import keep_random_states
from swift_kd_plugin.host.rollout.teacher_response import KWARGS, ask_teacher, take_teacher_response
from swift_kd_plugin.host.rollout.writer_mix import WriterMix, uniform, who_writes
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.losses.schedules import Schedule

logger = get_logger()


def make_mix(args) -> WriterMix:
    """What the command line asks for."""
    return WriterMix(
        seed=args.seed,
        lmbda=Schedule(args.lmbda, args.kd_lmbda_final, args.kd_schedule),
        teacher=args.kd_seq_kd_prob if args.seq_kd else 0.0,
        thinking=args.kd_thinking_prob,
        whole_cycles=args.kd_lmbda_granularity == "cycle",
    )


def write_responses(trainer: HostTrainer, samples: list[KDSample]) -> list[KDSample]:
    """Lets the models write what falls to them. All ranks must call it at the same time.

    Args:
        samples: of this rank's data-parallel group, with the dataset's responses; every rank of the group has them.

    Returns:
        The samples in the same order, each with the response that it is trained on.
    """
    start = time.perf_counter()
    drafts = [_draw(trainer, sample) for sample in samples]
    samples = list(samples)
    for name in trainer.kd.writers:
        chosen = [index for index, draft in enumerate(drafts) if draft.written_by == name]
        # Weights are moved, and experts run, by all ranks together.
        if not any_rank(bool(chosen)):
            continue
        with _seeded(trainer, name):
            written = _write(trainer, name, [drafts[index] for index in chosen])
        for index, draft in zip(chosen, written, strict=True):
            samples[index] = place_truncated(draft, samples[index], trainer.args.kd_truncated)
    if trainer.training:
        trainer.kd.generation_seconds += time.perf_counter() - start
    return samples


def _draw(trainer: HostTrainer, sample: KDSample) -> KDSample:
    """A copy that says who writes, and in which mode. Without such a writer it is the dataset."""
    draft = copy.copy(sample)
    draft.messages, draft.extra = [dict(turn) for turn in sample.messages], dict(sample.extra)
    where = sample.extra.get("kd_source"), sample.extra.get("kd_row")
    key = (*where, [(turn["role"], str(turn["content"])) for turn in sample.prompt_turns], trainer.visit())
    source = trainer.kd.mix.source(key, trainer.cycle(), trainer.progress())
    writers = () if sample.fills_batch else trainer.kd.writers
    draft.written_by = who_writes(source, writers, not sample.has_response)
    draft.seed = int(uniform(trainer.args.seed, "response", *key) * 2**31)
    thinks = trainer.kd.mix.thinks(key)
    if draft.written_by != "dataset" and thinks is not None:
        draft.extra[KWARGS] = {**(draft.extra.get(KWARGS) or {}), "enable_thinking": thinks}
    return draft


def _write(trainer: HostTrainer, name: str, drafts: list[KDSample]) -> list[KDSample]:
    """New samples with responses of the student or the teacher, the latter asked in its own view."""
    writer = trainer.kd.writers[name]
    if name == "student":
        return _write_together(trainer, writer, drafts)
    answered = _write_together(trainer, writer, [ask_teacher(draft) for draft in drafts])
    return [
        take_teacher_response(draft, answer, trainer.template) for draft, answer in zip(drafts, answered, strict=True)
    ]


def _write_together(trainer: HostTrainer, writer: ResponseWriter, samples: list[KDSample]) -> list[KDSample]:
    """All samples of a group, answered; a rank's sentence is raised on all ranks of its group."""
    if not writer.split:
        return writer.write(samples)
    group = trainer._get_rollout_group()
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    part = samples[len(samples) * rank // size : len(samples) * (rank + 1) // size]
    try:
        answered = [(sample, None) for sample in writer.write(part)]
    except KDError as error:
        answered = [(None, str(error))]
    answered = gather_object(answered, group)
    if sentence := next((reason for _, reason in answered if reason), None):
        raise KDError(sentence)
    return [sample for sample, _ in answered]


def place_truncated(draft: KDSample, given: KDSample, truncated: str) -> KDSample:
    """The written sample, or what --kd_truncated puts in its place."""
    if not draft.left_out and (truncated == "keep" or not draft.is_truncated):
        return draft
    if truncated == "drop" and given.has_response:
        return given
    draft.left_out = True
    return draft


@contextmanager
def _seeded(trainer: HostTrainer, name: str):
    """Draws depend on seed, step and rank, in evaluation not on the step; those of training go on as if nothing had
    been drawn.

    Ranks of one tensor-parallel vLLM engine must draw the same.
    """
    part = dist.get_rank() // max(trainer.args.vllm_tensor_parallel_size, 1)
    training = trainer.training
    step = trainer.state.iteration if training else 0
    with keep_random_states():
        torch.manual_seed(int(uniform(trainer.args.seed, name, step, part, training) * 2**53))
        yield
