"""Rows to compute losses of."""

import pytest
import torch


@pytest.fixture
def draw():
    """Logits [rows, classes] in float64 and labels, int64 [rows] or bool [rows, classes]."""

    def draw(rows=7, classes=4, multi=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
        if multi:
            return logits, torch.rand(rows, classes, generator=generator) < 0.4
        return logits, torch.randint(classes, (rows,), generator=generator)

    return draw
