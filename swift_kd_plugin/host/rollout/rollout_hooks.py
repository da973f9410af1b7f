"""Where ms-swift's trainer asks for responses: its hooks, handed on to `write_responses.py` and the writers."""

from collections import deque

import torch
from swift.megatron.trainers.gkd_trainer import MegatronGKDTrainer
from swift.utils import get_logger

from swift_kd_plugin.generation.vllm_engine import refusals, said_in_one_sentence
from swift_kd_plugin.host.rollout.choose_writers import check_vllm, choose_writers, close_writers, student_needs_vllm
from swift_kd_plugin.host.rollout.completions import explain_refusal, log_completions
from swift_kd_plugin.host.rollout.write_responses import make_mix, write_responses
from swift_kd_plugin.host.samples.sample import KDSample

logger = get_logger()


class RolloutHooks(MegatronGKDTrainer):
    """Lets each sample take its own way: the student, the teacher or the dataset writes its response.

    With `--kd_divergence stock` all is left to ms-swift, but for a resumed run's generation cycles.
    """

    side = "student"  # whose engine `_prepare_vllm_engine` starts

    def _init_rollout_engine(self) -> None:
        args = self.args
        self.writers, self.generation_seconds, self.rows = {}, 0.0, None
        if self.stock_loss:
            super()._init_rollout_engine()
            return
        given = args.use_vllm, args.lmbda
        # ms-swift starts an engine if use_vllm is true and lmbda is not 0.
        args.use_vllm = student_needs_vllm(self)
        args.lmbda = float(args.use_vllm)
        try:
            super()._init_rollout_engine()
        finally:
            args.use_vllm, args.lmbda = given
        self.mix = make_mix(args)
        self.writers = choose_writers(self)

    def _prepare_vllm_engine(self):
        check_vllm(self.side)
        with self._vllm_in_one_sentence(f"vLLM cannot start with {self.args.model_info.model_dir}"):
            return super()._prepare_vllm_engine()

    def _colocate_rollout(self, samples, request_config):
        with self._vllm_in_one_sentence("vLLM broke off"):
            try:
                return super()._colocate_rollout(samples, request_config)
            except refusals() as error:
                raise explain_refusal(samples, self.template, self.engine.max_model_len) or error from error

    def _vllm_in_one_sentence(self, what: str):
        return said_in_one_sentence(what, "vllm_", f"--kd_{self.side}_engine transformers")

    def train(self, train_dataset, val_dataset) -> None:
        self.rows = len(train_dataset) if hasattr(train_dataset, "__len__") else None
        self._step = self.state.iteration
        super().train(train_dataset, val_dataset)
        close_writers(self)

    def visit(self) -> int:
        """How often the present samples have been seen before; of a stream, which has no length, the step."""
        if not self.unwrapped_models[0].training:
            return -1
        done = self.state.iteration * self.args.global_batch_size
        return self.state.iteration if self.rows is None else done // self.rows

    def cycle(self) -> int:
        """Number of the present generation cycle; -1 in evaluation."""
        return self._step // self.steps_per_generation if self.unwrapped_models[0].training else -1

    def _replace_data_iterator(self, data_iterator):
        if self.unwrapped_models[0].training and self._buffered_inputs is None:
            self._start_cycle(data_iterator)
        return super()._replace_data_iterator(data_iterator)

    def _start_cycle(self, data_iterator) -> None:
        """The rest of the cycle that a resumed run was in; elsewhere ms-swift builds the buffer."""
        passed = self._step % self.steps_per_generation
        if not passed:
            return
        logger.info(
            f"Resumed within a generation cycle: the responses of its last {self.steps_per_generation - passed} steps "
            "are written anew. With --save_steps a multiple of --steps_per_generation nothing is."
        )
        whole, self.steps_per_generation = self.steps_per_generation, self.steps_per_generation - passed
        try:
            self._buffered_inputs = [None] * passed + self._build_rollout_buffer(data_iterator)
        finally:
            self.steps_per_generation = whole

    def _generate_and_score_completions(self, inputs: list[dict]) -> list[dict[str, torch.Tensor]]:
        if self.stock_loss:
            return super()._generate_and_score_completions(inputs)
        samples: list[KDSample] = self.to_samples(inputs)
        if self.writers:
            samples = write_responses(self, samples)
        size = self.args.micro_batch_size
        assert len(samples) % size == 0
        batches = [self._encode_samples(samples[start : start + size]) for start in range(0, len(samples), size)]
        if self.writers:
            log_completions(self, samples)
        self._compute_teacher_logits(batches)
        return batches

    def _prepare_logging(self) -> None:
        super()._prepare_logging()
        if not self.stock_loss:
            self._logs |= {name: deque() for name in ("written_by", "finish_reason", "tokens")}

    def _build_log_table(self) -> dict[str, list]:
        table = super()._build_log_table()
        return table | {name: list(column) for name, column in self._logs.items() if name not in table}
