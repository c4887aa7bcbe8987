"""The embedded sample is what its generator writes, and as hard as it is meant to be."""

import json
import math
from collections import Counter, defaultdict

import pytest

from datamodules.clue import TASKS
from datamodules.samples.make_tnews import FOLDER, files

ROWS = {
    split: [json.loads(line) for line in (FOLDER / f"{split}.json").read_text(encoding="utf-8").splitlines()]
    for split in ("train", "dev", "test")
}


def bigrams(text: str) -> list[str]:
    return [text[start : start + 2] for start in range(len(text) - 1)]


def naive_bayes_macro_f1(train: list[dict], held_out: list[dict]) -> float:
    """Multinomial naive Bayes on character bigrams, add-one smoothing; F1 averaged over classes."""
    priors = Counter(row["label"] for row in train)
    counts = defaultdict(Counter)
    for row in train:
        counts[row["label"]].update(bigrams(row["sentence"]))
    size = len(set().union(*counts.values()))
    totals = {label: sum(counter.values()) + size for label, counter in counts.items()}

    def guess(text: str) -> str:
        return max(
            priors,
            key=lambda label: (
                math.log(priors[label])
                + sum(math.log((counts[label][bigram] + 1) / totals[label]) for bigram in bigrams(text))
            ),
        )

    pairs = [(row["label"], guess(row["sentence"])) for row in held_out]
    scores = []
    for label in priors:
        right = sum(true == guessed == label for true, guessed in pairs)
        said_or_true = sum((true == label) + (guessed == label) for true, guessed in pairs)
        scores.append(2 * right / said_or_true if said_or_true else 0.0)
    return sum(scores) / len(scores)


def test_the_committed_files_are_the_generators():
    generated = files()
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(generated)
    for name, content in generated.items():
        assert (FOLDER / name).read_bytes() == content, f"{name}: run the generator"


def test_sizes():
    assert [len(ROWS[split]) for split in ("train", "dev", "test")] == [4000, 500, 500]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 800_000


def test_no_title_occurs_twice():
    sentences = [row["sentence"] for rows in ROWS.values() for row in rows]
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("split", ROWS)
def test_all_classes_in_natural_imbalance(split):
    counts = Counter(row["label"] for row in ROWS[split])
    assert sorted(counts) == list(TASKS["tnews"].ids)
    assert max(counts, key=counts.get) == "109" and min(counts, key=counts.get) == "114"
    assert counts["109"] > 8 * counts["114"]


@pytest.mark.parametrize("split", ROWS)
def test_rows_are_clean(split):
    names = dict(zip(TASKS["tnews"].ids, TASKS["tnews"].names, strict=True))
    for row in ROWS[split]:
        assert list(row) == ["label", "label_desc", "sentence", "keywords"]
        assert row["label_desc"] == names[row["label"]]
        assert 8 <= len(row["sentence"]) <= 50
        assert "{" not in row["sentence"] and row["sentence"].strip() == row["sentence"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_neither_trivial_nor_hopeless(split):
    assert 0.60 < naive_bayes_macro_f1(ROWS["train"], ROWS[split]) < 0.85
