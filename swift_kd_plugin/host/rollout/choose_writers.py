"""The engines behind the student's and the teacher's pen: which one a run takes, and their start and end."""

import copy
from contextlib import nullcontext
from pathlib import Path

import torch
from swift.rlhf_trainers.utils import finish_vllm_weight_reload, set_expandable_segments, vllm_sleep
from swift.utils import get_logger, is_vllm_available

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.engines import Sampling
from swift_kd_plugin.host.rollout.engine_writers import CopyWriter, ServerWriter
from swift_kd_plugin.host.rollout.megatron_writer import MegatronWriter
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.sample import KDSample

logger = get_logger()
FITS = 0.8


class StudentVllm:
    """ms-swift's own rollout: weights are moved, multi-turn schedulers run, sleeping models are woken."""

    split = True

    def __init__(self, trainer: HostTrainer):
        self.trainer = trainer

    def write(self, samples: list[KDSample]) -> list[KDSample]:
        return self.trainer._generate_completions(samples)

    def close(self) -> None:
        """Shuts the colocated engine down.

        vLLM also destroys the default process group, so this is among a rank's last steps. Left to the interpreter's
        exit, it would come after ms-swift has destroyed the groups and end with "Invalid process group specified".
        """
        shut_down(getattr(self.trainer, "engine", None))


class TeacherVllm:
    """A second colocated engine with the teacher's weights, run by ms-swift's rollout as if the teacher were trained
    and its weights never changed.

    The pool that vLLM's memory sleeps in is one for the whole process: both engines sleep and wake together.
    """

    split = True

    def __init__(self, trainer: HostTrainer, temperature: float):
        self.rollout = copy.copy(trainer)
        self.rollout.kd = copy.copy(trainer.kd)
        self.rollout.kd.side = "teacher"
        args = self.rollout.args = copy.copy(trainer.args)
        self.rollout.template = _template_of_teacher(trainer)
        args.model_info, args.model_type = self.rollout.template.model_info, teacher_folder(args)[1]
        args.vllm_engine_kwargs, args.vllm_enable_lora = dict(args.vllm_engine_kwargs or {}), False
        args.sleep_level = min(args.sleep_level, 1)  # level 2 throws away what no trainer moves here again
        share = args.kd_teacher_gpu_memory_utilization or args.vllm_gpu_memory_utilization
        self.rollout.vllm_mode, self.rollout.vllm_gpu_memory_utilization = "colocate", share
        self.rollout.multi_turn_scheduler = None
        self.rollout.request_config = copy.copy(trainer.request_config)
        self.rollout.request_config.temperature = temperature
        trainer.enable_offload = self.rollout.enable_offload = args.offload_model or args.offload_optimizer
        self._start(trainer)

    def _start(self, trainer: HostTrainer) -> None:
        """As ms-swift starts the student's."""
        rollout = self.rollout
        with trainer.offload_context() if trainer.enable_offload else nullcontext():
            set_expandable_segments(False)
            rollout.engine = rollout._prepare_vllm_engine()
            if trainer.args.kd_teacher_adapters:
                _load_merged_teacher(trainer, rollout.engine)
            if rollout.args.sleep_level:
                vllm_sleep(rollout.engine.engine, rollout.args.sleep_level)
            set_expandable_segments(True)
        rollout._last_loaded_step = rollout._step  # so that none are moved

    def write(self, samples: list[KDSample]) -> list[KDSample]:
        return self.rollout._generate_completions(samples)

    def close(self) -> None:
        shut_down(self.rollout.engine)


def check_vllm(side: str) -> None:
    """Raises KDError if vLLM is not installed."""
    if not is_vllm_available():
        raise KDError(
            f"The {side} is to write with vLLM, which is not installed; install it with `pip install vllm==0.32.0`, or "
            f"use --kd_{side}_engine transformers."
        )


def teacher_folder(args) -> tuple[str, str]:
    """Folder and model type of the teacher's weights: the student's where the teacher is its base under LoRA."""
    if args._teacher_use_disable_adapter:
        return args.model_info.model_dir, args.model_type
    return args.teacher_model_dir, args.teacher_model_type


def student_writes(trainer: HostTrainer) -> bool:
    """Whether the student ever writes: for itself, or as the teacher that it is, too."""
    args = trainer.args
    return args.lmbda > 0 or (args.kd_lmbda_final or 0) > 0 or (args.seq_kd and trainer._is_dynamic_self_distillation)


def student_needs_vllm(trainer: HostTrainer) -> bool:
    return trainer.args.use_vllm and trainer.args.kd_student_engine in (None, "vllm") and student_writes(trainer)


def choose_writers(trainer: HostTrainer) -> dict[str, object]:
    """The writers of a run by the name of their model, started.

    Raises:
        KDError: an engine cannot start, or cannot do what the other flags ask for.
    """
    writers = {}
    args = trainer.args
    if student_writes(trainer):
        writer = _student_writer(trainer)
        if writer is not None:
            writers["student"] = writer
    if args.seq_kd:
        writers["teacher"] = _teacher_writer(trainer, writers)
    for name, writer in writers.items():
        logger.info(f"What the {name} writes comes from {type(writer).__name__}.")
    return writers


def close_writers(trainer: HostTrainer) -> None:
    for writer in set(trainer.kd.writers.values()):
        writer.close()


def shut_down(engine) -> None:
    if engine is not None:
        engine.engine.engine_core.shutdown()


def sampling_of(trainer: HostTrainer, temperature: float) -> Sampling:
    """How a run's responses are drawn."""
    args = trainer.args
    return Sampling(
        temperature=temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=getattr(args, "min_p", 0.0),
        repetition_penalty=args.repetition_penalty,
        max_new_tokens=args.max_completion_length,
    )


def _student_writer(trainer: HostTrainer):
    args = trainer.args
    if student_needs_vllm(trainer):
        return StudentVllm(trainer)
    sampling = sampling_of(trainer, args.temperature)
    if args.kd_student_engine == "transformers":
        return CopyWriter(trainer, "student", args.model_info.model_dir, args.model_type, sampling)
    if args.kd_student_engine == "megatron":
        return MegatronWriter(trainer, "student", sampling)
    logger.warning(
        f"--lmbda {args.lmbda} with --use_vllm false: the student does not write, all responses are the dataset's; "
        "--kd_student_engine transformers or megatron writes without vLLM."
    )
    return None


def _teacher_writer(trainer: HostTrainer, writers: dict):
    args = trainer.args
    engine = _teacher_engine(trainer)
    temperature = args.temperature if args.kd_teacher_temperature is None else args.kd_teacher_temperature
    if trainer._is_dynamic_self_distillation and engine != "server":
        if "student" not in writers:
            raise KDError(
                "--seq_kd true with the student as its own teacher needs an engine for it; use --use_vllm true or "
                "--kd_student_engine."
            )
        return writers["student"]
    if engine == "server":
        return ServerWriter(trainer, sampling_of(trainer, temperature))
    if engine == "vllm":
        return TeacherVllm(trainer, temperature)
    if engine == "transformers":
        return CopyWriter(trainer, "teacher", *teacher_folder(args), sampling_of(trainer, temperature))
    return MegatronWriter(trainer, "teacher", sampling_of(trainer, temperature))


def _teacher_engine(trainer: HostTrainer) -> str:
    args = trainer.args
    if args.kd_teacher_engine != "auto":
        return args.kd_teacher_engine
    if trainer.use_teacher_api:
        return "server"
    if args.use_vllm and is_vllm_available():
        return "vllm"
    if trainer._is_dynamic_self_distillation or args.kd_teacher_adapters:
        return "megatron"
    return "transformers" if _fits(teacher_folder(args)[0]) else "megatron"


def _fits(folder: str) -> bool:
    """Whether the weights of a model's folder go on the device beside what is there, with room for its cache."""
    need = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return 0 < need < FITS * torch.cuda.mem_get_info()[0]


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
