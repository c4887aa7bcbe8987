"""Weights of classes."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.losses.weighted import Weighted

COUNTS = [40, 3, 20, 7]


def weights_of(loss, counts):
    """What each class' rows are multiplied by."""
    loss.prepare(torch.tensor(counts))
    logits = torch.zeros(len(counts), len(counts), dtype=torch.float64)
    labels = torch.arange(len(counts))
    return (loss(logits, labels) / F.cross_entropy(logits, labels)).tolist()


def test_inverse_frequency():
    assert weights_of(Weighted(), COUNTS) == pytest.approx([70 / (4 * n) for n in COUNTS], rel=1e-12)


def test_effective_number():
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in COUNTS]
    mean = sum(n * w for n, w in zip(COUNTS, raw, strict=True)) / sum(COUNTS)
    weights = weights_of(Weighted("effective_number", beta=0.99), COUNTS)
    assert weights == pytest.approx([w / mean for w in raw], rel=1e-12)


def test_effective_number_lies_between_no_weights_and_inverse_frequency():
    assert weights_of(Weighted("effective_number", beta=0.0), COUNTS) == [1.0] * 4
    almost = weights_of(Weighted("effective_number", beta=1 - 1e-9), COUNTS)
    assert almost == pytest.approx(weights_of(Weighted(), COUNTS), rel=1e-6)


@pytest.mark.parametrize("by", ["inverse_frequency", "effective_number"])
def test_the_training_split_keeps_the_size_of_its_loss(by):
    weights = weights_of(Weighted(by), COUNTS)
    assert sum(n * w for n, w in zip(COUNTS, weights, strict=True)) / 70 == pytest.approx(1)


@pytest.mark.parametrize("by", ["inverse_frequency", "effective_number"])
def test_a_class_without_a_row_weighs_as_one_with_a_single_row(by):
    empty, single, _ = weights_of(Weighted(by), [0, 1, 30])
    assert empty == pytest.approx(single)


def test_a_row_has_its_loss_whatever_stands_beside_it(draw):
    loss = Weighted()
    loss.prepare(torch.tensor(COUNTS))
    logits, labels = draw()
    torch.testing.assert_close(loss(logits, labels)[:2], loss(logits[:2], labels[:2]))
