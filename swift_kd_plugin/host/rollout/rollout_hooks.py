"""ms-swift's rollout with vLLM's errors in one sentence, and its generation cycles in a resumed run."""

from swift.megatron.trainers.gkd_trainer import MegatronGKDTrainer
from swift.utils import get_logger

from swift_kd_plugin.generation.vllm_engine import refusals, said_in_one_sentence
from swift_kd_plugin.host.rollout.choose_writers import check_vllm
from swift_kd_plugin.host.rollout.completions import explain_refusal

logger = get_logger()


class RolloutHooks(MegatronGKDTrainer):
    """What a rollout needs whatever the loss is; the rest of it is ms-swift's."""

    def _prepare_vllm_engine(self):
        check_vllm(self.kd.side)
        with self._vllm_in_one_sentence(f"vLLM cannot start with {self.args.model_info.model_dir}"):
            return super()._prepare_vllm_engine()

    def _colocate_rollout(self, samples, request_config):
        with self._vllm_in_one_sentence("vLLM broke off"):
            try:
                return super()._colocate_rollout(samples, request_config)
            except refusals() as error:
                raise explain_refusal(samples, self.template, self.engine.max_model_len) or error from error

    def _vllm_in_one_sentence(self, what: str):
        return said_in_one_sentence(what, "vllm_", f"--kd_{self.kd.side}_engine transformers")

    def train(self, train_dataset, val_dataset) -> None:
        self._step = self.state.iteration
        super().train(train_dataset, val_dataset)

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
