"""Texts of one's own: columns, pairs, labels, splits, long texts; and the real corpora by one command each."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from real_data import REAL_DATA, needs_real_data

from datamodules.corpus import DataError, Row
from datamodules.text_files import TextFiles, pieces_of


def write(path: Path, lines: list) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return str(path)


def rows(corpus: TextFiles, split: str = "train") -> list[Row]:
    return list(corpus.read(split))


# Columns


def test_a_text_a_line(tmp_path, caplog):
    path = write(tmp_path / "a.txt", [f"第{number}句。" for number in range(50)])
    with caplog.at_level(logging.INFO):
        corpus = TextFiles(train=path)
    assert "10% of data.train is held out" in caplog.text
    assert len(rows(corpus)) == 45 and len(rows(corpus, "val")) == 5 and rows(corpus, "test") == []
    assert corpus.label_names is None and corpus.provides == {"text"}
    assert corpus.describe()["source"] == path


def test_labelled_rows_of_a_table(tmp_path):
    path = write(tmp_path / "my.csv", ["label,text", *(f"{'好差'[n % 2]},评论{n}" for n in range(40))])
    corpus = TextFiles(train=path, label="label")
    assert corpus.label_names == sorted(["好", "差"]) and corpus.provides == {"text", "label"}
    assert Counter(row.label for row in rows(corpus, "val")) == {
        0: 2,
        1: 2,
    }  # each class cut in the fractions
    first = rows(corpus)[0]
    assert corpus.label_names[first.label] == "好差"[int(first.text[2:]) % 2]


def test_pairs_and_other_names(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"q": f"问{n}", "a": f"答{n}", "same": n % 2} for n in range(4)])
    corpus = TextFiles(train=path, val=path, text="q", text_pair="a", label="same")
    assert rows(corpus) == [Row((f"问{n}", f"答{n}"), n % 2) for n in range(4)]
    assert corpus.label_names == ["0", "1"]


def test_a_table_without_a_header(tmp_path):
    path = write(tmp_path / "a.tsv", ["体育新闻\t1", "财经新闻\t0"])
    classes = write(tmp_path / "class.txt", ["财经", "体育"])
    corpus = TextFiles(train=path, val=path, text=0, label=1, labels=classes)
    assert rows(corpus) == [Row("体育新闻", 1), Row("财经新闻", 0)] and corpus.label_names == ["财经", "体育"]


# Labels


@pytest.mark.parametrize(
    "written, labels, found, indices",
    [
        (["b", "a", "b"], None, ["a", "b"], [1, 0, 1]),
        (["10", "9", "10"], None, ["9", "10"], [1, 0, 1]),
        ([1, 0, 1], None, ["0", "1"], [1, 0, 1]),
        ([1.0, 0.0, 1.0], None, ["0", "1"], [1, 0, 1]),
        ([True, False, True], None, ["False", "True"], [1, 0, 1]),
        (["a", "b", "a"], ["b", "a"], ["b", "a"], [1, 0, 1]),
        ([1, "0", 1], ["坏", "好"], ["坏", "好"], [1, 0, 1]),
        (["好", "0", 1], ["坏", "好"], ["坏", "好"], [1, 0, 1]),
        ([2, 1, 2], ["1", "2"], ["1", "2"], [1, 0, 1]),
        ([1, -1, 0, "-10", 10], None, ["-10", "-1", "0", "1", "10"], [3, 1, 2, 0, 4]),
    ],
)
def test_labels_are_names_or_numbers(tmp_path, written, labels, found, indices):
    path = write(
        tmp_path / "a.jsonl", [{"text": f"文{n}", "label": label} for n, label in enumerate(written)]
    )
    corpus = TextFiles(train=path, val=path, label="label", labels=labels)
    assert corpus.label_names == found and [row.label for row in rows(corpus)] == indices


def test_test_rows_need_no_label_but_others_do(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"text": "一", "label": "x"}, {"text": "二", "label": "y"}])
    bare = write(
        tmp_path / "b.jsonl", [{"text": "三"}, {"text": "四", "label": None}, {"text": "五", "label": "y"}]
    )
    corpus = TextFiles(train=train, val=train, test=bare, label="label")
    assert [row.label for row in rows(corpus, "test")] == [None, None, 1]
    corpus = TextFiles(train=train, val=bare, label="label")
    with pytest.raises(DataError) as caught:
        rows(corpus, "val")
    assert "line 1: no column 'label' (it has: 'text'); name it: data.label=NAME" in str(caught.value)
    assert "line 2: label: no label" in str(caught.value)


@pytest.mark.parametrize("secret", [-1, "-1", -1.0])
def test_minus_one_is_no_label_in_test_rows_where_it_is_no_class(tmp_path, secret):
    train = write(tmp_path / "a.jsonl", [{"text": "一", "label": 0}, {"text": "二", "label": 1}])
    test = write(tmp_path / "b.jsonl", [{"text": "三", "label": secret}, {"text": "四", "label": 1}])
    corpus = TextFiles(train=train, val=train, test=test, label="label")
    assert [row.label for row in rows(corpus, "test")] == [None, 1]
    with pytest.raises(DataError, match="line 1: label: unknown label"):
        rows(TextFiles(train=train, val=test, label="label"), "val")
    signed = write(tmp_path / "c.jsonl", [{"text": "一", "label": -1}, {"text": "二", "label": 1}])
    corpus = TextFiles(train=signed, val=signed, test=test, label="label")
    assert [row.label for row in rows(corpus, "test")] == [0, 1]


def test_a_column_that_holds_no_classes_is_told_at_every_start(tmp_path, caplog):
    path = write(tmp_path / "a.csv", ["text,title,kind", *(f"文{n},题{n // 2},{n % 2}" for n in range(8))])
    options = {"train": path, "val": path, "cache_dir": str(tmp_path / "cache")}
    for label, told in (("kind", False), ("title", False), ("text", True), ("text", True)):
        caplog.clear()
        assert TextFiles(label=label, **options).label_names
        assert (f"data.label={label}: 8 classes in 8 training rows" in caplog.text) == told


def test_names_and_their_numbers_are_kept_apart(tmp_path):
    """Of given names a row may give the number, of found ones not: tokens of the one are not the other's."""
    train = write(tmp_path / "a.jsonl", [{"text": "一", "label": "x"}, {"text": "二", "label": "y"}])
    val = write(tmp_path / "b.jsonl", [{"text": "三", "label": 1}])
    options = {"train": train, "val": val, "label": "label"}
    given, found = TextFiles(labels=["x", "y"], **options), TextFiles(**options)
    assert given.label_names == found.label_names and rows(given, "val") == [Row("三", 1)]
    assert given.fingerprint("val") != found.fingerprint("val")


def test_a_label_that_training_does_not_have(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"text": "一", "label": "x"}, {"text": "二", "label": "y"}])
    val = write(tmp_path / "b.jsonl", [{"text": "三", "label": "z"}, {"text": "四", "label": "x"}])
    corpus = TextFiles(train=train, val=val, label="label")
    with pytest.raises(DataError, match=r'line 1: label: unknown label str "z"; the training files: x, y'):
        rows(corpus, "val")
    tolerant = TextFiles(train=train, val=val, label="label", max_bad_rows=1)
    assert rows(tolerant, "val") == [Row("四", 0)] and tolerant.left_out["val"] == {"bad rows": 1}


# Several labels a row


def tags(corpus: TextFiles, split: str = "train") -> list:
    return [
        None if row.label is None else [corpus.label_names[label] for label in row.label]
        for row in rows(corpus, split)
    ]


@pytest.mark.parametrize(
    "name, lines, options",
    [
        ("a.jsonl", [["军事", "体育"], [], ["财经"]], {}),
        ("a.jsonl", ["体育|军事", "", "财经"], {}),
        ("a.csv", ["体育|军事", "", "财经"], {}),
        ("a.tsv", ["体育 | 军事", "", "财经"], {}),
        ("a.csv", ["体育/军事", "", "财经"], {"label_separator": "/"}),
    ],
)
def test_several_labels_a_row(tmp_path, name, lines, options):
    if name.endswith("jsonl"):
        lines = [{"text": f"文{n}", "label": line} for n, line in enumerate(lines)]
    else:
        mark = "\t" if name.endswith("tsv") else ","
        lines = [f"text{mark}label", *(f"文{n}{mark}{line}" for n, line in enumerate(lines))]
    path = write(tmp_path / name, lines)
    corpus = TextFiles(train=path, val=path, label="label", multi_label=True, **options)
    assert corpus.label_names == sorted(["军事", "体育", "财经"])
    assert tags(corpus) == [["体育", "军事"], [], ["财经"]]
    assert all(list(row.label) == sorted(row.label) for row in rows(corpus))


def test_several_labels_of_a_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"text": ["一", "二", "三"], "label": [[1, 3], [], [2]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    corpus = TextFiles(train=str(path), val=str(path), label="label", multi_label=True)
    assert corpus.label_names == ["1", "2", "3"] and tags(corpus) == [["1", "3"], [], ["2"]]
    named = TextFiles(
        train=str(path), val=str(path), label="label", multi_label=True, labels=["a", "b", "c", "d"]
    )
    assert tags(named) == [["b", "d"], [], ["c"]]


@pytest.mark.parametrize(
    "value, said",
    [
        (None, "label: no list of labels but NoneType null; of a row of no class it is empty"),
        (3, "label: no list of labels but int 3; of a row of no class it is empty"),
        ({"x": 1}, 'label: no list of labels but dict {"x": 1}; of a row of no class it is empty'),
        (["x", None], 'label: an empty label in list ["x", null]'),
        ("x||y", 'label: an empty label in str "x||y"'),
        (["x", ["y"]], 'label: no text but list ["y"]'),
        (["x", "y", "x"], "label: has a label twice: x"),
        ("x|x", "label: has a label twice: x"),
        (["x", "z"], 'label: unknown label str "z"; data.labels: x, y'),
        ([0, "x"], "label: has a label twice: x"),
    ],
)
def test_labels_of_a_row_that_cannot_be_used(tmp_path, value, said):
    lines = [{"text": "一", "label": ["x"]}, {"text": "二", "label": value}, {"text": "三", "label": []}]
    path = write(tmp_path / "a.jsonl", lines)
    options = {"train": path, "val": path, "label": "label", "multi_label": True, "labels": ["x", "y"]}
    with pytest.raises(DataError) as caught:
        rows(TextFiles(**options))
    assert f"a.jsonl, line 2: {said}\n" in str(caught.value)
    assert tags(TextFiles(**options, max_bad_rows=1)) == [["x"], []]


def test_test_rows_need_no_labels_and_empty_ones_are_of_no_class(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"text": "一", "label": ["x"]}, {"text": "二", "label": []}])
    secret = write(tmp_path / "b.csv", ["text", "三"])
    told = write(tmp_path / "c.csv", ["text,label", "三,", "四,x"])
    options = {"train": train, "val": train, "label": "label", "multi_label": True}
    assert tags(TextFiles(test=secret, **options), "test") == [None]
    assert tags(TextFiles(test=told, **options), "test") == [[], ["x"]]


def test_files_without_a_single_label_are_told(tmp_path):
    path = write(tmp_path / "a.csv", ["text,label", "一,", "二,"])
    with pytest.raises(DataError, match="a.csv: not one label; label is empty in every row"):
        TextFiles(train=path, val=path, label="label", multi_label=True).label_names  # noqa: B018


def test_lists_without_multi_label_are_told_how_to_be_read(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "一", "label": ["x"]}, {"text": "二", "label": "y"}])
    with pytest.raises(DataError, match=r"several labels a row are read with data\.multi_label=true"):
        rows(TextFiles(train=path, val=path, label="label"))


def test_how_labels_are_written_is_part_of_the_fingerprint(tmp_path):
    path = write(tmp_path / "a.csv", ["text,label", "一,x|y", "二,y/x"])
    options = {"train": path, "val": path, "label": "label", "cache_dir": str(tmp_path / "cache")}
    corpora = [
        TextFiles(**options),
        TextFiles(multi_label=True, **options),
        TextFiles(multi_label=True, label_separator="/", **options),
    ]
    assert len({tuple(corpus.label_names) for corpus in corpora}) == 3
    assert len({corpus.fingerprint("train") for corpus in corpora}) == 3


def test_a_cut_file_with_several_labels_a_row(tmp_path):
    lines = [{"text": f"文{n}", "label": ["common"] * (n % 2) + ["rare"] * (n % 20 == 0)} for n in range(200)]
    path = write(tmp_path / "a.jsonl", lines)
    corpus = TextFiles(train=path, label="label", multi_label=True, split=[0.8, 0.1, 0.1])
    counts = {
        split: Counter(label for row in tags(corpus, split) for label in row)
        for split in ("train", "val", "test")
    }
    assert counts == {
        "train": {"common": 80, "rare": 8}, "val": {"common": 10, "rare": 1}, "test": {"common": 10, "rare": 1},
    }  # fmt: skip


def test_batches_of_several_labels_a_row(tmp_path):
    path = write(
        tmp_path / "a.jsonl", [{"text": "天地天地", "label": ["x", "y"]}, {"text": "玄黄", "label": []}]
    )
    corpus = TextFiles(
        train=path, val=path, label="label", multi_label=True, labels=["x", "y", "z"], cache_dir=str(tmp_path),
        tokenizer={"_target_": "datamodules.tokenizers.char.CharTokenizer"},
    )  # fmt: skip
    corpus.setup()
    assert corpus.facts["multi_label"] and corpus.facts["class_counts"] == [1, 1, 0]
    assert corpus.stores["val"].batch(np.arange(2)).labels.tolist() == [[True, True, False], [False] * 3]


# Where rows come from


def test_many_files_are_told_by_their_pattern(tmp_path, caplog):
    for number in range(30):
        write(tmp_path / f"{number:02}.txt", ["一", f"第{number}句"])
    pattern = f"{tmp_path}/*.txt"
    corpus = TextFiles(train=pattern, val=write(tmp_path / "val", ["一"]), format="txt")
    about = corpus.describe()
    assert about["source"] == pattern
    assert about["files"]["train"] == [*(f"{tmp_path}/{n:02}.txt" for n in range(10)), "and 20 more"]
    rows(corpus)
    assert f"30 in val ({tmp_path}/val); kept" in caplog.text
    listed = [f"{tmp_path}/{number:02}.txt" for number in range(12)]
    source = TextFiles(train=listed, val=listed[0]).describe()["source"]
    assert source == ", ".join([*listed[:10], "and 2 more"])


def test_what_is_left_out_of_a_cut_file_is_counted_once(tmp_path):
    path = write(tmp_path / "a.txt", ["\0", *(f"第{n}句" for n in range(20))])
    corpus = TextFiles(train=path, split=[0.8, 0.1, 0.1], max_bad_rows=1)
    assert [len(rows(corpus, split)) for split in ("train", "val", "test")] == [16, 2, 2]
    assert corpus.left_out == {"train": {"bad rows": 1}, "val": {}, "test": {}}


def test_a_cut_file_that_changes_is_cut_anew(tmp_path):
    path = Path(write(tmp_path / "a.txt", [f"第{n}句" for n in range(40)]))
    corpus = TextFiles(train=str(path))
    rows(corpus), corpus.fingerprint("train")
    write(path, [f"第{n}行" for n in range(100, 140)])
    corpus.fingerprint("val")
    fresh = TextFiles(train=str(path))
    for split in ("train", "val"):
        assert rows(corpus, split) == rows(fresh, split)
        assert corpus.fingerprint(split) == fresh.fingerprint(split)


# Ids, long texts, overlaps


def test_ids_must_not_repeat(tmp_path):
    path = write(
        tmp_path / "a.jsonl", [{"text": "一", "id": 7}, {"text": "二", "id": 8}, {"text": "三", "id": 7}]
    )
    with pytest.raises(DataError, match="line 3: id 7 stands on line 1 already"):
        rows(TextFiles(train=path, val=path, id="id"))
    assert len(rows(TextFiles(train=path, val=path, id="id", max_bad_rows=1))) == 2
    assert len(rows(TextFiles(train=path, val=path))) == 3


def test_long_texts_are_split_at_the_ends_of_sentences(tmp_path):
    text = "第一句话。第二句话！“第三句？”第四句没有句号而且长"
    path = write(tmp_path / "a.txt", [text, "短。"])
    corpus = TextFiles(train=path, val=path, long_texts="split", max_length=12)
    pieces = [row.text for row in rows(corpus)]
    assert pieces == ["第一句话。第二句话！", "“第三句？”", "第四句没有句号而且长", "短。"]
    assert corpus.fingerprint("train") != TextFiles(train=path, val=path).fingerprint("train")


@pytest.mark.parametrize("longest", [1, 2, 5, 10, 100])
def test_splitting_loses_no_character(longest):
    text = "一二三。四五！……六七八九十，十一十二；\n\n十三" * 5
    pieces = list(pieces_of(text, longest))
    assert "".join(pieces) == text and all(len(piece) <= longest for piece in pieces)


def test_training_texts_that_stand_in_val_are_counted(tmp_path, caplog):
    train = write(tmp_path / "a.txt", ["一", "二", "三", "一"])
    val = write(tmp_path / "b.txt", ["一", "四"])
    with caplog.at_level(logging.WARNING):
        assert len(rows(TextFiles(train=train, val=val))) == 4
    assert f"2 in val ({val}); kept (data.overlap=remove leaves them out)" in caplog.text
    assert [row.text for row in rows(TextFiles(train=train, val=val, overlap="remove"))] == ["二", "三"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": ""}, "train=: name a file"),
        ({"labels": ["a"]}, "labels=['a']: name the column that holds them: data.label=NAME"),
        ({"label": "label", "labels": ["a", "a"]}, "names a class twice"),
        ({"label": 1}, "data.text=text data.label=1: name all columns, or number all of them"),
        ({"multi_label": True}, "multi_label=true: name the column that holds the labels: data.label=NAME"),
        (
            {"label": "label", "label_separator": ","},
            "label_separator=,: is used with data.multi_label=true only",
        ),
        (
            {"label": "label", "multi_label": True, "label_separator": " "},
            "label_separator=' ': must be one or more",
        ),
        ({"format": "xml"}, "format=xml: must be one of txt, json, csv, tsv, parquet"),
        ({"long_texts": "fold"}, "long_texts=fold: must be one of cut, split"),
        ({"label": "label", "long_texts": "split"}, "long_texts=split: is for plain texts"),
        ({"train": "b.data"}, "b.data: its name does not tell its format"),
        ({"val": "no.txt"}, "data.val=no.txt: no such file"),
        ({"split": [0.9, 0.1], "val": "a.txt"}, "cuts val rows out of data.train; leave out data.val="),
    ],
)
def test_options_are_refused_at_construction(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", ["一"])
    write(tmp_path / "b.data", ["一"])
    with pytest.raises(ValueError) as caught:
        TextFiles(**{"train": "a.txt", **options})
    assert message in str(caught.value)


# Real corpora: the options are those of docs/data.md


REAL = {
    "thucnews": (
        {"train": "thucnews/dev.txt", "format": "tsv", "text": 0, "label": 1, "labels": "thucnews/class.txt"},
        (9000, 1000, 0), 10, {},
    ),
    "chnsenticorp": (
        {"train": "chnsenticorp/chnsenticorp.zip/train.tsv", "val": "chnsenticorp/chnsenticorp.zip/dev.tsv",
         "test": "chnsenticorp/chnsenticorp.zip/test.tsv", "text": "text_a", "label": "label"},
        (9600, 1200, 1200), 2, {},
    ),
    "online_shopping": (
        {"train": "online_shopping_10_cats/online_shopping_10_cats.zip", "text": "review", "label": "cat",
         "max_bad_rows": 1},
        (56498, 6275, 0), 10, {"bad rows": 1},
    ),
    "eprstmt": (
        {"train": "eprstmt/train_few_all.json", "val": "eprstmt/dev_few_all.json",
         "test": "eprstmt/test_public.json", "text": "sentence", "label": "label"},
        (160, 160, 610), 2, {},
    ),
    "niutrans_modern": ({"train": "pretrain/niutrans_modern/*.txt.gz"}, (136129, 15125, 0), None, {}),
    "chid": (
        {"train": "pretrain/chid/unlabeled.json.gz", "text": "content", "long_texts": "split"},
        (7356, 817, 0), None, {},
    ),
}  # fmt: skip


@needs_real_data
@pytest.mark.parametrize("name", REAL)
def test_real_corpora(name):
    options, sizes, classes, left_out = REAL[name]
    options = {
        key: f"{REAL_DATA}/{value}" if isinstance(value, str) and "/" in value else value
        for key, value in options.items()
    }
    if not list(Path(REAL_DATA).glob(REAL[name][0]["train"].split(".zip")[0] + "*")):
        pytest.skip(f"REAL_DATA has no {name}")
    corpus = TextFiles(**options)
    splits = {split: rows(corpus, split) for split in ("train", "val", "test")}
    assert tuple(map(len, splits.values())) == sizes
    assert corpus.left_out["train"] == left_out
    if classes is None:
        assert corpus.label_names is None
    else:
        assert len(corpus.label_names) == classes
        assert {row.label for row in splits["val"]} == set(range(classes))
