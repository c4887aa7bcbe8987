"""Any texts in files: lines, JSON, tables; with labels, pairs and label names where they have them."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datamodules.cache import cache_key, damaged, written_whole
from datamodules.corpus import BadRows, DataError, Row, listed, shortened, text_problem
from datamodules.file_corpus import READER_VERSION, FileCorpus
from datamodules.files import KINDS, find_files, format_of, only_records, read_values
from datamodules.text import Split

log = logging.getLogger(__name__)

HELD_OUT = 0.1
Column = str | int
SEPARATOR = "|"
UNLABELLED = "-1"  # what the hub's exports write where a test row keeps its label secret
# Where a text that is too long may be cut: after the end of a sentence, with the quotation mark that closes it.
_SENTENCE = re.compile(r".*?(?:[。！？!?；;…\n]+[”’」』）)]*|$)", re.DOTALL)


class TextFiles(FileCorpus):
    """Texts of one's own, from txt, JSON, csv, tsv or parquet files, gzip-compressed or in a zip archive.

    Args:
        train: files, see `FileCorpus`. Without `val` and `split` a tenth of their rows is held out.
        text: the column (key) of the text; a number, from 0, where the table has no header. In a .txt file a line
            is a text.
        text_pair: the column of a second text.
        label: the column of the label; None: the rows have none. In test rows it may be missing or empty, and -1
            where that is no class, as on the hub.
        labels: the classes, in their order: a list of names, or a file with a name a line. A label is one of them,
            or, where no name is a number, its number from 0. None: the distinct labels of the training files,
            sorted.
        multi_label: a row may have several labels: the column holds a list of names or numbers, or a text in which they
            are joined by `label_separator`; empty: the row is of no class. In test rows the column may be missing.
        label_separator: see `multi_label`.
        id: the column of an id that must not occur twice in a file.
        format: txt, json (an object a line, or one array), csv, tsv or parquet; None: by the file's name.
        long_texts: "cut" texts at `max_length`, or "split" them at the ends of sentences into several rows.
        options: as of `FileCorpus`.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file is not there.
    """

    provides = frozenset({"text", "label"})
    provided_by = {"label": "label"}

    def __init__(
        self,
        train: str | list[str],
        text: str | int = "text",
        text_pair: str | int | None = None,
        label: str | int | None = None,
        labels: str | list[str] | None = None,
        multi_label: bool = False,
        label_separator: str = SEPARATOR,
        id: str | int | None = None,
        format: Literal["txt", "json", "csv", "tsv", "parquet"] | None = None,
        long_texts: Literal["cut", "split"] = "cut",
        **options: Any,
    ):
        if not train:
            raise ValueError(f"train={train}: name a file, e.g. data.train=texts.txt")
        if labels is not None and label is None:
            raise ValueError(f"labels={labels}: name the column that holds them: data.label=NAME")
        if multi_label and label is None:
            raise ValueError("multi_label=true: name the column that holds the labels: data.label=NAME")
        if not isinstance(label_separator, str) or not label_separator.strip():
            raise ValueError(f"label_separator={label_separator!r}: must be one or more visible characters")
        if label_separator != SEPARATOR and not multi_label:
            raise ValueError(f"label_separator={label_separator}: is used with data.multi_label=true only")
        if long_texts == "split" and (label is not None or text_pair is not None):
            raise ValueError("long_texts=split: is for plain texts; leave out data.label and data.text_pair")
        if format is not None and format not in KINDS:
            raise ValueError(f"format={format}: must be one of {', '.join(KINDS)}")
        if long_texts not in ("cut", "split"):
            raise ValueError(f"long_texts={long_texts}: must be one of cut, split")
        super().__init__(train=train, held_out=HELD_OUT, **options)
        columns = {"text": text, "text_pair": text_pair, "label": label, "id": id}
        self.columns = {option: column for option, column in columns.items() if column is not None}
        kinds = {type(column) for column in self.columns.values()}
        if len(kinds) > 1:
            given = " ".join(f"data.{option}={column}" for option, column in self.columns.items())
            raise ValueError(f"{given}: name all columns, or number all of them (a table without a header)")
        self.header = str in kinds
        self.format = format
        self.long_texts = long_texts
        self.multi_label = multi_label
        self.label_separator = label_separator
        if label is None:
            self.provides = frozenset({"text"})
        self.given_labels: list[str] | None = None
        if labels is not None:
            self.given_labels = _label_file(labels) if isinstance(labels, str) else [*map(str, labels)]
            twice = [name for name, count in Counter(self.given_labels).items() if count > 1]
            if twice or not self.given_labels:
                what = f"names a class twice: {listed(twice)}" if twice else "names no class"
                raise ValueError(f"labels={labels}: {what}")
        self.files  # noqa: B018  (missing files are told at once)
        for path in (path for paths in self.files.values() for path in paths):
            format_of(path, format)

    @cached_property
    def label_names(self) -> list[str] | None:
        """Names of the classes in their order; None where rows have no labels."""
        if "label" not in self.columns:
            return None
        if self.given_labels is not None:
            return self.given_labels
        # Kept with the tokens: they are asked for at every start, when the tokens need no reading any more.
        key = cache_key(
            self._content_of("train"), sorted(self.columns.items()), *self._several, READER_VERSION
        )
        directory = self.cache_dir / "labels" / key
        if not directory.exists():
            found = self._found_labels()
            with written_whole(directory) as building:
                (building / "labels.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        try:
            found = json.loads((directory / "labels.json").read_text(encoding="utf-8"))
            names, rows = found["names"], found["rows"]
            if not isinstance(names, list) or not isinstance(rows, int):
                raise ValueError(f"no classes but {shortened(found)}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged("label", directory, error) from error
        if 2 * len(names) > rows:
            log.warning(
                f"data.label={self.columns['label']}: {len(names):,} classes in {rows:,} training rows; does the "
                f"column hold classes? They are {listed(names)}"
            )
        return names

    def _found_labels(self) -> dict[str, Any]:
        """The distinct labels of the training files, sorted, and how many rows have any."""
        found: set[str] = set()
        rows = 0
        for path in self.files["train"]:
            bad_rows = BadRows(self.max_bad_rows)
            for place, record in self._records(path, bad_rows, labelled=True):
                values, problem = self._labels(record)
                if problem is None:
                    found.update(map(_written, values))
                    rows += 1
                else:
                    bad_rows.add(path, place, problem)
            self.check_unchanged(path)
        if not found:
            first = bad_rows.first[0] if bad_rows.count else f"{self.columns['label']} is empty in every row"
            raise DataError(f"{path}: not one label; {first}")
        return {"names": sorted(found, key=_order_of_label), "rows": rows}

    @property
    def _several(self) -> tuple:
        """How several labels are written, for fingerprints."""
        return (self.label_separator,) if self.multi_label else ()

    def row_options(self) -> tuple:
        pieces = self.max_length if self.long_texts == "split" else None
        # Given names may be written as numbers, found ones may not.
        given = self.given_labels is not None
        return (sorted(self.columns.items()), pieces, given, self.label_names, *self._several)

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row | str]:
        names = self.label_names or []
        index_of = {name: index for index, name in enumerate(names)}
        # Numbers stand for names where the names themselves are no numbers.
        if self.given_labels is not None and not any(name.isdecimal() for name in names):
            index_of |= {str(index): index for index in range(len(names))}
        place_of_id: dict[str, str] = {}
        labelled = split != "test"
        for place, record in self._records(path, bad_rows, labelled):
            texts, problem = self._texts(record)
            label = None
            if problem is None and "id" in self.columns:
                problem = self._repeated(record, place_of_id, place)
            if problem is None and "label" in self.columns:
                label, problem = self._label(record, index_of, labelled)
            if problem is not None:
                bad_rows.add(path, place, problem)
            elif self.long_texts == "split":
                pieces = pieces_of(texts[0], self.max_length - 2)
                yield from (Row(piece) for piece in pieces if text_problem(piece) is None)
            else:
                yield Row(texts[0] if len(texts) == 1 else texts, label)

    def _content_of(self, split: Split) -> str:
        # The same bytes are other rows in another format.
        formats = [format_of(path, self.format) for path in self.files[split]]
        return " ".join([super()._content_of(split), *formats])

    def _records(self, path: Path, bad_rows: BadRows, labelled: bool) -> Iterator[tuple[str, dict]]:
        kind = format_of(path, self.format)
        values = read_values(path, bad_rows, kind, self.header)
        if kind == "txt":
            values = ((place, {self.columns["text"]: line}) for place, line in values)
        for number, (place, record) in enumerate(only_records(path, values, bad_rows)):
            if number == 0 and kind != "json":  # the rows of a table all have the same columns
                for option, column in self.columns.items():
                    if column not in record and (option != "label" or labelled):
                        table = "; a table is named .csv or .tsv, or data.format=tsv" if kind == "txt" else ""
                        raise DataError(f"{path}: {_no_column(option, column, record)}{table}")
            yield place, record

    def _texts(self, record: dict) -> tuple[tuple[str, ...], str | None]:
        texts = []
        for option in ("text", "text_pair"):
            if option not in self.columns:
                continue
            column = self.columns[option]
            if column not in record:
                return (), _no_column(option, column, record)
            if (problem := text_problem(record[column])) is not None:
                return (), f"{column}: {problem}"
            texts.append(record[column])
        return tuple(texts), None

    def _label(
        self, record: dict, index_of: dict[str, int], labelled: bool
    ) -> tuple[int | tuple[int, ...] | None, str | None]:
        """A row's `Row.label`, or what is wrong with it."""
        column = self.columns["label"]
        value = record.get(column)
        if not labelled and (value is None or not self.multi_label and _is_missing(value)):
            return None, None
        values, problem = self._labels(record)
        if problem is not None:
            return None, problem
        names = [_written(value) for value in values]
        if not labelled and names == [UNLABELLED] and UNLABELLED not in index_of:
            return None, None
        unknown = [value for value, name in zip(values, names, strict=True) if name not in index_of]
        if unknown:
            where = "data.labels" if self.given_labels is not None else "the training files"
            told = f"unknown label {shortened(unknown[0])}; {where}: {listed(self.label_names)}"
            return None, f"{column}: {told}"
        indices = sorted(index_of[name] for name in names)
        if not self.multi_label:
            return indices[0], None
        twice = [self.label_names[index] for index, count in Counter(indices).items() if count > 1]
        return tuple(indices), f"{column}: has a label twice: {listed(twice)}" if twice else None

    def _labels(self, record: dict) -> tuple[list[Any], str | None]:
        """The values that stand for a row's labels, one unless `multi_label`; and what is wrong with them."""
        column = self.columns["label"]
        if column not in record:
            return [], _no_column("label", column, record)
        value, values = record[column], [record[column]]
        if self.multi_label and isinstance(value, list):
            values = value
        elif self.multi_label and isinstance(value, str):
            values = value.split(self.label_separator) if value.strip() else []
        elif self.multi_label:
            return [], f"{column}: no list of labels but {shortened(value)}; of a row of no class it is empty"
        for one in values:
            if _is_missing(one):
                where = f"an empty label in {shortened(value)}" if self.multi_label else "no label"
                return [], f"{column}: {where}"
            problem = None if isinstance(one, (int, float)) else text_problem(one)
            if problem is not None:
                is_list = isinstance(value, list) and not self.multi_label
                way_out = "; several labels a row are read with data.multi_label=true" if is_list else ""
                return [], f"{column}: {problem}{way_out}"
        return values, None

    def _repeated(self, record: dict, place_of_id: dict[str, str], place: str) -> str | None:
        column = self.columns["id"]
        if column not in record:
            return _no_column("id", column, record)
        if _is_missing(record[column]):
            return f"{column}: no id"
        value = _written(record[column])
        first = place_of_id.setdefault(value, place)
        return None if first == place else f"{column} {value} stands on {first} already"


def pieces_of(text: str, longest: int) -> Iterator[str]:
    """A text as pieces of at most `longest` characters, each as many whole sentences as fit; only a sentence that
    alone is longer is cut within."""
    piece = ""
    for sentence in _SENTENCE.findall(text):
        if len(piece) + len(sentence) > longest and piece.strip():
            yield piece
            piece = ""
        piece += sentence
        *whole, piece = [piece[start : start + longest] for start in range(0, len(piece), longest)] or [""]
        yield from whole
    if piece.strip():
        yield piece


def _label_file(path: str) -> list[str]:
    files = find_files("data.labels", path)
    if len(files) > 1:
        raise DataError(
            f"data.labels={path}: matches {len(files)} files, where one is needed: {listed(files)}"
        )
    bad_rows = BadRows(None)
    names = []
    for number, (place, name) in enumerate(read_values(files[0], bad_rows, "txt"), 1):
        if place != f"line {number}":
            bad_rows.add(files[0], f"line {number}", "blank, where the name of a class is needed")
            break
        names.append(name.strip())
    bad_rows.finish()
    return names


def _order_of_label(name: str) -> tuple:
    """Whole numbers by value, however long they are, then names."""
    if re.fullmatch(r"-?\d+", name):
        return False, Decimal(name), len(name), name
    return True, 0, 0, name


def _is_missing(value: Any) -> bool:
    return value is None or value != value or isinstance(value, str) and not value.strip()


def _written(value: Any) -> str:
    """A label as text; JSON's and parquet's numbers and truth values as csv writes them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _no_column(option: str, column: Column, record: dict) -> str:
    return f"no column {column!r} (it has: {listed(map(repr, record))}); name it: data.{option}=NAME"
