"""The squared norm of the weights, as a term of the loss."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_modules.precision import in_full
from lightning_modules.regularizers.base import Penalty


class L2(Penalty):
    """weight / 2 * sum of |W|^2: its gradient is weight * W, what SGD calls weight decay.

    With an adaptive optimiser it is not: Adam divides this gradient, too, by its running norm (Loshchilov and Hutter 2019,
    arXiv 1711.05101). It changes when layers are rescaled against one another, which the network's function does not
    (kexue.fm/archives/7681; see `WEISSI`).

    Args:
        weight: the factor.
        include: see `Penalty`.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, weight: Annotated[float, "x >= 0"] = 1e-4, include: str | None = None):
        super().__init__(include)
        if not weight >= 0:
            raise ValueError(f"weight={weight}: must be at least 0")
        self.weight = weight

    def forward(self, parameters: dict[str, nn.Parameter]) -> Tensor:
        squares = [in_full(parameter).square().sum() for parameter in parameters.values()]
        return self.weight / 2 * torch.stack(squares).sum()
