"""Responses from a Megatron model in place: a whole forward for each token, so slow, but in every layout."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import RepetitionPenaltyLogitsProcessor
from transformers.utils import ContextManagers

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import Codec
from swift_kd_plugin.generation.engines import PromptError, Sampling
from swift_kd_plugin.generation.sampling import choose, draws
from swift_kd_plugin.host.rollout.completions import as_prompt, prompt_refusal
from swift_kd_plugin.host.rollout.ranks import any_rank, most_of_all_ranks
from swift_kd_plugin.host.rollout.response_writer import ResponseWriter
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.response_labels import IGNORED
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.hidden_states import why_not_linear
from swift_kd_plugin.host.teacher.local_teacher import read_outputs, without_interleaving
from swift_kd_plugin.host.teacher.parallel_groups import context_group, tensor_group
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.shards import all_gather
from swift_kd_plugin.teacher.teacher_outputs import HiddenOutputs, LogitsOutputs

PLACEHOLDER = 0


class MegatronWriter(ResponseWriter):
    """Writes with the training model or the local teacher, token by token.

    All ranks that share samples work on all of them together, as their models are cut; ranks with other samples make
    as many forwards, since experts may be spread over them.

    Args:
        side: "student" or "teacher".

    Raises:
        KDError: the model is cut into interleaved pipeline stages.
    """

    split = False

    def __init__(self, trainer: HostTrainer, side: str, sampling: Sampling):
        self.trainer, self.side, self.sampling = trainer, side, sampling
        self.codec = Codec(trainer.template, "transformers", trainer.args.vllm_max_model_len)
        if self._model_is_the_students() and len(trainer.unwrapped_models) > 1:
            raise KDError(
                f"--kd_{side}_engine megatron cannot run interleaved pipeline stages; leave "
                "--virtual_pipeline_model_parallel_size out, or let vLLM write."
            )
        models = trainer.unwrapped_models if self._model_is_the_students() else trainer.teacher_models
        self.form = HiddenOutputs if why_not_linear(models[0]) is None else LogitsOutputs

    @torch.no_grad()
    def write(self, samples: list[KDSample]) -> list[KDSample]:
        if media := next((sample for sample in samples if as_prompt(sample).has_media), None):
            raise KDError(f"{media.name} has images, videos or audio, which need vLLM or a server as engine.")
        prompts = [self._prompt_ids(sample) for sample in samples]
        rooms = [self.codec.room(len(prompt), self.sampling) for prompt in prompts]
        uniforms = [draws(sample.seed, 0, room) for sample, room in zip(samples, rooms, strict=True)]
        written: list[list[int]] = [[] for _ in samples]
        with self._model() as model:
            while True:
                indices = [n for n, ids in enumerate(written) if len(ids) < rooms[n] and not self._ended(ids)]
                if not any_rank(bool(indices)):
                    break
                numbers = torch.tensor([uniforms[n][len(written[n])] for n in indices], dtype=torch.float64)
                tokens = self._next_tokens(model, [prompts[n] + written[n] for n in indices], numbers)
                for number, token in zip(indices, tokens, strict=True):
                    written[number].append(token)
        return [
            sample.answered(ids, self.codec.text(ids), "stop" if self._ended(ids) else "length")
            for sample, ids in zip(samples, written, strict=True)
        ]

    def _prompt_ids(self, sample: KDSample) -> list[int]:
        try:
            return self.codec.encode(as_prompt(sample))["input_ids"]
        except PromptError as error:
            raise prompt_refusal(sample, error) from error

    def close(self) -> None:
        """Nothing is held."""

    def _ended(self, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in self.codec.end_ids

    def _model_is_the_students(self) -> bool:
        return self.side == "student" or not self.trainer.teacher_models

    @contextmanager
    def _model(self):
        """The model in evaluation mode, on the device."""
        trainer = self.trainer
        if not self._model_is_the_students():
            with trainer.load_teacher_model_context(), without_interleaving(trainer.args):
                yield trainer.teacher_models[0]
            return
        off = self.side == "teacher" and trainer._teacher_use_disable_adapter
        modes = [model.training for model in trainer.wrapped_models]
        for model in trainer.wrapped_models:
            model.eval()
        try:
            with ContextManagers([model.disable_adapter() for model in trainer.peft_models] if off else []):
                yield trainer.unwrapped_models[0]
        finally:
            for model, training in zip(trainer.wrapped_models, modes, strict=True):
                model.train(training)

    def _next_tokens(self, model, sequences: list[list[int]], uniforms: Tensor) -> list[int]:
        """One token for each sequence; a rank that has none makes a forward all the same."""
        size = self.trainer.args.micro_batch_size
        most = most_of_all_ranks(-(-len(sequences) // size))
        tokens: list[int] = []
        for start in range(0, most * size, size):
            part = sequences[start : start + size] or [[PLACEHOLDER] * 2]
            inputs = self.trainer._collate([_view(ids) for ids in part])
            tokens += self._choose(
                read_outputs(self.trainer, model, inputs, self.form), part, uniforms[start : start + size]
            )
        return tokens[: len(sequences)]

    def _choose(self, result, sequences: list[list[int]], uniforms: Tensor) -> list[int]:
        """Chosen on the group's last rank, which holds the last pipeline stage, for all ranks of the group."""
        chosen = torch.zeros(len(sequences), dtype=torch.long, device=torch.cuda.current_device())
        if result is not None:
            outputs, numbers = result
            everyone = torch.arange(len(sequences), device=numbers.device)
            logits = _whole(outputs.exchange(numbers, everyone, context_group()).as_teacher())
            logits = _penalise(logits[:, : self._vocabulary()].float(), sequences, self.sampling.repetition_penalty)
            if len(uniforms):
                chosen = choose(logits, self.sampling, uniforms.to(logits.device))
        group = self.trainer._get_rollout_group()
        dist.broadcast(chosen, group_src=dist.get_world_size(group) - 1, group=group)
        return chosen.tolist()

    def _vocabulary(self) -> int:
        """Ids that both models have: others could not be scored."""
        counts = self.trainer.kd.vocabularies
        return min(counts.student, counts.teacher or counts.student)


def _view(ids: list[int]) -> dict[str, object]:
    """A sequence with one token more, the only one that is asked about."""
    return {
        "input_ids": [*ids, PLACEHOLDER],
        "labels": [IGNORED] * len(ids) + [PLACEHOLDER],
        "length": len(ids) + 1,
    }


def _penalise(logits: Tensor, sequences: list[list[int]], penalty: float) -> Tensor:
    if penalty == 1:
        return logits
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    rows = zip(sequences, logits, strict=True)
    return torch.cat([processor(torch.tensor([ids], device=row.device), row[None]) for ids, row in rows])


def _whole(logits: Tensor | LMHead) -> Tensor:
    """All columns of the logits [n, V]."""
    if isinstance(logits, LMHead):
        logits = logits.logits(out=logits.weights[0].new_empty(logits.shape))
    group = tensor_group()
    return logits if group is None else torch.cat(list(all_gather(logits, group)), dim=-1)
