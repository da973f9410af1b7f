"""Processes that have imported the stack once and fork a copy of themselves for each command that a test starts.

python -c CODE FOLDER

CODE is below. It listens on FOLDER/KIND for each kind, and at the first request imports what the kind needs in a
process of its own:

- ranks: Megatron-SWIFT and vLLM with the plugin awake and the CPU backend on, for `megatron`
- tools: the libraries on the machine as it is, for `swift-kd`, servers and scripts

A request is a line of JSON ({"argv", "cwd", "env"}) with two file descriptors, for stdout and stderr; the answer is a
line with the exit code. A byte in between is a signal for the command. A command whose connection is closed is killed
with all of its processes, and everything ends when stdin does.

A copy comes back from `serve` and runs its command in CODE, as an interpreter runs a script: exit codes, uncaught
exceptions and exit handlers are those of a process that was started for the command. Then it is gone at once: an
interpreter that clears its modules, or collects garbage among them, copies all of the memory that it shares.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.launching.as_new import end_with_parent, renew_tool
from tests.launching.supervisor import adopt_orphans
from tests.launching.torchrun import fork_ranks

CODE = """
from tests.launching.as_new import end_process
from tests.launching.warm_process import serve
run, code = serve()
try:
    run(code, run_name="__main__")
finally:
    end_process()
"""
# Variables that no import of the stack reads: they may differ from run to run. Of any other variable an import may have
# seen another value, so the request is refused.
FREE = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NPROC_PER_NODE", "MASTER_PORT", "MASTER_ADDR"),
    *("OMP_NUM_THREADS", "PATH", "PYTHONPATH", "PYTEST_CURRENT_TEST", "SWIFT_CONFIG_FILE", "TEACHER", "TINY", "TMPDIR"),
    *("PWD", "OLDPWD", "SHLVL", "_"),  # a shell's own
    "IMAGE_MAX_TOKEN_NUM",  # read with each picture
}
OF_TESTS = "KD_TEST_"
# What a kind sets for itself, as the plugin does in a process that is started for a command.
OF_KINDS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_CPU_OMP_THREADS_BIND",
    "SWIFT_KD_DEVICE",
    "VLLM_PLUGINS",
    "VLLM_CPU_KVCACHE_SPACE",
    "TORCHDYNAMO_DISABLE",
}
# Without vllm.v1.worker: vLLM's worker for the CPU replaces torch.cuda.Stream when it is imported.
VLLM = (
    *("vllm", "vllm.v1.engine.llm_engine", "vllm.model_executor.models.qwen3", "swift.infer_engine.vllm_engine"),
    *("compressed_tensors", "transformers.models.qwen3.modeling_qwen3", "peft"),
)
MODULES = {
    "ranks": (
        *("swift.megatron", "swift.megatron.trainers", "swift.megatron.pipelines.train.rlhf", "mcore_bridge"),
        *("swift_kd_plugin.host.train.trainer", "swift_kd_plugin.host.train.stock_trainer"),
        *("megatron.core.dist_checkpointing", "torch.utils.tensorboard"),
        *("swift.loss_scale", "scipy.io", "multiprocess.managers", "multiprocess.popen_fork"),
        *("transformers.models.qwen3_moe.modeling_qwen3_moe", "transformers.tokenization_mistral_common"),
        *VLLM,
    ),
    "tools": (
        *(
            "swift_kd_plugin.cli.main",
            "swift_kd_plugin.data.build",
            "swift_kd_plugin.recipes.stages",
            "swift_kd_plugin.generation.vllm_engine",
            "swift.pipelines",
            "uvicorn",
        ),
        *VLLM,
    ),
}


@dataclass(frozen=True)
class Request:
    """A command as `subprocess` takes it: of `argv[0]` the file's name counts."""

    argv: list[str]
    cwd: str
    env: dict[str, str]


def import_stack(kind: str) -> None:
    if kind == "tools":
        # vLLM knows a CPU by itself, and has to be told the rest before it is imported.
        os.environ.pop("SWIFT_KD_DEVICE", None)
        os.environ.update(VLLM_PLUGINS="none", VLLM_CPU_KVCACHE_SPACE="1", TORCHDYNAMO_DISABLE="1")
    else:
        os.environ["SWIFT_KD_DEVICE"] = "cpu"
        # The command line of a rank, at which the plugin wakes when torch is imported.
        sys.argv = [
            importlib.util.find_spec("swift.cli._megatron.rlhf").origin,
            "--external_plugins",
            "swift_kd_plugin",
        ]
    for name in MODULES[kind]:
        importlib.import_module(name)


class Waiting:
    """Reacts to what is readable and to the end of child processes, until a reaction returns something."""

    def __init__(self):
        adopt_orphans()
        self.selector = selectors.DefaultSelector()
        self.awakened, self.wake = socket.socketpair()
        for end in (self.awakened, self.wake):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake.fileno())
        self.selector.register(self.awakened, selectors.EVENT_READ, self.reap)

    def wait(self):
        while True:
            for key, _ in self.selector.select():
                found = key.data()
                if found is not None:
                    return found

    def reap(self) -> None:
        self.awakened.recv(4096)
        with suppress(ChildProcessError):
            while True:
                process, status = os.waitpid(-1, os.WNOHANG)
                if process == 0:
                    return
                self.ended(process, os.waitstatus_to_exitcode(status))

    def ended(self, process: int, code: int) -> None:
        raise NotImplementedError

    def end_others(self, mine: Iterable[int]) -> None:
        """Kills all children but `mine`, and what descends from them."""
        for child in psutil.Process().children():
            if child.pid not in mine:
                end_family(child.pid)

    def let_go(self) -> None:
        """In a forked copy: nothing of the waiting process is left."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        self.awakened.close()
        self.wake.close()


class Root(Waiting):
    """Holds the sockets. A forked copy gets its kind from `wait`, and its listener."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.listeners = {kind: socket.socket(socket.AF_UNIX) for kind in MODULES}
        self.servers: dict[int, str] = {}
        for kind, listener in self.listeners.items():
            listener.bind(str(folder / f"{kind}.new"))
            listener.listen(64)
            (folder / f"{kind}.new").rename(folder / kind)
            self.await_request(kind)
        self.selector.register(0, selectors.EVENT_READ, self.leave)

    def await_request(self, kind: str) -> None:
        self.selector.register(self.listeners[kind], selectors.EVENT_READ, lambda: self.fork(kind))

    def fork(self, kind: str) -> str | None:
        process = os.fork()
        if process:
            self.selector.unregister(self.listeners[kind])
            self.servers[process] = kind
            return None
        end_with_parent()
        self.let_go()
        for other in self.listeners.keys() - {kind}:
            self.listeners.pop(other).close()
        put_in_place(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(self.folder / f"{kind}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        put_in_place(os.dup(log), 1)
        put_in_place(log, 2)
        return kind

    def ended(self, process: int, code: int) -> None:
        """A server that has died is replaced at the next request; what its commands left behind has become a child."""
        if process in self.servers:
            self.await_request(self.servers.pop(process))
        self.end_others(self.servers)

    def leave(self) -> None:
        self.end_others(())
        os._exit(0)


class Server(Waiting):
    """Takes requests of one kind, one connection each. A forked copy gets its request from `wait`."""

    def __init__(self, listener: socket.socket, environment: dict[str, str]):
        super().__init__()
        self.environment, self.listener = environment, listener
        self.running: dict[int, socket.socket] = {}
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)

    def accept(self) -> Request | None:
        connection, _ = self.listener.accept()
        line, files = receive(connection)
        request = Request(**json.loads(line)) if line else None
        refusal = self.refusal_of(request) if request else "the request was not whole"
        if refusal:
            for file in files:
                os.close(file)
            answer(connection, error=refusal)
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            connection.close()
            self.become(request, files)
            return request
        for file in files:
            os.close(file)
        self.running[process] = connection
        self.selector.register(connection, selectors.EVENT_READ, lambda: self.hear(process, connection))
        return None

    def refusal_of(self, request: Request) -> str | None:
        names = request.env.keys() | self.environment.keys()
        changed = {name for name in names if request.env.get(name) != self.environment.get(name)} - FREE - OF_KINDS
        changed = sorted(name for name in changed if not name.startswith(OF_TESTS))
        if not changed:
            return None
        values = ", ".join(f"{self.environment.get(name)}, now {request.env.get(name)}" for name in changed)
        return f"{', '.join(changed)} had other values when the stack was imported ({values}); start the command itself"

    def hear(self, process: int, connection: socket.socket) -> None:
        """Passes signals on, a byte each. The end of the connection is the end of the command."""
        if self.running.get(process) is not connection:
            return  # it ended in the same moment
        if numbers := connection.recv(8):
            for number in numbers:
                os.kill(process, number)  # not yet reaped: it is there, if only as a zombie
            return
        self.selector.unregister(connection)
        del self.running[process]
        connection.close()
        end_family(process)

    def ended(self, process: int, code: int) -> None:
        connection = self.running.pop(process, None)
        self.end_others(self.running)
        if connection is not None:
            self.selector.unregister(connection)
            answer(connection, code=code)

    def become(self, request: Request, files: list[int]) -> None:
        """The forked copy stands where the command is to run."""
        end_with_parent()
        os.setsid()
        self.let_go()
        for one in (self.listener, *self.running.values()):
            one.close()
        for file, number in zip(files, (1, 2), strict=True):
            put_in_place(file, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request.cwd)
        os.environ.clear()
        os.environ.update(request.env)


def put_in_place(file: int, number: int) -> None:
    os.dup2(file, number)
    os.close(file)


def receive(connection: socket.socket) -> tuple[str, list[int]]:
    """A line, empty if it was not whole, and the file descriptors that came with its first bytes."""
    data, files, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    while not data.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            return "", files
        data += more
    return data.decode(), files


def answer(connection: socket.socket, **page) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # who asked has gone
        connection.sendall(json.dumps(page).encode() + b"\n")
    connection.close()


def end_family(process: int) -> None:
    """Kills a process and all that descends from it."""
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process)
        for member in [*leader.children(recursive=True), leader]:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def find_code(request: Request, folder: Path) -> tuple:
    """What runs the command and its argument: a file or a module. Sets sys.argv; in a rank, after forking it."""
    name = os.path.basename(request.argv[0])
    if name == "megatron":
        return runpy.run_path, fork_ranks(request.argv)
    beside = os.path.join(os.path.dirname(sys.executable), name)
    words = request.argv[1:] if name.startswith("python") else [beside, *request.argv[1:]]
    by_name = words[0] == "-m"
    if by_name:
        sys.path.insert(0, request.cwd)
    code = words[1] if by_name else words[0]
    sys.argv = [importlib.util.find_spec(code).origin if by_name else code, *words[1 + by_name :]]
    renew_tool(folder)
    return partial(runpy.run_module, alter_sys=True) if by_name else runpy.run_path, code


def serve() -> tuple:
    """Returns in a forked copy, with what runs its command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; the end of stdin tells theirs
    folder = Path(sys.argv[1])
    sys.path.remove("")  # what is tested is the installed package
    before = dict(os.environ)
    root = Root(folder)
    kind = root.wait()
    import_stack(kind)
    gc.collect()
    gc.freeze()  # a collection in a copy would touch, and so copy, all of it
    return find_code(Server(root.listeners[kind], before).wait(), folder)
