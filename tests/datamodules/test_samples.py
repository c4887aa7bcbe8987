"""The embedded samples are what their generators write, and as hard as they are meant to be."""

import json
import math
import random
import sys
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from datamodules.clue import TASKS
from datamodules.samples import make_afqmc, make_lccc, make_tnews
from datamodules.samples.writing import Writer, write_or_check


def read(path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = {split: read(make_tnews.FOLDER / f"{split}.json") for split in ("train", "dev", "test")}
DIALOGUES = {split: read(make_lccc.FOLDER / f"{split}.jsonl") for split in ("train", "valid", "test")}
PAIRS = {split: read(make_afqmc.FOLDER / f"{split}.json") for split in ("train", "dev", "test")}


def bigrams(text: str) -> list[str]:
    return [text[start : start + 2] for start in range(len(text) - 1)]


@pytest.mark.parametrize("generator", [make_tnews, make_lccc, make_afqmc])
def test_the_committed_files_are_the_generators(generator):
    generated = generator.files()
    assert sorted(path.name for path in generator.FOLDER.iterdir()) == sorted(generated)
    for name, content in generated.items():
        assert (generator.FOLDER / name).read_bytes() == content, f"{name}: run the generator"


@pytest.mark.parametrize(
    ("generator", "rows", "sizes", "most_bytes"),
    [
        (make_tnews, ROWS, [4000, 500, 500], 800_000),
        (make_lccc, DIALOGUES, [2000, 200, 200], 600_000),
        (make_afqmc, PAIRS, [1000, 200, 200], 250_000),
    ],
)
def test_sizes(generator, rows, sizes, most_bytes):
    assert [len(rows[split]) for split in rows] == sizes
    assert sum(path.stat().st_size for path in generator.FOLDER.iterdir()) < most_bytes


def test_check_compares_and_writes_nothing(tmp_path, monkeypatch, capsys):
    def files():
        return {"a.json": b"1\n"}

    monkeypatch.setattr(sys, "argv", ["make", "--check"])
    assert write_or_check(tmp_path, files) == 1
    assert "a.json" in capsys.readouterr().err and not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["make"])
    assert write_or_check(tmp_path, files) == 0
    monkeypatch.setattr(sys, "argv", ["make", "--check"])
    assert write_or_check(tmp_path, files) == 0


def test_slots_keep_their_text_through_a_template():
    writer = Writer(0, {"colour": ("红", "蓝")}, {"pet": (("kind", "food"), ("猫", "鱼"), ("狗", "骨头"))})
    template = "{n:3-9} {n} {n+1} {n-1} {n*2}|{x:a/b/c} {x} {x:0/1/2}|{colour} {colour} {colour2}|{pet.kind} {pet.food}"
    for _ in range(50):
        numbers, places, colours, pet = (part.split() for part in writer.fill(template).split("|"))
        n = int(numbers[0])
        assert 3 <= n <= 9 and [int(number) for number in numbers[1:]] == [n, n + 1, n - 1, n * 2]
        assert places[0] == places[1] == "abc"[int(places[2])]
        assert colours[0] == colours[1] != colours[2]
        assert pet in (["猫", "鱼"], ["狗", "骨头"])
    assert {writer.fill("[a[b|c]|]") for _ in range(50)} == {"ab", "ac", ""}


# Titles.


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
def test_title_rows_are_clean(split):
    names = dict(zip(TASKS["tnews"].ids, TASKS["tnews"].names, strict=True))
    for row in ROWS[split]:
        assert list(row) == ["label", "label_desc", "sentence", "keywords"]
        assert row["label_desc"] == names[row["label"]]
        assert 8 <= len(row["sentence"]) <= 50
        assert "{" not in row["sentence"] and row["sentence"].strip() == row["sentence"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_titles_are_neither_trivial_nor_hopeless(split):
    assert 0.60 < naive_bayes_macro_f1(ROWS["train"], ROWS[split]) < 0.85


# Dialogues.


class ReplyModel:
    """p(character | the one before it, context), counted: a bigram model of replies, mixed in halves with how often
    a character stands in the replies to contexts that hold a character, averaged over the context's characters."""

    def __init__(self, steps: list[tuple[str, str]]):
        characters = sorted(set("".join(context + reply for context, reply in steps)))
        self.ids = {character: place for place, character in enumerate(characters, 1)}  # 0: start, unknown
        size = len(self.ids) + 1
        contexts, replies = np.zeros((2, len(steps), size), np.float32)
        bigram_counts = np.zeros((size, size), np.float32)
        for row, (context, reply) in enumerate(steps):
            contexts[row, self.encode(context)] = 1
            for before, character in pairwise([0, *self.encode(reply)]):
                replies[row, character] += 1
                bigram_counts[before, character] += 1
        unigram = (replies.sum(0) + 1) / (replies.sum() + size)

        def smoothed(counts, weight):
            return (counts + weight * unigram) / (counts.sum(1, keepdims=True) + weight)

        self.after = smoothed(bigram_counts, 2)
        self.answering = smoothed(contexts.T @ replies, 20)

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(character, 0) for character in text]

    def nats_per_character(self, context: str, reply: str) -> float:
        ids = self.encode(reply)
        answering = self.answering[sorted(set(self.encode(context)))].mean(0)
        return float(np.log((self.after[[0, *ids[:-1]], ids] + answering[ids]) / 2).mean())


def steps_of(dialogues: list[list[str]]) -> list[tuple[str, str]]:
    """(everything said before, reply) of every reply."""
    return [("".join(turns[:end]), turns[end]) for turns in dialogues for end in range(1, len(turns))]


def with_shuffled_replies(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    replies = [reply for _, reply in steps]
    random.Random(0).shuffle(replies)
    return [(context, reply) for (context, _), reply in zip(steps, replies, strict=True)]


def gains_of_own_context(train: list[tuple[str, str]], held_out: list[tuple[str, str]]) -> np.ndarray:
    """Nats per character of each reply, given its own context, less given one from half a split away."""
    model = ReplyModel(train)
    strangers = [context for context, _ in held_out]
    strangers = strangers[len(held_out) // 2 :] + strangers[: len(held_out) // 2]
    return np.array(
        [
            model.nats_per_character(context, reply) - model.nats_per_character(stranger, reply)
            for (context, reply), stranger in zip(held_out, strangers, strict=True)
        ]
    )


@pytest.mark.parametrize("split", ["valid", "test"])
def test_replies_depend_on_their_context(split):
    gains = gains_of_own_context(steps_of(DIALOGUES["train"]), steps_of(DIALOGUES[split]))
    assert gains.mean() > 0.10 and (gains > 0).mean() > 0.90


@pytest.mark.parametrize("split", ["valid", "test"])
def test_shuffled_replies_do_not(split):
    train, held_out = (with_shuffled_replies(steps_of(DIALOGUES[name])) for name in ("train", split))
    gains = gains_of_own_context(train, held_out)
    assert abs(gains.mean()) < 0.01 and 0.4 < (gains > 0).mean() < 0.6


@pytest.mark.parametrize("split", ["valid", "test"])
def test_replies_take_up_what_was_said_before(split):
    """Two characters of the context come again; of what was said two turns back or earlier, too."""
    dialogues = DIALOGUES[split]
    half = len(dialogues) // 2
    own, stranger, earlier, earlier_stranger = [], [], [], []
    for turns, others in zip(dialogues, dialogues[half:] + dialogues[:half], strict=True):
        for end in range(1, len(turns)):
            reply = set(bigrams(turns[end]))
            own.append(any(reply & set(bigrams(turn)) for turn in turns[:end]))
            stranger.append(any(reply & set(bigrams(turn)) for turn in others[:end]))
            if end > 1:
                new = reply - set(bigrams(turns[end - 1]))
                earlier.append(any(new & set(bigrams(turn)) for turn in turns[: end - 1]))
                earlier_stranger.append(any(new & set(bigrams(turn)) for turn in others[: end - 1]))
    assert np.mean(own) > 0.7 and np.mean(stranger) < 0.2
    assert np.mean(earlier) > 0.3 and np.mean(earlier_stranger) < 0.15


@pytest.mark.parametrize("split", DIALOGUES)
def test_dialogues_are_clean(split):
    for turns in DIALOGUES[split]:
        assert 2 <= len(turns) <= 8
        for turn in turns:
            assert 1 <= len(turn) <= 40
            assert not set(turn) & set(" \t\n[]{}|/")
    assert 3 < np.mean([len(turns) for turns in DIALOGUES[split]]) < 4.2
    written = [turn for turns in DIALOGUES[split] for turn in turns]
    assert 0.01 < np.mean(
        [any(character.isascii() and character.isalpha() for character in turn) for turn in written]
    )
    assert any("😂" in turn for turn in written) and any(
        character.isdigit() for character in "".join(written)
    )


def test_no_dialogue_occurs_twice():
    dialogues = [tuple(turns) for split in DIALOGUES.values() for turns in split]
    assert len(set(dialogues)) == len(dialogues)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_no_held_out_reply_can_be_learnt_by_heart(split):
    def moments(dialogues):
        """Each reply with the two turns before it."""
        return {
            tuple(turns[max(end - 2, 0) : end + 1]) for turns in dialogues for end in range(1, len(turns))
        }

    assert not moments(DIALOGUES[split]) & moments(DIALOGUES["train"])


# Sentence pairs.


def overlap(row: dict) -> float:
    """Share of characters that both sentences have (Dice), in [0, 1]."""
    first, second = Counter(row["sentence1"]), Counter(row["sentence2"])
    return 2 * (first & second).total() / (first.total() + second.total())


def accuracy_of_overlap(train: list[dict], held_out: list[dict]) -> float:
    """The best rule on train: "the same" at and above, or below, a threshold of overlap."""

    def accuracy(rows, threshold, above):
        return np.mean([((overlap(row) >= threshold) == above) == (row["label"] == "1") for row in rows])

    rules = [(threshold, above) for threshold in np.linspace(0, 1.02, 52) for above in (True, False)]
    return accuracy(held_out, *max(rules, key=lambda rule: accuracy(train, *rule)))


def accuracy_of_differences(train: list[dict], held_out: list[dict]) -> float:
    """Naive Bayes, add-one smoothing, on the characters that stand in only one of the two sentences."""

    def differing(row):
        return set(row["sentence1"]) ^ set(row["sentence2"])

    rows = Counter(row["label"] for row in train)
    counts = {label: Counter() for label in rows}
    for row in train:
        counts[row["label"]].update(differing(row))

    def score(row, label):
        seen = [math.log((counts[label][character] + 1) / (rows[label] + 2)) for character in differing(row)]
        return math.log(rows[label]) + sum(seen)

    return np.mean([max(rows, key=lambda label: score(row, label)) == row["label"] for row in held_out])


@pytest.mark.parametrize("split", PAIRS)
def test_pairs_are_clean_and_balanced(split):
    for row in PAIRS[split]:
        assert list(row) == ["sentence1", "sentence2", "label"]
        assert row["label"] in ("0", "1") and row["sentence1"] != row["sentence2"]
        for sentence in (row["sentence1"], row["sentence2"]):
            assert 5 <= len(sentence) <= 40 and not set(sentence) & set(" \t\n[]{}|/")
    assert np.mean([row["label"] == "1" for row in PAIRS[split]]) == 0.40


def test_no_pair_occurs_twice_and_no_sentence_in_two_splits():
    pairs = [frozenset((row["sentence1"], row["sentence2"])) for rows in PAIRS.values() for row in rows]
    assert len(set(pairs)) == len(pairs)
    sentences = [{row[key] for row in rows for key in ("sentence1", "sentence2")} for rows in PAIRS.values()]
    assert len(set().union(*sentences)) == sum(map(len, sentences))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_what_differs_tells_and_how_much_does_not(split):
    """Always "0" is right in 0.60."""
    assert accuracy_of_overlap(PAIRS["train"], PAIRS[split]) < 0.66
    assert 0.76 < accuracy_of_differences(PAIRS["train"], PAIRS[split]) < 0.90
