"""Cross-entropy of what is not yet right (Su Jianlin, kexue.fm/archives/4293 and 4733)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, log_odds_of_truth


class HardTruncation(ClassificationLoss):
    """-log p while p <= threshold, then 0; p is the probability of what is true.

    It never says "stay above the threshold": rows come back, and it needs many more steps. With one label of
    more than two classes, p above 1/2 is more than being the most probable class.

    Args:
        threshold: the probability from which on a row, or a label of several, is let go.

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single", "multi"})

    def __init__(self, threshold: Annotated[float, "0 < x < 1"] = 0.5):
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: must lie between 0 and 1")
        self.threshold = threshold

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        x = log_odds_of_truth(logits, labels)
        return torch.where(x.sigmoid() > self.threshold, 0.0, -F.logsigmoid(x))
