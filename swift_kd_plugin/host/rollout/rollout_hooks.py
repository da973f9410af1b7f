"""ms-swift's rollout within training: its generation cycles in a resumed run, vLLM's errors in one sentence."""

from swift.megatron.trainers.gkd_trainer import MegatronGKDTrainer
from swift.utils import get_logger

from swift_kd_plugin.host.rollout.vllm_writers import ColocatedVllm

logger = get_logger()


class RolloutHooks(ColocatedVllm, MegatronGKDTrainer):
    """What a rollout needs whatever the loss is; the rest of it is ms-swift's."""

    @property
    def training(self) -> bool:
        """In a train step, not in an evaluation."""
        return self.unwrapped_models[0].training

    def train(self, train_dataset, val_dataset) -> None:
        self._step = self.state.iteration
        super().train(train_dataset, val_dataset)

    def _replace_data_iterator(self, data_iterator):
        if self.training and self._buffered_inputs is None:
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
        cycle_steps, self.steps_per_generation = self.steps_per_generation, self.steps_per_generation - passed
        try:
            self._buffered_inputs = [None] * passed + self._build_rollout_buffer(data_iterator)
        finally:
            self.steps_per_generation = cycle_steps
