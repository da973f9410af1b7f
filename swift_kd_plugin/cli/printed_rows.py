"""Rows on the screen: both views of each as turns or as tokens, with what is trained and what only one view has."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from swift_kd_plugin.data.rows import Row, text_of, without_response
from swift_kd_plugin.data.trained_turns import turn_weights
from swift_kd_plugin.data.views import has_teacher_view, teacher_view

TRAINED, WEIGHTED, OWN, CONTEXT = "bold green", "green", "black on yellow", "dim"
# Where there is no colour, signs say the same.
SIGNS = {TRAINED: ("«", "»"), WEIGHTED: ("‹", "›"), OWN: ("⟦", "⟧"), CONTEXT: ("", "")}


def print_row(row: Row, template: Any, console: Console, bar: str, loss_scale: str) -> None:
    """Both views, as tokens if there is a template."""
    if template is None:
        for view, turns in text_views(row, loss_scale).items():
            console.print(Text(view, "bold underline"))
            for role, text, style in turns:
                console.print(Text(f"{role}: ", "cyan").append_text(marked(text, style, console)))
        return
    from swift_kd_plugin.host.samples.preview import preview

    for view, pieces in preview(row, template).items():
        trained = sum(len(piece.ids) for piece in pieces if piece.weight)
        count = sum(len(piece.ids) for piece in pieces)
        head = f"{view}: {count} tokens, {trained} of them trained on{weights_of(pieces)}"
        console.print(Text(head, "bold underline"))
        text = Text()
        for style, group in groupby(pieces, key=style_of):
            text.append_text(marked(bar.join(piece.text for piece in group), style, console))
            text.append(bar)
        console.print(text)


def weights_of(pieces: Sequence[Any]) -> str:
    """How many tokens have which weight, where one has another than 1."""
    counts = Counter(dict.fromkeys(sorted({piece.weight for piece in pieces if piece.weight}), 0))
    for piece in pieces:
        if piece.weight:
            counts[piece.weight] += len(piece.ids)
    if set(counts) <= {1}:
        return ""
    return " (" + ", ".join(f"{count} with weight {weight:g}" for weight, count in counts.items()) + ")"


def style_of(piece) -> str:
    if piece.weight:
        return TRAINED if piece.weight == 1 else WEIGHTED
    return OWN if piece.own else CONTEXT


def style_of_weight(weight: float) -> str:
    return CONTEXT if not weight else TRAINED if weight == 1 else WEIGHTED


def marked(text: str, style: str, console: Console) -> Text:
    if console.is_terminal:
        return Text(text, style)
    opening, closing = SIGNS[style]
    return Text(f"{opening}{text}{closing}")


def text_views(row: Row, loss_scale: str = "last_round") -> dict[str, list[tuple[str, str, str]]]:
    """Role, text and style of each turn of each view, without a template; the role says a weight that is not 1."""
    student = [(turn["role"], text_of(turn["content"])) for turn in row["messages"]]
    weights = turn_weights(row["messages"], loss_scale)
    prompt = without_response(row["messages"])
    turns = [
        (role if weight in (0, 1) else f"{role} (weight {weight:g})", text, style_of_weight(weight))
        for (role, text), weight in zip(student, weights, strict=True)
    ]
    response, shown = turns[len(prompt) :], {"student": turns}
    if has_teacher_view(row):
        turns = [(turn["role"], text_of(turn["content"])) for turn in teacher_view(row).messages]
        thought = [("thought", row["teacher_thought"], OWN)] if row.get("teacher_thought") else []
        view = [(role, text, CONTEXT if (role, text) in student else OWN) for role, text in turns]
        shown["teacher"] = [*view, *thought, *response]
    return shown
