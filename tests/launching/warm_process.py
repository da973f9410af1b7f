"""A process that has imported the stack once and forks a copy of itself for each command that a test starts.

python -m tests.launching.warm_process SOCKET KIND

A request is a line of JSON ({"argv", "cwd", "env"}) with two file descriptors, for stdout and stderr; the answer is a
line with the exit code. A number in between is a signal for the command. A command whose connection is closed is killed
with all of its processes, and everything ends when stdin does. KIND says what is imported:

- ranks: Megatron-SWIFT with the plugin awake and the CPU backend on, for `megatron`
- ranks_vllm: the same with vLLM
- tools: the libraries on the machine as it is, for `swift-kd`, servers and scripts

A copy leaves `serve` and runs its command at the end of this file, as an interpreter runs a script: uncaught
exceptions, exit handlers and the interpreter's end are those of a process that was started for the command.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass

import psutil

PR_SET_PDEATHSIG = 1
# Variables that no import of the stack reads: they may differ from run to run. Of any other variable an import may have
# seen another value, so the request is refused.
FREE = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NPROC_PER_NODE", "MASTER_PORT", "MASTER_ADDR"),
    *("OMP_NUM_THREADS", "PATH", "PYTHONPATH", "PYTEST_CURRENT_TEST", "SWIFT_CONFIG_FILE", "TEACHER", "TINY", "TMPDIR"),
    *("KD_WARM_TOOLS", "KD_WARM_RANKS"),
}
OF_TESTS = "KD_TEST_"
# What a kind sets for itself, as the plugin does in a process that is started for a command.
OF_KINDS = {"SWIFT_KD_DEVICE", "VLLM_PLUGINS", "VLLM_CPU_KVCACHE_SPACE", "TORCHDYNAMO_DISABLE"}
RANKS = (
    *("swift.megatron", "swift.megatron.trainers", "swift.megatron.pipelines.train.rlhf", "mcore_bridge", "peft"),
    *("swift_kd_plugin.host.trainer", "megatron.core.dist_checkpointing", "torch.utils.tensorboard"),
    *("transformers.models.qwen3.modeling_qwen3", "transformers.models.qwen3_moe.modeling_qwen3_moe"),
)
VLLM = ("vllm", "vllm.v1.engine.llm_engine", "vllm.model_executor.models.qwen3", "swift.infer_engine.vllm_engine")
TOOLS = ("swift_kd_plugin.cli.main", "swift_kd_plugin.generation.vllm_engine", "swift.pipelines", "peft", "uvicorn")
MODULES = {
    "ranks": RANKS,
    "ranks_vllm": (*RANKS, *VLLM),
    "tools": (*TOOLS, *VLLM, "transformers.models.qwen3.modeling_qwen3"),
}


@dataclass(frozen=True)
class Request:
    """A command as `subprocess` takes it: of `argv[0]` the file's name counts."""

    argv: list[str]
    cwd: str
    env: dict[str, str]


def import_stack(kind: str) -> None:
    if kind != "tools":
        os.environ["SWIFT_KD_DEVICE"] = "cpu"
        # The command line of a rank, at which the plugin wakes when torch is imported.
        sys.argv = [
            importlib.util.find_spec("swift.cli._megatron.rlhf").origin,
            "--external_plugins",
            "swift_kd_plugin",
        ]
    for name in MODULES[kind]:
        importlib.import_module(name)


class Server:
    """Takes requests from a socket, one connection each. A forked copy gets its request from `serve`."""

    def __init__(self, path: str, environment: dict[str, str]):
        self.environment = environment
        self.running: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.awakened, self.wake = socket.socketpair()
        for end in (self.awakened, self.wake):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake.fileno())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and the end of stdin tells theirs
        for source, react in ((self.listener, self.accept), (self.awakened, self.reap), (0, self.leave)):
            self.selector.register(source, selectors.EVENT_READ, react)

    def serve(self) -> Request:
        while True:
            for key, _ in self.selector.select():
                request = key.data()
                if request is not None:
                    return request

    def accept(self) -> Request | None:
        connection, _ = self.listener.accept()
        try:
            line, files = receive(connection)
            request = Request(**json.loads(line))
            self.refuse_another_environment(request)
        except (ValueError, OSError) as error:
            answer(connection, error=str(error))
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

    def refuse_another_environment(self, request: Request) -> None:
        names = request.env.keys() | self.environment.keys()
        changed = {name for name in names if request.env.get(name) != self.environment.get(name)} - FREE - OF_KINDS
        changed = sorted(name for name in changed if not name.startswith(OF_TESTS))
        if changed:
            raise ValueError(
                f"{', '.join(changed)} had other values when the stack was imported; start the command itself"
            )

    def hear(self, process: int, connection: socket.socket) -> None:
        """Passes a signal on. The end of the connection is the end of the command."""
        number = connection.recv(8)
        if number:
            os.kill(process, int(number))
            return
        self.selector.unregister(connection)
        del self.running[process]
        connection.close()
        end_family(process)

    def reap(self) -> None:
        self.awakened.recv(4096)
        with suppress(ChildProcessError):
            while ended := os.waitpid(-1, os.WNOHANG):
                process, status = ended
                if process == 0:
                    return
                connection = self.running.pop(process, None)
                if connection is not None:
                    self.selector.unregister(connection)
                    answer(connection, code=os.waitstatus_to_exitcode(status))

    def leave(self) -> None:
        for process in self.running:
            end_family(process)
        os._exit(0)

    def become(self, request: Request, files: list[int]) -> None:
        """The forked copy lets go of all that is the server's and stands where the command is to run."""
        end_with_parent()
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.selector.close()
        for end in (self.listener, self.awakened, self.wake, *self.running.values()):
            end.close()
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (files[0], 1), (files[1], 2)):
            os.dup2(source, target)
            os.close(source)
        os.chdir(request.cwd)
        os.environ.clear()
        os.environ.update(request.env)


def receive(connection: socket.socket) -> tuple[str, list[int]]:
    """A line, and the file descriptors that came with its first bytes."""
    data, files, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    while not data.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            raise ValueError("the connection ended within a request")
        data += more
    return data.decode(), files


def answer(connection: socket.socket, **page) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # who asked has gone
        connection.sendall(json.dumps(page).encode() + b"\n")
    connection.close()


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_family(process: int) -> None:
    """Kills a process and all that descends from it."""
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process)
        for member in [*leader.children(recursive=True), leader]:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def find_code(request: Request) -> tuple:
    """What runs the command and its argument: a file or a module. Sets sys.argv; in a rank, after forking it."""
    name = os.path.basename(request.argv[0])
    if name == "megatron":
        from tests.launching.torchrun import fork_ranks

        return runpy.run_path, fork_ranks(request.argv)
    from tests.launching.as_new import renew_tool

    words = request.argv[1:] if name.startswith("python") else request.argv
    by_name = words[0] == "-m"
    code = words[1] if by_name else words[0]
    sys.argv = [importlib.util.find_spec(code).origin if by_name else code, *words[1 + by_name :]]
    renew_tool()
    return runpy.run_module if by_name else runpy.run_path, code


if __name__ == "__main__":
    socket_path, kind = sys.argv[1:]
    before = dict(os.environ)
    import_stack(kind)
    gc.collect()
    gc.freeze()
    run, code = find_code(Server(socket_path, before).serve())
    run(code, run_name="__main__")
