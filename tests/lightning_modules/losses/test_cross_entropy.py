"""Cross-entropy."""

import math

import pytest

from lightning_modules.losses.cross_entropy import CrossEntropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_formula(draw, smoothing):
    logits, labels = draw()
    losses = CrossEntropy(smoothing)(logits, labels)
    for row, label, loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
        total = sum(math.exp(z) for z in row)
        spread = sum(-math.log(math.exp(z) / total) for z in row) / len(row)
        expected = (1 - smoothing) * -math.log(math.exp(row[label]) / total) + smoothing * spread
        assert loss == pytest.approx(expected, rel=1e-12)
