"""Which turns of a row are trained, and whether there is one where nobody writes a response."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from swift_kd_plugin.data.column_names import RESPONSE
from swift_kd_plugin.data.gold_answers import PREFERRED, find_conversation
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import SPEAKS, Message, Place, Row, RowError, response_of
from swift_kd_plugin.data.turn_keys import is_off
from swift_kd_plugin.data.turns import TOOL_ROLES

GOLD = (*PREFERRED, *RESPONSE)
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
    spoken = [turn for turn in messages if turn["role"] in SPEAKS]
    weights = turn_weights(messages, strategy)
    shares = "teacher_messages" not in row or bool(response_of(row))
    if shares and any(weight for turn, weight in zip(messages, weights, strict=True) if turn["role"] in SPEAKS):
        return
    if any(map(is_off, spoken)) and messages[-1]["role"] in SPEAKS:
        raise RowError("no response", "nothing of its response is trained: its turns have loss false or loss_scale 0")
    columns = row.get("columns", {})
    gold = next((name for name in GOLD if _is_answer(columns.get(name))), "COLUMN")
    raise RowError(
        "no response",
        "it has no response to distil on, and no model writes one in this run; give it one, name the column that "
        f"holds it (`gold: {gold}` in a data.yaml), or let the student (--lmbda 1 --use_vllm true) or the teacher "
        "(--seq_kd true) write it",
    )


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) or find_conversation(value) is not None


def turn_weights(messages: Sequence[Message], strategy: str) -> list[float]:
    """What each turn counts in the loss, as its keys and ms-swift's `--loss_scale` say; templates know it by the token.

    The last round begins behind the last turn of the user or of a tool.
    """
    asked = max((index for index, turn in enumerate(messages) if turn["role"] in ("user", *TOOL_ROLES)), default=-1)
    base = strategy.partition("+")[0]
    weights = []
    for index, turn in enumerate(messages):
        speaks, loss = turn["role"] in SPEAKS, turn.get("loss")
        trained = base == "all" or (speaks and (base != LAST_ROUND or index > asked))
        if speaks and loss is not None:
            trained = loss
        scale = turn.get("loss_scale") if speaks else None
        weights.append(float(trained) * (1.0 if scale is None else scale))
    return weights
