"""Cross-entropy: smooth accuracy with its gradient repaired (Su Jianlin, kexue.fm/archives/7708)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss


class CrossEntropy(ClassificationLoss):
    """-log p of the class.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016, arXiv
            1512.00567).

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single"})

    def __init__(self, label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be at least 0 and below 1")
        self.label_smoothing = label_smoothing

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
