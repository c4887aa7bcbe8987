"""Dialogues in every usual form give the same turns; spaces of a segmenter go; what is no dialogue is named."""

import gzip
import json
import logging
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from real_data import needs_real_data, real

from datamodules.corpus import BadRows, DataError, Row
from datamodules.dialogue import Dialogues, is_spaced
from datamodules.lccc import LCCC
from datamodules.tokenizers.char import CharTokenizer

TWO = [("在吗", "在的", "吃了吗"), ("iPhone 15 好用", "还行")]
LISTS = [list(turns) for turns in TWO]


def write(path: Path, content: str | list | dict, indent: int | None = None) -> str:
    """Text as it is, anything else as JSON: a list a row a line where the name ends in .jsonl."""
    if not isinstance(content, str):
        rows = content if ".jsonl" in path.name else [content]
        content = "\n".join(json.dumps(row, ensure_ascii=False, indent=indent) for row in rows)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return str(path)


def read(path: str, split: str = "train", **options) -> list[tuple[str, ...]]:
    """The dialogues of a file, where no other split's are read."""
    corpus = Dialogues(train=path, val=path, overlap="keep", **options)
    bad_rows = BadRows(corpus.max_bad_rows)
    rows = [row.text for row in corpus.rows_of(Path(path), split, bad_rows) if isinstance(row, Row)]
    bad_rows.finish()
    return rows


def said(key: str, **more) -> list[dict]:
    return [[{key: turn, **more} for turn in turns] for turns in TWO]


USER_AND_BOT = [
    [{"role": "system", "content": "你是助手。"}]
    + [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    for turns in TWO
]
RECORDS = {
    "LCCC": [{"dialog": turns} for turns in LISTS],
    "KdConv": [{"messages": turns, "name": "x"} for turns in said("message", attrs=[{"attrname": "a"}])],
    "CrossWOZ": [{"sys-usr": [1, 2], "messages": turns} for turns in said("content", role="sys", state=[])],
    "ShareGPT": [{"id": "1", "conversations": turns} for turns in said("value", **{"from": "human"})],
    "OpenAI": [{"messages": turns} for turns in USER_AND_BOT],
    "OpenAI's parts": [
        {
            "messages": [{"role": "Developer", "content": "x"}]
            + [{"role": "user", "content": [{"type": "text", "text": turn}]} for turn in turns]
        }
        for turns in TWO
    ],
    "DuConv": [{"goal": [["a", "b"]], "conversation": turns} for turns in LISTS],
    "DuConv's test": [{"history": turns[:-1], "response": turns[-1]} for turns in LISTS],
    "predictions": [{"history": turns[:-1], "reply": turns[-1], "log_prob": -1.5} for turns in LISTS],
    "ConvLab": [{"dialogue_id": "a", "turns": turns} for turns in said("utterance", speaker="system")],
}


@pytest.mark.parametrize("form", RECORDS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
def test_records_of_every_usual_form(tmp_path, form, name):
    assert read(write(tmp_path / name, RECORDS[form])) == TWO


@pytest.mark.parametrize("indent", [None, 2])
def test_a_mapping_of_ids_or_splits(tmp_path, indent):
    path = tmp_path / "a.json"
    assert read(write(path, dict(zip("ab", RECORDS["CrossWOZ"], strict=True)), indent)) == TWO
    assert read(write(path, {"1": LISTS[0]}, indent)) == TWO[:1]
    assert read(write(path, RECORDS["KdConv"][0], indent)) == TWO[:1]
    write(path, {"valid": LISTS[:1], "train": LISTS, "test": {"x": RECORDS["LCCC"][1]}}, indent)
    assert [read(str(path), split) for split in ("train", "val", "test")] == [TWO, TWO[:1], TWO[1:]]
    corpus = LCCC(train=str(path), val=str(path), overlap="keep")
    assert [len(list(corpus.read(split))) for split in ("train", "val")] == [2, 1]


def test_lines_and_parquet(tmp_path):
    lines = "\n".join("\t".join(turns) for turns in TWO)
    for name in ("a.txt", "a.tsv", "a.txt.gz"):
        assert read(write(tmp_path / name, f"\n{lines}\n")) == TWO
    assert read(write(tmp_path / "a", lines), format="tsv") == TWO
    assert read(write(tmp_path / "json.txt", RECORDS["DuConv"][0]), format="json") == TWO[:1]
    pyarrow.parquet.write_table(pyarrow.table({"messages": said("content")}), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")) == TWO


# Spaces


@pytest.mark.parametrize(
    "dialogue, auto, removed",
    [
        ("今天 天气 不错\t是 啊 ， iphone 6 也 好用", "今天天气不错\t是啊，iphone 6也好用", ...),
        ("你 好 在 吗\tM B A 很 难", "你好在吗\tMBA很难", ...),
        ("你好 我想买 iPhone 15 手机，有货吗\t有的 亲", ..., "你好我想买iPhone 15手机，有货吗\t有的亲"),
        ("Hello, how are you?\tFine, thanks. And you?", ..., "Hello,how are you?\tFine,thanks.And you?"),
        ("在吗\t在的", ..., ...),
        ("😂 😂\t👍", ..., "😂😂\t👍"),
    ],
)
def test_spaces_of_segmented_files_go(tmp_path, dialogue, auto, removed):
    path = write(tmp_path / "a.txt", dialogue)
    auto = dialogue if auto is ... else auto
    removed = auto if removed is ... else removed
    for spaces, turns in (("auto", auto), ("keep", dialogue), ("remove", removed)):
        assert read(path, spaces=spaces) == [tuple(turns.split("\t"))], spaces


def test_a_file_is_segmented_as_a_whole(tmp_path):
    """One row among many says little: a plain one in a segmented file is despaced, and the other way round."""
    segmented, plain = ["今天 天气 不错\t是 啊"] * 20, ["晚上好 大家，都在吗\t在的"] * 20
    assert read(write(tmp_path / "a.txt", "\n".join([*segmented, plain[0]])))[-1] == (
        "晚上好大家，都在吗",
        "在的",
    )
    assert read(write(tmp_path / "b.txt", "\n".join([*plain, segmented[0]])))[-1] == (
        "今天 天气 不错",
        "是 啊",
    )
    assert not is_spaced([]) and not is_spaced([("a b c", "d")])


# ECD's labels


def test_dialogues_of_label_0_are_left_out(tmp_path, caplog):
    path = write(tmp_path / "a.txt", "1\t在吗\t在的\n0\t在吗\t不用\n1\t好\t行\n")
    corpus = Dialogues(train=path, val=write(tmp_path / "val.txt", "1\t嗯\t嗯"), label_column=True)
    assert [row.text for row in corpus.read("train")] == [("在吗", "在的"), ("好", "行")]
    assert corpus.left_out["train"] == {"dialogues of label 0": 1}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert len(read(path)) == 3
    assert "every dialogue begins with 0 or 1; if that is a label: data.label_column=true" in caplog.text
    write(tmp_path / "a.txt", "1\t在吗\t在的\n在吗\t不用\n1\t好\n")
    with pytest.raises(DataError) as caught:
        read(path, label_column=True)
    assert 'a.txt, line 2: label "在吗": must be 0 or 1' in str(caught.value)
    assert "a.txt, line 3: a dialogue of one turn" in str(caught.value)


# What is no dialogue


KEYS = "none of the keys dialog, dialogue, messages, turns, utterances, conversation, conversations, history"


@pytest.mark.parametrize(
    "row, problem",
    [
        ([], "a dialogue of no turn, data.min_turns=2 are needed"),
        (["好"], "a dialogue of one turn, data.min_turns=2 are needed"),
        ({"messages": USER_AND_BOT[0][:2]}, "a dialogue of one turn, data.min_turns=2 are needed"),
        (["好", " "], "turn 2: empty text"),
        (["好", {"content": ""}], "turn 2: empty text"),
        (["好", None], "turn 2: no text but NoneType null"),
        (["好", {"content": ["好"]}], 'turn 2: no text but list ["好"]'),
        (["好", {"role": "user"}], "turn 2: none of the keys message, content, text, value, utterance (it has: 'role')"),
        ({"history": ["好"], "response": None}, "turn 2: no text but NoneType null"),
        ({"talk": ["好", "好"]}, f"{KEYS} (it has: 'talk')"),
        ({}, f"{KEYS} (it has: none)"),
        ({"dialog": "好"}, 'no dialogue (an array of texts), str "好"'),
        (7, "no dialogue (an array of texts), int 7"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, row, problem):
    path = write(tmp_path / "a.jsonl", [*LISTS, row])
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line 3: {problem}\n" in str(caught.value)
    assert read(path, max_bad_rows=1) == TWO


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.txt", "在吗\n好\n", ", line 1: a dialogue of one turn"),
        ("a.txt", "在吗\t\t好\n", ", line 1: turn 2: empty text"),
        ("a.txt", "\n\n", ": the file is empty"),
        ("a.json", [], ", line 1: a dialogue of no turn"),
        ("a.json", {}, ": no dialogues but dict {}"),
        ("a.json", {"train": []}, ": train, no dialogues but list []"),
        ("a.json", {"valid": LISTS}, ": has no train split (it has: 'valid')"),
        ("a.json", {"train": [["好"], ["好"]]}, ", train, row 1: a dialogue of one turn"),
        ("a.json", {"a": ["好"], "b": []}, ", dialogue a: a dialogue of one turn"),
        ("a.json", {"text": "好"}, f", line 1: {KEYS} (it has: 'text')"),
        ("a.json", '{\n"train": [["好", "好"]', ": damaged, or no JSON in UTF-8 (Expecting ',' delimiter"),
        ("a.csv", "a,b\n", ": dialogues are read from txt, tsv, json, jsonl or parquet files, not from csv"),
        ("a.log", "a\tb\n", ": its name does not tell its format; name it: data.format="),
    ],
)
def test_a_file_without_a_dialogue_is_named(tmp_path, name, content, problem):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert path + problem in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": ""}, "train=: name a file"),
        ({"spaces": "drop"}, "spaces=drop: must be one of auto, keep, remove"),
        ({"format": "csv"}, "format=csv: must be one of txt, tsv, json, parquet"),
        ({"min_turns": 0}, "min_turns=0: must be at least 1"),
        ({"keep": "middle"}, "keep=middle: must be one of first, last"),
        ({"label_column": True}, "label_column=true: is of the lines of txt and tsv files, not of a.json"),
    ],
)
def test_options_are_refused_at_construction(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", LISTS)
    with pytest.raises(ValueError) as caught:
        Dialogues(**{"train": "a.json", **options})
    assert str(caught.value).startswith(message)


def test_options_that_change_rows_change_the_fingerprint(tmp_path):
    path = write(tmp_path / "a.txt", "1\t在 吗\t在 的\n" * 3)
    changes = [{}, {"spaces": "keep"}, {"label_column": True}, {"min_turns": 3}, {"format": "json"}]
    named = {Dialogues(train=path, val=path, **options).fingerprint("train") for options in changes}
    assert len(named) == len(changes)


# What is no mistake


def test_ten_thousand_turns_and_emoji_alone(tmp_path):
    many = [{"role": "user", "content": f"第{number}句"} for number in range(10_000)]
    path = write(tmp_path / "a.jsonl", [{"messages": many}, ["😂", "👍🏽👨\u200d👩\u200d👧"]])
    corpus = Dialogues(
        train=path, val=path, overlap="keep", keep="last", max_length=16, cache_dir=str(tmp_path / "cache"),
        tokenizer=CharTokenizer(vocab=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"第句😂", "9998", "9999"]),
    )  # fmt: skip
    assert len(next(corpus.read("train")).text) == 10_000
    corpus.setup()
    store = corpus.stores["train"]
    tokens = [corpus.tokenizer.vocab[token] for token in store.tokens[: store.offsets[1]]]
    assert "".join(tokens) == "[CLS]第9998句[SEP]第9999句[SEP]"
    assert store.facts["num_rows"] == 2 and store.facts["truncated_rows"] == 1


def test_without_a_validation_file_a_tenth_is_held_out(tmp_path):
    path = write(tmp_path / "a.jsonl", [[f"第{number}句", "好"] for number in range(100)])
    corpus = Dialogues(train=path)
    train, val = ({row.text for row in corpus.read(split)} for split in ("train", "val"))
    assert (len(train), len(val)) == (90, 10) and not train & val
    assert corpus.provides == {"text", "turns"}


# The real things


@needs_real_data
def test_real_dialogues():
    toy, ecd = "dialogue/cdial_gpt_toy", "dialogue/ecd_taobao"
    counts = {
        (f"{toy}/toy_data.json", "train"): 1000,
        (f"{toy}/toy_data.json", "val"): 200,
        (f"{toy}/toy_data.json", "test"): 200,
        (f"{toy}/toy_train.txt", "train"): 10_000,
        (f"{ecd}/dev.txt.gz", "train"): 5000,
        ("dialogue/lccc_base/LCCC-base_valid.json", "train"): 20_000,
    }
    for (name, split), count in counts.items():
        rows = read(real(name), split, label_column=ecd in name)
        assert len(rows) == count
        spaced = [
            turn for turns in rows for turn in turns if "\u4e00" <= turn[0] <= "\u9fff" and turn[1:2] == " "
        ]
        assert not spaced
