"""What a process that was started for its command has of its own, given to a forked copy of one that was not."""

import atexit
import ctypes
import logging
import os
import random
import signal
import sys
import tempfile
import threading
from functools import cache
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """The kernel kills this process as soon as the one that forked it has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Fork(ForkProcess):
    """Ends with the process that forked it."""

    def run(self) -> None:
        end_with_parent()
        super().run()


class Forking(ForkContext):
    """In place of a context that spawns."""

    Process = Fork


def end_process() -> NoReturn:
    """Ends as an interpreter ends its script, for the exception in flight if there is one, without clearing modules."""
    error = sys.exc_info()[1]
    code = code_of(error)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def code_of(error: BaseException | None) -> int:
    """The exit code; what the exception has to say is printed."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    return int(error is not None)


def renew_tool(folder: Path) -> None:
    """What the tool starts beside its interpreter is warm, too."""
    _renew_process()
    _fork_engine_cores()
    sys.executable = str(folder / "bin" / "python")
    if os.environ.get("SWIFT_KD_DEVICE") == "cpu":
        from swift_kd_plugin.cpu import set_environment

        set_environment()


def renew_rank() -> None:
    """sys.argv and the environment are those of the rank."""
    import psutil

    from swift_kd_plugin.cpu import memory, set_environment
    from swift_kd_plugin.cpu.cpu_flags import adapt_command_line
    from swift_kd_plugin.launcher import act_as_single_process

    _renew_process()
    memory.PROCESS = psutil.Process()
    set_environment()
    adapt_command_line(sys.argv)
    act_as_single_process()
    _set_levels()
    _leave_out_pictures()
    _fork_queue_of_writers()


def _renew_process() -> None:
    import numpy

    random.seed()
    numpy.random.seed()
    tempfile.tempdir = None


def _set_levels() -> None:
    """ms-swift's loggers take their level from the rank when they are imported."""
    from swift.utils import logger

    level = logger._get_log_level() if logger._is_local_master() else logging.ERROR
    for one in (logger.logger, logger.ms_logger):
        one.setLevel(level)


def _fork_engine_cores() -> None:
    """On a CPU vLLM spawns the process of a server's engine, which would import all of it anew."""
    from vllm.v1.engine import utils

    utils.get_mp_context = Forking


def _leave_out_pictures() -> None:
    """Pictures of the metrics' curves take longer than most of these trainings, and no test looks at them."""
    from swift.megatron.pipelines.train import sft

    sft.plot_images = lambda *_: None


def _fork_queue_of_writers() -> None:
    """The queue of a checkpoint's writers lives in a process that Megatron spawns, which would import torch anew."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._get_write_results_queue = cache(lambda: Forking().Manager().Queue())
