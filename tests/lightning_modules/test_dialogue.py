"""The forms of dialogues against plain Python lists."""

import numpy as np
import pytest
import torch

from datamodules.batch import TokenBatch
from lightning_modules.dialogue import backwards, count_targets, in_turns, turns_of_tokens, with_speakers

CLS, SEP, A, B = 2, 3, 90, 91
DIALOGUES = [
    [[10, 11], [12], [13, 14, 15]],
    [[20]],
    [[30], [], [31]],  # a turn of characters that the tokenizer drops
    [[40, 41, 42, 43], [44]],
]


def batch_of(dialogues) -> TokenBatch:
    rows = [[CLS, *(token for turn in turns for token in (*turn, SEP))] for turns in dialogues]
    starts = []
    for turns in dialogues:
        flags = [False]
        for number, turn in enumerate(turns):
            flags += [number > 0] + [False] * len(turn)
        starts += flags
    ids = np.array([token for row in rows for token in row])
    return TokenBatch.from_numpy(
        input_ids=ids,
        lengths=np.array([len(row) for row in rows]),
        char_counts=(ids > 9).astype(int),
        word_starts=np.ones(len(ids), dtype=bool),
        text_starts=np.array(starts),
        row_ids=np.arange(len(rows)),
    )


def rows_of(batch: TokenBatch, values: torch.Tensor) -> list[list[int]]:
    return [row.tolist() for row in values.long().split(batch.cu_seqlens.diff().tolist())]


def test_the_articles_form():
    batch = batch_of(DIALOGUES)
    written = in_turns(batch, (A, B))
    assert rows_of(batch, written.role_ids) == [
        [A] + [role for number, turn in enumerate(turns) for role in [(A, B)[number % 2]] * (len(turn) + 1)]
        for turns in DIALOGUES
    ]
    assert rows_of(batch, written.targets) == [
        [0] + [1] * sum(len(turn) + 1 for turn in turns) for turns in DIALOGUES
    ]
    assert rows_of(batch, written.replies) == [
        [0] + [int(turn is turns[-1]) for turn in turns for _ in range(len(turn) + 1)] for turns in DIALOGUES
    ]
    assert in_turns(batch, None).role_ids is None


def test_the_form_of_cdial_gpt():
    written = with_speakers(batch_of(DIALOGUES), (A, B), CLS)
    ids, roles, replies, targets, turns_of = [], [], [], [], []
    for turns in DIALOGUES:
        row, role, turn_of = [CLS], [CLS], [0]
        for number, turn in enumerate(turns):
            row += [(A, B)[number % 2], *turn]
            role += [(A, B)[number % 2]] * (len(turn) + 1)
            turn_of += [max(number - 1, 0)] + [number] * len(turn)
        ids.append([*row, SEP])
        roles.append([*role, (A, B)[(len(turns) - 1) % 2]])
        turns_of.append([*turn_of, len(turns) - 1])
        said = len(turns[-1]) + 1
        replies.append([0] * (len(row) + 1 - said) + [1] * said)
        targets.append([0, 0] + [1] * (len(row) - 1))
    batch = written.batch
    assert rows_of(batch, batch.input_ids) == ids
    assert rows_of(batch, written.role_ids) == roles
    assert rows_of(batch, written.replies) == replies
    assert rows_of(batch, written.targets) == targets
    assert rows_of(batch, written.turns) == turns_of
    assert rows_of(batch, batch.position_ids) == [list(range(len(row))) for row in ids]
    padded, mask = batch.padded()
    assert mask.sum(1).tolist() == [len(row) for row in ids]
    assert [row[: len(expected)].tolist() for row, expected in zip(padded, ids, strict=True)] == ids
    assert torch.equal(batch.flat(padded), batch.input_ids)
    assert batch.char_counts.sum() == batch_of(DIALOGUES).char_counts.sum()


def test_backwards_the_last_turn_comes_first():
    batch = backwards(batch_of(DIALOGUES))
    expected = batch_of([list(reversed(turns)) for turns in DIALOGUES])
    for name in ("input_ids", "segment_ids", "position_ids", "char_counts", "cu_seqlens"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name


@pytest.mark.parametrize("write", [lambda b: in_turns(b, (A, B)), lambda b: with_speakers(b, (A, B), CLS)])
def test_every_row_has_targets_and_their_number_is_known_before(write):
    for dialogues in (DIALOGUES, [[[5]]], [[[]]]):
        batch = batch_of(dialogues)
        written = write(batch)
        assert count_targets(batch, replies_only=False) == written.targets.sum()
        assert count_targets(batch, replies_only=True) == written.replies.sum()
        assert all(any(row) for row in rows_of(written.batch, written.replies))
        assert not (written.replies & ~written.targets).any()


def test_a_dialogue_of_ten_thousand_turns():
    batch = batch_of([[[7 + number % 50] for number in range(10_000)]])
    assert turns_of_tokens(batch)[-1] == 9_999
    assert torch.equal(backwards(backwards(batch)).input_ids, batch.input_ids)
