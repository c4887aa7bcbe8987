"""The token cache: a tokenized split as flat arrays on disk, memory-mapped, written once and only whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from rich.progress import Progress

from datamodules.batch import TokenBatch
from datamodules.cache import written_whole
from datamodules.corpus import DataError, Row

log = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the same text and tokenizer would give other arrays.
FORMAT_VERSION = 1
ROWS_PER_CHUNK = 4096
PROGRESS_FROM_ROWS = 100_000


class TokenStore:
    """A tokenized split: row r's tokens are `tokens[offsets[r]:offsets[r + 1]]`, special tokens included.

    Attributes:
        tokens: uint16 or uint32 [T]; chars: uint16 [T], original characters a token covers, 0 for added tokens;
            word_starts: bool [T]; offsets: int64 [N + 1]; pair_starts: int32 [N], the position at which a row's
            second text starts, its length where there is none; labels: int32 [N], -1 where there is none.
        facts: num_rows, num_tokens, num_characters (without spaces), distinct_characters (lower case),
            unknown_tokens, truncated_rows.
    """

    ARRAYS = ("tokens", "chars", "word_starts", "offsets", "pair_starts", "labels")

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        try:
            self.facts = json.loads((self.directory / "facts.json").read_text(encoding="utf-8"))
            for name in self.ARRAYS:
                dtype, length = self.facts["arrays"][name]
                path = self.directory / name
                if path.stat().st_size != np.dtype(dtype).itemsize * length:
                    raise ValueError(
                        f"{path} has {path.stat().st_size} bytes, not {length} values of {dtype}"
                    )
                setattr(self, name, np.memmap(path, dtype, "r") if length else np.empty(0, dtype))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"the token cache {self.directory} is damaged ({error}); delete that directory and run again"
            ) from error

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict:
        return {"directory": self.directory}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["directory"])

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of each row, special tokens included."""
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> TokenBatch:
        """The rows of these ids, in this order, as one flat batch."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        index = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        return TokenBatch.from_numpy(
            input_ids=self.tokens[index],
            lengths=lengths,
            char_counts=self.chars[index],
            word_starts=self.word_starts[index],
            pair_starts=self.pair_starts[rows],
            row_ids=rows,
            labels=self.labels[rows],
            epoch=epoch,
        )

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """int64 [vocab_size]: how often each id stands in the texts, added tokens left out."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for start in range(0, len(self.tokens), 1 << 24):
            part = slice(start, start + (1 << 24))
            counts += np.bincount(self.tokens[part][self.chars[part] > 0], minlength=vocab_size)
        return counts


def encode_rows(tokenizer, rows: list[Row], max_length: int) -> tuple[dict[str, np.ndarray], int]:
    """`[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]` of each row, flat, and how many rows were cut.

    Texts are cut to as many characters as the row may have tokens besides the special ones, before they are
    tokenized: every tokenizer then sees the same text, so scores per character compare.
    """
    pairs = [row.text_pair is not None for row in rows]
    texts, truncated = [], 0
    for row in rows:
        first, second = _cut(row.text, row.text_pair, max_length)
        truncated += len(first) < len(row.text) or (second is not None and len(second) < len(row.text_pair))
        texts.append(first)
        if second is not None:
            texts.append(second)
    encodings = tokenizer.encode_batch(texts)

    # Every text is followed by [SEP]; the first of a row is preceded by [CLS].
    num_texts = np.where(pairs, 2, 1)
    opens_row = np.zeros(len(texts), dtype=bool)
    opens_row[np.cumsum(num_texts) - num_texts] = True
    lengths = encodings.lengths + 1 + opens_row
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    is_text = np.ones(total, dtype=bool)
    is_text[ends - 1] = False
    is_text[(ends - lengths)[opens_row]] = False
    tokens = np.full(total, tokenizer.sep_id, dtype=np.int64)
    tokens[(ends - lengths)[opens_row]] = tokenizer.cls_id
    tokens[is_text] = encodings.ids
    chars = np.zeros(total, dtype=np.uint16)
    chars[is_text] = encodings.chars
    word_starts = np.ones(total, dtype=bool)
    word_starts[is_text] = encodings.word_starts

    row_of_text = np.cumsum(opens_row) - 1
    row_lengths = np.bincount(row_of_text, weights=lengths, minlength=len(rows)).astype(np.int64)
    pair_starts = np.where(pairs, lengths[opens_row], row_lengths).astype(np.int32)
    # Rare: normalisation makes several tokens of one character (Hangul). Drop what is over, keep the last [SEP].
    if (row_lengths > max_length).any():
        position = np.arange(total) - np.repeat(np.cumsum(row_lengths) - row_lengths, row_lengths)
        over = np.repeat(row_lengths - max_length, row_lengths)
        last = np.repeat(row_lengths, row_lengths) - 1
        keep = (over <= 0) | (position == last) | (position < max_length - 1)
        tokens, chars, word_starts = tokens[keep], chars[keep], word_starts[keep]
        truncated += int((row_lengths > max_length).sum())
        row_lengths = np.minimum(row_lengths, max_length)
        pair_starts = np.minimum(pair_starts, row_lengths).astype(np.int32)
    arrays = {
        "tokens": tokens,
        "chars": chars,
        "word_starts": word_starts,
        "lengths": row_lengths,
        "pair_starts": pair_starts,
        "labels": np.array([-1 if row.label is None else row.label for row in rows], dtype=np.int32),
    }
    return arrays, truncated


def _cut(text: str, pair: str | None, max_length: int) -> tuple[str, str | None]:
    """Longest first: what is over is taken from the longer text."""
    if pair is None:
        return text[: max_length - 2], None
    room = max_length - 3
    first = max(room - len(pair), min(len(text), room // 2))
    text = text[:first]
    return text, pair[: room - len(text)]


def open_or_build(directory: Path, rows: Iterable[Row], tokenizer, max_length: int, what: str) -> TokenStore:
    """The store in `directory`; tokenizes `rows` into it where it is not there yet."""
    if not directory.exists():
        with written_whole(directory) as building:
            _write(building, rows, tokenizer, max_length, what)
    return TokenStore(directory)


def _write(directory: Path, rows: Iterable[Row], tokenizer, max_length: int, what: str) -> None:
    dtypes = {
        "tokens": np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32,
        "chars": np.uint16,
        "word_starts": np.bool_,
        "offsets": np.int64,
        "pair_starts": np.int32,
        "labels": np.int32,
    }
    files = {name: open(directory / name, "wb") for name in TokenStore.ARRAYS}
    characters: set[str] = set()
    facts = {"num_rows": 0, "num_tokens": 0, "num_characters": 0, "unknown_tokens": 0, "truncated_rows": 0}
    try:
        np.zeros(1, np.int64).tofile(files["offsets"])
        for chunk in _chunks(rows, what):
            arrays, truncated = encode_rows(tokenizer, chunk, max_length)
            arrays["offsets"] = facts["num_tokens"] + np.cumsum(arrays.pop("lengths"))
            for name, values in arrays.items():
                values.astype(dtypes[name]).tofile(files[name])
            facts["num_rows"] += len(chunk)
            facts["num_tokens"] += len(arrays["tokens"])
            facts["num_characters"] += int(arrays["chars"].sum(dtype=np.int64))
            facts["unknown_tokens"] += int((arrays["tokens"] == tokenizer.unk_id).sum())
            facts["truncated_rows"] += truncated
            for row in chunk:
                characters.update(row.text.lower(), (row.text_pair or "").lower())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    sizes = {
        name: (directory / name).stat().st_size // np.dtype(dtype).itemsize for name, dtype in dtypes.items()
    }
    facts["distinct_characters"] = sum(not character.isspace() for character in characters)
    facts["arrays"] = {name: [np.dtype(dtype).name, sizes[name]] for name, dtype in dtypes.items()}
    (directory / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _chunks(rows: Iterable[Row], what: str) -> Iterator[list[Row]]:
    """Lists of rows; a counter is shown from PROGRESS_FROM_ROWS on (the number of rows is not known beforehand)."""
    iterator, done, progress = iter(rows), 0, None
    try:
        while chunk := list(islice(iterator, ROWS_PER_CHUNK)):
            yield chunk
            done += len(chunk)
            if progress is None and done >= PROGRESS_FROM_ROWS:
                progress = Progress("{task.description}", "{task.completed:,} rows", "{task.elapsed:.0f} s")
                task = progress.add_task(f"tokenizing {what}", total=None)
                progress.start()
            if progress is not None:
                progress.update(task, completed=done)
    finally:
        if progress is not None:
            progress.stop()
