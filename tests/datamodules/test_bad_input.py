"""Whatever is wrong with input files or the cache: named, counted, bounded, never half-written taken for whole.

docs/data.md has the messages for users.
"""

import gzip
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from running import TINY, finished, run, summary

from datamodules import cache, files
from datamodules.cache import written_whole
from datamodules.clue import CLUE
from datamodules.corpus import BadRows, DataError, Row
from datamodules.dialogue import DIALOGUE_KEYS
from datamodules.encoding import RowEncoder
from datamodules.files import find_files
from datamodules.lccc import LCCC
from datamodules.parallel import map_chunks
from datamodules.store import TokenStore, open_or_build
from datamodules.text_files import TextFiles
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.word import WordTokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GBK = "a GBK file has to be converted: iconv -f GBK -t UTF-8"
CSV = "double the quotation marks that stand in a text, or write the file as .tsv"
DEEP = "[" * 100_000
DIGITS = "Exceeds the limit"


def characters() -> CharTokenizer:
    return CharTokenizer(vocab=[*SPECIALS, *"一二三四五六七八九十"])


def left_in(directory: Path) -> list[str]:
    """What lies in a cache, hidden directories too."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.glob("*/*"))


def write(path: Path, content: bytes | str) -> Path:
    """The file, in a zip archive or compressed if its name says so."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def table(columns: dict[str, list | pyarrow.Array]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def allowed(count: int, *lines: str, at_most: int = 0, more: int = 0) -> str:
    """What is said where `count` rows are bad."""
    shown = [f"  {line}" for line in lines] + [f"  and {more} more"] * (more > 0)
    rows = "1 bad row" if count == 1 else f"{count:,} bad rows"
    return "\n".join(
        [f"{rows}, where data.max_bad_rows={at_most} are allowed:", *shown]
        + [f"Mend the file, or skip that many: data.max_bad_rows={count}"]
    )


def refused(make, tmp_path: Path) -> str:
    """The message with which a corpus ends; nothing may be left in its cache."""
    with pytest.raises(DataError) as caught:
        make(0).prepare_data()
    assert [name for name in left_in(tmp_path / "cache") if not name.startswith("labels/")] == []
    return str(caught.value).replace(f"{tmp_path}/", "")


def skipped(make, count: int, split: str = "train") -> list[tuple[str, ...]]:
    """The texts of the rows that are left where `count` bad ones are allowed."""
    corpus = make(count)
    corpus.setup()
    rows = [row.texts for row in corpus.read(split)]
    facts = corpus.stores[split].facts
    assert facts["left_out"] == {"bad rows": count} and facts["num_rows"] == len(rows)
    with pytest.raises(DataError, match=f"data.max_bad_rows={count - 1} are allowed"):
        list(make(count - 1).read(split))
    return rows


def texts_of(tmp_path: Path, path: Path, **options):
    """A corpus of one's own from `path`, to be made with the bad rows that are allowed."""
    good = {"text": "十", "label": "a", "id": 0, "other": "十"}
    val = write(tmp_path / "val.jsonl", json.dumps(good, ensure_ascii=False))
    options = {"train": str(path), "val": str(val), **options}

    def make(max_bad_rows: int) -> TextFiles:
        return TextFiles(
            tokenizer=characters(),
            cache_dir=str(tmp_path / "cache"),
            max_bad_rows=max_bad_rows,
            **options,
        )

    return make


# Rows of one's own texts


def lines(*records) -> bytes:
    """Records as JSON, bytes and strings as they stand; a line each."""
    return b"".join(
        (
            record
            if isinstance(record, bytes)
            else (record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)).encode()
        )
        + b"\n"
        for record in records
    )


ONE, THREE = {"text": "一"}, {"text": "三"}
HEADER = "text,label\n"

# name, content with 一 and 三 as its only good rows, how many are bad, what is said of them
BAD_ROWS = {
    "txt GBK": ("a.txt", lines("一", "你好".encode("gbk"), "三"), 1,
                f"line 2: not UTF-8 (byte 0xc4 at position 1; {GBK})"),
    "txt NUL": ("a.txt", lines("一", "二\0二", "三"), 1, "line 2: text: a NUL character in the text (character 2)"),
    "txt ideographic spaces": ("a.txt", lines("一", "\u3000\u3000", "三"), 1, "line 2: text: empty text"),
    "txt zero width": ("a.txt", lines("一", "\u200b\u200d\ufeff", "三"), 1, "line 2: text: empty text"),
    "txt byte order mark, CRLF": ("a.txt", b"\xef\xbb\xbf" + "一\r\n\0\r\n三\r\n".encode(), 1,
                                  "line 2: text: empty text"),
    "json cut off line": ("a.jsonl", lines(ONE, '{"text": "二', THREE), 1,
                          "line 2: not JSON (Unterminated string starting at at character 10)"),
    "json two in a line": ("a.jsonl", lines(ONE, '{"text": "二"} {"text": "二"}', THREE), 1,
                           "line 2: not JSON (Extra data at character 15)"),
    "json GBK": ("a.jsonl", lines(ONE, b'{"text": "\xc4\xe3"}', THREE), 1,
                 f"line 2: not UTF-8 (byte 0xc4 at position 11; {GBK})"),
    "json nested": ("a.jsonl", lines(ONE, DEEP, THREE), 1, "line 2: not JSON that can be read (maximum recursion"),
    "json digits": ("a.jsonl", lines(ONE, '{"text": ' + "9" * 5000 + "}", THREE), 1,
                    f"line 2: not JSON that can be read ({DIGITS}"),
    "json bare value": ("a.jsonl", lines(ONE, '"二"', THREE), 1, 'line 2: no JSON object, str "二"'),
    "json list": ("a.jsonl", lines(ONE, ["二"], THREE), 1, 'line 2: no JSON object, list ["二"]'),
    "json null": ("a.jsonl", lines(ONE, {"text": None}, THREE), 1, "line 2: text: no text but NoneType null"),
    "json number": ("a.jsonl", lines(ONE, {"text": 2.5}, THREE), 1, "line 2: text: no text but float 2.5"),
    "json texts": ("a.jsonl", lines(ONE, {"text": ["二"]}, THREE), 1, 'line 2: text: no text but list ["二"]'),
    "json empty": ("a.jsonl", lines(ONE, {"text": ""}, THREE), 1, "line 2: text: empty text"),
    "json half a pair": ("a.jsonl", lines(ONE, '{"text": "二\\ud83d"}', THREE), 1,
                         "line 2: text: half a surrogate pair in the text (character 2)"),
    "json half a pair, elsewhere": ("a.jsonl", lines(ONE, '{"text": ["\\ud83d"]}', THREE), 1,
                                    'line 2: text: no text but list ["\\ud83d"]'),
    "json NUL": ("a.jsonl", lines(ONE, {"text": "二\0"}, THREE), 1,
                 "line 2: text: a NUL character in the text (character 2)"),
    "json other key": ("a.jsonl", lines(ONE, {"content": "二", "n": 1}, THREE), 1,
                       "line 2: no column 'text' (it has: 'content', 'n'); name it: data.text=NAME"),
    "json many keys": ("a.jsonl", lines(ONE, {f"key{n}" * 99: 1 for n in range(99)}, THREE), 1,
                       "line 2: no column 'text' (it has: 'key0key0"),
    "array item": ("a.json", '[{"text": "一"},\n7, {"text": "三"}]', 1, "row 2: no JSON object, int 7"),
    "array GBK": ("a.json", b'[{"text": "\xe4\xb8\x80"}, {"text": "\xc4\xe3"}, {"text": "\xe4\xb8\x89"}]', 1,
                  f"row 2: not UTF-8 (byte 0xc4 at position 11; {GBK})"),
    "array half a pair": ("a.json", '[{"text": "一"}, {"text": "?\\ud83d"}, {"text": "三"}]', 1,
                          "row 2: text: half a surrogate pair in the text (character 2)"),
    "array null": ("a.json", '[{"text": "一"}, {"text": null}, {"text": "三"}]', 1,
                   "row 2: text: no text but NoneType null"),
    "csv width": ("a.csv", HEADER + "一,a\n二\n三,a\n", 1, "line 3: 1 field, where the first line has 2"),
    "csv comma": ("a.csv", HEADER + "一,a\n二，,a,b\n三,a\n", 1, "line 3: 3 fields, where the first line has 2"),
    "csv GBK": ("a.csv", (HEADER + "一,a\n").encode() + b"\xc4\xe3,a\n" + "三,a\n".encode(), 1,
                f"line 3: not UTF-8 (byte 0xc4 at position 1; {GBK})"),
    "csv text after quotes": ("a.csv", HEADER + '一,a\n"二"二,a\n三,a\n', 1,
                              f"line 3: not CSV (',' expected after '\"'); {CSV}"),
    "csv carriage return": ("a.csv", HEADER + "一,a\n二\r二,a\n三,a\n", 1,
                            f"line 3: not CSV (new-line character seen in unquoted field); {CSV}"),
    # What it has taken along is counted row by row.
    "csv quotes open": ("a.csv", HEADER + '一,a\n"二,a\n二,a\n"二,a\n三,a\n', 3,
                        f"lines 3 to 5: not CSV (',' expected after '\"'); {CSV}"),
    "csv quotes open to the end": ("a.csv", HEADER + '一,a\n三,a\n"二,a\n二,a\n', 2,
                                   f"lines 4 to 5: not CSV (unexpected end of data); {CSV}"),
    "csv GBK in a text of lines": ("a.csv", (HEADER + '一,a\n"二\n').encode() + b"\xc4\xe3" + '",a\n三,a\n'.encode(), 2,
                                   f"lines 3 to 4: not UTF-8 (byte 0xc4 at position 1; {GBK})"),
    "csv empty": ("a.csv", HEADER + "一,a\n,a\n三,a\n", 1, "line 3: text: empty text"),
    "tsv tab": ("a.tsv", 'text\tlabel\n一\ta\n"二\t二"\ta\n三\ta\n', 1,
                "line 3: 3 fields, where the first line has 2"),
    "parquet null": ("a.parquet", table({"text": ["一", None, "三"]}), 1, "row 2: text: no text but NoneType null"),
    "parquet NUL": ("a.parquet", table({"text": ["一", "\0", "三"]}), 1, "row 2: text: empty text"),
    "gz": ("a.jsonl.gz", lines(ONE, "x", THREE), 1, "line 2: not JSON (Expecting value at character 1)"),
    "csv gz": ("a.csv.gz", HEADER + "一,a\n,a\n三,a\n", 1, "line 3: text: empty text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_counted_and_skipped_on_demand(tmp_path, case):
    name, content, count, said = BAD_ROWS[case]
    make = texts_of(tmp_path, write(tmp_path / name, content))
    message = refused(make, tmp_path)
    assert message.startswith(
        f"{'1 bad row' if count == 1 else f'{count} bad rows'}, where data.max_bad_rows=0"
    )
    assert f"\n  {name}, {said}" in message and len(message) < 1000
    assert message.endswith(f"\nMend the file, or skip that many: data.max_bad_rows={count}")
    assert skipped(make, count) == [("一",), ("三",)]


def test_members_of_an_archive_are_read_as_files(tmp_path):
    write(tmp_path / "a.zip", zipped({"in/a.jsonl": lines(ONE, "x", THREE), "b.csv": b""}))
    make = texts_of(tmp_path, tmp_path / "a.zip/in/a.jsonl")
    reason = "a.zip/in/a.jsonl, line 2: not JSON (Expecting value at character 1)"
    assert refused(make, tmp_path) == allowed(1, reason)
    assert skipped(make, 1) == [("一",), ("三",)]


def test_the_first_five_are_named_and_all_are_counted(tmp_path):
    make = texts_of(tmp_path, write(tmp_path / "a.txt", "一\n" + "\0\n" * 12 + "三\n"))
    first = [f"a.txt, line {line}: text: empty text" for line in range(2, 7)]
    assert refused(make, tmp_path) == allowed(12, *first, more=7)
    assert skipped(make, 12) == [("一",), ("三",)]


def test_each_file_may_have_so_many(tmp_path):
    paths = [write(tmp_path / f"{name}.txt", f"{name}\n\0\n") for name in "一二"]
    make = texts_of(tmp_path, paths[0], train=[str(path) for path in paths])
    assert [row.text for row in make(1).read("train")] == ["一", "二"]
    corpus = make(1)
    assert len(list(corpus.read("train"))) == 2 and corpus.left_out["train"] == {"bad rows": 2}


def test_a_file_of_another_kind_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(BadRows, "GIVE_UP", 20)
    path = write(tmp_path / "a.jsonl", "no json\n" * 1000)
    message = refused(texts_of(tmp_path, path), tmp_path)
    assert message.startswith(
        "21 bad rows, and not all of the file was read; is it of another kind? The first ones:"
    )
    assert "a.jsonl, line 1: not JSON" in message and "line 6" not in message


# Labels and ids

LABELLED = {
    "null": ({"label": None}, "label: no label"),
    "none": ({}, "no column 'label' (it has: 'text'); name it: data.label=NAME"),
    "blank": ({"label": " "}, "label: no label"),
    "NaN": ({"label": float("nan")}, "label: no label"),
    "list": (
        {"label": ["a"]},
        'label: no text but list ["a"]; several labels a row are read with data.multi_label=true',
    ),
    "object": ({"label": {"a": 1}}, 'label: no text but dict {"a": 1}'),
    "NUL": ({"label": "a\0"}, "label: a NUL character in the text (character 2)"),
    "half a pair": ({"label": "a\ud83d"}, "label: half a surrogate pair in the text (character 2)"),
}


@pytest.mark.parametrize("case", LABELLED)
def test_a_label_that_is_none(tmp_path, case):
    fields, said = LABELLED[case]
    rows = [{"text": "一", "label": "a"}, {"text": "二", **fields}, {"text": "三", "label": "a"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    make = texts_of(tmp_path, path, label="label")
    assert refused(make, tmp_path) == allowed(1, f"a.jsonl, line 2: {said}")
    assert skipped(make, 1) == [("一",), ("三",)]
    assert make(1).label_names == ["a"]


@pytest.mark.parametrize(
    "labels, names",
    [([1.0, 0.0], ["0", "1"]), ([1.5, 10.0], ["10", "1.5"]), ([True, False], ["False", "True"]),
     ([10, 9], ["9", "10"]), (["01", "1"], ["1", "01"]), (["9" * 5000, "10"], ["10", "9" * 5000])],
)  # fmt: skip
def test_labels_of_other_types_are_classes(tmp_path, labels, names):
    path = write(tmp_path / "a.parquet", table({"text": ["一", "二"], "label": labels}))
    corpus = texts_of(tmp_path, path, label="label", val=str(path))(0)
    assert corpus.label_names == names
    indices = {row.text: names[row.label] for row in corpus.read("train")}
    plain = [
        str(int(label)) if isinstance(label, float) and label.is_integer() else str(label) for label in labels
    ]
    assert list(indices.values()) == plain


def test_no_row_with_a_label(tmp_path):
    """The first of all problems is told, also that of a file that cannot be read."""
    for content, said in (
        (
            lines({"text": "一", "kind": 1}),
            "no column 'label' (it has: 'text', 'kind'); name it: data.label=NAME",
        ),
        (lines('{"text": "你"}'.encode("gbk")), f"not UTF-8 (byte 0xc4 at position 11; {GBK})"),
    ):
        make = texts_of(tmp_path, write(tmp_path / "a.jsonl", content), label="label")
        assert refused(make, tmp_path) == f"a.jsonl: not one label; a.jsonl, line 1: {said}"


def test_a_label_that_stands_in_val_only(tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"text": "一", "label": "b"}, {"text": "二", "label": "c"}))
    unknown = 'val.jsonl, line 1: label: unknown label str "a"; the training files: b, c'
    corpus = texts_of(tmp_path, path, label="label")(0)
    with pytest.raises(DataError) as caught:
        list(corpus.read("val"))
    assert str(caught.value) == f"{tmp_path}/val.jsonl: not one good row; {tmp_path}/{unknown}"
    both = write(tmp_path / "both.jsonl", lines({"text": "一", "label": "b"}, {"text": "二", "label": "a"}))
    make = texts_of(tmp_path, path, label="label", val=str(both))
    assert skipped(make, 1, "val") == [("一",)]


def test_unlabelled_test_rows_are_rows(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n一,a\n")
    for name, content in (
        ("b.csv", "text\n二\n三\n"),
        ("c.csv", "text,label\n二,\n三,a\n"),
        ("d.txt", "二\n三\n"),
    ):
        test = write(tmp_path / name, content)
        corpus = texts_of(tmp_path, path, label="label", test=str(test))(0)
        assert [row.text for row in corpus.read("test")] == ["二", "三"] and corpus.left_out["test"] == {}


IDS = {
    "twice": ({"id": 1}, "id 1 stands on line 1 already"),
    "twice, as text": ({"id": "1"}, "id 1 stands on line 1 already"),
    "null": ({"id": None}, "id: no id"),
    "none": ({}, "no column 'id' (it has: 'text'); name it: data.id=NAME"),
}


@pytest.mark.parametrize("case", IDS)
def test_ids(tmp_path, case):
    fields, said = IDS[case]
    rows = [{"text": "一", "id": 1}, {"text": "二", **fields}, {"text": "三", "id": 3}]
    make = texts_of(tmp_path, write(tmp_path / "a.jsonl", lines(*rows)), id="id")
    assert refused(make, tmp_path) == allowed(1, f"a.jsonl, line 2: {said}")
    assert skipped(make, 1) == [("一",), ("三",)]


LABEL_FILES = {
    "blank line": ("a\n\nb\n", "1 bad row:\n  l.txt, line 2: blank, where the name of a class is needed\nMend the file"),
    "GBK": ("好\n".encode("gbk"), f"1 bad row:\n  l.txt, line 1: not UTF-8 (byte 0xba at position 1; {GBK})\nMend the file"),
    "empty": ("", "l.txt: the file is empty"),
    "twice": ("a\nb\na\n", "labels=l.txt: names a class twice: a"),
}  # fmt: skip


@pytest.mark.parametrize("case", LABEL_FILES)
def test_a_file_of_class_names(tmp_path, monkeypatch, case):
    content, said = LABEL_FILES[case]
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.csv", "text,label\n一,a\n")
    write(tmp_path / "l.txt", content)
    with pytest.raises(ValueError) as caught:
        texts_of(tmp_path, path, label="label", labels="l.txt")(0)
    assert str(caught.value) == said


def test_a_file_of_class_names_may_end_in_blank_lines(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n一,1\n")
    write(tmp_path / "l.txt", b"\xef\xbb\xbfa\r\nb\r\n\r\n")
    corpus = texts_of(tmp_path, path, label="label", labels=str(tmp_path / "l.txt"))(0)
    assert corpus.label_names == ["a", "b"] and list(corpus.read("train")) == [Row("一", 1)]


# Files as a whole

LINES = lines(*({"text": "一二三"} for _ in range(2000)))
GBK_ARRAY = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xc4\xe3"]).buffers())
PARQUET = table({"text": [f"第{number}行" for number in range(1000)]})
ENCRYPTED = bytearray(zipped({"a.txt": b"1"}, zipfile.ZIP_STORED))
ENCRYPTED[6] |= 1
ENCRYPTED[ENCRYPTED.index(b"PK\1\2") + 8] |= 1
DEFLATE64 = bytearray(zipped({"a.txt": b"1"}))
DEFLATE64[8] = DEFLATE64[DEFLATE64.index(b"PK\1\2") + 10] = 9

# name, content, what is said however many bad rows are allowed
BAD_FILES = {
    "empty": ("a.txt", b"", "a.txt: the file is empty"),
    "blank lines": ("a.jsonl", b"\n \n\r\n", "a.jsonl: the file is empty"),
    "empty array": ("a.json", b"[\n]", "a.json: the file is empty"),
    "empty gz": ("a.txt.gz", b"", "a.txt.gz: the file is empty"),
    "empty parquet": ("a.parquet", b"", "a.parquet: not a whole parquet file (Parquet file size is 0 bytes)"),
    "no row of parquet": ("a.parquet", table({"text": pyarrow.array([], "string")}), "a.parquet: the file is empty"),
    "header alone": ("a.csv", "text,label\n",
                     "a.csv: no row below its first line, which names the columns: text, label"),
    "header twice": ("a.csv", "text,label,text\n一,a,b\n",
                     "a.csv: its first line names a column twice: text, label, text"),
    "header GBK": ("a.csv", "文本,text\n一,a\n".encode("gbk"),
                   f"a.csv, line 1: not UTF-8 (byte 0xce at position 1; {GBK}); it has to name the columns"),
    "header no CSV": ("a.csv", '"a"b,text\n一,a\n',
                      f"a.csv, line 1: not CSV (',' expected after '\"'); {CSV}; it has to name the columns"),
    "no such column": ("a.csv", "content,label\n一,a\n",
                       "a.csv: no column 'text' (it has: 'content', 'label'); name it: data.text=NAME"),
    "semicolons": ("a.csv", "text;label\n一;a\n",
                   "a.csv: no column 'text' (it has: 'text;label'); name it: data.text=NAME"),
    "no such column of parquet": ("a.parquet", table({"a": ["一"]}),
                                  "a.parquet: no column 'text' (it has: 'a'); name it: data.text=NAME"),
    "no such key": ("a.jsonl", lines({"a": "一"}),
                    "a.jsonl: not one good row; a.jsonl, line 1: no column 'text' (it has: 'a'); "
                    "name it: data.text=NAME"),
    "column of lists": ("a.parquet", table({"text": [["一"], ["二"]]}),
                        'a.parquet: not one good row; a.parquet, row 1: text: no text but list ["一"]'),
    "column of bytes": ("a.parquet", table({"text": [b"\xc4"]}),
                        "a.parquet: not one good row; a.parquet, row 1: text: no text but bytes \"b'\\\\xc4'\""),
    "GBK": ("a.txt", "你好\n再见\n".encode("gbk"),
            f"a.txt: not one good row; a.txt, line 1: not UTF-8 (byte 0xc4 at position 1; {GBK})"),
    "UTF-16": ("a.txt", "你好\n".encode("utf-16"), "a.txt: UTF-16 text: convert it (iconv -f UTF-16 -t UTF-8)"),
    "UTF-16 array": ("a.json", '[["你好"]]'.encode("utf-16"),
                     "a.json: UTF-16 text: convert it (iconv -f UTF-16 -t UTF-8)"),
    "carriage returns": ("a.txt", "一\r二\r三\r",
                         "a.txt: its lines end in \\r alone (an old Mac's); convert it (tr '\\r' '\\n')"),
    "carriage returns of a table": ("a.csv", "text,label\r一,a\r",
                                    "a.csv: its lines end in \\r alone (an old Mac's); convert it (tr '\\r' '\\n')"),
    "gz without its name": ("a.txt", gzip.compress(b"1\n"),
                            "a.txt: gzip-compressed, but its name does not end in .gz: rename it"),
    "gz twice": ("a.txt.gz", gzip.compress(b"1\n"), "a.txt.gz: compressed twice; unpack it once"),
    "zip without its name": ("a.txt", zipped({"a.txt": b"1"}),
                             "a.txt: a zip archive, but its name does not end in .zip: rename it"),
    "parquet without its name": ("a.jsonl", PARQUET, "a.jsonl: a parquet file, but its name does not end in .parquet: "
                                                     "rename it, or data.format=parquet"),
    "no parquet": ("a.parquet", "一\n", "a.parquet: not a whole parquet file ("),
    "parquet cut off": ("a.parquet", PARQUET[:-50], "a.parquet: not a whole parquet file ("),
    "parquet damaged": ("a.parquet", PARQUET[:40] + b"\xff" * 500 + PARQUET[540:], "a.parquet: "),
    "parquet GBK": ("a.parquet", table({"text": GBK_ARRAY}),
                    "a.parquet: not a whole parquet file ('utf-8' codec can't decode byte"),
    "array cut off": ("a.json", '[{"text": "一"}, {"text": "二"}, {"text"',
                      "a.json: damaged after row 2 of its JSON array (cut off?)"),
    "array cut off behind a row": ("a.json", '[{"text": "一"}, {"text": "二"}',
                                   "a.json: damaged after row 1 of its JSON array (cut off?)"),
    "array damaged": ("a.json", '[{"text": "一"}, {"text" "二"}, {"text": "三"}]',
                      "a.json: damaged after row 1 of its JSON array (Expecting ':' delimiter)"),
    "array without a comma": ("a.json", '[{"text": "一"}, {"text": "二"}\n{"text": "三"}]',
                              "a.json: damaged after row 1 of its JSON array (Expecting ',' delimiter)"),
    "arrays": ("a.json", '[{"text": "一"}]\n[{"text": "二"}]',
               "a.json: damaged after row 1 of its JSON array (something stands behind it)"),
    "array nested": ("a.json", DEEP, "a.json: damaged after row 0 of its JSON array (maximum recursion depth"),
    "array digits": ("a.json", '[{"text": "一"}, ' + "9" * 5000 + "]",
                     f"a.json: damaged after row 1 of its JSON array ({DIGITS}"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("max_bad_rows", [0, 10_000])
def test_a_file_that_is_wrong_as_a_whole(tmp_path, case, max_bad_rows):
    name, content, said = BAD_FILES[case]
    make = texts_of(tmp_path, write(tmp_path / name, content))
    message = refused(lambda _: make(max_bad_rows), tmp_path)
    assert message.startswith(said) and "\n" not in message


@pytest.mark.parametrize("length", [0, 2, 10, 30, len(gzip.compress(LINES)) - 1])
def test_a_gz_that_is_cut_off(tmp_path, length):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES)[:length])
    said = "the compressed file ends early (cut off?)" if length else "the file is empty"
    assert refused(texts_of(tmp_path, path), tmp_path) == f"a.jsonl.gz: {said}"


def test_a_gz_that_is_damaged(tmp_path):
    path, content = tmp_path / "a.jsonl.gz", bytearray(gzip.compress(LINES))
    content[-6] ^= 255
    path.write_bytes(content)
    assert refused(texts_of(tmp_path, path), tmp_path).startswith(
        "a.jsonl.gz: not a whole gzip file (CRC check failed"
    )
    path.write_bytes(LINES)
    said = "a.jsonl.gz: not a whole gzip file (Not a gzipped file (b'{\"'))"
    assert refused(texts_of(tmp_path, path), tmp_path) == said


ARCHIVES = {
    "no archive": (b"PK\x03\x04....", "a.zip", "a.zip: not a whole zip archive (File is not a zip file)"),
    "cut off": (zipped({"a.txt": LINES})[:-30], "a.zip", "a.zip: not a whole zip archive (File is not a zip file)"),
    "damaged": (zipped({"a.txt": b"12345"}, zipfile.ZIP_STORED).replace(b"12345", b"12344"), "a.zip",
                "a.zip/a.txt: not a whole zip archive (Bad CRC-32 for file 'a.txt')"),
    "empty": (zipped({}), "a.zip", "data.train=a.zip: the archive is empty"),
    "folders alone": (zipped({"a/": b"", "__MACOSX/x": b""}), "a.zip", "data.train=a.zip: the archive is empty"),
    "several": (zipped({"b.txt": b"1", "a.txt": b"2"}), "a.zip",
                "data.train=a.zip: holds several files; name one as a.zip/NAME (it has: b.txt, a.txt)"),
    "another": (zipped({"a.txt": b"1"}), "a.zip/b.txt",
                "data.train=a.zip/b.txt: no such member; name one as a.zip/NAME (it has: a.txt)"),
    "encrypted": (bytes(ENCRYPTED), "a.zip", "a.zip/a.txt: is encrypted; unpack it and name the file"),
    "Deflate64": (bytes(DEFLATE64), "a.zip", "a.zip/a.txt: That compression method is not supported; "
                                             "unpack the archive and name the file"),
    "archive of an archive": (zipped({"b.zip": zipped({"a.txt": b"1"})}), "a.zip",
                              "a.zip/b.zip: its name does not tell its format; "
                              "name it: data.format=txt|json|csv|tsv|parquet"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(tmp_path, monkeypatch, case):
    content, name, said = ARCHIVES[case]
    write(tmp_path / "a.zip", content)
    monkeypatch.chdir(tmp_path)
    assert refused(lambda _: texts_of(tmp_path, Path(name))(0), tmp_path) == said


def test_nothing_is_read_of_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.txt")
    os.symlink("loop.txt", "loop.txt")
    os.makedirs("folder")
    seen = f"(seen from {tmp_path})"
    said = {
        "pipe.txt": "a pipe or a device; files are read more than once",
        "loop.txt": f"a link that leads to no file {seen}",
        "nothing.txt": f"no such file {seen}",
        "folder": "a directory; name its files, e.g. 'folder/*.jsonl'",
        "*.csv": f"matches no file {seen}",
        "c[1]/*.txt": f"matches no file {seen}; [ in a name is typed [[]",
        "~nobody-has-this-name/a.txt": "Could not determine home directory.",
    }
    for name, what in said.items():
        with pytest.raises(DataError) as caught:
            find_files("data.val", name)
        assert str(caught.value) == f"data.val={name}: {what}"
        # Beside one that is there, too.
        write(tmp_path / "a.txt", "一")
        with pytest.raises(DataError):
            find_files("data.val", ["a.txt", name])


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "一\n")
    corpus = texts_of(tmp_path, path)(0)

    def forbidden(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", forbidden)  # root may read everything
    with pytest.raises(DataError) as caught:
        corpus.fingerprint("train")
    assert str(caught.value) == f"{path}: cannot be read (Permission denied)"


def test_a_file_is_not_read_twice_for_one_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "一\n")
    os.symlink("a.txt", "b.txt")
    os.makedirs("deep")
    os.symlink(".", "deep/self")
    write(tmp_path / "deep/c.txt", "一\n")
    for names, name in (
        (["a.txt", "a.*"], "a.txt"),
        (["a.txt", "b.txt"], "a.txt"),
        (["deep/**/*.txt"], "deep/c.txt"),
    ):
        with pytest.raises(DataError) as caught:
            find_files("data.train", names)
        assert str(caught.value) == (
            f"data.train: names a file twice, its rows would count twice: {tmp_path}/{name}"
        )


def test_names_with_everything_in_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["有 空格.txt", "a[1].txt", "a=b.txt", "a,b.txt", "{a}.txt", "a'b.txt", "*.txt", "a\nb.txt"]
    for name in names:
        write(tmp_path / name, "一\n")
        assert find_files("data.train", name) == [Path(name)]
    write(tmp_path / "a.zip", zipped({"x[1].txt": b"1", "x1.txt": b"2"}))
    assert find_files("data.train", "a.zip/x[1].txt") == [Path("a.zip/x[1].txt")]


def test_a_name_that_is_not_utf_8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("新闻.txt".encode("gbk"), "w") as file:
        file.write("1\n")
    with pytest.raises(DataError) as caught:
        find_files("data.train", "*.txt")
    assert (
        str(caught.value)
        == "data.train: the name of \\udcd0\\udcc2\\udcce\\udcc5.txt is not UTF-8; rename it"
    )


@pytest.mark.parametrize("options", [{"val": ""}, {"val": []}, {"test": ""}])
def test_an_option_that_names_nothing(tmp_path, options):
    """A variable of the shell that is not set: `data.val=$VAL`."""
    path = write(tmp_path / "a.txt", "一\n")
    [(option, value)] = options.items()
    with pytest.raises(ValueError) as caught:
        texts_of(tmp_path, path, **options)(0)
    assert str(caught.value) == f"{option}={value}: names no file; leave it out, or name one"


def test_the_same_bytes_in_another_format_are_another_corpus(tmp_path):
    fingerprints = set()
    for name in ("a.txt", "a.csv", "a.tsv"):
        path = write(tmp_path / name, "text\n一\n")
        fingerprints.add(texts_of(tmp_path, path)(0).fingerprint("train"))
    assert len(fingerprints) == 3
    assert texts_of(tmp_path, path, format="txt")(0).fingerprint("train") in fingerprints


# CLUE and LCCC: what is wrong with their records stands in their own tests, too

CLUE_ROWS = {
    "label of digits": ({"label": "9" * 5000, "sentence": "二"}, 'unknown label "' + "9" * 36 + "... (tnews has 15"),
    "label, half a pair": ({"label": "\ud83d", "sentence": "二"}, 'unknown label "\\ud83d" (tnews has 15'),
    "label, object": ({"label": {"a": 1}, "sentence": "二"}, 'unknown label {"a": 1} (tnews has 15'),
    "other keys": ({f"key{n}": n for n in range(99)},
                   "no key 'sentence' (it has: 'key0', 'key1', 'key2', 'key3', 'key4', 'key5', 'key6', 'key7', "
                   "'key8', 'key9', ...)"),
    "NUL": ({"label": "100", "sentence": "二\0"}, "a NUL character in the text (character 2)"),
    "id twice": ({"label": "100", "sentence": "二", "id": 1}, "id 1 stands on {first} already"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLUE_ROWS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "array.json", "a.zip"])
def test_a_bad_row_of_clue(tmp_path, case, name):
    record, said = CLUE_ROWS[case]
    good = [{"label": "100", "sentence": text, "id": number} for number, text in ((1, "一"), (3, "三"))]
    rows = [json.dumps(row) for row in (good[0], record, good[1])]
    content = f"[{','.join(rows)}]" if name == "array.json" else "\n".join(rows)
    unit = "row" if name == "array.json" else "line"
    path = write(tmp_path / name, zipped({"a.json": content.encode()}) if name == "a.zip" else content)
    val = write(tmp_path / "val.json", rows[0])

    def make(max_bad_rows: int) -> CLUE:
        return CLUE(
            train=str(path), val=str(val), tokenizer=characters(), cache_dir=str(tmp_path / "cache"),
            max_bad_rows=max_bad_rows,
        )  # fmt: skip

    place = f"{name}/a.json" if name == "a.zip" else name
    message = refused(make, tmp_path)
    assert f"\n  {place}, {unit} 2: {said.replace('{first}', f'{unit} 1')}" in message and len(message) < 1000
    assert skipped(make, 1) == [("一",), ("三",)]


NO_DIALOGUE = f"none of the keys {', '.join(DIALOGUE_KEYS)}"
TURNS = {
    "one turn": (["二"], "a dialogue of one turn, data.min_turns=2 are needed"),
    "no turn": ([], "a dialogue of no turn, data.min_turns=2 are needed"),
    "empty turn": (["二", ""], "turn 2: empty text"),
    "zero width": (["\u200b", "二"], "turn 1: empty text"),
    "null": (["二", None], "turn 2: no text but NoneType null"),
    "number": ([2, "二"], "turn 1: no text but int 2"),
    "nested": ([["二", "二"], ["二"]], 'turn 1: no text but list ["二", "二"]'),
    "NUL": (["二", "二\0"], "turn 2: a NUL character in the text (character 2)"),
    "half a pair": (["二", "二\ud83d"], "turn 2: half a surrogate pair in the text (character 2)"),
    "text": ("二", 'no dialogue (an array of texts), str "二"'),
    "other key": ({"talk": ["二", "二"]}, f"{NO_DIALOGUE} (it has: 'talk')"),
    "key without dialogue": ({"dialog": None}, "no dialogue (an array of texts), NoneType null"),
}


@pytest.mark.parametrize("case", TURNS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "LCCD"])
def test_a_bad_dialogue(tmp_path, case, name):
    dialogue, said = TURNS[case]
    rows = [json.dumps(row) for row in (["一", "一"], dialogue, ["三", "三"])]
    path = write(tmp_path / name, "[\n" + ",\n".join(rows) + "]" if name == "a.json" else "\n".join(rows))
    make = lccc_of(tmp_path, path)
    assert refused(make, tmp_path) == allowed(1, f"{name}, {'row' if name == 'a.json' else 'line'} 2: {said}")
    assert skipped(make, 1) == [("一", "一"), ("三", "三")]


def lccc_of(tmp_path: Path, path: Path, **options):
    val = write(tmp_path / "val.jsonl", '["十", "十"]')
    options = {"train": str(path), "val": str(val), **options}

    def make(max_bad_rows: int) -> LCCC:
        return LCCC(
            tokenizer=characters(), cache_dir=str(tmp_path / "cache"), max_bad_rows=max_bad_rows, **options
        )

    return make


@pytest.mark.parametrize(
    "column, said",
    [({"dialog": ["一", "二"]}, 'no dialogue (an array of texts), str "一"'),
     ({"talk": [["一", "二"]]}, f"{NO_DIALOGUE} (it has: 'talk')"),
     ({"dialog": [["一", None]]}, "turn 2: no text but NoneType null")],
)  # fmt: skip
def test_dialogues_of_parquet(tmp_path, column, said):
    make = lccc_of(tmp_path, write(tmp_path / "a.parquet", table(column)))
    assert refused(make, tmp_path) == f"a.parquet: not one good row; a.parquet, row 1: {said}"


# Rows that are long, or of other scripts


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.txt.gz"])
def test_a_million_characters_in_a_row(tmp_path, name):
    long = "一二三四，五" * 170_000
    content = {
        "txt": f"三\n{long}\n",
        "jsonl": lines({"text": "三"}, {"text": long}),
        "json": json.dumps([{"text": "三"}, {"text": long}]),
        "csv": f'text\n三\n"{long}"\n',
        "tsv": f"text\n三\n{long}\n",
        "parquet": table({"text": ["三", long]}) if name == "a.parquet" else None,
    }[name.removesuffix(".gz").rpartition(".")[2]]
    path = write(tmp_path / name, content)
    corpus = texts_of(tmp_path, path)(0)
    corpus.setup()
    store = corpus.stores["train"]
    assert store.lengths.tolist() == [3, 128] and store.facts["truncated_rows"] == 1
    split = texts_of(tmp_path, path, long_texts="split")(0)
    split.setup()
    store = split.stores["train"]
    assert store.facts["truncated_rows"] == 0 and store.facts["num_characters"] == len(long) + 1


def test_a_row_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_ROW", 1 << 16)
    monkeypatch.setattr(files, "JSON_CHARACTERS_PER_READ", 1 << 10)
    long = "1" * (1 << 17)
    said = {
        "a.txt": "a.txt, line 1: longer than 65,536 bytes; a row is a line",
        "a.jsonl": "a.jsonl, line 1: longer than 65,536 bytes; a row is a line",
        "a.json": "a.json: damaged after row 0 of its JSON array (Unterminated string starting at)",
    }
    for name, what in said.items():
        content = f'[{{"text": "{long}"}}]' if name == "a.json" else long
        assert refused(texts_of(tmp_path, write(tmp_path / name, content)), tmp_path) == what
    # A quotation mark that takes a whole file along.
    path = write(tmp_path / "a.csv", "text\n一\n" + '"' + "二\n" * (1 << 16) + "三\n")
    message = refused(texts_of(tmp_path, path), tmp_path)
    assert "a.csv, lines 3 to" in message and "not CSV (field larger than field limit (65536))" in message


@pytest.mark.parametrize("keep", ["first", "last"])
def test_ten_thousand_turns(tmp_path, keep):
    dialogue = ["一二三四五六七八九十"[: 1 + number * 7 % 10] for number in range(10_000)]
    path = write(tmp_path / "a.jsonl", lines(dialogue))
    corpus = lccc_of(tmp_path, path, keep=keep, max_length=128)(0)
    corpus.setup()
    store, tokenizer = corpus.stores["train"], corpus.tokenizer
    tokens = [tokenizer.vocab[token] for token in store.tokens]
    turns = "".join(tokens).removeprefix("[CLS]").removesuffix("[SEP]").split("[SEP]")
    ordered = dialogue if keep == "first" else dialogue[::-1]
    fitting = np.searchsorted(np.cumsum([len(turn) + 1 for turn in ordered]) + 1, 128, side="right")
    assert turns == (dialogue[:fitting] if keep == "first" else dialogue[-fitting:]) and fitting > 10
    assert store.facts["num_texts"] == fitting and store.facts["truncated_rows"] == 1
    assert (np.diff(store.batch(np.array([0])).segment_ids) != 0).sum() == fitting - 1


@pytest.mark.parametrize("max_length", range(4, 15))
def test_pairs_at_the_greatest_length(max_length):
    pair, fits = ("一" * 6, "二" * 4), 6 + 4 + 3
    encoded = RowEncoder(characters(), max_length)([Row(pair)])
    [length], tokenizer = encoded.lengths, characters()
    first, second = ((encoded.tokens == tokenizer.vocab.index(text)).sum() for text in "一二")
    assert length == min(fits, max_length) == first + second + 3 and encoded.truncated == (max_length < fits)
    # The longer one is cut first, and neither far below the other.
    assert second == 4 or abs(first - second) <= 1
    assert np.flatnonzero(encoded.text_starts).tolist() == [first + 2]


@pytest.mark.parametrize(
    "max_length, first, last",
    [(13, 3, 3), (12, 3, 3), (11, 2, 2), (9, 2, 2), (8, 2, 2), (7, 1, 2), (6, 1, 1), (5, 1, 1), (4, 1, 1)],
)
def test_dialogues_at_the_greatest_length(max_length, first, last):
    """[CLS] 一一一一 [SEP] 二 [SEP] 三三三 [SEP] has 12 tokens."""
    turns = ("一" * 4, "二", "三" * 3)
    for end, count in (("first_turns", first), ("last_turns", last)):
        encoded = RowEncoder(characters(), max_length, end)([Row(turns)])
        kept = turns[:count] if end == "first_turns" else turns[-count:]
        whole = sum(map(len, kept)) + count + 1
        assert encoded.lengths.tolist() == [min(whole, max_length)] and encoded.truncated == (max_length < 12)
        assert encoded.text_starts.sum() == count - 1


SCRIPTS = {
    "emoji": "哈哈😂👨\u200d👩\u200d👧\u200d👦👍🏽1\ufe0f\u20e3🇨🇳🏴\U000e0067\U000e0062\U000e007f",
    "accents": "café cafe\u0301 Å\u0327 ﬁ ß İ Σίσυφος",
    "Arabic": "مرحبا بالعالم \u200f١٢٣",
    "Hebrew": "שָׁלוֹם",
    "Thai": "สวัสดีชาวโลก",
    "Devanagari": "नमस्ते दुनिया",
    "Hangul": "안녕하세요 \u1112\u1161\u11ab",
    "kana": "こんにちは、ガガカ\u3099ﾊﾝｶｸ",
    "rare ideographs": "𠀀𪚥𫠠𰻝㐀豈\ufa0e\U0003134a",
    "symbols": "𝔘𝟘①㎡™…—“”＂ｆｕｌｌ",
    "spaces": "a\tb\u2028c\x85d\u3000e\xa0f\r\ng",
    "invisible": "\ufeff你\u200b好\u202e\u2066\xad\x07\ue000\ufffd",
    "accents alone": "\u0301\ufe0f",
    "unassigned": "\U000e0fff\u0378你",
}


def counted(text: str) -> int:
    """The characters that a score goes by: no space, nothing invisible, no accent written apart."""
    kinds = {character: unicodedata.category(character) for character in text}
    return sum(
        not character.isspace() and kinds[character] not in ("Cc", "Cf", "Co", "Mn") and character != "\ufffd"
        for character in text
    )


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("tokenizer", [CharTokenizer, WordTokenizer])
def test_every_script_is_encoded_and_its_characters_are_counted(script, tokenizer):
    text = SCRIPTS[script]
    encode = RowEncoder(tokenizer(vocab=[*SPECIALS, *"你好哈一"]), max_length=200)
    encoded = encode([Row(text), Row(("一", text, "一")), Row("一")])
    ends = np.cumsum(encoded.lengths)
    chars = [part.sum() for part in np.split(encoded.chars, ends[:-1])]
    assert chars == [counted(text), counted(text) + 2, 1]
    assert (encoded.tokens[ends - 1] == encode.tokenizer.sep_id).all() and encoded.truncated == 0
    assert encoded.text_starts.sum() == 2


# A file that changes while it is read


def change(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "appended to":
        path.write_bytes(content + content)
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif how == "replaced":
        other = path.with_suffix(".new")
        other.write_bytes(content)
        os.replace(other, path)
    elif how == "written over":
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))


class Changing(TextFiles):
    """Its first file is changed by somebody when the row of this number is read, over all passes."""

    at, how = 0, "appended to"

    def rows_of(self, path, split, bad_rows):
        for row in super().rows_of(path, split, bad_rows):
            self.at -= 1
            if self.at == 0:
                change(path, self.how)
            yield row


@pytest.mark.parametrize("how", ["appended to", "cut off", "replaced", "written over"])
@pytest.mark.parametrize(
    "options, passes", [({"val": "val.txt"}, 0), ({"val": "val.txt"}, 1), ({}, 0), ({}, 1), ({}, 2)]
)
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, how, passes, options):
    """In the first pass, which counts words, or in a later one, which cuts or tokenizes."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "".join(f"第{number}行\n" for number in range(40)))
    write(tmp_path / "val.txt", "一\n")
    corpus = Changing(train="a.txt", tokenizer=WordTokenizer(), cache_dir="cache", **options)
    corpus.at, corpus.how = 40 * passes + 7, how
    with pytest.raises(DataError) as caught:
        corpus.prepare_data()
    assert (
        str(caught.value) == "a.txt: changed while it was read; run again when whatever writes it is through"
    )
    assert [name for name in left_in(tmp_path / "cache") if not name.startswith("vocabularies/")] == []
    # What was counted before the change is whole.
    assert len(left_in(tmp_path / "cache")) <= (passes > 0)


def test_an_archive_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path / "a.zip", zipped({"a.txt": "一\n二\n".encode()}))
    corpus = texts_of(tmp_path, path)(0)
    rows = corpus.read("train")
    next(rows)
    change(path, "appended to")
    with pytest.raises(DataError, match="a.zip/a.txt: changed while it was read"):
        list(rows)


def test_a_file_that_goes_away(tmp_path):
    path = write(tmp_path / "a.txt", "一\n二\n")
    corpus = texts_of(tmp_path, path)(0)
    path.unlink()
    assert refused(lambda _: corpus, tmp_path) == "a.txt: cannot be read (No such file or directory)"


# The cache: a full disk, a kill, two runs at once, damage


class SmallDisk:
    """A folder that takes no more than 300 kB: a file system of its own, or a limit of this process' files."""

    SIZE = 75 * 4096

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir()
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.SIZE}", "tmpfs", str(folder)]
        may_mount = os.geteuid() == 0 and shutil.which("mount") is not None
        self.mounted = may_mount and subprocess.run(mount, capture_output=True).returncode == 0
        self.said = "No space left on device" if self.mounted else "File too large"

    def leave(self, size: int) -> None:
        """Fill it but for `size` bytes."""
        if self.mounted:
            (self.folder / "filler").write_bytes(b"0" * (self.SIZE - size))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.limits[1]))

    def close(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
        if self.mounted:
            subprocess.run(["umount", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    disk = SmallDisk(tmp_path / "small")
    yield disk
    disk.close()


def test_a_disk_that_tokens_fill(tmp_path, small_disk):
    path = write(
        tmp_path / "a.txt", "".join(f"第{number}行，一二三四五六七八九十\n" for number in range(20_000))
    )
    cache_dir = small_disk.folder / "cache"
    small_disk.leave(small_disk.SIZE)
    outcome = run(
        tmp_path / "run",
        "model=bert",
        "data=text",
        f"data.train={path}",
        f"data.cache_dir={cache_dir}",
        *TINY,
    )
    said = rf"\[Errno \d+\] {small_disk.said}\); free some space or set data.cache_dir=\n"
    assert outcome.code == 2 and re.fullmatch(
        rf"{cache_dir}/tokens: cannot write the cache \({said}", outcome.err
    )
    # The vocabulary is there as a whole, of the tokens nothing.
    [vocabulary] = left_in(cache_dir)
    assert re.fullmatch(r"vocabularies/\w+", vocabulary) and summary(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize("left", [0, 4096, 8192, 16384])
def test_a_disk_that_a_vocabulary_fills(tmp_path, small_disk, left):
    path = write(tmp_path / "a.txt", "".join(f"{chr(0x4E00 + number)}\n" for number in range(3000)) * 2)
    cache_dir = small_disk.folder / "cache"
    corpus = TextFiles(train=str(path), tokenizer=CharTokenizer(), cache_dir=str(cache_dir))
    small_disk.leave(left)
    with pytest.raises(DataError) as caught:
        corpus.prepare_data()
    message = str(caught.value)
    assert (
        message.startswith(f"{cache_dir}/vocabularies: cannot write the cache (")
        and small_disk.said in message
    )
    assert message.endswith("; free some space or set data.cache_dir=") and left_in(cache_dir) == []


def test_no_home_to_cache_in(monkeypatch):
    """A container's user without a name has none."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ValueError) as caught:
        CLUE()
    assert (
        str(caught.value) == "cache_dir=None: there is no home directory; name a folder: data.cache_dir=DIR"
    )


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = write(tmp_path / "a.txt", "一\n二\n" * 9)
    corpus = texts_of(tmp_path, path, val=str(path))(0)
    corpus.cache_dir = tmp_path / "file"
    with pytest.raises(
        DataError, match=r"file/tokens: cannot write the cache .*Not a directory.*data.cache_dir="
    ):
        corpus.prepare_data()


def test_a_cache_that_is_deleted_while_it_is_written(tmp_path):
    def rows():
        yield Row("一")
        [building] = (tmp_path / "cache").iterdir()
        building.rename(tmp_path / "gone")

    with pytest.raises(DataError, match="cache: cannot write the cache .*No such file"):
        open_or_build(tmp_path / "cache/x", rows(), RowEncoder(characters(), 8), "test")


BUILD = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from datamodules.corpus import Row
    from datamodules.encoding import RowEncoder
    from datamodules.store import open_or_build
    from datamodules.tokenizers.char import CharTokenizer

    def rows(marks, others, count):
        for number in range(count):
            if number == min(count // 2, 40_000):
                Path(marks, str(os.getpid())).touch()
                while len(os.listdir(marks)) < others:
                    time.sleep(0.01)
            yield Row("一二三四五六七八九十"[number % 10 :])

    if __name__ == "__main__":
        cache, marks, others, count, processes = sys.argv[1:]
        tokenizer = CharTokenizer(vocab=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一二三四五六七八九十"])
        texts = rows(marks, int(others), int(count))
        store = open_or_build(Path(cache, "key"), texts, RowEncoder(tokenizer, 16), "test", int(processes))
        print(len(store), int(store.tokens.sum()))
    """
)


def start_build(tmp_path: Path, others: int, count: int, processes: int) -> subprocess.Popen:
    """A process that builds the store `cache/key`. Half-way it leaves a mark and waits for the others'."""
    (tmp_path / "build.py").write_text(BUILD, encoding="utf-8")
    (tmp_path / "marks").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, tmp_path / "build.py", tmp_path / "cache", tmp_path / "marks"]
        + [str(option) for option in (others, count, processes)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_two_runs_build_the_same_cache_at_once(tmp_path):
    builds = [start_build(tmp_path, 2, 20_000, 1) for _ in range(2)]
    said = {build.communicate(timeout=120) for build in builds}
    assert (
        [build.returncode for build in builds] == [0, 0]
        and len(said) == 1
        and said.pop()[0].startswith("20000 ")
    )
    assert os.listdir(tmp_path / "cache") == ["key"]


def test_two_threads_build_the_same_vocabulary_at_once(tmp_path):
    path = write(tmp_path / "a.txt", "".join(f"第{number}行\n" for number in range(99)))
    barrier = threading.Barrier(2)

    class Meeting(TextFiles):
        def read(self, split):
            barrier.wait(60)
            return super().read(split)

    corpora = [
        Meeting(train=str(path), val=str(path), tokenizer=WordTokenizer(), cache_dir=str(tmp_path / "cache"))
        for _ in range(2)
    ]
    threads = [threading.Thread(target=corpus.prepare_tokenizer) for corpus in corpora]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert corpora[0].tokenizer.vocab == corpora[1].tokenizer.vocab and corpora[0].tokenizer.built
    [name] = left_in(tmp_path / "cache")
    assert name.startswith("vocabularies/") and not name.startswith("vocabularies/.")


def children(process: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process and state != "Z":
            found.append(int(stat.parent.name))
    return found


def run_on(processes: list[int]) -> list[int]:
    """Those that still run after a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(Path(f"/proc/{process}").exists() for process in processes):
        time.sleep(0.05)
    return [process for process in processes if Path(f"/proc/{process}").exists()]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_while_it_writes(tmp_path, how):
    build = start_build(tmp_path, 1, 10**9, 2)
    while not list((tmp_path / "marks").iterdir()):
        assert build.poll() is None, build.communicate()
        time.sleep(0.05)
    workers = children(build.pid)
    [building] = (tmp_path / "cache").iterdir()
    assert building.name.startswith(".key-") and len(workers) >= 2
    build.send_signal(how)
    _, said = build.communicate(timeout=60)
    assert build.returncode in (-how, 130) and run_on(workers) == []
    if how == signal.SIGINT:
        assert list((tmp_path / "cache").iterdir()) == [] and said.count("KeyboardInterrupt") <= 1
    else:
        assert list((tmp_path / "cache").iterdir()) == [building]
    # The next run takes nothing of it for whole.
    store = open_or_build(tmp_path / "cache/key", [Row("一")], RowEncoder(characters(), 8), "test")
    assert len(store) == 1 and os.listdir(tmp_path / "cache") == ["key"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_ctrl_c_while_the_workers_start(tmp_path):
    """A terminal sends it to all processes, to those that have hardly begun too."""
    build = start_build(tmp_path, 1, 10**9, 2)
    while len(workers := children(build.pid)) < 2:
        assert build.poll() is None, build.communicate()
        time.sleep(0.01)
    os.killpg(build.pid, signal.SIGINT)
    _, said = build.communicate(timeout=60)
    assert build.returncode in (-signal.SIGINT, 130) and run_on(workers) == []
    assert said.count("KeyboardInterrupt") == 1 and list((tmp_path / "cache").iterdir()) == []


def test_what_others_are_writing_stays(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, elsewhere, now = cache._machine(), "0123abcd", time.time()
    week = 8 * 24 * 3600
    directories = {
        f".a-{here}-{ended.pid}-00000000": (now, False),
        f".a-{here}-{os.getpid()}-00000000": (now - week, True),
        f".a-{here}-{os.getppid()}-00000000": (now, True),
        f".a-{elsewhere}-{ended.pid}-00000000": (now, True),
        f".a-{elsewhere}-{ended.pid}-00000001": (now - week, False),
        ".a": (now - week, True),
        "a": (now - week, True),
    }
    for name, (written, _) in directories.items():
        (tmp_path / name).mkdir()
        for path in (tmp_path / name / "tokens", tmp_path / name):
            path.touch()
            os.utime(path, (written, written))
    # What is still written to counts, not when its directory was made.
    (tmp_path / f".b-{elsewhere}-1-00000000").mkdir()
    (tmp_path / f".b-{elsewhere}-1-00000000/tokens").touch()
    os.utime(tmp_path / f".b-{elsewhere}-1-00000000", (now - week, now - week))
    with written_whole(tmp_path / "key"):
        pass
    stay = {name for name, (_, stays) in directories.items() if stays}
    assert set(os.listdir(tmp_path)) == stay | {"key", f".b-{elsewhere}-1-00000000"}


def test_a_worker_that_is_killed(tmp_path):
    class Deadly(str):
        """A text that kills the process that it is sent to."""

        def __reduce__(self):
            return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)

    rows = [Row("一")] * 20_000 + [Row(Deadly("二"))] + [Row("三")] * 20_000
    with pytest.raises(DataError) as caught:
        open_or_build(tmp_path / "cache/key", rows, RowEncoder(characters(), 8), "test", processes=2)
    assert str(caught.value) == (
        "data.num_proc=2: a process that tokenizes was killed, perhaps for want of memory; run again with fewer"
    )
    assert os.listdir(tmp_path / "cache") == []


def test_an_error_in_a_worker_is_raised_here():
    assert list(map_chunks(int, map(str, range(20)), processes=3)) == list(range(20))
    results = map_chunks(int, ["1", "2", "x", "4"], processes=2)
    assert next(results) == 1 and next(results) == 2
    with pytest.raises(ValueError, match="invalid literal for int") as caught:
        next(results)
    assert "in a worker process" in str(caught.value.__cause__)


def test_a_bad_row_ends_the_workers(tmp_path):
    path = write(tmp_path / "a.txt", "一\n" * 20_000 + "\0\n" + "一\n" * 20_000)
    make = texts_of(tmp_path, path, num_proc=2)
    assert refused(make, tmp_path) == allowed(1, "a.txt, line 20001: text: empty text")
    corpus = make(1)
    corpus.prepare_data()
    assert corpus.left_out["train"] == {"bad rows": 1}
    assert multiprocessing.active_children() == []


def garbled(path: Path, content: bytes) -> None:
    path.write_bytes(content)


STORE_DAMAGE = {
    "array cut off": lambda store: garbled(store / "tokens", (store / "tokens").read_bytes()[:-1]),
    "array longer": lambda store: garbled(store / "labels", (store / "labels").read_bytes() * 2),
    "array gone": lambda store: (store / "marks").unlink(),
    "facts gone": lambda store: (store / "facts.json").unlink(),
    "facts cut off": lambda store: garbled(store / "facts.json", (store / "facts.json").read_bytes()[:-9]),
    "facts no object": lambda store: garbled(store / "facts.json", b"[]"),
    "facts without arrays": lambda store: garbled(store / "facts.json", b"{}"),
    "facts of another type": lambda store: garbled(store / "facts.json", b'{"arrays": {"tokens": [1, 2]}}'),
    "facts not UTF-8": lambda store: garbled(store / "facts.json", b"\xff"),
    "facts of other rows": lambda store: edited(store, num_rows=7),
    "facts of other tokens": lambda store: edited(store, num_tokens=7),
    "offsets of zeros": lambda store: offsets(store, lambda values: values * 0),
    "offsets beyond": lambda store: offsets(store, lambda values: values * 2),
    "offsets that fall": lambda store: offsets(store, lambda values: values[[0, 2, 1, 3]]),
    "a file": lambda store: (shutil.rmtree(store), store.write_text("")),
}


def edited(store: Path, **values) -> None:
    facts = json.loads((store / "facts.json").read_text(encoding="utf-8"))
    (store / "facts.json").write_text(json.dumps(facts | values), encoding="utf-8")


def offsets(store: Path, change) -> None:
    change(np.fromfile(store / "offsets", np.int64)).tofile(store / "offsets")


@pytest.mark.parametrize("case", STORE_DAMAGE)
def test_a_store_that_is_damaged(tmp_path, case):
    rows, encode = [Row("一"), Row("二三"), Row("四")], RowEncoder(characters(), 8)
    store = open_or_build(tmp_path / "key", rows, encode, "test").directory
    STORE_DAMAGE[case](store)
    for again in (lambda: TokenStore(store), lambda: open_or_build(store, rows, encode, "test")):
        with pytest.raises(DataError) as caught:
            again()
        message = str(caught.value)
        assert message.startswith(f"the token cache {store} is damaged (") and "\n" not in message
        assert message.endswith("; delete that directory and run again")


VOCABULARY_DAMAGE = {
    "cut off": lambda folder: garbled(folder / "vocab.txt", (folder / "vocab.txt").read_bytes()[:-5]),
    "empty": lambda folder: garbled(folder / "vocab.txt", b""),
    "notes gone": lambda folder: (folder / "kexue_tokenizer.json").unlink(),
    "notes cut off": lambda folder: garbled(folder / "kexue_tokenizer.json", b'{"class": "Wo'),
    "notes empty": lambda folder: garbled(folder / "kexue_tokenizer.json", b"{}"),
    "notes no object": lambda folder: garbled(folder / "kexue_tokenizer.json", b"[]"),
    "not UTF-8": lambda folder: garbled(folder / "vocab.txt", b"\xff\xfe"),
}


@pytest.mark.parametrize("case", VOCABULARY_DAMAGE)
def test_a_vocabulary_cache_that_is_damaged(tmp_path, case):
    path = write(tmp_path / "a.txt", "".join(f"第{number}行\n" for number in range(99)))

    def make(_: int) -> TextFiles:
        return TextFiles(train=str(path), tokenizer=WordTokenizer(), cache_dir=str(tmp_path / "cache"))

    make(0).prepare_tokenizer()
    [folder] = (tmp_path / "cache/vocabularies").iterdir()
    VOCABULARY_DAMAGE[case](folder)
    with pytest.raises(DataError) as caught:
        make(0).prepare_data()
    message = str(caught.value)
    assert message.startswith(f"the vocabulary cache {folder} is damaged (")
    assert message.endswith("; delete that directory and run again")


@pytest.mark.parametrize("content", [b'["a"', b"", b"{}", b"\xff", None])
def test_a_label_cache_that_is_damaged(tmp_path, content):
    make = texts_of(tmp_path, write(tmp_path / "a.csv", "text,label\n一,a\n"), label="label")
    assert make(0).label_names == make(0).label_names == ["a"]
    [folder] = (tmp_path / "cache/labels").iterdir()
    (folder / "labels.json").unlink() if content is None else (folder / "labels.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        make(0).prepare_data()
    message = str(caught.value)
    assert message.startswith(f"the label cache {folder} is damaged (") and "\n" not in message
    assert message.endswith("; delete that directory and run again")


def test_labels_of_a_file_that_changes_are_not_kept(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", "text,label\n一,a\n二,b\n")
    corpus = texts_of(tmp_path, path, label="label")(0)
    only_records = files.only_records

    def changing(*arguments):
        yield from only_records(*arguments)
        change(path, "appended to")

    monkeypatch.setattr("datamodules.text_files.only_records", changing)
    assert refused(lambda _: corpus, tmp_path).startswith("a.csv: changed while it was read")
    assert left_in(tmp_path / "cache") == []


# What a user sees


FINAL = {
    "bad row": ("data=text data.train=a.txt data.val=b.txt",
                "1 bad row, where data.max_bad_rows=0 are allowed:\n  b.txt, line 2: text: empty text\n"
                "Mend the file, or skip that many: data.max_bad_rows=1"),
    "no file": ("data=text data.train=no.txt", "data.train=no.txt: no such file (seen from {here})"),
    "no column": ("data=text data.train=a.csv data.text=content",
                  "a.csv: no column 'content' (it has: 'text', 'label'); name it: data.text=NAME"),
    "cut off": ("data=text data.train=a.txt.gz", "a.txt.gz: the compressed file ends early (cut off?)"),
    "GBK": ("data=text data.train=gbk.txt",
            f"gbk.txt: not one good row; gbk.txt, line 1: not UTF-8 (byte 0xc4 at position 1; {GBK})"),
    "dialogues": ("data=lccc data.train=a.jsonl",
                  "a.jsonl: not one good row; a.jsonl, line 1: no dialogue (an array of texts), str \"二\""),
    "CLUE": ("data=clue data.train=a.jsonl data.val=a.jsonl",
             "a.jsonl: not one good row; a.jsonl, line 1: no JSON object, str \"二\""),
    "too few texts": ("data=text data.train=one.txt",
                      "split=[0.9, 0.1] leaves a split without a row: there are 1 rows with 1 different texts; "
                      "name more files by data.val= and data.test="),
    "nothing twice": ("data=text data.train=one.txt data.val=a.txt",
                      "one.txt: vocab: the texts hold nothing that occurs min_count=2 times"),
}  # fmt: skip


def test_skipped_rows_are_told_and_stand_in_the_summary(tmp_path):
    path = write(tmp_path / "a.txt", "".join(f"第{number}行\n" for number in range(40)) + "\0\n")
    outcome = finished(
        tmp_path / "run", "model=bert", "data=text", f"data.train={path}", f"data.val={path}", "max_steps=1",
        "data.max_bad_rows=1", f"data.cache_dir={tmp_path}/cache", "logger=none", *TINY,
    )  # fmt: skip
    told = f"skipped 1 bad row (data.max_bad_rows=1):\n  {path}, line 41: text: empty text\n"
    assert (outcome.out + outcome.err).count(told) == 1
    facts = summary(tmp_path / "run")["data_facts"]["splits"]
    assert facts["train"]["left_out"] == {"bad rows": 1} and facts["train"]["num_rows"] == 40


@pytest.mark.parametrize("case", FINAL)
def test_one_message_and_exit_code_2(tmp_path, monkeypatch, case):
    options, said = FINAL[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "".join(f"第{number}行\n" for number in range(40)))
    write(tmp_path / "b.txt", "一\n\0\n二\n")
    write(tmp_path / "a.csv", "text,label\n一,二\n")
    write(tmp_path / "a.jsonl", lines('"二"'))
    write(tmp_path / "one.txt", "一\n")
    write(tmp_path / "gbk.txt", "你好\n".encode("gbk"))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(LINES)[:-20])
    outcome = run(
        tmp_path / "run",
        "model=bert",
        f"data.cache_dir={tmp_path}/cache",
        "logger=none",
        *options.split(),
        *TINY,
    )
    assert outcome.code == 2 and outcome.err == said.replace("{here}", str(tmp_path)) + "\n"
    assert summary(tmp_path / "run")["status"] == "failed" and "Traceback" not in outcome.out
