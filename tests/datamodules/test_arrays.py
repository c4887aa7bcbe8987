"""Corpora of arrays: the same steps however they are cut, resumption, every row evaluated once."""

import pickle

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from array_corpus import LABELS, Labelled, attach

from datamodules.arrays import ArrayStore, cut
from datamodules.batch import VectorBatch, num_rows
from datamodules.corpus import DataError

SAMPLED = {"sampler": "balanced", "limit": 330}


def loader(rank=0, world_size=1, accumulate=1, count_targets=None, **options):
    options = {"batch_size": 48, "max_rows_per_device": -(-48 // (world_size * accumulate)), **options}
    data = Labelled(**options)
    data.setup()
    attach(data, rank, world_size, accumulate)
    if count_targets is not None:
        data.trainer.lightning_module = type("Counting", (), {"count_targets": staticmethod(count_targets)})
    return data.train_dataloader()


def steps(world_size, accumulate, epoch=0, **options) -> list[list[int]]:
    """The rows of each step, with their labels, gathered over ranks and micro-batches."""
    of_rank = []
    for rank in range(world_size):
        one = loader(rank, world_size, accumulate, **options)
        one.sampler.set_epoch(epoch)
        of_rank.append(list(one))
    gathered = []
    for start in range(0, len(of_rank[0]), accumulate):
        batches = [batch for rank in of_rank for batch in rank[start : start + accumulate]]
        gathered.append(
            sorted(
                (r, c) for b in batches for r, c in zip(b.row_ids.tolist(), b.labels.tolist(), strict=True)
            )
        )
    return gathered


def test_a_batch_holds_the_rows_of_its_ids():
    batch = next(iter(loader()))
    assert isinstance(batch, VectorBatch) and batch.num_rows == num_rows(batch) == len(batch.values)
    assert batch.values.dtype == torch.float32 and batch.values.shape[1:] == (1,)
    assert batch.values[:, 0].tolist() == batch.row_ids.tolist()
    assert batch.labels.tolist() == LABELS[batch.row_ids].tolist()


@pytest.mark.parametrize("rows", [47, 48, 49, 96, 100, 1000])
def test_no_step_is_larger_than_the_batch_size_and_all_are_nearly_equal(rows):
    sizes = [batch.num_rows for batch in loader(labels=LABELS[:rows])]
    assert sum(sizes) == rows and max(sizes) <= 48 and max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-rows // 48)


@pytest.mark.parametrize("options", [{}, SAMPLED, {"label_noise": 0.2, "long_tail": {"imbalance": 9}}])
@pytest.mark.parametrize("world_size, accumulate", [(2, 1), (1, 3), (2, 2), (3, 2)])
def test_a_steps_rows_and_labels_do_not_depend_on_how_it_is_cut(world_size, accumulate, options):
    for epoch in (0, 2):
        assert steps(world_size, accumulate, epoch, **options) == steps(1, 1, epoch, **options)


@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_every_epoch_has_as_many_steps_and_other_rows(options):
    first, second = steps(1, 1, 0, **options), steps(1, 1, 1, **options)
    assert len(first) == len(second) and first != second
    assert sum(map(len, first)) == sum(map(len, second)) == options.get("limit", 1000)


@pytest.mark.parametrize("count_targets", [None, num_rows])
def test_loss_weights_make_the_mean_over_parts_the_mean_over_rows(count_targets):
    parts = [iter(loader(rank, 2, 2, count_targets, labels=LABELS[:47])) for rank in range(2)]
    batches = [next(part) for part in parts for _ in range(2)]
    assert sorted(batch.num_rows for batch in batches) == [11, 12, 12, 12]
    weighted = np.mean([batch.values.mean() * batch.loss_weight for batch in batches])
    np.testing.assert_allclose(weighted, np.mean(range(47)), rtol=1e-6)
    assert all(batch.num_targets == (batch.num_rows if count_targets else None) for batch in batches)


@pytest.mark.parametrize("options", [{}, SAMPLED])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_continues_on_the_next_row(num_workers, options):
    whole = loader(accumulate=2, **options)
    whole.sampler.set_epoch(4)
    expected = [batch.row_ids.tolist() for batch in whole]
    first = loader(accumulate=2, num_workers=num_workers, **options)
    first.sampler.set_epoch(4)
    iterator = iter(first)
    assert [next(iterator).row_ids.tolist() for _ in range(5)] == expected[:5]
    resumed = loader(accumulate=2, **options)
    resumed.load_state_dict(first.state_dict())
    resumed.sampler.set_epoch(4)
    assert [batch.row_ids.tolist() for batch in resumed] == expected[5:]


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 999},
        {"long_tail": {"imbalance": 2}},
        {"label_noise": 0.01},
        {"sampler": "balanced"},
        {"batch_size": 47},
        {"seed": 1},
    ],
)
def test_another_selection_is_not_resumed(change):
    with pytest.raises(
        DataError,
        match=r"another plan of batches \(corpus, selection of its rows, batch_size or seed differ\)",
    ):
        loader(**change).load_state_dict(loader().state_dict())


def test_another_seed_of_noise_is_another_selection():
    one, other = (Labelled(label_noise=0.1, seed=seed) for seed in (1, 2))
    one.setup(), other.setup()
    assert one.selected.fingerprint != other.selected.fingerprint


def test_another_number_of_micro_batches_is_told_with_the_options_of_arrays():
    with pytest.raises(
        DataError, match=r"set data\.max_rows_per_device so that the number of micro-batches stays"
    ):
        loader(accumulate=2).load_state_dict(loader(accumulate=1).state_dict())


@pytest.mark.parametrize(
    "batch_size, device, world, micro", [(200, 200, 1, 1), (200, 199, 1, 2), (96, 16, 3, 2), (5, 1, 1, 5)]
)
def test_micro_batches_fit_the_device_exactly(batch_size, device, world, micro):
    data = Labelled(batch_size=batch_size, max_rows_per_device=device)
    data.setup()
    assert data.accumulate_grad_batches(world) == micro
    batches = list(attach(data, world_size=world, accumulate=micro).train_dataloader())
    assert max(batch.num_rows for batch in batches) <= device


def test_too_few_rows_for_the_ranks_is_told_with_the_options_of_arrays():
    with pytest.raises(
        ValueError,
        match=r"batch_size=2: a step may hold only 2 rows \(there are 1000 rows\), too few for 4 parts .*batch_size=8 is",
    ):
        loader(world_size=4, batch_size=2)


def test_a_trainer_of_another_accumulation_is_told():
    data = Labelled(batch_size=48, max_rows_per_device=24)
    data.setup()
    with pytest.raises(
        ValueError, match="batch_size=48 under max_rows_per_device=24 on 1 rank.* accumulate_grad_batches=2"
    ):
        attach(data).train_dataloader()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size=0: must be"),
        ({"max_rows_per_device": 1.5}, "max_rows_per_device=1.5: must be"),
    ],
)
def test_a_wrong_size_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        Labelled(**options)


@pytest.mark.parametrize("rows", [1, 3, 40, 400])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_row_is_evaluated_once_in_equally_many_batches_on_every_rank(rows, world_size):
    data = Labelled(evaluated=LABELS[:rows], max_rows_per_device=20)
    data.setup()
    of_rank = [list(attach(data, rank, world_size).val_dataloader()) for rank in range(world_size)]
    batches = [batch for one in of_rank for batch in one]
    assert sorted(row for batch in batches for row in batch.row_ids.tolist()) == list(range(rows))
    assert len({len(one) for one in of_rank}) == 1 and max(batch.num_rows for batch in batches) <= 20
    if rows < world_size:
        empty = next(batch for batch in batches if not batch.num_rows)
        assert empty.values.shape == (0, 1) and empty.labels.shape == (0,) and empty.to("cpu").num_rows == 0


def test_a_split_without_rows_is_not_evaluated():
    data = Labelled(evaluated=LABELS[:0])
    data.setup()
    assert attach(data).val_dataloader() == [] and data.num_rows("val") == 0 and not data.has_labels("val")


def test_labels_that_are_not_known_are_no_labels():
    data = Labelled(evaluated=np.full(5, -1))
    data.setup()
    assert data.num_rows("test") == 5 and not data.has_labels("test") and data.has_labels("train")


def test_a_corpus_without_training_rows_is_told():
    with pytest.raises(DataError, match="memory: the corpus has no training rows"):
        Labelled(labels=LABELS[:0]).setup()


def test_facts_are_plain_values():
    data = Labelled(limit=10)
    data.setup()
    assert data.facts == {
        "shape": [1],
        "num_train_rows": 10,
        "label_names": ["a", "b", "c", "d"],
        "class_counts": data.selected.class_counts,
        "multi_label": False,
        "sampler": None,
    }
    assert all(type(count) is int for count in data.facts["class_counts"]) and data.tokenizer is None
    assert data.metric_values() == {}
    assert data.summary()["splits"]["val"] == {"num_rows": 1000, "labelled_rows": 1000}


def test_bytes_are_scaled_in_the_batch():
    store = ArrayStore(np.array([[0, 51, 255]], dtype=np.uint8), np.array([True]), scale=1 / 255)
    batch = store.batch(np.array([0]))
    torch.testing.assert_close(batch.values, torch.tensor([[0.0, 0.2, 1.0]]))
    assert batch.labels.dtype == torch.int64 and store.values.dtype == np.uint8
    assert pickle.loads(pickle.dumps(store)).batch(np.array([0])).values.tolist() == batch.values.tolist()


def test_rows_and_labels_that_do_not_fit_are_told():
    with pytest.raises(DataError, match="2 rows with 3 labels"):
        ArrayStore(np.zeros((2, 1)), np.zeros(3))


def test_a_cut_is_stratified_by_the_seed_and_keeps_equal_rows_together():
    values, labels = np.repeat(np.arange(400), 2)[:, None], np.repeat(np.arange(4), 200)
    parts = cut(values, labels, [0.6, 0.15, 0.25], seed=5)
    assert [np.bincount(part.labels).tolist() for part in parts] == [[120] * 4, [30] * 4, [50] * 4]
    contents = [set(part.values[:, 0].tolist()) for part in parts]
    assert sum(map(len, contents)) == 400
    again, other = (cut(values, labels, [0.6, 0.15, 0.25], seed)[0].values for seed in (5, 6))
    assert (again == parts[0].values).all() and (other != parts[0].values).any()


class Counts(pl.LightningModule):
    """Notes the rows that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.rows.append(batch.row_ids.tolist())
        return self.weight * batch.loss_weight

    def validation_step(self, batch, batch_idx):
        self.validated += batch.row_ids.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(folder, data, **options) -> Counts:
    data.setup()
    model = Counts()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    accumulate = data.accumulate_grad_batches(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        accumulate_grad_batches=accumulate,
        **quiet,
        **options,
    )
    trainer.fit(model, data)
    return model


def test_lightning_trains_on_it(tmp_path):
    model = trained(tmp_path, Labelled(batch_size=250, max_rows_per_device=125), max_epochs=2)
    rows = [row for batch in model.rows for row in batch]
    assert len(model.rows) == 16 and sorted(rows) == sorted([*range(1000)] * 2)
    assert sorted(set(model.validated)) == list(range(1000))


def test_an_epoch_may_be_limited_and_overfitting_repeats_its_rows(tmp_path):
    options = {"batch_size": 100, "sampler": "square_root"}
    limited = trained(tmp_path, Labelled(**options), max_epochs=2, limit_train_batches=3, limit_val_batches=0)
    assert len(limited.rows) == 6 and limited.rows[:3] != limited.rows[3:]
    overfit = trained(tmp_path, Labelled(**options), max_epochs=2, overfit_batches=2)
    assert len(overfit.rows) == 4 and overfit.rows[:2] == overfit.rows[2:]
