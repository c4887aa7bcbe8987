"""The common part of every corpus that is arrays in memory: vectors or images, with labels."""

from __future__ import annotations

import hashlib
import logging
from typing import Annotated, Any

import numpy as np
import torch

from datamodules.base import SPLITS, Budget, CorpusDataModule, Split
from datamodules.batch import VectorBatch
from datamodules.corpus import DataError, assign_splits
from datamodules.plan import ROWS

log = logging.getLogger(__name__)


class ArrayStore:
    """A split in memory.

    Attributes:
        values: [N, ...]; a batch has them as float32, times `scale`.
        labels: int64 [N], the class of each row; -1 where it is not known.
        scale: what makes unsigned bytes numbers of 0 to 1.
        facts: num_rows, labelled_rows.

    Raises:
        DataError: there are not as many labels as rows.
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray, scale: float = 1.0):
        if len(values) != len(labels):
            raise DataError(f"{len(values):,} rows with {len(labels):,} labels")
        self.values = values
        self.labels = labels.astype(np.int64)
        self.scale = scale
        self.lengths = np.ones(len(values), dtype=np.int64)
        self.facts = {"num_rows": len(values), "labelled_rows": int((self.labels >= 0).sum())}

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> VectorBatch:
        """The rows of these ids, in this order."""
        values = torch.from_numpy(self.values[rows]).float()
        return VectorBatch(
            values=values if self.scale == 1 else values.mul_(self.scale),
            labels=torch.from_numpy(self.labels[rows]),
            row_ids=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
            epoch=epoch,
        )

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 [K], -1 where a label is not known."""
        return self.labels[rows]


class ArrayDataModule(CorpusDataModule):
    """Vectors or images as `VectorBatch`es.

    A corpus is a subclass that has `load`, `describe` and `label_names`, and declares its `kind` ("vector" or "image")
    and what it `provides`: images are vectors too, which a network may flatten.

    Args:
        batch_size: rows of one optimiser step, over all devices and micro-batches.
        max_rows_per_device: rows that a device holds at a time; more micro-batches make up the rest.
        options: as of `CorpusDataModule`.
    """

    unit = ROWS

    def __init__(
        self,
        batch_size: Annotated[int, "x >= 1"] = 128,
        max_rows_per_device: Annotated[int, "x >= 1"] = 4096,
        **options: Any,
    ):
        super().__init__(**options)
        for name, value in (("batch_size", batch_size), ("max_rows_per_device", max_rows_per_device)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value}: must be a whole number of rows, 1 or more")
        self.batch_size = batch_size
        self.max_rows_per_device = max_rows_per_device

    def load(self) -> dict[Split, ArrayStore]:
        """The splits that the corpus has, with rows of one shape."""
        raise NotImplementedError

    @property
    def budget(self) -> Budget:
        return Budget(self.batch_size, self.max_rows_per_device, longest=1)

    def setup(self, stage: str | None = None) -> None:
        if self.stores:
            return
        self.check_selection()
        stores = self.load()
        train = stores["train"]
        empty = ArrayStore(train.values[:0], train.labels[:0])
        self.stores = {split: stores.get(split, empty) for split in SPLITS}
        for split, store in self.stores.items():
            if len(store):
                log.info(f"{split}: {len(store):,} rows of {list(store.values.shape[1:])}")
        self.select_rows()

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.stores["train"].values.shape[1:]), **super().facts}


def cut(
    values: np.ndarray, labels: np.ndarray, fractions: list[float], seed: int, scale: float = 1.0
) -> list[ArrayStore]:
    """The rows in stores of the given fractions, as `assign_splits` cuts them: every class alike, equal rows on one side.

    Args:
        values: [N, ...]; labels: [N].
    """
    keys = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values]
    parts = assign_splits(np.frombuffer(b"".join(keys), dtype=np.uint64), labels, fractions, seed)
    chosen = (parts == part for part in range(len(fractions)))
    return [ArrayStore(values[rows], labels[rows], scale) for rows in chosen]
