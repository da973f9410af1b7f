"""A device backend: runs Megatron-SWIFT without a GPU. Only torch.cuda, NCCL and Transformer Engine are replaced.

Stands alone: nothing imports it; the entry point switches it on when SWIFT_KD_DEVICE=cpu.
"""

from swift_kd_plugin.cpu.switch import CPU_LEDGER, set_environment, switch_on

__all__ = ["CPU_LEDGER", "set_environment", "switch_on"]
