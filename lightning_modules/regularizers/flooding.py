"""Flooding: the training loss is kept from sinking below a level.

Ishida et al. 2020, "Do we need zero training loss after achieving zero training error?", arXiv 2002.08709; Su Jianlin,
kexue.fm/archives/7643. Per example it is iFlood (Xie et al., ICLR 2022).
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from lightning_modules.regularizers.base import LossTransform


class Flooding(LossTransform):
    """|L - b| + b: above the level b nothing changes, below it the sign of the gradient turns, at it there is none.

    Args:
        b: the flood level, in the units of the loss of the data (nats, for cross-entropies).
        per: "batch": L is the mean loss of the whole optimiser step, as the paper; "example": of every target.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, b: Annotated[float, "x >= 0"] = 0.1, per: Literal["batch", "example"] = "batch"):
        super().__init__()
        if not b >= 0:
            raise ValueError(f"b={b}: must be at least 0")
        if per not in ("batch", "example"):
            raise ValueError(f"per={per}: must be batch or example")
        self.b = b
        self.per = per

    def forward(self, loss: Tensor) -> Tensor:
        # |x - 0| would turn a loss that may be negative (of a continuous density).
        return (loss - self.b).abs() + self.b if self.b else loss

    def first_step(self, loss: float) -> str | None:
        if loss >= self.b:
            return None
        return (
            f"b={self.b} is above the loss of the first step ({loss:.3g}): training begins by climbing; choose a level "
            "between the loss at the start and the one that is reached without flooding"
        )
