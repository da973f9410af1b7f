"""Streams and events of a device that does everything in order, and CUDA graphs, which it cannot do."""

import contextlib
import time

import torch

from swift_kd_plugin.ledger import Undo


class Stream:
    """Work on a CPU is done when the call returns: there is nothing to wait for."""

    cuda_stream = 0
    device_index = 0

    def __init__(self, *_args, **_kwargs):
        pass

    def wait_stream(self, stream) -> None:
        pass

    def wait_event(self, event) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, event=None):
        event = event or Event()
        event.record()
        return event

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        return None


class Event:
    """Remembers when it was recorded, so that elapsed times are real."""

    def __init__(self, *_args, **_kwargs):
        self.time: float | None = None

    def record(self, stream=None) -> None:
        self.time = time.perf_counter()

    def wait(self, stream=None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds between the two recordings."""
        if self.time is None or end.time is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end.time - self.time) * 1e3


STREAM = Stream()


def current_stream(device=None) -> Stream:
    return STREAM


@contextlib.contextmanager
def use_stream(stream):
    yield


class CUDAGraph:
    """CUDA graphs exist on GPUs only."""

    def __init__(self, *_args, **_kwargs):
        refuse_cuda_graphs()


def refuse_cuda_graphs(*_args, **_kwargs):
    raise NotImplementedError("CUDA graphs are not available on the CPU backend; switch them off or use a GPU.")


def raw_stream(device: int) -> int:
    """`torch._C._cuda_getCurrentRawStream`: the number of the one stream that there is."""
    return 0


def provide_raw_stream(module) -> Undo:
    """bitsandbytes loads its CUDA operators, which read this name, wherever `torch.cuda` is said to be available."""
    name = "_cuda_getCurrentRawStream"
    if hasattr(torch._C, name):  # a build with CUDA, on a machine without
        return lambda: None
    torch._C._cuda_getCurrentRawStream = raw_stream
    return lambda: delattr(torch._C, name)
