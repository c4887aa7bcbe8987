"""What every corpus shares: rows, rows that are wrong, texts that are equal, splits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One example: a text, a pair of texts or the turns of a dialogue; and the index of its class, or, in a corpus with
    several labels a row, the ascending indices of its classes (perhaps none). None: its label is not known."""

    text: str | tuple[str, ...]
    label: int | tuple[int, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text


class DataError(ValueError):
    """Something is wrong with input files; the message names file, line and value, and the way out."""


class BadRows:
    """Counts the rows of a corpus that cannot be used, and decides at the end whether they are too many.

    Args:
        max_bad_rows: bad rows that are skipped with a warning; one more is an error. None: none is skipped, and no
            option says otherwise.
    """

    SHOWN = 5
    # A file of another kind is told at once, not after its last line.
    GIVE_UP = 100_000

    def __init__(self, max_bad_rows: int | None):
        self.max_bad_rows = max_bad_rows
        self.count = 0
        self.first: list[str] = []
        self._unnamed = 0

    def add(self, file: str | Path, place: str, reason: str, rows: int = 1) -> None:
        """Counts a bad row, so that one error can name several rows and say how many there are.

        Args:
            rows: so many, where one mistake makes several useless.

        Raises:
            DataError: GIVE_UP rows more than allowed are bad.
        """
        self.count += rows
        if len(self.first) < self.SHOWN:
            self.first.append(f"{file}, {place}: {reason}")
        else:
            self._unnamed += rows
        if self.count > (self.max_bad_rows or 0) + self.GIVE_UP:
            raise DataError(
                f"{self.count:,} bad rows, and not all of the file was read; is it of another kind? The first ones:\n"
                + "\n".join(f"  {line}" for line in self.first)
            )

    def finish(self, tell: bool = True) -> None:
        """To be called after the last row: warns of the rows skipped, if `tell`.

        Raises:
            DataError: there are more than `max_bad_rows`; it names the first ones.
        """
        if not self.count:
            return
        rows = f"{self.count:,} bad row{'s' if self.count > 1 else ''}"
        shown = "\n".join(f"  {line}" for line in self.first)
        if self._unnamed:
            shown += f"\n  and {self._unnamed:,} more"
        if self.max_bad_rows is None:
            raise DataError(f"{rows}:\n{shown}\nMend the file")
        if self.count > self.max_bad_rows:
            raise DataError(
                f"{rows}, where data.max_bad_rows={self.max_bad_rows} are allowed:\n{shown}\n"
                f"Mend the file, or skip that many: data.max_bad_rows={self.count}"
            )
        if tell:
            log.warning(f"skipped {rows} (data.max_bad_rows={self.max_bad_rows}):\n{shown}")


def text_problem(value: Any) -> str | None:
    """Why `value` cannot be the text of a row; None where it can."""
    if not isinstance(value, str):
        return f"no text but {shortened(value)}"
    if value.isprintable() and value and not value.isspace():  # nearly every text, at a glance
        return None
    if not any(character.isprintable() and not character.isspace() for character in value):
        return "empty text"
    if "\0" in value:
        return f"a NUL character in the text (character {value.index(chr(0)) + 1})"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a surrogate pair in the text (character {error.start + 1})"
    return None


def check_split(split: Sequence[float] | None) -> None:
    """Raises ValueError unless `split` is None, or 2 or 3 positive fractions that sum to 1."""
    if split is None:
        return
    rule = "must be 2 or 3 fractions that sum to 1, e.g. [0.8,0.1,0.1]: training, validation, test"
    if not isinstance(split, Sequence) or isinstance(split, str) or not 2 <= len(split) <= 3:
        raise ValueError(f"split={split}: {rule}")
    for fraction in split:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
            raise ValueError(f"split={split}: {rule}; {fraction} is not between 0 and 1")
    if abs(sum(split) - 1) > 1e-6:
        raise ValueError(f"split={split}: {rule}; these sum to {sum(split):g}")


def content_key(texts: Sequence[str]) -> int:
    """A 64-bit number that is the same for the same texts, however they are spaced."""
    content = "\0".join(["".join(text.split()) for text in texts]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def rarest_labels(labels: Sequence[int | tuple[int, ...] | None]) -> np.ndarray:
    """int64 [N]: of each row's labels the one that the fewest rows have; -1 where a row has none.

    What rows with several labels are cut by: rare labels, of which a split could easily get none, come first
    (Sechidis et al. 2011, On the Stratification of Multi-Label Data), frequent ones are spread over many rarer ones.
    """
    counts = Counter(label for one in labels if isinstance(one, tuple) for label in one)

    def rarest(label: int | tuple[int, ...] | None) -> int:
        if isinstance(label, tuple):
            return min(label, key=lambda one: (counts[one], one), default=-1)
        return -1 if label is None else label

    return np.fromiter(map(rarest, labels), dtype=np.int64, count=len(labels))


def assign_splits(keys: np.ndarray, labels: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Which split each of N rows belongs to.

    Rows with equal texts stay together, and every label is cut in the given fractions (to within a row, or a
    group of equal texts). The cut depends on the seed and on the texts, not on their order.

    Args:
        keys: uint64 [N], `content_key` of each row.
        labels: int [N], -1 where there is none.
        fractions: as `check_split` has them.

    Returns:
        uint8 [N], indices into `fractions`.

    Raises:
        DataError: there are too few different texts: a split would be empty.
    """
    groups, group_of_row = np.unique(keys, return_inverse=True)
    sizes = np.bincount(group_of_row, minlength=len(groups))
    # Equal texts may disagree on their label; the smallest does not depend on their order.
    label_of_group = np.full(len(groups), np.iinfo(np.int64).max)
    np.minimum.at(label_of_group, group_of_row, labels)
    order = np.argsort(mixed(groups, seed), kind="stable")
    part_of_group = np.empty(len(groups), dtype=np.uint8)
    counts: dict[int, list[int]] = defaultdict(lambda: [0] * len(fractions))
    totals: dict[int, int] = defaultdict(int)
    for group, size, label in zip(
        order.tolist(), sizes[order].tolist(), label_of_group[order].tolist(), strict=True
    ):
        totals[label] += size
        # To the split that is furthest behind its share: a label with one text goes to the largest split.
        behind = [
            fraction * totals[label] - count for fraction, count in zip(fractions, counts[label], strict=True)
        ]
        chosen = behind.index(max(behind))
        counts[label][chosen] += size
        part_of_group[group] = chosen
    if len(np.unique(part_of_group)) < len(fractions):
        raise DataError(
            f"split={list(fractions)} leaves a split without a row: there are {len(keys):,} rows with "
            f"{len(groups):,} different texts; name more files by data.val= and data.test="
        )
    return part_of_group[group_of_row]


def shortened(value: Any) -> str:
    """The type and the beginning of a value, for messages."""
    return f"{type(value).__name__} {shown(value)}"


def shown(value: Any) -> str:
    """The beginning of a value as JSON, for messages: of half a surrogate pair its escape, which UTF-8 can hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "(nested too deeply)"
    text = text if len(text) <= 40 else text[:37] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def listed(names: Iterable[Any]) -> str:
    """The first ten of some names, for messages."""
    names = list(names)
    return ", ".join(f"{name!s:.40}" for name in names[:10]) + (", ..." if len(names) > 10 else "")


def mixed(keys: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele et al. 2014) of each key: another order of the same keys for every seed."""
    keys = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
