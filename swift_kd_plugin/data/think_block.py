"""The think block in front of an answer, as Qwen3's chat template writes it, and where a thought goes."""

OPEN, CLOSE = "<think>", "</think>"
EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"
THINKING, NON_THINKING = "thinking", "non_thinking"
# The setting of a chat template that says the mode.
SWITCH = "enable_thinking"


def split_thought(text: str) -> tuple[str | None, str]:
    """The text in a response's leading think block, None if it has no block, and the answer behind it."""
    if not text.lstrip().startswith(OPEN) or CLOSE not in text:
        return None, text
    thought, answer = text.split(CLOSE, 1)
    return thought.split(OPEN, 1)[1].strip("\n"), answer.lstrip("\n")


def join_thought(thought: str, answer: str) -> str:
    """The inverse of `split_thought`, as Qwen3's chat template writes it."""
    return f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}"


def answer_of(response: str) -> str:
    """A response without its thought; nothing, if the thought was cut off before it ended."""
    thought, answer = split_thought(response)
    return "" if thought is None and response.lstrip().startswith(OPEN) else answer.strip()


def has_thought(response: str) -> bool:
    """Whether a response holds a thought that ends, also one that its prompt has begun."""
    return CLOSE in response and bool(response.partition(CLOSE)[0].replace(OPEN, "").strip())


def mode_of(settings: dict | None) -> str | None:
    """The mode that settings of a chat template say, None if they say none."""
    switch = (settings or {}).get(SWITCH)
    return None if switch is None else THINKING if switch else NON_THINKING


def place_thought(thought: str | None, answer: str, writer: str, student: str) -> tuple[str, str | None]:
    """The response that both views share, and what stands in the think block in front of it for the teacher alone.

    Args:
        writer, student: their modes. Where they differ, the teacher's think block is not the student's: it holds the
            thought of a writer that thinks, and is empty in front of a student that does; None where they agree.
    """
    content = join_thought(thought, answer) if student == THINKING and thought else answer
    if writer == student:
        return content, None
    return content, (thought or "") if writer == THINKING else ""
