"""The token cache: a tokenized split as flat arrays on disk, memory-mapped, written once and only whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.progress import Progress

from datamodules.batch import TokenBatch
from datamodules.cache import damaged, written_whole
from datamodules.corpus import Row
from datamodules.encoding import OPENS_TEXT, OPENS_WORD, EncodedRows, RowEncoder, encode_chunks

# Part of every fingerprint: raise it when the same text and tokenizer would give other arrays.
FORMAT_VERSION = 2
PROGRESS_FROM_ROWS = 100_000


class TokenStore:
    """A tokenized split: row r's tokens are `tokens[offsets[r]:offsets[r + 1]]`, special tokens included.

    Attributes:
        tokens: uint16 or uint32 [T]; chars, marks: see `EncodedRows`; offsets: int64 [N + 1]; labels: int32 [N],
            -1 where there is none.
        facts: num_rows, num_texts, num_tokens, num_characters (without spaces), distinct_characters (lower case),
            unknown_tokens, truncated_rows, and left_out: how many rows of the files were not taken, by reason.
    """

    ARRAYS = ("tokens", "chars", "marks", "offsets", "labels")

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
            self._check()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged("token", self.directory, error) from error

    def _check(self) -> None:
        facts = self.facts
        if not len(self.tokens) == len(self.chars) == len(self.marks) == facts["num_tokens"]:
            raise ValueError(f"its arrays do not have {facts['num_tokens']:,} tokens")
        if not len(self.labels) == len(self.offsets) - 1 == facts["num_rows"]:
            raise ValueError(f"its arrays do not have {facts['num_rows']:,} rows")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens) or (self.lengths < 1).any():
            raise ValueError("its offsets are not those of its tokens")

    def __len__(self) -> int:
        return len(self.labels)

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
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        index = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        marks = self.marks[index]
        return TokenBatch.from_numpy(
            input_ids=self.tokens[index],
            lengths=lengths,
            char_counts=self.chars[index],
            word_starts=(marks & OPENS_WORD).astype(bool),
            text_starts=(marks & OPENS_TEXT).astype(bool),
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
    """
    if not directory.exists():
        with written_whole(directory) as building:
            _write(building, _with_bar(encode_chunks(rows, encode, processes), what), encode, left_out)
    return TokenStore(directory)


def _write(
    directory: Path,
    chunks: Iterable[EncodedRows],
    encode: RowEncoder,
    left_out: Callable[[], Mapping[str, int]],
) -> None:
    dtypes = {
        "tokens": np.uint16 if encode.tokenizer.vocab_size <= 1 << 16 else np.uint32,
        "chars": np.uint16,
        "marks": np.uint8,
        "offsets": np.int64,
        "labels": np.int32,
    }
    characters: set[str] = set()
    facts = dict.fromkeys(
        ("num_rows", "num_texts", "num_tokens", "num_characters", "unknown_tokens", "truncated_rows"), 0
    )
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(directory / name, "wb")) for name in TokenStore.ARRAYS}
        files["offsets"].write(np.zeros(1, dtypes["offsets"]).tobytes())
        for chunk in chunks:
            arrays = {
                "tokens": chunk.tokens,
                "chars": chunk.chars,
                "marks": chunk.marks,
                "offsets": facts["num_tokens"] + np.cumsum(chunk.lengths),
                "labels": chunk.labels,
            }
            for name, values in arrays.items():
                # Not `tofile`, which does not say why a disk refuses.
                files[name].write(values.astype(dtypes[name]).tobytes())
            facts["num_rows"] += len(chunk.lengths)
            facts["num_texts"] += len(chunk.lengths) + int(chunk.text_starts.sum())
            facts["num_tokens"] += len(chunk.tokens)
            facts["num_characters"] += int(chunk.chars.sum(dtype=np.int64))
            facts["unknown_tokens"] += chunk.unknown
            facts["truncated_rows"] += chunk.truncated
            characters |= chunk.characters
    sizes = {
        name: (directory / name).stat().st_size // np.dtype(dtype).itemsize for name, dtype in dtypes.items()
    }
    facts["distinct_characters"] = sum(not character.isspace() for character in characters)
    facts["left_out"] = dict(left_out())
    facts["arrays"] = {name: [np.dtype(dtype).name, sizes[name]] for name, dtype in dtypes.items()}
    (directory / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


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
