"""Names of columns that are nearly those of a row: a misspelt column would be left unread in silence."""

import difflib
from functools import cache

from swift_kd_plugin.data.columns import READ_AS, TEACHER_ONLY
from swift_kd_plugin.data.near_names import one_slip, plain_name
from swift_kd_plugin.data.turn_keys import REASONING

# The first of each is the proper name, the others are its synonyms, as in ms-swift.
MESSAGES = ("messages", "conversation", "conversations")
SYSTEM = ("system", "system_prompt")
QUERY = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSE = (
    *("response", "answer", "output", "targets", "target", "answer_key", "answers", "solution"),
    *("text", "completion", "content"),
)
PLACE_NAMES = ("kd_source", "kd_row", "kd_id")
TEACHERS = (*TEACHER_ONLY, "teacher_prompt", "teacher_functions")
KNOWN = frozenset({*MESSAGES, *SYSTEM, *QUERY, *RESPONSE, *READ_AS, *PLACE_NAMES, "history", "teacher_prompt"})
TEACHER = "teacher_"
# What a view of the teacher's own might be called.
SEEN = frozenset({*MESSAGES, *SYSTEM, *QUERY, *READ_AS, "history", "msgs", "msg", "turns", "dialog", "dialogue"})
# Without the words that are as near to another word (context, test) as to their own misspellings.
SPELT = sorted(KNOWN - {"content", "text"}, key=lambda name: (-len(name), name))
SHORTEST = 5
NEARNESS = 0.85  # of difflib: teacher_tool and teacher_mesage are near, teacher_name and teacher_tokens are not


@cache
def why_misspelt(name: str) -> str | None:
    """What an unknown column is meant to be, as a person says it; None where it is a column of its own.

    Meant are a name written in another way (Teacher-Messages), one letter wrong, too much, missing or moved,
    and names that begin like the teacher's columns and go on nearly like one of them, or like a column that the teacher
    cannot have. What begins or ends with a known name (responses, prompt_en), or lacks its plural's s (message), is a
    name of its own.
    """
    plain = plain_name(name)
    known = plain if plain in KNOWN else _nearest(plain)
    if known:
        return f"did you mean {known!r}?"
    if plain.startswith(TEACHER) and plain.removeprefix(TEACHER) in REASONING:
        return "did you mean 'teacher_thought'?"
    if plain.startswith(TEACHER) and plain.removeprefix(TEACHER) in SEEN:
        return "what only the teacher sees stands in teacher_messages"
    return None


def _nearest(name: str) -> str | None:
    if name.startswith(TEACHER):
        near = difflib.get_close_matches(name, TEACHERS, 1, NEARNESS)
        return near[0] if near and not name.startswith(f"{near[0]}_") else None
    if len(name) < SHORTEST:
        return None
    return next((known for known in SPELT if one_slip(name, known) and not _derived(name, known)), None)


def _derived(name: str, known: str) -> bool:
    singular = known == f"{name}s" and "_" not in known
    if name == known + known[-1]:  # a letter twice
        return False
    return name.startswith(known) or name.endswith(known) or singular
