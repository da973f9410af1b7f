"""Whether the checkpoint that a run goes on from can be loaded in the run's layout, told by its args.json alone."""

from pathlib import Path
from typing import Any

from swift_kd_plugin.data.near_checkpoints import RESUMABLE, did_you_mean
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.checkpoint_manifest import read_saved_args

EXPERTS = "expert_model_parallel_size"
CHECKPOINTS = ("mcore_model", "mcore_adapter")
LAYOUT = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"),
    *("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers", "pipeline_model_parallel_layout"),
    *("expert_tensor_parallel_size", EXPERTS),
)


def resumed_flag(args) -> str | None:
    """The flag that names the checkpoint whose optimizer is loaded; None where none is."""
    return None if args.no_load_optim else checkpoint_of(args)[0]


def check_resume(args) -> None:
    """Raises KDError for what is no checkpoint, and for an optimizer that is not there or lies in another layout."""
    for flag in CHECKPOINTS:
        if getattr(args, flag):
            _check_is_checkpoint(flag, Path(getattr(args, flag)).expanduser())
    if (flag := resumed_flag(args)) is None:
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


def _check_is_checkpoint(flag: str, folder: Path) -> None:
    """A run's own folder has an args.json, too."""
    if (folder / RESUMABLE).is_file():
        return
    if (meant := did_you_mean(folder, RESUMABLE)) or not (folder / "args.json").is_file():
        meant = meant or "give the folder of a checkpoint (checkpoint-N)."
        raise KDError(f"--{flag} {folder} has no {RESUMABLE}; {meant}")


def checkpoint_of(args) -> tuple[str | None, Path | None]:
    """The flag that names the checkpoint which a run goes on from, and its folder; None where it begins anew."""
    flag = "mcore_adapter" if args.mcore_adapter else "mcore_model" if args.tuner_type == "full" else None
    if flag is None or not getattr(args, flag) or args.finetune:
        return None, None
    return flag, Path(getattr(args, flag)).expanduser()


def _check_layout(args, flag: str, folder: Path, saved: dict[str, Any]) -> None:
    changed = [name for name in LAYOUT if name in saved and saved[name] != getattr(args, name)]
    if not changed or not args.use_distributed_optimizer or not saved.get("use_distributed_optimizer"):
        return
    old, new = (_layout({name: of[name] for name in changed}) for of in (saved, vars(args)))
    here = f"--{flag} {folder} was saved with {old}, and this run has {new}"
    anew = "let optimizer and schedule begin anew: --no_load_optim true --no_load_rng true."
    if EXPERTS in changed:
        raise KDError(f"{here}: Megatron cannot load its optimizer so. Keep the old layout, or {anew}")
    if not saved.get("dist_ckpt_optim_fully_reshardable"):
        raise KDError(
            f"{here}: its optimizer can be loaded in another layout only if --dist_ckpt_optim_fully_reshardable true "
            f"stood at the run that saved it. Keep the old layout, or {anew}"
        )


def _layout(sizes: dict[str, Any]) -> str:
    return ", ".join(f"--{name} {size}" if size is not None else f"no --{name}" for name, size in sizes.items())
