"""Arrays of a prediction: what a .npy file must hold, and the batch that becomes of it."""

import numpy as np
import pytest
import torch

from datamodules.array_input import ArrayInput
from datamodules.corpus import DataError

VECTORS, IMAGES = ArrayInput((3,)), ArrayInput((1, 2, 2))


def saved(path, values):
    np.save(path, values)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_rows_become_float32_in_their_order(tmp_path, dtype):
    values = np.arange(12).reshape(4, 3).astype(dtype)
    read = VECTORS.read(saved(tmp_path / "a.npy", values))
    batch = VECTORS.encode([read[2], read[0]])
    assert (
        batch.values.dtype == torch.float32 and batch.values.tolist() == values[[2, 0]].astype(float).tolist()
    )
    assert batch.row_ids.tolist() == [0, 1] and batch.labels is None and batch.num_rows == 2


def with_one(value):
    values = np.zeros((9000, 3))
    values[8191, 1] = value
    return values


@pytest.mark.parametrize(
    "inputs, values, said",
    [
        (VECTORS, np.zeros((4, 2)), r"has the shape \[4, 2\], where numbers of shape \[N, 3\] are needed"),
        (VECTORS, np.zeros(3), r"\[N, 3\] are needed; a single row is saved as values\[None\]"),
        (
            IMAGES,
            np.zeros((5, 2, 2)),
            r"has the shape \[5, 2, 2\], where numbers of shape \[N, 1, 2, 2\] are needed",
        ),
        (
            IMAGES,
            np.zeros((5, 1, 2, 2), "uint8"),
            r"holds uint8, where images are numbers from 0 to 1; of bytes save",
        ),
        (VECTORS, np.zeros((4, 3), complex), "holds complex128, where numbers of shape"),
        (VECTORS, np.full((4, 3), "a"), "holds <U1, where numbers of shape"),
        (VECTORS, np.array([{}, None]), r"not a whole \.npy file of numbers of shape .*Python objects"),
        (VECTORS, with_one(np.nan), "row 8191: holds NaN, or a number that is not finite"),
        (VECTORS, with_one(-np.inf), "row 8191: holds NaN, or a number that is not finite"),
        (VECTORS, with_one(1e39), "row 8191: holds NaN, or a number that is not finite"),
    ],
)
def test_a_file_that_holds_something_else(tmp_path, inputs, values, said):
    with pytest.raises(DataError, match=said):
        inputs.read(saved(tmp_path / "a.npy", values))


def test_a_file_of_another_kind_or_cut_off(tmp_path):
    whole = saved(tmp_path / "a.npy", np.zeros((4, 3))).read_bytes()
    for content in (b"", b"no numbers", whole[:-8]):
        (tmp_path / "b.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"b\.npy: not a whole \.npy file"):
            VECTORS.read(tmp_path / "b.npy")
    np.savez(tmp_path / "c.npz", a=np.zeros((4, 3)))
    with pytest.raises(DataError, match="several arrays"):
        VECTORS.read((tmp_path / "c.npz").rename(tmp_path / "c.npy"))
