"""Files of every kind give the same rows, and options that name files find them."""

import csv
import gzip
import json
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from datamodules.corpus import BadRows, DataError
from datamodules.files import content_fingerprint, find_files, read_values

RECORDS = [
    {"text": "你好，世界", "label": "a"},
    {"text": '他说"好"', "label": "b"},
    {"text": "一行\u2028两行", "label": "a"},
]


def jsonl(records: list) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def read(path: Path, format: str | None = None, header: bool = True) -> list:
    bad_rows = BadRows(0)
    values = [value for _, value in read_values(path, bad_rows, format, header)]
    bad_rows.finish()
    return values


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """RECORDS in each form."""
    contents = {
        "a.jsonl": jsonl(RECORDS),
        "b.json": jsonl(RECORDS),
        "array.json": json.dumps(RECORDS, ensure_ascii=False).encode(),
        "indented.json": b"\xef\xbb\xbf" + json.dumps(RECORDS, ensure_ascii=False, indent=2).encode(),
        "c.tsv": "".join(
            f"{r['text']}\t{r['label']}\n" for r in [dict(text="text", label="label"), *RECORDS]
        ).encode(),
        "d.JSONL.gz": gzip.compress(jsonl(RECORDS)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with open(tmp_path / "e.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["text", "label"])
        table.writeheader()
        table.writerows(RECORDS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "f.parquet")
    with zipfile.ZipFile(tmp_path / "g.zip", "w") as archive:
        for name in ("a.jsonl", "e.csv", "f.parquet", "d.JSONL.gz"):
            archive.write(tmp_path / name, f"inside/{name}")
    paths = {path.name: path for path in tmp_path.iterdir() if path.suffix != ".zip"}
    return paths | {
        f"zip {name}": tmp_path / "g.zip" / "inside" / name
        for name in ("a.jsonl", "e.csv", "f.parquet", "d.JSONL.gz")
    }


FORMS = ["a.jsonl", "b.json", "array.json", "indented.json", "c.tsv", "d.JSONL.gz", "e.csv", "f.parquet"]
FORMS += ["zip a.jsonl", "zip e.csv", "zip f.parquet", "zip d.JSONL.gz"]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(files, name):
    assert read(files[name]) == RECORDS


def test_a_table_without_a_header_is_read_by_number(tmp_path):
    (tmp_path / "a.tsv").write_text("你好\t1\n再见\t0\n", encoding="utf-8")
    assert read(tmp_path / "a.tsv", header=False) == [{0: "你好", 1: "1"}, {0: "再见", 1: "0"}]


def test_the_format_can_be_named(tmp_path):
    (tmp_path / "a.txt").write_text("text\tlabel\n你好\t1\n", encoding="utf-8")
    assert read(tmp_path / "a.txt") == ["text\tlabel", "你好\t1"]
    assert read(tmp_path / "a.txt", "tsv") == [{"text": "你好", "label": "1"}]
    (tmp_path / "a.data").write_text("你好\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"a\.data: its name does not tell its format; name it: data\.format="
    ):
        read(tmp_path / "a.data")
    assert read(tmp_path / "a.data", "txt") == ["你好"]


def test_a_text_in_quotation_marks_may_hold_lines_and_commas(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"一，\n\n二, 三",x\n四,y\n', encoding="utf-8")
    assert read(tmp_path / "a.csv") == [
        {"text": "一，\n\n二, 三", "label": "x"},
        {"text": "四", "label": "y"},
    ]


def test_bare_arrays_of_texts_are_a_row_each_line(tmp_path):
    (tmp_path / "a.json").write_text('["你好", "再见"]\n["嗯", "好"]\n', encoding="utf-8")
    assert read(tmp_path / "a.json") == [["你好", "再见"], ["嗯", "好"]]
    (tmp_path / "b.json").write_text('[["你好", "再见"], ["嗯", "好"]]', encoding="utf-8")
    assert read(tmp_path / "b.json") == read(tmp_path / "a.json")
    (tmp_path / "c.json").write_text('[\n  ["你好",\n "再见"],\n["嗯", "好"]\n]\n', encoding="utf-8")
    assert read(tmp_path / "c.json") == read(tmp_path / "a.json")


def test_places_are_lines_or_rows(files):
    def places(name):
        return [place for place, _ in read_values(files[name], BadRows(0))]

    assert places("a.jsonl") == ["line 1", "line 2", "line 3"]
    assert places("e.csv") == ["line 2", "line 3", "line 4"]
    assert places("array.json") == places("f.parquet") == ["row 1", "row 2", "row 3"]


# Options that name files


def names(option: str | list[str], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_files("data.train", option)]


def test_paths_globs_and_members(files, tmp_path, monkeypatch):
    assert names(f"{tmp_path}/a.jsonl", tmp_path) == ["a.jsonl"]
    assert names(f"{tmp_path}/*.json", tmp_path) == ["array.json", "b.json", "indented.json"]
    assert names([f"{tmp_path}/e.csv", f"{tmp_path}/a.*"], tmp_path) == ["e.csv", "a.jsonl"]
    assert names(f"{tmp_path}/g.zip/inside/*.csv", tmp_path) == ["g.zip/inside/e.csv"]
    monkeypatch.chdir(tmp_path)
    assert find_files("data.train", "g.zip/inside/a.jsonl") == [Path("g.zip/inside/a.jsonl")]


def test_an_archive_of_one_file_needs_no_member(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.write(files["e.csv"], "reviews/all.csv")
        archive.writestr("__MACOSX/reviews/._all.csv", b"")
    [path] = find_files("data.train", str(tmp_path / "one.zip"))
    assert path == tmp_path / "one.zip/reviews/all.csv" and read(path) == RECORDS


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("g.zip", "holds several files; name one as g.zip/NAME (it has: inside/a.jsonl, inside/e.csv, "),
        ("g.zip/b.csv", "no such member; name one as g.zip/NAME (it has: inside/a.jsonl, "),
        ("*.txt", "matches no file (seen from "),
        ("no.txt", "no such file (seen from "),
        (".", "a directory; name its files, e.g. './*.jsonl'"),
    ],
)
def test_a_name_that_stands_for_no_file(files, tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        find_files("data.train", pattern)
    assert str(caught.value).startswith(f"data.train={pattern}: {message}")


def test_members_of_an_archive_have_fingerprints_of_their_own(files, tmp_path):
    a, e = tmp_path / "g.zip/inside/a.jsonl", tmp_path / "g.zip/inside/e.csv"
    assert content_fingerprint([a]) != content_fingerprint([e])
    assert content_fingerprint([a]) == content_fingerprint([a])
    assert content_fingerprint([a, e]) != content_fingerprint([e, a])
