"""CLUE's files in the layouts in which people have them, and rows that are wrong."""

import gzip
import json
import logging
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from real_data import needs_real_data, real

from datamodules.clue import CLUE, TASKS, check_submission, submission_line
from datamodules.corpus import DataError, Row

TNEWS = list(TASKS["tnews"].ids)
REINDEXED = [{"label": str(index), "label_des": name} for index, name in enumerate(["教育", "财经", "房产"])]


def write(path: Path, rows: list) -> Path:
    """One JSON object a line; a string or bytes are a line as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def labelled(*labels) -> list[dict]:
    return [{"label": label, "sentence": f"第{index}条新闻"} for index, label in enumerate(labels)]


def labels_read(corpus: CLUE, split="train") -> list[int | None]:
    return [row.label for row in corpus.read(split)]


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder as CLUE unpacks to: two tasks, the test splits without labels."""
    write(tmp_path / "tnews/train.json", labelled("100", "116", "106"))
    write(tmp_path / "tnews/dev.json", labelled("101", "102"))
    write(tmp_path / "tnews/test.json", [{"id": 0, "sentence": "没有标签"}])
    write(
        tmp_path / "iflytek/train.json",
        [
            {"label": 0, "label_des": "打车", "sentence": "叫车"},
            {"label": 118, "label_des": "其他", "sentence": "杂项"},
        ],
    )
    write(tmp_path / "iflytek/dev.json", [{"label": "7", "label_des": "家政", "sentence": "保洁"}])
    return tmp_path


# Where rows come from


def test_the_sample_is_the_default_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        corpus = CLUE()
    assert "NOT A REAL CORPUS" in caplog.text and "data.source=/path/to/clue" in caplog.text
    assert [sum(1 for _ in corpus.read(split)) for split in ("train", "val", "test")] == [4000, 500, 500]
    assert corpus.label_names == list(TASKS["tnews"].names)
    assert set(labels_read(corpus)) == set(range(15))
    facts = corpus.describe()
    assert facts["source"] == "sample" and facts["synthetic"] is True
    assert "data.source=/path/to/clue" in facts["note"]


def test_a_folder_of_tasks(root, caplog):
    corpus = CLUE(source=str(root))
    assert list(corpus.read("train")) == [
        Row("第0条新闻", label=0), Row("第1条新闻", label=14), Row("第2条新闻", label=5)
    ]  # fmt: skip
    assert labels_read(corpus, "val") == [1, 2]
    assert list(corpus.read("test")) == [Row("没有标签")]
    facts = corpus.describe()
    assert facts["source"] == str(root) and facts["task"] == "tnews" and facts["synthetic"] is False
    assert "SAMPLE" not in caplog.text


def test_the_folder_of_one_task(root):
    assert labels_read(CLUE(source=str(root / "tnews"))) == [0, 14, 5]


def test_zipped_files_in_a_folder(root):
    for path in (root / "tnews").iterdir():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert labels_read(CLUE(source=str(root))) == [0, 14, 5]


def test_the_test_split_may_be_missing(root):
    (root / "tnews/test.json").unlink()
    corpus = CLUE(source=str(root))
    assert list(corpus.read("test")) == [] and corpus.fingerprint("test")


def test_a_named_file_replaces_the_folders(root, tmp_path):
    file = write(tmp_path / "mine.json", labelled("103"))
    corpus = CLUE(source=str(root), train=str(file))
    assert labels_read(corpus) == [3] and labels_read(corpus, "val") == [1, 2]


def test_files_stand_alone_without_a_folder(tmp_path, caplog):
    file = str(write(tmp_path / "mine.json", labelled("103")))
    corpus = CLUE(train=file, val=file)
    assert labels_read(corpus) == [3] and list(corpus.read("test")) == []
    assert corpus.describe()["source"] == file and corpus.describe()["synthetic"] is False
    assert "SAMPLE" not in caplog.text


def test_one_file_is_cut(tmp_path):
    file = str(write(tmp_path / "all.json", [*labelled(*TNEWS * 20), *labelled(*TNEWS)]))
    corpus = CLUE(train=file, split=[0.8, 0.1, 0.1], seed=3)
    parts = {split: list(corpus.read(split)) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 315 and abs(len(parts["train"]) - 0.8 * 315) <= 15
    assert not {row.text for row in parts["train"]} & {row.text for row in parts["val"] + parts["test"]}
    other = CLUE(train=file, split=[0.8, 0.1, 0.1], seed=4)
    assert list(other.read("val")) != parts["val"] and other.fingerprint("val") != corpus.fingerprint("val")


def test_two_fractions_leave_the_test_split_to_a_file(tmp_path):
    file = str(write(tmp_path / "all.json", labelled(*TNEWS * 10)))
    assert list(CLUE(train=file, split=[0.9, 0.1]).read("test")) == []
    held_out = str(write(tmp_path / "test.json", labelled(-1)))
    corpus = CLUE(train=file, split=[0.9, 0.1], test=held_out)
    assert labels_read(corpus, "test") == [None] and len(labels_read(corpus, "val")) == 15


# How labels are read


@pytest.mark.parametrize(
    "labels, indices",
    [
        (["100", "104", "106", "116"], [0, 4, 5, 14]),
        ([100, 104, 106, 116], [0, 4, 5, 14]),
        ([0, 4, 5, 14], [0, 4, 5, 14]),
        (["100", 116], [0, 14]),
    ],
    ids=["official strings", "official numbers", "numbers from 0", "both types"],
)
def test_label_schemes_of_tnews(root, labels, indices):
    write(root / "tnews/train.json", labelled(*labels))
    corpus = CLUE(source=str(root))
    assert labels_read(corpus) == indices
    assert corpus.label_names[5] == "news_house"


def test_iflytek(root):
    corpus = CLUE(task="iflytek", source=str(root))
    assert labels_read(corpus) == [0, 118] and labels_read(corpus, "val") == [7]
    assert len(corpus.label_names) == 119
    # Without a labels.json the training rows tell the names; what they do not have keeps its id.
    assert (
        corpus.label_names[0] == "打车" and corpus.label_names[7] == "7" and corpus.label_names[118] == "其他"
    )
    named = [{"label": "7", "label_des": "家政"}, {"label": "0", "label_des": "打车"}]
    write(root / "iflytek/labels.json", named)
    corpus = CLUE(task="iflytek", source=str(root))
    assert len(corpus.label_names) == 119 and corpus.label_names[7] == "家政" and corpus.label_names[8] == "8"


PAIR = {"sentence1": "借款能提前还吗", "sentence2": "可以提前还款吗"}
CSL = {"id": 1, "abst": "本文研究短期电力负荷预测。", "keyword": ["电力", "负荷预测"], "label": "1"}


@pytest.mark.parametrize("labels, indices", [(["0", "1"], [0, 1]), ([1, 0], [1, 0])])
def test_afqmc(tmp_path, labels, indices):
    rows = [{**PAIR, "label": label} for label in labels]
    write(tmp_path / "afqmc/train.json", rows)
    write(tmp_path / "afqmc/dev.json", rows)
    write(tmp_path / "afqmc/test.json", [{"id": 0, **PAIR}])
    corpus = CLUE(task="afqmc", source=str(tmp_path))
    assert list(corpus.read("train")) == [Row(tuple(PAIR.values()), label) for label in indices]
    assert list(corpus.read("test")) == [Row(tuple(PAIR.values()))]
    assert corpus.label_names == ["different", "same"]


@pytest.mark.parametrize("task", ["cmnli", "ocnli"])
@pytest.mark.parametrize("name", ["train.json", "train.50k.json"])
def test_inference_drops_and_counts_rows_without_agreement(tmp_path, task, name):
    write(
        tmp_path / name,
        [{**PAIR, "label": label} for label in ("entailment", "-", "neutral", "contradiction")],
    )
    write(tmp_path / "dev.json", [{**PAIR, "label": label} for label in (2, -1)])
    write(tmp_path / "test.json", [{**PAIR, "label": "-"}])
    corpus = CLUE(task=task, source=str(tmp_path))
    assert labels_read(corpus) == [1, 0, 2] and labels_read(corpus, "val") == [2]
    assert corpus.left_out["train"] == corpus.left_out["val"] == {"no agreement on the label": 1}
    assert labels_read(corpus, "test") == [None] and corpus.left_out["test"] == {}
    assert corpus.label_names == ["neutral", "entailment", "contradiction"]


def test_csl_is_an_abstract_and_its_keywords(tmp_path):
    write(tmp_path / "csl/train.json", [CSL, {**CSL, "id": 2, "label": "0"}])
    write(tmp_path / "csl/dev.json", [{**CSL, "keyword": "电力"}])
    corpus = CLUE(task="csl", source=str(tmp_path))
    assert list(corpus.read("train"))[0] == Row(("本文研究短期电力负荷预测。", "电力；负荷预测"), 1)
    assert list(corpus.read("val")) == [Row(("本文研究短期电力负荷预测。", "电力"), 1)]


@pytest.mark.parametrize(
    "task, row, reason",
    [
        ("afqmc", {"sentence1": "问", "label": "0"}, "no key 'sentence2' (it has: 'sentence1', 'label')"),
        ("afqmc", {**PAIR, "sentence2": "", "label": "0"}, "sentence2: empty text"),
        ("afqmc", {**PAIR, "label": "2"}, 'unknown label "2" (afqmc has 2, from 0 to 1)'),
        ("ocnli", {**PAIR, "label": "0"}, 'unknown label "0": only a labels.json'),
        ("csl", {**CSL, "keyword": []}, "keyword: empty text"),
        ("csl", {**CSL, "keyword": ["a", None]}, 'keyword: no text but list ["a", null]'),
        ("csl", {**CSL, "id": 7}, "id 7 stands on line 1 already"),
    ],
)
def test_a_bad_row_of_the_other_tasks(tmp_path, task, row, reason):
    good = {"afqmc": {**PAIR, "label": "0"}, "ocnli": {**PAIR, "label": "neutral"}, "csl": {**CSL, "id": 7}}[
        task
    ]
    write(tmp_path / "train.json", [good, row])
    write(tmp_path / "dev.json", [good])
    with pytest.raises(DataError) as caught:
        list(CLUE(task=task, source=str(tmp_path)).read("train"))
    assert f"train.json, line 2: {reason}" in str(caught.value)


def test_the_hubs_files_in_a_folder(tmp_path):
    rows = [{"sentence": f"第{n}条新闻", "label": n % 15, "idx": n} for n in range(40)]
    parts = {
        "train-00000-of-00002": rows[:20],
        "train-00001-of-00002": rows[20:],
        "validation-00000-of-00001": rows[:5],
        "test-00000-of-00001": [{**rows[0], "label": -1}],
    }
    (tmp_path / "tnews").mkdir()
    for name, part in parts.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / "tnews" / f"{name}.parquet")
    corpus = CLUE(source=str(tmp_path))
    assert labels_read(corpus) == [n % 15 for n in range(40)] and labels_read(corpus, "test") == [None]
    assert corpus.label_names[3] == "news_sports"


def test_a_labels_file_with_official_ids_changes_nothing(root):
    write(root / "tnews/labels.json", [{"label": id_, "label_desc": "x"} for id_ in TNEWS])
    corpus = CLUE(source=str(root))
    assert labels_read(corpus) == [0, 14, 5] and corpus.label_names == list(TASKS["tnews"].names)


def test_a_labels_file_with_other_ids_rules(root):
    write(root / "tnews/labels.json", [REINDEXED[2], REINDEXED[0], REINDEXED[1]])
    write(root / "tnews/train.json", labelled("2", 0, "1"))
    write(root / "tnews/dev.json", labelled("1"))
    corpus = CLUE(source=str(root))
    assert corpus.label_names == ["教育", "财经", "房产"]
    assert labels_read(corpus) == [2, 0, 1] and labels_read(corpus, "val") == [1]
    write(root / "tnews/dev.json", labelled("100"))
    with pytest.raises(DataError, match='unknown label "100" .tnews has 3, from 0 to 2'):
        labels_read(CLUE(source=str(root)), "val")


def test_splits_that_number_their_labels_in_two_ways(root, tmp_path):
    write(tmp_path / "other/labels.json", REINDEXED)
    file = write(tmp_path / "other/train.json", labelled("2"))
    with pytest.raises(DataError, match="number their labels in two ways"):
        CLUE(source=str(root), train=str(file)).label_names  # noqa: B018


def test_a_damaged_labels_file(root):
    write(root / "tnews/labels.json", [{"label": "news_story"}, {"name": "x"}])
    with pytest.raises(DataError, match=r"labels.json, line 1: the label 'news_story' is no whole number"):
        CLUE(source=str(root)).label_names  # noqa: B018


@pytest.mark.parametrize("record", [{"label": -1}, {"label": "-1"}, {"label": None}, {"label": ""}, {}])
def test_test_rows_need_no_label_but_others_do(root, record):
    write(root / "tnews/test.json", [{"sentence": "新闻", **record}])
    write(root / "tnews/dev.json", [{"sentence": "新闻", **record}])
    corpus = CLUE(source=str(root))
    assert list(corpus.read("test")) == [Row("新闻")]
    with pytest.raises(DataError, match="dev.json, line 1: "):
        list(corpus.read("val"))


# Rows that are wrong


@pytest.mark.parametrize(
    "row, reason",
    [
        ("{", "not JSON"),
        ("[1]", "no JSON object"),
        ({"label": "100"}, "no key 'sentence' (it has: 'label')"),
        ({"sentence": "新闻"}, "no key 'label' (it has: 'sentence')"),
        ({}, "no key 'sentence' (it has: none)"),
        ({"label": "100", "sentence": ""}, "empty text"),
        ({"label": "100", "sentence": " \u3000 "}, "empty text"),
        ({"label": "100", "sentence": None}, "no text but NoneType null"),
        ({"label": "100", "sentence": ["新闻"]}, 'no text but list ["新闻"]'),
        ({"label": "100", "sentence": "a\0b"}, "a NUL character in the text (character 2)"),
        ('{"label": "100", "sentence": "a\\ud83d"}', "half a surrogate pair"),
        ({"label": "105", "sentence": "新闻"}, 'unknown label "105" (tnews has 15, from 100 to 116)'),
        ({"label": 111, "sentence": "新闻"}, "unknown label 111 (tnews"),
        ({"label": "3", "sentence": "新闻"}, 'unknown label "3": only a labels.json beside the file can say'),
        ({"label": 15, "sentence": "新闻"}, "unknown label 15 (tnews"),
        ({"label": -1, "sentence": "新闻"}, "unknown label -1 (tnews"),
        ({"label": None, "sentence": "新闻"}, "unknown label null"),
        ({"label": True, "sentence": "新闻"}, "unknown label true"),
        ({"label": 100.0, "sentence": "新闻"}, "unknown label 100.0"),
        ({"label": ["100"], "sentence": "新闻"}, 'unknown label ["100"]'),
        ({"label": "news_story", "sentence": "新闻"}, 'unknown label "news_story"'),
        ({"label": 3, "sentence": "新闻"}, "label 3 is of another numbering than the labels before it"),
        (
            {"label": "103", "sentence": "新闻", "label_desc": "news_tech"},
            "label '103' is news_sports, but 'label_desc' says news_tech",
        ),
    ],
)
def test_a_bad_row_is_named_and_can_be_skipped(root, row, reason):
    path = write(root / "tnews/train.json", [*labelled("100"), row, *labelled("101")])
    corpus = CLUE(source=str(root))
    with pytest.raises(DataError) as caught:
        list(corpus.read("train"))
    assert f"{path}, line 2: {reason}" in str(caught.value)
    assert "data.max_bad_rows=1" in str(caught.value)
    tolerant = CLUE(source=str(root), max_bad_rows=1)
    assert labels_read(tolerant) == [0, 1]
    assert tolerant.fingerprint("train") != corpus.fingerprint("train")


def test_numbers_from_0_in_another_order_are_found_out(root):
    write(root / "tnews/train.json", [{"label": 0, "sentence": "开学了", "label_desc": "news_edu"}])
    with pytest.raises(DataError, match="label 0 is news_story, but 'label_desc' says news_edu"):
        labels_read(CLUE(source=str(root)))


def test_no_good_row_at_all(root):
    write(root / "tnews/train.json", ["x", "y"])
    with pytest.raises(DataError, match="train.json: not one good row"):
        labels_read(CLUE(source=str(root), max_bad_rows=5))


# Options that are wrong


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "cluewsc"}, "task=cluewsc: must be one of tnews, iflytek"),
        ({"task": "iflytek"}, "task=iflytek: the embedded samples are tnews and afqmc; give the real corpus: "
                              "data.task=iflytek data.source=/path/to/clue"),
        ({"max_bad_rows": -1}, "max_bad_rows=-1: must be a whole number"),
        ({"max_bad_rows": True}, "max_bad_rows=True: must be a whole number"),
        ({"max_bad_rows": 0.1}, "max_bad_rows=0.1: must be a whole number"),
        ({"split": [0.8, 0.1, 0.1]}, "split=[0.8, 0.1, 0.1]: cuts one file; name it: data.train=FILE"),
        ({"split": [0.8, 0.1], "train": "a"}, "split=[0.8, 0.1]: must be 2 or 3 fractions"),
        ({"split": [0.8, 0.2], "train": "a", "val": "b"}, "cuts val rows out of data.train"),
        ({"split": [0.8, 0.1, 0.1], "train": "a", "test": "b"}, "cuts test rows out of data.train"),
        ({"split": [0.8, 0.2], "train": "a", "source": "b"}, "cuts data.train alone; leave out data.source"),
        ({"train": "a"}, "train=a: files stand alone, the sample is not mixed into them; "
                         "add data.val=FILE or data.split="),
        ({"val": "a"}, "val=a: files stand alone, the sample is not mixed into them; add data.train=FILE"),
        ({"test": "a"}, "test=a: files stand alone"),
        ({"train": "no.json", "val": "no.json"}, "train=no.json: no such file (seen from "),
        ({"train": ".", "val": "."}, "train=.: a directory; name its files"),
        ({"source": "no/such"}, "source=no/such: no such folder"),
        ({"source": ""}, "source=: must be `sample`, `hub`, or the folder that holds tnews/train.json"),
    ],
)  # fmt: skip
def test_options_are_refused_at_construction(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        CLUE(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name, option", [("train.json", "train"), ("dev.json", "val")])
def test_a_folder_without_a_split_names_the_file_and_the_ways_out(root, name, option):
    (root / "tnews" / name).unlink()
    with pytest.raises(DataError) as caught:
        CLUE(source=str(root))
    message = str(caught.value)
    assert str(root / "tnews" / name) in message and str(root / name) in message
    assert f"data.{option}=FILE" in message and "data.split=[0.8,0.1,0.1]" in message


def test_a_file_where_a_folder_is_needed(root):
    with pytest.raises(DataError, match="a file; name files by data.train= and data.val="):
        CLUE(source=str(root / "tnews/train.json"))


def test_nothing_is_read_before_it_is_asked_for(root):
    write(root / "tnews/train.json", ["x"])
    corpus = CLUE(source=str(root))
    corpus.read("train")
    assert corpus.fingerprint("train")


def test_fingerprints_follow_the_content(root):
    corpus = CLUE(source=str(root))
    first = {split: corpus.fingerprint(split) for split in ("train", "val", "test")}
    assert len(set(first.values())) == 3
    assert first["train"] == CLUE(source=str(root / "tnews")).fingerprint("train")
    write(root / "tnews/train.json", labelled("100"))
    assert corpus.fingerprint("train") != first["train"] and corpus.fingerprint("val") == first["val"]
    write(root / "tnews/labels.json", REINDEXED)
    assert corpus.fingerprint("val") != first["val"]


def test_a_file_beside_the_training_files_changes_nothing_of_them(root, tmp_path):
    first = CLUE(source=str(root)).fingerprint("train")
    test = write(tmp_path / "mine.json", [{"sentence": "没有标签"}])
    assert CLUE(source=str(root), test=str(test)).fingerprint("train") == first
    (root / "tnews/test.json").unlink()
    assert CLUE(source=str(root)).fingerprint("train") == first


def test_every_folders_labels_file_counts(root, tmp_path):
    """Not only that of a split's first file."""
    named = [{"label": "7", "label_des": "家政"}]
    other = write(tmp_path / "other/more.json", [{"label": "7", "sentence": "保洁"}])
    train = [str(root / "iflytek/train.json"), str(other)]

    corpus = CLUE(task="iflytek", source=str(root), train=train)
    first = corpus.fingerprint("train")
    write(tmp_path / "other/labels.json", named)
    assert corpus.fingerprint("train") != first


# Files of predictions for CLUE's site

CHARACTERS = {"_target_": "datamodules.tokenizers.char.CharTokenizer", "min_count": 1}


@pytest.mark.parametrize("task, ids", [("tnews", TNEWS), ("iflytek", [str(index) for index in range(119)])])
def test_facts_name_the_task_and_its_official_labels(root, task, ids):
    corpus = CLUE(task=task, source=str(root), cache_dir=str(root / "cache"), tokenizer=CHARACTERS)
    corpus.setup()
    facts = corpus.facts
    assert json.loads(json.dumps(facts)) == facts
    assert facts["clue_task"] == task and facts["label_ids"] == ids
    assert len(facts["label_names"]) == len(ids) and facts["multi_label"] is False


def test_other_numbers_of_labels_are_no_official_ones(tmp_path):
    for name in ("train", "dev"):
        write(tmp_path / f"tnews/{name}.json", labelled("0", "1", "2"))
    write(tmp_path / "tnews/labels.json", REINDEXED)
    corpus = CLUE(source=str(tmp_path), cache_dir=str(tmp_path / "cache"), tokenizer=CHARACTERS)
    corpus.setup()
    assert corpus.facts["label_ids"] is None
    with pytest.raises(
        DataError, match="numbers tnews's labels in its own way; train on the files that CLUE"
    ):
        check_submission(corpus.facts, [0], "test.json")


def facts_of(task: str) -> dict:
    ids = list(TASKS[task].ids)
    return {"clue_task": task, "label_ids": ids, "label_names": list(TASKS[task].names or ids)}


@pytest.mark.parametrize(
    "task, row_id, label, line",
    [
        ("tnews", 0, "news_entertainment", '{"id": 0, "label": "102"}'),
        ("tnews", 9999, "news_game", '{"id": 9999, "label": "116"}'),
        ("iflytek", 5, "118", '{"id": 5, "label": "118"}'),
        ("afqmc", "7", "same", '{"id": 7, "label": "1"}'),
        ("cmnli", 1, "neutral", '{"id": 1, "label": "neutral"}'),
        ("ocnli", 2953, "entailment", '{"id": 2953, "label": "entailment"}'),
        ("csl", 2415, "wrong keywords", '{"id": 2415, "label": "0"}'),
    ],
)
def test_a_line_has_the_official_layout(task, row_id, label, line):
    assert json.dumps(submission_line(row_id, label, facts_of(task))) == line


@pytest.mark.parametrize("task, ids", [("tnews", [0, 1, 2]), ("afqmc", ["0", "1"]), ("csl", [2415, 7, 8])])
def test_the_ids_of_a_published_test_file(task, ids):
    check_submission(facts_of(task), ids, "test.json")


@pytest.mark.parametrize(
    "task, ids, said",
    [
        ("tnews", [0, None], "test.json, row 2: no id; take the whole test.json of tnews, as published"),
        ("tnews", ["a"], 'test.json, row 1: the id "a" is no whole number; take the whole'),
        ("tnews", [True], "row 1: the id true is no whole number"),
        ("tnews", [0.0], "row 1: the id 0.0 is no whole number"),
        ("tnews", [1, 2], "row 1: has the id 1, where 0 is due; take the whole"),
        ("tnews", [0, 2, 1], "row 2: has the id 2, where 1 is due"),
        ("tnews", [0, 0], "row 2: the id 0 stands on row 1 already"),
        ("csl", [2415, 7, 2415], "row 3: the id 2415 stands on row 1 already"),
    ],
)
def test_ids_that_are_not_of_a_whole_test_file(task, ids, said):
    with pytest.raises(DataError) as caught:
        check_submission(facts_of(task), ids, "test.json")
    assert said in str(caught.value)


def test_a_run_on_another_corpus_makes_no_submission():
    with pytest.raises(DataError, match="predict.format=clue: the run was not trained on a task of CLUE"):
        check_submission({"label_names": ["a"]}, [0], "test.json")


# Real corpora


@needs_real_data
def test_real_tnews():
    corpus = CLUE(source=real("clue"))
    assert len(labels_read(corpus)) == 7804 and len(labels_read(corpus, "val")) == 4928
    counts = Counter(labels_read(corpus, "val"))
    assert corpus.label_names[counts.most_common()[0][0]] == "news_tech"
    assert corpus.label_names[counts.most_common()[-1][0]] == "news_stock" and len(counts) == 15


@needs_real_data
def test_real_iflytek():
    corpus = CLUE(task="iflytek", source=real("clue"))
    assert len(labels_read(corpus)) == 3024 and len(labels_read(corpus, "val")) == 1373
    assert set(labels_read(corpus)) == set(range(119))
    assert corpus.label_names[113] == "办公" and not any(name.isdecimal() for name in corpus.label_names)


@needs_real_data
def test_real_afqmc():
    corpus = CLUE(task="afqmc", source=real("clue"))
    assert len(labels_read(corpus)) == 34334 and len(labels_read(corpus, "val")) == 4316
    assert set(labels_read(corpus)) == {0, 1}
    assert all(len(row.texts) == 2 for row in corpus.read("val"))


@needs_real_data
def test_real_tnews_with_labels_of_its_own():
    corpus = CLUE(source=real("tnews/dataclue"))
    assert corpus.label_names[:3] == ["教育", "财经", "房产"] and len(corpus.label_names) == 15
    assert len(labels_read(corpus)) == 10000
    with pytest.raises(DataError, match="number their labels in two ways"):
        CLUE(source=real("tnews/dataclue"), val=real("clue/tnews/dev.json")).label_names  # noqa: B018


@needs_real_data
def test_real_tnews_with_number_labels():
    folder = Path(real("tnews/fewclue"))
    corpus = CLUE(train=str(folder / "train_few_all.json"), val=str(folder / "dev_few_all.json"),
                  test=str(folder / "test_public.json"))  # fmt: skip
    assert corpus.label_names == list(TASKS["tnews"].names)
    assert Counter(labels_read(corpus, "test")) == dict.fromkeys(range(15), 134)


@needs_real_data
def test_real_iflytek_cut_from_one_file():
    corpus = CLUE(task="iflytek", train=real("iflytek/dataclue/dev.json"), split=[0.8, 0.1, 0.1])
    parts = [list(corpus.read(split)) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 2000 and abs(len(parts[0]) - 1600) < 60
    assert corpus.label_names[43] == "影视娱乐"
