"""Whether a teacher server still has the weights whose rows are kept: it tells the name of its model and no more.

What it says is compared with what it said of a fixed text, which each shard holds, and of some samples that a run finds
in the cache: a teacher that was trained further shows on the rows that it was trained for before it does elsewhere.
"""

import math

import torch

from swift_kd_plugin.serving.model_server import TeacherServer
from swift_kd_plugin.serving.scoring_routes import ServerScores

FIXED_TEXT = "The teacher says of this text what it always said: 2 + 3 = 5, and 7 * 6 = 42."
FIXED_TOKENS, FIXED_TOPK = 24, 8
COMPARED = 4  # samples, of each server and by each rank that asks it
ROWS = 256  # of a sample, the first
# nats; SmolLM2-135M in bf16 is 0.03 from itself in fp32 on the fixed text, and 0.19 with 3 % noise on its weights. The
# model of the examples is 0.01 from itself on answers, and 0.06 to 0.4 after ten steps of training (KL 0.09).
MOST_APART = 0.1
LEAST = 1e-4  # probability: what rounding leaves of a row's rest
Told = list[dict[str, float]]
"""Of each token the most probable ids and their log-probabilities."""


def say_fixed_text(server: TeacherServer, template) -> Told:
    """What a server says of the fixed text."""
    ids = template.tokenizer.encode(FIXED_TEXT, add_special_tokens=False)[:FIXED_TOKENS]
    return told(server.score_alone(ids), FIXED_TOPK)


def told(scores: ServerScores, topk: int | None = None) -> Told:
    """Of the first tokens what has a probability."""
    rows = zip(scores.ids[:ROWS].tolist(), scores.log_probs[:ROWS].tolist(), strict=True)
    pairs = [list(zip(*row, strict=True))[:topk] for row in rows]
    return [{str(token): round(value, 4) for token, value in row if value > -math.inf} for row in pairs]


def distance(before: Told, now: Told) -> float:
    """How far log-probabilities are apart, weighted by the probability that they had, over all positions.

    A token that is no longer told counts as if it had the probability of the last one that is, or all that those leave,
    whichever is less.
    """
    if len(before) != len(now):
        return math.inf
    apart = []
    for old, new in zip(before, now, strict=True):
        values = torch.tensor(list(old.values()), dtype=torch.float64)
        rest = math.log(max(1 - sum(map(math.exp, new.values())), LEAST))
        least = min([rest, *new.values()])
        other = torch.tensor([new.get(token, least) for token in old], dtype=torch.float64)
        apart.append((values.softmax(0) * (values - other).abs()).sum())
    return torch.stack(apart).mean().item()
