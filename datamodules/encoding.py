"""Rows of texts to flat arrays of tokens; torch is not imported here, so that worker processes start soon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from datamodules.corpus import DataError, Row
from datamodules.parallel import map_chunks

# Flags of a token, in one byte.
OPENS_WORD, OPENS_TEXT = 1, 2
ROWS_PER_CHUNK, CHARS_PER_CHUNK = 4096, 1 << 20

Truncation = Literal["longest", "first_turns", "last_turns"]


class EncodedRows(NamedTuple):
    """N rows with T tokens in all.

    Attributes:
        tokens: int64 [T], special tokens included.
        chars: uint16 [T], original characters that a token covers; 0 for added tokens.
        marks: uint8 [T], OPENS_WORD | OPENS_TEXT; the first text of a row has no mark.
        lengths: int64 [N].
        labels: int32 [N], -1 where there is none; of rows with several labels all of them, one row after the other.
        label_counts: int64 [N], labels of each row; None where a row has one.
        labelled: rows whose label, or labels, are known.
        truncated: rows that were cut.
        unknown: [UNK] tokens.
        characters: the distinct characters of the texts, in lower case.
    """

    tokens: np.ndarray
    chars: np.ndarray
    marks: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    label_counts: np.ndarray | None
    labelled: int
    truncated: int
    unknown: int
    characters: set[str]

    @property
    def word_starts(self) -> np.ndarray:
        return (self.marks & OPENS_WORD).astype(bool)

    @property
    def text_starts(self) -> np.ndarray:
        return (self.marks & OPENS_TEXT).astype(bool)


@dataclass
class RowEncoder:
    """Makes `[CLS] text [SEP]`, `[CLS] text [SEP] pair [SEP]`, `[CLS] turn [SEP] turn [SEP] ... [SEP]` of rows.

    Texts are cut in characters before they are tokenized: every tokenizer then sees the same text, so scores per
    character compare.

    Attributes:
        tokenizer: a `datamodules.tokenizers.base.Tokenizer`.
        max_length: a row has at most so many tokens, and before it is tokenized so many characters and special
            tokens.
        truncation: "longest" cuts the end of the longest text; "first_turns" and "last_turns" keep whole turns
            from the beginning or from the end of a dialogue, and cut only a turn that alone is too long.
        multi_label_classes: of a corpus with several labels a row; None: a row has one label, or none.
    """

    tokenizer: Any
    max_length: int
    truncation: Truncation = "longest"
    multi_label_classes: int | None = None

    def __call__(self, rows: list[Row]) -> EncodedRows:
        kept = [self._cut(row.texts) for row in rows]
        encodings = self._encode(kept)
        fitting = self._fitting(kept, encodings.lengths)
        if fitting != kept:
            kept, encodings = fitting, self._encode(fitting)
        cut = np.array([texts != row.texts for texts, row in zip(kept, rows, strict=True)], dtype=bool)
        counts = np.array([len(texts) for texts in kept], dtype=np.int64)

        # Every text is followed by [SEP]; the first of a row is preceded by [CLS].
        opens_row = np.zeros(counts.sum(), dtype=bool)
        opens_row[np.cumsum(counts) - counts] = True
        lengths = encodings.lengths + 1 + opens_row
        ends = np.cumsum(lengths)
        starts = ends - lengths
        total = int(ends[-1]) if len(ends) else 0
        is_text = np.ones(total, dtype=bool)
        is_text[ends - 1] = False
        is_text[starts[opens_row]] = False
        tokens = np.full(total, self.tokenizer.sep_id, dtype=np.int64)
        tokens[starts[opens_row]] = self.tokenizer.cls_id
        tokens[is_text] = encodings.ids
        chars = np.zeros(total, dtype=np.uint16)
        chars[is_text] = encodings.chars
        marks = np.full(total, OPENS_WORD, dtype=np.uint8)
        marks[is_text] = encodings.word_starts * np.uint8(OPENS_WORD)
        marks[starts[~opens_row]] |= OPENS_TEXT

        row_of_text = np.cumsum(opens_row) - 1
        row_lengths = np.bincount(row_of_text, weights=lengths, minlength=len(rows)).astype(np.int64)
        # Rare: normalisation makes several tokens of one character (Hangul). Drop what is over, keep the last [SEP].
        over = row_lengths > self.max_length
        if over.any():
            position = np.arange(total) - np.repeat(np.cumsum(row_lengths) - row_lengths, row_lengths)
            last = np.repeat(row_lengths, row_lengths) - 1
            keep = ~np.repeat(over, row_lengths) | (position == last) | (position < self.max_length - 1)
            tokens, chars, marks = tokens[keep], chars[keep], marks[keep]
            row_lengths = np.minimum(row_lengths, self.max_length)
        return EncodedRows(
            tokens,
            chars,
            marks,
            row_lengths,
            *self._labels(rows),
            int((cut | over).sum()),
            int((tokens == self.tokenizer.unk_id).sum()),
            set("".join(text for texts in kept for text in texts).lower()),
        )

    def _encode(self, rows: list[tuple[str, ...]]) -> Any:
        return self.tokenizer.encode_batch([text for texts in rows for text in texts])

    def _fitting(self, rows: list[tuple[str, ...]], lengths: np.ndarray) -> list[tuple[str, ...]]:
        """Of dialogues whose characters have room, but not their tokens (several a character, where tokens are bytes), the
        turns that do, at least one; `lengths` are those of all texts."""
        counts = [len(texts) for texts in rows]
        starts = np.cumsum(counts) - counts
        with_sep = np.add.reduceat(lengths + 1, starts) if len(rows) else lengths
        over = np.flatnonzero(with_sep >= self.max_length)
        if self.truncation == "longest" or not len(over):
            return rows
        fitting, last = list(rows), self.truncation == "last_turns"
        for row in over.tolist():
            own = lengths[starts[row] : starts[row] + counts[row]] + 1
            kept = max(int((np.cumsum(own[::-1] if last else own) < self.max_length).sum()), 1)
            fitting[row] = rows[row][-kept:] if last else rows[row][:kept]
        return fitting

    def _labels(self, rows: list[Row]) -> tuple[np.ndarray, np.ndarray | None, int]:
        """`labels`, `label_counts` and `labelled` of the encoded rows."""
        several = self.multi_label_classes is not None
        for row in rows:
            if row.label is not None and isinstance(row.label, tuple) != several:
                needed = "a tuple of numbers" if several else "one number"
                raise DataError(
                    f"the label {row.label} of a row is not {needed}, as multi_label={several} of its corpus says"
                )
        labelled = sum(row.label is not None for row in rows)
        if not several:
            labels = [-1 if row.label is None else row.label for row in rows]
            return np.array(labels, dtype=np.int32), None, labelled
        sets = [row.label or () for row in rows]
        counts = np.array([len(one) for one in sets], dtype=np.int64)
        return np.array([label for one in sets for label in one], dtype=np.int32), counts, labelled

    def _cut(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        if sum(map(len, texts)) + len(texts) + 1 <= self.max_length:
            return texts
        if self.truncation != "longest":
            return keep_turns(texts, self.max_length, last=self.truncation == "last_turns")
        return cut_longest(texts, self.max_length)


def cut_longest(texts: tuple[str, ...], max_length: int) -> tuple[str, ...]:
    """What is over is taken from the end of the longest text, until they are equally long."""
    room = max_length - 1 - len(texts)
    kept = [0] * len(texts)
    # The shortest first: what it leaves over, the longer ones share.
    shortest_first = sorted(range(len(texts)), key=lambda index: (len(texts[index]), -index))
    for done, index in enumerate(shortest_first):
        kept[index] = min(len(texts[index]), -(-room // (len(texts) - done)))
        room -= kept[index]
    return tuple(text[:length] for text, length in zip(texts, kept, strict=True))


def keep_turns(turns: tuple[str, ...], max_length: int, last: bool) -> tuple[str, ...]:
    """The first (or last) turns that fit as a whole; at least one, cut where it alone is too long."""
    room = max_length - 1
    kept: list[str] = []
    for turn in reversed(turns) if last else turns:
        if len(turn) + 1 > room:
            break
        room -= len(turn) + 1
        kept.append(turn)
    if not kept:
        return (turns[-1 if last else 0][: max_length - 2],)
    return tuple(reversed(kept) if last else kept)


def encode_chunks(rows: Iterable[Row], encode: RowEncoder, processes: int = 1) -> Iterator[EncodedRows]:
    """The encoded rows in their order, some thousand at a time; with `processes` > 1 in so many workers.

    The rows themselves are always read in this process.

    Raises:
        DataError: a worker was killed.
    """
    return map_chunks(encode, _chunks(rows), processes)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += sum(map(len, row.texts))
        if len(chunk) == ROWS_PER_CHUNK or size >= CHARS_PER_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
