"""Exact-match accuracy of a checkpoint on the held-out questions, by greedy generation with transformers.

python -m examples.quickstart.evaluate CHECKPOINT                    # without the experience
python -m examples.quickstart.evaluate CHECKPOINT --with-experience  # the code book stands in the system prompt
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from examples.quickstart.code_book import Messages, final_answer

TEST_FILE = Path(__file__).resolve().parents[1] / "data" / "test.jsonl"
MAX_NEW_TOKENS = 8
MAX_NEW_TOKENS_THINKING = 24

Row = dict[str, Any]


def load_checkpoint(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in fp32 and its tokenizer, both on the CPU."""
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json, so it is not a Hugging Face checkpoint.")
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


def read_rows(path: Path) -> list[Row]:
    """The rows of a jsonl file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    *,
    thinking: bool = False,
    batch_size: int = 128,
) -> list[str]:
    """One greedy response per prompt, special tokens removed."""
    responses: list[str] = []
    for start in range(0, len(prompts), batch_size):
        texts = tokenizer.apply_chat_template(
            list(prompts[start : start + batch_size]),
            add_generation_prompt=True,
            enable_thinking=thinking,
            tokenize=False,
        )
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS_THINKING if thinking else MAX_NEW_TOKENS,
            do_sample=False,
        )
        new_tokens = tokens[:, batch["input_ids"].shape[1] :]
        responses += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return responses


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    with_experience: bool = False,
    thinking: bool = False,
) -> dict[str, float]:
    """The share of exactly right answers of each task; `rows` are those of test.jsonl."""
    view = "teacher_messages" if with_experience else "messages"
    responses = generate(model, tokenizer, [row[view] for row in rows], thinking=thinking)
    hits: dict[str, list[bool]] = {}
    for row, response in zip(rows, responses, strict=True):
        hits.setdefault(row["task"], []).append(final_answer(response) == row["gold"])
    return {task: sum(right) / len(right) for task, right in hits.items()}


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint.")],
    test: Annotated[Path, typer.Option(help="Held-out questions, as examples/data/test.jsonl.")] = TEST_FILE,
    with_experience: Annotated[bool, typer.Option(help="Ask with the experience in the system prompt.")] = False,
    thinking: Annotated[bool, typer.Option(help="Let the model think first.")] = False,
) -> None:
    """Print the accuracy of CHECKPOINT on each task as one line of JSON."""
    try:
        model, tokenizer = load_checkpoint(checkpoint)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    rows = read_rows(test)
    result = accuracy(model, tokenizer, rows, with_experience=with_experience, thinking=thinking)
    print(json.dumps({task: round(share, 4) for task, share in result.items()}))


if __name__ == "__main__":
    typer.run(main)
