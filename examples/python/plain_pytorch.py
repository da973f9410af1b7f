"""A student learns what its teacher reads in the prompt, in plain PyTorch: `python -m examples.python.plain_pytorch`

Both begin as `examples/base_model`. The teacher reads a code book and answers by it; the student sees the question
alone. It takes 20 seconds on a laptop.
"""

import argparse
import random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.python.views import MODEL, collate, read_pairs
from swift_kd_plugin.losses import kd_loss


def train(steps: int, batch_size: int = 16, micro_batches: int = 2) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    student = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).train()
    teacher = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    pairs, losses = read_pairs(), []
    random.Random(0).shuffle(pairs)
    for step in range(steps):
        chosen = [pairs[(step * batch_size + one) % len(pairs)] for one in range(batch_size)]
        parts = [collate(tokenizer, chosen[part::micro_batches]) for part in range(micro_batches)]
        counted = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in parts)
        total = 0.0
        for batch in parts:
            with torch.no_grad():
                teacher_logits = teacher(batch["teacher_input_ids"], batch["teacher_attention_mask"]).logits
            loss = kd_loss(
                student(batch["input_ids"], batch["attention_mask"]).logits,
                teacher_logits,
                batch["labels"],
                teacher_labels=batch["teacher_labels"],
                divergence="forward_kl",
                num_items_in_batch=counted,  # of all micro-batches, so that every token counts the same
            )
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        print(f"step {step + 1}: loss {total:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    train(parser.parse_args().steps)
