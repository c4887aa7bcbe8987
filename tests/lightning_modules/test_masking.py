"""Draws are functions of (seed, epoch, row, position) and have the published rates."""

import numpy as np
import pytest
import torch
from helpers import FACTS, random_batch

from lightning_modules.draws import RANGE, draw, mix
from lightning_modules.masking import Masking

MANY = [20] * 2000


def masking(**options) -> Masking:
    defaults = {"vocab_size": 60, "mask_id": 4, "special_ids": (0, 2, 3, 4), "seed": 1}
    return Masking(**defaults | options)


def test_the_hash_is_the_published_one():
    def lowbias32(x: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ (x >> shift)) * factor) % RANGE
        return x ^ (x >> 16)

    values = [0, 1, 2, 12345, 2**31, 2**32 - 1]
    assert mix(torch.tensor(values)).tolist() == [lowbias32(value) for value in values]


def test_draws_are_uniform_and_independent():
    rows = torch.arange(300).repeat_interleave(300)
    places = torch.arange(300).repeat(300)
    a = draw(1, 0, 0, rows, places).double() / RANGE
    for other in (draw(2, 0, 0, rows, places), draw(1, 1, 0, rows, places), draw(1, 0, 1, rows, places)):
        assert abs(np.corrcoef(a.numpy(), other.double().numpy())[0, 1]) < 0.02
    square = a.view(300, 300)
    assert abs(np.corrcoef(square[1:].flatten(), square[:-1].flatten())[0, 1]) < 0.02
    assert abs(np.corrcoef(square[:, 1:].flatten(), square[:, :-1].flatten())[0, 1]) < 0.02
    counts = torch.histc(a, bins=20, min=0, max=1)
    assert (counts / counts.mean() - 1).abs().max() < 0.08


def test_rates_of_bert():
    batch, rule = random_batch(MANY), masking()
    targets = rule.targets(batch)
    ids = rule.corrupt(batch, targets)
    real = batch.char_counts > 0
    assert targets[real].float().mean() == pytest.approx(0.15, abs=0.006)
    assert not targets[~real].any()
    assert (ids[targets] == 4).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (ids[targets] == batch.input_ids[targets]).float().mean() == pytest.approx(
        0.1 + 0.1 / 59, abs=0.02
    )
    assert torch.equal(ids[~targets], batch.input_ids[~targets])
    randomised = ids[targets & (ids != 4) & (ids != batch.input_ids)]
    assert randomised.min() >= 1 and randomised.max() <= 59


def test_masks_do_not_depend_on_the_batch_they_are_drawn_in():
    whole = random_batch((5, 9, 7))
    alone = random_batch((9,), row_ids=[1])
    assert torch.equal(masking().targets(whole)[5:14], masking().targets(alone))


def test_masks_change_with_the_epoch_and_the_seed():
    batch, later = random_batch(MANY), random_batch(MANY, epoch=1)
    assert not torch.equal(masking().targets(batch), masking().targets(later))
    assert not torch.equal(masking().targets(batch), masking(seed=2).targets(batch))
    # Evaluation masks are fixed.
    assert torch.equal(masking().evaluation_targets(batch), masking().evaluation_targets(later))


def test_the_quirk_masks_special_tokens():
    batch = random_batch(MANY)
    chosen = masking(special_tokens=True).targets(batch)
    assert chosen[batch.char_counts == 0].float().mean() == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize("draws", ["targets", "evaluation_targets"])
def test_whole_words_are_masked_whole(draws):
    batch = random_batch(MANY)
    chosen = getattr(masking(whole_words=True), draws)(batch)
    keys = batch.token_row_ids * 1000 + batch.word_ids
    real = batch.char_counts > 0
    for key in keys[real].unique()[:500]:
        of_word = chosen[real & (keys == key)]
        assert of_word.all() or not of_word.any()


def test_the_count_is_the_number_of_targets():
    batch = random_batch(MANY)
    assert masking().count(batch) == int(masking().targets(batch).sum())


def test_evaluation_hides_every_target():
    batch = random_batch(MANY)
    targets = masking().evaluation_targets(batch)
    assert (masking().hide(batch, targets)[targets] == FACTS["mask_id"]).all()
