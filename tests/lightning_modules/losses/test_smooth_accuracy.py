"""Smooth accuracy, and how cross-entropy repairs its gradient."""

import torch

from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.losses.smooth_accuracy import SmoothAccuracy


def test_formula(draw):
    logits, labels = draw()
    p = logits.softmax(1)[torch.arange(len(labels)), labels]
    torch.testing.assert_close(SmoothAccuracy()(logits, labels), 1 - p)
    logits, labels = draw(multi=True)
    expected = (labels.double() - logits.sigmoid()).abs().mean(1)
    torch.testing.assert_close(SmoothAccuracy()(logits, labels), expected)


def test_cross_entropy_is_its_gradient_without_the_factor_that_vanishes(draw):
    logits, labels = draw()
    logits.requires_grad_()
    [smooth] = torch.autograd.grad(SmoothAccuracy()(logits, labels).sum(), logits)
    [repaired] = torch.autograd.grad(CrossEntropy()(logits, labels).sum(), logits)
    p = logits.detach().softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(smooth, p * repaired)
