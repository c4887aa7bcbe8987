"""scikit-learn's digits: what they hold, and how they are cut."""

import numpy as np
import pytest
import torch
from array_corpus import attach

from datamodules.digits import Digits


def set_up(**options) -> Digits:
    data = Digits(**options)
    data.setup()
    return data


def contents(data: Digits) -> dict[str, list[bytes]]:
    return {split: sorted(row.tobytes() for row in store.values) for split, store in data.stores.items()}


def test_images_have_one_channel_and_values_from_0_to_1():
    data = set_up()
    assert data.facts["shape"] == [1, 8, 8] and data.label_names == list("0123456789")
    values = np.concatenate([store.values for store in data.stores.values()])
    assert values.dtype == np.float32 and values.min() == 0 and values.max() == 1 and len(values) == 1797
    batch = next(iter(attach(data).train_dataloader()))
    assert batch.values.shape[1:] == (1, 8, 8) and batch.values.dtype == torch.float32
    assert {"image", "vector", "label"} == data.provides and data.kind == "image"


def test_every_digit_is_cut_in_the_given_fractions():
    data = set_up(split=[0.5, 0.2, 0.3])
    counts = {split: np.bincount(store.labels) for split, store in data.stores.items()}
    total = sum(counts.values())
    for split, fraction in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
        assert abs(counts[split] - fraction * total).max() <= 2


def test_two_fractions_leave_no_test_rows():
    train, val, test = (len(store) for store in set_up(split=[0.9, 0.1]).stores.values())
    assert train + val == 1797 and abs(val - 180) <= 5 and test == 0


def test_the_cut_goes_by_the_seed():
    one, again, other = (contents(set_up(seed=seed)) for seed in (1, 1, 2))
    assert one == again and one["test"] != other["test"]
    assert not set(one["train"]) & set(one["test"])


def test_a_hundred_of_the_first_digit_and_two_of_the_last():
    data = set_up(long_tail={"imbalance": 50, "largest": 100})
    assert data.facts["class_counts"] == [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]
    assert np.bincount(data.stores["test"].labels).min() > 40


@pytest.mark.parametrize("split", [[0.5, 0.6], [1.0], [0.2] * 5, 0.5])
def test_a_wrong_cut_is_told(split):
    with pytest.raises(ValueError, match="must be 2 or 3 fractions that sum to 1"):
        Digits(split=split)
