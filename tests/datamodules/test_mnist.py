"""MNIST's files: names, compression, and everything that can be wrong with them."""

import gzip
import struct

import numpy as np
import pytest
from array_corpus import attach
from real_data import needs_real_data, real

from datamodules.corpus import DataError
from datamodules.mnist import MNIST

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def images(rows: int, size: int = 4) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(rows)).integers(0, 256, (rows, size, size)).astype(np.uint8)


def labels(rows: int) -> np.ndarray:
    return (np.arange(rows) % 10).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for split, rows in (("train", 200), ("t10k", 50)):
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(images(rows)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels(rows)))
    return tmp_path


def set_up(folder, **options) -> MNIST:
    data = MNIST(str(folder), **options)
    data.setup()
    return data


def test_validation_is_held_out_of_training_and_t10k_is_the_test(folder):
    data = set_up(folder, val=0.2)
    assert [np.bincount(store.labels).tolist() for store in data.stores.values()] == [
        [16] * 10,
        [4] * 10,
        [5] * 10,
    ]
    assert data.facts["shape"] == [1, 4, 4] and data.kind == "image"
    batch = next(iter(attach(data).test_dataloader()))
    np.testing.assert_allclose(batch.values[:, 0], images(50)[batch.row_ids] / 255, rtol=1e-6)
    assert batch.labels.tolist() == labels(50)[batch.row_ids].tolist()
    known = {image.tobytes(): label for image, label in zip(images(200), labels(200), strict=True)}
    for split in ("train", "val"):
        store = data.stores[split]
        assert [known[image.tobytes()] for image in store.values] == store.labels.tolist()


@pytest.mark.parametrize("name", ["{}.gz", "dotted", "{}.fixed.gz"])
def test_files_are_found_by_the_beginning_of_their_names(folder, name):
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        if name == "dotted":
            (folder / path.name.replace("-idx", ".idx")).write_bytes(content)
        else:
            (folder / name.format(path.name)).write_bytes(gzip.compress(content))
    assert [len(store) for store in set_up(folder).stores.values()] == [180, 20, 50]


def test_without_t10k_there_is_no_test(folder):
    for path in folder.glob("t10k*"):
        path.unlink()
    data = set_up(folder)
    assert data.num_rows("test") == 0 and "test" not in data.describe()["files"]


HEADER = bytes((0, 0, 8, 3))


@pytest.mark.parametrize(
    "name, content, message",
    [
        (IMAGES, b"", "begins with 0x, not 0x00000803"),
        (IMAGES, b"<html>not found</html>", "no idx file of unsigned bytes in 3 dimensions: it begins with 0x3c68746d"),
        (IMAGES, idx(labels(200)), "begins with 0x00000801, not 0x00000803"),
        (LABELS, idx(images(200)), "unsigned bytes in 1 dimension: it begins with 0x00000803, not 0x00000801"),
        (IMAGES, bytes((0, 0, 13, 3)) + idx(images(200))[4:], "begins with 0x00000d03"),
        (IMAGES, HEADER + b"\0\0", r"ends within its header \(cut off\?\)"),
        (IMAGES, idx(images(200))[:-5], r"holds 3,195 values, where its sizes \[200, 4, 4\] need 3,200 \(cut off\?\)"),
        (IMAGES, idx(images(200)) + b"\0", r"holds more values than its sizes \[200, 4, 4\] need"),
        (IMAGES, HEADER + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), r"holds 0 values, where its sizes \[4294967295"),
        (IMAGES, HEADER + struct.pack(">3I", 200, 0, 4), r"holds no pixel, its sizes are \[200, 0, 4\]"),
        (LABELS, idx(labels(199)), "199 labels, where .*train-images-idx3-ubyte has 200 images"),
        (LABELS, idx(labels(200) + 1), "the label of image 9 is 10, must be 0 to 9"),
        (IMAGES, gzip.compress(idx(images(200))), r"gzip-compressed, but its name does not end in \.gz: rename it"),
        ("t10k-images-idx3-ubyte", idx(images(50, 5)), r"images of \[5, 5\] pixels, those of .*train-images.* have \[4, 4\]"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        set_up(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (gzip.compress(idx(images(200)))[:-300], r"the compressed file ends early \(cut off\?\)"),
        (idx(images(200)), "not a whole gzip file"),
    ],
)
def test_a_compressed_file_that_is_damaged_is_named(folder, content, message):
    (folder / IMAGES).unlink()
    (folder / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(DataError, match=f"{IMAGES}.gz: {message}"):
        set_up(folder)


@pytest.mark.parametrize("missing", [IMAGES, LABELS, "t10k-labels-idx1-ubyte"])
def test_half_of_a_pair_is_told(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"no {missing}, also with .gz, beside "):
        MNIST(str(folder))


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", "no such folder"),
        (IMAGES, "a file; name the folder that it lies in"),
        ("empty", "no train-images-idx3-ubyte and"),
    ],
)
def test_a_source_that_is_none_is_told(folder, source, message):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=f"source=.*{source}: {message}"):
        MNIST(str(folder / source))


@pytest.mark.parametrize("val", [0, 1, 1.5, "a"])
def test_a_wrong_fraction_is_told(folder, val):
    with pytest.raises(ValueError, match=f"val={val}: must be above 0 and below 1"):
        MNIST(str(folder), val=val)


@needs_real_data
def test_the_published_files():
    data = set_up(real("mnist"), val=0.1, limit=1000)
    assert data.facts["shape"] == [1, 28, 28] and len(data.stores["train"]) + len(data.stores["val"]) == 60000
    batch = next(iter(attach(data).train_dataloader()))
    assert 0.1 < batch.values.mean() < 0.17 and batch.values.max() <= 1
