"""Logit adjustment (Menon et al. 2021, "Long-tail learning via logit adjustment", arXiv 2007.07314; Su Jianlin,
kexue.fm/archives/7615)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, log_odds_of_truth

SHOWN_CLASSES = 10


class LogitAdjustment(ClassificationLoss):
    """-log softmax(z + tau log prior)_y, the prior being the classes' shares of the training rows; where rows have
    several labels, the cross-entropy of each yes or no with the logit z + tau log(prior / (1 - prior)).

    The network need not learn which classes are frequent: z becomes the pointwise mutual information of row and class.
    `probabilities` are those of z alone, which is best for the balanced error; add tau log prior for the plain one.

    Args:
        tau: 1 is consistent for the balanced error; 0: cross-entropy.

    Raises:
        ValueError: an option out of its range; at `prepare`, a class without a training row, or a label that every
            training row has.
    """

    labels = frozenset({"single", "multi"})

    def __init__(self, tau: Annotated[float, "x >= 0"] = 1.0):
        super().__init__()
        if not tau >= 0:
            raise ValueError(f"tau={tau}: must be at least 0")
        self.tau = tau
        # At 0 there is nothing to adjust, so that a sweep over tau may begin there.
        self.uses_class_counts = self.needs_every_class = self.corrects_prior = tau > 0

    def prepare(self, class_counts: Tensor, num_rows: int | None = None) -> None:
        super().prepare(class_counts, num_rows)
        if not self.tau:
            return
        for count, have in ((0, "have no training row"), (num_rows, "stand at every training row")):
            found = (class_counts == count).nonzero().flatten().tolist() if count is not None else []
            if found:
                shown = ", ".join(map(str, found[:SHOWN_CLASSES]))
                more = ", ..." if len(found) > SHOWN_CLASSES else ""
                raise ValueError(
                    f"model.loss=logit_adjustment: classes {shown}{more} of {len(class_counts)} {have}, and the logarithm "
                    "of such a prior is infinite; take them out of the labels, keep more rows (data.limit, "
                    "data.long_tail), or type model/loss=weighted (several labels a row: model/loss=bce)"
                )

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.tau:
            logits = logits + self.tau * self.log_prior(logits, multi_label=labels.ndim == 2)
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, reduction="none")
        return -F.logsigmoid(log_odds_of_truth(logits, labels))
