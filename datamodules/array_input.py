"""Arrays that are not of the corpus: from a .npy file, checked, as batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.batch import VectorBatch
from datamodules.corpus import DataError

ROWS_PER_CHECK = 4096


@dataclass
class ArrayInput:
    """Prepares arrays as the rows of the corpus are; what `predict_<task>` gets besides the arrays.

    Attributes:
        shape: of a row: [D], or [C, H, W].
    """

    shape: tuple[int, ...]

    def encode(self, values: Sequence[np.ndarray]) -> VectorBatch:
        """N arrays of `shape` as one batch; row ids count from 0."""
        return VectorBatch(
            values=torch.from_numpy(np.stack(values).astype(np.float32)),
            labels=None,
            row_ids=torch.arange(len(values)),
        )

    def shown(self, values: np.ndarray) -> dict[str, Any]:
        """What a prediction says of its row: nothing, an array is known by its number."""
        return {}

    def read(self, path: str | Path) -> np.ndarray:
        """[N, *shape] finite numbers of a .npy file, memory-mapped.

        Raises:
            DataError: it holds anything else.
        """
        needed = f"numbers of shape [N, {', '.join(map(str, self.shape))}]"
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a whole .npy file of {needed} ({error})") from error
        if not isinstance(values, np.ndarray):
            raise DataError(f"{path}: several arrays, where a .npy file of {needed} is needed")
        if values.dtype.kind not in "fiub":
            raise DataError(f"{path}: holds {values.dtype}, where {needed} are needed")
        if len(self.shape) == 3 and values.dtype.kind != "f":
            raise DataError(
                f"{path}: holds {values.dtype}, where images are numbers from 0 to 1; of bytes save "
                "(values / 255).astype('float32')"
            )
        if values.shape[1:] != self.shape:
            one = "; a single row is saved as values[None]" if values.shape == self.shape else ""
            raise DataError(f"{path}: has the shape {list(values.shape)}, where {needed} are needed{one}")
        for start in range(0, len(values), ROWS_PER_CHECK):
            # As float32, which the network sees: what is too large for it is infinite there.
            with np.errstate(over="ignore"):
                part = values[start : start + ROWS_PER_CHECK].astype(np.float32)
            bad = ~np.isfinite(part).all(axis=tuple(range(1, part.ndim)))
            if bad.any():
                raise DataError(
                    f"{path}, row {start + int(bad.argmax())}: holds NaN, or a number that is not finite"
                )
        return values
