"""How the sentence of a rank reaches the terminal that it shares with the others."""

import sys
from types import SimpleNamespace

import pytest

from swift_kd_plugin.errors import print_error, report_failed_ranks


def test_a_sentence_is_one_write(monkeypatch):
    written = []

    class Pipe:
        write = staticmethod(written.append)
        flush = staticmethod(lambda: None)

    monkeypatch.setattr(sys, "__stderr__", Pipe)
    monkeypatch.setenv("RANK", "1")
    print_error("no such file")
    assert written == ["swift_kd_plugin [rank 1]: error: no such file\n"]


class ChildFailedError(Exception):
    """As torchrun's, which is known by its name."""

    def __init__(self, **ranks):
        self.failures = {
            int(rank[1:]): SimpleNamespace(exitcode=code, timestamp=at) for rank, (code, at) in ranks.items()
        }


@pytest.mark.parametrize(
    ("error", "argv", "said"),
    [
        (
            ChildFailedError(r0=(1, 5), r1=(-9, 5)),
            [],
            "rank 1 was killed by signal 9 (SIGKILL); the system does that when memory runs out (dmesg tells).",
        ),
        (ChildFailedError(r2=(-11, 5)), [], "rank 2 was killed by signal 11 (SIGSEGV)."),
        (
            ChildFailedError(r0=(1, 7), r1=(1, 5)),
            ["--nnodes", "1"],
            "rank 1 ended first, with exit code 1; its own message stands above.",
        ),
        (
            ChildFailedError(r0=(1, 5)),
            ["--nproc_per_node", "1", "--nnodes", "2"],
            "rank 0 ended first on this machine, with exit code 1; its own message stands above.",
        ),
        (ChildFailedError(r3=(-9, 5)), ["--nnodes", "2"], "rank 3 was killed on this machine by signal 9"),
    ],
)
def test_the_launcher_says_which_rank_ended_the_run(error, argv, said, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["run.py", *argv])
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    report_failed_ranks(type(error), error, None)
    assert f"swift_kd_plugin: error: {said}" in capfd.readouterr().err


def test_a_signal_to_torchrun_is_one_sentence(capfd):
    class SignalException(Exception):
        """As torchrun's own."""

        sigval = 2

    report_failed_ranks(SignalException, SignalException(), None)
    said = capfd.readouterr().err
    assert said == "swift_kd_plugin: error: the run was ended by SIGINT; `swift-kd status FOLDER` says how to go on.\n"
