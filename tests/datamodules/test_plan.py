"""The plan of batches: every row once an epoch, the same steps however they are cut, resumption on the next row."""

import numpy as np
import pytest

from datamodules.batch import TokenBatch
from datamodules.plan import BatchPlan, PlannedLoader, PlannedRows, evaluation_batches, micro_batches
from datamodules.selection import SelectedRows

LENGTHS = np.random.Generator(np.random.PCG64(0)).integers(3, 40, size=500)


def collate(rows: np.ndarray, epoch: int = 0) -> TokenBatch:
    """A batch whose tokens are their row's id."""
    lengths = LENGTHS[rows]
    return TokenBatch.from_numpy(
        input_ids=np.repeat(rows, lengths),
        lengths=lengths,
        char_counts=np.ones(lengths.sum()),
        word_starts=np.ones(lengths.sum(), dtype=bool),
        text_starts=np.zeros(lengths.sum(), dtype=bool),
        row_ids=rows,
        epoch=epoch,
    )


def loader(rank: int = 0, world_size: int = 1, accumulate: int = 1, num_workers: int = 0) -> PlannedLoader:
    plan = BatchPlan(LENGTHS, tokens_per_batch=512, seed=3, parts=world_size * accumulate)
    return PlannedLoader(PlannedRows(plan, collate, None, rank, world_size, accumulate), num_workers)


def steps(epoch: int, world_size: int, accumulate: int) -> list[set[int]]:
    """The set of rows of each step, gathered over ranks and micro-batches."""
    rows_of_rank = []
    for rank in range(world_size):
        one = loader(rank, world_size, accumulate)
        one.sampler.set_epoch(epoch)
        rows_of_rank.append([batch.row_ids.tolist() for batch in one])
    gathered = []
    for start in range(0, len(rows_of_rank[0]), accumulate):
        rows = [row for rank in rows_of_rank for batch in rank[start : start + accumulate] for row in batch]
        assert len(rows) == len(set(rows))
        gathered.append(set(rows))
    return gathered


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_row_exactly_once_an_epoch(epoch):
    rows = [row for step in steps(epoch, 1, 1) for row in step]
    assert sorted(rows) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_steps_rows_do_not_depend_on_how_it_is_cut(world_size, accumulate):
    assert steps(2, world_size, accumulate) == steps(2, 1, 1)


def test_epochs_differ_and_have_equally_many_steps():
    assert len(steps(0, 1, 1)) == len(steps(1, 1, 1))
    assert steps(0, 1, 1) != steps(1, 1, 1)


def test_steps_keep_to_the_budget_and_group_lengths():
    plan = BatchPlan(LENGTHS, tokens_per_batch=512, seed=3)
    padded, real = 0, 0
    for index in range(plan.num_steps):
        lengths = LENGTHS[plan.step(0, index)]
        assert lengths.sum() <= 512 + LENGTHS.max()
        padded += len(lengths) * lengths.max()
        real += lengths.sum()
    assert real / padded > 0.8
    assert real / (len(LENGTHS) * LENGTHS.max()) < 0.6


def test_parts_are_balanced():
    plan = BatchPlan(LENGTHS, tokens_per_batch=512, seed=3, parts=4)
    for index in range(plan.num_steps):
        loads = [LENGTHS[part].sum() for part in plan.cut(plan.step(0, index))]
        assert max(loads) - min(loads) <= LENGTHS.max()


@pytest.mark.parametrize(
    "tokens, device, longest, world", [(4096, 512, 64, 1), (4096, 512, 64, 3), (100, 16384, 128, 8)]
)
def test_micro_batches_fit_the_device(tokens, device, longest, world):
    accumulate = micro_batches(tokens, device, longest, world)
    lengths = np.random.Generator(np.random.PCG64(1)).integers(2, longest + 1, size=5000)
    parts = accumulate * world
    plan = BatchPlan(lengths, max(tokens, 2 * parts * longest), seed=0, parts=parts)
    if plan.tokens_per_batch == tokens:
        for index in range(plan.num_steps):
            assert max(lengths[part].sum() for part in plan.cut(plan.step(0, index))) <= device


def test_too_few_rows_for_the_parts_is_told():
    with pytest.raises(ValueError, match=r"tokens_per_batch=64: a step may hold only 1 rows .* 4 parts"):
        BatchPlan(LENGTHS, tokens_per_batch=64, seed=0, parts=4)


def test_a_device_too_small_for_two_rows_is_told():
    with pytest.raises(ValueError, match="max_tokens_per_device=100: must hold two rows"):
        micro_batches(2048, 100, 64, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 5])
def test_a_resumed_loader_continues_on_the_next_row(consumed, num_workers):
    whole = loader(accumulate=2)
    whole.sampler.set_epoch(4)
    expected = [batch.row_ids.tolist() for batch in whole]
    first = loader(accumulate=2, num_workers=num_workers)
    first.sampler.set_epoch(4)
    iterator = iter(first)
    for index in range(consumed):
        assert next(iterator).row_ids.tolist() == expected[index]
    resumed = loader(accumulate=2, num_workers=num_workers)
    resumed.load_state_dict(first.state_dict())
    resumed.sampler.set_epoch(4)
    assert [batch.row_ids.tolist() for batch in resumed] == expected[consumed:]
    # The epoch after the resumed one is whole again.
    resumed.sampler.set_epoch(5)
    assert len(list(resumed)) == len(expected)


def test_a_finished_epoch_resumes_with_the_next_one():
    first = loader()
    list(first)
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    assert len(list(resumed)) == len(resumed)


def test_another_world_size_continues_with_the_same_steps():
    one = loader()
    iterator = iter(one)
    next(iterator), next(iterator)
    expected = [set(batch.row_ids.tolist()) for batch in iterator]
    state = loader()
    halves = []
    for rank in range(2):
        resumed = loader(rank, world_size=2)
        resumed.load_state_dict({**state.state_dict(), "batches": 2})
        halves.append([set(batch.row_ids.tolist()) for batch in resumed])
    assert [a | b for a, b in zip(*halves, strict=True)] == expected


@pytest.mark.parametrize(
    "change, message",
    [({"plan": "other"}, "another plan of batches"), ({"accumulate": 3}, "3 micro-batches a step")],
)
def test_a_state_that_means_other_rows_is_refused(change, message):
    one = loader()
    with pytest.raises(ValueError, match=message):
        one.load_state_dict({**one.state_dict(), **change})


def test_loss_weights_make_the_mean_over_parts_the_mean_over_targets():
    plan = BatchPlan(LENGTHS, tokens_per_batch=512, seed=3, parts=6)
    value = LENGTHS.astype(float)  # a row's loss per target; its targets: its row id modulo 5

    def count(batch: TokenBatch) -> int:
        return int((batch.row_ids % 5).sum())

    parts = [
        PlannedRows(plan, collate, count, rank, 2, 3)[0, micro] for micro in range(3) for rank in range(2)
    ]
    rows = plan.step(0, 0)
    truth = (value[rows] * (rows % 5)).sum() / (rows % 5).sum()
    means = [
        (value[b.row_ids.numpy()] * (b.row_ids % 5).numpy()).sum() / max(b.num_targets, 1) * b.loss_weight
        for b in parts
    ]
    np.testing.assert_allclose(np.mean(means), truth)


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 100, 500])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("max_tokens", [80, 1000])
def test_an_evaluation_has_every_row_once_and_equally_many_batches_on_every_rank(
    rows, world_size, max_tokens
):
    lengths = LENGTHS[:rows]
    batches = evaluation_batches(lengths, max_tokens, world_size)
    assert sorted(np.concatenate(batches)) == list(range(rows))
    assert len(batches) % world_size == 0
    assert max(lengths[batch].sum() for batch in batches) <= max_tokens
    # Only where the rows do not go round are there batches without one, the last of them.
    without = [index for index, batch in enumerate(batches) if not len(batch)]
    assert without == list(range(rows, len(batches)))


def test_a_batch_without_rows_is_a_batch():
    batch = collate(np.arange(0))
    assert (batch.num_rows, batch.num_tokens, batch.cu_seqlens.tolist()) == (0, 0, [0])
    assert batch.padded()[0].shape == (0, 0) and batch.to("cpu").num_rows == 0


# Of LENGTHS: every third row, the longest drawn twenty times as often as the shortest.
CHOSEN = np.arange(0, 500, 3)
DRAWN = SelectedRows(500, CHOSEN, weights=np.where(LENGTHS[CHOSEN] > 20, 20.0, 1.0))


def drawn_steps(epoch: int, parts: int = 1, selected: SelectedRows = DRAWN) -> list[list[int]]:
    plan = BatchPlan(LENGTHS, tokens_per_batch=256, seed=3, parts=parts, selected=selected)
    return [sorted(np.concatenate(plan.cut(plan.step(epoch, i)))) for i in range(plan.num_steps)]


def test_selected_rows_keep_their_ids_and_come_once_an_epoch():
    rows = [row for step in drawn_steps(1, selected=SelectedRows(500, CHOSEN)) for row in step]
    assert sorted(rows) == CHOSEN.tolist()


def test_no_selection_is_the_plan_that_it_was():
    plans = [BatchPlan(LENGTHS, 512, 3, selected=selected) for selected in (None, SelectedRows(500))]
    # Of a run that was begun before rows could be selected: its checkpoints go on.
    assert [plan.fingerprint for plan in plans] == ["4e0462fe3fb03b18"] * 2
    assert plans[0].step(2, 5).tolist() == plans[1].step(2, 5).tolist()


@pytest.mark.parametrize("epoch", range(6))
def test_rows_drawn_with_replacement_keep_to_the_budget_of_every_step(epoch):
    """The rows that are drawn are longer than the others; the epoch has as many tokens all the same."""
    found = drawn_steps(epoch)
    tokens = [LENGTHS[step].sum() for step in found]
    total = LENGTHS[CHOSEN].sum()
    assert len(found) == len(drawn_steps(0)) == -(-total // 256)
    assert max(tokens) <= 256 + LENGTHS.max() and total - LENGTHS.max() < sum(tokens) <= total
    assert {row for step in found for row in step} <= set(CHOSEN)
    assert np.mean([LENGTHS[row] for step in found for row in step]) > LENGTHS[CHOSEN].mean() + 3


@pytest.mark.parametrize("parts", [2, 5])
def test_rows_drawn_with_replacement_do_not_depend_on_the_parts(parts):
    assert drawn_steps(2, parts) == drawn_steps(2)


def test_every_part_gets_a_row_or_it_is_told():
    plan = BatchPlan(LENGTHS, tokens_per_batch=256, seed=3, parts=5, selected=DRAWN)
    for epoch in range(5):
        for index in range(plan.num_steps):
            assert all(len(part) for part in plan.cut(plan.step(epoch, index)))
    with pytest.raises(
        ValueError, match=r"may hold only \d rows \(the longest has 39 tokens, there are 167 rows\)"
    ):
        BatchPlan(LENGTHS, tokens_per_batch=256, seed=3, parts=7, selected=DRAWN)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": CHOSEN[1:]},
        {"labels": np.zeros(500, dtype=np.int64)},
        {"weights": np.ones(len(CHOSEN))},
        {"weights": None},
    ],
)
def test_a_plan_is_named_by_its_rows_their_labels_and_weights(change):
    fields = {"rows": CHOSEN, "labels": None, "weights": DRAWN.weights, **change}
    if len(fields["rows"]) < len(CHOSEN):
        fields["weights"] = fields["weights"][1:]
    other = BatchPlan(LENGTHS, 256, 3, selected=SelectedRows(500, **fields))
    assert other.fingerprint != BatchPlan(LENGTHS, 256, 3, selected=DRAWN).fingerprint
