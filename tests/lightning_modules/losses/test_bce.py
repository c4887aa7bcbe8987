"""Binary cross-entropy of each label."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.losses.bce import BCE


@pytest.mark.parametrize("balanced", [False, True])
def test_several_labels(draw, balanced):
    logits, labels = draw(multi=True)
    loss = BCE("balanced" if balanced else None)
    loss.prepare(torch.tensor([40, 3, 0, 7]), num_rows=100)
    weights = [60 / 40, 97 / 3, 100, 93 / 7] if balanced else [1] * 4
    losses = loss(logits, labels)
    for row, truth, value in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        expected = 0
        for z, y, weight in zip(row, truth, weights, strict=True):
            p = 1 / (1 + math.exp(-z))
            expected -= (weight * math.log(p) if y else math.log(1 - p)) / 4
        assert value == pytest.approx(expected, rel=1e-12)


def test_one_label_is_each_class_against_the_others(draw):
    logits, labels = draw()
    one_hot = F.one_hot(labels, 4)
    torch.testing.assert_close(BCE()(logits, labels), BCE()(logits, one_hot.bool()))
    counted = BCE("balanced")
    counted.prepare(torch.tensor([40, 30, 20, 10]))
    expected = F.binary_cross_entropy_with_logits(
        logits,
        one_hot.double(),
        pos_weight=torch.tensor([1.5, 7 / 3, 4, 9], dtype=torch.float64),
        reduction="none",
    )
    torch.testing.assert_close(counted(logits, labels), expected.mean(1))


def test_probabilities_of_one_label_are_shares_of_the_sigmoids(draw):
    logits, _ = draw()
    p = logits.sigmoid()
    torch.testing.assert_close(BCE().probabilities(logits, multi_label=False), p / p.sum(1, keepdim=True))
    low = BCE().probabilities(torch.full((1, 4), -500.0), multi_label=False)
    torch.testing.assert_close(low, torch.full((1, 4), 0.25))


def test_balancing_is_a_correction_of_the_prior():
    assert BCE("balanced").corrects_prior and not BCE().corrects_prior
