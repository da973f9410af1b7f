"""The checkpoint that was meant by the folder above it, or by its place without the run's own folder."""

import re
from pathlib import Path

CHECKPOINT = re.compile(r"checkpoint-(\d+)(-merged)?")
MODEL, RESUMABLE = "config.json", "latest_checkpointed_iteration.txt"


def near_checkpoint(path: Path, holds: str = MODEL) -> Path | None:
    """The newest checkpoint below a folder, or the one of that name in a run's own folder (output_dir/v0-DATE-TIME).

    Args:
        path: what was given; it may not exist.
        holds: a file that the checkpoint has.
    """
    above = path if path.is_dir() else path.parent
    if not above.is_dir() or not (path.is_dir() or CHECKPOINT.fullmatch(path.name)):
        return None
    found = [file.parent for pattern in ("*", "*/*", "*/*/*") for file in above.glob(f"{pattern}/{holds}")]
    found = [folder for folder in found if CHECKPOINT.fullmatch(folder.name)]
    return max(found, key=lambda folder: (folder.name == path.name, *_age(folder)), default=None)


def did_you_mean(path: Path, holds: str = MODEL, otherwise: str = "") -> str:
    """`did you mean CHECKPOINT?`, or another end of a sentence where there is none."""
    found = near_checkpoint(path, holds)
    return f"did you mean {found}?" if found else otherwise


def _age(folder: Path) -> tuple[list[int], int]:
    """Of a checkpoint among those of several runs: the numbers in its run's name, and its step."""
    return [int(number) for number in re.findall(r"\d+", folder.parent.name)], int(CHECKPOINT.fullmatch(folder.name)[1])
