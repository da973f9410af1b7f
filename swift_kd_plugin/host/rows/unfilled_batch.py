"""Why a batch could not be filled with rows that the template can encode."""

from copy import copy, deepcopy
from typing import Any

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import one_line

LOOKED_AT = 32


def explain_rows_left_out(template, rows: list[dict[str, Any]]) -> KDError:
    """The sentence for a batch of which ms-swift found too few rows, after it had tried others in their place.

    Args:
        template: ms-swift's; it is not changed.
        rows: that were to be the batch.
    """
    endless, limit = copy(template), template.max_length
    endless.max_length = None
    lengths, reason = [], None
    for row in rows[:LOOKED_AT]:
        try:
            lengths.append(len(endless.encode(deepcopy(row))["input_ids"]))
        except Exception as error:  # of any kind, as each template and each reader of media has its own
            reason = f"{type(error).__name__}: {one_line(error)}"
    if reason and len(lengths) < len(rows[:LOOKED_AT]) / 2:
        return KDError(f"the template cannot encode most rows: {reason}.")
    fitting = sum(length <= limit for length in lengths)
    return KDError(
        f"--max_length {limit} leaves too few rows for a batch: {fitting} of {len(lengths)} that were looked at fit "
        f"into it, and they have {min(lengths)} to {max(lengths)} tokens; raise it."
    )
