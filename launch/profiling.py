"""Where the time of a training step goes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

log = logging.getLogger(__name__)


class TorchProfile(Callback):
    """Records a few training batches with torch's profiler, on rank zero.

    Lightning's own profiler records every stage anew and keeps the last one of each that it finds; a validation of one
    batch leaves a table without a training step, or an error.

    Args:
        dirpath: gets `operations.txt`, the operations by the time that they took themselves, and `trace.json.gz`, a
            timeline for https://ui.perfetto.dev.
        skip: batches before the first recorded one: compilation, memory, caches.
        batches: how many are recorded.
        row_limit: operations in the table.
        profile_memory: record how much memory operations take, too.
        with_stack: record the lines of Python that called them, too; many times larger.
    """

    def __init__(
        self,
        dirpath: str,
        skip: Annotated[int, "x >= 0"] = 3,
        batches: Annotated[int, "x >= 1"] = 3,
        row_limit: Annotated[int, "x >= 1"] = 30,
        profile_memory: bool = False,
        with_stack: bool = False,
    ) -> None:
        self.directory = Path(dirpath)
        self.skip = skip
        self.batches = batches
        self.row_limit = row_limit
        self.options = {"profile_memory": profile_memory, "with_stack": with_stack}
        self._seen = 0
        self._profile: torch.profiler.profile | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and self._seen == self.skip:
            self._profile = torch.profiler.profile(**self.options)
            self._profile.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        if self._profile is not None and self._seen == self.skip + self.batches:
            self._stop(trainer.strategy.root_device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._profile is not None:  # the training was shorter
            self._stop(trainer.strategy.root_device)
        elif self._seen <= self.skip and trainer.is_global_zero:
            log.warning(
                f"nothing profiled: the training had {self._seen} batches; type callbacks.profile.skip=0"
            )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self._profile is not None:  # else no other job of this process could start one
            self._profile.stop()
            self._profile = None

    def _stop(self, device: torch.device) -> None:
        profile, self._profile = self._profile, None
        profile.stop()
        self.directory.mkdir(parents=True, exist_ok=True)
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=key, row_limit=self.row_limit, max_name_column_width=70)
        (self.directory / "operations.txt").write_text(table + "\n", encoding="utf-8")
        profile.export_chrome_trace(str(self.directory / "trace.json.gz"))
        log.info(f"{self._seen - self.skip} batches profiled: {self.directory}/operations.txt, trace.json.gz")
