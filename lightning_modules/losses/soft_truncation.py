"""Hard truncation with a smooth step (Su Jianlin, kexue.fm/archives/4733)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, log_odds_of_truth


class SoftTruncation(ClassificationLoss):
    """-sigmoid(-k x) log sigmoid(x) for the log-odds x of each true yes or no; for one label of several classes
    -softmax(-k z)_y log softmax(z)_y.

    With k = 1 it is the focal loss of gamma = 1 for several labels a row and for two classes. For more it is not, as
    softmax(-z)_y is not 1 - p_y: it compares the logit with the lowest ones, and lets a row go once some class has a
    much lower logit, though a third one may still win.

    Args:
        k: steepness; a yes or no is truncated hard as it goes to infinity.

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single", "multi"})

    def __init__(self, k: Annotated[float, "x > 0"] = 1.0):
        super().__init__()
        if not k > 0:
            raise ValueError(f"k={k}: must be above 0")
        self.k = k

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        x = log_odds_of_truth(logits, labels)
        if labels.ndim == 2:
            step = (-self.k * x).sigmoid()
        else:
            step = (-self.k * logits).softmax(1).gather(1, labels[:, None]).squeeze(1)
        return -step * F.logsigmoid(x)
