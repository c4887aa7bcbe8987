"""Accuracy made differentiable (Su Jianlin, kexue.fm/archives/7708)."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, log_odds_of_truth


class SmoothAccuracy(ClassificationLoss):
    """1 - p, p the probability of what is true; for a yes or no this is |y - p|.

    Its gradient p (1 - p) vanishes at the worst mistakes, where p is near 0. Cross-entropy is the same gradient without
    the factor p, which is why it is the one to train with; this is the one to see why.
    """

    labels = frozenset({"single", "multi"})

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (-log_odds_of_truth(logits, labels)).sigmoid()
