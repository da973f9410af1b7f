"""The proof's last page: tables in Markdown, all figures in JSON, and a plot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from measure import Accuracy, mean

Page = dict[str, Any]
TITLES = {"sft": "SFT on gold", "seqkd": "SeqKD", "skd": "SKD", "gkd_jsd": "GKD, jsd", "gkd_rkl": "GKD, reverse KL"}
BEST_SHARE, LEAST_SHARE, MOST_FORGOTTEN, MOST_BEFORE = 0.98, 0.95, 0.02, 0.15
SUPERVISED_OR_ON_POLICY = ("skd", "gkd_jsd", "gkd_rkl")
MOST_APART = 0.03


def write_page(page: Page, folder: Path) -> str:
    """Writes proof.json, proof.md and proof.png; returns the Markdown."""
    (folder / "proof.json").write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join([accuracy_table(page), keeping_table(page), cost_table(page), rates_table(page)]) + "\n"
    (folder / "proof.md").write_text(text, encoding="utf-8")
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


def by_method(page: Page, title: str, cell: Callable[[str, str], str]) -> list[list[str]]:
    scenarios = names_of(page, "scenario")
    return [
        [f"{TITLES[method]}{title}", *(cell(scenario, method) for scenario in scenarios)]
        for method in names_of(page, "method")
    ]


def accuracy_table(page: Page) -> str:
    """Held-out questions without the book, the mean of both tasks (say/sum), the mean of all seeds."""
    scenarios = names_of(page, "scenario")
    head = ["held-out questions, right", *scenarios]
    rows = [["before, without the book", *(shown(teachers(page, name, "before")) for name in scenarios)]]
    rows += [["teacher, with its book", *(shown(teachers(page, name, "teacher")) for name in scenarios)]]
    rows += by_method(page, "", lambda scenario, method: shown(chosen(page, scenario, method, "test")))
    rows += by_method(
        page, ", as its teacher says", lambda scenario, method: shown(chosen(page, scenario, method, "taught"))
    )
    return table(head, rows)


def keeping_table(page: Page) -> str:
    """What else the student can do: other books in view, and its own book in view again."""
    scenarios = names_of(page, "scenario")
    rows = [["before, other books", *(shown(teachers(page, name, "others")) for name in scenarios)]]
    rows += by_method(page, ", other books", lambda scenario, method: shown(chosen(page, scenario, method, "others")))
    rows += by_method(page, ", the book again", lambda scenario, method: shown(chosen(page, scenario, method, "again")))
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
    """How the rate was chosen, and plain PyTorch with the same settings after the same number of steps."""
    rows = []
    for method in names_of(page, "method"):
        tried = {run["rate"]: run for run in page["tried"] if run["method"] == method}
        said = ", ".join(f"{rate:g}: {mean(run['chosen']['validation']):.3f}" for rate, run in tried.items())
        plain = next(one for one in page["plain"] if one["method"] == method)
        last = last_point(page, method)
        rows.append([TITLES[method], said, shown([last]), shown([plain["test"]])])
    head = ["", "validation by rate", "`megatron rlhf`, last step", "plain PyTorch, last step"]
    return table(head, rows)


def last_point(page: Page, method: str) -> Accuracy:
    """Test accuracy after the last step of the run that plain PyTorch repeats."""
    rate = page["rates"][method]
    return next(run["last"] for run in page["tried"] if (run["method"], run["rate"]) == (method, rate))


def missed_targets(page: Page) -> list[str]:
    """A sentence for each target that is not met."""
    missed = []
    for scenario in names_of(page, "scenario"):
        before, teacher = (average(teachers(page, scenario, figure)) for figure in ("before", "teacher"))
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
    for one in page["plain"]:
        apart = abs(mean(one["test"]) - mean(last_point(page, one["method"])))
        if apart > MOST_APART:
            missed.append(f"{TITLES[one['method']]} and plain PyTorch are {apart:.3f} apart")
    return missed


def plot(page: Page, file: Path) -> None:
    """Bars for each teacher and method; whiskers are the least and the most of the seeds."""
    scenarios, methods = names_of(page, "scenario"), names_of(page, "method")
    figure, axes = plt.subplots(2, 1, figsize=(10, 7), sharex=True)
    width = 0.8 / len(methods)
    for axis, kind, title in zip(
        axes,
        ("test", "others"),
        ("held-out questions, without the book", "other books in view (not forgotten)"),
        strict=True,
    ):
        for number, method in enumerate(methods):
            places = [place + (number - (len(methods) - 1) / 2) * width for place in range(len(scenarios))]
            seeds = [[mean(one) for one in chosen(page, scenario, method, kind)] for scenario in scenarios]
            heights = [sum(one) / len(one) for one in seeds]
            spread = [
                [h - min(s) for h, s in zip(heights, seeds, strict=True)],
                [max(s) - h for h, s in zip(heights, seeds, strict=True)],
            ]
            axis.bar(places, heights, width * 0.92, yerr=spread, capsize=2, label=TITLES[method])
        reference = "teacher" if kind == "test" else "others"
        for place, scenario in enumerate(scenarios):
            level = average(teachers(page, scenario, reference))
            label = ("teacher, with its book" if kind == "test" else "before") if place == 0 else None
            axis.hlines(level, place - 0.45, place + 0.45, colors="black", linestyles="dashed", label=label)
            if kind == "test":
                before = average(teachers(page, scenario, "before"))
                axis.hlines(before, place - 0.45, place + 0.45, colors="grey", label="before" if place == 0 else None)
        axis.set(ylabel="share of right answers", ylim=(0, 1.08), title=title)
        axis.legend(ncols=4, fontsize=8, loc="lower right")
    axes[1].set_xticks(range(len(scenarios)), [f"teacher: {name}" for name in scenarios])
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
