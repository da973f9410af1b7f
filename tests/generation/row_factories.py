"""Rows as the data room makes them, for tests of what is done with responses."""

from typing import Any

from swift_kd_plugin.data.rows import Row
from swift_kd_plugin.generation.judging import Sample
from swift_kd_plugin.generation.tasks import PromptTask


def make_row(question: str = "2 + 2?", response: str | None = None, **more: Any) -> Row:
    messages = [{"role": "user", "content": question}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return {"messages": messages, "kd_source": "a.jsonl", "kd_row": 7, **more}


def make_task(index: int = 0, **more: Any) -> PromptTask:
    return PromptTask(index, make_row(**more))


def make_sample(text: str = "4", tokens: int = 3, finish_reason: str = "stop", **more: Any) -> Sample:
    return Sample(text, tokens, finish_reason, **more)
