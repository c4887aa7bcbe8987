"""What every technique has from its base: the loss of a whole step, and an evaluation that may have no rows."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import random_batch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, Metric

from launch.csv_logger import CSVLogger, read_metrics
from lightning_modules.base import Technique

X = torch.arange(14.0)[:, None]
# Batches of two rows; the loss of a row is its square.
LOSSES = (X**2).view(7, 2).mean(1).numpy()


class Squares(Technique):
    """One weight that stays 1: an ordinary technique on (x, y) batches, which have no `loss_weight`."""

    def __init__(self, regularizer=None):
        super().__init__({"_target_": "torch.optim.SGD", "lr": 1e-12}, None, seed=0, regularizer=regularizer)
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.mean = MeanMetric()
        self.evaluated = []

    def training_step(self, batch, batch_idx):
        return self.step_loss(((self.weight * batch[0]) ** 2).mean(), batch)

    def evaluate(self, batch):
        self.evaluated.append(len(batch[0]))
        self.mean.update(batch[0])

    def compute_scores(self, split):
        value = self.mean.compute()
        self.mean.reset()
        return {f"{split}/mean": value}


class Parts(Squares):
    def training_step(self, batch, batch_idx):
        losses = ((self.weight * batch[0]) ** 2).squeeze(1)
        return self.step_loss(losses, batch, half=losses.mean() / 2)


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx == 2


def rows(*sizes):
    """A loader of a user's own: (x, y) batches of so many rows."""
    return DataLoader([(X[:size], X[:size]) for size in sizes], batch_size=None)


def train(path, model, callbacks=(), accumulate=1, log_every=1):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=log_every,
        callbacks=list(callbacks),
        logger=CSVLogger(str(path / "metrics.csv")),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    reduced, reduce = [], trainer.strategy.reduce
    trainer.strategy.reduce = lambda tensor, **options: reduced.append(tensor) or reduce(tensor, **options)
    trainer.fit(model, DataLoader(list(zip(X, X, strict=True)), batch_size=2))
    logged = [row for row in read_metrics(path / "metrics.csv") if "train/loss" in row]
    return [(row["step"], row["train/loss"]) for row in logged], trainer.callback_metrics, reduced


def test_the_logged_loss_is_the_mean_over_all_micro_batches_of_a_step(tmp_path):
    logged, _, _ = train(tmp_path, Squares(), accumulate=3)
    # An epoch's last step has one micro-batch left.
    steps = [LOSSES[:3].mean(), LOSSES[3:6].mean(), LOSSES[6]]
    assert [step for step, _ in logged] == list(range(6))
    np.testing.assert_allclose([loss for _, loss in logged], steps * 2, rtol=1e-6)


def test_ranks_exchange_the_loss_where_it_is_logged_only(tmp_path):
    logged, metrics, reduced = train(tmp_path, Squares(), log_every=5)
    assert [step for step, _ in logged] == [4, 9]
    np.testing.assert_allclose([loss for _, loss in logged], LOSSES[[4, 2]], rtol=1e-6)
    # And at the ends of epochs, for whoever asks the trainer.
    assert [means.shape for means in reduced if means.is_floating_point()] == [(1,)] * 4
    assert metrics["train/loss"] == pytest.approx(LOSSES[6])


def test_the_step_that_ends_a_training_logs_its_own_loss(tmp_path):
    logged, _, _ = train(tmp_path, Squares(), [Stop()], log_every=2)
    assert [step for step, _ in logged] == [1, 2]
    np.testing.assert_allclose([loss for _, loss in logged], LOSSES[1:3], rtol=1e-6)


def test_the_loss_of_the_data_is_logged_beside_what_is_minimised(tmp_path):
    l2 = {"_target_": "lightning_modules.regularizers.l2.L2", "weight": 2.0}
    logged, metrics, _ = train(tmp_path, Squares({"l2": l2}))
    np.testing.assert_allclose([loss for _, loss in logged], [*LOSSES, *LOSSES], rtol=1e-6)
    assert metrics["train/objective"] == pytest.approx(LOSSES[6] + 1)


def test_a_technique_may_log_parts_of_its_loss(tmp_path):
    _, metrics, _ = train(tmp_path, Parts())
    assert metrics["train/half"] == pytest.approx(LOSSES[6] / 2)
    assert metrics["train/loss"] == pytest.approx(LOSSES[6])
    assert "train/objective" not in metrics


def test_a_batch_without_rows_is_not_evaluated():
    model = Squares()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    scores = trainer.validate(model, rows(2, 0, 4), verbose=False)[0]
    assert model.evaluated == [2, 4]
    assert scores["val/mean"] == pytest.approx((0 + 1 + 0 + 1 + 2 + 3) / 6)
    model.validation_step(random_batch(np.array([], dtype=int)), 0)
    assert model.evaluated == [2, 4]


def test_ddp_sends_only_buffers_that_change():
    class Constants(Metric):
        def __init__(self):
            super().__init__()
            self.register_buffer("counts", torch.ones(3))

        def update(self): ...

        def compute(self): ...

    model = Squares()
    model.norm = nn.BatchNorm1d(2)
    model.scores = Constants()
    model.norm.register_buffer("position_ids", torch.arange(3), persistent=False)
    kept = {name for name, _ in model.named_buffers()} - set(model._ddp_params_and_buffers_to_ignore)
    assert kept == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
