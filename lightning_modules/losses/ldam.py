"""Label-distribution-aware margins (Cao et al. 2019, "Learning imbalanced datasets with label-distribution-aware margin
loss", arXiv 1906.07413)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, targets
from lightning_modules.losses.weighted import effective_number


class LDAM(ClassificationLoss):
    """-log softmax(scale (cos - margin_y at y))_y with margins proportional to n_c^(-1/4), the rarest class having
    `max_margin`; a class without a training row has as much.

    The logits are cosines. Probabilities are softmax(scale cos), without margins.

    Args:
        max_margin: of the rarest class.
        scale: of the cosines, which alone could not make a softmax sharp.
        reweight_from: share of the run after which rows are weighted, too, by the effective number of their class (see
            `Weighted`); the paper's runs do so from 0.8 on. None: never. Weights are for training: losses of evaluation
            stay comparable over the run.
        beta: of the effective number.

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single"})
    uses_class_counts = True
    corrects_prior = True
    cosine_head = True

    def __init__(
        self,
        max_margin: Annotated[float, "x >= 0"] = 0.5,
        scale: Annotated[float, "x > 0"] = 30.0,
        reweight_from: Annotated[float, "0 <= x < 1"] | None = None,
        beta: Annotated[float, "0 <= x < 1"] = 0.9999,
    ):
        super().__init__()
        if not max_margin >= 0:
            raise ValueError(f"max_margin={max_margin}: must be at least 0")
        if not scale > 0:
            raise ValueError(f"scale={scale}: must be above 0")
        if reweight_from is not None and not 0 <= reweight_from < 1:
            raise ValueError(
                f"reweight_from={reweight_from}: must be at least 0 and below 1 (a share of the run), or null"
            )
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: must be at least 0 and below 1")
        self.max_margin = max_margin
        self.scale = scale
        self.reweight_from = reweight_from
        self.beta = beta

    def formula(self, cosines: Tensor, labels: Tensor) -> Tensor:
        counts = self.counts(cosines)
        rarest = counts.masked_fill(counts == 0, float("inf")).min()
        margins = self.max_margin * (rarest / counts.maximum(rarest)) ** 0.25
        logits = self.scale * (cosines - margins * targets(cosines, labels))
        losses = F.cross_entropy(logits, labels, reduction="none")
        if self.training and self.reweight_from is not None and self.progress >= self.reweight_from:
            return effective_number(counts, self.beta)[labels] * losses
        return losses

    def probabilities(self, logits: Tensor, multi_label: bool) -> Tensor:
        return super().probabilities(self.scale * logits, multi_label)
