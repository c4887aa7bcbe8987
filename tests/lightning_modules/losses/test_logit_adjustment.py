"""Logit adjustment."""

import math

import pytest
import torch

from lightning_modules.losses.bce import BCE
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.losses.logit_adjustment import LogitAdjustment

COUNTS = [40, 3, 20, 7]


def made(tau, counts=COUNTS, num_rows=None):
    loss = LogitAdjustment(tau)
    loss.prepare(torch.tensor(counts), num_rows)
    return loss


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_it_is_a_margin_by_the_ratio_of_the_priors(draw, tau):
    logits, labels = draw()
    losses = made(tau)(logits, labels)
    for row, y, loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        others = (i for i in range(4) if i != y)
        expected = math.log(
            1 + sum((COUNTS[i] / COUNTS[y]) ** tau * math.exp(row[i] - row[y]) for i in others)
        )
        assert loss == pytest.approx(expected, rel=1e-12)


def test_several_labels(draw):
    logits, labels = draw(multi=True)
    losses = made(1.5, num_rows=100)(logits, labels)
    for row, truth, loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        expected = 0
        for z, y, n in zip(row, truth, COUNTS, strict=True):
            p = 1 / (1 + math.exp(-z - 1.5 * math.log(n / (100 - n))))
            expected -= math.log(p if y else 1 - p) / 4
        assert loss == pytest.approx(expected, rel=1e-12)


def test_two_classes_are_the_binary_form(draw):
    logits, labels = draw(classes=2)
    two = made(1.0, [90, 10])(logits, labels)
    one = made(1.0, [10], num_rows=100)(logits[:, 1:] - logits[:, :1], labels[:, None] == 1)
    torch.testing.assert_close(two, one)


def test_of_tau_zero_it_is_cross_entropy(draw):
    rows = draw()
    torch.testing.assert_close(made(0.0)(*rows), CrossEntropy()(*rows), rtol=1e-12, atol=0)
    rows = draw(multi=True)
    torch.testing.assert_close(made(0.0, num_rows=100)(*rows), BCE()(*rows), rtol=1e-12, atol=0)


def test_decisions_leave_the_prior_out(draw):
    logits, _ = draw()
    torch.testing.assert_close(made(1.0).probabilities(logits, multi_label=False), logits.softmax(1))


@pytest.mark.parametrize(
    "counts, num_rows, named",
    [
        ([4, 0, 2, 0], None, "classes 1, 3 of 4 have no training row"),
        ([0] * 15 + [3], None, "classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... of 16 have no training row"),
        ([4, 10], 10, "classes 1 of 2 stand at every training row"),
    ],
)
def test_an_infinite_prior_is_an_error_with_a_way_out(counts, num_rows, named):
    with pytest.raises(ValueError, match=f"^model.loss=logit_adjustment: {named}.* type model/loss=weighted"):
        made(1.0, counts, num_rows)
