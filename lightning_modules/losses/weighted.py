"""Cross-entropy with a weight for each class.

Inverse frequency, and the effective number of samples (Cui et al. 2019, "Class-balanced loss based on effective number
of samples", arXiv 1901.05555).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss


class Weighted(ClassificationLoss):
    """-w_y log p_y. A batch has the mean over its rows, not over the sum of its weights, which would make the weight of
    a row depend on its neighbours.

    The weights' mean over the training rows is 1, so the loss keeps the size of the plain cross-entropy: learning rate,
    gradient clipping and flooding level mean the same for any imbalance. The paper's mean over the classes is 1; that
    differs by one factor for all.

    Args:
        by: "inverse_frequency": 1 / n_c; "effective_number": (1 - beta) / (1 - beta^n_c).
        beta: of the effective number: 0 weighs all classes alike, towards 1 it becomes the inverse frequency.

    A class without a training row has the weight of one with a single row: it can occur in validation only.

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single"})
    uses_class_counts = True
    corrects_prior = True

    def __init__(
        self,
        by: Literal["inverse_frequency", "effective_number"] = "inverse_frequency",
        beta: Annotated[float, "0 <= x < 1"] = 0.999,
    ):
        super().__init__()
        if by not in ("inverse_frequency", "effective_number"):
            raise ValueError(f"by={by}: must be inverse_frequency or effective_number")
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: must be at least 0 and below 1")
        self.by = by
        self.beta = beta

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        counts = self.counts(logits)
        if self.by == "inverse_frequency":
            weights = inverse_frequency(counts)
        else:
            weights = effective_number(counts, self.beta)
        return weights[labels] * F.cross_entropy(logits, labels, reduction="none")


def inverse_frequency(counts: Tensor) -> Tensor:
    """[C], 1 / n_c with the mean 1 over the training rows, of floating-point counts [C]."""
    return _of_mean_one(1 / counts.clamp(min=1), counts)


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """[C], (1 - beta) / (1 - beta^n_c) with the mean 1 over the training rows, of floating-point counts [C]."""
    if beta == 0:
        return counts.new_ones(counts.shape)
    return _of_mean_one(-1 / (counts.clamp(min=1) * math.log(beta)).expm1(), counts)


def _of_mean_one(weights: Tensor, counts: Tensor) -> Tensor:
    return weights * counts.sum() / (weights * counts).sum()
