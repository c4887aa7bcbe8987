"""Which rows of the training split are trained on, how often, and with which labels: decided on labels alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from datamodules.corpus import DataError, mixed

Sampler = Literal["balanced", "square_root"]
# A class with n rows is drawn in proportion to n to this power.
SAMPLER_POWERS = {"balanced": 0.0, "square_root": 0.5}
LONG_TAIL_KEYS = ("imbalance", "largest")
ROWS_AT_A_TIME = 1 << 16

# One number for each kind of draw, so that kinds are independent: which rows, and of each split whether a label is
# replaced and by which one.
CHOICE = 0
NOISE = {"train": (1, 2), "val": (3, 4)}


@dataclass
class SelectedRows:
    """What is left of a training split of N rows and C classes.

    Attributes:
        total: N.
        rows: int64 [K], row ids in ascending order; None: all of them.
        labels: int64 [N], the class of each row as training sees it; None: as the corpus has it.
        weights: float64 [K], in proportion to which rows are drawn, with replacement; None: each row once an epoch.
        class_counts: rows of each of the C classes among the K, by the labels that training sees; of rows with several
            labels, positives. None where the corpus has no classes.
        changed: rows among the K whose label is not the corpus' own.
        val_labels: the labels of the validation rows by which a run is chosen; None: as the corpus has them.
    """

    total: int
    rows: np.ndarray | None = None
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None
    class_counts: list[int] | None = None
    changed: int = 0
    val_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.total if self.rows is None else len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Names the rows, their labels and how often they are drawn, and what they are judged by; empty where nothing was
        selected."""
        arrays = (self.rows, self.labels, self.weights, self.val_labels)
        if all(array is None for array in arrays):
            return ""
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(b"-" if array is None else array.tobytes())
        return digest.hexdigest()


class Selection:
    """The options by which training rows are chosen: first `limit`, then `long_tail`, then `label_noise`.

    What is drawn is a hash of (seed, row), so fewer rows are always some of the more, and less noise is in the same rows.

    Args:
        limit: so many training rows.
        long_tail: `{"imbalance": r, "largest": n}` leaves n * r ** (-c / (C - 1)) rows of class c of C, in the order of
            the classes, rounded down, at least 1 (Cui et al. 2019, arXiv 1901.05555); a class that has fewer keeps them
            all. `largest` None: of the class with most rows.
        label_noise: share of the training rows, to a row, that get another class, each of the others alike.
        noisy_val: of the validation rows too; of test rows never.
        sampler: rows of an epoch are drawn with replacement: all classes alike ("balanced"), or in proportion to the
            square root of their rows ("square_root").
        seed: of the draws.

    Raises:
        ValueError: an option's value cannot be used.
    """

    def __init__(
        self,
        limit: int | None = None,
        long_tail: dict[str, Any] | None = None,
        label_noise: float = 0.0,
        noisy_val: bool = False,
        sampler: Sampler | None = None,
        seed: int = 0,
    ):
        if limit is not None and not _is_whole(limit):
            raise ValueError(f"limit={limit}: must be a whole number of rows, 1 or more, or null")
        if not isinstance(label_noise, (int, float)) or not 0 <= label_noise < 1:
            raise ValueError(f"label_noise={label_noise}: must be at least 0 and below 1")
        if sampler is not None and sampler not in SAMPLER_POWERS:
            raise ValueError(f"sampler={sampler}: must be one of {', '.join(SAMPLER_POWERS)}, or null")
        if not isinstance(long_tail, dict | None):
            raise ValueError(f"long_tail={long_tail}: type long_tail.imbalance=50, long_tail.largest=500")
        long_tail = long_tail or {}
        for name in long_tail:
            if name not in LONG_TAIL_KEYS:
                raise ValueError(f"long_tail.{name}={long_tail[name]}: takes {' and '.join(LONG_TAIL_KEYS)}")
        imbalance, largest = long_tail.get("imbalance", 1), long_tail.get("largest")
        if (
            isinstance(imbalance, bool)
            or not isinstance(imbalance, (int, float))
            or not 1 <= imbalance < math.inf
        ):
            raise ValueError(
                f"imbalance={imbalance}: must be at least 1: how many times more rows the first class has than the last"
            )
        if largest is not None and not _is_whole(largest):
            raise ValueError(
                f"largest={largest}: long_tail.largest must be a whole number of rows, 1 or more, or null"
            )
        self.limit = limit
        self.imbalance = imbalance
        self.largest = largest
        self.label_noise = label_noise
        self.noisy_val = noisy_val
        self.sampler = sampler
        self.seed = seed

    @property
    def typed(self) -> dict[str, Any]:
        """The options that change something, with their values."""
        options = {
            "limit": (self.limit, None),
            "imbalance": (self.imbalance, 1),
            "largest": (self.largest, None),
            "label_noise": (self.label_noise, 0),
            "noisy_val": (self.noisy_val, False),
            "sampler": (self.sampler, None),
        }
        return {name: value for name, (value, default) in options.items() if value != default}

    def check(self, has_classes: bool, multi_label: bool) -> None:
        """To be called before rows are read.

        Raises:
            ValueError: an option goes by the class of a row, and rows have none or several.
        """
        if self._by_class and (multi_label or not has_classes):
            name, value = next(iter(self._by_class.items()))
            what = "may have several labels" if multi_label else "have no labels"
            raise ValueError(
                f"{name}={value}: goes by the class of a row, and the rows of this corpus {what}; leave it out"
            )

    def training_rows(self, store: Any, num_classes: int | None) -> SelectedRows:
        """What training sees of a split.

        Args:
            store: has `len(store)` rows, and gives `labels_of(rows)`: [K], -1 where there is none; bool [K, C]; or None.
            num_classes: C; None where the corpus has no classes.

        Raises:
            DataError: a label is not below C; or an option goes by classes, and rows have none.
        """
        total = len(store)
        selected = SelectedRows(total)
        ids = np.arange(total)
        if self.limit is not None and self.limit < total:
            ids = selected.rows = np.sort(np.argsort(self._draw(ids, CHOICE), kind="stable")[: self.limit])
        if num_classes is None:
            return selected
        if not self._by_class:
            selected.class_counts = count_classes(store, ids, num_classes)
            return selected
        own = self._known_labels(store, num_classes)
        if self.imbalance > 1 or self.largest is not None:
            ids = self._long_tailed(ids, own[ids], num_classes)
            selected.rows = ids if len(ids) < total else None
        labels = own
        if self.label_noise:
            labels = selected.labels = self._noisy(own, ids, num_classes, "train")
            selected.changed = int((labels[ids] != own[ids]).sum())
        counts = np.bincount(labels[ids], minlength=num_classes)
        selected.class_counts = counts.tolist()
        if self.sampler is not None:
            selected.weights = (np.maximum(counts, 1) ** (SAMPLER_POWERS[self.sampler] - 1.0))[labels[ids]]
        return selected

    def validation_labels(self, store: Any, num_classes: int | None) -> np.ndarray | None:
        """int64 [N], noisy; None where validation has the corpus' own labels."""
        if not (self.noisy_val and self.label_noise) or num_classes is None:
            return None
        labels = store.labels_of(np.arange(len(store)))
        if labels is None:
            return None
        return self._noisy(labels.astype(np.int64), np.flatnonzero(labels >= 0), num_classes, "val")

    def _noisy(
        self, labels: np.ndarray, ids: np.ndarray, num_classes: int, split: Literal["train", "val"]
    ) -> np.ndarray:
        """The labels of a split, int64 [N], of which `label_noise` of those at `ids` are replaced."""
        whether, which = NOISE[split]
        order = np.argsort(self._draw(ids, whether), kind="stable")
        changed = ids[order[: round(self.label_noise * len(ids))]]
        others = (self._draw(changed, which) % np.uint64(num_classes - 1)).astype(np.int64)
        labels = labels.copy()
        labels[changed] = (labels[changed] + 1 + others) % num_classes
        return labels

    @property
    def _by_class(self) -> dict[str, Any]:
        return {name: value for name, value in self.typed.items() if name != "limit"}

    def _known_labels(self, store: Any, num_classes: int) -> np.ndarray:
        """int64 [N], each of them a class."""
        name, value = next(iter(self._by_class.items()))
        labels = store.labels_of(np.arange(len(store)))
        labels = np.full(len(store), -1) if labels is None else labels.astype(np.int64)
        _check_labels(labels, num_classes)
        if missing := np.count_nonzero(labels < 0):
            raise DataError(
                f"{name}={value}: goes by the class of a row, and {missing:,} training rows have none"
            )
        if self.label_noise and num_classes < 2:
            raise DataError(f"label_noise={self.label_noise}: there is one class only, and no other to take")
        return labels

    def _draw(self, rows: np.ndarray, stream: int) -> np.ndarray:
        """uint64 of (seed, stream, row)."""
        return mixed(mixed(rows, self.seed), stream)

    def _long_tailed(self, ids: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
        there = np.bincount(labels, minlength=num_classes)
        wanted = long_tail_profile(self.largest or int(there.max()), self.imbalance, num_classes)
        order = np.lexsort((self._draw(ids, CHOICE), labels))
        place = np.arange(len(ids)) - np.repeat(np.cumsum(there) - there, there)
        return np.sort(ids[order[place < wanted[labels[order]]]])


def long_tail_profile(largest: int, imbalance: float, num_classes: int) -> np.ndarray:
    """int64 [C]: largest * imbalance ** (-c / (C - 1)) rows of class c, rounded down, at least 1."""
    exponents = np.arange(num_classes) / max(num_classes - 1, 1)
    # 49 * 49.0 ** -1 is a little less than 1.
    return np.maximum(np.floor(largest * float(imbalance) ** -exponents + 1e-9), 1).astype(np.int64)


def count_classes(store: Any, rows: np.ndarray, num_classes: int) -> list[int]:
    """How many of the rows, [K] ids, belong to each of C classes; of rows with several labels, positives.

    Raises:
        DataError: a label is not below C.
    """
    counts = np.zeros(num_classes, dtype=np.int64)
    for start in range(0, len(rows), ROWS_AT_A_TIME):  # several labels a row come as a matrix
        labels = store.labels_of(rows[start : start + ROWS_AT_A_TIME])
        if labels is None:
            break
        if labels.ndim == 2:
            counts += labels.sum(axis=0)
        else:
            _check_labels(labels, num_classes)
            counts += np.bincount(labels[labels >= 0], minlength=num_classes)
    return counts.tolist()


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
    if labels.max(initial=-1) >= num_classes:
        raise DataError(
            f"a row has the label {labels.max()}, and the corpus {num_classes} classes, from 0 on"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
