"""LCCC's files in all their forms give the same dialogues; spaces, turns and overlaps are what they should be."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from real_data import needs_real_data, real

from datamodules.corpus import DataError, Row
from datamodules.dialogue import despaced
from datamodules.lccc import LCCC
from datamodules.tokenizers.char import CharTokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    ("火锅我在重庆吃过八顿火锅", "哈哈哈哈！那我的嘴巴可能要烂掉！"),
    ("iphone6好用吗", "还行", "我也想买"),
]
WORDS = [
    ["火锅 我 在 重庆 吃 过 八顿 火锅", "哈哈哈 哈 ！ 那 我 的 嘴巴 可能 要 烂掉 ！"],
    ["iphone6 好用 吗", "还行", "我 也 想 买"],
]
CHARACTERS = [[" ".join(turn) for turn in dialogue] for dialogue in TEXTS]


def write(path: Path, dialogues: list, lines: bool | None = None) -> Path:
    """One array, or a dialogue a line where the name ends in .jsonl(.gz)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if lines if lines is not None else ".jsonl" in path.name:
        text = "".join(json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues)
    else:
        text = json.dumps(dialogues, ensure_ascii=False, indent=0)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(corpus: LCCC, split: str = "train") -> list[tuple[str, ...]]:
    return [row.text for row in corpus.read(split)]


def numbered(count: int, start: int = 0) -> list[list[str]]:
    return [[f"第 {number} 个 问题", f"回答 {number}"] for number in range(start, start + count)]


# Spaces


@pytest.mark.parametrize(
    "turns, plain",
    [
        (["你 好", "你 也 好 ！"], ("你好", "你也好！")),
        (["今天 天气 不错"], ("今天天气不错",)),
        (["M B A 很 难 考", "花 了 3 1 万 p l u s"], ("MBA很难考", "花了31万plus")),
        (["我 的 iphone 6 s 坏 了"], ("我的iphone 6 s坏了",)),
        (["hello world ， 你好"], ("hello world，你好",)),
        (["用 python 3 写 的 ， 100 行"], ("用python 3写的，100行",)),
        (["没有 a b c"], ("没有a b c",)),
        (["嗯", "哦"], ("嗯", "哦")),
        (["不用空格的文本", "iPhone 手机"], ("不用空格的文本", "iPhone手机")),
        (["привет мир 你好"], ("привет мир你好",)),
        (["😂 😂 哈 哈"], ("😂😂哈哈",)),
        (["  两 端  "], ("两端",)),
        (["hello  world 你好"], ("hello world你好",)),
        (["听   hello   world   很 久"], ("听hello world很久",)),
    ],
)
def test_spaces_of_the_files_go_and_those_of_the_text_stay(turns, plain):
    assert despaced(turns) == plain


def test_each_dialogue_says_itself_how_it_is_spaced(tmp_path):
    mixed = write(tmp_path / "mixed.json", [CHARACTERS[1], WORDS[1], ["a b c", "x y"], ["你好 abc de", "好"]])
    corpus = LCCC(train=str(mixed), val=str(write(tmp_path / "val.json", numbered(1))))
    assert read(corpus) == [TEXTS[1], TEXTS[1], ("abc", "xy"), ("你好abc de", "好")]


# Forms of the files


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("spaced", [WORDS, CHARACTERS], ids=["words", "characters"])
def test_every_official_form_gives_the_same_dialogues(tmp_path, name, spaced):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"dialog": spaced}), path)
    else:
        write(path, spaced)
    val = write(tmp_path / "val.json", numbered(1))
    assert read(LCCC(train=str(path), val=str(val))) == TEXTS


def test_a_folder_of_the_published_files(tmp_path):
    write(tmp_path / "LCCC-base_train.json", WORDS)
    write(tmp_path / "LCCC-base_valid.json", [["嗯 嗯", "好 的"]])
    corpus = LCCC(source=str(tmp_path))
    assert read(corpus) == TEXTS and read(corpus, "val") == [("嗯嗯", "好的")] and read(corpus, "test") == []
    assert corpus.describe()["source"] == str(tmp_path)
    with pytest.raises(DataError, match=r"no LCCD.json or .*data.train=FILE, or cut one file"):
        LCCC(source=str(tmp_path), variant="large")
    write(tmp_path / "LCCD.json", numbered(5))
    assert len(read(LCCC(source=str(tmp_path), variant="large"))) == 5


def test_a_folder_as_the_hub_has_it(tmp_path):
    for name, rows in (("train", WORDS), ("valid", CHARACTERS[:1]), ("test", numbered(2))):
        write(tmp_path / f"lccc_base_{name}.jsonl.gz", rows)
    corpus = LCCC(source=str(tmp_path), overlap="keep")
    assert read(corpus) == TEXTS and read(corpus, "val") == TEXTS[:1] and len(read(corpus, "test")) == 2


def test_a_single_file_is_cut(tmp_path, caplog):
    path = write(tmp_path / "LCCD.json", numbered(400))
    with caplog.at_level(logging.INFO):
        corpus = LCCC(train=str(path))
    assert "1% of data.train is held out" in caplog.text
    train, val = read(corpus), read(corpus, "val")
    assert len(val) == 4 and len(train) == 396 and not set(train) & set(val)
    assert read(LCCC(train=str(path), split=[0.5, 0.25, 0.25], seed=1), "test") != read(
        LCCC(train=str(path), split=[0.5, 0.25, 0.25], seed=2), "test"
    )


def test_split_and_a_folder_exclude_each_other(tmp_path):
    path = write(tmp_path / "LCCC-base_train.json", WORDS)
    with pytest.raises(ValueError, match="cuts data.train alone; leave out data.source="):
        LCCC(source=str(tmp_path), train=str(path), split=[0.5, 0.5])


def test_several_files_are_one_split(tmp_path):
    write(tmp_path / "parts/a.jsonl", numbered(3))
    write(tmp_path / "parts/b.json", numbered(3, start=3))
    val = write(tmp_path / "val.json", numbered(1, start=9))
    corpus = LCCC(train=f"{tmp_path}/parts/*", val=str(val))
    assert [turns[1] for turns in read(corpus)] == [f"回答{number}" for number in range(6)]


# Too long dialogues


def rows_of_tokens(corpus: LCCC) -> list[str]:
    corpus.setup()
    store = corpus.stores["train"]
    tokens = [corpus.tokenizer.vocab[token] for token in store.tokens]
    return ["".join(tokens[a:b]) for a, b in zip(store.offsets, store.offsets[1:], strict=False)]


@pytest.mark.parametrize(
    "keep, kept", [("first", "[CLS]一一[SEP]二二二[SEP]"), ("last", "[CLS]三[SEP]四四四[SEP]")]
)
def test_whole_turns_are_dropped_from_the_other_end(tmp_path, keep, kept):
    path = write(tmp_path / "a.json", [["一一", "二二二", "三", "四四四"]])
    corpus = LCCC(
        train=str(path), val=str(path), overlap="keep", keep=keep, max_length=9, cache_dir=str(tmp_path),
        tokenizer=CharTokenizer(vocab=[*SPECIALS, *"一二三四"]),
    )  # fmt: skip
    assert rows_of_tokens(corpus) == [kept]
    assert corpus.stores["train"].facts["truncated_rows"] == 1
    batch = corpus.stores["train"].batch(np.array([0]))
    texts = [0, *np.cumsum(np.array(list(kept.replace("[CLS]", "C").replace("[SEP]", "S"))) == "S")[:-1]]
    assert batch.segment_ids.tolist() == [text % 2 for text in texts]


@pytest.mark.parametrize(
    "keep, kept", [("first", "[CLS]一一一一一一一[SEP]"), ("last", "[CLS]二二二二二二二[SEP]")]
)
def test_a_turn_that_alone_is_too_long_is_cut(tmp_path, keep, kept):
    path = write(tmp_path / "a.json", [["一" * 20, "二" * 20]])
    corpus = LCCC(
        train=str(path), val=str(path), overlap="keep", keep=keep, max_length=9, cache_dir=str(tmp_path),
        tokenizer=CharTokenizer(vocab=[*SPECIALS, *"一二"]),
    )  # fmt: skip
    assert rows_of_tokens(corpus) == [kept]


# Dialogues of one split that stand in another


@pytest.fixture
def leaking(tmp_path) -> dict[str, str]:
    """The training file holds two dialogues of the test file, in words; the test file has characters."""
    train = write(tmp_path / "train.jsonl", [*numbered(4), *WORDS, WORDS[0]])
    test = write(tmp_path / "test.json", CHARACTERS)
    return {
        "train": str(train),
        "val": str(write(tmp_path / "val.json", numbered(1, start=3))),
        "test": str(test),
    }


def test_training_dialogues_of_the_evaluation_files_are_removed_and_counted(leaking, caplog):
    corpus = LCCC(**leaking)
    with caplog.at_level(logging.WARNING):
        assert read(corpus) == [("第0个问题", "回答0"), ("第1个问题", "回答1"), ("第2个问题", "回答2")]
    assert corpus.left_out["train"] == {"rows of the evaluation files": 4}
    assert (
        f"3 in test ({leaking['test']}) and 1 in val ({leaking['val']}); left out of training" in caplog.text
    )
    assert len(read(corpus, "test")) == 2  # evaluation rows stay


def test_they_are_refused_or_kept_on_demand(leaking, caplog):
    with pytest.raises(
        DataError, match=r"overlap=refuse: .* 3 in test .*data.overlap=remove leaves them out"
    ):
        read(LCCC(**leaking, overlap="refuse"))
    with caplog.at_level(logging.WARNING):
        assert len(read(LCCC(**leaking, overlap="keep"))) == 7
    assert "3 in test" in caplog.text and "kept (data.overlap=remove leaves them out)" in caplog.text


def test_what_is_removed_depends_on_the_evaluation_files(leaking, tmp_path):
    first = LCCC(**leaking).fingerprint("train")
    write(Path(leaking["test"]), numbered(1, start=70))
    assert LCCC(**leaking).fingerprint("train") != first
    assert LCCC(**leaking, overlap="keep").fingerprint("train") != LCCC(**leaking).fingerprint("train")


def test_the_counts_come_with_the_cached_tokens(leaking, tmp_path):
    tokenizer = CharTokenizer(vocab=[*SPECIALS, *"第个问题回答0123"])
    for _ in range(2):
        corpus = LCCC(**leaking, tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"))
        corpus.setup()
        assert corpus.stores["train"].facts["left_out"] == {"rows of the evaluation files": 4}


def test_several_processes_write_the_same_cache(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(9000))
    corpora = []
    for processes in (1, 2):
        corpus = LCCC(
            train=str(path), tokenizer=CharTokenizer(), num_proc=processes, cache_dir=str(tmp_path / str(processes))
        )  # fmt: skip
        corpus.setup()
        corpora.append(corpus)
    first, second = (corpus.stores["train"] for corpus in corpora)
    assert corpora[0].tokenizer.vocab == corpora[1].tokenizer.vocab
    assert len(first) > 8000 and first.facts == second.facts
    for name in first.ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(second, name))


# The sample, and options that are wrong


def test_the_sample_is_the_default_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        corpus = LCCC()
    assert "NOT A REAL CORPUS" in caplog.text and "data.source=/path/to/lccc" in caplog.text
    sizes = {split: len(read(corpus, split)) for split in ("train", "val", "test")}
    assert sizes["train"] >= 1500 and sizes["val"] >= 200 and sizes["test"] >= 200
    assert corpus.left_out["train"] == {}
    assert corpus.describe()["synthetic"] is True and corpus.provides == {"text", "turns"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variant": "small"}, "variant=small: must be one of base, large"),
        ({"keep": "middle"}, "keep=middle: must be one of first, last"),
        ({"overlap": "drop"}, "overlap=drop: must be one of remove, refuse, keep"),
        ({"revision": "main"}, "revision=main: is of the hub; add data.source=hub"),
        ({"val": "a.json"}, "val=a.json: files stand alone, the sample is not mixed into them; add data.train=FILE"),
        ({"source": "nowhere"}, "source=nowhere: no such folder"),
        ({"source": ""}, "source=: must be `sample`, `hub`, or a folder"),
        ({"split": [0.9, 0.1]}, "split=[0.9, 0.1]: cuts one file; name it: data.train=FILE"),
    ],
)  # fmt: skip
def test_options_are_refused_at_construction(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        LCCC(**options)
    assert message in str(caught.value)


# The real thing


@needs_real_data
def test_real_lccc():
    corpus = LCCC(train=real("dialogue/lccc_base/LCCC-base_valid.json"))
    rows = read(corpus) + read(corpus, "val")
    assert len(rows) == 20000 and not any(" " in turn for row in rows for turn in row)
    assert ("啊我好爱虾仁蛋黄酱金枪鱼蛋黄酱", "那个饭凉了吧唧的怎么吃啊摔") in rows
    assert max(map(len, rows)) == 28 and 2.8 < sum(map(len, rows)) / 20000 < 2.9


def test_rows_are_dialogues_for_every_technique():
    assert Row(("a", "b")).texts == ("a", "b") and Row("a").texts == ("a",)
