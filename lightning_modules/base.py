"""What every technique shares: optimiser, schedule, reproducible dropout, export."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import nn

from datamodules.build import build
from datamodules.corpus import DataError


class Technique(pl.LightningModule):
    """A technique says what is drawn, what is computed and what the loss is; this class does the rest.

    Subclasses declare, as literals (the configuration check reads them without importing anything heavy):
        needs: what the corpus has to provide, e.g. {"text"}.
        metrics: the names of the metrics that they log.
        predict_tasks: task name -> one line; the method `predict_<task>(texts, inputs)` does it.

    Args:
        optimizer: options with `_target_` of a torch optimiser; parameters of one dimension (biases, norms) are
            left out of its weight decay.
        scheduler: options with `_target_` of a schedule: share of the run done -> factor of the learning rate.
        seed: seed of dropout and of the technique's own draws.
    """

    needs: frozenset[str] = frozenset()
    metrics: tuple[str, ...] = ()
    predict_tasks: dict[str, str] = {}

    def __init__(self, optimizer: dict | None, scheduler: dict | None, seed: int):
        super().__init__()
        self.optimizer_options = optimizer
        self.schedule = build(scheduler)
        self.seed = seed
        if optimizer is not None:
            # Wrong options are told now, not after the corpus was read.
            build(optimizer, [nn.Parameter(torch.zeros(()))])

    def check_corpus(self, datamodule: Any) -> None:
        """Whether the technique can learn from a corpus, as far as that shows before it is read.

        Raises:
            ValueError: the corpus lacks what the technique needs, or does not fit it.
        """
        if missing := self.needs - datamodule.provides:
            raise ValueError(
                f"{type(self).__name__} needs {sorted(missing)}, {type(datamodule).__name__} has none"
            )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of `nn.Module`.

        Raises:
            DataError: the weights are those of another network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise DataError(
                f"ckpt_path: the checkpoint holds another network than the options describe ({first}); use "
                "the options of its run (its config.yaml)"
            ) from error

    def configure_optimizers(self) -> Any:
        if self.optimizer_options is None:
            raise ValueError(
                "optimizer: training needs one, e.g. {'_target_': 'torch.optim.AdamW', 'lr': 1e-3}"
            )
        decay, no_decay = [], []
        for parameter in self.parameters():
            if parameter.requires_grad:
                (decay if parameter.ndim > 1 else no_decay).append(parameter)
        groups = [
            {"params": decay, "name": "weights"},
            {"params": no_decay, "name": "biases_and_norms", "weight_decay": 0.0},
        ]
        optimizer = build(self.optimizer_options, groups)
        if self.schedule is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        latest: dict[int, float] = {}

        def factor(step: int) -> float:
            # Asked for each parameter group: one answer a step, also where the clock decides.
            if step not in latest:
                latest.clear()
                latest[step] = self.schedule(self._progress(step, steps))
            return latest[step]

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout as a function of the place in the run: a resumed run draws what the uninterrupted one draws.
        place = f"{self.seed} {self.current_epoch} {batch_idx} {self.global_rank}"
        torch.manual_seed(
            int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1
        )

    def plot(self, directory: Path, tokenizer: Any) -> None:
        """Draw the technique's own pictures of its last evaluation into `directory`."""

    def export(self, directory: Path) -> None:
        """Write the trained network in Hugging Face's layout."""
        raise NotImplementedError

    def _progress(self, step: int, steps: float) -> float:
        """Share of the run that is done at optimiser step `step`: of the steps, or of the time if that is more."""
        done = (step + 1) / (steps + 1)
        timer = next((c for c in self.trainer.callbacks if isinstance(c, Timer)), None)
        if timer is not None and timer.time_remaining() is not None:
            elapsed = timer.time_elapsed()
            done = max(done, elapsed / (elapsed + timer.time_remaining()))
        return done
