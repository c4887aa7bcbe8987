"""Dice loss: 1 - smooth F1 (Milletari et al. 2016, "V-Net", arXiv 1606.04797; Li et al. 2019, "Dice loss for
data-imbalanced NLP tasks", arXiv 1911.02855)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, log_odds, targets


class Dice(ClassificationLoss):
    """The mean over classes of 1 - (2 sum q y + s) / (sum q + sum y + s), sums over the rows, q = (1 - p)^alpha p; with
    `square_denominator` the mean over classes of 1 - (2 q y + s) / (q^2 + y^2 + s) = (q - y)^2 / (q^2 + y^2 + s),
    which is a value for each row. (The authors' code has the sum over classes where rows have one label.)

    p is the softmax, of each class against the others, where rows have one label; the sigmoid where they have
    several.

    The sums are over the rows that are given at once: in training those of a micro-batch on one device, so
    accumulation and further devices change what is minimised (a mean of F1s is not the F1 of all); in evaluation those
    of the whole split. The squared form has no sums, but its hard examples are sought among the same rows.

    Args:
        smooth: s. In classes without a target among the rows it is what makes p fall: slowly, where it is large.
        square_denominator: see above.
        alpha: lets learnt rows count less. The least loss then is at p = 1 / (1 + alpha), and it is not 0.
        hard_example_mining: negatives kept for each positive of a class, the most probable ones (where there is no
            positive, as many as for one; at least one); the others have no loss. 0: all are kept.

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single", "multi"})
    per_example = False

    def __init__(
        self,
        smooth: Annotated[float, "x > 0"] = 1.0,
        square_denominator: bool = False,
        alpha: Annotated[float, "x >= 0"] = 0.0,
        hard_example_mining: Annotated[float, "x >= 0"] = 0.0,
    ):
        super().__init__()
        if not smooth > 0:
            raise ValueError(f"smooth={smooth}: must be above 0 (at 0 negatives have no gradient, or 0 / 0)")
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha}: must be at least 0")
        if not hard_example_mining >= 0:
            raise ValueError(
                f"hard_example_mining={hard_example_mining}: must be at least 0 (negatives for each positive)"
            )
        self.smooth = smooth
        self.square_denominator = square_denominator
        self.alpha = alpha
        self.hard_example_mining = hard_example_mining
        self.per_example = square_denominator

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        x, y, s = log_odds(logits, labels), targets(logits, labels), self.smooth
        # As a power of 1 - p the gradient would be infinite at p = 1 for alpha < 1.
        q = (self.alpha * F.logsigmoid(-x)).exp() * x.sigmoid()
        kept = self._kept(x, y)
        if self.square_denominator:
            return torch.where(kept, (q - y.to(q)).square() / (q.square() + y + s), 0.0)
        q = torch.where(kept, q, 0.0)
        return (1 - (2 * (q * y).sum(0) + s) / (q.sum(0) + y.sum(0) + s)).mean()

    def _kept(self, x: Tensor, y: Tensor) -> Tensor:
        """bool [N, C]: all positives of a class, and its hardest negatives."""
        if not self.hard_example_mining:
            return torch.ones_like(y)
        hardest_first = x.detach().masked_fill(y, float("-inf")).argsort(0, descending=True)
        return y | (hardest_first.argsort(0) < self.hard_example_mining * y.sum(0).clamp(min=1))
