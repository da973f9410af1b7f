"""Checks that belong before any rank is started: they can speak once instead of once per rank."""

import contextlib
import json
import os
import random
import signal
import socket
from pathlib import Path
from typing import NoReturn

import psutil

from swift_kd_plugin.console import CONSOLE
from swift_kd_plugin.errors import stop

DEFAULT_PORT = 29500  # torchrun's own
PORTS_OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 40.0  # torchrun itself gives its ranks 30
RANK_SCRIPTS = ("rlhf.py", "sft.py", "pt.py", "export.py")


def check_launch(argv: list[str], config: dict) -> None:
    """Stops with one sentence if the launch cannot work: Ray, a number that torchrun does not take, a port in use.

    Args:
        argv: the command line.
        config: what the YAML or JSON file on it says, whose ENV ms-swift adds to the environment; empty without one.
    """
    if _wants_ray(argv) or ("use_ray" in config and _wants_ray(["--use_ray", str(config["use_ray"])])):
        refuse_ray()
    env = environment_of(config)
    if not env.keys() & {"NPROC_PER_NODE", "NNODES"}:
        return
    if env.get("NPROC_PER_NODE") not in ("auto", "gpu", "cpu", "xpu"):  # torchrun counts the devices itself
        _number(env, "NPROC_PER_NODE", 1, least=1)
    several = _may_be_several_nodes(env.get("NNODES", "1"))
    # On one node torchrun takes a free port where it is told none (torch 2.13).
    if _number(env, "NODE_RANK", 0) == 0 and (several or "MASTER_PORT" in env):
        _check_port(_number(env, "MASTER_PORT", DEFAULT_PORT, least=1, most=65_535))


def environment_of(config: dict) -> dict[str, str]:
    """As ms-swift completes it with ENV of the config file."""
    variables = config.get("ENV") or {}
    if not isinstance(variables, dict):
        stop("ENV of the config file must be names with values, for example `ENV: {NPROC_PER_NODE: 8}`.")
    return {**{name: str(value) for name, value in variables.items()}, **os.environ}


def words_of(argv: list[str], config: dict) -> list[str]:
    """What stands behind `megatron COMMAND`, where ms-swift puts the config file's keys in the place of its name."""
    if not config:
        return argv[2:]
    words = []
    for name, value in config.items():
        if name != "ENV":
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [_as_word(value)])]
    return [*words, *argv[3:]]


def _as_word(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


RAY_IS_NOT_SUPPORTED = (
    "--use_ray takes another trainer of ms-swift that the plugin does not reach; drop --use_ray "
    "and start with NPROC_PER_NODE (and NNODES on several machines)."
)


def refuse_ray(*_) -> NoReturn:
    stop(RAY_IS_NOT_SUPPORTED)


def refuse_other_trainers(argv: list[str]) -> None:
    """Stops `swift rlhf`: its Hugging Face trainer would run without the plugin's trainer and not say so."""
    folder, command = os.path.split(os.path.abspath(argv[0]))
    if command == "rlhf.py" and os.path.basename(folder) == "cli":
        stop("`swift rlhf` takes a trainer of ms-swift that the plugin does not reach; start with `megatron rlhf`.")


def _wants_ray(argv: list[str]) -> bool:
    for index, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        if flag in ("--use_ray", "--use-ray"):
            following = argv[index + 1] if index + 1 < len(argv) else ""
            return (value or following).lower() != "false"
    return False


def _number(env: dict[str, str], name: str, default: int, least: int = 0, most: int | None = None) -> int:
    """The value of a variable that torchrun takes as a number."""
    value = env.get(name, str(default))
    try:
        number = int(value)
    except ValueError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        stop(f"{name}={value} is not a number from {least} {f'to {most}' if most else 'on'}.")
    return number


def _may_be_several_nodes(nnodes: str) -> bool:
    """Of a number or MIN:MAX."""
    try:
        numbers = [int(part) for part in nnodes.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not 0 < numbers[0] <= numbers[-1]:
        stop(f"NNODES={nnodes} is neither a number of machines nor MIN:MAX.")
    return numbers[-1] > 1


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            stop(f"port {port} cannot be used ({error.strerror.lower()}); set MASTER_PORT to a free port.")


def is_megatron_rank(argv: list[str]) -> bool:
    """True in the scripts that `megatron` starts: swift/cli/_megatron/rlhf.py and its siblings."""
    folder, script = os.path.split(os.path.abspath(argv[0]))
    return script in RANK_SCRIPTS and os.path.basename(folder) == "_megatron"


def act_as_single_process() -> None:
    """Gives a rank that was started without a launcher (no NPROC_PER_NODE) what torch.distributed asks for."""
    if "RANK" in os.environ:
        return
    world = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in world.items()})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))


def free_port() -> int:
    """A port that can be listened on some seconds later: none of those that the system gives to connections."""
    while True:
        port = random.randrange(20_000, _first_port_of_connections())
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _first_port_of_connections() -> int:
    """Of Linux; elsewhere, or where a machine gives out lower ones, the usual first."""
    try:
        first = int(PORTS_OF_CONNECTIONS.read_text().split()[0])
    except (OSError, ValueError):
        first = 0
    return first if first > 21_000 else 32_768


def end_ranks_with_launcher() -> None:
    """From now on the first SIGINT, SIGTERM or SIGHUP ends all that this process has started, the second at once.

    torchrun's ranks lead sessions of their own, which no signal to a group reaches. A signal that is ignored (nohup)
    stays so.
    """
    told: list[int] = []

    def receive(number: int, _) -> None:
        told.append(number)
        started = psutil.Process().children(recursive=True)
        if len(told) > 1:
            _send(started, signal.SIGKILL)
            return
        name = signal.Signals(number).name
        CONSOLE.say_error(f"\nswift_kd_plugin: {name}: the run is being ended; once more ends it at once")
        # At a SIGINT ms-swift would kill torchrun before that has ended its ranks.
        _send(psutil.Process().children(), signal.SIGTERM)
        _, alive = psutil.wait_procs(started, timeout=GRACE_SECONDS)
        _send(alive, signal.SIGKILL)
        raise SystemExit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, receive)


def _send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
