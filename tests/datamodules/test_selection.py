"""Which training rows are taken, with which labels and how often."""

import logging
from collections import Counter

import numpy as np
import pytest
from array_corpus import LABELS, Labelled, attach
from real_data import needs_real_data, real

from datamodules.arrays import ArrayStore
from datamodules.clue import CLUE
from datamodules.corpus import DataError, Row
from datamodules.selection import Selection, count_classes, long_tail_profile
from datamodules.text import TextDataModule
from datamodules.tokenizers.char import CharTokenizer


def set_up(**options) -> Labelled:
    data = Labelled(**options)
    data.setup()
    return data


def epoch_of(data, epoch=0) -> tuple[np.ndarray, np.ndarray]:
    """Row ids and labels of all rows of a training epoch."""
    loader = attach(data).train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return tuple(
        np.concatenate([getattr(b, name).numpy() for b in batches]) for name in ("row_ids", "labels")
    )


def evaluated(data, split) -> np.ndarray:
    """The labels of a split by row id."""
    batches = list(getattr(attach(data), f"{split}_dataloader")())
    rows, labels = (np.concatenate([getattr(b, n).numpy() for b in batches]) for n in ("row_ids", "labels"))
    return labels[np.argsort(rows)]


def test_without_an_option_all_rows_are_trained_on_as_they_are():
    data = set_up()
    rows, labels = epoch_of(data)
    assert sorted(rows) == list(range(1000)) and (labels == LABELS[rows]).all()
    assert data.facts["class_counts"] == np.bincount(LABELS).tolist() and data.facts["sampler"] is None
    assert data.num_rows("train") == 1000 and data.selected.fingerprint == ""


# limit


def test_a_limit_takes_so_many_rows_by_the_seed_and_fewer_are_some_of_the_more():
    chosen = {limit: set(epoch_of(set_up(limit=limit, seed=3))[0]) for limit in (50, 200)}
    assert (len(chosen[50]), len(chosen[200])) == (50, 200) and chosen[50] < chosen[200]
    assert chosen[50] != set(epoch_of(set_up(limit=50, seed=4))[0])


def test_a_limit_leaves_validation_and_test_alone():
    data = set_up(limit=7)
    assert [data.num_rows(split) for split in ("train", "val", "test")] == [7, 1000, 1000]
    assert sum(data.facts["class_counts"]) == 7


def test_a_limit_above_the_number_of_rows_changes_nothing():
    assert set_up(limit=5000).selected.fingerprint == ""


# long tail


def test_the_profile_is_exponential_rounded_down_and_at_least_one():
    # The numbers of CIFAR-10-LT with imbalance 100: 12,406 images.
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tail_profile(5000, 100, 10).tolist() == counts
    assert long_tail_profile(49, 49, 2).tolist() == [49, 1]
    assert long_tail_profile(10, 1000, 3).tolist() == [10, 1, 1]
    assert long_tail_profile(10, 50, 1).tolist() == [10]


def test_a_long_tail_cuts_each_class_to_its_share():
    data = set_up(long_tail={"imbalance": 50, "largest": 100})
    rows, _ = epoch_of(data)
    assert np.bincount(LABELS[rows]).tolist() == data.facts["class_counts"] == [100, 27, 7, 2]
    assert data.num_rows("train") == 136 and data.num_rows("val") == 1000


def test_the_largest_class_is_the_measure_where_none_is_given():
    counts = set_up(long_tail={"imbalance": 10}).facts["class_counts"]
    there = np.bincount(LABELS)
    assert counts == np.minimum(there, long_tail_profile(there.max(), 10, 4)).tolist()


def test_a_class_with_fewer_rows_keeps_them_all():
    labels = np.repeat([0, 1, 2, 3], [5, 100, 3, 100])
    data = set_up(labels=labels, long_tail={"imbalance": 8, "largest": 80})
    assert data.facts["class_counts"] == [5, 40, 3, 10]


def test_an_imbalance_of_one_without_a_largest_class_changes_nothing():
    assert set_up(long_tail={"imbalance": 1, "largest": None}).selected.fingerprint == ""


def test_the_limit_comes_first():
    data = set_up(limit=200, long_tail={"imbalance": 10})
    assert set(epoch_of(data)[0]) < set(epoch_of(set_up(limit=200))[0])


# noise


def test_noise_gives_its_share_of_the_rows_another_class_each_alike():
    data = set_up(label_noise=0.3)
    rows, labels = epoch_of(data)
    changed = labels != LABELS[rows]
    assert changed.sum() == 300 == data.summary()["trained_on"]["changed_labels"]
    steps = Counter(((labels - LABELS[rows]) % 4)[changed].tolist())
    assert steps.keys() == {1, 2, 3} and min(steps.values()) > 70
    assert data.facts["class_counts"] == np.bincount(labels).tolist() != np.bincount(LABELS).tolist()


def test_noise_is_the_same_in_every_epoch_and_less_of_it_in_the_same_rows():
    def noisy(**options):
        rows, labels = epoch_of(set_up(**options), epoch=options.pop("epoch", 0))
        return set(rows[labels != LABELS[rows]])

    data = set_up(label_noise=0.3)
    first, second = epoch_of(data, 0), epoch_of(data, 1)
    assert dict(zip(*first, strict=True)) == dict(zip(*second, strict=True))
    assert noisy(label_noise=0.1) < noisy(label_noise=0.3)
    assert noisy(label_noise=0.1, seed=1) != noisy(label_noise=0.1, seed=2)


def test_validation_labels_are_noisy_where_asked_and_test_labels_never():
    clean, noisy = set_up(label_noise=0.2), set_up(label_noise=0.2, noisy_val=True)
    assert (evaluated(clean, "val") == LABELS).all()
    assert (evaluated(noisy, "val") != LABELS).sum() == 200
    for data in (clean, noisy):
        assert (evaluated(data, "test") == LABELS).all()
    rows, labels = epoch_of(noisy)
    in_training = set(rows[labels != LABELS[rows]])
    assert in_training != set(np.flatnonzero(evaluated(noisy, "val") != LABELS))


def test_the_corpus_itself_is_not_changed():
    data = set_up(label_noise=0.5, noisy_val=True)
    assert (data.stores["train"].labels == LABELS).all() and (data.stores["val"].labels == LABELS).all()


# samplers

SKEWED = np.repeat([0, 1, 2, 3], [900, 64, 27, 9])


@pytest.mark.parametrize(
    "sampler, shares", [("balanced", [1, 1, 1, 1]), ("square_root", [30, 8, 27**0.5, 3])]
)
def test_a_sampler_draws_classes_in_its_proportion(sampler, shares):
    data = set_up(labels=SKEWED, sampler=sampler)
    drawn = np.concatenate([epoch_of(data, epoch)[1] for epoch in range(20)])
    expected = np.array(shares) / sum(shares)
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), expected, atol=0.015)
    assert data.facts["class_counts"] == [900, 64, 27, 9] and data.facts["sampler"] == sampler


def test_a_sampler_draws_with_replacement_anew_in_every_epoch():
    data = set_up(labels=SKEWED, sampler="balanced")
    rows, _ = epoch_of(data, 0)
    assert len(rows) == 1000 and len(set(rows)) < 700
    assert rows.tolist() == epoch_of(data, 0)[0].tolist() != epoch_of(data, 1)[0].tolist()


def test_a_sampler_goes_by_the_labels_that_training_sees():
    labels = np.repeat([0, 1], [990, 10])
    data = set_up(labels=labels, label_noise=0.1, sampler="balanced")
    _, drawn = epoch_of(data)
    counts = np.array(data.facts["class_counts"])
    np.testing.assert_allclose(np.bincount(drawn, minlength=4)[counts > 0] / 1000, 1 / 4, atol=0.05)


def test_a_sampler_does_not_change_evaluation():
    data = set_up(sampler="balanced")
    assert (evaluated(data, "val") == LABELS).all() and (evaluated(data, "test") == LABELS).all()


# what is told


def test_classes_of_which_training_has_no_row_are_named(caplog):
    data = set_up(labels=np.zeros(20, int), evaluated=np.array([0, 2, 2, 3, -1]))
    assert data.facts["class_counts"] == [20, 0, 0, 0]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"3 labels of {split} are of classes without a training row: c (2), d (1)"
        for split in ("val", "test")
    ]


def test_the_log_and_the_summary_say_what_was_chosen(caplog):
    with caplog.at_level(logging.INFO):
        data = set_up(
            limit=500,
            long_tail={"imbalance": 4, "largest": 80},
            label_noise=0.1,
            noisy_val=True,
            sampler="balanced",
        )
    told = data.summary()["trained_on"]
    assert (told["rows"], told["of"], told["changed_labels"]) == (181, 1000, 18)
    assert told["changed_val_labels"] == 100 and sum(told["class_counts"]) == 181
    assert (told["limit"], told["imbalance"], told["largest"], told["sampler"]) == (500, 4, 80, "balanced")
    assert (
        "limit=500, imbalance=4, largest=80, label_noise=0.1, noisy_val=True, sampler=balanced: 181 of 1,000 training rows, 18 of them "
        "with another label; 100 of 1,000 validation rows too; of a class " in caplog.text
    )


# what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limit": 0}, "limit=0: must be a whole number of rows, 1 or more"),
        ({"limit": 2.5}, "limit=2.5: must be a whole number of rows"),
        ({"long_tail": 50}, "long_tail=50: type long_tail.imbalance=50"),
        ({"long_tail": {"ratio": 3}}, "long_tail.ratio=3: takes imbalance and largest"),
        ({"long_tail": {"imbalance": 0.5}}, "imbalance=0.5: must be at least 1"),
        ({"long_tail": {"imbalance": "50"}}, "imbalance=50: must be at least 1"),
        ({"long_tail": {"largest": 0}}, "largest=0: long_tail.largest must be a whole number"),
        ({"label_noise": 1}, "label_noise=1: must be at least 0 and below 1"),
        ({"label_noise": -0.1}, "label_noise=-0.1: must be"),
        ({"sampler": "class"}, "sampler=class: must be one of balanced, square_root"),
    ],
)
def test_a_wrong_option_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        Labelled(**options)


BY_CLASS = [
    ({"long_tail": {"imbalance": 50}}, "imbalance=50"),
    ({"long_tail": {"largest": 20}}, "largest=20"),
    ({"label_noise": 0.1}, "label_noise=0.1"),
    ({"sampler": "balanced"}, "sampler=balanced"),
]


class Texts(TextDataModule):
    provides = frozenset({"text", "label"})

    def __init__(self, cache, labels, label_names, multi_label=False, **options):
        super().__init__(CharTokenizer(), cache_dir=str(cache), max_length=16, tokens_per_batch=40, **options)
        self.rows, self.label_names, self.multi_label = labels, label_names, multi_label
        if label_names is None:
            self.provides = frozenset({"text"})

    def read(self, split):
        assert not self.unreadable, "rows were read"
        for number, label in enumerate(self.rows):
            yield Row("好" * (1 + number % 9), label)

    unreadable = False

    def fingerprint(self, split):
        return f"{self.rows}"

    def describe(self):
        return {"source": "memory"}


@pytest.mark.parametrize("options, named", BY_CLASS)
@pytest.mark.parametrize(
    "labels, names, what",
    [([None] * 9, None, "have no labels"), ([(0, 1)] * 9, ["a", "b"], "may have several labels")],
)
def test_an_option_by_class_is_refused_before_rows_are_read(tmp_path, labels, names, what, options, named):
    data = Texts(tmp_path, labels, names, multi_label=names is not None, **options)
    data.unreadable = True
    with pytest.raises(ValueError, match=f"{named}: goes by the class of a row, .* {what}; leave it out"):
        data.prepare_data()


def test_a_limit_goes_with_several_labels_and_with_none(tmp_path):
    several = Texts(tmp_path, [(0, 1), (1,), ()] * 10, ["a", "b"], multi_label=True, limit=6)
    several.setup()
    rows = several.selected.rows
    kinds = np.bincount(rows % 3, minlength=3)
    assert len(rows) == 6 and several.facts["class_counts"] == [kinds[0], kinds[0] + kinds[1]]
    none = Texts(tmp_path, [None] * 30, None, limit=6)
    none.setup()
    assert none.num_rows("train") == 6 and none.facts["class_counts"] is None


def test_rows_without_a_label_are_counted_before_an_option_goes_by_them():
    with pytest.raises(
        DataError, match="label_noise=0.2: goes by the class of a row, and 2 training rows have none"
    ):
        set_up(labels=np.array([0, 1, -1, 2, -1]), label_noise=0.2)


def test_a_label_that_is_no_class_is_told():
    with pytest.raises(DataError, match="a row has the label 7, and the corpus 4 classes, from 0 on"):
        set_up(labels=np.array([0, 7]))


# texts


def test_texts_are_selected_by_the_tokens_that_are_there(tmp_path):
    labels = [number % 3 for number in range(60)]
    Texts(tmp_path, labels, ["a", "b", "c"]).prepare_data()
    data = Texts(tmp_path, labels, ["a", "b", "c"], long_tail={"imbalance": 4}, label_noise=0.25, limit=45)
    data.unreadable = True  # the vocabulary and the tokens come from the cache
    data.setup()
    rows, noisy = epoch_of(data)
    own = rows % 3
    assert sorted(set(rows)) == sorted(rows) == data.selected.rows.tolist()
    assert (own != noisy).sum() == round(0.25 * len(rows)) and np.bincount(noisy).tolist() == data.facts[
        "class_counts"
    ]


def test_unigrams_are_counted_in_the_training_rows(tmp_path):
    data = Texts(tmp_path, [0] * 30, ["a"], limit=5)
    data.setup()
    assert data.token_counts().sum() == sum(1 + row % 9 for row in data.selected.rows)


@pytest.mark.parametrize("multi_label", [False, True])
def test_classes_are_counted_in_parts(tmp_path, monkeypatch, multi_label):
    monkeypatch.setattr("datamodules.selection.ROWS_AT_A_TIME", 7)
    labels = [((number % 3,) if multi_label else number % 3) for number in range(40)]
    data = Texts(tmp_path, labels, ["a", "b", "c"], multi_label=multi_label)
    data.setup()
    assert count_classes(data.stores["train"], np.arange(40), 3) == [14, 13, 13]


def test_choices_of_another_kind_are_independent():
    """The rows that a limit takes are not those that get another label first."""
    own = LABELS[:1000]
    store = ArrayStore(np.zeros((1000, 1)), own)
    noisy = Selection(label_noise=0.5).training_rows(store, 4).labels != own
    assert 0.4 < noisy[Selection(limit=200).training_rows(store, 4).rows].mean() < 0.6


@needs_real_data
def test_clue_with_a_limit_and_a_long_tail(tmp_path):
    options = {"source": real("clue"), "cache_dir": str(tmp_path), "max_length": 32}
    whole = CLUE(tokenizer=CharTokenizer(), **options)
    whole.prepare_data()
    whole.setup()
    data = CLUE(
        tokenizer=CharTokenizer(), limit=5000, long_tail={"imbalance": 20}, label_noise=0.1, **options
    )
    data.setup()
    counts = np.array(whole.facts["class_counts"])
    assert len(counts) == 15 and counts.sum() == whole.num_rows("train") == len(whole.stores["train"])
    assert data.num_rows("train") < 5000 and data.num_rows("val") == whole.num_rows("val")
    _, labels = epoch_of(data)
    assert np.bincount(labels, minlength=15).tolist() == data.facts["class_counts"]
    assert data.selected.changed == round(0.1 * data.num_rows("train"))
