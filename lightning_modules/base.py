"""What every technique shares: optimiser, schedule, reproducible dropout, the loss of a whole step, evaluation, export."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torchmetrics import Metric

from datamodules.batch import num_rows
from datamodules.build import build
from datamodules.corpus import DataError


class Technique(pl.LightningModule):
    """A technique says what is drawn, what is computed and what the loss is; this class does the rest.

    Subclasses have `training_step`, which returns `step_loss(...)`, and for validation and test `evaluate` and
    `compute_scores`. Where not every token is a target, `count_targets(batch)` says how many there are; it is asked on
    the CPU, while a batch is assembled.

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
        self._sums: dict[str, Tensor] = {}  # of the micro-batches of the step under way
        self._micro_batches = 0
        self._step = 0
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

    def compile(self, **options: Any) -> None:
        """Compile `network` in place, with the options of torch.compile, also where its weights are made later.

        Checkpoints keep their keys: a run may go on with and without. A technique whose time goes elsewhere overrides it.
        """
        self.network.compile(**options)

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

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Under FSDP a rank has a part of each gradient: the norm is of all ranks, and the wrapped model knows it.
        clip_sharded = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if clip_sharded is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_sharded(gradient_clip_val)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """The buffers that never change: those that checkpoints leave out, and what scores are held against. DDP would
        send them from rank 0 to all ranks before each forward pass, in validation too."""
        saved = self.state_dict().keys()
        metrics = {name for name, module in self.named_modules() if isinstance(module, Metric)}
        buffers = [name for name, _ in self.named_buffers()]
        return [name for name in buffers if name not in saved or name.rpartition(".")[0] in metrics]

    def step_loss(self, loss: Tensor, batch: Any, /, **logged: Tensor) -> Tensor:
        """A micro-batch's share of the optimiser step's loss: what `training_step` returns.

        Lightning takes the mean over micro-batches and DDP over ranks; weighted like this it is the mean over all
        targets of the step, however the step was cut. The same mean is logged, every `log_every_n_steps` and where an
        epoch or the training ends; only there do the ranks exchange it.

        Args:
            loss: what is minimised, the mean over the batch's own targets. A batch without a target gives 0, with a
                graph through all parameters: DDP waits for each of them.
            batch: its `loss_weight` is taken; 1 where it has none.
            logged: the means to log as `train/<name>`, the same names on every rank; without any, `loss` is logged
                as `train/loss`.
        """
        weight = getattr(batch, "loss_weight", 1.0)
        self._micro_batches += 1
        for name, value in (logged or {"loss": loss}).items():
            self._sums[name] = self._sums.get(name, 0) + value.detach() * weight
        return loss * weight

    def evaluate(self, batch: Any) -> None:
        """Add the rows of a validation or test batch to the scores. Never called for a batch without rows: a rank for
        which a split has too few rows gets one."""
        raise NotImplementedError

    def compute_scores(self, split: Literal["val", "test"]) -> dict[str, Tensor]:
        """The scores of all rows on all ranks by the names under which they are logged; the next evaluation starts
        from nothing. Every rank calls it."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if num_rows(batch):
            self.evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        if num_rows(batch):
            self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: Literal["val", "test"]) -> None:
        with warnings.catch_warnings():
            # It speaks of a rank without rows.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
            scores = self.compute_scores(split)
        # All ranks have the same already; without `sync_dist` Lightning warns.
        self.log_dict(scores, batch_size=1, sync_dist=True)

    def on_train_start(self) -> None:
        self._sums, self._micro_batches, self._step = {}, 0, self.global_step
        if self.trainer.overfit_batches:
            for module in self.modules():  # nothing but a mistake may keep the loss from falling to zero
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.p = 0.0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        if trainer.global_step == self._step:
            return  # the step goes on with the next micro-batch
        self._step = trainer.global_step
        sums, count = self._sums, self._micro_batches
        self._sums, self._micro_batches = {}, 0
        every = trainer.log_every_n_steps
        last = trainer.should_stop or trainer.is_last_batch or self._step == trainer.max_steps
        if sums and (last or (every and self._step % every == 0)):
            means = trainer.strategy.reduce(torch.stack(list(sums.values())) / count, reduce_op="mean")
            for name, mean in zip(sums, means, strict=True):
                self.log(f"train/{name}", mean, prog_bar=name == "loss", on_step=True, on_epoch=False)

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
