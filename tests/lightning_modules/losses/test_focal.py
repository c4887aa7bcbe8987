"""Focal loss."""

import math

import pytest
import torch

from lightning_modules.losses.bce import BCE
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.losses.focal import Focal


@pytest.mark.parametrize("gamma, alpha", [(2.0, None), (2.0, 0.25), (0.5, 0.7)])
def test_yes_or_no(draw, gamma, alpha):
    logits, labels = draw(multi=True)
    losses = Focal(gamma, alpha)(logits, labels)
    for row, truth, loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        expected = 0
        for z, y in zip(row, truth, strict=True):
            p = 1 / (1 + math.exp(-z))
            weight = 1 if alpha is None else alpha if y else 1 - alpha
            of_label = -((1 - p) ** gamma) * math.log(p) if y else -(p**gamma) * math.log(1 - p)
            expected += weight * of_label / len(row)
        assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_classes(draw, gamma):
    logits, labels = draw()
    losses = Focal(gamma)(logits, labels)
    for row, label, loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        p = math.exp(row[label]) / sum(math.exp(z) for z in row)
        assert loss == pytest.approx(-((1 - p) ** gamma) * math.log(p), rel=1e-12)


def test_of_gamma_zero_it_is_cross_entropy(draw):
    rows = draw()
    torch.testing.assert_close(Focal(gamma=0.0)(*rows), CrossEntropy()(*rows), rtol=1e-12, atol=0)
    rows = draw(multi=True)
    torch.testing.assert_close(Focal(gamma=0.0)(*rows), BCE()(*rows), rtol=1e-12, atol=0)


def test_alpha_weighs_the_second_of_two_classes(draw):
    logits, labels = draw(classes=2)
    weights = torch.where(labels == 1, 0.25, 0.75)
    torch.testing.assert_close(Focal(alpha=0.25)(logits, labels), weights * Focal()(logits, labels))


def test_alpha_has_no_positive_among_many_classes(draw):
    with pytest.raises(ValueError, match="^alpha=0.25: .* of 4 classes none .*model.loss.alpha=null"):
        Focal(alpha=0.25)(*draw())
