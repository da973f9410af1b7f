"""A line for a person each logging step; all figures of it are in logging.jsonl, and in the log of the run's output."""

from math import isfinite
from typing import Any

from swift.megatron.callbacks.print import PrintCallback
from tqdm import tqdm

from swift_kd_plugin.console import CONSOLE

# Name in the log, name on the line, form.
FIGURES = (
    ("loss", "loss", "{:.4g}"),
    ("divergence", "divergence", "{:.4g}"),
    ("ce", "ce", "{:.4g}"),
    ("top1_agreement", "top1_agreement", "{:.3f}"),
    ("student_share", "student_share", "{:.2f}"),
    ("teacher_share", "teacher_share", "{:.2f}"),
    ("grad_norm", "grad_norm", "{:.3g}"),
    ("learning_rate", "lr", "{:.2e}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("generation_seconds", "generation", "{:.1f} s"),
    ("memory(GiB)", "memory", "{:.2f} GiB"),
)
EVALUATION = "eval_"


class StepLines(PrintCallback):
    """ms-swift's own callback, with its lines and bars in the log where the console is kept short.

    Args:
        first, last: the figures of the first and the last logged training step, on the last rank.
        begun_at: the steps that runs before this one have trained, whose checkpoint it goes on from.
    """

    begun_at = 0

    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    bar: tqdm | None = None

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self.begun_at = self.state.iteration
        if self.is_write_rank and CONSOLE.is_split:
            steps, done = self.args.train_iters, self.state.iteration
            terminal = {"file": CONSOLE.err, "disable": None, "leave": False, "dynamic_ncols": True}
            self.bar = tqdm(total=steps, initial=done, desc="Train", **terminal)

    def on_step_end(self) -> None:
        if self.bar is not None:
            self.bar.update(self.state.iteration - self.current_step)
        super().on_step_end()

    def on_log(self, logs: dict[str, Any]) -> None:
        super().on_log(logs)
        if not self.is_write_rank:
            return
        if "loss" in logs:
            self.first, self.last = self.first or dict(logs), dict(logs)
        if self.bar is not None:
            self.bar.write(step_line(logs), file=CONSOLE.out)
            CONSOLE.out.flush()

    def on_train_end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        super().on_train_end()


def step_line(logs: dict[str, Any]) -> str:
    """What a person follows of a row of logging.jsonl, in one line."""
    prefix = EVALUATION if any(name.startswith(EVALUATION) for name in logs) else ""
    shown = {}
    for name, title, form in FIGURES:
        value = logs.get(prefix + name, logs.get(name) if name == "memory(GiB)" else None)
        repeats = name in ("divergence", "ce") and value == logs.get(prefix + "loss")
        if isinstance(value, (int, float)) and not repeats:
            shown[title] = form.format(value) if isfinite(value) else str(value)
    if prefix:
        head, end = f"step {logs['iteration']}  evaluation", ""
    else:
        head, end = f"step {logs['iteration']}", f"  left {logs['remaining_time']}"
    return head + "".join(f"  {title} {value}" for title, value in shown.items()) + end
