"""How a dialogue lies before a causal language model: as the article or as CDial-GPT writes it, forwards or backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import TokenBatch


class Turn(NamedTuple):
    """A turn without what closes it: ids, and the original characters that each token covers."""

    ids: list[int]
    chars: list[int]

    def part(self, start: int | None, end: int | None = None) -> Turn:
        """Its tokens `[start:end]`."""
        return Turn(self.ids[start:end], self.chars[start:end])


def last_turns(turns: Sequence[Turn], room: int) -> list[Turn]:
    """The last turns that have room with a [SEP] each; perhaps none."""
    kept = 0
    for turn in reversed(turns):
        room -= len(turn.ids) + 1
        if room < 0:
            break
        kept += 1
    return list(turns[len(turns) - kept :])


def batch_of_turns(dialogues: Sequence[Sequence[Turn]], cls_id: int, sep_id: int) -> TokenBatch:
    """Rows `[CLS] turn [SEP] turn [SEP] ...`, whose ids count from 0."""
    rows, chars, starts = [], [], []
    for turns in dialogues:
        rows.append([cls_id, *(token for turn in turns for token in (*turn.ids, sep_id))])
        chars += [0, *(count for turn in turns for count in (*turn.chars, 0))]
        starts += [False, *(number > 0 and not place for number, turn in enumerate(turns)
                            for place in range(len(turn.ids) + 1))]  # fmt: skip
    ids = np.array([token for row in rows for token in row], dtype=np.int64)
    return TokenBatch.from_numpy(
        input_ids=ids,
        lengths=np.array([len(row) for row in rows]),
        char_counts=np.array(chars),
        word_starts=np.ones(len(ids), dtype=bool),
        text_starts=np.array(starts),
        row_ids=np.arange(len(rows)),
    )


class Written(NamedTuple):
    """Rows as the network reads them.

    Attributes:
        batch: T tokens; of its fields `word_ids` are not kept up.
        role_ids: [T], rows of the table of embeddings; None where tokens have no role.
        turns: [T], index of the turn, from 0, that the token belongs to; [CLS] to the first. What closes a turn belongs to
            it, also where it is the next speaker's token.
        targets: bool [T], tokens that a model of whole dialogues predicts: all that follow [CLS], without the token of the
            first speaker, which is always there.
        replies: bool [T], those of them that belong to the last turn.
    """

    batch: TokenBatch
    role_ids: Tensor | None
    turns: Tensor
    targets: Tensor
    replies: Tensor


def turns_of_tokens(batch: TokenBatch) -> Tensor:
    """[T], index of each token's turn in its row, from 0: the segments alternate."""
    starts = _new_turn(batch).long().cumsum(0)
    return starts - starts[batch.cu_seqlens[:-1].long()].repeat_interleave(
        batch.cu_seqlens.diff(), output_size=batch.num_tokens
    )


def count_targets(batch: TokenBatch, replies_only: bool) -> int:
    """The targets of rows `[CLS] turn [SEP] turn [SEP] ...`, alike in every form: of all turns, or of the last."""
    if not replies_only:
        return batch.num_tokens - batch.num_rows
    return int(_of_last_turn(batch, turns_of_tokens(batch)).sum())


def in_turns(batch: TokenBatch, role_rows: tuple[int, int] | None) -> Written:
    """`[CLS] u1 [SEP] u2 [SEP] ... un [SEP]`, roles alternating from 0, which is also that of [CLS] (kexue.fm/archives/7718).

    Args:
        role_rows: the rows of the table that are the two roles; None: tokens have no role.
    """
    turns = turns_of_tokens(batch)
    roles = None
    if role_rows is not None:
        roles = torch.where(batch.segment_ids == 0, *role_rows)
    return Written(batch, roles, turns, batch.position_ids > 0, _of_last_turn(batch, turns))


def with_speakers(batch: TokenBatch, speakers: tuple[int, int], cls_id: int | None) -> Written:
    """`[CLS] [speaker1] u1 [speaker2] u2 ... [speakerX] un [SEP]`, the form of CDial-GPT (Wang et al. 2020, arXiv
    2008.03946): a token's role is its speaker's token, that of [CLS] is [CLS] itself.

    Args:
        speakers: ids of the tokens of the two speakers.
        cls_id: of [CLS]; None: tokens have no role.
    """
    device, rows = batch.input_ids.device, torch.arange(batch.num_rows, device=batch.input_ids.device)
    lengths = batch.cu_seqlens.diff().long()
    row = rows.repeat_interleave(lengths, output_size=batch.num_tokens)
    turns = turns_of_tokens(batch)
    ends = batch.cu_seqlens[1:].long() - 1
    closes = _new_turn(batch).roll(-1)
    closes[ends] = False
    speaker = torch.tensor(speakers, device=device)

    # One token more a row, behind [CLS].
    places = torch.arange(batch.num_tokens, device=device) + row + (batch.position_ids > 0)
    first = batch.cu_seqlens[:-1].long() + rows + 1

    def spread(values: Tensor, added: Tensor | int) -> Tensor:
        out = values.new_empty(batch.num_tokens + batch.num_rows)
        out[places] = values
        out[first] = added
        return out

    ids = spread(torch.where(closes, speaker[(turns + 1) % 2], batch.input_ids), speakers[0])
    segments = spread((turns + closes) % 2, 0)
    positions = spread(batch.position_ids + (batch.position_ids > 0), 1)
    longest = batch.max_seqlen + 1
    written = replace(
        batch,
        input_ids=ids,
        segment_ids=segments,
        position_ids=positions,
        word_ids=spread(batch.word_ids, 0),
        char_counts=spread(batch.char_counts, 0),
        cu_seqlens=batch.cu_seqlens + torch.arange(batch.num_rows + 1, dtype=torch.int32, device=device),
        flat_index=rows.repeat_interleave(lengths + 1, output_size=len(ids)) * longest + positions,
        pad_mask=torch.arange(longest, device=device) < lengths[:, None] + 1,
        max_seqlen=longest,
    )
    roles = None if cls_id is None else torch.where(positions == 0, cls_id, speaker[segments])
    replies = spread(_of_last_turn(batch, turns), False)
    return Written(written, roles, spread(turns, 0), positions > 1, replies)


def backwards(batch: TokenBatch) -> TokenBatch:
    """The last turn first, `[CLS] un [SEP] ... u1 [SEP]`: what a model learns that asks what a reply answers (the maximum
    mutual information of Li et al. 2016, arXiv 1510.03055)."""
    turns = turns_of_tokens(batch)
    lengths = batch.cu_seqlens.diff().long()
    from_end = _last_turns(batch, turns).repeat_interleave(lengths, output_size=batch.num_tokens) - turns
    rows = torch.arange(batch.num_rows, device=turns.device).repeat_interleave(
        lengths, output_size=batch.num_tokens
    )
    # [CLS] before everything else of its row.
    place = torch.where(batch.position_ids > 0, from_end + 1, 0)
    order = torch.argsort(rows * (batch.max_seqlen + 1) + place, stable=True)
    return replace(
        batch,
        input_ids=batch.input_ids[order],
        segment_ids=torch.where(batch.position_ids > 0, from_end[order] % 2, 0),
        word_ids=batch.word_ids[order],
        char_counts=batch.char_counts[order],
    )


def _new_turn(batch: TokenBatch) -> Tensor:
    """bool [T], where a turn starts, but the first of a row."""
    new = torch.zeros_like(batch.segment_ids, dtype=torch.bool)
    new[1:] = batch.segment_ids[1:] != batch.segment_ids[:-1]
    new[batch.cu_seqlens[:-1].long()] = False
    return new


def _last_turns(batch: TokenBatch, turns: Tensor) -> Tensor:
    """[N], index of the last turn of each row."""
    return turns[batch.cu_seqlens[1:].long() - 1]


def _of_last_turn(batch: TokenBatch, turns: Tensor) -> Tensor:
    last = _last_turns(batch, turns).repeat_interleave(batch.cu_seqlens.diff(), output_size=batch.num_tokens)
    return (turns == last) & (batch.position_ids > 0)
