"""How a run ends when something is wrong: one sentence per rank, a non-zero exit, and no rank left waiting."""

import atexit
import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

from swift_kd_plugin.console import CONSOLE

NAME = "swift_kd_plugin"
SHOWN_CHARACTERS = 400
TRACEBACK = "SWIFT_KD_TRACEBACK"
HELP = "megatron rlhf --external_plugins swift_kd_plugin --help"  # without the plugin its flags are not listed


class KDError(ValueError):
    """A mistake in what the user gave. The message is one sentence: what is wrong, where, and what to do."""


def suggest(word: object, known: Iterable[object]) -> str:
    """`` (did you mean 'x'?)`` with the nearest known word, or nothing."""
    near = difflib.get_close_matches(str(word), [str(name) for name in known], 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line of a bounded length."""
    text = " ".join(str(error).split())
    return (text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ...").rstrip(".")


def named_line(error: BaseException) -> str:
    """`one_line` behind the error's kind."""
    return f"{type(error).__name__}: {one_line(error)}"


def _rank_prefix() -> str:
    rank = os.environ.get("RANK")
    return NAME if rank is None else f"{NAME} [rank {rank}]"


def print_error(message: str) -> None:
    CONSOLE.say_error(f"{_rank_prefix()}: error: {message}")


def stop(message: str) -> NoReturn:
    """Prints one sentence and leaves with exit code 1. For places where an exception would be wrapped by others."""
    print_error(message)
    raise SystemExit(1)


def leave_at_once(code: int) -> NoReturn:
    """Ends the process without atexit handlers or process-group destructors, which may wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def report_and_exit(kind: type[BaseException], error: BaseException, trace) -> None:
    """`sys.excepthook` of a training rank: a sentence for a user's mistake, a traceback and a sentence otherwise."""
    if trace is None or trace.tb_frame.f_code.co_name != "<module>":
        # A finaliser failed while the interpreter was leaving; the run itself is over.
        traceback.print_exception(kind, error, trace, file=sys.__stderr__)
        return
    sentence = _find_sentence(error)
    said = sentence or f"stopped by {named_line(error)}" + (f" ({TRACEBACK}=1 shows where)" if CONSOLE.err else "")
    _show_traceback(kind, error, trace, expected=sentence is not None)
    print_error(said)
    if not isinstance(error, KeyboardInterrupt):
        for listener in on_failure:
            listener(said)
    if "LOCAL_RANK" in os.environ:
        leave_at_once(1)


on_failure: list[Callable[[str], None]] = []
"""They are told the sentence that a rank ends with."""


def _show_traceback(kind: type[BaseException], error: BaseException, trace, expected: bool) -> None:
    """In the log always; on a console if it is asked for, or is not kept short and the error is none of a user's."""
    asked = os.environ.get(TRACEBACK) == "1"
    if CONSOLE.is_split or asked or not expected:
        traceback.print_exception(kind, error, trace, file=sys.__stderr__)
    if CONSOLE.err and asked:
        traceback.print_exception(kind, error, trace, file=CONSOLE.err)


def _find_sentence(error: BaseException) -> str | None:
    if isinstance(error, KeyboardInterrupt):
        return "ended by Ctrl-C."
    if isinstance(error, KDError):
        return str(error)
    unknown = re.fullmatch(r"remaining_argv: \[(.*)\]", str(error))
    if isinstance(error, ValueError) and unknown:
        return f"unknown on the command line: {unknown[1]}; see `{HELP}` for the flags."
    if isinstance(error, RuntimeError) and re.search("Connection (closed|reset) by peer", str(error)):
        return "the connection to another rank is gone; that rank's own message tells why."
    if isinstance(error, RuntimeError) and re.search("found (NaN|Inf) in local grad norm", str(error)):
        return (
            "the gradient is no finite number in this step, and the run ends before it is applied; lower --lr or warm "
            "it up (--lr_warmup_iters), and go on from the last checkpoint."
        )
    return None


def report_failed_ranks(kind: type[BaseException], error: BaseException, trace) -> None:
    """`sys.excepthook` of the launcher: the ranks have spoken, so torchrun's own traceback is left out."""
    if kind.__name__ == "SignalException":  # torchrun was told to end, and has ended the ranks
        name = signal.Signals(error.sigval).name
        print_error(f"the run was ended by {name}; `swift-kd status FOLDER` says how to go on.")
        return
    if kind is KeyboardInterrupt:  # what it has started has spoken
        return
    failures = getattr(error, "failures", None)
    if kind.__name__ != "ChildFailedError" or not failures:
        sys.__excepthook__(kind, error, trace)
        return
    # One that was killed comes first: the others may have ended of it before it was looked at.
    rank, first = min(failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
    if CONSOLE.launch:
        CONSOLE.say_error(CONSOLE.launch.what_failed())
    here = " on this machine" if _is_one_of_several(sys.argv) else ""
    _report_end(how_rank_ended(rank, first.exitcode, here), was_killed=first.exitcode < 0)


def report_single_rank() -> None:
    """In a launcher that starts a rank itself: how that one has ended, said when the launcher leaves."""
    codes: list[object] = []
    leave = sys.exit

    def leave_and_tell(code: object = None) -> NoReturn:
        codes.append(code)
        leave(code)

    def report() -> None:
        if CONSOLE.launch is None or CONSOLE.launch.has_finished():
            return
        CONSOLE.say_error(CONSOLE.launch.what_failed())
        code = codes[-1] if codes else None  # the rank's, which ms-swift leaves with
        if isinstance(code, int) and code < 0:
            _report_end(f"the run was killed by {_name_of_signal(-code)}.", was_killed=True)

    sys.exit = leave_and_tell
    atexit.register(report)


def _report_end(sentence: str, was_killed: bool) -> None:
    """Says how a rank ended. One that was killed could not tell `on_failure` itself."""
    print_error(sentence)
    for listener in on_failure if was_killed else ():
        listener(sentence)


def how_rank_ended(rank: int, code: int, here: str = "") -> str:
    """The sentence for the rank that ended a run.

    Args:
        code: its exit code, -n after signal n.
        here: where others may have ended before.
    """
    if code < 0:
        return f"rank {rank} was killed{here} by {_name_of_signal(-code)}."
    return f"rank {rank} ended first{here}, with exit code {code}; its own message stands above."


def _is_one_of_several(argv: list[str]) -> bool:
    """Whether this is the torchrun of one of several machines."""
    return "--nnodes" in argv and argv[argv.index("--nnodes") + 1 :][:1] not in ([], ["1"], ["1:1"])


def _name_of_signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "an unknown one"
    hint = "; the system does that when memory runs out (dmesg tells)" if number == signal.SIGKILL else ""
    return f"signal {number} ({name}){hint}"
