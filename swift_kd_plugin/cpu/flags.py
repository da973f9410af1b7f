"""Flags of Megatron-SWIFT on the CPU: a recipe written for GPUs runs unchanged, and says what was changed.

REPLACED flags only choose a faster way to the same numbers, or a way that needs a GPU where the CPU has its own.
REFUSED flags would change the numbers: the run ends with the flag's name.
"""

import os
import sys

from swift_kd_plugin.errors import stop

COMMANDS = ("rlhf.py", "sft.py", "pt.py", "export.py")
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
    "optimizer_cuda_graph": "CUDA graphs",
    "use_megatron_fsdp": "Megatron-FSDP",
    "moe_enable_deepep": "DeepEP",
}
OFF = ("false", "none", "")


def adapt_command_line(argv: list[str]) -> None:
    """Rewrites `argv` in place if it is a rank's command line. Prints each given flag that is replaced, on rank 0."""
    command = argv[0].replace(os.sep, "/")
    if os.path.basename(command) not in COMMANDS or "/_megatron/" not in command:
        return
    for flag, operation in REFUSED.items():
        if _take(argv.copy(), flag).lower() not in OFF:
            stop(f"--{flag}: {operation} is not available on the CPU backend; drop the flag or use a GPU.")
    for flag, value in REPLACED.items():
        given = _take(argv, flag)
        if given and given.lower() != value and os.environ.get("RANK", "0") == "0":
            print(f"swift_kd_plugin: on the CPU --{flag} is {value}, not {given}.", file=sys.stderr)
        argv += [f"--{flag}", value]


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
