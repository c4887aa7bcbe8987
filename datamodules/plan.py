"""Which rows make which optimiser step, alike on every rank, and the loader that keeps its place in the plan."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from datamodules.batch import Batch
from datamodules.corpus import DataError
from datamodules.selection import SelectedRows

# Rows are sorted by length within groups of this many steps: long enough to fill a step with equal lengths,
# short enough that which rows meet in a step changes with every epoch.
STEPS_PER_LENGTH_GROUP = 50


class Unit(NamedTuple):
    """What a step is measured in, and the options that say how much of it there is.

    Attributes:
        per_batch: the option of a step, over all ranks and micro-batches; per_device: of a device at a time.
        deciding: options that, beside the corpus and its seed, decide which rows a step has.
    """

    per_batch: str
    per_device: str
    deciding: str


TOKENS = Unit("tokens_per_batch", "max_tokens_per_device", "tokenizer, max_length, tokens_per_batch")
ROWS = Unit("batch_size", "max_rows_per_device", "batch_size")


class BatchPlan:
    """An epoch as whole optimiser steps of about `tokens_per_batch` tokens.

    The plan is a function of (seed, epoch, lengths, tokens_per_batch, selected rows) alone: the rows of a step do not
    depend on how many ranks or micro-batches share it, and the number of steps is the same in every epoch.

    Args:
        lengths: [N] tokens of each row; ones where a row has no tokens: then `tokens_per_batch` counts rows.
        tokens_per_batch: tokens of one optimiser step, over all ranks and micro-batches.
        seed: seed of the order.
        parts: world size x micro-batches; every part of every step gets at least one row.
        selected: of the N rows; None: each of them once an epoch. Where rows are drawn with replacement, an epoch has as
            many tokens as the selected rows, or less than one row fewer.
        unit: what messages call all this.

    Raises:
        ValueError: a step could not give a row to each part.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        tokens_per_batch: int,
        seed: int,
        parts: int = 1,
        selected: SelectedRows | None = None,
        unit: Unit = TOKENS,
    ):
        self.lengths = np.asarray(lengths)
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.parts = parts
        self.selected = SelectedRows(len(self.lengths)) if selected is None else selected
        self.unit = unit
        rows = self.selected.rows
        own = self.lengths if rows is None else self.lengths[rows]
        total, longest = int(own.sum()), int(own.max(initial=1))
        self._tokens_per_epoch = total
        self.num_steps = max(1, -(-total // tokens_per_batch))
        rows_at_least = len(own) if self.num_steps == 1 else total // self.num_steps // longest
        if self.selected.weights is not None:
            rows_at_least = (total - longest + 1) // self.num_steps // longest
        if rows_at_least < parts:
            longest_has = f"the longest has {longest} tokens, " if longest > 1 else ""
            raise ValueError(
                f"{unit.per_batch}={tokens_per_batch}: a step may hold only {rows_at_least} rows ({longest_has}there are "
                f"{len(own)} rows), too few for {parts} parts (ranks x micro-batches); {unit.per_batch}="
                f"{2 * parts * longest} is enough, if the corpus has the rows"
            )
        self._epoch: int | None = None

    @property
    def fingerprint(self) -> str:
        """Names the rows of every step of every epoch; equal plans have equal fingerprints at any world size."""
        digest = hashlib.sha256(np.ascontiguousarray(self.lengths, dtype=np.int64).tobytes())
        digest.update(f"{self.tokens_per_batch} {self.seed} {STEPS_PER_LENGTH_GROUP}".encode())
        digest.update(self.selected.fingerprint.encode())
        return digest.hexdigest()[:16]

    def step(self, epoch: int, index: int) -> np.ndarray:
        """Row ids of one optimiser step."""
        if self._epoch != epoch:
            self._order, self._bounds, self._steps = self._plan(epoch)
            self._epoch = epoch
        step = self._steps[index]
        return self._order[self._bounds[step] : self._bounds[step + 1]]

    def cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """A step's rows in `parts` shares with nearly equal numbers of tokens, longest rows first."""
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        if self.parts == 1:
            return [rows]
        shares: list[list[int]] = [[] for _ in range(self.parts)]
        loads = [(0, part) for part in range(self.parts)]
        for row in rows.tolist():
            load, part = loads[0]
            shares[part].append(row)
            heapq.heapreplace(loads, (load + int(self.lengths[row]), part))
        return [np.array(share, dtype=np.int64) for share in shares]

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = self._drawn(random)
        rows_per_group = max(1, len(order) * STEPS_PER_LENGTH_GROUP // self.num_steps)
        group = np.arange(len(order)) // rows_per_group
        order = order[np.lexsort((self.lengths[order], group))]
        # Even cuts of the whole epoch: no short last step, and as many steps in every epoch.
        cuts = _even_cuts(np.cumsum(self.lengths[order], dtype=np.int64), self.num_steps)
        bounds = np.concatenate(([0], cuts, [len(order)]))
        return order, bounds, random.permutation(self.num_steps)

    def _drawn(self, random: np.random.Generator) -> np.ndarray:
        """Row ids of an epoch in random order."""
        rows, weights = self.selected.rows, self.selected.weights
        if weights is None:
            order = random.permutation(len(self.selected))
            return order if rows is None else rows[order]
        rows = np.arange(len(self.lengths)) if rows is None else rows
        ends, drawn = np.cumsum(weights), rows[:0]
        # As many tokens in every epoch, not as many rows: steps would outgrow the device where rare classes are long.
        while self.lengths[drawn].sum() < self._tokens_per_epoch:
            points = random.random(len(rows)) * ends[-1]
            places = np.minimum(np.searchsorted(ends, points, side="right"), len(rows) - 1)
            drawn = np.concatenate((drawn, rows[places]))
        return drawn[: np.searchsorted(np.cumsum(self.lengths[drawn]), self._tokens_per_epoch, side="right")]


def _even_cuts(ends: np.ndarray, parts: int) -> np.ndarray:
    """int64 [parts - 1]: the rows at which the second, third ... of nearly equal parts begin.

    Args:
        ends: int64 [N], sums of the lengths up to each row. A part has at most one row's length more than its share;
            rows of length one are cut exactly.
    """
    index = np.arange(1, parts)
    if ends[-1] == len(ends):
        return index * len(ends) // parts
    return np.searchsorted(ends, index * (ends[-1] / parts))


def micro_batches(tokens_per_batch: int, max_tokens_per_device: int, longest: int, world_size: int) -> int:
    """How many micro-batches a step needs so that no device holds more than `max_tokens_per_device` tokens.

    A step reaches at most one row over its budget, and the fullest share at most one row over the mean share; with rows
    of length one neither happens.

    Raises:
        ValueError: two rows of the greatest length do not fit.
    """
    over = longest if longest > 1 else 0
    if max_tokens_per_device < 2 * over:
        raise ValueError(
            f"max_tokens_per_device={max_tokens_per_device}: must hold two rows of max_length={longest} tokens"
        )
    return max(1, -(-(tokens_per_batch + over) // (world_size * (max_tokens_per_device - over))))


def evaluation_batches(lengths: np.ndarray, max_tokens: int, world_size: int = 1) -> list[np.ndarray]:
    """Every row once, sorted by length, in equally many batches for each rank, of at most `max_tokens` tokens.

    Rank r takes every `world_size`-th batch from r on. The ranks compute together what a strategy computes together
    (FSDP gathers weights in every forward pass), so none has fewer batches; where there are fewer rows than ranks,
    the last batches are empty.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    parts = world_size * micro_batches(int(ends[-1]), max_tokens, int(lengths.max()), world_size)
    index = np.arange(1, parts)
    # A row for each part, as far as they go.
    earliest, latest = np.minimum(index, len(order)), np.maximum(len(order) - parts + index, index)
    return np.split(order, np.clip(_even_cuts(ends, parts), earliest, latest))


class PlannedRows(Dataset):
    """Item (epoch, index) is the batch of this rank's micro-batch `index`.

    Args:
        plan: the plan of the split.
        collate: row ids, epoch -> batch.
        count_targets: the technique's number of loss-carrying targets in a batch, or None: lengths count.
        rank, world_size, accumulate: this rank's place; `plan.parts` = world_size x accumulate.
    """

    def __init__(
        self,
        plan: BatchPlan,
        collate: Callable[[np.ndarray, int], Batch],
        count_targets: Callable[[Batch], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ):
        self.plan = plan
        self.collate = collate
        self.count_targets = count_targets
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        # The micro-batches of a step follow one another: (epoch, step) and the step's targets.
        self._counted: tuple[tuple[int, int] | None, int] = (None, 0)

    def __len__(self) -> int:
        return self.plan.num_steps * self.accumulate

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        step, micro = divmod(index, self.accumulate)
        rows = self.plan.step(epoch, step)
        own = self.plan.cut(rows)[micro * self.world_size + self.rank]
        batch = self.collate(own, epoch)
        local = self._count(own, epoch, batch)
        if self.count_targets is not None:
            batch.num_targets = local
        if self.plan.parts > 1:
            if self._counted[0] != (epoch, step):
                self._counted = (epoch, step), self._count(rows, epoch)
            batch.loss_weight = local * self.plan.parts / max(self._counted[1], 1)
        return batch

    def _count(self, rows: np.ndarray, epoch: int, batch: Batch | None = None) -> int:
        """Targets of these rows, which `batch` holds if it is given."""
        if self.count_targets is None:
            return int(self.plan.lengths[rows].sum())
        return self.count_targets(self.collate(rows, epoch) if batch is None else batch)


class PlanSampler(SequentialSampler):
    """Keys (epoch, index) of `PlannedRows` from `start` to the end of the epoch; Lightning sets the epoch.

    Sequential, or else Lightning puts another in its place where it overfits.

    Args:
        num_batches: of an epoch.
        repeat: every epoch is the first one again, with the same rows and draws.
    """

    def __init__(self, num_batches: int, repeat: bool = False):
        self.num_batches = num_batches
        self.repeat = repeat
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = 0 if self.repeat else epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, index) for index in range(self.start, self.num_batches)])

    def __len__(self) -> int:
        return self.num_batches


class PlannedLoader(DataLoader):
    """A DataLoader over planned batches that resumes on the very next row.

    Lightning stores `state_dict()` in every checkpoint; a plain DataLoader would start the epoch anew there.

    Args:
        limit: the share of an epoch, or the number of its batches, after which Lightning ends it.
        repeat: every epoch is the first one again.
    """

    def __init__(
        self,
        rows: PlannedRows,
        num_workers: int = 0,
        pin_memory: bool = False,
        limit: int | float = 1.0,
        repeat: bool = False,
    ):
        super().__init__(
            rows,
            batch_size=None,
            sampler=PlanSampler(len(rows), repeat),
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            collate_fn=_identity,
        )
        self.consumed = 0
        self._start = 0
        self._batches_per_epoch = min(limit, len(rows)) if isinstance(limit, int) else int(limit * len(rows))

    def __iter__(self) -> Iterator[Batch]:
        # A generator: the first batch is asked for after Lightning has told the sampler its epoch.
        self.consumed, self._start = self._start, 0
        self.sampler.start = self.consumed
        for batch in super().__iter__():
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict:
        rows: PlannedRows = self.dataset
        return {
            "batches": self.consumed,
            "plan": rows.plan.fingerprint,
            "accumulate": rows.accumulate,
            "world_size": rows.world_size,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue after the batches that `state` counts.

        Another world size is fine: a step's rows do not depend on it. Raises DataError where the rows of the
        remaining steps, or their cut into micro-batches, would differ from the checkpoint's.
        """
        rows: PlannedRows = self.dataset
        if state["plan"] != rows.plan.fingerprint:
            raise DataError(
                "ckpt_path: the checkpoint was written with another plan of batches (corpus, selection of its rows, "
                f"{rows.plan.unit.deciding} or seed differ), so its place in the epoch means other rows here; use the "
                "options of the run (its config.yaml), or start a new run from its weights with model.init_from="
            )
        if state["accumulate"] != rows.accumulate:
            raise DataError(
                f"ckpt_path: the checkpoint was written with {state['accumulate']} micro-batches a step on "
                f"{state['world_size']} rank(s), here it would be {rows.accumulate} on {rows.world_size}; set "
                f"data.{rows.plan.unit.per_device} so that the number of micro-batches stays"
            )
        self._start = state["batches"] % self._batches_per_epoch
        self.consumed = self._start


def _identity(batch: Batch) -> Batch:
    return batch
