"""How the sentence of a rank reaches the terminal that it shares with the others."""

import sys

from swift_kd_plugin.errors import print_error


def test_a_sentence_is_one_write(monkeypatch):
    written = []

    class Pipe:
        write = staticmethod(written.append)
        flush = staticmethod(lambda: None)

    monkeypatch.setattr(sys, "__stderr__", Pipe)
    monkeypatch.setenv("RANK", "1")
    print_error("no such file")
    assert written == ["swift_kd_plugin [rank 1]: error: no such file\n"]
