"""What every technique shares: optimiser, schedule, regularisers, reproducible dropout, the loss of a whole step,
evaluation, export."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor, nn
from torchmetrics import Metric

from datamodules.batch import num_rows
from datamodules.build import build
from datamodules.corpus import DataError
from lightning_modules.regularizers.base import LossTransform, Penalty

log = logging.getLogger(__name__)

# Above it a pretrained network soon forgets what it knows.
HIGH_LEARNING_RATE = 2e-4


class Usage(NamedTuple):
    """What the model card of an export says.

    Attributes:
        task: the hub's pipeline_tag.
        scores: what the scores of the technique are.
        code: Markdown, how other libraries load the directory; `{needs}` stands where a needed package is named.
        command: what is typed behind `stage=predict ckpt_path=DIRECTORY`.
    """

    task: str
    scores: str
    code: str
    command: str


class Technique(pl.LightningModule):
    """A technique says what is drawn, what is computed and what the loss is; this class does the rest.

    Subclasses have `training_step`, which returns `step_loss(...)`, and for validation and test `evaluate` and
    `compute_scores`. Where not every token is a target, `count_targets(batch)` says how many there are; it is asked on
    the CPU, while a batch is assembled.

    Subclasses declare, as literals (the configuration check reads them without importing anything heavy):
        needs: what the corpus has to provide, e.g. {"text"}.
        metrics: the names of the metrics that they log.
        predict_tasks: task name -> one line; the method `predict_<task>(texts, inputs)` does it.
        evaluation_options: options of the constructor that may be typed anew when a trained model is evaluated or predicts.

    Args:
        optimizer: options with `_target_` of a torch optimiser; parameters of one dimension (biases, norms) are
            left out of its weight decay.
        scheduler: options with `_target_` of a schedule: share of the run done -> factor of the learning rate.
        seed: seed of dropout and of the technique's own draws.
        regularizer: name -> options with `_target_` of a `LossTransform` or a `Penalty`; several act at once, those that
            change the loss of the data before those that add to it.
    """

    needs: frozenset[str] = frozenset()
    metrics: tuple[str, ...] = ()
    predict_tasks: dict[str, str] = {}
    evaluation_options: tuple[str, ...] = ()

    def __init__(
        self, optimizer: dict | None, scheduler: dict | None, seed: int, regularizer: dict | None = None
    ):
        super().__init__()
        self.optimizer_options = optimizer
        self.schedule = build(scheduler)
        self.seed = seed
        built = {name: build(node) for name, node in (regularizer or {}).items()}
        self.transforms = {name: r for name, r in built.items() if isinstance(r, LossTransform)}
        self.penalties = {name: r for name, r in built.items() if isinstance(r, Penalty)}
        if others := built.keys() - self.transforms.keys() - self.penalties.keys():
            raise ValueError(f"regularizer.{min(others)}: is neither a LossTransform nor a Penalty")
        self._penalized: dict[str, dict[str, nn.Parameter]] = {}  # by penalty; settled when training starts
        self._sums: dict[str, Tensor] = {}  # of the micro-batches of the step under way
        self._micro_batches = 0
        self._step = 0
        self._regularized: Tensor | float = 0.0  # what the step's regularisers add to its objective
        if optimizer is not None:
            # Wrong options are told now, not after the corpus was read.
            build(optimizer, [nn.Parameter(torch.zeros(()))])
            if self.penalties and (decay := optimizer.get("weight_decay")):
                log.warning(
                    f"model.optimizer.weight_decay={decay} shrinks the weights beside model.regularizer="
                    f"[{','.join(self.penalties)}]; model.optimizer.weight_decay=0 leaves it to the regulariser"
                )

    def check_corpus(self, datamodule: Any) -> None:
        """Whether the technique can learn from a corpus, as far as that shows before it is read.

        Raises:
            ValueError: the corpus lacks what the technique needs, or does not fit it.
        """
        if missing := self.needs - datamodule.provides:
            raise ValueError(
                f"{type(self).__name__} needs {sorted(missing)}, {type(datamodule).__name__} has none"
            )

    def warn_of_high_rate(self) -> None:
        """Of a learning rate for training from scratch, where weights are taken from `init_from`."""
        rate, init_from = (self.optimizer_options or {}).get("lr", 0), self.hparams.init_from
        if init_from is not None and rate > HIGH_LEARNING_RATE:
            log.warning(
                f"model.optimizer.lr={rate} is a rate for training from scratch; for the weights of init_from={init_from} "
                "5e-6 to 5e-5 are usual"
            )

    def can_score(self, datamodule: Any, split: Literal["val", "test"]) -> bool:
        """Whether the split, after `setup`, holds rows that `evaluate` can score."""
        return datamodule.num_rows(split) > 0

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
        optimizer = build(self.optimizer_options, self._parameter_groups())
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

    def lr_factor(self, name: str) -> float:
        """What the learning rate of the parameter `name` is multiplied by."""
        return 1.0

    def _parameter_groups(self) -> list[dict[str, Any]]:
        kinds = {True: ("weights", {}), False: ("biases_and_norms", {"weight_decay": 0.0})}
        by_kind: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                by_kind[self.lr_factor(name), parameter.ndim > 1].append(parameter)
        # As the optimiser has it, also where it is not typed.
        rate = build(self.optimizer_options, [nn.Parameter(torch.zeros(()))]).defaults["lr"]
        groups = []
        for factor, decays in sorted(by_kind, reverse=True):
            name, options = kinds[decays]
            group = {"params": by_kind[factor, decays], "name": name, **options}
            if factor != 1:
                group |= {"name": f"{name}_x{factor:.3g}", "lr": rate * factor}
            groups.append(group)
        return groups

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
        epoch or the training ends; only there do the ranks exchange it. Regularisers act here (those of single examples)
        and in `on_before_optimizer_step`; `train/loss` is the loss without them, `train/objective` what is minimised.

        Args:
            loss: [K], the loss of each of the batch's own targets, or [], their mean. A batch without a target gives
                0, with a graph through all parameters: DDP waits for each of them.
            batch: its `loss_weight` is taken; 1 where it has none.
            logged: further means over the batch's targets, logged as `train/<name>`, the same names on every rank.

        Raises:
            ValueError: a regulariser takes the losses of single examples, and there is but their mean.
        """
        weight = getattr(batch, "loss_weight", 1.0)
        means = {"loss": _mean(loss)}
        if self.transforms or self.penalties:
            for name, transform in self.transforms.items():
                if transform.per == "example":
                    if loss.ndim == 0:
                        raise ValueError(
                            f"model.regularizer.{name}.per=example: this loss is one value a batch; type "
                            f"model.regularizer.{name}.per=batch"
                        )
                    loss = transform(loss)
            means["objective"] = _mean(loss)
        objective = means.get("objective", means["loss"])
        self._micro_batches += 1
        for name, value in {**means, **logged}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach() * weight
        return objective * weight

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What regularisers do to the gradient of the whole step, once it is there and before it is clipped.

        A transform f of the step's mean loss L scales the gradient by f'(L): the chain rule, for the L of all
        micro-batches and all ranks, which none of them knows by itself. Penalties add the gradients of the weights.
        """
        if not (self.transforms or self.penalties):
            return
        mean = self._sums["objective"] / self._micro_batches
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        of_step = [transform for transform in self.transforms.values() if transform.per == "batch"]
        with torch.enable_grad():
            added = torch.zeros_like(mean)
            if of_step:
                mean = self.trainer.strategy.reduce(mean, reduce_op="mean").requires_grad_()
                value = mean
                for transform in of_step:
                    value = transform(value)
                (slope,) = torch.autograd.grad(value, mean)
                torch._foreach_mul_(gradients, slope)
                added = value - mean
            for name, penalty in self.penalties.items():
                parameters = self._penalized[name]
                value = penalty(parameters)
                # Not `backward`: DDP would take it for another pass.
                slopes = torch.autograd.grad(value, [*parameters.values()])
                for parameter, slope in zip(parameters.values(), slopes, strict=True):
                    parameter.grad = slope if parameter.grad is None else parameter.grad.add_(slope)
                added = added + value
        self._regularized = added.detach()
        if self.transforms and self.trainer.global_step == 0:
            first = self.trainer.strategy.reduce(self._sums["loss"] / self._micro_batches, reduce_op="mean")
            for name, transform in self.transforms.items():
                if warning := transform.first_step(float(first)):
                    log.warning(f"model.regularizer.{name}: {warning}")

    def evaluate(self, batch: Any) -> None:
        """Add the rows of a validation or test batch to the scores. Never called for a batch without rows: a rank for
        which a split has too few rows gets one."""
        raise NotImplementedError

    def compute_scores(self, split: Literal["val", "test"]) -> dict[str, Tensor | float]:
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
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        for name, penalty in self.penalties.items():
            if isinstance(self.trainer.strategy, FSDPStrategy):
                raise ValueError(
                    f"model.regularizer.{name}: takes the norms of whole weights, and trainer=fsdp has shards of them; "
                    "use trainer=ddp"
                )
            if (
                getattr(self.optimizers().optimizer, "_step_supports_amp_scaling", False)
                and scaler is not None
            ):
                raise ValueError(
                    f"model.regularizer.{name}: a fused optimiser takes the scale from gradients only when it steps; type "
                    "model.optimizer.fused=false, or precision=bf16-mixed"
                )
            self._penalized[name] = penalty.select(self)
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
                if name == "objective":
                    mean = mean + self._regularized
                if not torch.isfinite(mean):
                    raise DataError(
                        f"train/{name} is {mean.item()} at step {self._step}: the training has diverged; lower "
                        "model.optimizer.lr or gradient_clip, or take precision=32-true"
                    )
                self.log(f"train/{name}", mean, prog_bar=name == "loss", on_step=True, on_epoch=False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout as a function of the place in the run: a resumed run draws what the uninterrupted one draws.
        place = f"{self.seed} {self.current_epoch} {batch_idx} {self.global_rank}"
        torch.manual_seed(
            int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1
        )

    def plot(self, directory: Path, tokenizer: Any) -> None:
        """Draw the technique's own pictures of its last evaluation into `directory`."""

    def export(self, directory: Path) -> Usage:
        """Write the trained network, in Hugging Face's layout where that has one for it."""
        raise NotImplementedError

    def exported_options(self) -> dict[str, Any]:
        """The options, as primitives, with which `load_export` gets the technique of an export."""
        return dict(self.hparams)

    def load_export(self, directory: Path) -> None:
        """Load what `init_from=directory` has not: called once the network is built."""

    def _progress(self, step: int, steps: float) -> float:
        """Share of the run that is done at optimiser step `step`: of the steps, or of the time if that is more."""
        done = (step + 1) / (steps + 1)
        timer = next((c for c in self.trainer.callbacks if isinstance(c, Timer)), None)
        if timer is not None and timer.time_remaining() is not None:
            elapsed = timer.time_elapsed()
            done = max(done, elapsed / (elapsed + timer.time_remaining()))
        return done


def _mean(losses: Tensor) -> Tensor:
    """The mean of the losses of targets; of none 0, with a graph."""
    return losses.sum() / max(losses.numel(), 1)
