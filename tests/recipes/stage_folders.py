"""Makes what a training stage leaves: a log and checkpoints."""

from pathlib import Path

from swift_kd_plugin.host.train.checkpoint_manifest import begin, finish, make_room, merged_folder
from tests.json_lines import write_json_lines


def write_log(folder: Path, *divergences: tuple[int, float]) -> None:
    rows = [{"iteration": f"{step}/6", "eval_divergence": value} for step, value in divergences]
    write_json_lines(folder / "logging.jsonl", [{"loss": 1, "iteration": "1/6"}, *rows, {"best_metric": 1}])


def write_checkpoint(folder: Path, step: int, *, adapter: bool = False, whole: bool = True, says_itself: bool = True):
    """As the trainer does it, to the end or not, or as ms-swift alone does."""
    made = folder / f"checkpoint-{step}"
    if says_itself:
        make_room(made)
        begin(made)
    for place in (made, merged_folder(made)) if adapter else (made,):
        (place / f"iter_{step:07d}").mkdir(parents=True)
        (place / f"iter_{step:07d}" / "__0_0.distcp").write_text("optimizer")
        (place / "model.safetensors").write_text(place.name)
    if whole:
        link_last(folder, made.name)
        if says_itself:
            finish(made)


def link_last(folder: Path, name: str) -> None:
    (folder / "last-checkpoint").unlink(missing_ok=True)
    (folder / "last-checkpoint").symlink_to(name)
