"""What the plugin overrides, reads and replaces of ms-swift's trainer, in tables: a new host is held against them.

The source is read, not imported, so that `broken_seams` answers in a second.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

TRAINERS = "megatron/trainers"
ROLLOUT_BASE = "rlhf_trainers/base_rollout_mixin.py"  # beneath the trainer's rollout


@dataclass(frozen=True)
class Seam:
    """A method of ms-swift's trainer that the plugin overrides.

    Args:
        file: below `swift/megatron/trainers`, without its ending.
        method: class and name.
        parameters: their names.
        why: what the plugin does there.
    """

    file: str
    method: str
    parameters: str
    why: str

    @property
    def symbol(self) -> str:
        return f"swift.{TRAINERS.replace('/', '.')}.{self.file}.{self.method}"


BASE, RLHF = "BaseMegatronTrainer", "MegatronRLHFTrainer"
GKD, ROLLOUT = "MegatronGKDTrainer", "MegatronRolloutMixin"
SEAMS = (
    Seam("gkd_trainer", f"{GKD}.__init__", "self args template **kwargs", "objective, vocabularies and loss inputs"),
    Seam("gkd_trainer", f"{GKD}.train", "self train_dataset val_dataset", "memory table at the start, engines closed"),
    Seam("gkd_trainer", f"{GKD}._encode_samples", "self samples", "both views, matched by token id"),
    Seam("gkd_trainer", f"{GKD}.forward_step", "self data_iterator model", "hidden states in place of logits"),
    Seam(
        "gkd_trainer", f"{GKD}.loss_func", "self output_tensor labels teacher_output data_source", "the plugin's loss"
    ),
    Seam("gkd_trainer", f"{GKD}._compute_teacher_logits", "self encoded_batches vp_stage", "what the teacher says"),
    Seam("gkd_trainer", f"{GKD}._compute_teacher_logits_local", "self encoded_batches vp_stage", "the same, locally"),
    Seam("gkd_trainer", f"{GKD}._generate_and_score_completions", "self inputs", "each sample draws who writes it"),
    Seam("gkd_trainer", f"{GKD}._init_resample_data_iterator", "self train_dataset", "random states of a resumed run"),
    Seam(
        *("gkd_trainer", f"{GKD}.resample_encode_failed_inputs", "self inputs max_resample_rounds"),
        "no row is replaced by another",
    ),
    Seam("rollout_mixin", f"{ROLLOUT}._init_rollout_engine", "self", "the engine of each side"),
    Seam("rollout_mixin", f"{ROLLOUT}._prepare_vllm_engine", "self", "vLLM's errors as a sentence"),
    Seam(
        "rollout_mixin",
        f"{ROLLOUT}._colocate_rollout",
        "self samples request_config",
        "a prompt that vLLM refuses, by its sample",
    ),
    Seam("rollout_mixin", f"{ROLLOUT}._replace_data_iterator", "self data_iterator", "generation cycles"),
    Seam("rollout_mixin", f"{ROLLOUT}._prepare_logging", "self", "completions.jsonl"),
    Seam("rollout_mixin", f"{ROLLOUT}._build_log_table", "self", "completions.jsonl"),
    Seam(
        "rollout_mixin", f"{ROLLOUT}._setup_teacher", "self", "servers are asked by the plugin's client, or not at all"
    ),
    Seam("rollout_mixin", f"{ROLLOUT}._load_teacher_model", "self", "adapters merged into the teacher"),
    Seam("rollout_mixin", f"{ROLLOUT}._offload_teacher_models", "self", "the teacher's output layer stays"),
    Seam("rlhf_mixin", f"{RLHF}._load_checkpoint", "self", "float32 parameters are loaded, the schedule is the flags'"),
    Seam("gkd_trainer", f"{GKD}.prepare_model", "self", "a teacher that scores without a student"),
    Seam("base", f"{BASE}.get_optimizer_and_scheduler", "self", "a teacher that scores without a student"),
    Seam("base", f"{BASE}._prepare_peft_model", "self models", "projections of matched layers are trained too"),
    Seam("base", f"{BASE}.save_checkpoint", "self", "a checkpoint says whether it is whole"),
    Seam("base", f"{BASE}._sorted_checkpoints", "self output_dir", "folders of the user stay"),
    Seam("base", f"{BASE}.merge_lora_adapters", "self adapter_name", "frozen weights keep every bit"),
    Seam("base", f"{BASE}.unmerge_lora_adapters", "self", "the end of what merge_lora_adapters began"),
    Seam("base", f"{BASE}._prepare_dataloader", "self train_dataset val_dataset", "every row is used equally often"),
    Seam(
        "base", f"{BASE}.cyclic_iter", "self iterable use_origin_cyclic", "rows are one stream, whose epochs it knows"
    ),
    Seam("base", f"{BASE}.finalize_training", "self", "what a person needs at the end of a run"),
    Seam("base", f"{BASE}.evaluate", "self val_data_iterator", "the same rows each time, each once"),
    Seam("base", f"{BASE}._determine_best_metric", "self metrics", "what is no number is not the best"),
    Seam("base", f"{BASE}.train_step", "self train_data_iterator", "peak memory, time of a step"),
    Seam("base", f"{BASE}._log_callback", "self logs n_steps", "metrics of the plugin"),
)
# What is read of a trainer beside these, set by its own methods or defined as one.
ATTRIBUTES = (
    *("args", "unwrapped_models", "wrapped_models", "peft_models", "teacher_models", "teacher_config", "template"),
    *("gkd_logits_topk", "device", "config", "bridge", "optimizer", "state", "steps_per_generation", "log_completions"),
    *("opt_param_scheduler", "use_teacher_api", "_step", "_logs", "_is_self_distillation"),
    *("_is_dynamic_self_distillation", "_teacher_use_disable_adapter", "_get_rollout_group", "_prepare_batch"),
    *("_generate_completions", "load_teacher_model_context", "offload_context", "_aggregated_metrics", "call_event"),
)
# What the plugin's trainers read of themselves beside these, or rely on being called.
OWN_ATTRIBUTES = (
    *("sample_cls", "to_samples", "prepare_model", "offload_teacher_model", "engine", "multi_turn_scheduler"),
    *("_buffered_inputs", "_build_rollout_buffer", "_template_context", "_flush_log_completions", "_start_iteration"),
    *("_all_reduce_metric", "_on_train_step_batch", "_create_dataloader", "data_collator", "on_log", "callbacks"),
)
# What `TeacherVllm`, a rollout of ms-swift's beside the trainer's, is given in place of the student's, and why.
TEACHER_ROLLOUT = {
    "self.template": "the engine loads the model that its template names",
    "self.offload_context": "the models that make room are the trainer's",
    "self._last_loaded_step": "the teacher's weights are never moved",
    "args.model_info": "the folder of its weights",
    "args.model_type": "what its weights are",
    "args.use_vllm": "the student may write with another engine",
    "args.lmbda": "the student may not write at all, and 0 starts no engine",
    "args.vllm_mode": "the student's may be a server",
    "args.vllm_gpu_memory_utilization": "a share of its own of the device",
    "args.vllm_engine_kwargs": "the start of an engine takes settings out of it",
    "args.vllm_enable_lora": "the adapter is the student's",
    "args.sleep_level": "level 2 throws away weights that no trainer moves here again",
    "args.multi_turn_scheduler": "multi-turn schedulers are for the student",
    "args.temperature": "a temperature of its own",
}


def broken_seams(swift: Path) -> list[str]:
    """What a version of ms-swift no longer has, or has with other parameters; empty where all is as it was.

    Args:
        swift: the folder of its package.
    """
    trees = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in (swift / TRAINERS).glob("*.py")}
    methods = {stem: _methods_of(tree) for stem, tree in trees.items()}
    broken = []
    for seam in SEAMS:
        found = methods.get(seam.file, {}).get(seam.method)
        if found is None:
            broken.append(f"{seam.symbol} is gone; the plugin overrides it for: {seam.why}.")
        elif found != seam.parameters:
            broken.append(f"{seam.symbol} takes ({found}), and the plugin overrides it as ({seam.parameters}).")
    beneath = ast.parse((swift / ROLLOUT_BASE).read_text(encoding="utf-8"))
    known = {name for tree in (*trees.values(), beneath) for name in _names_in(tree)}
    read = {
        ast.unparse(node)
        for node in ast.walk(trees.get("rollout_mixin", ast.Module([], [])))
        if isinstance(node, ast.Attribute)
    }
    return [
        *broken,
        *(
            f"no trainer of ms-swift has {name}, which the plugin reads."
            for name in (*ATTRIBUTES, *OWN_ATTRIBUTES)
            if name not in known
        ),
        *(
            f"the rollout of ms-swift reads no {name}, which is another for the teacher: {why}."
            for name, why in TEACHER_ROLLOUT.items()
            if name not in read
        ),
    ]


def _methods_of(tree: ast.Module) -> dict[str, str]:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        f"{kind.name}.{method.name}": _parameters_of(method.args)
        for kind in classes
        for method in kind.body
        if isinstance(method, ast.FunctionDef)
    }


def _parameters_of(given: ast.arguments) -> str:
    names = [parameter.arg for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return " ".join([*names, *(f"**{given.kwarg.arg}" for _ in [0] if given.kwarg)])


def _names_in(tree: ast.Module) -> set[str]:
    """Names of methods, and of attributes of a class or that a method gives to `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            assigned = [part.targets for part in node.body if isinstance(part, ast.Assign)]
            found |= {target.id for targets in assigned for target in targets if isinstance(target, ast.Name)}
    return found
