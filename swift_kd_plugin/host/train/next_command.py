"""The command that a finished run proposes: `swift-kd eval` of what was trained, as it was trained. No torch."""

import re
import shlex
from pathlib import Path

from swift_kd_plugin.host.train.checkpoint_manifest import merged_folder

# Flags that `swift-kd eval` lacks, with what they say where they change nothing: of all models, and of the teacher.
NOT_ASKED = {
    "use_chat_template": (None, True),
    "template_backend": (None, "swift"),
    "agent_template": (None,),
    "response_prefix": (None,),
    "norm_bbox": (None,),
    "preserve_thinking": (None,),
    "rope_scaling": (None,),
    "new_special_tokens": (None, []),
    "model_revision": (None,),
    "columns": (None, {}),
    "custom_dataset_info": (None, []),
    "disable_auto_column_mapping": (None, False),
}
NOT_ASKED_TEACHER = {
    "teacher_model_server": (None,),
    "teacher_model_revision": (None,),
    "kd_teacher_head_bits": (None, 16),
}


def eval_command(args, checkpoint: Path) -> str | None:
    """The command that compares a checkpoint with the teacher on the validation rows, else on those of training.

    Without the teacher where `swift-kd eval` cannot load it as the run did.

    Returns:
        None where it cannot ask the student as the run did, or the checkpoint has no weights that it loads.
    """
    student = _student(args, checkpoint)
    if student is None or not _is_asked(args, NOT_ASKED) or not (args.val_dataset or args.dataset):
        return None
    flags: dict[str, list[str]] = {"model": [f"student={student}"], "model_type": [f"student={args.model_type}"]}
    if student != checkpoint and student == args.model:
        flags["adapters"] = [f"student={checkpoint}"]
    if args.teacher_model and _is_asked(args, NOT_ASKED_TEACHER):
        flags["model"].append(f"teacher={args.teacher_model}")
        flags["model_type"].append(f"teacher={args.teacher_model_type or args.model_type}")
        flags.setdefault("adapters", []).extend(f"teacher={folder}" for folder in args.kd_teacher_adapters)
        flags["bits"] = [f"teacher={args.kd_teacher_bits}"] if args.kd_teacher_bits else []
    flags["template"] = [args.template]
    if args.system is not None:
        flags["system"] = [args.system]
    if args.enable_thinking is not None:
        flags["thinking"] = ["on" if args.enable_thinking else "off"]
    if args.torch_dtype is not None:
        flags["torch_dtype"] = [str(args.torch_dtype).removeprefix("torch.")]
    if args.max_model_len:
        flags["max_model_len"] = [str(args.max_model_len)]
    if args.kd_datasets:
        flags["kd_datasets"] = [args.kd_datasets]
    # Without the number of rows, which `swift-kd eval` takes as --limit.
    flags["dataset"] = [re.sub(r"#\d+$", "", name) for name in args.val_dataset or args.dataset]
    flags |= {"metric": ["exact", "ppl"], "output": [str(Path(args.output_dir) / "eval")]}
    return shlex.join(["swift-kd", "eval", *_words(flags)])


def _student(args, checkpoint: Path) -> Path | str | None:
    """What `--model` names: the checkpoint, its merged weights, or the model that its adapter belongs to."""
    if args.tuner_type == "full":
        return checkpoint if args.save_safetensors else None
    if merged_folder(checkpoint).is_dir():
        return merged_folder(checkpoint)
    has_adapter = (checkpoint / "adapter_config.json").is_file()
    return args.model if has_adapter and not args.adapters else None


def _is_asked(args, flags: dict[str, tuple]) -> bool:
    return all(getattr(args, name, None) in unchanged for name, unchanged in flags.items())


def _words(flags: dict[str, list[str]]) -> list[str]:
    return [word for name, values in flags.items() if values for word in (f"--{name}", *values)]
