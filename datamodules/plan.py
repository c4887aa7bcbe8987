"""Which rows make which optimiser step, alike on every rank, and the loader that keeps its place in the plan."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from datamodules.batch import TokenBatch
from datamodules.corpus import DataError

# Rows are sorted by length within groups of this many steps: long enough to fill a step with equal lengths,
# short enough that which rows meet in a step changes with every epoch.
STEPS_PER_LENGTH_GROUP = 50


class BatchPlan:
    """An epoch as whole optimiser steps of about `tokens_per_batch` tokens.

    The plan is a function of (seed, epoch, lengths, tokens_per_batch) alone: the rows of a step do not depend on
    how many ranks or micro-batches share it, and the number of steps is the same in every epoch.

    Args:
        lengths: [N] tokens of each row.
        tokens_per_batch: tokens of one optimiser step, over all ranks and micro-batches.
        seed: seed of the order.
        parts: world size x micro-batches; every part of every step gets at least one row.

    Raises:
        ValueError: a step could not give a row to each part.
    """

    def __init__(self, lengths: np.ndarray, tokens_per_batch: int, seed: int, parts: int = 1):
        self.lengths = np.asarray(lengths)
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.parts = parts
        total, longest = int(self.lengths.sum()), int(self.lengths.max(initial=1))
        self.num_steps = max(1, -(-total // tokens_per_batch))
        rows_at_least = len(self.lengths) if self.num_steps == 1 else total // self.num_steps // longest
        if rows_at_least < parts:
            raise ValueError(
                f"tokens_per_batch={tokens_per_batch}: a step may hold only {rows_at_least} rows (the longest has "
                f"{longest} tokens, the corpus {len(self.lengths)} rows), too few for {parts} parts (ranks x "
                f"micro-batches); tokens_per_batch={2 * parts * longest} is enough, if the corpus has the rows"
            )
        self._epoch: int | None = None

    @property
    def fingerprint(self) -> str:
        """Names the rows of every step of every epoch; equal plans have equal fingerprints at any world size."""
        digest = hashlib.sha256(np.ascontiguousarray(self.lengths, dtype=np.int64).tobytes())
        digest.update(f"{self.tokens_per_batch} {self.seed} {STEPS_PER_LENGTH_GROUP}".encode())
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
        order = random.permutation(len(self.lengths))
        rows_per_group = max(1, len(order) * STEPS_PER_LENGTH_GROUP // self.num_steps)
        group = np.arange(len(order)) // rows_per_group
        order = order[np.lexsort((self.lengths[order], group))]
        # Even cuts of the whole epoch: no short last step, and as many steps in every epoch.
        ends = np.cumsum(self.lengths[order], dtype=np.int64)
        cuts = np.arange(1, self.num_steps) * (ends[-1] / self.num_steps)
        bounds = np.concatenate(([0], np.searchsorted(ends, cuts), [len(order)]))
        return order, bounds, random.permutation(self.num_steps)


def micro_batches(tokens_per_batch: int, max_tokens_per_device: int, longest: int, world_size: int) -> int:
    """How many micro-batches a step needs so that no device holds more than `max_tokens_per_device` tokens.

    A step reaches at most one row over its budget, and the fullest share at most one row over the mean share.

    Raises:
        ValueError: two rows of the greatest length do not fit.
    """
    if max_tokens_per_device < 2 * longest:
        raise ValueError(
            f"max_tokens_per_device={max_tokens_per_device}: must hold two rows of max_length={longest} tokens"
        )
    step = tokens_per_batch + longest
    return max(1, -(-step // (world_size * (max_tokens_per_device - longest))))


class PlannedRows(Dataset):
    """Item (epoch, index) is the `TokenBatch` of this rank's micro-batch `index`.

    Args:
        plan: the plan of the split.
        collate: row ids, epoch -> TokenBatch.
        count_targets: the technique's number of loss-carrying tokens in a batch, or None: tokens count.
        rank, world_size, accumulate: this rank's place; `plan.parts` = world_size x accumulate.
    """

    def __init__(
        self,
        plan: BatchPlan,
        collate: Callable[[np.ndarray, int], TokenBatch],
        count_targets: Callable[[TokenBatch], int] | None = None,
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

    def __getitem__(self, key: tuple[int, int]) -> TokenBatch:
        epoch, index = key
        step, micro = divmod(index, self.accumulate)
        rows = self.plan.step(epoch, step)
        batch = self.collate(self.plan.cut(rows)[micro * self.world_size + self.rank], epoch)
        count = self.count_targets or _tokens
        local = count(batch)
        if self.count_targets is not None:
            batch.num_targets = local
        if self.plan.parts > 1:
            if self._counted[0] != (epoch, step):
                self._counted = (epoch, step), count(self.collate(rows, epoch))
            batch.loss_weight = local * self.plan.parts / max(self._counted[1], 1)
        return batch


def _tokens(batch: TokenBatch) -> int:
    return batch.num_tokens


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

    def __iter__(self) -> Iterator[TokenBatch]:
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
                "ckpt_path: the checkpoint was written with another plan of batches (corpus, tokenizer, max_length, "
                "tokens_per_batch or seed differ), so its place in the epoch means other rows here; use the options "
                "of the run (its config.yaml), or start a new run from its weights with model.init_from="
            )
        if state["accumulate"] != rows.accumulate:
            raise DataError(
                f"ckpt_path: the checkpoint was written with {state['accumulate']} micro-batches a step on "
                f"{state['world_size']} rank(s), here it would be {rows.accumulate} on {rows.world_size}; set "
                "data.max_tokens_per_device so that the number of micro-batches stays"
            )
        self._start = state["batches"] % self._batches_per_epoch
        self.consumed = self._start


def _identity(batch: TokenBatch) -> TokenBatch:
    return batch
