"""Label-distribution-aware margins."""

import math

import pytest
import torch

from lightning_modules.losses.ldam import LDAM
from lightning_modules.losses.weighted import Weighted

COUNTS = [40, 3, 20, 7]


def made(counts=COUNTS, **options):
    loss = LDAM(**options)
    loss.prepare(torch.tensor(counts))
    return loss


def test_formula(draw):
    logits, labels = draw()
    cosines = logits.tanh()
    losses = made(max_margin=0.4, scale=10.0)(cosines, labels)
    largest = max(n**-0.25 for n in COUNTS)
    for row, y, loss in zip(cosines.tolist(), labels.tolist(), losses.tolist(), strict=True):
        margin = 0.4 * COUNTS[y] ** -0.25 / largest
        own = math.exp(10 * (row[y] - margin))
        total = own + sum(math.exp(10 * row[i]) for i in range(4) if i != y)
        assert loss == pytest.approx(-math.log(own / total), rel=1e-12)


def test_the_rarest_class_has_the_largest_margin_and_so_has_one_without_rows():
    """Cosines of 0: the loss is that of the margin alone."""
    labels = torch.arange(4)
    empty, rare, sixteenfold, _ = made([0, 5, 80, 1000])(torch.zeros(4, 4), labels).tolist()
    assert empty == rare
    assert rare == pytest.approx(math.log(1 + 3 * math.exp(30 * 0.5)), rel=1e-5)
    assert sixteenfold == pytest.approx(math.log(1 + 3 * math.exp(30 * 0.25)), rel=1e-5)


def test_probabilities_are_of_the_scaled_cosines(draw):
    cosines = draw()[0].tanh()
    torch.testing.assert_close(made().probabilities(cosines, False), (30 * cosines).softmax(1))


def test_rows_are_weighted_late_in_the_run_and_in_training_only(draw):
    logits, labels = draw()
    plain, loss = made(), made(reweight_from=0.8, beta=0.99)
    loss.progress = 0.79
    assert torch.equal(loss(logits, labels), plain(logits, labels))
    loss.progress = 0.8
    weighted = Weighted("effective_number", beta=0.99)
    weighted.prepare(torch.tensor(COUNTS))
    even = torch.zeros(len(labels), 4, dtype=torch.float64)
    weights = weighted(even, labels) / math.log(4)
    torch.testing.assert_close(loss(logits, labels), weights * plain(logits, labels))
    loss.eval()
    assert torch.equal(loss(logits, labels), plain(logits, labels))
