"""Checkpoints that are whole or not there at all."""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from datamodules.corpus import DataError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, on the same disk, and renames it; reads tensors and plain values
    only.

    Lightning's own goes through memory and the system's temporary folder: twice the memory, and a move
    between two disks, which a killed process leaves half done.

    Attributes:
        seconds: time spent in writing, so that `RunMetrics` can leave it out of the speed of training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to the local file `path`.

        Raises:
            OSError: naming the file and the free space of its disk, which keeps the checkpoint that was there
            before.
            TypeError: `storage_options` was given.
        """
        if storage_options is not None:
            raise TypeError("storage_options: local files have none")
        start = time.perf_counter()
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The same name at every write: what a killed process leaves is overwritten by the next.
        beside = path.with_name(f".{path.name}.tmp")
        try:
            with open(beside, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException as error:
            beside.unlink(missing_ok=True)
            # torch's zip writer tells of a full disk by a RuntimeError.
            if isinstance(error, (OSError, RuntimeError)):
                free = shutil.disk_usage(path.parent).free
                kept = "; the one written before is kept" if path.exists() else ""
                raise OSError(
                    f"{path}: checkpoint not written, {free:,} bytes free on its disk{kept} ({error})"
                ) from error
            raise
        finally:
            self.seconds += time.perf_counter() - start

    def load_checkpoint(
        self,
        path: str | os.PathLike,
        map_location: Callable | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read the checkpoint `path`; `weights_only=None` means True: no code in the file is run.

        Raises:
            FileNotFoundError: no such file.
            DataError: the file is damaged, or holds objects that are neither tensors nor plain values.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only is not False)
        except (FileNotFoundError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # damage shows as RuntimeError, UnpicklingError, EOFError, KeyError, ...
            if zipfile.is_zipfile(path) and "Weights only load failed" in str(error):
                raise DataError(
                    f"{path}: this checkpoint holds Python objects that could run code; only tensors and "
                    f"plain values are read ({str(error).splitlines()[0]})"
                ) from error
            raise DataError(
                f"{path}: this checkpoint is damaged or not a checkpoint; {_other(Path(path))}"
            ) from error


def _other(path: Path) -> str:
    others = sorted(other for other in path.parent.glob("*.ckpt") if other != path)
    if not others:
        return f"{path.parent} holds no other"
    return "use another: " + " or ".join(f"ckpt_path={other}" for other in others)
