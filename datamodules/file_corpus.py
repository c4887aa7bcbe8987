"""Corpora that lie in files: which file is which split, cuts of one file, overlaps, rows that are wrong."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from datamodules.corpus import (
    BadRows,
    DataError,
    Row,
    assign_splits,
    check_split,
    content_key,
    rarest_labels,
)
from datamodules.files import content_fingerprint, find_files, state_of
from datamodules.text import SPLITS, Split, TextDataModule

log = logging.getLogger(__name__)

READER_VERSION = 3  # raise it when the same files give other rows than before: token caches go by it
NAMES_SHOWN = 10


class FileCorpus(TextDataModule):
    """Text rows from files, streamed.

    A subclass says what the rows of a file are (`rows_of`) and, where it has a folder form, which files of the
    folder are which split (`source_files`).

    Args:
        train, val, test: files of a split: a path, a glob, a member of a zip archive (`x.zip/train.tsv`), or a
            list of those. They go before the source's.
        split: fractions that cut `train` into training, validation and, with a third one, test rows.
        overlap: training rows whose text stands in `val` or `test` too: "remove" them, "refuse" such files, or
            "keep" them; they are counted and told in any case.
        max_bad_rows: unusable rows of a file that are skipped; one more is a `DataError`.
        held_out: given by a subclass: the fraction of `train` that validates where neither `val` nor `split` is given.
        options: as of `TextDataModule`; the seed also draws `split`.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file or folder is not there.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        split: list[Annotated[float, "0 < x < 1"]] | None = None,
        overlap: Literal["remove", "refuse", "keep"] = "keep",
        max_bad_rows: Annotated[int, "x >= 0"] = 0,
        *,
        held_out: float | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        if isinstance(max_bad_rows, bool) or not isinstance(max_bad_rows, int) or max_bad_rows < 0:
            raise ValueError(f"max_bad_rows={max_bad_rows}: must be a whole number, 0 or more")
        if overlap not in ("remove", "refuse", "keep"):
            raise ValueError(f"overlap={overlap}: must be one of remove, refuse, keep")
        check_split(split)
        named = {"train": train, "val": val, "test": test}
        for key, value in named.items():
            if value is not None and not value:  # a variable of the shell that is not set
                raise ValueError(f"{key}={value}: names no file; leave it out, or name one")
        self.named: dict[Split, str | list[str]] = {
            key: value for key, value in named.items() if value is not None
        }
        if split is None and held_out is not None and "train" in self.named and "val" not in self.named:
            split = [1 - held_out, held_out]
            log.info(f"no validation file is named: {held_out:.0%} of data.train is held out (data.split)")
        if split is not None:
            if "train" not in self.named:
                raise ValueError(f"split={split}: cuts one file; name it: data.train=FILE")
            for key in SPLITS[1 : len(split)]:
                if key in self.named:
                    raise ValueError(
                        f"split={split}: cuts {key} rows out of data.train; leave out data.{key}="
                    )
        self.fractions = split
        self.overlap = overlap
        self.max_bad_rows = max_bad_rows
        self._file_contents: dict[Split, str] = {}
        self._states: dict[Path, tuple[int, int, int]] = {}
        self._told: set[str] = set()

    # What a subclass says

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row | str]:
        """The rows of a file; in the place of a row that a rule leaves out, the rule's name.

        Rows that cannot be used are added to `bad_rows`, whose `finish` is not called here.
        """
        raise NotImplementedError

    def source_files(self, wanted: tuple[Split, ...]) -> dict[Split, list[Path]]:
        """The source's files of the `wanted` splits, those that there are."""
        return {}

    def row_options(self) -> tuple:
        """Options that decide what rows a file gives."""
        return ()

    # Rows

    @cached_property
    def files(self) -> dict[Split, list[Path]]:
        """The files of each split that the corpus has; a hub is asked for them at the first use."""
        files = {key: find_files(f"data.{key}", patterns) for key, patterns in self.named.items()}
        wanted = tuple(key for key in SPLITS if key not in {*files, *self._cut_splits})
        return files | (self.source_files(wanted) if wanted else {})

    def describe(self) -> dict:
        """Where the rows come from, for the summary of a run."""
        files = {split: _first_of(paths) for split, paths in self.files.items()}
        return {"source": self._typed("train"), "synthetic": False, "files": files}

    @property
    def _cut_splits(self) -> tuple[Split, ...]:
        """The splits that are cut from the training files."""
        return SPLITS[: len(self.fractions)] if self.fractions is not None else ()

    def read(self, split: Split) -> Iterator[Row]:
        """The rows of a split in file order; none where the corpus lacks it.

        Raises:
            DataError: a file cannot be read, changes while it is read, has too many bad rows or none that is good.
        """
        left_out = self.left_out[split] = Counter()
        rows = self._rows(split, left_out)
        if split == "train":
            rows = self._without_overlap(rows, left_out)
        yield from rows

    def fingerprint(self, split: Split) -> str:
        """Names the rows that `read(split)` gives: file contents, and options that change or refuse rows."""
        parts: list[Any] = [READER_VERSION, *self.row_options(), split, self.max_bad_rows]
        if split in self._cut_splits:
            parts += [self._content_of("train"), self.fractions, self.seed]
        elif split in self.files:
            parts.append(self._content_of(split))
        if split == "train" and self.overlap != "keep":
            parts += [self.overlap, *(self.fingerprint(other) for other in ("val", "test"))]
        return content_fingerprint([], *parts)

    def _content_of(self, split: Split) -> str:
        """Fingerprint of the split's files; what they were then must be what `read` finds."""
        states = {path: state_of(path) for path in self.files[split]}
        if any(self._states.get(path, state) != state for path, state in states.items()):
            # A file may belong to several splits, and decide about the rows of others.
            self._file_contents.clear()
            for derived in ("_parts", "_evaluation_keys"):
                self.__dict__.pop(derived, None)
        self._states |= states
        if split not in self._file_contents:
            self._file_contents[split] = content_fingerprint(self.files[split])
        return self._file_contents[split]

    def _rows(self, split: Split, left_out: Counter[str]) -> Iterator[Row]:
        cut = self._cut_splits
        if split not in cut:
            if split in self.files:
                yield from self._file_rows(split, left_out)
            return
        part = cut.index(split)
        # What is left out of the file is counted once, with the training rows.
        left_out = left_out if split == "train" else Counter()
        # Of different length where the file has changed, which is told after its last row.
        for row, chosen in zip_longest(self._file_rows("train", left_out), self._parts):
            if chosen == part:
                yield row

    @cached_property
    def _parts(self) -> np.ndarray:
        """uint8 [N], which part of `split` each row of the training files belongs to."""
        keys, labels = array("Q"), []
        for row in self._file_rows("train", Counter()):
            keys.append(content_key(row.texts))
            labels.append(row.label)
        return assign_splits(np.array(keys), rarest_labels(labels), self.fractions, self.seed)

    def _file_rows(self, split: Split, left_out: Counter[str]) -> Iterator[Row]:
        for path in self.files[split]:
            self._states.setdefault(path, state_of(path))
            bad_rows = BadRows(self.max_bad_rows)
            good = False
            for row in self.rows_of(path, split, bad_rows):
                if isinstance(row, Row):
                    good = True
                    yield row
                else:
                    left_out[row] += 1
            self.check_unchanged(path)
            if not good:
                first = f"; {bad_rows.first[0]}" if bad_rows.count else ""
                raise DataError(f"{path}: not one good row{first}")
            bad_rows.finish(tell=self._first_time(f"bad rows of {path}"))
            if bad_rows.count:
                left_out["bad rows"] += bad_rows.count

    def check_unchanged(self, path: Path) -> None:
        """To be called after the last row of a file.

        Raises:
            DataError: the file is no longer what it was when its fingerprint was taken.
        """
        if state_of(path) != self._states[path]:
            raise DataError(
                f"{path}: changed while it was read; run again when whatever writes it is through"
            )

    # Rows of one split that stand in another

    def _without_overlap(self, rows: Iterator[Row], left_out: Counter[str]) -> Iterator[Row]:
        evaluated = self._evaluation_keys
        found: Counter[Split] = Counter()
        for row in rows:
            other = evaluated.get(content_key(row.texts)) if evaluated else None
            if other is not None:
                found[other] += 1
                if self.overlap == "remove":
                    continue
            yield row
        if not found:
            return
        counted = " and ".join(
            f"{count:,} in {self._name_of(other)}" for other, count in sorted(found.items())
        )
        if self.overlap == "refuse":
            raise DataError(
                f"overlap=refuse: training rows stand in the evaluation files too: {counted}; "
                "data.overlap=remove leaves them out of the training rows"
            )
        if self.overlap == "remove":
            left_out["rows of the evaluation files"] += found.total()
        if self._first_time("overlap"):
            done = (
                "left out of training"
                if self.overlap == "remove"
                else "kept (data.overlap=remove leaves them out)"
            )
            log.warning(f"training rows that stand in the evaluation files too: {counted}; {done}")

    @cached_property
    def _evaluation_keys(self) -> dict[int, Split]:
        return {
            content_key(row.texts): split
            for split in ("test", "val")
            if split not in self._cut_splits
            for row in self._rows(split, Counter())
        }

    def _name_of(self, split: Split) -> str:
        return f"{split} ({self._typed(split)})"

    def _typed(self, split: Split) -> str:
        """The files of a split as an option names them; where none does, their paths."""
        given = self.named.get(split, self.files[split])
        return given if isinstance(given, str) else ", ".join(_first_of(given))

    def _first_time(self, what: str) -> bool:
        """Files are read several times (vocabulary, cut, tokens): what is to be told of them is told once."""
        new = what not in self._told
        self._told.add(what)
        return new


def _first_of(names: Sequence[str | Path]) -> list[str]:
    """The first names, and how many there are besides: a glob may match thousands."""
    more = [f"and {len(names) - NAMES_SHOWN:,} more"] if len(names) > NAMES_SHOWN else []
    return [*map(str, names[:NAMES_SHOWN]), *more]
