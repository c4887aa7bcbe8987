"""The synthetic set of the flooding paper: points of a disc on both sides of a sine curve."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from datamodules.arrays import ArrayDataModule, ArrayStore
from datamodules.base import SPLITS, Split

RADIUS = 2.0


class Sinusoid2D(ArrayDataModule):
    """Points uniform in a disc of radius 2; class 1 where 1.5 x1 + sin(1.5 x2) > 0, else 0 (Ishida et al. 2020, arXiv
    2002.08709: "Sinusoid"). Labels are noisy with `label_noise`, those of validation with `noisy_val`, of test never.

    Args:
        train, val, test: points of each split.
        options: as of `ArrayDataModule`; the seed also draws the points.

    Raises:
        ValueError: an option's value cannot be used.
    """

    kind = "vector"
    provides = frozenset({"vector", "label"})
    label_names = ["negative", "positive"]

    def __init__(
        self,
        train: Annotated[int, "x >= 1"] = 100,
        val: Annotated[int, "x >= 0"] = 100,
        test: Annotated[int, "x >= 0"] = 20000,
        **options: Any,
    ):
        super().__init__(**options)
        self.sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
        for split, size in self.sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < (split == "train"):
                raise ValueError(
                    f"{split}={size}: must be a whole number of points, {int(split == 'train')} or more"
                )

    def load(self) -> dict[Split, ArrayStore]:
        stores = {}
        for number, split in enumerate(SPLITS):
            random = np.random.Generator(np.random.PCG64([self.seed, number]))
            radius = RADIUS * np.sqrt(random.random(self.sizes[split]))
            angle = 2 * np.pi * random.random(self.sizes[split])
            points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
            positive = 1.5 * points[:, 0] + np.sin(1.5 * points[:, 1]) > 0
            stores[split] = ArrayStore(points.astype(np.float32), positive)
        return stores

    def describe(self) -> dict[str, Any]:
        return {"source": f"drawn with seed {self.seed}", "synthetic": False, "points": self.sizes}
