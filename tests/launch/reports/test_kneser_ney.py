"""The Kneser-Ney baseline: its formula, that it is a distribution, and that it counts as the models' scores do."""

import json
import math

import pytest
from real_data import needs_real_data, real

from datamodules.dialogue import despaced
from datamodules.tokenizers.char import CharTokenizer
from launch.reports.kneser_ney import END, START, UNKNOWN, KneserNey, symbols_of

TURNS = ["ab", "ab", "ac"]
SOME = ["你好吗", "你好", "好好好", "我很好啊", "ok", "", "你是谁啊", "好吗好吗"]


def test_bigrams_are_as_computed_by_hand():
    """Bigrams: START-a 3, ab 2, ac 1, b-END 2, c-END 1, so the discount is 2 / (2 + 2 * 2). Unigrams by the symbols
    before them: a, b and c 1, END 2, the discount is 3 / (3 + 2 * 1); five symbols with the unknown one."""
    model = KneserNey(TURNS)
    unigrams = {"a": 0.176, "b": 0.176, "c": 0.176, END: 0.376, UNKNOWN: 0.096}
    for symbol, expected in unigrams.items():
        assert model.probability(symbol, "") == pytest.approx(expected)
        assert model.probability(symbol, UNKNOWN) == pytest.approx(expected)  # a context never seen
    first, second, end = (
        (3 - 1 / 3 + 1 / 3 * 1 * 0.176) / 3,
        (2 - 1 / 3 + 1 / 3 * 2 * 0.176) / 3,
        (2 - 1 / 3 + 1 / 3 * 1 * 0.376) / 2,
    )
    assert model.probability("a", "b") == pytest.approx(1 / 3 * 1 * 0.176 / 2)  # a bigram never seen
    assert model.bits("ab") == pytest.approx(-math.log2(first * second * end))
    assert model.bits_per_char(["ab", "a b"]) == pytest.approx(model.bits("ab") / 2)


def naive(
    turns: list[str], order: int, discount: float, context: str, symbol: str, top: bool = True
) -> float:
    """Chen and Goodman's equation, with counts taken by looking through the texts."""
    texts = [START + turn + END for turn in turns]
    vocabulary = sorted(set("".join(turns))) + [END, UNKNOWN]

    def occurrences(gram: str) -> int:
        return sum(text.startswith(gram, at) for text in texts for at in range(len(text)))

    def count(gram: str) -> int:
        if top or gram.startswith(START):
            return occurrences(gram)
        return sum(occurrences(before + gram) > 0 for before in [START, *vocabulary])

    counts = {other: count(context + other) for other in vocabulary}
    lower = naive(turns, order, discount, context[1:], symbol, top=False) if context else 1 / len(vocabulary)
    total, distinct = sum(counts.values()), sum(value > 0 for value in counts.values())
    if not total:
        return lower
    return max(counts[symbol] - discount, 0) / total + discount * distinct / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_order_is_the_equation_and_a_distribution(order):
    model = KneserNey(SOME, order, discount=0.6)
    contexts = {
        text[max(0, end - order + 1) : end] for text in map(START.__add__, SOME) for end in range(len(text))
    }
    # Of symbols that were seen, but not so; and of one that never was.
    contexts = {c for c in contexts if len(c) == order - 1 or c.startswith(START)}
    contexts |= {("谁好我" * 2)[: order - 1], UNKNOWN * (order - 1)}
    for context in contexts:
        found = {symbol: model.probability(symbol, context) for symbol in model.vocabulary}
        assert sum(found.values()) == pytest.approx(1)
        for symbol, probability in found.items():
            top = len(context) == order - 1
            assert probability == pytest.approx(naive(SOME, order, 0.6, context, symbol, top)) and probability


@pytest.mark.parametrize("turns", [["a"], ["ab", "cd"], ["aa", "aa", "aa"], ["", ""], ["我"] * 5])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_counts_without_ones_or_twos_give_a_distribution_all_the_same(turns, order):
    model = KneserNey(turns, order)
    assert sum(model.probability(symbol, START[: order - 1]) for symbol in model.vocabulary) == pytest.approx(
        1
    )
    assert 0 < model.bits("ab我x") < math.inf


def test_an_unknown_character_costs_a_uniform_code_as_an_unk_token_does():
    model = KneserNey(SOME)
    unknown, ended = model.probability(UNKNOWN, "好"), model.probability(END, UNKNOWN)
    known = -math.log2(model.probability("好", START))
    characters = len(set("".join(SOME)))
    assert model.bits("好龘") == pytest.approx(known - math.log2(unknown * ended) + math.log2(characters))


def test_a_text_is_read_and_counted_as_the_tokenizers_do_it():
    odd = [
        "Hello  WORLD 123",
        "　全角　空格\u200b和\x07控制",
        "café cafe\u0301 Ñ",
        "한국어 ok",
        "😂😂哈哈 ヽ(✿ﾟ▽ﾟ)ノ",
        "\ue000私用\ufffd",
        " \t",
        "",
        "ΑΣ ﬁ ß İ",
    ]
    tokenizer = CharTokenizer()
    tokenizer.build(odd, progress=False)
    encodings = tokenizer.encode_batch(odd)
    ends = encodings.lengths.cumsum()
    counted = [
        int(encodings.chars[end - n : end].sum()) for end, n in zip(ends, encodings.lengths, strict=True)
    ]
    assert [symbols_of(text)[1] for text in odd] == counted
    model = KneserNey(odd)
    assert model.bits("CAFÉ，\n 全 角") == model.bits("cafe，全角")


@pytest.mark.parametrize(
    "turns, options, message",
    [
        (TURNS, {"order": 0}, "order=0: must be at least 1"),
        (TURNS, {"discount": 0.0}, "discount=0.0: must lie between 0 and 1"),
        (TURNS, {"discount": 1.0}, "discount=1.0: must lie between 0 and 1"),
        ([], {}, "turns: there are none"),
    ],
)
def test_what_cannot_be_counted_is_refused(turns, options, message):
    with pytest.raises(ValueError, match=message):
        KneserNey(turns, **options)


@pytest.mark.parametrize("turns", [[], ["", " \n"]])
def test_texts_without_characters_have_no_score(turns):
    with pytest.raises(ValueError, match="turns: there is no character"):
        KneserNey(TURNS).bits_per_char(turns)


@pytest.mark.slow
@needs_real_data
def test_more_context_helps_on_real_dialogues():
    with open(real("dialogue", "lccc_base", "LCCC-base_valid.json"), encoding="utf-8") as file:
        dialogues = [despaced(turns) for turns in json.load(file)]
    train = [turn for turns in dialogues[:18000] for turn in turns]
    replies = [turns[-1] for turns in dialogues[18000:]]
    unigrams, bigrams, trigrams = (KneserNey(train, order).bits_per_char(replies) for order in (1, 2, 3))
    assert 9 < unigrams < 9.3
    assert 6.9 < bigrams < 7.1
    assert trigrams < bigrams - 0.2
