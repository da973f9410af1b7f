"""`megatron` in a warm process: forks the ranks, and ends like torchrun."""

import importlib.util
import os
import signal
import sys
import time

from tests.launching.as_new import end_with_parent, renew_rank

GRACE_SECONDS = 30  # torchrun's own
POLL_SECONDS = 0.05


def fork_ranks(argv: list[str]) -> str:
    """Returns the script that a rank runs, in the rank alone; the launcher ends here with its exit code.

    Args:
        argv: `megatron rlhf …`, with flags or a YAML file.
    """
    from swift.cli._megatron.main import ROUTE_MAPPING
    from swift.cli.main import parse_yaml_args

    from swift_kd_plugin._autoload import check_command_line, is_named

    if not is_named(argv):
        raise SystemExit("A command without the plugin cannot run where the plugin is awake; start the command itself.")
    check_command_line(argv)
    script = importlib.util.find_spec(ROUTE_MAPPING[argv[1]]).origin
    flags = argv[2:]
    parse_yaml_args(flags)
    count = os.environ.get("NPROC_PER_NODE")
    if count:
        choose_port()
    ranks = {}
    for rank in range(int(count or 1)):
        process = os.fork()
        if process == 0:
            end_with_parent()
            if count:
                os.environ.update(variables_of(rank, int(count)))
            sys.argv = [script, *flags]
            sys.path.insert(0, os.path.dirname(script))
            renew_rank()
            return script
        ranks[process] = rank
    code = watch(ranks)
    os._exit(1 if count and code else code)


def variables_of(rank: int, count: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in numbers.items()}


def choose_port() -> None:
    """As torchrun does on a single node that was not told one."""
    if "MASTER_PORT" not in os.environ:
        from swift_kd_plugin.launcher import free_port

        os.environ["MASTER_PORT"] = str(free_port())


def watch(ranks: dict[int, int]) -> int:
    """Waits for all; the first one that fails, or a signal, ends the others. Returns the first bad exit code or 0."""
    from swift_kd_plugin.errors import how_rank_ended, print_error

    ended_by = []

    def end(number, _) -> None:
        ended_by.append(number)
        tell(signal.SIGTERM)

    def tell(number: int) -> None:
        for process in ranks:
            os.kill(process, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    first, deadline = 0, None
    while ranks:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in ranks:
            rank, code = ranks.pop(process), os.waitstatus_to_exitcode(status)
            if code and not first:
                first = code
                print_error(how_rank_ended(rank, code))
                tell(signal.SIGTERM)
            continue
        if (first or ended_by) and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            tell(signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return first or (128 + ended_by[0] if ended_by else 0)
