"""Random logits of students and teachers, the same in every process."""

import torch

F64 = torch.float64


def random_logits(*shape, seed=0, spread=2.0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, dtype=F64, generator=generator) * spread).to(dtype)


def random_pair(tokens, vocab, seed=0, spread=2.0, dtype=F64):
    """Student and teacher logits [tokens, vocab] and a gradient from above [tokens]."""
    student = random_logits(tokens, vocab, seed=10 * seed + 1, spread=spread, dtype=dtype)
    teacher = random_logits(tokens, vocab, seed=10 * seed + 2, spread=spread, dtype=dtype)
    return student, teacher, random_logits(tokens, seed=10 * seed + 3, spread=1.0)


def random_topk(tokens, vocab, k, seed=0, temperature=1.0, dtype=F64):
    """Log-probabilities and ids [tokens, k] of a random teacher's k most probable tokens, in no order."""
    teacher = random_logits(tokens, vocab, seed=10 * seed + 2)
    log_probs, ids = (teacher / temperature).log_softmax(-1).topk(k, dim=-1)
    order = random_logits(tokens, k, seed=10 * seed + 4).argsort(-1)
    return log_probs.gather(1, order).to(dtype), ids.gather(1, order)
