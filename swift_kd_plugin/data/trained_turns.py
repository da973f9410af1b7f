"""Whether a row has a response that a run can train on, where nobody writes one."""

from collections.abc import Iterable, Iterator

from swift_kd_plugin.data.column_names import RESPONSE
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Message, Place, Row, RowError
from swift_kd_plugin.data.turn_keys import is_off
from swift_kd_plugin.data.validate import SPEAKS

GOLD = ("chosen", "chosen_response", *RESPONSE)
LAST_ROUND = "last_round"


def answered_rows(rows: Iterable[Row], strategy: str, report: Report) -> Iterator[Row]:
    """The rows that have a trained turn; the others go into the report.

    Args:
        strategy: ms-swift's `--loss_scale`, which takes the turns of the last round or of all.
    """
    for row in rows:
        try:
            check_answered(row, strategy)
        except RowError as error:
            report.leave_out(error, Place.of(row))
        else:
            yield row


def check_answered(row: Row, strategy: str) -> None:
    """Raises RowError for a row of which nothing would be trained."""
    messages = row["messages"]
    if messages[-1]["role"] in SPEAKS and not is_off(messages[-1]):
        return
    spoken = [turn for turn in messages if turn["role"] in SPEAKS]
    turns = _last_round(messages) if strategy.startswith(LAST_ROUND) else spoken
    if not turns:
        gold = next((name for name in GOLD if isinstance(row.get("columns", {}).get(name), str)), "COLUMN")
        raise RowError(
            "no response",
            "it has no response to distil on, and no model writes one in this run; give it one, name the column that "
            f"holds it (`gold: {gold}` in a data.yaml), or let the student (--lmbda 1 --use_vllm true) or the teacher "
            "(--seq_kd true) write it",
        )
    if all(map(is_off, turns)) and not any(turn.get("loss") for turn in spoken):
        raise RowError("no response", "nothing of its response is trained: its turns have loss false or loss_scale 0")


def _last_round(messages: list[Message]) -> list[Message]:
    """What the assistant says behind the last user turn."""
    start = max((number for number, turn in enumerate(messages) if turn["role"] == "user"), default=-1)
    return [turn for turn in messages[start + 1 :] if turn["role"] in SPEAKS]
