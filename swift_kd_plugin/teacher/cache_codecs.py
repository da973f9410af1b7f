"""How a teacher's rows are stored: as values of one row per token, by name, on the CPU.

n tokens, H hidden size, K entries of a top-k teacher, V its vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swift_kd_plugin.teacher.teacher_outputs import (
    FeatureRows,
    HiddenOutputs,
    TeacherOutputs,
    TokenRows,
    TopKOutputs,
)

Values = dict[str, Tensor]
BITS = 32  # of an id before it is packed


@dataclass(frozen=True)
class LayerCodec:
    """What an inner layer puts out, in the type in which the teacher computes: exact. 2 H bytes a token in bf16.

    Args:
        size: H.
        dtype: of the rows.
    """

    size: int
    dtype: torch.dtype

    def encode(self, outputs: TokenRows) -> Values:
        (rows,) = outputs.rows
        assert (rows.shape[1], rows.dtype) == (self.size, self.dtype), (rows.shape, rows.dtype)
        return {"rows": rows.cpu()}

    def join(self, parts: Sequence[Values]) -> Tensor:
        return torch.cat([part["rows"] for part in parts] or [torch.empty(0, self.size, dtype=self.dtype)])

    def decode(self, parts: Sequence[Values], token_ids: Tensor) -> FeatureRows:
        return FeatureRows((self.join(parts),), torch.arange(len(token_ids)))


@dataclass(frozen=True)
class HiddenCodec(LayerCodec):
    """The same of what goes into the output layer.

    Args:
        weights: ([v, H],) of this rank, which the rows that are read will meet.
    """

    weights: tuple[Tensor, ...] = ()

    def decode(self, parts: Sequence[Values], token_ids: Tensor) -> HiddenOutputs:
        return HiddenOutputs((self.join(parts),), token_ids, self.weights)


@dataclass(frozen=True)
class TopKCodec:
    """The K most probable tokens: ids in ceil(log2 V) bits each, log-probabilities in bf16, the tail's mass and, where
    the teacher gives it, the shift to temperature 1 in fp32.

    The log-probabilities are those against the row's largest, so that the most probable ones are the most exact; what
    the rounding adds to all of them is taken back by the tail, as K probabilities and tail add up to one.

    Args:
        k, vocabulary: K and V.
        temperature: at which the probabilities were taken.
    """

    k: int
    vocabulary: int
    temperature: float

    @property
    def bits(self) -> int:
        return max(1, (self.vocabulary - 1).bit_length())

    def encode(self, outputs: TeacherOutputs) -> Values:
        log_probs, ids, *shift = (rows.cpu() for rows in outputs.rows)
        assert ids.shape[1:] == (self.k,), ids.shape
        exact = log_probs.double()
        relative = exact - exact.amax(-1, keepdim=True)
        values = {
            "ids": pack(ids, self.bits),
            "log_probs": relative.masked_fill(torch.isneginf(exact), -torch.inf).bfloat16(),
            "tail": (1 - exact.exp().sum(-1)).float(),
        }
        return values | {"shift": shift[0].float()} if shift else values

    def decode(self, parts: Sequence[Values], token_ids: Tensor) -> TopKOutputs:
        if not parts:
            empty = torch.empty(0, self.k)
            return TopKOutputs((empty, empty.long(), empty.new_empty(0)), token_ids, self.temperature)
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        relative = values["log_probs"].double()
        largest = torch.log1p(-values["tail"].double()) - relative.logsumexp(-1)
        log_probs = (relative + largest[:, None]).masked_fill(torch.isneginf(relative), -torch.inf)
        shift = [values["shift"]] if "shift" in values else []
        rows = log_probs.float(), unpack(values["ids"], self.k, self.bits), *shift
        return TopKOutputs(rows, token_ids, self.temperature)


Codec = HiddenCodec | TopKCodec | LayerCodec


def pack(ids: Tensor, bits: int) -> Tensor:
    """Integers below 2 ** bits, without gaps between them: [n, K] -> uint8 [n, ceil(K bits / 8)]."""
    octets = ids.numpy().astype("<u4").view(np.uint8).reshape(*ids.shape, BITS // 8)
    spread = np.unpackbits(octets, axis=-1, bitorder="little")[..., :bits]
    return torch.from_numpy(np.packbits(spread.reshape(len(ids), ids.shape[1] * bits), axis=-1, bitorder="little"))


def unpack(packed: Tensor, k: int, bits: int) -> Tensor:
    """What `pack` was given, int64 [n, K]."""
    spread = np.zeros((len(packed), k, BITS), dtype=np.uint8)
    flat = np.unpackbits(packed.numpy(), axis=-1, count=k * bits, bitorder="little")
    spread[..., :bits] = flat.reshape(len(packed), k, bits)
    octets = np.packbits(spread, axis=-1, bitorder="little")
    return torch.from_numpy(octets.view("<u4").reshape(len(packed), k).astype(np.int64))
