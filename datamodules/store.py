"""The token cache: a tokenized split as flat arrays on disk, memory-mapped, written once and only whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from datamodules.batch import TokenBatch
from datamodules.cache import damaged, written_whole
from datamodules.corpus import DataError, Row
from datamodules.encoding import OPENS_TEXT, OPENS_WORD, EncodedRows, RowEncoder, encode_chunks

# Part of every fingerprint: raise it when the same text and tokenizer would give other arrays.
FORMAT_VERSION = 4
PROGRESS_FROM_ROWS = 100_000
COUNTED = (
    "num_rows", "num_texts", "num_tokens", "num_characters", "unknown_tokens", "truncated_rows", "labelled_rows",
)  # fmt: skip


class TokenStore:
    """A tokenized split: row r's tokens are `tokens[offsets[r]:offsets[r + 1]]`, special tokens included.

    Attributes:
        tokens: uint16 or uint32 [T]; chars, marks: see `EncodedRows`; offsets: int64 [N + 1].
        labels: int32 [N], -1 where there is none. In a corpus with several labels a row: int32 [M], of which row r has
            `labels[label_offsets[r]:label_offsets[r + 1]]`.
        label_offsets: int64 [N + 1]; None where a row has one label.
        facts: num_rows, num_texts, num_tokens, num_characters (without spaces), distinct_characters (lower case),
            unknown_tokens, truncated_rows, labelled_rows, multi_label_classes (None where a row has one label),
            and left_out: how many rows of the files were not taken, by reason.
    """

    ARRAYS = ("tokens", "chars", "marks", "offsets", "labels")
    label_offsets: np.ndarray | None = None

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        try:
            self.facts = json.loads((self.directory / "facts.json").read_text(encoding="utf-8"))
            for name in _array_names(self.facts["multi_label_classes"]):
                dtype, length = self.facts["arrays"][name]
                path = self.directory / name
                if path.stat().st_size != np.dtype(dtype).itemsize * length:
                    raise ValueError(
                        f"{path} has {path.stat().st_size} bytes, not {length} values of {dtype}"
                    )
                setattr(self, name, np.memmap(path, dtype, "r") if length else np.empty(0, dtype))
            self._check()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged("token", self.directory, error) from error

    def _check(self) -> None:
        facts = self.facts
        if not len(self.tokens) == len(self.chars) == len(self.marks) == facts["num_tokens"]:
            raise ValueError(f"its arrays do not have {facts['num_tokens']:,} tokens")
        label_ends = self.labels if self.label_offsets is None else self.label_offsets[1:]
        if not len(label_ends) == len(self.offsets) - 1 == facts["num_rows"]:
            raise ValueError(f"its arrays do not have {facts['num_rows']:,} rows")
        if self.label_offsets is not None:
            offsets, labels = self.label_offsets, self.labels
            if offsets[0] != 0 or offsets[-1] != len(labels) or (np.diff(offsets) < 0).any():
                raise ValueError("its label offsets are not those of its labels")
            if ((labels < 0) | (labels >= facts["multi_label_classes"])).any():
                raise ValueError(f"its labels are not all below {facts['multi_label_classes']}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens) or (self.lengths < 1).any():
            raise ValueError("its offsets are not those of its tokens")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getstate__(self) -> dict:
        return {"directory": self.directory}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["directory"])

    @property
    def text_tokens(self) -> int:
        """Tokens without [CLS] and [SEP]; at least 1, since shares are of them."""
        return max(self.facts["num_tokens"] - self.facts["num_rows"] - self.facts["num_texts"], 1)

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of each row, special tokens included."""
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> TokenBatch:
        """The rows of these ids, in this order, as one flat batch."""
        index, lengths = _within(self.offsets, rows)
        marks = self.marks[index]
        return TokenBatch.from_numpy(
            input_ids=self.tokens[index],
            lengths=lengths,
            char_counts=self.chars[index],
            word_starts=(marks & OPENS_WORD).astype(bool),
            text_starts=(marks & OPENS_TEXT).astype(bool),
            row_ids=rows,
            labels=self.labels_of(rows),
            epoch=epoch,
        )

    def labels_of(self, rows: np.ndarray) -> np.ndarray | None:
        """The labels of these rows, in this order: int32 [N], -1 where a row has none; bool [N, C] in a corpus with
        several labels a row; None where no row of the split has one."""
        if not self.facts["labelled_rows"]:
            return None
        if self.label_offsets is None:
            return self.labels[rows]
        index, counts = _within(self.label_offsets, rows)
        labels = np.zeros((len(rows), self.facts["multi_label_classes"]), dtype=bool)
        labels[np.repeat(np.arange(len(rows)), counts), self.labels[index]] = True
        return labels

    def token_counts(self, vocab_size: int, rows: np.ndarray | None = None) -> np.ndarray:
        """int64 [vocab_size]: how often each id stands in the texts of these rows, or of all; added tokens left out."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        if rows is not None:
            chosen = np.zeros(len(self), dtype=bool)
            chosen[rows] = True
            chosen = np.repeat(chosen, self.lengths)
        for start in range(0, len(self.tokens), 1 << 24):
            part = slice(start, start + (1 << 24))
            counted = self.chars[part] > 0
            if rows is not None:
                counted &= chosen[part]
            counts += np.bincount(self.tokens[part][counted], minlength=vocab_size)
        return counts


def _array_names(multi_label_classes: int | None) -> tuple[str, ...]:
    return TokenStore.ARRAYS if multi_label_classes is None else (*TokenStore.ARRAYS, "label_offsets")


def _within(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where what belongs to these rows stands in the flat arrays, in the order of the rows; and how much each has."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum()), lengths


def open_or_build(
    directory: Path,
    rows: Iterable[Row],
    encode: RowEncoder,
    what: str,
    processes: int = 1,
    left_out: Callable[[], Mapping[str, int]] = dict,
) -> TokenStore:
    """The store in `directory`; encodes `rows` into it where it is not there yet.

    Args:
        what: what a progress bar calls it.
        processes: see `encode_chunks`.
        left_out: asked after the last row, how many rows of the corpus `rows` did not give, by reason.

    Raises:
        DataError: in a corpus with several labels a row some rows are labelled, and others are not.
    """
    if not directory.exists():
        with written_whole(directory) as building:
            chunks = _with_bar(encode_chunks(rows, encode, processes), what)
            facts = _write(building, chunks, encode, left_out)
            # A batch has a truth value for each class, and none that says that it is not known.
            if encode.multi_label_classes is not None and facts["labelled_rows"] not in (
                0,
                facts["num_rows"],
            ):
                raise DataError(
                    f"{what}: {facts['labelled_rows']:,} of {facts['num_rows']:,} rows are labelled; with several labels a "
                    "row all rows of a split have labels (a row of no class: an empty list), or none of them"
                )
    return TokenStore(directory)


def _write(
    directory: Path,
    chunks: Iterable[EncodedRows],
    encode: RowEncoder,
    left_out: Callable[[], Mapping[str, int]],
) -> dict[str, Any]:
    dtypes = {
        "tokens": np.uint16 if encode.tokenizer.vocab_size <= 1 << 16 else np.uint32,
        "chars": np.uint16,
        "marks": np.uint8,
        "offsets": np.int64,
        "labels": np.int32,
        "label_offsets": np.int64,
    }
    names = _array_names(encode.multi_label_classes)
    offsets = [name for name in names if name.endswith("offsets")]
    characters: set[str] = set()
    facts = dict.fromkeys(COUNTED, 0)
    num_labels = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(directory / name, "wb")) for name in names}
        for name in offsets:
            files[name].write(np.zeros(1, dtypes[name]).tobytes())
        for chunk in chunks:
            arrays = {
                "tokens": chunk.tokens,
                "chars": chunk.chars,
                "marks": chunk.marks,
                "offsets": facts["num_tokens"] + np.cumsum(chunk.lengths),
                "labels": chunk.labels,
            }
            if chunk.label_counts is not None:
                arrays["label_offsets"] = num_labels + np.cumsum(chunk.label_counts)
            for name, values in arrays.items():
                # Not `tofile`, which does not say why a disk refuses.
                files[name].write(values.astype(dtypes[name]).tobytes())
            facts["num_rows"] += len(chunk.lengths)
            facts["num_texts"] += len(chunk.lengths) + int(chunk.text_starts.sum())
            facts["num_tokens"] += len(chunk.tokens)
            facts["num_characters"] += int(chunk.chars.sum(dtype=np.int64))
            facts["unknown_tokens"] += chunk.unknown
            facts["truncated_rows"] += chunk.truncated
            facts["labelled_rows"] += chunk.labelled
            num_labels += len(chunk.labels)
            characters |= chunk.characters
    sizes = {name: (directory / name).stat().st_size // np.dtype(dtypes[name]).itemsize for name in names}
    facts["multi_label_classes"] = encode.multi_label_classes
    facts["distinct_characters"] = sum(not character.isspace() for character in characters)
    facts["left_out"] = dict(left_out())
    facts["arrays"] = {name: [np.dtype(dtypes[name]).name, sizes[name]] for name in names}
    (directory / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def _with_bar(chunks: Iterable[EncodedRows], what: str) -> Iterator[EncodedRows]:
    """A counter is shown from PROGRESS_FROM_ROWS on (the number of rows is not known beforehand)."""
    done, progress = 0, None
    try:
        for chunk in chunks:
            yield chunk
            done += len(chunk.lengths)
            if progress is None and done >= PROGRESS_FROM_ROWS:
                progress = Progress("{task.description}", "{task.completed:,} rows", "{task.elapsed:.0f} s")
                task = progress.add_task(f"tokenizing {what}", total=None)
                progress.start()
            if progress is not None:
                progress.update(task, completed=done)
    finally:
        if progress is not None:
            progress.stop()
