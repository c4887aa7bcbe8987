"""What a corpus holds is counted right: every number against one that is counted plainly."""

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from rich.cells import cell_len

from datamodules import inspection
from datamodules.corpus import DataError, Row
from datamodules.inspection import inspect_corpus
from datamodules.text import TextDataModule
from launch.data_report import report

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KNOWN = "天地玄黄宇宙洪"
NAMES = ["自然", "人文", "empty"]


class Listed(TextDataModule):
    """Rows from lists; nothing but what every corpus has."""

    def __init__(self, cache_dir, names=None, max_length=12, **rows):
        tokenizer = {"_target_": "datamodules.tokenizers.char.CharTokenizer", "vocab": SPECIAL + list(KNOWN)}
        super().__init__(tokenizer, max_length=max_length, cache_dir=str(cache_dir))
        self.rows = {"train": [], "val": [], "test": []} | rows
        self.label_names = names

    def read(self, split):
        return iter(self.rows[split])

    def fingerprint(self, split):
        return repr(self.rows[split])

    def describe(self):
        return {"source": "listed"}


def inspected(tmp_path, **given):
    facts = inspect_corpus(Listed(tmp_path, **given))
    assert json.loads(json.dumps(facts)) == facts
    return facts


def drawn_rows(seed, count):
    """Short texts of few characters, so that many are equal; two are unknown, spaces change nothing."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        texts = [
            "".join(draw.choices(KNOWN[:2] + "囧", k=draw.randint(1, 3))) for _ in range(draw.randint(1, 2))
        ]
        texts[0] += draw.choice(["", "", " ", "天" * draw.randint(5, 20)])
        label = draw.choice([None, 0, 1, 1])
        rows.append(Row(texts[0] if len(texts) == 1 else tuple(texts), label))
    return rows


def written(row):
    return tuple(text.replace(" ", "") for text in row.texts)


def test_every_number_is_the_plainly_counted_one(tmp_path):
    rows = {"train": drawn_rows(1, 300), "val": drawn_rows(2, 80)}
    facts = inspected(tmp_path, names=NAMES, **rows)
    assert (facts["source"], facts["max_length"], facts["vocab_size"]) == ("listed", 12, 12)
    assert list(facts["splits"]) == ["train", "val"]
    for split, other in (("train", "val"), ("val", "train")):
        told, given = facts["splits"][split], rows[split]
        texts = [written(row) for row in given]
        assert told["rows"] == len(given) and told["left_out"] == {}
        assert told["texts_a_row"] == {"mean": sum(map(len, texts)) / len(texts), "max": 2}

        characters = sorted(sum(map(len, row.texts)) for row in given)
        assert told["characters_a_row"]["min"] == characters[0]
        assert told["characters_a_row"]["max"] == characters[-1]
        assert told["characters_a_row"]["median"] == characters[(len(given) - 1) // 2]
        assert told["characters_a_row"]["p99"] == characters[-(-len(given) * 99 // 100) - 1]
        assert told["characters_a_row"]["mean"] == pytest.approx(sum(characters) / len(given))
        longest = told["examples"]["longest"]
        assert longest["characters"] == sum(map(len, longest["texts"])) == characters[-1]
        assert tuple(longest["texts"]) == given[longest["index"]].texts
        # A character is a token, and a row is cut to twelve with its special ones.
        assert told["tokens_a_row"]["max"] == 12
        assert told["tokens_a_row"]["min"] == min(sum(map(len, text)) + len(text) + 1 for text in texts)
        long = [row for row in given if sum(map(len, row.texts)) + len(row.texts) + 1 > 12]
        assert told["cut_rows"] == len(long)
        histogram = told["histograms"]["characters_a_row"]
        width = histogram["bin_width"]
        for number, count in enumerate(histogram["rows"]):
            assert count == sum(number * width <= length < (number + 1) * width for length in characters)
        assert sum(histogram["rows"]) + histogram["longer"] == len(given)

        counted = Counter(texts)
        assert told["repeats"]["rows"] == sum(text in texts[:index] for index, text in enumerate(texts))
        assert told["repeats"]["texts"] == sum(count > 1 for count in counted.values())
        most = [one["rows"] for one in told["repeats"]["most"]]
        assert most == [count for _, count in counted.most_common(5)]
        assert all(
            counted[written(Row(tuple(one["texts"])))] == one["rows"] for one in told["repeats"]["most"]
        )
        found = sum(text in {written(row) for row in rows[other]} for text in texts)
        assert told["overlaps"] == {other: {"rows": found, "share": found / len(given)}}

        labelled = [
            (text, row.label) for text, row in zip(texts, given, strict=True) if row.label is not None
        ]
        labels = told["labels"]
        assert labels["without"] == len(given) - len(labelled)
        assert [one["name"] for one in labels["classes"]] == NAMES
        assert [one["rows"] for one in labels["classes"]] == [
            sum(label == number for _, label in labelled) for number in range(3)
        ]
        assert sum(one["share"] for one in labels["classes"]) == pytest.approx(1)
        by_text = {text: {label for other, label in labelled if other == text} for text, _ in labelled}
        several = {text for text, labels in by_text.items() if len(labels) > 1}
        assert labels["contradictory"]["texts"] == len(several) > 0
        assert labels["contradictory"]["rows"] == sum(text in several for text, _ in labelled)
        first = labels["contradictory"]["first"][0]
        assert written(Row(tuple(first["texts"]))) == next(text for text in texts if text in several)
        assert first["labels"] == Counter(
            NAMES[label] for text, label in labelled if text == written(Row(tuple(first["texts"])))
        )

        unknown = sum(text.count("囧") for row in given for text in row.texts)
        assert told["unknown"]["pieces"] == [{"piece": "囧", "count": unknown}]
        assert told["unknown"]["rows"] == told["unknown"]["analysed"]
        assert told["unknown"]["rows"] == sum("囧" in "".join(row.texts) for row in given)


def test_shares_of_tokens_are_those_of_the_store(tmp_path):
    facts = inspected(tmp_path, train=[Row("天囧地"), Row("天 地"), Row(("玄", "囧"))])
    told = facts["splits"]["train"]
    assert told["unknown_share"] == 2 / 7
    assert told["characters_a_token"] == 1
    assert told["distinct_characters"] == 4
    assert told["characters_a_row"]["mean"] == pytest.approx((3 + 3 + 2) / 3)  # the space is one
    assert told["tokens_a_row"]["mean"] == pytest.approx((5 + 4 + 5) / 3)


def test_what_made_unknown_tokens_is_told_as_it_stands_in_the_text(tmp_path):
    facts = inspected(tmp_path, train=[Row("天naïve地Naïve"), Row("\u0378")])
    assert facts["splits"]["train"]["unknown"]["pieces"][0] == {"piece": "naïve", "count": 1}
    lines = "\n".join(report(facts))
    assert "Naïve 1" in lines and "U+0378 1" in lines


def test_of_many_rows_with_unknown_tokens_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "UNKNOWN_ROWS", 2)
    facts = inspected(tmp_path, train=[Row("天"), *(Row("囧天") for _ in range(5))])
    assert facts["splits"]["train"]["unknown"] == {
        "rows": 5,
        "analysed": 2,
        "pieces": [{"piece": "囧", "count": 2}],
    }
    assert "became [UNK] in train, in 2 of 5 rows" in list(report(facts))


def test_unlabelled_rows_contradict_nobody(tmp_path):
    rows = [Row("天", 0), Row("天"), Row("地"), Row("地")]
    labels = inspected(tmp_path, names=NAMES, train=rows)["splits"]["train"]["labels"]
    assert labels["without"] == 3
    assert labels["contradictory"] == {"rows": 0, "texts": 0, "first": []}


def test_several_labels_a_row_are_counted_each(tmp_path):
    sets = [(0, 1), (0,), (), (0, 1), (1,)]
    rows = [Row(text, label) for text, label in zip("天天地玄玄", sets, strict=True)]
    corpus = Listed(tmp_path, names=NAMES, train=rows, test=[Row("黄")])
    corpus.multi_label = True
    facts = inspect_corpus(corpus)
    labels = facts["splits"]["train"]["labels"]
    assert json.loads(json.dumps(facts)) == facts and facts["splits"]["test"]["labels"] is None
    assert (labels["rows"], labels["without"]) == (5, 1)
    assert labels["labels_a_row"] == {"mean": 6 / 5, "max": 2}
    assert [(one["rows"], one["share"]) for one in labels["classes"]] == [(3, 0.6), (3, 0.6), (0, 0.0)]
    assert labels["contradictory"]["texts"] == 2 and labels["contradictory"]["rows"] == 4
    assert [one["labels"] for one in labels["contradictory"]["first"]] == [
        {"自然 | 人文": 1, "自然": 1},
        {"自然 | 人文": 1, "人文": 1},
    ]
    assert [row["label"] for row in facts["splits"]["train"]["examples"]["first"]] == [
        "自然 | 人文", "自然", "(none)",
    ]  # fmt: skip
    lines = [line.split() for line in report(facts)]
    assert ["labels", "a", "row,", "mean", "(max)", "1.2", "(2)", "-"] in lines
    assert ["自然", "3", "(60.0%)"] in lines


def test_a_corpus_without_labels_has_none(tmp_path):
    facts = inspected(tmp_path, train=[Row("天"), Row("地")], val=[Row("天")])
    assert [split["labels"] for split in facts["splits"].values()] == [None, None]
    assert "texts_a_row" not in facts["splits"]["train"]
    assert facts["splits"]["train"]["overlaps"]["val"]["rows"] == 1
    lines = "\n".join(report(facts))
    assert "label" not in lines and "rows whose text stands in val" in lines


def test_classes_without_names_are_their_numbers_in_all_splits(tmp_path):
    facts = inspected(tmp_path, train=[Row("天", 1)], val=[Row("地", 2)], test=[Row("玄")])
    assert [
        [(one["name"], one["rows"]) for one in facts["splits"][split]["labels"]["classes"]]
        for split in ("train", "val")
    ] == [[("0", 0), ("1", 1), ("2", 0)], [("0", 0), ("1", 0), ("2", 1)]]
    assert facts["splits"]["test"]["labels"] is None


def test_the_tail_of_a_histogram_is_counted_in_one_number(tmp_path):
    rows = [Row("天" * (1 + number % 10)) for number in range(999)] + [Row("天" * 5000)]
    told = inspected(tmp_path, max_length=8, train=rows)["splits"]["train"]
    assert told["histograms"]["characters_a_row"] == {
        "bin_width": 1,
        "rows": [0] + [100] * 9 + [99],
        "longer": 1,
    }
    assert told["histograms"]["tokens_a_row"]["longer"] == 0
    assert told["examples"]["longest"]["index"] == 999
    assert told["examples"]["longest"]["texts"] == ["天" * 200 + "…"]


def test_a_corpus_that_reads_other_rows_than_it_says_is_told(tmp_path):
    corpus = Listed(tmp_path, train=[Row("天"), Row("地")])
    corpus.prepare_data()
    corpus.setup()
    corpus.rows["train"].append(Row("玄"))
    with pytest.raises(
        DataError, match=r"train: `read` gives 3 rows, and gave 2 when .*`fingerprint` of Listed"
    ):
        inspect_corpus(corpus)


def test_the_tables_of_the_report_are_aligned_with_wide_characters_too(tmp_path):
    rows = [Row("天\n地", label % 2) for label in range(30)] + [Row("玄", None)]
    facts = inspected(tmp_path, names=NAMES, train=rows, val=rows[:4])
    blocks = [block.splitlines() for block in "\n".join(report(facts)).split("\n\n")]
    assert len(blocks) == 4
    for table in blocks[:3]:
        assert len({cell_len(line) for line in table}) == 1
    assert [line.split() for line in blocks[2][:2]] == [
        ["labels", "train", "val"],
        ["自然", "15", "(50.0%)", "2", "(50.0%)"],
    ]
    assert "  [自然] 天 地" in blocks[3] and "  30 x 天 地" in blocks[3]
    assert "  [自然: 15, 人文: 15] 天 地" in blocks[3]


def test_the_ends_of_many_classes_are_listed(tmp_path):
    rows = [Row("天地玄黄宇宙洪"[: 1 + label % 7], label) for label in range(60) for _ in range(60 - label)]
    lines = list(report(inspected(tmp_path, names=[f"class {label}" for label in range(60)], train=rows)))
    start = lines.index(next(line for line in lines if line.startswith("labels")))
    shown = [line.rpartition(" (")[0].rpartition("  ")[0].strip() for line in lines[start + 1 : start + 17]]
    expected = [f"class {label}" for label in (*range(10), None, *range(55, 60)) if label is not None]
    assert [name for name in shown if name.startswith("class")] == expected
    assert lines[start + 11] == "... 45 more ..."


def test_torch_is_not_imported():
    code = (
        "import sys, datamodules.inspection; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
