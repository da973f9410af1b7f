"""Which turns of a row are trained, and whether there is one where nobody writes a response."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from swift_kd_plugin.data.column_names import RESPONSE
from swift_kd_plugin.data.gold_answers import PREFERRED, find_conversation
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import SPEAKS, Message, Place, Row, RowError, response_of
from swift_kd_plugin.data.turn_keys import TURNED_OFF, is_off, weights_of
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
        raise RowError("no response", f"nothing of its response is trained: {TURNED_OFF}")
    raise RowError(
        "no response", f"it has no response to distil on, and no model writes one in this run; {_ways_to_answer(row)}"
    )


def say_what_is_trained(rows: Iterable[Row], strategy: str, report: Report) -> None:
    """Notes the rows whose training is not what one may expect: without a response, or with answers left out of it."""
    for row in rows:
        messages = row["messages"]
        weights = turn_weights(messages, strategy)
        answers = [weight for turn, weight in zip(messages, weights, strict=True) if turn["role"] == "assistant"]
        if not response_of(row):
            report.note(
                "no response, at which training ends unless a model writes one", _ways_to_answer(row), Place.of(row)
            )
        elif answers and answers[-1] and not all(answers) and not any(map(weights_of, messages)):
            text = f"{answers.count(0):,} of {len(answers):,} answers; --loss_scale default trains all of them"
            report.note(f"answers that --loss_scale {strategy} does not train", text, Place.of(row))


def _ways_to_answer(row: Row) -> str:
    columns = row.get("columns", {})
    gold = next((name for name in GOLD if _is_answer(columns.get(name))), "COLUMN")
    return (
        f"give it one, name the column that holds it (`gold: {gold}` in a data.yaml), or let the student (--lmbda 1 "
        "--use_vllm true) or the teacher (--seq_kd true) write it"
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
