"""What hands make of names: another way of writing, and slips."""


def plain_name(name: str) -> str:
    """A name as it would be written here: Teacher-Messages is teacher_messages."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def one_slip(one: str, other: str) -> bool:
    """Whether a letter is wrong, too much, missing, or one or two places from where it belongs."""
    if abs(len(one) - len(other)) > 1:
        return False
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    moved = len(one) == len(other) <= 3 and (one[1:] + one[:1] == other or other[1:] + other[:1] == one)
    return max(len(one), len(other)) <= 1 or moved
