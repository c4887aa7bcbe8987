"""Dice loss, of batches and of rows."""

import pytest
import torch

from lightning_modules.losses.dice import Dice


def columns(draw, multi):
    """Logits, labels, and of each class probabilities and targets as lists."""
    logits, labels = draw(multi=multi)
    p = logits.sigmoid() if multi else logits.softmax(1)
    y = labels if multi else torch.nn.functional.one_hot(labels, 4)
    return logits, labels, list(zip(p.T.tolist(), y.T.int().tolist(), strict=True))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("alpha, smooth", [(0.0, 1.0), (0.5, 1e-4)])
def test_of_a_batch(draw, multi, alpha, smooth):
    logits, labels, classes = columns(draw, multi)
    expected = 0
    for p, y in classes:
        q = [(1 - a) ** alpha * a for a in p]
        shared = sum(a * b for a, b in zip(q, y, strict=True))
        expected += (1 - (2 * shared + smooth) / (sum(q) + sum(y) + smooth)) / len(classes)
    assert Dice(smooth, alpha=alpha)(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("alpha, smooth", [(0.0, 1.0), (0.01, 1e-4)])
def test_of_a_row_with_squared_denominator(draw, multi, alpha, smooth):
    logits, labels, classes = columns(draw, multi)
    losses = Dice(smooth, square_denominator=True, alpha=alpha)(logits, labels).tolist()
    for i, loss in enumerate(losses):
        expected = 0
        for p, y in classes:
            q = (1 - p[i]) ** alpha * p[i]
            expected += (1 - (2 * q * y[i] + smooth) / (q**2 + y[i] ** 2 + smooth)) / len(classes)
        assert loss == pytest.approx(expected, rel=1e-9)


def test_per_example_where_it_is_one():
    assert not Dice().per_example and Dice(square_denominator=True).per_example


def test_perfect_rows_have_no_loss_but_for_alpha():
    logits, labels = torch.tensor([[40.0, 0.0], [0.0, 40.0]], dtype=torch.float64), torch.tensor([0, 1])
    assert Dice()(logits, labels).item() == pytest.approx(0, abs=1e-12)
    assert Dice(square_denominator=True)(logits, labels).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert Dice(square_denominator=True, alpha=0.01)(logits, labels).min() > 0.01


def test_with_alpha_the_least_loss_is_before_certainty():
    p = torch.linspace(0.5, 0.9999, 5000, dtype=torch.float64)
    losses = Dice(square_denominator=True, alpha=0.1)(
        torch.logit(p)[:, None], torch.ones(5000, 1, dtype=torch.bool)
    )
    assert p[losses.argmin()].item() == pytest.approx(1 / 1.1, abs=1e-3)


def test_hard_examples_are_all_positives_and_the_most_probable_negatives():
    z = torch.tensor([[2.0], [-3.0], [1.0], [0.5], [-1.0], [-2.0]], dtype=torch.float64)
    y = torch.tensor([[True], [True], [False], [False], [False], [False]])
    losses = Dice(square_denominator=True, hard_example_mining=1.0)(z, y)
    whole = Dice(square_denominator=True)(z, y)
    assert torch.equal(losses[:4], whole[:4]) and not losses[4:].any()
    kept = Dice(hard_example_mining=1.0)(z, y)
    assert kept.item() == pytest.approx(Dice()(z[:4], y[:4]).item(), rel=1e-12)


def test_hard_examples_are_a_class_own():
    logits = torch.tensor(
        [[3.0, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 0.0, 2.5], [2.0, 1.0, 0.0]], dtype=torch.float64
    )
    labels = torch.tensor([0, 1, 1, 2])
    p = logits.softmax(1)
    expected = 0.0
    for c in range(3):
        positives = [i for i in range(4) if labels[i] == c]
        negatives = sorted((i for i in range(4) if labels[i] != c), key=lambda i: -p[i, c])[: len(positives)]
        shared = sum(p[i, c] for i in positives)
        total = sum(p[i, c] for i in positives + negatives) + len(positives)
        expected += (1 - (2 * shared + 1) / (total + 1)) / 3
    assert Dice(hard_example_mining=1.0)(logits, labels).item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("ratio", [0.3, 2.0])
def test_without_a_positive_as_many_are_kept_as_for_one(draw, ratio):
    logits, labels = draw(multi=True)
    losses = Dice(square_denominator=True, hard_example_mining=ratio)(
        logits[:, :1], torch.zeros_like(labels[:, :1])
    )
    assert (losses > 0).sum() == max(int(ratio), 1)
    assert losses.argmax() == logits[:, 0].argmax()
