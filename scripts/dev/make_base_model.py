"""Trains examples/base_model from nothing: a model that answers code-book questions from a book in its context.

Every batch draws fresh random books, so the model learns to look entries up and never a particular book. A curriculum
lengthens the books from 3 to 16 letters as its accuracy allows. 15 in 100 samples have no book and a random answer,
so that without an experience the model guesses and does not fall silent.

python -m scripts.dev.make_base_model --out /tmp/base_model    # 3,000 steps, about 7 minutes on one core
"""

import json
import math
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.quickstart.code_book import DIGITS, KEYS, TASKS, answer, prompt, random_book, random_question, thought
from examples.quickstart.evaluate import accuracy, generate
from scripts.dev.tiny_qwen3 import ENTRIES, MAX_TOKENS, build_model, build_tokenizer

REPO = Path(__file__).resolve().parents[2]
START_LETTERS, MOST_LETTERS, WARM_LETTERS = 3, 16, 6
RAISE_AT_ACCURACY = 0.93
WARMUP_STEPS = 50
LOG_EVERY = 50
REPORT_QUESTIONS = 400


@dataclass
class Sample:
    """One training text: the rendered prompt, the response, and whether a book was in view."""

    prompt: str
    response: str
    has_book: bool


@dataclass
class Curriculum:
    """How long the books are. While warm, the first phase, samples mostly think and nearly always have a book."""

    letters: int = START_LETTERS
    warm: bool = True
    digit_accuracy: float = 0.0

    def update(self, digit_accuracy: float) -> None:
        """Takes a step's accuracy on the digits of samples with a book; longer books follow once it is high."""
        self.digit_accuracy = 0.95 * self.digit_accuracy + 0.05 * digit_accuracy
        if self.digit_accuracy > RAISE_AT_ACCURACY and self.letters < MOST_LETTERS:
            self.letters += 1
            self.digit_accuracy -= 0.04
        if self.letters >= WARM_LETTERS:
            self.warm = False


@dataclass
class Log:
    """What is written to train_log.jsonl, one row per LOG_EVERY steps."""

    started: float = field(default_factory=time.monotonic)
    tokens: int = 0
    smooth_loss: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def step(self, loss: float, tokens: int) -> None:
        self.tokens += tokens
        self.smooth_loss = loss if self.smooth_loss is None else 0.98 * self.smooth_loss + 0.02 * loss

    def write(self, step: int, rate: float, curriculum: Curriculum) -> None:
        row = {
            "step": step,
            "loss": round(self.smooth_loss or 0.0, 4),
            "lr": round(rate, 7),
            **asdict(curriculum),
            "tokens": self.tokens,
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self.rows.append(row)
        print(json.dumps(row), flush=True)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], thinking: bool) -> str:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=thinking, tokenize=False)


def draw(rng: random.Random, tokenizer: PreTrainedTokenizerBase, curriculum: Curriculum) -> Sample:
    """One random sample; the order of the draws is part of the recipe."""
    thinking = rng.random() < (0.7 if curriculum.warm else 0.4)
    task = "sum" if rng.random() < 0.3 else "say"
    has_book = rng.random() >= (0.03 if curriculum.warm else 0.15)
    if has_book:
        fewest = 2 if rng.random() < 0.3 else max(2, curriculum.letters // 2)
        book = random_book(rng, rng.randint(fewest, curriculum.letters))
    else:
        book = random_book(rng, len(KEYS))
    question = random_question(rng, book, task)
    response = answer(book, question) + tokenizer.eos_token
    if thinking:
        response = f"<think>\n{thought(book, question)}\n</think>\n\n{response}"
    return Sample(render(tokenizer, prompt(question, book if has_book else None), thinking), response, has_book)


def collate(tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids [B, L], and the mask [B, L-1] of positions whose next token belongs to a response."""
    prompts = tokenizer([sample.prompt for sample in samples])["input_ids"]
    responses = tokenizer([sample.response for sample in samples])["input_ids"]
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    if longest > MAX_TOKENS:
        raise ValueError(f"A sample has {longest} tokens; the model takes {MAX_TOKENS}.")
    ids = torch.full((len(samples), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(samples), longest - 1, dtype=torch.bool)
    for row, (p, r) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : len(p) + len(r)] = torch.tensor(p + r)
        mask[row, len(p) - 1 : len(p) + len(r) - 1] = True
    return ids, mask


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine that stops at a twentieth of the peak."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * max(0.05, 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, steps: int, batch: int, peak_lr: float, seed: int
) -> list[dict[str, Any]]:
    """Trains `model` in place; returns the log."""
    rng, curriculum, log = random.Random(seed + 1), Curriculum(), Log()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    is_digit = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    is_digit[tokenizer.convert_tokens_to_ids(DIGITS + ENTRIES)] = True
    model.train()
    for step in range(steps):
        rate = optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak_lr)
        samples = [draw(rng, tokenizer, curriculum) for _ in range(batch)]
        ids, mask = collate(tokenizer, samples)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][mask]
        logits, targets = model.lm_head(hidden), ids[:, 1:][mask]
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with_book = torch.tensor([sample.has_book for sample in samples])[:, None].expand_as(mask)[mask]
        right = (logits.detach().argmax(-1) == targets)[with_book & is_digit[targets]]
        if right.numel():
            curriculum.update(right.float().mean().item())
        log.step(loss.item(), ids.numel())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            log.write(step + 1, rate, curriculum)
    return log.rows


def random_rows(rng: random.Random, task: str, count: int) -> list[dict[str, Any]]:
    """Questions over fresh books, in the form of test.jsonl."""
    rows = []
    for _ in range(count):
        book = random_book(rng, MOST_LETTERS)
        question = random_question(rng, book, task)
        views = {"messages": prompt(question), "teacher_messages": prompt(question, book)}
        rows.append({"task": task, "gold": answer(book, question), **views})
    return rows


def report(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Accuracy with a book (non-thinking and thinking) and without, on random books of 16 letters."""
    model.eval()
    result: dict[str, float] = {}
    for task in TASKS:
        rows = random_rows(random.Random(f"report {task}"), task, REPORT_QUESTIONS)
        result[task] = accuracy(model, tokenizer, rows, with_experience=True)[task]
        result[f"{task}_think"] = accuracy(model, tokenizer, rows, with_experience=True, thinking=True)[task]
        result[f"{task}_noctx"] = accuracy(model, tokenizer, rows)[task]
        guesses = generate(model, tokenizer, [row["messages"] for row in rows])
        digits = [a == b for row, g in zip(rows, guesses, strict=True) for a, b in zip(row["gold"], g, strict=False)]
        result[f"{task}_noctx_perdigit"] = round(sum(digits) / sum(len(row["gold"]) for row in rows), 4)
    return result


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model, the tokenizer, report.json and train_log.jsonl.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed of the weights; the data uses the next one.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more than one is slower for so small a model.")] = 1,
) -> None:
    """Pretrain the quickstart's base model from scratch."""
    if out.resolve() == REPO / "examples" / "base_model":
        raise typer.BadParameter("train into another folder, then replace examples/base_model by hand.")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    rows = train(model, tokenizer, steps=steps, batch=batch, peak_lr=lr, seed=seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = report(model, tokenizer)
    (out / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
