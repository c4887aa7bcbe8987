"""scikit-learn's digits: 1,797 images of 8 x 8 pixels, which come with the library."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from datamodules.arrays import ArrayDataModule, ArrayStore, cut
from datamodules.base import SPLITS, Split
from datamodules.corpus import check_split


class Digits(ArrayDataModule):
    """The test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI), 174 to 183 images of
    each of ten digits; pixels are multiples of 1/16 from 0 to 1.

    Args:
        split: fractions of training, validation and, with a third one, test rows; of every digit alike, by the seed.
        options: as of `ArrayDataModule`.

    Raises:
        ValueError: an option's value cannot be used.
    """

    kind = "image"
    provides = frozenset({"image", "vector", "label"})
    label_names = [str(digit) for digit in range(10)]

    def __init__(self, split: list[Annotated[float, "0 < x < 1"]] | None = None, **options: Any):
        super().__init__(**options)
        self.fractions = [0.6, 0.15, 0.25] if split is None else split
        check_split(self.fractions)

    def load(self) -> dict[Split, ArrayStore]:
        # scikit-learn takes a second to import.
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)[:, None]
        return dict(zip(SPLITS, cut(images, digits.target, self.fractions, self.seed), strict=False))

    def describe(self) -> dict[str, Any]:
        return {"source": "sklearn.datasets.load_digits", "synthetic": False, "split": list(self.fractions)}
