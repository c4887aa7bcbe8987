"""Files that are wrong in every way that was thought of, splits, and fingerprints."""

import gzip
import logging
import random
from collections import Counter

import numpy as np
import pytest

from datamodules.corpus import (
    BadRows,
    DataError,
    Row,
    assign_splits,
    check_split,
    content_key,
    rarest_labels,
    text_problem,
)
from datamodules.files import content_fingerprint, read_jsonl

GOOD = b'{"sentence": "\xe4\xbd\xa0\xe5\xa5\xbd"}\n'


def read(path, max_bad_rows=0):
    bad_rows = BadRows(max_bad_rows)
    rows = list(read_jsonl(path, bad_rows))
    bad_rows.finish()
    return rows


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.rstrip(b"\n"),
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD + b"\n  \n\r\n",
    ],
    ids=["plain", "no final newline", "byte order mark", "CRLF", "blank lines"],
)
def test_one_object_a_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert read(path) == [("line 1", {"sentence": "你好"})]


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"sentence": "一\u2028二\x85三"}\n'.encode() + GOOD)
    assert [place for place, _ in read(path)] == ["line 1", "line 2"]


def test_gzip_by_its_name(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(GOOD * 3))
    assert len(read(path)) == 3


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"not json", "not JSON (Expecting value at character 1)"),
        (b'{"sentence": "a"', "not JSON (Expecting ',' delimiter at character 17)"),
        (b'{"sentence": "a"} {}', "not JSON (Extra data at character 19)"),
        (b'{"sentence": "\x00"}', "not JSON (Invalid control character at at character 15)"),
        (b'{"label": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'["sentence"]', 'no JSON object, list ["sentence"]'),
        (b'"sentence"', 'no JSON object, str "sentence"'),
        (b"null", "no JSON object, NoneType null"),
        (b'{"sentence": "\xc4\xe3\xba\xc3"}', "not UTF-8 (byte 0xc4 at position 15; a GBK file"),
        (b'{"sentence": "\xe4\xbd', "not UTF-8 (byte 0xe4 at position 15"),
    ],
)
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path, caplog, line, reason):
    path = tmp_path / "a.json"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line 2: {reason}" in str(caught.value)
    assert "data.max_bad_rows=1" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert [place for place, _ in read(path, max_bad_rows=1)] == ["line 1", "line 3"]
    assert "skipped 1 bad row" in caplog.text and f"{path}, line 2: {reason}" in caplog.text


def test_the_error_names_the_first_five_and_counts_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(GOOD + b"x\n" * 1200)
    with pytest.raises(DataError) as caught:
        read(path, max_bad_rows=10)
    message = str(caught.value)
    assert message.startswith("1,200 bad rows, where data.max_bad_rows=10 are allowed:")
    assert all(f"line {number}:" in message for number in (2, 3, 4, 5, 6)) and "line 7:" not in message
    assert "and 1,195 more" in message and message.endswith("data.max_bad_rows=1200")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", b"", "the file is empty"),
        ("a.json", b"\n\n \n", "the file is empty"),
        ("a.json.gz", gzip.compress(b""), "the file is empty"),
        ("a.json.gz", gzip.compress(GOOD * 500)[:-12], "the compressed file ends early"),
        ("a.json.gz", GOOD, "not a whole gzip file"),
        ("a.json.gz", gzip.compress(GOOD)[:-8] + b"\0" * 8, "not a whole gzip file"),
        ("a.json.gz", b"", "the file is empty"),
        ("a.json", gzip.compress(GOOD), "gzip-compressed, but its name does not end in .gz"),
        ("a.json", b"PK\x03\x04....", "a zip archive, but its name does not end in .zip"),
        ("a.json", '{"sentence": "a"}'.encode("utf-16"), "UTF-16 text: convert it"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_no_file_at_all(tmp_path):
    with pytest.raises(DataError, match="a directory, where a file is needed"):
        read(tmp_path)
    with pytest.raises(DataError, match="nothing.json: no such file"):
        read(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "value, problem",
    [
        ("你好", None),
        (" a\n", None),
        ("", "empty text"),
        (" \t\u3000\xa0\n", "empty text"),
        ("\u200b\ufeff\0", "empty text"),
        ("a\0b", "a NUL character in the text (character 2)"),
        ("ab\ud83d", "half a surrogate pair in the text (character 3)"),
        (None, "no text but NoneType null"),
        (12, "no text but int 12"),
        (["a"], 'no text but list ["a"]'),
    ],
)
def test_what_can_be_a_text(value, problem):
    assert text_problem(value) == problem


@pytest.mark.parametrize(
    "split",
    [
        [0.8],
        [0.5, 0.2, 0.2, 0.1],
        [0.8, 0.1],
        [0.5, 0.6],
        [1.0, 0.0],
        [80, 20],
        [1.2, -0.2],
        ["0.8", "0.2"],
        "0.8",
        0.8,
        [True, 0.5],
        [float("nan"), 0.5],
    ],
)
def test_fractions_that_make_no_split(split):
    with pytest.raises(ValueError, match=r"^split=.*2 or 3 fractions that sum to 1"):
        check_split(split)


@pytest.mark.parametrize("split", [None, [0.8, 0.1, 0.1], [0.9, 0.1], (1 / 3, 1 / 3, 1 / 3)])
def test_fractions_that_make_one(split):
    check_split(split)


def split_rows(rows: list[Row], fractions: list[float], seed: int) -> list[list[Row]]:
    """The rows of each part, in the order of `rows`."""
    keys = np.array([content_key(row.texts) for row in rows], dtype=np.uint64)
    labels = np.array([-1 if row.label is None else row.label for row in rows])
    parts = assign_splits(keys, labels, fractions, seed)
    return [
        [row for row, chosen in zip(rows, parts, strict=True) if chosen == part]
        for part in range(len(fractions))
    ]


def rows_of_labels(counts: dict[int, int]) -> list[Row]:
    return [
        Row(f"类{label}第{index}条", label=label) for label, size in counts.items() for index in range(size)
    ]


def test_every_label_is_cut_in_the_fractions():
    rows = rows_of_labels({0: 500, 1: 40, 2: 7, 3: 1})
    parts = split_rows(rows, [0.8, 0.1, 0.1], seed=1)
    assert sorted(row for part in parts for row in part) == sorted(rows)
    for label, count in Counter(row.label for row in rows).items():
        for part, fraction in zip(parts, (0.8, 0.1, 0.1), strict=True):
            assert abs(sum(row.label == label for row in part) - fraction * count) <= 1
    assert [row.label for row in parts[0]].count(3) == 1


def test_a_split_keeps_the_order_and_goes_by_seed_and_texts_alone():
    rows = rows_of_labels({0: 60, 1: 30})
    parts = split_rows(rows, [0.5, 0.5], seed=1)
    assert all(part == sorted(part, key=rows.index) for part in parts)
    assert parts == split_rows(rows, [0.5, 0.5], seed=1)
    assert parts != split_rows(rows, [0.5, 0.5], seed=2)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert [set(part) for part in split_rows(shuffled, [0.5, 0.5], seed=1)] == [set(part) for part in parts]


def test_equal_texts_stay_on_one_side():
    rows = [Row(f"文本{index % 50}", label=index % 3) for index in range(600)]
    rows += [Row(("文本1", "另一句"), label=0)]
    parts = split_rows(rows, [0.6, 0.2, 0.2], seed=4)
    texts = [{row.text for row in part} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert sum(map(len, parts)) == len(rows)


def test_unlabelled_rows_are_split_too():
    parts = split_rows([Row(str(index)) for index in range(10)], [0.7, 0.3], seed=0)
    assert [len(part) for part in parts] == [7, 3]


def test_rows_with_several_labels_are_cut_by_their_rarest():
    assert rarest_labels([(0, 1), (0,), (), (1, 2, 0), (0, 2), None]).tolist() == [1, 0, -1, 1, 2, -1]
    assert rarest_labels([2, None, 0]).tolist() == [2, -1, 0]


def test_every_label_of_several_is_cut_in_the_fractions():
    draw = random.Random(0)
    shares = [0.6, 0.3, 0.1, 0.02]
    sets = [tuple(c for c, share in enumerate(shares) if draw.random() < share) for _ in range(2000)]
    keys = np.array([content_key((str(index),)) for index in range(len(sets))], dtype=np.uint64)
    parts = assign_splits(keys, rarest_labels(sets), [0.8, 0.1, 0.1], seed=1)
    for label in range(len(shares)):
        having = np.array([label in one for one in sets])
        for part, fraction in enumerate((0.8, 0.1, 0.1)):
            share = (having & (parts == part)).sum() / having.sum()
            # A cut by chance would miss the rarest, of which a tenth is four rows, by half.
            assert share == pytest.approx(fraction, abs=0.03)


def test_too_few_texts_to_split():
    with pytest.raises(DataError, match="9 rows with 1 different texts"):
        split_rows([Row("同一句", label=index % 2) for index in range(9)], [0.9, 0.1], seed=0)


def test_the_fingerprint_goes_by_content_and_options(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"12")
    b.write_bytes(b"3")
    first = content_fingerprint([a, b], "tnews", 1)
    assert len(first) == 64
    a.rename(tmp_path / "c")
    assert content_fingerprint([tmp_path / "c", b], "tnews", 1) == first
    assert content_fingerprint([tmp_path / "c", b], "tnews", 2) != first
    assert content_fingerprint([b, tmp_path / "c"], "tnews", 1) != first
    a.write_bytes(b"1")
    b.write_bytes(b"23")
    assert content_fingerprint([a, b], "tnews", 1) != first
    with pytest.raises(DataError, match="cannot be read"):
        content_fingerprint([tmp_path / "nothing"])
