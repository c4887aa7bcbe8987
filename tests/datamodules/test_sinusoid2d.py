"""The synthetic set of flooding: where its points lie, and which class they have."""

import numpy as np
import pytest
from array_corpus import attach

from datamodules.sinusoid2d import Sinusoid2D


def set_up(**options) -> Sinusoid2D:
    data = Sinusoid2D(**options)
    data.setup()
    return data


def test_the_points_are_uniform_in_the_disc_and_their_class_is_the_side_of_the_curve():
    store = set_up().stores["test"]
    x1, x2 = store.values.T.astype(float)
    radius = np.hypot(x1, x2)
    assert len(store) == 20000 and store.values.dtype == np.float32 and radius.max() <= 2 + 1e-6
    # Of a disc of half the radius, of a quadrant: a quarter of the area each.
    assert abs((radius < 1).mean() - 0.25) < 0.015 and abs(((x1 > 0) & (x2 > 0)).mean() - 0.25) < 0.015
    side = 1.5 * x1 + np.sin(1.5 * x2)
    clear = abs(side) > 1e-5
    assert (store.labels[clear] == (side[clear] > 0)).all() and 0.45 < store.labels.mean() < 0.55


def test_its_sizes_are_those_of_the_paper_and_options():
    assert [len(store) for store in set_up().stores.values()] == [100, 100, 20000]
    assert [len(store) for store in set_up(train=7, val=0, test=3).stores.values()] == [7, 0, 3]


def test_splits_and_seeds_have_points_of_their_own():
    one, again, other = (set_up(seed=seed).stores for seed in (1, 1, 2))
    assert (one["train"].values == again["train"].values).all()
    for points in (one["val"], other["train"]):
        assert not set(points.values[:, 0]) & set(one["train"].values[:, 0])


def test_noise_is_in_training_and_where_asked_in_validation():
    data = set_up(label_noise=0.1, noisy_val=True)
    told = data.summary()["trained_on"]
    assert (told["changed_labels"], told["changed_val_labels"]) == (10, 10)
    batch = next(iter(attach(data).train_dataloader()))
    assert batch.values.shape == (100, 2)
    assert (batch.labels.numpy() != data.stores["train"].labels[batch.row_ids]).sum() == 10
    assert {"vector", "label"} == data.provides and data.facts["shape"] == [2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": 0}, "train=0: must be a whole number of points, 1 or more"),
        ({"val": -1}, "val=-1: must be"),
        ({"test": 0.5}, "test=0.5: must be"),
    ],
)
def test_a_wrong_size_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        Sinusoid2D(**options)
