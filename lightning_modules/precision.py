"""Half precision is for networks; losses and norms of weights are computed in more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_full(values: Tensor) -> Tensor:
    """In float32 where they have fewer bits; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def keeping_dtype(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function` of `nn.Module._apply`, for tensors that precision=bf16-true must not round: it moves them only."""
    return lambda tensor: function(tensor).to(tensor.dtype)
