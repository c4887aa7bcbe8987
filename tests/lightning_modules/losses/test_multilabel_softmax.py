"""Softmax cross-entropy for several labels."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.losses.multilabel_softmax import MultilabelSoftmax


def test_formula(draw):
    logits, labels = draw(multi=True, rows=12)
    with_threshold = MultilabelSoftmax()(logits, labels).tolist()
    without = MultilabelSoftmax(threshold=False)(logits, labels).tolist()
    for i, (row, truth) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        negatives = [z for z, y in zip(row, truth, strict=True) if not y]
        positives = [z for z, y in zip(row, truth, strict=True) if y]
        expected = math.log(1 + sum(map(math.exp, negatives))) + math.log(
            1 + sum(math.exp(-z) for z in positives)
        )
        assert with_threshold[i] == pytest.approx(expected, rel=1e-12)
        pairs = sum(math.exp(n - p) for n in negatives for p in positives)
        assert without[i] == pytest.approx(math.log(1 + pairs), rel=1e-12, abs=1e-300)


def test_one_positive(draw):
    """Without the threshold cross-entropy; with it softplus(logsumexp of the negatives) + softplus(-s)."""
    logits, labels = draw()
    torch.testing.assert_close(
        MultilabelSoftmax(threshold=False)(logits, labels), CrossEntropy()(logits, labels), rtol=1e-12, atol=0
    )
    own = logits.gather(1, labels[:, None])[:, 0]
    negatives = torch.stack(
        [row[torch.arange(4) != y].logsumexp(0) for row, y in zip(logits, labels, strict=True)]
    )
    expected = F.softplus(negatives) + F.softplus(-own)
    torch.testing.assert_close(MultilabelSoftmax()(logits, labels), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("threshold", [True, False])
@pytest.mark.parametrize("positive", [True, False])
def test_all_positive_and_none(draw, threshold, positive):
    logits, labels = draw(multi=True)
    sign = -1 if positive else 1
    expected = torch.log1p((sign * logits).exp().sum(1)) if threshold else torch.zeros(7, dtype=torch.float64)
    losses = MultilabelSoftmax(threshold)(logits.requires_grad_(), torch.full_like(labels, positive))
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.any() == threshold


def test_far_scores_cost_nothing_though_there_are_many_labels():
    scores = torch.full((1, 1000), -20.0)
    scores[0, :3] = 20
    labels = torch.arange(1000)[None] < 3
    assert MultilabelSoftmax()(scores, labels).item() < 1e-5
