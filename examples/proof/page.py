"""The proof's last page: tables in Markdown, all figures in JSON, and a plot."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from examples.proof.measure import Accuracy, mean
from swift_kd_plugin.data.files import write_atomically

Page = dict[str, Any]
TITLES = {"sft": "SFT on gold", "seqkd": "SeqKD", "skd": "SKD", "gkd_jsd": "GKD, jsd", "gkd_rkl": "GKD, reverse KL"}
BEST_SHARE, LEAST_SHARE, MOST_FORGOTTEN, MOST_BEFORE = 0.98, 0.95, 0.02, 0.15
SUPERVISED_OR_ON_POLICY = ("skd", "gkd_jsd", "gkd_rkl")
MOST_APART = 0.03


def write_page(page: Page, folder: Path) -> str:
    """Writes proof.json, proof.md and proof.png; returns the Markdown."""
    write_atomically(folder / "proof.json", json.dumps(page, indent=1) + "\n")
    tables = [accuracy_table(page), keeping_table(page), cost_table(page), rates_table(page)]
    made = ", ".join([page["date"], *(f"{name} {version}" for name, version in page["versions"].items())])
    text = "\n\n".join([*tables, made]) + "\n"
    write_atomically(folder / "proof.md", text)
    plot(page, folder / "proof.png")
    return text


def names_of(page: Page, key: str) -> list[str]:
    return list(dict.fromkeys(result[key] for result in page["results"]))


def chosen(page: Page, scenario: str, method: str, figure: str) -> list[Accuracy]:
    """A figure of the chosen checkpoint for each seed."""
    runs = [r for r in page["results"] if (r["scenario"], r["method"]) == (scenario, method)]
    return [run["chosen"][figure] for run in runs]


def teachers(page: Page, scenario: str, figure: str) -> list[Accuracy]:
    return [one[figure] for one in page["teachers"] if one["scenario"] == scenario]


def average(shares: list[Accuracy]) -> float:
    """Over tasks, then seeds."""
    return sum(map(mean, shares)) / len(shares)


def shown(shares: list[Accuracy]) -> str:
    """The average, and by task."""
    tasks = "/".join(f"{sum(one[task] for one in shares) / len(shares):.2f}" for task in shares[0])
    return f"{average(shares):.3f} ({tasks})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_table(page: Page) -> str:
    """Held-out questions without the book, the mean of both tasks (say/sum), the mean of all seeds."""
    columns = {name: (name, "test") for name in names_of(page, "scenario")}
    for name in names_of(page, "scenario"):
        if teachers(page, name, "test") != teachers(page, name, "taught"):
            columns[f"{name}, scored by the teacher's book"] = (name, "taught")
    rows = [["before, without the book"], ["teacher, with its book"]]
    rows += [[TITLES[method]] for method in names_of(page, "method")]
    for scenario, figure in columns.values():
        rows[0].append(shown(teachers(page, scenario, "before")) if figure == "test" else "")
        rows[1].append(shown(teachers(page, scenario, figure)))
        for row, method in zip(rows[2:], names_of(page, "method"), strict=True):
            row.append(shown(chosen(page, scenario, method, figure)))
    return table(["held-out questions, right", *columns], rows)


def keeping_table(page: Page) -> str:
    """What else the student can do: other books in view, and its own book in view again."""
    scenarios = names_of(page, "scenario")
    rows = [["before, other books", *(shown(teachers(page, name, "others")) for name in scenarios)]]
    for figure, book in (("others", "other books"), ("again", "the book again")):
        for method in names_of(page, "method"):
            shares = (shown(chosen(page, name, method, figure)) for name in scenarios)
            rows.append([f"{TITLES[method]}, {book}", *shares])
    return table(["with a book in view, right", *scenarios], rows)


def cost_table(page: Page) -> str:
    """Means of all runs of a method."""
    rows = []
    for method in names_of(page, "method"):
        runs = [run for run in page["results"] if run["method"] == method]
        figures = (
            sum(run["chosen"]["step"] for run in runs) / len(runs),
            sum(run["tokens"] for run in runs) / len(runs),
            sum(run["seconds"] for run in runs) / len(runs),
        )
        rows.append([TITLES[method], f"{page['rates'][method]:g}", *(f"{figure:,.0f}" for figure in figures)])
    return table(["", "learning rate", "chosen step", "student's tokens until then", "seconds of the whole run"], rows)


def rates_table(page: Page) -> str:
    """How the rate was chosen, and plain PyTorch with the same settings and seeds after the same number of steps."""
    rows = []
    for method in names_of(page, "method"):
        tried = {run["rate"]: run["chosen"] for run in page["tried"] if run["method"] == method}
        said = "; ".join(
            f"{rate:g}: {mean(point['validation']):.3f}, {mean(point['others_validation']):.3f}"
            for rate, point in tried.items()
        )
        rows.append([TITLES[method], said, *map(shown, last_and_plain(page, method))])
    head = ["", "validation by rate: own book, others", "`megatron rlhf`, last step", "plain PyTorch, last step"]
    return table(head, rows)


def last_and_plain(page: Page, method: str) -> tuple[list[Accuracy], list[Accuracy]]:
    """Test accuracy after the last step of the runs that plain PyTorch repeats, and of plain PyTorch."""
    plain = {(one["scenario"], one["seed"]): one["test"] for one in page["plain"] if one["method"] == method}
    runs = [run for run in page["results"] if run["method"] == method and (run["scenario"], run["seed"]) in plain]
    return [run["last"] for run in runs], list(plain.values())


def missed_targets(page: Page) -> list[str]:
    """A sentence for each target that is not met."""
    missed = []
    for scenario in names_of(page, "scenario"):
        before, teacher = (average(teachers(page, scenario, figure)) for figure in ("before", "test"))
        others = average(teachers(page, scenario, "others"))
        if before > MOST_BEFORE:
            missed.append(f"{scenario}: {before:.3f} before distillation, above {MOST_BEFORE}")
        methods = names_of(page, "method")
        shares = {method: average(chosen(page, scenario, method, "test")) / teacher for method in methods}
        if max(shares.values()) < BEST_SHARE:
            missed.append(
                f"{scenario}: the best method has {max(shares.values()):.3f} of its teacher, below {BEST_SHARE}"
            )
        for method, share in shares.items():
            forgotten = others - average(chosen(page, scenario, method, "others"))
            if method in SUPERVISED_OR_ON_POLICY and share < LEAST_SHARE:
                missed.append(f"{scenario}: {TITLES[method]} has {share:.3f} of its teacher, below {LEAST_SHARE}")
            if forgotten > MOST_FORGOTTEN:
                missed.append(f"{scenario}: {TITLES[method]} forgot {forgotten:.3f} on other books")
    for method in names_of(page, "method"):
        last, plain = map(average, last_and_plain(page, method))
        if abs(last - plain) > MOST_APART:
            missed.append(f"{TITLES[method]} and plain PyTorch are {abs(last - plain):.3f} apart")
    return missed


def plot(page: Page, file: Path) -> None:
    """Two panels: what the student knows without the book, and what it still can do with other books."""
    scenarios = names_of(page, "scenario")
    figure, (known, kept) = plt.subplots(2, 1, figsize=(10, 7), sharex=True)
    draw_bars(known, page, "test", "held-out questions, without the book")
    draw_levels(known, page, "test", label="teacher, with its book", colors="black", linestyles="dashed")
    draw_levels(known, page, "before", label="before", colors="grey")
    draw_bars(kept, page, "others", "other books in view (not forgotten)")
    draw_levels(kept, page, "others", label="before", colors="grey")
    kept.set_xticks(range(len(scenarios)), [f"teacher: {name}" for name in scenarios])
    for axis in (known, kept):
        axis.legend(ncols=1, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_bars(axis: Axes, page: Page, of: str, title: str) -> None:
    """A bar for each teacher and method; whiskers are the least and the most of the seeds."""
    scenarios, methods = names_of(page, "scenario"), names_of(page, "method")
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        seeds = [[mean(one) for one in chosen(page, scenario, method, of)] for scenario in scenarios]
        heights = [sum(one) / len(one) for one in seeds]
        below = [height - min(one) for height, one in zip(heights, seeds, strict=True)]
        above = [max(one) - height for height, one in zip(heights, seeds, strict=True)]
        places = [place + (number - (len(methods) - 1) / 2) * width for place in range(len(scenarios))]
        axis.bar(places, heights, width * 0.92, yerr=[below, above], capsize=2, label=TITLES[method])
    axis.set(ylabel="share of right answers", ylim=(0, 1.05), title=title)


def draw_levels(axis: Axes, page: Page, of: str, **how: str) -> None:
    """A line across the bars of each teacher."""
    levels = [average(teachers(page, scenario, of)) for scenario in names_of(page, "scenario")]
    places = range(len(levels))
    axis.hlines(levels, [place - 0.45 for place in places], [place + 0.45 for place in places], **how)
