"""Colocated vLLM as the writer of student or teacher: ms-swift's rollout, with vLLM's errors in one sentence."""

import copy

import torch
from swift.megatron.trainers.rollout_mixin import MegatronRolloutMixin
from swift.rlhf_trainers.utils import finish_vllm_weight_reload
from swift.utils import is_vllm_available

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.vllm_engine import refusals, said_in_one_sentence
from swift_kd_plugin.host.rollout.completions import explain_refusal
from swift_kd_plugin.host.rollout.response_writer import ResponseWriter
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample


class ColocatedVllm(MegatronRolloutMixin):
    """Raises KDError where vLLM is not installed, cannot start, breaks off or refuses a prompt."""

    side = "student"

    def _prepare_vllm_engine(self):
        if not is_vllm_available():
            raise KDError(
                f"The {self.side} is to write with vLLM, which is not installed; install it with `pip install "
                f"vllm==0.32.0`, or use --kd_{self.side}_engine transformers."
            )
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


class StudentVllm(ResponseWriter):
    """The trainer's own rollout: weights are moved, multi-turn schedulers run, sleeping models are woken."""

    split = True

    def __init__(self, trainer: HostTrainer):
        self.trainer = trainer

    def write(self, samples: list[KDSample]) -> list[KDSample]:
        return self.trainer._generate_completions(samples)

    def held(self) -> tuple[int, str]:
        args = self.trainer.args
        return share_of_device(args) if args.vllm_mode == "colocate" else (0, "on its server")

    def close(self) -> None:
        """Shuts the colocated engine down.

        vLLM also destroys the default process group, so this is among a rank's last steps. Left to the interpreter's
        exit, it would come after ms-swift has destroyed the groups and end with "Invalid process group specified".
        """
        shut_down(getattr(self.trainer, "engine", None))


class TeacherVllm(ColocatedVllm, ResponseWriter):
    """A second rollout beside the trainer's, of the teacher's weights, which never change.

    The pool that vLLM's memory sleeps in is one for the whole process: both engines sleep and wake together.
    """

    side, split = "teacher", True

    def __init__(self, trainer: HostTrainer, temperature: float):
        self.trainer = trainer
        self.args = arguments_of_teacher(trainer.args, temperature)
        self.template = _template_of_teacher(trainer)
        self.offload_context = trainer.offload_context
        self._init_rollout_engine()
        self._last_loaded_step = self._step  # so that none are moved

    def _prepare_vllm_engine(self):
        engine = super()._prepare_vllm_engine()
        if self.args.kd_teacher_adapters:
            _load_merged_teacher(self.trainer, engine)
        return engine

    def write(self, samples: list[KDSample]) -> list[KDSample]:
        return self._generate_completions(samples)

    def held(self) -> tuple[int, str]:
        return share_of_device(self.args)

    def close(self) -> None:
        shut_down(self.engine)


def shut_down(engine) -> None:
    if engine is not None:
        engine.engine.engine_core.shutdown()


def share_of_device(args) -> tuple[int, str]:
    share, sleeps = args.vllm_gpu_memory_utilization, ", sleeps while training" if args.sleep_level else ""
    return int(share * torch.cuda.mem_get_info()[1]), f"vLLM, {share:.0%} of the device{sleeps}"


def arguments_of_teacher(args, temperature: float):
    """ms-swift's arguments as if the teacher were the student; `TEACHER_ROLLOUT` of host/start/seams.py says why."""
    teacher_args = copy.copy(args)
    if not args._teacher_use_disable_adapter:
        teacher_args.model_info, teacher_args.model_type = args.teacher_model_info, args.teacher_model_type
    teacher_args.use_vllm, teacher_args.vllm_mode, teacher_args.lmbda = True, "colocate", 1.0
    teacher_args.vllm_gpu_memory_utilization = (
        args.kd_teacher_gpu_memory_utilization or args.vllm_gpu_memory_utilization
    )
    teacher_args.vllm_engine_kwargs, teacher_args.vllm_enable_lora = dict(args.vllm_engine_kwargs or {}), False
    teacher_args.sleep_level = min(args.sleep_level, 1)
    teacher_args.multi_turn_scheduler, teacher_args.temperature = None, temperature
    return teacher_args


def _template_of_teacher(trainer: HostTrainer):
    """The student's template over the teacher's folder: ms-swift's engine loads the model that its template names."""
    args, template = trainer.args, copy.copy(trainer.template)
    if not args._teacher_use_disable_adapter:
        template.processor = copy.copy(template.processor)
        template.processor.model_info, template.processor.model_meta = args.teacher_model_info, args.teacher_model_meta
        template.model_info, template.config = args.teacher_model_info, args.teacher_model_info.config
    return template


def _load_merged_teacher(trainer: HostTrainer, engine) -> None:
    """The weights of the Megatron teacher, whose adapters are merged, in place of those on disk."""
    with trainer.load_teacher_model_context():
        weights = trainer.teacher_config.bridge.export_weights(trainer.teacher_models)
        engine.inner_model.load_weights(weights)
    config = engine.engine.model_config
    finish_vllm_weight_reload(engine.inner_model, model_config=config, target_device=trainer.device, strict=True)
