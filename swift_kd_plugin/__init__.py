"""Knowledge distillation for Megatron-SWIFT: `megatron rlhf --rlhf_type gkd --external_plugins swift_kd_plugin ...`"""

from swift_kd_plugin.version import __version__

__all__ = ["__version__", "install"]


def install() -> None:
    """Arms every patch of the host that the plugin needs. Idempotent; imports nothing of the host by itself."""
    from swift_kd_plugin.host.start.host_patches import HOST_LEDGER

    HOST_LEDGER.arm()


def __dir__() -> list[str]:
    return sorted(__all__)
