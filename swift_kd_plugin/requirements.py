"""The versions of the host that the plugin was written for. The ranges live in setup.py and nowhere else."""

import logging
import warnings
from importlib import metadata

CHECKED = ("ms-swift", "mcore-bridge", "megatron-core", "torch")


def find_unsupported() -> str | None:
    """Returns one sentence about the first package of CHECKED that is missing or outside its range, or None."""
    from packaging.requirements import Requirement

    ranges = {}
    for line in metadata.requires("swift-kd-plugin") or []:
        requirement = Requirement(line)
        if requirement.marker is None:
            ranges[requirement.name] = requirement.specifier
    for name in CHECKED:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"{name} is not installed; install {name}{ranges[name]}."
        if not ranges[name].contains(version.partition("+")[0], prereleases=True):
            return f"{name} {version} is outside the supported range; install '{name}{ranges[name]}'."
    return None


def quiet_bitsandbytes() -> None:
    """To call before peft imports it: it warns of a kernel for CPUs on a hub, which nobody here uses."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """To call before they are imported: what they tell their own developers is not about a user's command."""
    quiet_bitsandbytes()
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"vllm\.")
