"""Hard truncation."""

import math

import pytest
import torch

from lightning_modules.losses.hard_truncation import HardTruncation


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_yes_or_no(draw, threshold):
    logits, labels = draw(classes=1, multi=True, rows=20)
    losses = HardTruncation(threshold)(logits, labels)
    for [z], [y], loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        right = p > threshold if y else p < 1 - threshold
        assert loss == pytest.approx(0 if right else -math.log(p if y else 1 - p), rel=1e-12)


def test_classes(draw):
    logits, labels = draw(rows=20)
    p = logits.softmax(1)[torch.arange(20), labels]
    expected = torch.where(p > 0.5, 0, -p.log())
    assert (expected == 0).any() and (expected > 0).any()
    torch.testing.assert_close(HardTruncation()(logits, labels), expected)


def test_nothing_is_learnt_of_what_is_right():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    HardTruncation()(logits, torch.tensor([0, 0])).sum().backward()
    assert logits.grad[0].tolist() == [0, 0] and logits.grad[1].abs().min() > 0
