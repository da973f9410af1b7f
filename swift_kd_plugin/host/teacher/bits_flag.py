"""Whether --kd_teacher_bits can be had, told by flags and by what is installed: nothing is loaded."""

from pathlib import Path

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import is_tied
from swift_kd_plugin.generation.few_bits import check_bitsandbytes

FLAG, HEAD_FLAG = "--kd_teacher_bits", "--kd_teacher_head_bits"
WHOLE = 16


def check_teacher_bits(args) -> None:
    """Raises KDError if there is no local teacher of its own to quantise, or nothing to quantise it with."""
    if args.rlhf_type != "gkd":
        return
    if args.kd_teacher_bits is None:
        if args.kd_teacher_head_bits != WHOLE:
            raise KDError(f"{HEAD_FLAG} {args.kd_teacher_head_bits} goes with {FLAG}; add it or drop the flag.")
        return
    flag = f"{FLAG} {args.kd_teacher_bits}"
    if args.teacher_model_server:
        raise KDError(
            f"{flag} is about a teacher that is loaded here, and --teacher_model_server is one elsewhere; quantise it "
            "where it is served (vllm serve --quantization bitsandbytes), or give --teacher_model."
        )
    if args.teacher_model is None or (args.tuner_type == "lora" and args.teacher_model == args.model):
        raise KDError(
            f"{flag}: in self-distillation the teacher is the student, whose weights are trained as they are; give "
            "another folder as --teacher_model, or drop the flag."
        )
    if args.kd_divergence == "stock":
        raise KDError(f"{flag} needs a loss of the plugin; drop it or --kd_divergence stock.")
    if args.bridge_backend != "mcore-bridge":
        raise KDError(f"{flag} needs --bridge_backend mcore-bridge, which writes weight by weight; drop one of them.")
    if args.fp8_param_gather or args.fp4_param_gather:
        raise KDError(f"{flag} and --fp8_param_gather or --fp4_param_gather both store weights; drop one of them.")
    if args.kd_teacher_head_bits != WHOLE and args.kd_teacher_cache:
        raise KDError(
            f"{HEAD_FLAG} {args.kd_teacher_head_bits}: what --kd_teacher_cache holds meets the output layer as it is; "
            "leave the flag out."
        )
    if args.kd_teacher_head_bits != WHOLE and is_tied(Path(args.teacher_model).expanduser()):
        raise KDError(
            f"{HEAD_FLAG} {args.kd_teacher_head_bits}: the output layer of the teacher {args.teacher_model} is its "
            "embedding, which stays as it is; leave the flag out."
        )
    check_bitsandbytes(flag)
