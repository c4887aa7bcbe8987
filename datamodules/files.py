"""Files of every kind that corpora come in, read as a stream: lines, JSON, tables, gzip, members of zip archives."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.corpus import BadRows, DataError, listed, shortened

BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
# First bytes of what is no text file, and what to do about it.
NOT_TEXT = {
    GZIP: "gzip-compressed, but its name does not end in .gz: rename it",
    b"PK\x03\x04": "a zip archive, but its name does not end in .zip: rename it",
    b"PAR1": "a parquet file, but its name does not end in .parquet: rename it, or data.format=parquet",
    b"\xff\xfe": "UTF-16 text: convert it (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text: convert it (iconv -f UTF-16 -t UTF-8)",
}
FORMATS = {
    ".txt": "txt",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
KINDS = tuple(dict.fromkeys(FORMATS.values()))
ROWS_PER_READ = 4096
# Bytes of a line, characters of a JSON item or of a table's field: a file of another kind must not fill the memory.
LONGEST_ROW = 1 << 26
JSON_CHARACTERS_PER_READ = 1 << 16

_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of such bytes


def find_files(option: str, patterns: str | Sequence[str]) -> list[Path]:
    """The files that an option names: paths, globs, members of zip archives (`reviews.zip/train.tsv`).

    Raises:
        DataError: a pattern stands for no file, or a file is named twice; the message begins with the option.
    """
    found = [
        path
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        for path in _matches(option, pattern)
    ]
    if not found:
        raise DataError(f"{option}: names no file")
    twice = [name for name, count in Counter(map(os.path.realpath, found)).items() if count > 1]
    if twice:
        raise DataError(f"{option}: names a file twice, its rows would count twice: {twice[0]}")
    for name in map(str, found):
        if _NO_UTF8.search(name):
            name = name.encode("utf-8", "backslashreplace").decode()
            raise DataError(f"{option}: the name of {name} is not UTF-8; rename it")
    return found


def _matches(option: str, pattern: str) -> list[Path]:
    try:
        path = Path(pattern).expanduser()
    except RuntimeError as error:  # ~somebody
        raise DataError(f"{option}={pattern}: {error}") from error
    archive, member = split_archive(path)
    if archive.is_file() and archive.suffix == ".zip":
        return _members(f"{option}={pattern}", archive, member)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise DataError(f"{option}={pattern}: a directory; name its files, e.g. '{pattern}/*.jsonl'")
    if path.exists():
        raise DataError(f"{option}={pattern}: a pipe or a device; files are read more than once")
    if not glob.has_magic(str(path)):
        what = "a link that leads to no file" if path.is_symlink() else "no such file"
        raise DataError(f"{option}={pattern}: {what} (seen from {Path.cwd()})")
    files = [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if file.is_file()]
    if not files:
        hint = "; [ in a name is typed [[]" if "[" in pattern else ""
        raise DataError(f"{option}={pattern}: matches no file (seen from {Path.cwd()}){hint}")
    return [
        found
        for file in files
        for found in (_members(f"{option}={file}", file, None) if file.suffix == ".zip" else [file])
    ]


def split_archive(path: Path) -> tuple[Path, str | None]:
    """`x.zip/a/b.tsv` as (`x.zip`, `a/b.tsv`); any other path as (path, None)."""
    for parent in path.parents:
        if parent.suffix == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, None


def _members(given: str, archive: Path, member: str | None) -> list[Path]:
    with _told_as_damage(archive), zipfile.ZipFile(archive) as opened:
        names = [
            name for name in opened.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")
        ]
    if not names:
        raise DataError(f"{given}: the archive is empty")
    if member is None:
        chosen = names if len(names) == 1 else []
    else:
        chosen = [member] if member in names else [name for name in names if fnmatch(name, member)]
    if not chosen:
        what = "holds several files" if member is None else "no such member"
        raise DataError(f"{given}: {what}; name one as {archive}/NAME (it has: {listed(names)})")
    return [archive / name for name in sorted(chosen)]


def format_of(path: Path, wanted: str | None = None) -> str:
    """One of `KINDS`: as wanted, else by the ending of the name (before .gz).

    Raises:
        DataError: the name says nothing.
    """
    if wanted is not None:
        return wanted
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in FORMATS:
        raise DataError(f"{path}: its name does not tell its format; name it: data.format={'|'.join(KINDS)}")
    return FORMATS[suffix.lower()]


def state_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written to: size, time of change, inode.

    Raises:
        DataError: there is no such file.
    """
    try:
        status = os.stat(split_archive(path)[0])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def content_fingerprint(paths: Sequence[str | Path], *options: Any) -> str:
    """64 hexadecimal digits that name the bytes of `paths` (not their names) and `options` (primitives).

    Raises:
        DataError: a file is missing or unreadable.
    """
    digest = hashlib.sha256(repr(options).encode())
    contents: dict[Path, bytes] = {}  # an archive is read once, however many of its members are named
    for path in paths:
        file, member = split_archive(Path(path))
        if file not in contents:
            content = hashlib.sha256()
            try:
                with open(file, "rb") as stream:
                    while block := stream.read(1 << 20):
                        content.update(block)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
            contents[file] = content.digest()
        digest.update(contents[file] + (member or "").encode())
    return digest.hexdigest()


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its name ends in .gz or it lies in a zip archive.

    Raises:
        DataError: no such file, a directory, unreadable or damaged.
    """
    archive, member = split_archive(path)
    if path.is_dir():
        raise DataError(f"{path}: a directory, where a file is needed")
    if not archive.exists():
        raise DataError(f"{path}: no such file")
    with _told_as_damage(path):
        if member is None:
            stream = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
            with stream:
                yield stream
            return
        with zipfile.ZipFile(archive) as opened, opened.open(member) as inner:
            # A member's own readline is slow, and parquet and gzip want to look ahead.
            stream = gzip.open(inner) if path.suffix == ".gz" else io.BufferedReader(inner, 1 << 20)
            with stream:
                yield stream


@contextmanager
def _told_as_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise DataError(f"{path}: the compressed file ends early (cut off?)") from error
    except (
        gzip.BadGzipFile,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        KeyError,
        UnicodeDecodeError,  # in the names of the members
    ) as error:
        kind = "gzip file" if path.suffix == ".gz" else "zip archive"
        raise DataError(f"{path}: not a whole {kind} ({error})") from error
    except NotImplementedError as error:  # Deflate64, which Windows takes for large files
        raise DataError(f"{path}: {error}; unpack the archive and name the file") from error
    except RuntimeError as error:  # how zipfile tells of a password
        if "password" not in str(error):
            raise
        raise DataError(f"{path}: is encrypted; unpack it and name the file") from error
    except OSError as error:
        # Arrow's take several lines.
        raise DataError(
            f"{path}: cannot be read ({error.strerror or ' '.join(str(error).split())})"
        ) from error


def read_values(
    path: str | Path, bad_rows: BadRows, format: str | None = None, header: bool = True
) -> Iterator[tuple[str, Any]]:
    """(place, value) of each row of a file, as a stream; the place is "line 3" or "row 3".

    A value is a line (txt), any JSON value (json: one a line, or the items of one array), or a dictionary from
    column names (column numbers from 0 without `header`) to values (csv, tsv, parquet). Blank lines are passed
    over, a byte order mark too. Rows that cannot be read are counted in `bad_rows`, whose `finish` is the
    caller's to call.

    Args:
        format: one of `KINDS`; None: by the name.

    Raises:
        DataError: no such file, a directory, unreadable, damaged, of another format, or without a single row.
    """
    path = Path(path)
    kind = format_of(path, format)
    if kind == "parquet":
        rows = _read_parquet(path)
    elif kind == "json":
        rows = _read_json(path, bad_rows)
    elif kind == "txt":
        rows = ((f"line {number}", line) for number, line in _text_lines(path, bad_rows))
    else:
        rows = _read_table(path, bad_rows, kind, header)
    first = next(rows, None)
    if first is None:
        if not bad_rows.count:
            raise DataError(f"{path}: the file is empty")
        return
    yield first
    yield from rows


def read_jsonl(path: str | Path, bad_rows: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """As `read_values` for a file of JSON objects, one a line or in one array."""
    return only_records(path, read_values(path, bad_rows, "json"), bad_rows)


def only_records(
    path: Path, values: Iterator[tuple[str, Any]], bad_rows: BadRows
) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The values that are dictionaries; the others are bad rows."""
    for place, value in values:
        if isinstance(value, dict):
            yield place, value
        else:
            bad_rows.add(path, place, f"no JSON object, {shortened(value)}")


def _byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open_binary(path) as stream:
        # Only b"\n" ends a line; str.splitlines would cut texts at U+2028 and U+0085.
        for number, line in enumerate(iter(partial(stream.readline, LONGEST_ROW), b""), 1):
            if len(line) == LONGEST_ROW:
                raise DataError(f"{path}, line {number}: longer than {LONGEST_ROW:,} bytes; a row is a line")
            if number == 1:
                _refuse_what_is_no_text(path, line)
                line = line.removeprefix(BOM)
            yield number, line.rstrip(b"\r\n")


def _refuse_what_is_no_text(path: Path, start: bytes) -> None:
    for magic, remedy in NOT_TEXT.items():
        if start.startswith(magic):
            if path.suffix == ".gz" and magic == GZIP:
                remedy = "compressed twice; unpack it once"
            raise DataError(f"{path}: {remedy}")
    if b"\r" in start.rstrip(b"\r\n") and not start.endswith(b"\n"):
        raise DataError(f"{path}: its lines end in \\r alone (an old Mac's); convert it (tr '\\r' '\\n')")


def _text_lines(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, str]]:
    """The lines that are not blank."""
    for number, line in _byte_lines(path):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            bad_rows.add(path, f"line {number}", _not_utf8(line[error.start], error.start))
        else:
            yield number, text


def _not_utf8(byte: int, position: int) -> str:
    return (
        f"not UTF-8 (byte 0x{byte:02x} at position {position + 1}; "
        "a GBK file has to be converted: iconv -f GBK -t UTF-8)"
    )


def _read_json(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    if _is_one_array(path):
        yield from _read_json_array(path, bad_rows)
        return
    for number, line in _text_lines(path, bad_rows):
        place = f"line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            bad_rows.add(path, place, f"not JSON ({error.msg} at character {error.pos + 1})")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
            bad_rows.add(path, place, f"not JSON that can be read ({error})")
        else:
            yield place, value


def _is_one_array(path: Path) -> bool:
    """Whether a JSON file is one array of rows: `[[` or `[{` opens it, or `[` stands alone on its line.

    A line such as `["a", "b"]` is a row itself: LCCC's form on the hub.
    """
    with open_binary(path) as stream:
        start = stream.read(1 << 16).removeprefix(BOM).lstrip()
    inside = start[1:].lstrip()
    before = start[1 : len(start) - len(inside)]
    return start.startswith(b"[") and (inside[:1] in (b"[", b"{") or b"\n" in before)


def _read_json_array(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    number = 0

    def damage(reason: object) -> DataError:
        return DataError(f"{path}: damaged after row {number} of its JSON array ({reason})")

    with open_binary(path) as binary:
        stream = io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="")
        text = stream.read(JSON_CHARACTERS_PER_READ)
        clean = _NO_UTF8.search(text) is None
        at = text.index("[") + 1
        if text[at:].strip() == "]":
            return
        while True:
            try:
                start = _JSON_SPACE.match(text, at).end()
                item, end = decode(text, start)
                behind = _JSON_SPACE.match(text, end).end()
                delimiter = text[behind]
                if delimiter not in ",]":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, behind)
            except (json.JSONDecodeError, IndexError) as error:
                # Perhaps the item goes on. Twice as much each time: a long one is not decoded again and again.
                text, at = text[at:], 0
                short = len(text) < LONGEST_ROW
                block = stream.read(max(JSON_CHARACTERS_PER_READ, len(text))) if short else ""
                if not block:
                    cut_off = short and (isinstance(error, IndexError) or not text.rstrip().endswith("]"))
                    raise damage("cut off?" if cut_off else getattr(error, "msg", error)) from error
                text += block
                clean = clean and _NO_UTF8.search(block) is None
                continue
            except (ValueError, RecursionError) as error:  # as of a line
                raise damage(error) from error
            number += 1
            if not clean and (byte := _NO_UTF8.search(text, start, end)):
                reason = _not_utf8(ord(byte[0]) - 0xDC00, byte.start() - start)
                bad_rows.add(path, f"row {number}", reason)
            else:
                yield f"row {number}", item
            if delimiter == "]":
                break
            at = behind + 1
        rest = text[behind + 1 :]
        while rest:
            if rest.strip():
                raise damage("something stands behind it")
            rest = stream.read(JSON_CHARACTERS_PER_READ)


def _read_table(path: Path, bad_rows: BadRows, kind: str, header: bool) -> Iterator[tuple[str, Any]]:
    # In a .tsv a quotation mark is a character like any other; a .csv's may enclose commas and line ends.
    quoting = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
    csv.field_size_limit(LONGEST_ROW)
    at = 0
    problem: str | None = None  # of the record that is being read

    def lines() -> Iterator[str]:
        nonlocal at, problem
        for at, line in _byte_lines(path):  # noqa: B007
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                text = line.decode("utf-8", "replace")
                problem = _not_utf8(line[error.start], error.start)
            yield text + "\n"

    reader = csv.reader(
        lines(), delimiter="\t" if kind == "tsv" else ",", quoting=quoting, strict=kind == "csv"
    )
    columns: list[Any] | None = None
    good = False
    while True:
        start, problem = at + 1, None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields = []
            problem = f"not {kind.upper()} ({str(error).partition(' - ')[0]})"
            if kind == "csv":
                problem += "; double the quotation marks that stand in a text, or write the file as .tsv"
        if fields is None:
            break
        if problem is None and not fields:
            continue
        if problem is None and columns is not None and len(fields) != len(columns):
            count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
            problem = f"{count}, where the first line has {len(columns)}"
        place = f"line {at}" if at == start else f"lines {start} to {at}"
        if columns is None and (header or problem is None):
            if problem is not None:
                raise DataError(f"{path}, {place}: {problem}; it has to name the columns")
            columns = [field.strip() for field in fields] if header else list(range(len(fields)))
            if len(set(columns)) < len(columns):
                raise DataError(f"{path}: its first line names a column twice: {listed(columns)}")
            if header:
                continue
        if problem is None:
            good = True
            yield place, dict(zip(columns, fields, strict=True))
        else:
            # A quotation mark that is not closed takes the rows behind it along.
            bad_rows.add(path, place, problem, rows=at + 1 - start)
    if columns is not None and not good and not bad_rows.count:
        raise DataError(f"{path}: no row below its first line, which names the columns: {listed(columns)}")


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    with open_binary(path) as stream:
        try:
            # A gzip stream cannot be read from its end.
            source = pyarrow.BufferReader(stream.read()) if path.suffix == ".gz" else stream
            file = pyarrow.parquet.ParquetFile(source)
            columns = file.schema_arrow.names
            if len(set(columns)) < len(columns):
                raise DataError(f"{path}: has a column twice: {listed(columns)}")
            for batch in file.iter_batches(ROWS_PER_READ):
                for value in batch.to_pylist():
                    number += 1
                    yield f"row {number}", value
        except DataError:
            raise
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            what = str(error).splitlines()[0]
            raise DataError(f"{path}: not a whole parquet file ({what}), read up to row {number}") from error
