"""Cross-entropy weighted by F1: smooth F1 with its gradient repaired (Su Jianlin, kexue.fm/archives/7708)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.base import ClassificationLoss, log_odds, targets
from lightning_modules.precision import keeping_dtype


class F1Weighted(ClassificationLoss):
    """-(1 - F1/2) y log p - (F1/2) (1 - y) log(1 - p), with the smooth F1 = 2 sum y p / sum (y + p), through which no
    gradient goes.

    The gradient of -F1 is, but for a positive factor, -sum (y - F1/2) grad p. As cross-entropy repairs the gradient of
    the accuracy, grad p = p (1 - p) grad z loses the factor that vanishes at the worst mistakes. While F1 is near 0
    only positives count, at 1 both count alike.

    Each label has its own F1 where rows have several, and each class against the others, by the softmax, where they
    have one of more than two; the value is the mean over classes. Of two classes one is the positive, and its F1 alone
    counts, as in the article.

    F1 is that of the rows that are given at once: in training those of a micro-batch on one device, in evaluation those
    of the whole split. So accumulation and further devices change the weights, and nothing else: given F1, a row's loss
    is its own. Where few rows are together most classes have no positive among them; their F1 is 0, and nothing pushes
    them down. `ema` adds up over steps.

    Args:
        ema: what a step keeps of the moving averages of F1's two sums, e.g. 0.9; 0: only the rows at hand count.
            Evaluation uses the averages as training left them. Of several devices the first one's hold for all.
        positive_class: of two classes.

    Raises:
        ValueError: an option out of its range.
    """

    labels = frozenset({"single", "multi"})

    def __init__(self, ema: Annotated[float, "0 <= x < 1"] = 0.0, positive_class: Literal[0, 1] = 1):
        super().__init__()
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: must be at least 0 and below 1")
        if positive_class not in (0, 1):
            raise ValueError(f"positive_class={positive_class}: must be 0 or 1, one of two classes")
        self.ema = ema
        self.positive_class = positive_class
        self.uses_class_counts = ema > 0  # for the number of classes

    def prepare(self, class_counts: Tensor, num_rows: int | None = None) -> None:
        super().prepare(class_counts, num_rows)
        if self.ema:
            # In checkpoints: a run that goes on weighs as if it had never stopped.
            self.register_buffer("sums", torch.zeros(2, len(class_counts), dtype=torch.float32))

    def _apply(self, function: Callable[[Tensor], Tensor], *arguments: Any) -> F1Weighted:
        # In bfloat16 the average would stand still.
        return super()._apply(keeping_dtype(function), *arguments)

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        x, y = log_odds(logits, labels), targets(logits, labels)
        f1 = self._f1(x.detach().sigmoid(), y)
        losses = -torch.where(y, (1 - f1 / 2) * F.logsigmoid(x), f1 / 2 * F.logsigmoid(-x))
        return losses[:, self.positive_class] if labels.ndim == 1 and len(f1) == 2 else losses

    def _f1(self, p: Tensor, y: Tensor) -> Tensor:
        """[C], of probabilities and targets [N, C]."""
        sums = torch.stack([2 * (y * p).sum(0), (y + p).sum(0)])
        if self.ema:
            if self.training:
                self.sums.lerp_(sums.to(self.sums), 1 - self.ema)
            sums = self.sums.to(sums)
        shared, both = sums
        return shared / both.clamp(min=torch.finfo(both.dtype).tiny)
