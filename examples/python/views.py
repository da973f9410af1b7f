"""Batches of the example's rows as both models read them: the teacher with the code book in its prompt."""

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

EXAMPLES = Path(__file__).resolve().parents[1]
MODEL = EXAMPLES / "base_model"
IGNORED = -100


def read_pairs() -> list[tuple[list[dict], list[dict]]]:
    """The turns that the student and the teacher read of each question, both with the teacher's answer."""
    with (EXAMPLES / "data" / "exp.jsonl").open(encoding="utf-8") as lines:
        told = [json.loads(line)["messages"] for line in lines]
    return [([turn for turn in turns if turn["role"] != "system"], turns) for turns in told]


def encode(tokenizer, turns: list[dict]) -> tuple[Tensor, Tensor]:
    """Ids and labels of a conversation, of which the last answer counts, [length] each."""
    settings = {"tokenize": False, "enable_thinking": False}
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, **settings)
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    answer = [*tokenizer(turns[-1]["content"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return torch.tensor(before + answer), torch.tensor([IGNORED] * len(before) + answer)


def collate(tokenizer, pairs: list[tuple[list[dict], list[dict]]]) -> dict[str, Tensor]:
    """What the models and `kd_loss` take, [batch, longest]: the teacher's under names that begin with `teacher_`."""
    batch = {}
    for prefix, views in zip(("", "teacher_"), zip(*pairs, strict=True), strict=True):
        ids, labels = zip(*(encode(tokenizer, turns) for turns in views), strict=True)
        padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        rows = {"input_ids": ids, "attention_mask": [torch.ones_like(one) for one in ids], "labels": labels}
        batch |= {prefix + name: pad_sequence(rows[name], True, padding[name]) for name in rows}
    return batch
