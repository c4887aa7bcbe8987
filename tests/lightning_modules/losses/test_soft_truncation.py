"""Soft truncation, and where it is the focal loss."""

import math

import pytest
import torch

from lightning_modules.losses.focal import Focal
from lightning_modules.losses.hard_truncation import HardTruncation
from lightning_modules.losses.soft_truncation import SoftTruncation


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("k", [1.0, 3.0])
def test_yes_or_no(draw, k):
    logits, labels = draw(classes=1, multi=True)
    losses = SoftTruncation(k)(logits, labels)
    for [x], [y], loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        positive, negative = -sigmoid(-k * x) * math.log(sigmoid(x)), -sigmoid(k * x) * math.log(sigmoid(-x))
        assert loss == pytest.approx(positive if y else negative, rel=1e-12)


@pytest.mark.parametrize("k", [1.0, 3.0])
def test_classes(draw, k):
    logits, labels = draw()
    losses = SoftTruncation(k)(logits, labels)
    for row, label, loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        p = math.exp(row[label]) / sum(math.exp(z) for z in row)
        step = math.exp(-k * row[label]) / sum(math.exp(-k * z) for z in row)
        assert loss == pytest.approx(-step * math.log(p), rel=1e-12)


@pytest.mark.parametrize(
    "options", [{"classes": 2}, {"classes": 4, "multi": True}, {"classes": 1, "multi": True}]
)
def test_of_steepness_one_it_is_the_focal_loss(draw, options):
    rows = draw(**options)
    torch.testing.assert_close(SoftTruncation(k=1.0)(*rows), Focal(gamma=1.0)(*rows), rtol=1e-12, atol=0)


def test_of_three_classes_it_is_not():
    """The class is behind the second and far ahead of the third: truncated, yet wrong."""
    logits, labels = torch.tensor([[0.0, 5.0, -10.0]], dtype=torch.float64), torch.tensor([0])
    assert SoftTruncation(k=1.0)(logits, labels) < 1e-3
    assert Focal(gamma=1.0)(logits, labels) > 4


def test_steep_is_hard(draw):
    rows = draw(multi=True)
    torch.testing.assert_close(SoftTruncation(k=1e6)(*rows), HardTruncation()(*rows))
