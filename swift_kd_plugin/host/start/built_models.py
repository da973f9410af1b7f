"""Compares what config.json of student and teacher say with what Megatron would build, before a model is loaded."""

from argparse import Namespace
from pathlib import Path

from swift.megatron.model.utils import get_mcore_model_config
from swift.utils import get_logger
from transformers import AutoConfig

from swift_kd_plugin.errors import KDError, named_line
from swift_kd_plugin.host.start.checkpoint_weights import Weights
from swift_kd_plugin.host.start.model_differences import Described, differences, text_config, window_of

logger = get_logger()


def check_built_models(args) -> None:
    """Raises KDError where outputs would differ; with --kd_allow_model_differences it is a warning.

    The shortest sliding window that is left out is kept in `args.kd_windows`, for sequences that turn out longer.
    """
    args.kd_windows = {}
    if args.bridge_backend != "mcore-bridge":
        return
    models = {"model": describe(args, args.model_dir, args.megatron_model_meta)}
    if args.teacher_model:
        models["teacher_model"] = describe(args, args.teacher_model_dir, args.teacher_megatron_model_meta)
    for flag, model in models.items():
        if found := differences(model, _longest(args)):
            _report(args, flag, found)
        elif (window := window_of(model)) and not args.kd_allow_model_differences:
            args.kd_windows[flag] = window
    _say_balancing_loss(args, models["model"])


def describe(args, folder: str, meta) -> Described:
    """
    Args:
        meta: mcore-bridge's kind of model.
    """
    hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    try:
        built = get_mcore_model_config(Namespace(**{**vars(args), "megatron_model_meta": meta}), hf_config)
    except (ValueError, AssertionError) as error:
        raise KDError(
            f"{Path(folder) / 'config.json'}: Megatron cannot build this model ({named_line(error)}); choose another."
        ) from error
    return Described(text_config(hf_config), built, Weights(Path(folder)))


def _longest(args) -> int | None:
    """Tokens of the longest sequence of a student's prompt, response of the dataset or written response."""
    if not args.max_length:
        return None
    writes = args.lmbda or args.kd_lmbda_final or args.seq_kd
    return args.max_length + (args.max_completion_length if writes else 0)


def _report(args, flag: str, found: list[str]) -> None:
    what = f"--{flag} {getattr(args, flag)}: Megatron builds another model than its config.json says: "
    if not args.kd_allow_model_differences:
        raise KDError(
            f"{what}{'; '.join(found)}. Choose another model, or train on this one all the same with "
            "--kd_allow_model_differences true."
        )
    logger.warning(f"{what}{'; '.join(found)}.")


def _say_balancing_loss(args, student: Described) -> None:
    """Of the student's experts: it changes the objective, not the outputs."""
    asked = student.has("router_aux_loss_coef", 0)
    if asked and student.built.num_moe_experts and not args.moe_aux_loss_coeff:
        logger.warning(
            f"router_aux_loss_coef {asked} of {args.model}'s config.json has no part in the loss; give "
            f"--moe_aux_loss_coeff {asked} to balance the experts."
        )
