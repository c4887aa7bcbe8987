"""Half precision is for networks; losses and norms of weights are computed in more."""

from __future__ import annotations

import torch
from torch import Tensor


def in_full(values: Tensor) -> Tensor:
    """In float32 where they have fewer bits; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
