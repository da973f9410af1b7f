"""Whether the checkpoint that a run goes on from can be loaded in the run's layout, told by its args.json alone."""

from pathlib import Path
from typing import Any

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.checkpoint_manifest import read_saved_args

LAYOUT = ("tensor_model_parallel_size", "pipeline_model_parallel_size")


def check_resume(args) -> None:
    """Raises KDError for an optimizer that is not there, or that lies in the layout of another run."""
    flag = "mcore_adapter" if args.mcore_adapter else "mcore_model" if args.tuner_type == "full" else None
    if flag is None or not getattr(args, flag) or args.finetune or args.no_load_optim:
        return
    folder = Path(getattr(args, flag)).expanduser()
    saved = read_saved_args(folder)
    if saved.get("no_save_optim"):
        weights = (
            f"--{'adapters' if args.mcore_adapter else 'model'} {folder} and without --{flag} and --finetune false"
        )
        exported = saved.get("save_safetensors", True)
        raise KDError(
            f"--{flag} {folder} was saved with --no_save_optim true and holds no optimizer; "
            + (f"begin a new run from its weights, with {weights}." if exported else "add --no_load_optim true.")
        )
    _check_layout(args, flag, folder, saved)


def _check_layout(args, flag: str, folder: Path, saved: dict[str, Any]) -> None:
    old, new = ([saved.get(name) for name in LAYOUT], [getattr(args, name) for name in LAYOUT])
    if None in old or old == new or not args.use_distributed_optimizer or not saved.get("use_distributed_optimizer"):
        return
    if not saved.get("dist_ckpt_optim_fully_reshardable"):
        raise KDError(
            f"--{flag} {folder} was saved with {_layout(old)}, and this run has {_layout(new)}: its optimizer can be "
            "loaded in another layout only if --dist_ckpt_optim_fully_reshardable true stood at the run that saved it. "
            "Keep the old layout, or let optimizer and schedule begin anew: --no_load_optim true --no_load_rng true."
        )


def _layout(sizes: list[int]) -> str:
    return " ".join(f"--{name} {size}" for name, size in zip(LAYOUT, sizes, strict=True))
