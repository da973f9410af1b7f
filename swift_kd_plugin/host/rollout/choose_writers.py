"""Which engine writes for the student and for the teacher."""

from pathlib import Path

import torch
from swift.utils import get_logger, is_vllm_available

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.engines import Sampling
from swift_kd_plugin.host.rollout.engine_writers import CopyWriter, ServerWriter
from swift_kd_plugin.host.rollout.megatron_writer import MegatronWriter
from swift_kd_plugin.host.rollout.response_writer import ResponseWriter
from swift_kd_plugin.host.rollout.vllm_writers import StudentVllm, TeacherVllm
from swift_kd_plugin.host.samples.host_trainer import HostTrainer

logger = get_logger()
FITS = 0.8
WHOLE_SHARE = 0.2  # at most, of a model whose linear weights are quantised: embedding, output layer, scales


def student_writes(trainer: HostTrainer) -> bool:
    """Whether the student ever writes: for itself, or as the teacher that it is, too."""
    args = trainer.args
    return args.lmbda > 0 or (args.kd_lmbda_final or 0) > 0 or (args.seq_kd and trainer._is_dynamic_self_distillation)


def student_needs_vllm(trainer: HostTrainer) -> bool:
    return trainer.args.use_vllm and trainer.args.kd_student_engine in (None, "vllm") and student_writes(trainer)


def choose_writers(trainer: HostTrainer) -> dict[str, ResponseWriter]:
    """The writers of a run by the name of their model, started.

    Raises:
        KDError: an engine cannot start, or cannot do what the other flags ask for.
    """
    writers: dict[str, ResponseWriter] = {}
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


def _student_writer(trainer: HostTrainer) -> ResponseWriter | None:
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
        "--kd_student_engine names those that write without vLLM."
    )
    return None


def _teacher_writer(trainer: HostTrainer, writers: dict[str, ResponseWriter]) -> ResponseWriter:
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
        if args.kd_teacher_bits:
            logger.warning(
                f"--kd_teacher_bits {args.kd_teacher_bits}: vLLM writes with the whole weights of the teacher's files, "
                "which it holds beside the quantised ones that score; --kd_teacher_engine transformers writes in as "
                "few bits."
            )
        return TeacherVllm(trainer, temperature)
    if engine == "transformers":
        return CopyWriter(trainer, "teacher", *_teacher_folder(args), sampling_of(trainer, temperature))
    if trainer.kd.source.reads_only:
        raise KDError(
            "--seq_kd true lets the Megatron teacher write here, and --kd_teacher_cache_mode read does not load it; "
            "give another --kd_teacher_engine, or --kd_teacher_cache_mode auto."
        )
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
    return "transformers" if _fits(_teacher_folder(args)[0], args.kd_teacher_bits) else "megatron"


def _fits(folder: str, bits: int | None) -> bool:
    """Whether the weights of a model's folder go on the device beside what is there, with room for its cache.

    Args:
        bits: of its linear weights there, which files have in 16.
    """
    need = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    need *= 1 if bits is None else bits / 16 + WHOLE_SHARE
    return 0 < need < FITS * torch.cuda.mem_get_info()[0]


def _teacher_folder(args) -> tuple[str, str]:
    """Folder and model type of the teacher's weights: the student's where the teacher is its base under LoRA."""
    if args._teacher_use_disable_adapter:
        return args.model_info.model_dir, args.model_type
    return args.teacher_model_dir, args.teacher_model_type
