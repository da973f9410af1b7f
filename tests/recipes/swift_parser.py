"""Asks ms-swift's real parser, in a process of its own, what it reads."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.paths import ROOT


@contextmanager
def real_parser() -> Iterator[Callable[..., dict[str, Any]]]:
    """Yields a function from the words behind a command (`megatron rlhf` or `swift deploy`) to every flag's value; it
    starts once, in seconds."""
    argv = [sys.executable, "-m", "tests.recipes.swift_parser_process"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(argv, cwd=ROOT, **pipes) as process:
        while (line := process.stdout.readline()) != "ready\n":
            assert line, "the parser ended"

        def ask(words: list[str], command: str = "megatron rlhf") -> dict[str, Any]:
            process.stdin.write(json.dumps([command, words]) + "\n")
            answer = process.stdout.readline()
            assert answer, f"{command} does not take {words}"
            return json.loads(answer)

        yield ask
        process.stdin.close()
