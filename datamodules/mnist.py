"""MNIST, or any images with labels in its file format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from datamodules.arrays import ArrayDataModule, ArrayStore, cut
from datamodules.base import Split
from datamodules.corpus import DataError
from datamodules.files import open_binary

NUM_CLASSES = 10
# Beginnings of names: the files are also seen as `train-images.idx3-ubyte`, and end in .gz where they are compressed.
IMAGES, LABELS = "images?idx3-ubyte", "labels?idx1-ubyte"
UNSIGNED_BYTES = 8
READ_AT_ONCE = 1 << 24


class MNIST(ArrayDataModule):
    """Images and labels in idx files (LeCun et al. 1998); Fashion-MNIST, KMNIST and others come in the same form.

    Args:
        source: the folder that holds train-images-idx3-ubyte, train-labels-idx1-ubyte and, to test on, the same two
            of t10k; also with .gz.
        val: the fraction of the training images that is held out for validation; of every class alike, by the seed.
        options: as of `ArrayDataModule`.

    Raises:
        ValueError: an option's value cannot be used.
        DataError: a file is not there.
    """

    kind = "image"
    provides = frozenset({"image", "vector", "label"})
    label_names = [str(digit) for digit in range(NUM_CLASSES)]

    def __init__(self, source: str, val: Annotated[float, "0 < x < 1"] = 0.1, **options: Any):
        super().__init__(**options)
        if isinstance(val, bool) or not isinstance(val, (int, float)) or not 0 < val < 1:
            raise ValueError(f"val={val}: must be above 0 and below 1")
        self.val = val
        self.source = source
        folder = Path(source).expanduser()
        if not folder.is_dir():
            what = "a file; name the folder that it lies in" if folder.exists() else "no such folder"
            raise DataError(f"source={source}: {what} (seen from {Path.cwd()})")
        self.files = {"train": _find(folder, "train"), "test": _find(folder, "t10k")}
        if self.files["train"] is None:
            raise DataError(
                f"source={source}: no train-images-idx3-ubyte and train-labels-idx1-ubyte, also with .gz, are there"
            )

    def load(self) -> dict[Split, ArrayStore]:
        images, labels = _read_split(*self.files["train"])
        train, val = cut(images, labels, [1 - self.val, self.val], self.seed, scale=1 / 255)
        stores: dict[Split, ArrayStore] = {"train": train, "val": val}
        if self.files["test"] is not None:
            images_file, labels_file = self.files["test"]
            test = ArrayStore(*_read_split(images_file, labels_file), scale=1 / 255)
            if test.values.shape[1:] != train.values.shape[1:]:
                raise DataError(
                    f"{images_file}: images of {list(test.values.shape[2:])} pixels, those of "
                    f"{self.files['train'][0]} have {list(train.values.shape[2:])}"
                )
            stores["test"] = test
        return stores

    def describe(self) -> dict[str, Any]:
        files = {
            split: [str(file) for file in files] for split, files in self.files.items() if files is not None
        }
        return {"source": self.source, "synthetic": False, "files": files, "val": self.val}


def _find(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The files of images and of labels; of several that fit, those with the shortest names. None: there are none.

    Raises:
        DataError: one of the two is missing.
    """
    patterns = [f"{split}-{kind}*" for kind in (IMAGES, LABELS)]
    found = [
        sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name)) for pattern in patterns
    ]
    if not any(found):
        return None
    for files, other, pattern in zip(found, reversed(found), patterns, strict=True):
        if not files:
            raise DataError(
                f"{folder}: no {pattern.replace('?', '-').rstrip('*')}, also with .gz, beside {other[0].name}"
            )
    return found[0][0], found[1][0]


def _read_split(images_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 1, H, W] and [N]."""
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_file}: {len(labels):,} labels, where {images_file} has {len(images):,} images"
        )
    if not images.size:
        raise DataError(f"{images_file}: holds no pixel, its sizes are {list(images.shape)}")
    if labels.max() >= NUM_CLASSES:
        row = int(np.argmax(labels >= NUM_CLASSES))
        raise DataError(
            f"{labels_file}: the label of image {row} is {labels[row]}, must be 0 to {NUM_CLASSES - 1}"
        )
    return images[:, None], labels


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """uint8 array of `ndim` dimensions from an idx file: two zero bytes, the type, the number of dimensions, each
    dimension's size as a big-endian 32-bit number, the values.

    Raises:
        DataError: the file is anything else.
    """
    with open_binary(path) as stream:
        header = stream.read(4 + 4 * ndim)
        if header[:2] == b"\x1f\x8b":
            raise DataError(f"{path}: gzip-compressed, but its name does not end in .gz: rename it")
        magic, wanted = header[:4], bytes((0, 0, UNSIGNED_BYTES, ndim))
        if magic != wanted:
            raise DataError(
                f"{path}: no idx file of unsigned bytes in {ndim} dimension{'s' * (ndim > 1)}: it begins with "
                f"0x{magic.hex()}, not 0x{wanted.hex()}"
            )
        if len(header) < 4 + 4 * ndim:
            raise DataError(f"{path}: ends within its header (cut off?)")
        shape = tuple(np.frombuffer(header, dtype=">u4", offset=4).tolist())
        size, values = math.prod(shape), bytearray()
        # A header that is wrong may name more bytes than the memory has: no more is read than there is.
        while len(values) < size and (piece := stream.read(min(size - len(values), READ_AT_ONCE))):
            values += piece
        if len(values) < size:
            raise DataError(
                f"{path}: holds {len(values):,} values, where its sizes {list(shape)} need {size:,} (cut off?)"
            )
        if stream.read(1):
            raise DataError(f"{path}: holds more values than its sizes {list(shape)} need")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
