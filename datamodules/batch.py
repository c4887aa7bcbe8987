"""The batches of corpora: rows of tokens of different lengths laid end to end without padding, or arrays of one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


def num_rows(batch: Any) -> int:
    """Rows of a `Batch`, or of an (x, y) batch."""
    return batch.num_rows if isinstance(batch, Batch) else len(batch[0])


class Batch:
    """What the batches of all corpora have; a subclass is a dataclass.

    Attributes:
        labels: [N], -1 where a row has none; bool [N, C] in a corpus with several labels a row; None where no row of
            the split has one.
        row_ids: [N], index of the row in its split: with (seed, epoch, position) the key of every random draw.
        epoch: the epoch whose draws apply.
        num_targets: tokens or rows that carry a loss, counted on the CPU; None where the technique declares no counter.
        loss_weight: local targets x parts / targets of the whole optimiser step, so that the mean over ranks and
            micro-batches of `loss * loss_weight` is the mean over targets.
    """

    labels: Tensor | None
    row_ids: Tensor
    epoch: int
    num_targets: int | None
    loss_weight: float

    @property
    def num_rows(self) -> int:
        return self.row_ids.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        # Lightning asks for non-blocking copies of plain tensors only; from pinned memory they always may be.
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking or tensor.is_pinned()))

    def pin_memory(self) -> Batch:
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)})


@dataclass
class VectorBatch(Batch):
    """N rows of one shape: vectors, images. A rank that has no row to evaluate gets N = 0.

    Attributes:
        values: float32 [N, ...], [N, D] vectors or [N, C, H, W] images.
        labels, row_ids, epoch, num_targets, loss_weight: see `Batch`.
    """

    values: Tensor
    labels: Tensor | None
    row_ids: Tensor
    epoch: int = 0
    num_targets: int | None = None
    loss_weight: float = 1.0


@dataclass
class TokenBatch(Batch):
    """N rows with T tokens in all, flat. L is the longest row's length. A rank that has no row to evaluate gets N = 0.

    Tensors are int64 unless said otherwise. Row r's tokens are `[cu_seqlens[r], cu_seqlens[r + 1])`.

    Attributes:
        input_ids: [T].
        segment_ids: [T], 0 and 1 for the texts of a row in turn (its pair, the turns of a dialogue).
        position_ids: [T], from 0 in every row.
        word_ids: [T], the index in the row's text, in characters without spaces, at which the token's word
            starts: the same number for every tokenizer that segments the text alike.
        char_counts: [T], how many original characters the token covers; 0 for tokens that the row format added.
        cu_seqlens: int32 [N + 1], where rows start.
        flat_index: [T], where each token stands in the padded [N * L] layout.
        pad_mask: bool [N, L], True at real tokens.
        max_seqlen: L, a Python number so that no kernel has to ask the device for it.
        labels, row_ids, epoch, num_targets, loss_weight: see `Batch`.
    """

    input_ids: Tensor
    segment_ids: Tensor
    position_ids: Tensor
    word_ids: Tensor
    char_counts: Tensor
    row_ids: Tensor
    cu_seqlens: Tensor
    flat_index: Tensor
    pad_mask: Tensor
    labels: Tensor | None
    max_seqlen: int
    epoch: int = 0
    num_targets: int | None = None
    loss_weight: float = 1.0

    @classmethod
    def from_numpy(
        cls,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        char_counts: np.ndarray,
        word_starts: np.ndarray,
        text_starts: np.ndarray,
        row_ids: np.ndarray,
        labels: np.ndarray | None = None,
        epoch: int = 0,
    ) -> TokenBatch:
        """Build the derived fields of flat rows.

        Args:
            input_ids, char_counts: [T] integers; word_starts: [T] bool.
            lengths: [N] tokens of each row, at least 1; row_ids: [N]. N may be 0.
            text_starts: [T] bool, True where a text but the first of its row starts.
            labels: integers [N], bool [N, C], or None.
        """
        lengths = lengths.astype(np.int64)
        total, longest = int(lengths.sum()), int(lengths.max(initial=0))
        starts = np.cumsum(lengths) - lengths
        first = np.repeat(starts, lengths)
        if labels is not None and labels.dtype != bool:
            labels = labels.astype(np.int64)
        position = np.arange(total) - first
        chars = char_counts.astype(np.int64)
        before = np.cumsum(chars) - chars
        before -= before[first]
        texts = np.cumsum(text_starts)
        # Added tokens open a "word" of their own, so that no word reaches over a [SEP].
        opens = word_starts | (chars == 0) | (position == 0)
        word_ids = before[np.maximum.accumulate(np.where(opens, np.arange(total), 0))]
        return cls(
            input_ids=torch.from_numpy(input_ids.astype(np.int64)),
            segment_ids=torch.from_numpy((texts - texts[first]) % 2),
            position_ids=torch.from_numpy(position),
            word_ids=torch.from_numpy(word_ids),
            char_counts=torch.from_numpy(chars),
            row_ids=torch.from_numpy(np.asarray(row_ids, dtype=np.int64)),
            cu_seqlens=torch.from_numpy(np.append(starts, total).astype(np.int32)),
            flat_index=torch.from_numpy(np.repeat(np.arange(len(lengths)) * longest, lengths) + position),
            pad_mask=torch.from_numpy(np.arange(longest) < lengths[:, None]),
            labels=labels if labels is None else torch.from_numpy(labels),
            max_seqlen=longest,
            epoch=epoch,
        )

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def token_row_ids(self) -> Tensor:
        """[T], the row id of each token's row."""
        lengths = self.cu_seqlens.diff()
        return torch.repeat_interleave(self.row_ids, lengths, output_size=self.num_tokens)

    def padded(self, values: Tensor | None = None, fill: int = 0) -> tuple[Tensor, Tensor]:
        """`values` ([T, ...], by default `input_ids`) as [N, L, ...] filled with `fill`, and the bool mask [N, L]."""
        values = self.input_ids if values is None else values
        rows, longest = self.pad_mask.shape
        out = values.new_full((rows * longest, *values.shape[1:]), fill).index_copy(
            0, self.flat_index, values
        )
        return out.view(rows, longest, *values.shape[1:]), self.pad_mask

    def flat(self, values: Tensor) -> Tensor:
        """The inverse of `padded`: [N, L, ...] to [T, ...]."""
        return values.flatten(0, 1).index_select(0, self.flat_index)
