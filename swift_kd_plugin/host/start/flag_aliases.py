"""Flags of `megatron rlhf` by the names that other trainers have for them, to say the right one."""

from collections.abc import Container

# As trl, transformers, `swift sft` and LLaMA-Factory call them.
FLAG_ALIASES = {
    "learning_rate": "lr",
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size",
    "per_device_batch_size": "micro_batch_size",
    "batch_size": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "eval_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "max_steps": "train_iters",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "warmup_ratio": "lr_warmup_fraction",
    "warmup_steps": "lr_warmup_iters",
    "lr_scheduler_type": "lr_decay_style",
    "optim": "optimizer",
    "adam_epsilon": "adam_eps",
    "max_grad_norm": "clip_grad",
    "label_smoothing_factor": "label_smoothing",
    "gradient_checkpointing": "recompute_granularity",
    "model_name_or_path": "model",
    "model_id_or_path": "model",
    "teacher_model_name_or_path": "teacher_model",
    "teacher_adapters": "kd_teacher_adapters",
    "adapter_name_or_path": "adapters",
    "train_type": "tuner_type",
    "finetuning_type": "tuner_type",
    "sft_type": "tuner_type",
    "use_peft": "tuner_type",
    "lora_r": "lora_rank",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
    "dataset_name": "dataset",
    "train_dataset": "dataset",
    "eval_dataset": "val_dataset",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "seq_length": "max_length",
    "cutoff_len": "max_length",
    "model_max_length": "max_length",
    "dtype": "torch_dtype",
    "attn_implementation": "attention_backend",
    "eval_strategy": "eval_steps",
    "evaluation_strategy": "eval_steps",
    "save_only_model": "no_save_optim",
    "resume_from_checkpoint": "mcore_model",
    "logging_dir": "tensorboard_dir",
    "run_name": "wandb_exp_name",
    "preprocessing_num_workers": "dataset_num_proc",
    "alpha": "kd_ce_alpha",
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "tensor_parallel_size": "tensor_model_parallel_size",
    "pipeline_parallel_size": "pipeline_model_parallel_size",
    "expert_parallel_size": "expert_model_parallel_size",
}
# Where the value is another one, too.
VALUES = {
    "gradient_accumulation_steps": "the rows of a step: micro_batch_size x replicas of the model x this number",
    "batch_size": "the rows of a step on all devices",
    "gradient_checkpointing": "full or selective for true, none for false",
    "use_peft": "lora for true, full for false",
    "eval_strategy": "a number of steps",
    "evaluation_strategy": "a number of steps",
    "resume_from_checkpoint": "the checkpoint, with finetune false",
}


def meant_by(name: str, known: Container[str], dashes: str = "--") -> str:
    """`` (here it is --lr)`` for another trainer's name of one of the `known` flags, or nothing."""
    flag = FLAG_ALIASES.get(name)
    if flag is None or flag not in known:
        return ""
    spelled = f"{dashes}{flag}" if dashes else repr(flag)
    return f" (here it is {spelled}{f', {VALUES[name]}' if name in VALUES else ''})"
