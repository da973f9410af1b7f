"""Whether any row fits into --max_length, told by the tokenizer's file before a rank is started."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from swift_kd_plugin.errors import KDError

SECONDS = 2.0


def check_some_row_fits(args) -> None:
    """Raises KDError if no row fits. Only the text of the student's turns is counted, to which a template adds.

    Nothing is said where rows or tokenizer have another form, rows are cut rather than left out, or counting all of
    them takes longer than `SECONDS`: ranks find it out then.
    """
    file = Path(args.model or "").expanduser() / "tokenizer.json"
    files = args.dataset or ()
    if not args.max_length or args.truncation_strategy not in (None, "delete") or not file.is_file():
        return
    if not files or not all(path.endswith(".jsonl") and os.path.isfile(path) for path in files):
        return
    tokenizer, start, lengths = Tokenizer.from_file(str(file)), time.monotonic(), []
    for text in _texts(files):
        if text is None or time.monotonic() - start > SECONDS:
            return
        lengths.append(len(tokenizer.encode(text, add_special_tokens=False).ids))
        if lengths[-1] <= args.max_length:
            return
    if lengths:
        raise KDError(
            f"--max_length {args.max_length}: none of the {len(lengths):,} rows fits into it, the shortest has at "
            f"least {min(lengths):,} tokens; raise it."
        )


def _texts(files: Sequence[str]) -> Iterator[str | None]:
    """The text of each row's turns; None for a row of another form."""
    for file in files:
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    yield _text_of(line)


def _text_of(line: str) -> str | None:
    try:
        row = json.loads(line)
        turns = [turn["content"] for turn in row["messages"]] if "messages" in row else [row["query"], row["response"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return "".join(turns) if turns and all(isinstance(content, str) for content in turns) else None
