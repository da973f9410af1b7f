"""Flags of Megatron-SWIFT on the CPU: a recipe written for GPUs runs unchanged, and says what was changed.

REPLACED flags only choose a faster way to the same numbers, or a way that needs a GPU where the CPU has its own.
REFUSED flags would change the numbers: the run ends with the flag's name.
"""

import json
import os
import sys

from swift_kd_plugin.errors import stop
from swift_kd_plugin.launcher import is_megatron_rank

REPLACED = {
    "ddp_backend": "gloo",
    "gradient_accumulation_fusion": "false",
    "masked_softmax_fusion": "false",
    "apply_rope_fusion": "false",
    "moe_permute_fusion": "false",
    "cross_entropy_fusion_impl": "native",
    "attention_backend": "flash",
    "vit_attn_impl": "sdpa",
    "tp_comm_overlap": "false",
    "optimizer_cpu_offload": "false",
    "dataloader_num_workers": "0",
    "dataloader_persistent_workers": "false",
    "dataloader_pin_memory": "false",
    "vllm_enforce_eager": "true",
    "vllm_gpu_memory_utilization": "0.1",
    "sleep_level": "0",
}
REFUSED = {
    "fp8_format": "fp8",
    "fp4_format": "fp4",
    "optimizer_cuda_graph": "capturing CUDA graphs",
    "use_megatron_fsdp": "Megatron-FSDP",
    "moe_enable_deepep": "DeepEP",
}
# Keys of the model's configuration, given as JSON in --megatron_extra_kwargs.
REFUSED_EXTRA = {
    "cuda_graph_impl": "capturing CUDA graphs",
    "enable_cuda_graph": "capturing CUDA graphs",
    "external_cuda_graph": "capturing CUDA graphs",
    "fp8": "fp8",
    "fp4": "fp4",
}
EXTRA = "megatron_extra_kwargs"
OFF = ("false", "none", "")


def adapt_command_line(argv: list[str]) -> None:
    """Rewrites `argv` in place if it is a rank's command line. Prints each given flag that is replaced, on rank 0."""
    if not is_megatron_rank(argv):
        return
    _refuse({flag: _take(argv.copy(), flag) for flag in REFUSED}, REFUSED, "--{}")
    _refuse(_read_extra(_take(argv.copy(), EXTRA)), REFUSED_EXTRA, f"{{}} in --{EXTRA}")
    for flag, value in REPLACED.items():
        user_value = _take(argv, flag)
        if user_value and user_value.lower() != value and os.environ.get("RANK", "0") == "0":
            print(f"swift_kd_plugin: on the CPU --{flag} is {value}, not {user_value}.", file=sys.stderr)
        argv += [f"--{flag}", value]


def _refuse(values: dict[str, object], refused: dict[str, str], place: str) -> None:
    for name, operation in refused.items():
        if str(values.get(name, "")).lower() not in OFF:
            stop(f"{place.format(name)}: {operation} is not available on the CPU backend; drop it or use a GPU.")


def _read_extra(value: str) -> dict[str, object]:
    """The JSON text or file of --megatron_extra_kwargs. What is not JSON is left for ms-swift to repair or refuse."""
    if os.path.isfile(value):
        with open(value, encoding="utf-8") as file:
            value = file.read()
    try:
        extra = json.loads(value)
    except json.JSONDecodeError:
        return {}
    return extra if isinstance(extra, dict) else {}


def _take(argv: list[str], flag: str) -> str:
    """Removes every `--flag value` and `--flag=value` from `argv` and returns the last value, or an empty string."""
    value, index = "", 1
    names = (f"--{flag}", f"--{flag.replace('_', '-')}")
    while index < len(argv):
        name, equals, inline = argv[index].partition("=")
        if name not in names:
            index += 1
            continue
        del argv[index]
        if equals:
            value = inline
        elif index < len(argv) and not argv[index].startswith("--"):
            value = argv.pop(index)
        else:
            value = "true"
    return value
