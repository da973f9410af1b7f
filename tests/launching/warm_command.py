"""Stands in for `megatron`, `swift-kd`, `swift` and `python`: has the command run in a fork of a warm process.

It lies in the `bin` of the warm process's folder under these names, beside `bin/real`, the real interpreter. What no
warm process can run is run by the real program. Only the standard library is imported: it starts in 20 ms.
"""

import json
import os
import signal
import socket
import sys

BIN = os.path.dirname(os.path.abspath(sys.argv[0]))
WARM_SCRIPTS = ("deploy.py",)
WARM_MODULES = ("tests.", "vllm.", "examples.")


def kind_of(name: str, words: list[str]) -> str | None:
    """The kind of process that can run this; None if only the real program can."""
    if name == "megatron":
        return "ranks"
    if name == "python":
        by_name = words[:1] == ["-m"] and words[1].startswith(WARM_MODULES)
        return "tools" if by_name or os.path.basename(words[0]) in WARM_SCRIPTS else None
    return "tools"


def end_of_log(kind: str) -> str:
    """What a warm process said last, such as why the stack cannot be imported."""
    with open(os.path.join(os.path.dirname(BIN), f"{kind}.log"), errors="replace") as log:
        return log.read()[-3000:]


def main() -> int:
    name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    kind = kind_of(name, words)
    if kind is None:
        real = os.path.realpath(os.path.join(BIN, "real"))
        os.execv(real, [real, *words])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.path.join(os.path.dirname(BIN), kind))
    request = {"argv": [name, *words], "cwd": os.getcwd(), "env": dict(os.environ)}
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(connection, [data[:1024]], [1, 2])
    connection.sendall(data[sent:])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    line = connection.makefile().readline()
    page = json.loads(line) if line else {"error": f"the warm process died:\n{end_of_log(kind)}"}
    if "error" in page:
        print(page["error"], file=sys.stderr)
        return 1
    return page["code"] if page["code"] >= 0 else 128 - page["code"]


if __name__ == "__main__":
    sys.exit(main())
