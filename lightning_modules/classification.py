"""What an evaluation gave of each row, and the scores of a classifier: each one formula over all rows at once.

A score that is no mean over rows (macro-F1, calibration, a loss of a whole batch) cannot be had from the scores of
batches or ranks. The rows are kept instead, brought together, and put in order.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error, multiclass_confusion_matrix
from torchmetrics.utilities import dim_zero_cat

from datamodules.atomic import write_whole
from datamodules.corpus import DataError

CALIBRATION_BINS = 15


class EvaluatedRows(Metric):
    """Logits and labels of every row of an evaluation, of all ranks, sorted by row id.

    What is computed from them does not depend on how the rows were cut into batches or dealt to ranks. A rank may
    have no row at all.

    Memory: 4 C + 16 bytes a row, 5 C + 8 with several labels a row, on the device of the rank that evaluates it; and
    in `compute`, for a moment, three times as much for all rows of all ranks on each of them. A million rows of 100
    classes are 0.4 GB, and 1.2 GB more for that moment.

    Args:
        num_classes: C.
        multi_label: labels are bool [n, C] instead of int64 [n].
    """

    full_state_update = False
    STATES = ("logits", "labels", "row_ids")

    def __init__(self, num_classes: int, multi_label: bool = False):
        super().__init__()
        for name in self.STATES:
            self.add_state(name, [], dist_reduce_fx="cat")
        # Every list begins with no rows of its kind: the ranks' tensors are gathered only where all agree in
        # dimensions and type, and a rank that evaluates nothing would have neither.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.logits.append(torch.empty(0, num_classes, dtype=dtype))
        self.labels.append(
            torch.empty(0, num_classes, dtype=torch.bool) if multi_label else torch.empty(0, dtype=torch.long)
        )
        self.row_ids.append(torch.empty(0, dtype=torch.long))

    def _apply(self, function: Callable[[Tensor], Tensor], *arguments: Any) -> Metric:
        # precision=bf16-true converts all that a model holds; what is kept of a row may only gain by a conversion.
        def without_loss(tensor: Tensor) -> Tensor:
            result = function(tensor)
            return tensor.to(result.device, torch.promote_types(result.dtype, tensor.dtype))

        return super()._apply(without_loss, *arguments)

    def _wrap_compute(self, compute: Callable) -> Callable:
        compute = super()._wrap_compute(compute)

        @wraps(compute)
        def computed() -> tuple[Tensor, ...]:
            # The base makes a scalar of a tensor with one element: of the label of the only row, too.
            return tuple(
                rows.reshape(-1, *getattr(self, name)[0].shape[1:])
                for name, rows in zip(self.STATES, compute(), strict=True)
            )

        return computed

    def update(self, logits: Tensor, labels: Tensor, row_ids: Tensor) -> None:
        """Add n rows: logits [n, C], labels [n] or bool [n, C], their ids [n] in the split."""
        for name, rows in zip(self.STATES, (logits, labels, row_ids), strict=True):
            kept = getattr(self, name)
            kept.append(rows.detach().to(kept[0]))

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """All rows, the same on every rank: logits [N, C] (float32; float64 in a float64 model), labels [N] or
        bool [N, C], row ids [N].

        Raises:
            DataError: a logit is NaN or infinite.
        """
        logits, labels, row_ids = (dim_zero_cat(getattr(self, name)) for name in self.STATES)
        # Asked of all rows and not of a batch: every rank comes to the same end, and none waits for another.
        check_finite(logits)
        order = row_ids.argsort(stable=True)
        return logits[order], labels[order], row_ids[order]

    def reset(self) -> None:
        empty = {name: getattr(self, name)[0][:0] for name in self.STATES}
        super().reset()
        for name, rows in empty.items():
            getattr(self, name).append(rows)


def check_finite(logits: Tensor) -> None:
    """Raises DataError where logits [N, C] are NaN or infinite, naming the share of the rows."""
    bad_rows = int((~logits.isfinite()).any(1).sum())
    if bad_rows:
        raise DataError(
            f"{bad_rows:,} of {len(logits):,} rows ({bad_rows / len(logits):.1%}) have logits that are NaN or infinite: "
            "training has diverged; lower model.optimizer.lr or gradient_clip, and with precision=16-mixed or 16-true "
            "type precision=bf16-mixed"
        )


@dataclass(frozen=True)
class Scores:
    """Scores of an evaluation, and what they are made of.

    Attributes:
        metrics: name -> value; see `single_label_scores` and `multi_label_scores`.
        train_rows: int64 [C], rows of the training split that have the class.
        rows: int64 [C], evaluated rows that have the class.
        predicted: int64 [C], rows that were given the class.
        recall: float64 [C], NaN for a class without rows.
        precision: float64 [C], NaN for a class that was never predicted.
        f1: float64 [C], NaN for a class that has no row and was never predicted.
        confusion: int64 [C, C], rows by true class and predicted class; None for several labels a row.
    """

    metrics: dict[str, float]
    train_rows: np.ndarray
    rows: np.ndarray
    predicted: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    confusion: np.ndarray | None = None


def single_label_scores(
    probabilities: Tensor,
    labels: Tensor,
    class_counts: Sequence[int],
    many_shot: int = 100,
    few_shot: int = 20,
) -> Scores:
    """Scores where each row has one class; the most probable one is the prediction.

    The metrics, each in [0, 1]:
        accuracy: share of the rows that were given their class.
        balanced_accuracy: mean recall of the classes that have rows.
        macro_f1: mean F1 of the classes that have rows or were predicted, as scikit-learn's.
        calibration_error: expected calibration error of the largest probability: over 15 bins of equal width, the
            mean distance between confidence and accuracy, each bin weighted with its rows. Guo et al., "On
            calibration of modern neural networks", ICML 2017, arXiv 1706.04599.
        many_shot_accuracy, medium_shot_accuracy, few_shot_accuracy: mean recall of the classes with more than
            `many_shot` training rows, of those between, of those with fewer than `few_shot`; without the groups
            that have no row. Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019,
            arXiv 1904.05160.

    Args:
        probabilities: [N, C].
        labels: int64 [N].
        class_counts: [C], training rows of each class.

    Raises:
        ValueError: `class_counts` has not one number for each class.
    """
    _check_counts(probabilities, class_counts)
    probabilities, labels = probabilities.cpu().double(), labels.cpu()
    confidence, predictions = probabilities.max(1)
    confusion = multiclass_confusion_matrix(
        predictions, labels, probabilities.shape[1], validate_args=False
    ).numpy()
    table = _class_table(confusion.diagonal(), confusion.sum(1), confusion.sum(0), class_counts)
    metrics = {
        "accuracy": _ratio(confusion.trace(), len(labels)).item(),
        "balanced_accuracy": _mean(table["recall"]),
        "macro_f1": _mean(table["f1"]),
        "calibration_error": _calibration_error(confidence, predictions == labels),
    }
    return Scores(metrics | _shot_groups(table, many_shot, few_shot), **table, confusion=confusion)


def multi_label_scores(
    probabilities: Tensor,
    labels: Tensor,
    class_counts: Sequence[int],
    many_shot: int = 100,
    few_shot: int = 20,
) -> Scores:
    """Scores where each row has any number of classes; those with a probability above 1/2 are the prediction.

    The metrics, each in [0, 1]:
        accuracy: share of the rows that were given exactly their classes.
        micro_f1: F1 of all decisions together; NaN where no row has a class and none was predicted.
        macro_f1: mean F1 of the classes that have rows or were predicted.
        calibration_error: of the single decisions: as in `single_label_scores`, between the probability of a class
            and the share of the rows that have it.
        many_shot_accuracy, medium_shot_accuracy, few_shot_accuracy: as in `single_label_scores`.

    Args:
        probabilities: [N, C], of each class by itself.
        labels: bool [N, C].
        class_counts: [C], training rows that have the class.

    Raises:
        ValueError: `class_counts` has not one number for each class.
    """
    _check_counts(probabilities, class_counts)
    probabilities, labels = probabilities.cpu().double(), labels.cpu()
    predictions = probabilities > 0.5
    hits, rows, predicted = (
        decisions.sum(0).numpy() for decisions in (predictions & labels, labels, predictions)
    )
    table = _class_table(hits, rows, predicted, class_counts)
    metrics = {
        "accuracy": _ratio((predictions == labels).all(1).sum().item(), len(labels)).item(),
        "micro_f1": _ratio(2 * hits.sum(), rows.sum() + predicted.sum()).item(),
        "macro_f1": _mean(table["f1"]),
        "calibration_error": _calibration_error(probabilities.flatten(), labels.flatten()),
    }
    return Scores(metrics | _shot_groups(table, many_shot, few_shot), **table)


def write_class_table(path: str | os.PathLike, names: Sequence[str], scores: Scores) -> Path:
    """Write a line for each class as CSV, in the order of the classes: class, train_rows, rows, predicted, recall,
    precision, f1. A ratio that is not defined is left empty. The file is there whole or not at all."""
    columns = ("train_rows", "rows", "predicted", "recall", "precision", "f1")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *columns])
    for name, *values in zip(names, *(getattr(scores, column).tolist() for column in columns), strict=True):
        writer.writerow([name, *("" if value != value else value for value in values)])
    return write_whole(path, text.getvalue())


def _check_counts(probabilities: Tensor, class_counts: Sequence[int]) -> None:
    if len(class_counts) != probabilities.shape[1]:
        raise ValueError(f"{len(class_counts)} class counts for {probabilities.shape[1]} classes")


def _class_table(
    hits: np.ndarray, rows: np.ndarray, predicted: np.ndarray, class_counts: Sequence[int]
) -> dict[str, np.ndarray]:
    return {
        "train_rows": np.asarray(class_counts, dtype=np.int64),
        "rows": rows,
        "predicted": predicted,
        "recall": _ratio(hits, rows),
        "precision": _ratio(hits, predicted),
        "f1": _ratio(2 * hits, rows + predicted),
    }


def _shot_groups(table: dict[str, np.ndarray], many_shot: int, few_shot: int) -> dict[str, float]:
    many, few = table["train_rows"] > many_shot, table["train_rows"] < few_shot
    groups = {"many": many, "medium": ~many & ~few, "few": few}
    groups = {name: group & (table["rows"] > 0) for name, group in groups.items()}
    return {
        f"{name}_shot_accuracy": _mean(table["recall"][group])
        for name, group in groups.items()
        if group.any()
    }


def _calibration_error(probabilities: Tensor, outcomes: Tensor) -> float:
    """Of float64 probabilities [K] that the bool outcomes [K] come true."""
    if not len(probabilities):
        return float("nan")
    # A bin holds its lower edge and not its upper one: 1.0 would have a bin of its own behind the last.
    below_one = probabilities.clamp(0, 1 - torch.finfo(torch.float64).eps)
    error = binary_calibration_error(below_one, outcomes.long(), CALIBRATION_BINS, validate_args=False)
    return error.item()


def _mean(values: np.ndarray) -> float:
    """Of the values that are defined; NaN without any."""
    defined = values[~np.isnan(values)]
    return defined.mean().item() if len(defined) else float("nan")


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """NaN where `whole` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(part, whole, dtype=np.float64)
