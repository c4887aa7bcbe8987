"""What every text corpus shares: rows, files read line by line, rows that are wrong, splits, fingerprints."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

BOM = b"\xef\xbb\xbf"
# First bytes of what is no text file, and what to do about it.
NOT_TEXT = {
    b"\x1f\x8b": "gzip-compressed, but its name does not end in .gz: rename it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\xff\xfe": "UTF-16 text: convert it (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text: convert it (iconv -f UTF-16 -t UTF-8)",
}


class Row(NamedTuple):
    """One example: a text or a pair of texts, and the index of its class where it has one."""

    text: str
    text_pair: str | None = None
    label: int | None = None


class DataError(ValueError):
    """Something is wrong with input files; the message names file, line and value, and the way out."""


class BadRows:
    """Counts the rows of a corpus that cannot be used, and decides at the end whether they are too many.

    Args:
        max_bad_rows: bad rows that are skipped with a warning; one more is an error.
    """

    SHOWN = 5

    def __init__(self, max_bad_rows: int):
        self.max_bad_rows = max_bad_rows
        self.count = 0
        self.first: list[str] = []

    def add(self, file: str | Path, line_number: int, reason: str) -> None:
        """Counts a bad row. Raises nothing, so that one error can name several rows and say how many."""
        self.count += 1
        if len(self.first) < self.SHOWN:
            self.first.append(f"{file}, line {line_number}: {reason}")

    def finish(self) -> None:
        """To be called after the last row: warns of the rows skipped.

        Raises:
            DataError: there are more than `max_bad_rows`; it names the first ones.
        """
        if not self.count:
            return
        rows = f"{self.count:,} bad row{'s' if self.count > 1 else ''}"
        shown = "\n".join(f"  {line}" for line in self.first)
        if self.count > len(self.first):
            shown += f"\n  and {self.count - len(self.first):,} more"
        if self.count > self.max_bad_rows:
            raise DataError(
                f"{rows}, where data.max_bad_rows={self.max_bad_rows} are allowed:\n{shown}\n"
                f"Mend the file, or skip that many: data.max_bad_rows={self.count}"
            )
        log.warning(f"skipped {rows} (data.max_bad_rows={self.max_bad_rows}):\n{shown}")


def read_jsonl(path: str | Path, bad_rows: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a file with one JSON object a line; gzip if the name ends in .gz.

    A byte order mark, CRLF and blank lines are passed over. Lines that are not UTF-8, not JSON or no object
    are counted in `bad_rows`, whose `finish` is the caller's to call.

    Raises:
        DataError: no such file, a directory, unreadable, damaged, not text, or without a single line.
    """
    path = Path(path)
    empty = True
    for number, line in _numbered_lines(path):
        line = line.removeprefix(BOM)
        if not line.strip():
            continue
        empty = False
        try:
            value = json.loads(line.rstrip().decode("utf-8"))
        except UnicodeDecodeError as error:
            bad_rows.add(
                path,
                number,
                f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1}; "
                "a GBK file has to be converted: iconv -f GBK -t UTF-8)",
            )
        except json.JSONDecodeError as error:
            bad_rows.add(path, number, f"not JSON ({error.msg} at character {error.pos + 1})")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
            bad_rows.add(path, number, f"not JSON that can be read ({error})")
        else:
            if isinstance(value, dict):
                yield number, value
            else:
                bad_rows.add(path, number, f"no JSON object, {_shortened(value)}")
    if empty:
        raise DataError(f"{path}: the file is empty")


def text_problem(value: Any) -> str | None:
    """Why `value` cannot be the text of a row; None where it can."""
    if not isinstance(value, str):
        return f"no text but {_shortened(value)}"
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


def split_rows(rows: list[Row], fractions: Sequence[float], seed: int) -> list[list[Row]]:
    """Cuts `rows` into one list for each fraction, in the order of `rows`.

    Rows with equal texts stay together, and every label is cut in the given fractions (to within a row, or a
    group of equal texts). The cut depends on the seed and on the texts, not on their order.

    Args:
        fractions: as `check_split` has them.

    Raises:
        DataError: there are too few different texts: a split would be empty.
    """
    groups: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.text, row.text_pair].append(index)
    by_label: dict[int | None, list[list[int]]] = defaultdict(list)
    for group in sorted(groups.values(), key=lambda group: _random_key(rows[group[0]], seed)):
        # Equal texts may disagree on their label; the smallest does not depend on their order.
        labels = {rows[index].label for index in group}
        by_label[min(labels, key=lambda label: -1 if label is None else label)].append(group)
    parts: list[list[int]] = [[] for _ in fractions]
    for label_groups in by_label.values():
        counts = [0] * len(fractions)
        total = 0
        for group in label_groups:
            total += len(group)
            # To the split that is furthest behind its share: a label with one text goes to the largest split.
            behind = [fraction * total - count for fraction, count in zip(fractions, counts, strict=True)]
            chosen = behind.index(max(behind))
            counts[chosen] += len(group)
            parts[chosen].extend(group)
    if not all(parts):
        raise DataError(
            f"split={list(fractions)} leaves a split without a row: the file has {len(rows):,} rows with "
            f"{len(groups):,} different texts; name more files by data.val= and data.test="
        )
    return [[rows[index] for index in sorted(part)] for part in parts]


def content_fingerprint(paths: Sequence[str | Path], *options: Any) -> str:
    """64 hexadecimal digits that name the bytes of `paths` (not their names) and `options` (primitives).

    Raises:
        DataError: a file is missing or unreadable.
    """
    digest = hashlib.sha256(repr(options).encode())
    for path in paths:
        content = hashlib.sha256()
        try:
            with open(path, "rb") as stream:
                while block := stream.read(1 << 20):
                    content.update(block)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        digest.update(content.digest())
    return digest.hexdigest()


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.is_dir():
        raise DataError(f"{path}: a directory, where a file is needed")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    number = 0
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else open(path, "rb") as stream:
            # Only b"\n" ends a line; str.splitlines would cut texts at U+2028 and U+0085.
            for number, line in enumerate(stream, 1):
                if number == 1:
                    for start, remedy in NOT_TEXT.items():
                        if line.startswith(start):
                            raise DataError(f"{path}: {remedy}")
                yield number, line
    except EOFError as error:
        raise DataError(f"{path}: the gzip file ends early, in line {number + 1} (cut off?)") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}), read up to line {number}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _random_key(row: Row, seed: int) -> bytes:
    return hashlib.blake2b(repr((seed, row.text, row.text_pair)).encode(), digest_size=16).digest()


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
