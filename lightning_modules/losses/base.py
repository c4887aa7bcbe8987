"""What every classification loss shares: the kinds of labels, float32 for logits of half precision, probabilities, and
the log-odds in which most formulas are written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.precision import in_full

# What to type in place of a loss that does not take the labels of the rows.
INSTEAD = {
    "single": "cross_entropy, focal or logit_adjustment",
    "multi": "bce, multilabel_softmax, focal, f1_weighted, dice or logit_adjustment",
}


class ClassificationLoss(nn.Module):
    """A loss of logits [N, C] and labels: int64 [N], the class of each row under softmax, or bool [N, C], yes or no for
    each label under sigmoid. A binary task is either: two classes, or one column.

    Subclasses have `formula`. Logits of half precision come to it in float32, float64 stays.

    Subclasses declare, as literals:
        labels: which it takes, of "single" and "multi".
        uses_class_counts: it cannot be used before `prepare`.
        needs_every_class: a class without a training row is an error.
        corrects_prior: it counters the imbalance of the classes by their counts; with a sampler that does so, too, it
            would be done twice.
        per_example: it has a value for each row; if not, one for all rows that it is given at once.
        cosine_head: its logits are cosines, of -1 .. 1.

    Attributes:
        class_counts: int64 [C], training rows of each class. No buffer: neither a cast of the module nor an average of its
            weights may change it.
        num_rows: training rows; None: each has one label.
        progress: share of the run that is done, set before every step.
    """

    labels: frozenset[str] = frozenset()
    uses_class_counts: bool = False
    needs_every_class: bool = False
    corrects_prior: bool = False
    per_example: bool = True
    cosine_head: bool = False

    def __init__(self):
        super().__init__()
        self.class_counts: Tensor | None = None
        self.num_rows: int | None = None
        self.progress = 0.0

    def prepare(self, class_counts: Tensor, num_rows: int | None = None) -> None:
        """Take the training split's numbers, once, before the first batch.

        Args:
            class_counts: [C], training rows of each class; where rows have several labels, of each label.
            num_rows: training rows; may be left out where each has one label.

        Raises:
            ValueError: the formula is not defined for such counts.
        """
        self.class_counts = class_counts.long().cpu()
        self.num_rows = num_rows

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[N], or [] where not `per_example`. Rows with several labels have the mean over the labels.

        Raises:
            ValueError: the labels are of another kind than the loss takes, or `prepare` was not called.
        """
        self._check(logits, labels)
        losses = self.formula(in_full(logits), labels)
        return losses.mean(1) if losses.ndim == 2 else losses

    def formula(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[N], [N, C] for a value each label, or [] where not `per_example`."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor, multi_label: bool) -> Tensor:
        """[N, C], what a decision is made by: softmax, or the sigmoid of each label."""
        logits = in_full(logits)
        return logits.sigmoid() if multi_label else logits.softmax(1)

    def counts(self, logits: Tensor) -> Tensor:
        """[C], training rows of each class, with device and dtype of the logits."""
        return self.class_counts.to(logits)

    def log_prior(self, logits: Tensor, multi_label: bool) -> Tensor:
        """[C], what the training rows say of a class before its row is seen, with device and dtype of the logits: the
        logarithm of its share; of several labels a row, of the odds of each."""
        counts = self.counts(logits)
        share = counts / (self.num_rows or counts.sum())
        return share.logit() if multi_label else share.log()

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        name = f"model.loss={type(self).__module__.rpartition('.')[2]}"
        kind = "multi" if labels.ndim == 2 else "single"
        if kind not in self.labels:
            takes, have = (
                ("one label a row", "several") if kind == "multi" else ("several labels a row", "one")
            )
            raise ValueError(
                f"{name}: takes {takes}, and these rows have {have}; type model/loss={INSTEAD[kind]}"
            )
        if kind == "multi" and (labels.dtype != torch.bool or labels.shape != logits.shape):
            raise ValueError(
                f"labels: {labels.dtype} of the shape {list(labels.shape)}; several labels a row are bool, of the "
                f"shape of the logits, {list(logits.shape)}"
            )
        if kind == "single" and logits.shape[1] < 2:
            raise ValueError("logits: of one class; where rows have one label there are at least two classes")
        if self.uses_class_counts and self.class_counts is None:
            raise ValueError(f"{name}: prepare(class_counts, num_rows) comes before the first batch")
        if self.uses_class_counts and kind == "multi" and self.num_rows is None:
            raise ValueError(
                f"{name}: prepare(class_counts, num_rows) needs num_rows where rows have several labels"
            )


def targets(logits: Tensor, labels: Tensor) -> Tensor:
    """bool [N, C]: which classes each row has."""
    if labels.ndim == 2:
        return labels
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """[N, C]: x = log(p / (1 - p)) of every class, so that p = sigmoid(x) and 1 - p = sigmoid(-x) without cancellation.

    p is the sigmoid of its logit where rows have several labels, the softmax where they have one.
    """
    if labels.ndim == 2:
        return logits
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, float("-inf")).logsumexp(1, keepdim=True)
    log_p = logits.log_softmax(1)
    # All but the top one have p <= 1/2: 1 - p is exact.
    x = log_p - (-log_p.exp().scatter(1, top, 0.0)).log1p()
    return x.scatter(1, top, logits.gather(1, top) - others)


def log_odds_of_truth(logits: Tensor, labels: Tensor) -> Tensor:
    """x = log(p / (1 - p)) of what is true: [N] of each row's class; [N, C] of each yes or no of several labels."""
    x = log_odds(logits, labels)
    return torch.where(labels, x, -x) if labels.ndim == 2 else x.gather(1, labels[:, None]).squeeze(1)
