"""Softmax cross-entropy for several labels a row (Su Jianlin, kexue.fm/archives/7359; Su et al. 2022, "ZLPR", arXiv
2208.02955)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, targets


class MultilabelSoftmax(ClassificationLoss):
    """log(1 + sum over negatives e^s) + log(1 + sum over positives e^-s): positives' scores go above 0, the
    threshold, and negatives' below. Without the threshold log(1 + sum over negatives i and positives j e^(s_i - s_j)),
    which only puts positives above negatives, and is the cross-entropy where there is one positive.

    Scores are logits as they are. A label is given where its score is above 0, so where its sigmoid is above one half;
    this is a place in the order, not a calibrated probability. Without the threshold scores have no such level.

    Args:
        threshold: compare scores with 0.
    """

    labels = frozenset({"single", "multi"})

    def __init__(self, threshold: bool = True):
        super().__init__()
        self.threshold = threshold

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        positive = targets(logits, labels)
        negatives = logits.masked_fill(positive, float("-inf")).logsumexp(1)
        positives = (-logits).masked_fill(~positive, float("-inf")).logsumexp(1)
        if self.threshold:
            return _log_1_plus_exp(negatives) + _log_1_plus_exp(positives)
        return _log_1_plus_exp(negatives + positives)


def _log_1_plus_exp(x: Tensor) -> Tensor:
    # `softplus` is linear from 20 on: an error of 2e-9, too much for float64.
    return -F.logsigmoid(-x)
