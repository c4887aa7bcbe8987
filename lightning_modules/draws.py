"""Random draws as a stateless function of (seed, stream, epoch, row, position).

A draw does not depend on the world size, on accumulation, on what was drawn before or on the device, so a resumed
run and a run on more ranks mask the same tokens, and the CPU can count the targets of a batch before the GPU sees it.
"""

from __future__ import annotations

import torch
from torch import Tensor

RANGE = 1 << 32
_MASK = RANGE - 1


def mix(value: Tensor) -> Tensor:
    """A permutation of the 32-bit numbers in which every input bit flips each output bit half of the time.

    The constants are of the hash `lowbias32` (Chris Wellons, "Prospecting for Hash Functions", 2018).
    int64 in and out: overflow only touches bits that the mask drops.
    """
    value = value & _MASK
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _MASK
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _MASK
    return value ^ (value >> 16)


def draw(seed: int, stream: int, epoch: int, rows: Tensor, positions: Tensor) -> Tensor:
    """Uniform integers of 0 .. 2^32 - 1.

    Args:
        seed, epoch: of the run. stream: one number for each kind of draw, so that kinds are independent.
        rows, positions: int64 tensors of one shape.
    """
    key = torch.zeros((), dtype=torch.int64, device=rows.device)
    for part in (seed, stream, epoch):
        key = mix(key + part)
    return mix(mix(key + rows) + positions)


def chance(drawn: Tensor, probability: float) -> Tensor:
    """True with `probability`: compares integers, hence alike on every device."""
    return drawn < round(probability * RANGE)
