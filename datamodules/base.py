"""What corpora of texts and of arrays share: the selection of rows, whole optimiser steps, loaders, what is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import pytorch_lightning as pl
import torch

from datamodules.batch import Batch
from datamodules.corpus import DataError, listed
from datamodules.plan import (
    TOKENS,
    BatchPlan,
    PlannedLoader,
    PlannedRows,
    Unit,
    evaluation_batches,
    micro_batches,
)
from datamodules.selection import SelectedRows, Selection, count_classes

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Store(Protocol):
    """The rows of a split.

    Attributes:
        lengths: int64 [N], tokens of each row; ones where a row has none.
        facts: plain values, at least num_rows and labelled_rows.
    """

    lengths: np.ndarray
    facts: dict[str, Any]

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows of these ids, in this order."""

    def labels_of(self, rows: np.ndarray) -> np.ndarray | None:
        """The labels of these rows: integers [K], -1 where a row has none; bool [K, C]; None: the split has no labels."""


class Budget(NamedTuple):
    """Attributes: what a step and a device hold, and the length of the longest row, in units."""

    per_batch: int
    per_device: int
    longest: int


class CorpusDataModule(pl.LightningDataModule):
    """Batches of a corpus whose rows lie in a `Store` for each split.

    A subclass sets `stores` in `setup`, calls `select_rows` then, and has `budget` and `describe`. It declares, as
    literals (the configuration check reads them without importing anything heavy), what it `provides`, and as
    `metrics` the names in `metric_values()`.

    Args:
        num_workers: processes that assemble batches; 0: the training process does it between steps.
        seed: seed of the order of rows and of every choice among them.
        limit, long_tail, label_noise, noisy_val, sampler: which rows are trained on, see `Selection`.

    Attributes:
        label_names: of the classes, in order; None where rows have no labels.
        multi_label: a row may have several labels; `label_names` are needed then.
        tokenizer: None where there are no texts.
        stores: the splits, after `setup`.
        selected: of the training split, after `setup`.

    Raises:
        ValueError: an option's value cannot be used.
    """

    kind: str
    provides: frozenset[str] = frozenset()
    metrics: tuple[str, ...] = ()
    label_names: list[str] | None = None
    multi_label = False
    tokenizer: Any = None
    unit: Unit = TOKENS

    def __init__(
        self,
        num_workers: Annotated[int, "x >= 0"] = 0,
        seed: int = 0,
        limit: Annotated[int, "x >= 1"] | None = None,
        long_tail: dict | None = None,
        label_noise: Annotated[float, "0 <= x < 1"] = 0.0,
        noisy_val: bool = False,
        sampler: Literal["balanced", "square_root"] | None = None,
    ):
        super().__init__()
        self.num_workers = num_workers
        self.seed = seed
        self.sampler = sampler
        self.selection = Selection(limit, long_tail, label_noise, noisy_val, sampler, seed)
        self.stores: dict[Split, Store] = {}
        self.selected = SelectedRows(0)
        self._val_labels: np.ndarray | None = None

    @property
    def budget(self) -> Budget:
        """How large steps are."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the summary says of the corpus; at least {"source": ...}."""
        raise NotImplementedError

    def metric_values(self) -> dict[str, float]:
        """What a run reports of its training split beside the scores, after `setup`."""
        return {}

    @property
    def facts(self) -> dict[str, Any]:
        """What a technique must know of the corpus, as primitives: sizes, labels."""
        return {
            "num_train_rows": len(self.selected),
            "label_names": self.label_names,
            "class_counts": self.selected.class_counts,
            "multi_label": self.multi_label,
            "sampler": self.sampler,
        }

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of the corpus, after `setup`: where it comes from, its splits, what is trained on."""
        splits = {split: {**store.facts} for split, store in self.stores.items()}
        for facts in splits.values():
            facts.pop("arrays", None)
        return {
            **self.describe(),
            **({} if self.tokenizer is None else {"vocab_size": self.tokenizer.vocab_size}),
            "splits": splits,
            "trained_on": {
                "rows": len(self.selected),
                "of": self.selected.total,
                "changed_labels": self.selected.changed,
                "changed_val_labels": self._changed_val_labels,
                "class_counts": self.selected.class_counts,
                **self.selection.typed,
            },
        }

    def num_rows(self, split: Split) -> int:
        """Rows that are trained on, or evaluated."""
        return len(self.selected) if split == "train" else len(self.stores[split])

    def has_labels(self, split: Split) -> bool:
        """Whether any row of the split has a label."""
        return self.stores[split].facts["labelled_rows"] > 0

    def check_selection(self) -> None:
        """To be called before rows are read.

        Raises:
            ValueError: an option goes by the class of a row, and rows have none or several.
        """
        self.selection.check("label" in self.provides, self.multi_label)

    def select_rows(self) -> None:
        """Settles which of the stores' rows are trained on, and with which labels; says so.

        Raises:
            DataError: there is no training row, or its label is no class.
        """
        if not len(self.stores["train"]):
            raise DataError(f"{self.describe()['source']}: the corpus has no training rows")
        num_classes = None if self.label_names is None else len(self.label_names)
        self.selected = self.selection.training_rows(self.stores["train"], num_classes)
        self._val_labels = self.selection.validation_labels(self.stores["val"], num_classes)
        self.selected.val_labels = self._val_labels
        self._tell_selection()
        if num_classes is not None:
            self._warn_of_unseen_classes()

    def accumulate_grad_batches(self, world_size: int) -> int:
        """Micro-batches a step: what Trainer(accumulate_grad_batches=) has to be."""
        return micro_batches(*self.budget, world_size)

    def train_dataloader(self) -> PlannedLoader:
        trainer, store, budget = self.trainer, self.stores["train"], self.budget
        accumulate = self.accumulate_grad_batches(trainer.world_size)
        if trainer.accumulate_grad_batches != accumulate:
            raise ValueError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}): {self.unit.per_batch}="
                f"{budget.per_batch} under {self.unit.per_device}={budget.per_device} on {trainer.world_size} rank(s) "
                f"needs accumulate_grad_batches={accumulate}"
            )
        parts = trainer.world_size * accumulate
        plan = BatchPlan(store.lengths, budget.per_batch, self.seed, parts, self.selected, self.unit)
        count = getattr(trainer.lightning_module, "count_targets", None)
        rows = PlannedRows(
            plan,
            _collate(store, self.selected.labels),
            count,
            trainer.global_rank,
            trainer.world_size,
            accumulate,
        )
        limit, repeat = trainer.limit_train_batches, trainer.overfit_batches > 0
        return PlannedLoader(rows, self.num_workers, _on_gpu(trainer), limit, repeat)

    def val_dataloader(self) -> torch.utils.data.DataLoader | list:
        return self._evaluation_loader("val", self._val_labels)

    def test_dataloader(self) -> torch.utils.data.DataLoader | list:
        return self._evaluation_loader("test")

    def _evaluation_loader(
        self, split: Split, labels: np.ndarray | None = None
    ) -> torch.utils.data.DataLoader | list:
        store = self.stores[split]
        if not len(store):
            return []
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batches = evaluation_batches(store.lengths, self.budget.per_device, world_size)
        return torch.utils.data.DataLoader(
            _EvaluationRows(_collate(store, labels), batches[rank::world_size]),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=_on_gpu(self.trainer),
            collate_fn=_as_it_is,
        )

    @property
    def _changed_val_labels(self) -> int:
        if self._val_labels is None:
            return 0
        own = self.stores["val"].labels_of(np.arange(len(self._val_labels)))
        return int((own != self._val_labels).sum())

    def _tell_selection(self) -> None:
        typed, selected = self.selection.typed, self.selected
        if not typed:
            return
        options = ", ".join(f"{name}={value}" for name, value in typed.items())
        line = f"{options}: {len(selected):,} of {selected.total:,} training rows"
        if self.selection.label_noise:
            line += f", {selected.changed:,} of them with another label"
            if self._val_labels is not None:
                line += f"; {self._changed_val_labels:,} of {len(self._val_labels):,} validation rows too"
        if selected.class_counts is not None:
            line += f"; of a class {min(selected.class_counts):,} to {max(selected.class_counts):,}"
        log.info(line)

    def _warn_of_unseen_classes(self) -> None:
        unseen = np.array(self.selected.class_counts) == 0
        for split in SPLITS[1:] if unseen.any() else ():
            store = self.stores[split]
            counts = np.array(count_classes(store, np.arange(len(store)), len(unseen)))
            if rows := counts[unseen].sum():
                classes = (
                    f"{self.label_names[i]} ({counts[i]:,})" for i in np.flatnonzero(unseen & (counts > 0))
                )
                log.warning(
                    f"{rows:,} labels of {split} are of classes without a training row: {listed(classes)}"
                )


class _Relabelled:
    """The rows of a store with labels, int64 [N], in the place of its own."""

    def __init__(self, store: Store, labels: np.ndarray):
        self.store = store
        self.labels = labels

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        batch = self.store.batch(rows, epoch)
        batch.labels = torch.from_numpy(self.labels[rows])
        return batch


def _collate(store: Store, labels: np.ndarray | None) -> Callable[..., Batch]:
    return store.batch if labels is None else _Relabelled(store, labels).batch


class _EvaluationRows(torch.utils.data.Dataset):
    def __init__(self, collate: Callable[[np.ndarray], Batch], batches: list[np.ndarray]):
        self.collate = collate
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.collate(self.batches[index])


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _on_gpu(trainer: pl.Trainer) -> bool:
    return trainer.strategy.root_device.type == "cuda"
