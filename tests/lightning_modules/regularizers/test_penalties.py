"""L2 and WEISSI: the formulas, what rescaling layers does to them, which weights they take, and the gradient of a step."""

import logging
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_modules.base import Technique
from lightning_modules.regularizers.l2 import L2
from lightning_modules.regularizers.weissi import WEISSI


def network(bias=False):
    torch.manual_seed(0)
    layers = [
        nn.Linear(64, 128, bias),
        nn.ReLU(),
        nn.Linear(128, 128, bias),
        nn.ReLU(),
        nn.Linear(128, 10, bias),
    ]
    return nn.Sequential(*layers).double()


def rescaled(model, factors):
    """Each layer's weight times its factor, biases times all factors so far."""
    other = network(bias=model[0].bias is not None)
    other.load_state_dict(model.state_dict())
    linears = [module for module in other if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for linear, factor, upto in zip(linears, factors, np.cumprod(factors), strict=True):
            linear.weight.mul_(factor)
            if linear.bias is not None:
                linear.bias.mul_(upto)
    return other


def value(penalty, model):
    return penalty(penalty.select(model)).item()


@pytest.mark.parametrize("bias", [False, True])
def test_rescaled_layers_compute_the_same_and_only_l2_sees_them(bias):
    model = network(bias)
    other = rescaled(model, (4, 0.5, 0.5))
    x = torch.randn(100, 64, dtype=torch.float64)
    torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-12)
    weissi = WEISSI(lambda1=0.3, lambda2=0.01)
    assert value(weissi, other) == pytest.approx(value(weissi, model), rel=1e-12)
    assert value(L2(1.0), other) > 2 * value(L2(1.0), model)


def test_the_value_is_the_formulas():
    model = network()
    weights = [p.detach().numpy() for p in model.parameters()]
    norms = [np.sqrt((weight**2).sum()) for weight in weights]
    directions = [np.abs(weight / norm).sum() for weight, norm in zip(weights, norms, strict=True)]
    expected = 0.3 * sum(map(math.log, norms)) + 0.01 * sum(directions)
    assert value(WEISSI(0.3, 0.01), model) == pytest.approx(expected, rel=1e-9)
    assert value(L2(0.5), model) == pytest.approx(0.25 * sum(norm**2 for norm in norms), rel=1e-12)


def test_gradients():
    weights = {name: torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for name in "ab"}

    def of(penalty):
        return lambda a, b: penalty({"a": a, "b": b})

    assert torch.autograd.gradcheck(of(WEISSI(0.3, 0.2)), tuple(weights.values()))
    assert torch.autograd.gradcheck(of(L2(0.3)), tuple(weights.values()))
    # The first term: W / |W|^2; the second is at right angles to W.
    w = weights["a"]
    (slope,) = torch.autograd.grad(WEISSI(1.0, 0.0)({"a": w}), w)
    torch.testing.assert_close(slope, w.detach() / w.detach().square().sum())
    (slope,) = torch.autograd.grad(WEISSI(0.0, 1.0)({"a": w}), w)
    assert (slope * w).sum().item() == pytest.approx(0, abs=1e-12)


def test_a_weight_of_zeros_has_a_value_and_no_gradient():
    weight = nn.Parameter(torch.zeros(3, 4))
    weissi = WEISSI(lambda1=0.1, lambda2=0.1)
    loss = weissi({"w": weight})
    loss.backward()
    assert loss.isfinite() and not weight.grad.any()


def test_norms_of_half_precision_are_taken_in_float32():
    weight = nn.Parameter(torch.full((1000, 1000), 0.5, dtype=torch.float16))
    assert WEISSI(1.0)({"w": weight}).item() == pytest.approx(math.log(500), rel=1e-6)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.query = nn.Linear(4, 4)
        self.value = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.convolution = nn.Conv1d(4, 4, 3)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.lora_A = nn.Linear(4, 2, bias=False)


@pytest.mark.parametrize(
    "penalty, names",
    [
        (L2(), {"query.weight", "value.weight", "convolution.weight"}),
        (WEISSI(), {"value.weight", "convolution.weight"}),
        (WEISSI(include="query|norm"), {"query.weight", "query.bias", "norm.weight", "norm.bias"}),
        (L2(include="embedding"), {"embedding.weight"}),
    ],
)
def test_weights_of_layers_are_taken(penalty, names):
    assert set(penalty.select(Parts())) == names


def test_norms_are_told_of(caplog):
    with caplog.at_level(logging.INFO):
        WEISSI().select(Parts())
    assert "the network has norms" in caplog.text


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: L2(weight=-1), "weight=-1"),
        (lambda: WEISSI(lambda1=-1), "lambda1=-1"),
        (lambda: WEISSI(lambda2=-1), "lambda2=-1"),
        (lambda: WEISSI(epsilon=0), "epsilon=0"),
        (lambda: L2(include="("), "include=\\(: is no regular expression"),
        (lambda: L2(include="nothing").select(Parts()), "no weight to train whose name has 'nothing'"),
    ],
)
def test_wrong_options_are_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()


class Sum(Technique):
    def __init__(self, regularizer, weight_decay=0.0):
        optimizer = {"_target_": "torch.optim.SGD", "lr": 0.1, "weight_decay": weight_decay}
        super().__init__(optimizer, None, seed=0, regularizer=regularizer)
        self.weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))

    def training_step(self, batch, batch_idx):
        return self.step_loss((batch * self.weight).sum(1), batch)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("order", [("flooding", "l2", "weissi"), ("weissi", "l2", "flooding")])
def test_flooding_acts_on_the_data_and_penalties_are_added(order, accumulate):
    """Whatever the order in which they are typed: the loss of the data is 7, below the level, its gradient (1, 1)."""
    nodes = {
        "flooding": {"_target_": "lightning_modules.regularizers.flooding.Flooding", "b": 10},
        "l2": {"_target_": "lightning_modules.regularizers.l2.L2", "weight": 0.5},
        "weissi": {"_target_": "lightning_modules.regularizers.weissi.WEISSI", "lambda1": 0.2},
    }
    model = Sum({name: nodes[name] for name in order})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(torch.ones(4, 2), batch_size=4 // accumulate))
    start = torch.tensor([[3.0, 4.0]])
    gradient = -torch.ones(1, 2) + 0.5 * start + 0.2 * start / 25
    torch.testing.assert_close(model.weight.detach(), start - 0.1 * gradient)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(7)
    penalties = 0.25 * 25 + 0.2 * math.log(5)
    assert trainer.callback_metrics["train/objective"].item() == pytest.approx(13 + penalties)


def test_weight_decay_beside_a_penalty_is_told(caplog):
    l2 = {"l2": {"_target_": "lightning_modules.regularizers.l2.L2"}}
    with caplog.at_level(logging.WARNING):
        Sum(l2)
        Sum({"flooding": {"_target_": "lightning_modules.regularizers.flooding.Flooding"}}, weight_decay=0.1)
        assert not caplog.records
        Sum(l2, weight_decay=0.1)
    assert "model.optimizer.weight_decay=0 leaves it to the regulariser" in caplog.text


def test_only_regularisers_are_taken():
    with pytest.raises(ValueError, match="regularizer.mine: is neither"):
        Sum({"mine": nn.Identity()})
