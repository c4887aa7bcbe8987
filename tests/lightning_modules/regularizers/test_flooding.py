"""Flooding keeps the loss from sinking below a level: by the sign of the gradient, for whole steps or single examples."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_modules.base import Technique
from lightning_modules.regularizers.flooding import Flooding


@pytest.mark.parametrize("loss, slope", [(0.7, 1.0), (0.2, -1.0), (0.5, 0.0)])
def test_below_the_level_the_gradient_turns(loss, slope):
    loss = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    flooded = Flooding(b=0.5)(loss)
    assert flooded.item() == pytest.approx(abs(loss.item() - 0.5) + 0.5)
    flooded.backward()
    assert loss.grad.item() == slope


def test_a_level_of_zero_is_no_flooding_also_of_a_negative_loss():
    loss = torch.tensor([-1.0, 2.0], requires_grad=True)
    Flooding(b=0).forward(loss).sum().backward()
    assert loss.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("options", [{"b": -0.1}, {"b": float("nan")}, {"per": "step"}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Flooding(**options)


class Line(Technique):
    """The losses of rows are (w * x - 1)^2; SGD, no schedule."""

    def __init__(self, regularizer, mean=False):
        super().__init__({"_target_": "torch.optim.SGD", "lr": 0.1}, None, seed=0, regularizer=regularizer)
        self.weight = nn.Parameter(torch.full((1, 1), 0.5))
        self.mean = mean

    def training_step(self, batch, batch_idx):
        losses = (batch @ self.weight - 1).square().squeeze(1)
        return self.step_loss(losses.mean() if self.mean else losses, batch)


X = torch.tensor([[0.1], [1.9], [1.0], [2.2]])


def weight_after_a_step(b, per, batch_size, **options):
    model = Line(
        {"flooding": {"_target_": "lightning_modules.regularizers.flooding.Flooding", "b": b, "per": per}}
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=len(X) // batch_size,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, DataLoader(X, batch_size=batch_size))
    return model.weight.item()


@pytest.mark.parametrize("batch_size", [4, 2, 1])
@pytest.mark.parametrize("per, b", [("batch", 0.3), ("batch", 0.05), ("example", 0.1)])
def test_a_step_is_that_of_the_formula_however_it_is_cut(per, b, batch_size):
    """With micro-batches of one row, the loss of some is above the level and of others below."""
    weight = torch.full((1, 1), 0.5, requires_grad=True)
    losses = (X @ weight - 1).square()
    level = losses.mean() if per == "batch" else losses
    ((level - b).abs() + b).mean().backward()
    assert (losses.min() < b < losses.max()).item()
    expected = (weight - 0.1 * weight.grad).item()
    assert weight_after_a_step(b, per, batch_size) == pytest.approx(expected, abs=1e-7)


def test_the_turned_gradient_is_clipped_as_any_other():
    moved = abs(weight_after_a_step(0.3, "batch", 2, gradient_clip_val=0.01) - 0.5)
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_a_level_above_the_first_loss_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        weight_after_a_step(0.05, "batch", 4)
    assert not [record for record in caplog.records if "flooding" in record.message]
    with caplog.at_level(logging.WARNING):
        weight_after_a_step(0.3, "batch", 4)
    (line,) = [record.message for record in caplog.records if "flooding" in record.message]
    assert line.startswith("model.regularizer.flooding: b=0.3 is above the loss of the first step (0.291)")


def test_single_examples_need_their_losses():
    model = Line({"flooding": Flooding(per="example")}, mean=True)
    with pytest.raises(ValueError, match=r"model.regularizer.flooding.per=batch"):
        model.training_step(X, 0)
