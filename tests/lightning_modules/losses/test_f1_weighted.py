"""Cross-entropy weighted by F1: the formula, its derivation, and what its F1 is of."""

import math

import pytest
import torch

from lightning_modules.losses.dice import Dice
from lightning_modules.losses.f1_weighted import F1Weighted


def f1_of(p, y):
    return 2 * sum(a * b for a, b in zip(p, y, strict=True)) / (sum(p) + sum(y))


def weighted(p, y, f1):
    return -(1 - f1 / 2) * math.log(p) if y else -(f1 / 2) * math.log(1 - p)


def test_several_labels(draw):
    logits, labels = draw(multi=True)
    losses = F1Weighted()(logits, labels).tolist()
    p, y = logits.sigmoid().tolist(), labels.tolist()
    f1 = [f1_of(*columns) for columns in zip(zip(*p, strict=True), zip(*y, strict=True), strict=True)]
    for i, loss in enumerate(losses):
        assert loss == pytest.approx(sum(weighted(p[i][c], y[i][c], f1[c]) for c in range(4)) / 4, rel=1e-12)


def test_classes_each_against_the_others(draw):
    logits, labels = draw()
    one_hot = torch.nn.functional.one_hot(labels, 4).bool()
    p, y = logits.softmax(1).tolist(), one_hot.tolist()
    f1 = [f1_of(*columns) for columns in zip(zip(*p, strict=True), zip(*y, strict=True), strict=True)]
    for i, loss in enumerate(F1Weighted()(logits, labels).tolist()):
        assert loss == pytest.approx(sum(weighted(p[i][c], y[i][c], f1[c]) for c in range(4)) / 4, rel=1e-12)


@pytest.mark.parametrize("positive", [0, 1])
def test_two_classes_are_the_binary_form(draw, positive):
    logits, labels = draw(classes=2)
    score = logits[:, [positive]] - logits[:, [1 - positive]]
    binary = F1Weighted()(score, labels[:, None] == positive)
    torch.testing.assert_close(
        F1Weighted(positive_class=positive)(logits, labels), binary, rtol=1e-12, atol=0
    )


def test_it_is_the_gradient_of_f1_repaired(draw):
    """grad(-F1) = -2 / sum(y + p) * sum (y - F1/2) grad p, and the loss has the same with grad p = p (1 - p) replaced by
    1 - p for positives, p for negatives."""
    z, labels = draw(classes=1, multi=True, rows=12)
    y = labels.double()
    z.requires_grad_()
    p = z.sigmoid()
    total = (y + p).sum()
    f1 = 2 * (y * p).sum() / total
    [of_f1] = torch.autograd.grad(-f1, z)
    with torch.no_grad():
        torch.testing.assert_close(of_f1, -2 / total * (y - f1 / 2) * p * (1 - p))
    [of_loss] = torch.autograd.grad(F1Weighted()(z, labels).sum(), z)
    with torch.no_grad():
        torch.testing.assert_close(of_loss, -(y - f1 / 2) * torch.where(labels, 1 - p, p))
        torch.testing.assert_close(of_f1, 2 / total * of_loss * torch.where(labels, p, 1 - p))


def test_the_smooth_f1_is_that_of_dice(draw):
    logits, labels = draw(multi=True)
    p, y = logits.sigmoid(), labels.double()
    f1 = 2 * (p * y).sum(0) / (p + y).sum(0)
    assert Dice(smooth=1e-12)(logits, labels).item() == pytest.approx(1 - f1.mean().item(), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, -1e6], ids=["", "all probabilities are 0"])
def test_without_a_positive_nothing_is_learnt(draw, shift):
    logits, labels = draw(multi=True)
    logits += shift
    losses = F1Weighted()(logits.requires_grad_(), torch.zeros_like(labels))
    losses.sum().backward()
    assert not losses.any() and not logits.grad.any()


def test_a_moving_average_is_of_both_sums(draw):
    loss = F1Weighted(ema=0.75)
    loss.prepare(torch.tensor([5]), num_rows=10)
    shared = both = 0.0
    for seed in range(3):
        logits, labels = draw(classes=1, multi=True, seed=seed)
        p, y = logits.sigmoid(), labels.double()
        shared = 0.75 * shared + 0.25 * 2 * (p * y).sum().item()
        both = 0.75 * both + 0.25 * (p + y).sum().item()
        expected = [weighted(a.item(), b.item(), shared / both) for a, b in zip(p, y, strict=True)]
        assert loss(logits, labels).tolist() == pytest.approx(expected, rel=1e-5)
    before = loss.sums.clone()
    loss.eval()
    loss(*draw(classes=1, multi=True, seed=9))
    assert torch.equal(loss.sums, before)


def test_a_run_that_goes_on_has_its_average(draw):
    logits, labels = draw()
    losses = [F1Weighted(ema=0.9), F1Weighted(ema=0.9)]
    for loss in losses:
        loss.prepare(torch.tensor([1, 2, 3, 4]))
    losses[0](logits, labels)
    losses[1].load_state_dict(losses[0].state_dict())
    assert torch.equal(losses[0](logits, labels), losses[1](logits, labels))
    assert not F1Weighted().state_dict()


def test_given_f1_a_row_has_its_own_loss(draw):
    loss = F1Weighted(ema=0.9)
    loss.prepare(torch.tensor([1, 2, 3, 4]))
    logits, labels = draw()
    loss(logits, labels)
    loss.eval()
    torch.testing.assert_close(loss(logits, labels)[:2], loss(logits[:2], labels[:2]))
