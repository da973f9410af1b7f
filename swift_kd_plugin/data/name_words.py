"""What the words of a column's name say of it, for columns whose name is none that is read."""

import re

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+")
THOUGHT = frozenset({"cot", "think", "thinking", "thought", "thoughts", "reasoning", "rationale", "rationales"})
# What a thought is written as: reasoning_steps, but not reasoning_effort.
WRITTEN_AS = frozenset(
    {
        *("content", "text", "trace", "traces", "trajectory", "trajectories", "process", "step", "steps", "chain"),
        *("details", "blocks", "output"),
    }
)
QUESTIONS = frozenset({"is", "has", "no", "needs", "requires", "with", "without"})
SWITCHES = frozenset({"enable", "enabled", "use", "mode", "no", "non", "student", "teacher", "think", "thinking"})
WEIGHTED = frozenset({"sample", "example", "row", "record", "instance", "item", "data", "loss", "train", "training"})
SEES_MORE = frozenset({"teacher", "teach", "expert", "tutor", "privileged"})


def words_of(name: str) -> tuple[str, ...]:
    """Complex_CoT is complex, cot; sampleWeight is sample, weight."""
    return tuple(word.lower() for word in WORD.findall(name.replace("CoT", "Cot")))


def is_thought(words: tuple[str, ...]) -> bool:
    """Whether a column may hold thoughts: its last word says what it is."""
    if not words or words[0] in QUESTIONS:
        return False
    return words[-1] in THOUGHT or (words[-1] in WRITTEN_AS and not THOUGHT.isdisjoint(words))


def is_mode(words: tuple[str, ...]) -> bool:
    """Whether a column may say whether a model thinks."""
    return SWITCHES.issuperset(words) and ("think" in words or "thinking" in words)


def is_weight(words: tuple[str, ...]) -> bool:
    """Whether a column may say what its row counts."""
    return len(words) > 1 and words[-1] in ("weight", "weights") and WEIGHTED.issuperset(words[:-1])


def is_view(words: tuple[str, ...]) -> bool:
    """Whether a column may hold what the teacher sees."""
    return not SEES_MORE.isdisjoint(words)
