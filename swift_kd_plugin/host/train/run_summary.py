"""What a person needs at the end of a run: on the console of one rank, and as summary.json in the run's folder."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from swift.utils import is_last_rank
from torch import distributed as dist

from swift_kd_plugin.console import CONSOLE
from swift_kd_plugin.host.rows.named_datasets import REPORT_FILE
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.train.next_command import eval_command
from swift_kd_plugin.host.train.run_record import FINISHED, RUN, read_page, write_summary
from swift_kd_plugin.host.train.step_lines import StepLines
from swift_kd_plugin.host.train.training_log import step_of_row
from swift_kd_plugin.memory.memory_table import as_size

WARNING_CHARACTERS = 200


def summarise_run(trainer: HostTrainer) -> None:
    """Prints and writes the summary. Every rank calls it, after the last checkpoint."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (torch.cuda.max_memory_allocated(), CONSOLE.warnings))
    if is_last_rank():
        warnings: Counter[str] = Counter()
        for _, met in ranks:
            warnings |= met  # what all ranks say counts once
        page = summary_of(trainer, max(peak for peak, _ in ranks), warnings)
        write_summary(Path(trainer.args.output_dir), page)
        CONSOLE.say("\n" + render_summary(page))


def summary_of(trainer: HostTrainer, peak: int, warnings: Counter[str]) -> dict[str, Any]:
    """The page of summary.json.

    Args:
        peak: bytes of the rank that needed most.
    """
    args, state, folder = trainer.args, trainer.state, Path(trainer.args.output_dir)
    lines = next((line for line in trainer.callbacks if isinstance(line, StepLines)), None)
    begun_at = lines.begun_at if lines else 0
    final, best = state.last_model_checkpoint, state.best_model_checkpoint
    started = (read_page(folder / RUN) or {}).get("started")
    return {
        "state": FINISHED,
        "steps": state.iteration,
        "begun_at": begun_at,
        "seconds": round(time.time() - started, 1) if started else None,
        "loss": _loss_of(lines.first, lines.last) if lines and lines.first else None,
        "checkpoint": final,
        "best": best and {"checkpoint": best, "metric": args.metric_for_best_model, "value": state.best_metric},
        "tokens_per_second": trainer.kd.tokens / trainer.kd.seconds if trainer.kd.seconds else None,
        "peak_memory_bytes": peak,
        "rows": {"seen": state.consumed_train_samples, "of": trainer.kd.rows, "left_out": _left_out(folder)},
        "warnings": dict(warnings.most_common()),
        "log": str(CONSOLE.log) if CONSOLE.log else None,
        "next": eval_command(args, Path(best or final)) if final else None,
        "next_rows": "held out" if args.val_dataset else "trained",
    }


def _loss_of(first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """The loss of the first and the last row that this run logged, with the step of each."""
    steps = [step_of_row(row)[0] for row in (first, last)]
    return {"first": first["loss"], "first_step": steps[0], "last": last["loss"], "last_step": steps[1]}


def _left_out(folder: Path) -> dict[str, int]:
    """Rows by why they are not trained on."""
    counts: Counter[str] = Counter()
    for report in (read_page(folder / REPORT_FILE) or {}).values():
        for kind, entry in report.get("left_out", {}).items():
            counts[kind] += entry["count"]
    return dict(counts)


def render_summary(page: dict[str, Any]) -> str:
    """The page as lines for a person."""
    loss, best, rows = page["loss"], page["best"], page["rows"]
    speed, seconds = page["tokens_per_second"], page["seconds"]
    of = f", {rows['seen'] / rows['of']:.3g} times each of {rows['of']:,} rows" if rows["of"] else ""
    parts = {
        "steps": _steps_in(page) + (f" in {seconds:,.0f} s" if seconds else ""),
        "loss": loss and _loss_in_words(loss),
        "checkpoint": page["checkpoint"],
        "best": best and f"{best['checkpoint']} ({best['metric']} {best['value']:.4g})",
        "tokens/s": speed and f"{speed:,.0f}",
        "peak memory": f"{as_size(page['peak_memory_bytes'])} on the rank that needs most",
        "samples": f"{rows['seen']:,}{of}",
        "left out": ", ".join(f"{count:,} {kind}" for kind, count in rows["left_out"].items()),
        "log": page["log"],
    }
    lines = ["The run has finished.", *(f"  {name:<12}{text}" for name, text in parts.items() if text)]
    if page["warnings"]:
        lines.append("Warnings:")
        lines += [f"  {count} x {_shortened(text)}" for text, count in page["warnings"].items()]
    if page["next"]:
        of = " (on rows that were trained; name others as --dataset)" if page["next_rows"] == "trained" else ""
        lines.append(f"Next{of}:\n  {page['next']}")
    return "\n".join(lines)


def _steps_in(page: dict[str, Any]) -> str:
    """The steps that this run has trained, and behind how many."""
    trained, begun_at = page["steps"] - page["begun_at"], page["begun_at"]
    return f"{trained:,}, from step {begun_at:,} to {page['steps']:,}," if begun_at else f"{trained:,}"


def _loss_in_words(loss: dict[str, Any]) -> str:
    last = f"{loss['last']:.4g} at step {loss['last_step']:,}"
    return (
        last
        if loss["first_step"] == loss["last_step"]
        else f"{loss['first']:.4g} at step {loss['first_step']:,}, {last}"
    )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WARNING_CHARACTERS else line[:WARNING_CHARACTERS] + " ..."
