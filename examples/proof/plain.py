"""The same distillation in plain PyTorch: no Megatron, no ms-swift, no plugin, one device, fp32.

It shares rows, batch size, rate, schedule and optimizer with the runs of `megatron rlhf`, and nothing of their code;
where both disagree, one of them is wrong.
"""

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.proof.scenarios import DIRECT, Row

CLIP, BETAS, WEIGHT_DECAY = 1.0, (0.9, 0.95), 0.1
LONGEST_ANSWER = 8


@dataclass(frozen=True)
class Settings:
    """What the runs of `megatron rlhf` are given as flags."""

    batch: int
    steps: int
    rate: float
    warmup: float
    least: float
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Megatron's cosine: linear warm-up, then down to `least`; the first step is 1."""
        warm = self.warmup * self.steps
        if step <= warm:
            return self.rate * step / warm
        share = (step - warm) / (self.steps - warm)
        return self.least + 0.5 * (1 + math.cos(math.pi * share)) * (self.rate - self.least)


@dataclass
class Batch:
    """Token ids [B, L], right-padded, and where the next token belongs to the response [B, L-1]."""

    ids: torch.Tensor
    mask: torch.Tensor


class Renderer:
    """Rows as token ids in the view of the student or of the teacher."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def prompt(self, row: Row, side: str) -> list[int]:
        messages, settings = row["messages"][:-1], row.get("chat_template_kwargs", DIRECT)
        thought = ""
        if side == "teacher":
            messages = row.get("teacher_messages") or messages
            settings = row.get("teacher_chat_template_kwargs") or settings
            if row.get("teacher_thought") is not None:
                thought = f"<think>\n{row['teacher_thought']}\n</think>\n\n"
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **settings)
        return self.tokenizer(text + thought)["input_ids"]

    def response(self, row: Row) -> list[int]:
        """As ms-swift writes and trains it: with the end of the turn and the newline behind it."""
        return self.tokenizer(f"{row['messages'][-1]['content']}{self.tokenizer.eos_token}\n")["input_ids"]

    def batch(self, prompts: list[list[int]], responses: list[list[int]]) -> Batch:
        longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
        ids = torch.full((len(prompts), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(prompts), longest - 1, dtype=torch.bool)
        for number, (p, r) in enumerate(zip(prompts, responses, strict=True)):
            ids[number, : len(p) + len(r)] = torch.tensor(p + r)
            mask[number, len(p) - 1 : len(p) + len(r) - 1] = True
        return Batch(ids, mask)


def divergence(student: torch.Tensor, teacher: torch.Tensor, method: str) -> torch.Tensor:
    """Mean over tokens of [N, V] logits: forward KL, reverse KL, or Jensen-Shannon with beta 0.5."""
    s, t = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    if method == "skd":
        return (t.exp() * (t - s)).sum(-1).mean()
    if method == "gkd_rkl":
        return (s.exp() * (s - t)).sum(-1).mean()
    m = torch.logaddexp(t, s) - math.log(2)
    return 0.5 * ((t.exp() * (t - m)).sum(-1) + (s.exp() * (s - m)).sum(-1)).mean()


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], method: str, settings: Settings
) -> Iterator[tuple[int, PreTrainedModel]]:
    """Trains a copy of the model, which is also the teacher; yields it after each step, counted from 1."""
    torch.manual_seed(settings.seed)
    student, teacher, renderer = copy.deepcopy(model), model, Renderer(tokenizer)
    optimizer = torch.optim.AdamW(student.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
    order = drawn(rows, random.Random(settings.seed))
    for step in range(1, settings.steps + 1):
        chosen = [next(order) for _ in range(settings.batch)]
        loss = loss_of(student, teacher, renderer, chosen, method)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        yield step, student


def drawn(rows: list[Row], state: random.Random) -> Iterator[Row]:
    while True:
        yield from state.sample(rows, len(rows))


def loss_of(student, teacher, renderer: Renderer, rows: list[Row], method: str) -> torch.Tensor:
    prompts = [renderer.prompt(row, "student") for row in rows]
    if method.startswith("gkd"):
        responses = sampled(student, renderer.tokenizer, prompts)
    else:
        responses = [renderer.response(row) for row in rows]
    batch = renderer.batch(prompts, responses)
    logits = logits_of(student, batch)
    if method in ("sft", "seqkd"):
        return F.cross_entropy(logits, batch.ids[:, 1:][batch.mask])
    seen = renderer.batch([renderer.prompt(row, "teacher") for row in rows], responses)
    with torch.no_grad():
        judged = logits_of(teacher, seen)
    return divergence(logits, judged, method)


def logits_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """[N, V]: those that predict the tokens of the responses, row by row."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1][batch.mask]
    return model.lm_head(hidden).float()


@torch.no_grad()
def sampled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> list[list[int]]:
    """One response for each prompt at temperature 1, with its end of turn if it has one."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    written = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=LONGEST_ANSWER
    )
    responses = []
    for row in written[:, longest:].tolist():
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        responses.append(row[:end])
    return responses
