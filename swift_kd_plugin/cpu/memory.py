"""Memory figures of this process, in bytes, in place of those of a CUDA device: real ones, from the kernel."""

import psutil

PROCESS = psutil.Process()
STATUS, CLEAR = "/proc/self/status", "/proc/self/clear_refs"


def resident(*_args, **_kwargs) -> int:
    """Resident memory now."""
    return PROCESS.memory_info().rss


def peak_resident(*_args, **_kwargs) -> int:
    """The highest resident memory since the start or since `reset_peak`."""
    with open(STATUS, encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident()


def reset_peak(*_args, **_kwargs) -> None:
    # 5 resets VmHWM; the kernel documents it in proc(5).
    with open(CLEAR, "w", encoding="ascii") as clear:
        clear.write("5")


def free_and_total(*_args, **_kwargs) -> tuple[int, int]:
    """Memory of the machine that is free for use, and all of it."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def total_memory() -> int:
    return psutil.virtual_memory().total
