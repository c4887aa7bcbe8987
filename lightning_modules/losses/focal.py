"""Focal loss (Lin et al. 2017, "Focal loss for dense object detection", arXiv 1708.02002; Su Jianlin,
kexue.fm/archives/4733)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, log_odds_of_truth


class Focal(ClassificationLoss):
    """-(1 - p)^gamma log p, p the probability of what is true: the row's class, or each yes or no of several labels.

    Args:
        gamma: how much less what is learnt counts; 0: cross-entropy.
        alpha: weight of positives, negatives have 1 - alpha; None: both have 1. Of two classes the second one is the
            positive; with more there is none, and alpha is refused.

    Raises:
        ValueError: an option out of its range, or alpha with one label of more than two classes.
    """

    labels = frozenset({"single", "multi"})

    def __init__(
        self,
        gamma: Annotated[float, "x >= 0"] = 2.0,
        alpha: Annotated[float, "0 < x < 1"] | None = None,
    ):
        super().__init__()
        if not gamma >= 0:
            raise ValueError(
                f"gamma={gamma}: must be at least 0 (a negative one would let the rows that are learnt count most)"
            )
        if alpha is not None and not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha}: must lie between 0 and 1")
        self.gamma = gamma
        self.alpha = alpha

    def prepare(self, class_counts: Tensor, num_rows: int | None = None) -> None:
        super().prepare(class_counts, num_rows)
        if self.alpha is not None and num_rows == class_counts.sum() and len(class_counts) > 2:
            raise ValueError(self._no_positive(len(class_counts)))

    def _no_positive(self, classes: int) -> str:
        return (
            f"alpha={self.alpha}: weighs positives against negatives, and of {classes} classes none is the positive one; "
            "type model.loss.alpha=null (weights of classes: model/loss=weighted)"
        )

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        x = log_odds_of_truth(logits, labels)
        # As a power of 1 - p the gradient would be infinite at p = 1 for gamma < 1.
        losses = -(self.gamma * F.logsigmoid(-x)).exp() * F.logsigmoid(x)
        if self.alpha is None:
            return losses
        if labels.ndim == 1 and logits.shape[1] > 2:
            raise ValueError(self._no_positive(logits.shape[1]))
        y = labels.to(losses.dtype)
        return (self.alpha * y + (1 - self.alpha) * (1 - y)) * losses
