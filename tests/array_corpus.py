"""A corpus of arrays in memory, and as much of a trainer as its loaders ask."""

from types import SimpleNamespace

import numpy as np
import torch

from datamodules.arrays import ArrayDataModule, ArrayStore

LABELS = np.random.Generator(np.random.PCG64(0)).integers(0, 4, size=1000)


class Labelled(ArrayDataModule):
    """Rows that are their own row id; 1000 in each split, in four classes."""

    kind = "vector"
    provides = frozenset({"vector", "label"})
    label_names = ["a", "b", "c", "d"]

    def __init__(self, labels: np.ndarray = LABELS, evaluated: np.ndarray = LABELS, **options):
        super().__init__(**options)
        self.given, self.evaluated = labels, evaluated

    def load(self):
        def store(labels):
            return ArrayStore(np.arange(len(labels), dtype=np.float32)[:, None], labels)

        return {"train": store(self.given), "val": store(self.evaluated), "test": store(self.evaluated)}

    def describe(self):
        return {"source": "memory"}


def attach(data, rank=0, world_size=1, accumulate=1, **options):
    """The part of a trainer that loaders ask."""
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate,
        limit_train_batches=1.0,
        overfit_batches=0,
        lightning_module=None,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        **options,
    )
    return data
