"""Binary cross-entropy of each label on its own."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, targets


class BCE(ClassificationLoss):
    """The mean over labels of -w y log p - (1 - y) log(1 - p), p the sigmoid of the label's logit.

    Where rows have one label it is one against the others: each class its own yes or no. Probabilities then are the
    sigmoids divided by their sum.

    Args:
        pos_weight: "balanced": w = (rows without the label) / (rows with it) of the training split, so both count alike
            (a label without a row counts as if it had one); None: w = 1.

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single", "multi"})

    def __init__(self, pos_weight: Literal["balanced"] | None = None):
        super().__init__()
        if pos_weight not in ("balanced", None):
            raise ValueError(f"pos_weight={pos_weight}: must be balanced or null")
        self.pos_weight = pos_weight
        self.uses_class_counts = self.corrects_prior = pos_weight == "balanced"

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = 1.0
        if self.pos_weight == "balanced":
            counts = self.counts(logits)
            weight = ((self.num_rows or counts.sum()) - counts) / counts.clamp(min=1)
        y = targets(logits, labels)
        return -torch.where(y, weight * F.logsigmoid(logits), F.logsigmoid(-logits))

    def probabilities(self, logits: Tensor, multi_label: bool) -> Tensor:
        # The sigmoids over their sum, without 0 / 0 where all are 0.
        return super().probabilities(logits if multi_label else F.logsigmoid(logits), multi_label)
