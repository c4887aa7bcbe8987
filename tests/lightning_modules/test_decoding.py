"""Decoding: against transformers' own, against closed forms, and under constraints on texts."""

import math
import unicodedata

import numpy as np
import pytest
import torch
from helpers import FACTS
from torch import nn

from lightning_modules.decoding import Decoding, Prompt, Vocabulary, generate, stream
from lightning_modules.networks.causal_lm import CausalLM

END = FACTS["sep_id"]
NEVER = (0, 1, 2, 4)
LETTERS = Vocabulary(
    size=60,
    end_id=END,
    never=NEVER,
    decode=lambda ids: "".join(chr(ord("一") + i) for i in ids),
    encode=lambda text: [ord(character) - ord("一") for character in text],
)
PROMPTS = [
    Prompt([2, 9, 33, 3], [50, 50, 50, 50], 51),
    Prompt([2, 7, 8, 9, 3, 41, 42, 3], [50, 50, 50, 50, 50, 51, 51, 51], 50),
    Prompt([2], [50], 50),
    Prompt([2, 20, 21, 3, 22, 3], [50, 50, 50, 50, 51, 51], 50),
]
NO_ROLES = [Prompt(prompt.ids) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def network() -> CausalLM:
    torch.manual_seed(0)
    network = CausalLM(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    network.build(FACTS, 60)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)  # else all tokens are about equally probable
        ends = network.model.lm_head.weight[END]
        network.model.transformer.ln_f.bias += 1.2 * ends / ends.dot(ends)  # the end comes now and then
    return network.eval()


class Table(nn.Module):
    """The next token's logits are a row of a table, chosen by the last token; counts the rows that it was given."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.float())
        self.rows_read, self.tokens_read = [], 0

    def step(self, input_ids, role_ids, mask, position_ids, cache=None):
        self.rows_read.append(len(input_ids))
        self.tokens_read += input_ids.numel()
        assert mask.shape[1] == input_ids.shape[1] + (0 if cache is None else cache)
        return self.logits[input_ids[:, -1]], mask.shape[1]

    def reorder(self, cache, index):
        return cache


class WithoutCache(nn.Module):
    """Reads everything anew at each step."""

    def __init__(self, network: CausalLM):
        super().__init__()
        self.network = network

    def step(self, input_ids, role_ids, mask, position_ids, cache=None):
        read = (input_ids, role_ids, position_ids)
        if cache is not None:
            read = tuple(torch.cat(parts, 1) for parts in zip(cache, read, strict=True))
        ids, roles, positions = read
        return self.network.step(ids, roles, mask, positions)[0], read

    def reorder(self, cache, index):
        return tuple(part[index] for part in cache)


def follow(chain: dict[str, str | dict[str, float]], tokens: list[str]) -> tuple[Table, Vocabulary]:
    """A network and its vocabulary `[BEGIN] [END] *tokens`: behind a token comes what `chain` says ("." is the end), with
    the logits given, else 10; everything else has 0."""
    names = ["^", ".", *tokens]
    logits = torch.zeros(len(names), len(names))
    for name, nexts in chain.items():
        for other, value in (nexts if isinstance(nexts, dict) else {nexts: 10.0}).items():
            logits[names.index(name), names.index(other)] = value

    def encode(text: str) -> list[int]:
        ids, text = [], unicodedata.normalize("NFKC", text)
        while text:
            best = max((name for name in names if text.startswith(name)), key=len, default="^")
            ids.append(names.index(best))
            text = text[len(best) :] if best != "^" else text[1:]
        return ids

    def decode(ids: list[int]) -> str:
        return "".join(names[i] for i in ids if i > 1)

    return Table(logits), Vocabulary(len(names), 1, (0,), decode, encode)


def say(chain, tokens, seed=0, **options) -> str:
    """What is said behind `^`, greedily unless `options` say otherwise; a stream says the same."""
    network, vocabulary = follow(chain, tokens)
    decoding = Decoding(**{"top_k": 1} | options)
    [[reply, *_]] = generate(network, [Prompt([0])], decoding, vocabulary, seed)
    if decoding.beams == decoding.candidates == 1:
        streamed = []
        for ids in stream(network, Prompt([0]), decoding, vocabulary, seed):
            assert not torch.is_inference_mode_enabled()  # it is the network's, not the listener's
            streamed.append(ids)
        assert streamed[-1] == reply.ids
        for earlier, later in zip(streamed, streamed[1:], strict=False):
            assert len(earlier) < len(later) and later[: len(earlier)] == earlier
    return vocabulary.decode(reply.ids) + ("." if reply.finished else "…")


# --------------------------------------------------------------------------------- against other ways to the same


def test_greedy_replies_are_those_of_transformers(network):
    replies = generate(network, NO_ROLES, Decoding(top_k=1, min_length=3, max_length=12), LETTERS, 0)
    for prompt, [reply] in zip(NO_ROLES, replies, strict=True):
        theirs = network.model.generate(
            torch.tensor([prompt.ids]),
            attention_mask=torch.ones(1, len(prompt.ids)),
            do_sample=False,
            min_new_tokens=3,
            max_new_tokens=12,
            eos_token_id=END,
            pad_token_id=0,
            suppress_tokens=list(NEVER),
        )[0, len(prompt.ids) :].tolist()
        assert reply.ids + [END] * reply.finished == theirs


@pytest.mark.parametrize("min_length", [0, 4])
def test_beam_search_is_that_of_transformers(network, min_length):
    decoding = Decoding(beams=4, candidates=4, min_length=min_length, max_length=9)
    prompts = NO_ROLES + [Prompt([2, number, number + 1, 3]) for number in (8, 19, 47)]
    lengths = set()
    for prompt, replies in zip(prompts, generate(network, prompts, decoding, LETTERS, 0), strict=True):
        theirs = network.model.generate(
            torch.tensor([prompt.ids]),
            attention_mask=torch.ones(1, len(prompt.ids)),
            do_sample=False,
            num_beams=4,
            num_return_sequences=4,
            min_new_tokens=min_length or None,
            max_new_tokens=9,
            eos_token_id=END,
            pad_token_id=0,
            suppress_tokens=list(NEVER),
        )[:, len(prompt.ids) :].tolist()
        ours = [reply.ids + [END] * reply.finished for reply in replies]
        # Theirs are padded, here with the end token.
        assert ours == [ids[: (ids + [END]).index(END) + 1] for ids in theirs]
        lengths |= {len(ids) for ids in ours}
    assert len(lengths) > 2  # some ended early, some were cut


@pytest.mark.parametrize(
    "options", [{"top_k": 8}, {"top_k": 0, "candidates": 3}, {"beams": 3, "candidates": 2}]
)
def test_replies_depend_neither_on_the_batch_nor_on_the_cache(network, options):
    decoding = Decoding(**options, max_length=24, repetition_penalty=1.2, no_repeat_ngram=2)
    seeds = [11, 12, 13, 14]
    together = generate(network, PROMPTS, decoding, LETTERS, seeds)
    assert len({len(reply.ids) for replies in together for reply in replies}) > 1
    alone = [
        generate(network, [prompt], decoding, LETTERS, [seed])[0]
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    anew = generate(WithoutCache(network), PROMPTS, decoding, LETTERS, seeds)
    for other in (alone, anew):
        assert [[reply.ids for reply in replies] for replies in other] == [
            [reply.ids for reply in replies] for replies in together
        ]
        for replies, expected in zip(other, together, strict=True):
            assert [r.log_prob for r in replies] == pytest.approx([r.log_prob for r in expected], abs=1e-4)


def test_roles_are_read(network):
    decoding = Decoding(top_k=1, max_length=8)
    with_roles, without = (
        generate(network, prompts, decoding, LETTERS, 0) for prompts in (PROMPTS, NO_ROLES)
    )
    assert with_roles != without


@pytest.mark.parametrize(
    "options", [{"temperature": 3.0, "top_p": 0.9}, {"beams": 3, "repetition_penalty": 5.0}]
)
def test_log_prob_is_that_of_the_model_itself(network, options):
    replies = generate(network, NO_ROLES, Decoding(max_length=3, candidates=3, **options), LETTERS, 5)
    assert {reply.finished for of_prompt in replies for reply in of_prompt} == {True, False}
    for prompt, reply in (
        (p, reply) for p, of_prompt in zip(NO_ROLES, replies, strict=True) for reply in of_prompt
    ):
        said = reply.ids + [END] * reply.finished
        ids = torch.tensor(prompt.ids + said)
        with torch.no_grad():
            log_probs = network.model(ids[None, :-1]).logits[0].double().log_softmax(-1)
        expected = log_probs.gather(1, ids[1:, None]).squeeze(1)[-len(said) :].sum().item()
        assert reply.log_prob == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1.0, 5, 1.0), (0.7, 0, 1.0), (1.5, 0, 0.6), (0.9, 6, 0.75), (1.0, 4, 1e-9)]
)
def test_frequencies_are_those_of_the_filtered_distribution(temperature, top_k, top_p):
    logits = np.array([9.0, 0.3, 8.0, 1.5, 1.1, -0.4, 2.2, 0.0, 0.9, -5.0, 7.0])
    size, end, never, draws = 10, 1, (0, 2), 20_000
    # Independently: rank, keep k, renormalise, keep the tokens before which less than p is reached.
    probabilities = np.exp(logits / temperature)
    probabilities[[0, 2, 10]] = 0
    order = np.argsort(-probabilities)
    probabilities[order[top_k or size :]] = 0
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    probabilities /= probabilities.sum()

    decoding = Decoding(temperature, top_k, top_p, min_length=0, max_length=1, candidates=draws)
    network = Table(torch.tensor(logits).repeat(11, 1))
    vocabulary = Vocabulary(size, end, never, str, lambda text: [])
    [replies] = generate(network, [Prompt([0])], decoding, vocabulary, 1)
    tokens = [reply.ids[0] if reply.ids else end for reply in replies]
    counts = np.bincount(tokens, minlength=11)
    assert (counts[probabilities == 0] == 0).all()
    expected = draws * probabilities[probabilities > 0]
    chi_square = ((counts[probabilities > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 28  # the 0.999 quantile at 9 degrees of freedom


def test_a_seed_decides_a_reply():
    network = Table(torch.zeros(60, 60))
    decoding = Decoding(top_k=0, candidates=2, max_length=20, min_length=20)
    prompts = [Prompt([2])] * 3

    def replies(seed):
        return [
            reply.ids
            for of_prompt in generate(network, prompts, decoding, LETTERS, seed)
            for reply in of_prompt
        ]

    assert replies(7) == replies(7)
    # Prompts and candidates draw for themselves.
    distinct = [*replies(7), *replies(8), *replies([7, 2**40, -1])[2:]]
    assert len({tuple(ids) for ids in distinct}) == 6 + 6 + 4
    assert replies([7, 7, 7])[:2] == replies([7, 7, 7])[4:] == replies(7)[:2]
    with pytest.raises(ValueError, match="seed: there are 2 for 3 prompts"):
        replies([7, 8])


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-320])
def test_low_temperatures_are_greedy(network, temperature):
    greedy, cold = (
        generate(network, PROMPTS, Decoding(max_length=8, **options), LETTERS, 0)
        for options in ({"top_k": 1}, {"temperature": temperature, "top_k": 0})
    )
    assert cold == greedy


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1e308}, {"repetition_penalty": 1e-308}, {"temperature": 1e308}]
)
@pytest.mark.parametrize("beams", [1, 2])
def test_extreme_options_stay_finite(network, options, beams):
    for [reply] in generate(network, PROMPTS, Decoding(max_length=8, beams=beams, **options), LETTERS, 0):
        assert reply.ids and math.isfinite(reply.log_prob)


def test_a_prompt_is_read_once_and_finished_rows_leave():
    chain = {"^": {"a": 5.0, ".": 5.0}, "a": {"a": 5.0, ".": 5.0}}
    network, vocabulary = follow(chain, ["a"])
    decoding = Decoding(candidates=8, min_length=0, max_length=30)
    [replies] = generate(network, [Prompt([0, 2, 2, 0])], decoding, vocabulary, 0)
    lengths = [len(reply.ids) for reply in replies]
    assert network.rows_read[0] == 1
    # A row is read for each token that another one follows.
    assert network.tokens_read == 4 + sum(lengths)
    per_token = [reply.log_prob / (len(reply.ids) + 1) for reply in replies]
    assert per_token == sorted(per_token, reverse=True)


# -------------------------------------------------------------------------------------------------- constraints

CYCLE = {"^": "a", "a": "b", "b": "c", "c": "a"}


def test_lengths():
    assert say({"^": "."}, ["a"], min_length=0) == "."
    assert say({"^": {".": 10.0, "a": 5.0}, "a": {".": 10.0, "a": 5.0}}, ["a"], min_length=3) == "aaa."
    assert say(CYCLE, ["a", "b", "c"], max_length=5) == "abcab…"
    beams = {"beams": 2, "min_length": 4, "max_length": 4}
    assert say({"^": {".": 10.0, "a": 5.0}, "a": {".": 10.0, "a": 5.0}}, ["a"], **beams) == "aaaa…"


def test_repetition_is_counted_in_the_reply_alone():
    chain = {name: {"a": 4.0, "b": 3.0, "c": 1.0} for name in "^abc"}
    network, vocabulary = follow(chain, ["a", "b", "c"])
    told = [Prompt([0, *vocabulary.encode("aabab")])]

    def said(**options):
        [[reply]] = generate(network, told, Decoding(top_k=1, max_length=6, **options), vocabulary, 0)
        return vocabulary.decode(reply.ids)

    assert said() == "aaaaaa"
    assert said(repetition_penalty=1.5) == "abaaaa"  # 4 / 1.5 < 3; 3 / 1.5 < 4 / 1.5
    assert said(no_repeat_ngram=1) == "abc"  # then nothing is left but to end
    assert said(no_repeat_ngram=2) == "aabaca"


TOKENS = ["a", "b", "ab", "bc", "c", "X"]


@pytest.mark.parametrize(
    "chain, banned, expected",
    [
        # In one token, over two tokens, inside of a longer token, completed by the beginning of one.
        ({"^": {"ab": 9, "c": 8}, "c": "."}, ["ab"], "c."),
        ({"^": "a", "a": {"b": 9, "c": 8}, "c": "."}, ["ab"], "ac."),
        ({"^": {"bc": 9, "a": 8}, "a": "."}, ["b"], "a."),
        ({"^": "a", "a": {"bc": 9, "b": 8, "c": 7}, "c": "."}, ["ab"], "ac."),
        # Case; the vocabulary's spelling; a character that it does not have; several words.
        ({"^": {"X": 9, "a": 8}, "a": "."}, ["x"], "a."),
        ({"^": {"a": 9, "b": 8}, "b": "."}, ["ａ"], "b."),
        ({"^": "a", "a": "."}, ["喵a"], "a."),
        ({"^": {"X": 9, "a": 8, "b": 7}, "b": "."}, ["X", "A"], "b."),
        # Nothing else is left: it ends.
        ({"^": "a", "a": "b"}, ["b", "c", "x", "aa"], "a."),
    ],
)
@pytest.mark.parametrize("options", [{}, {"beams": 3}, {"temperature": 0.01, "top_k": 0}])
def test_banned_words_are_never_said(chain, banned, expected, options):
    assert say(chain, TOKENS, banned_words=banned, **options) == expected


def test_banned_words_are_never_drawn():
    chain = {name: {other: 1.0 for other in TOKENS} for name in ["^", *TOKENS]}
    network, vocabulary = follow(chain, TOKENS)
    decoding = Decoding(top_k=0, candidates=300, max_length=12, banned_words=["AB", "cc"], stop_words=["x"])
    [replies] = generate(network, [Prompt([0])], decoding, vocabulary, 0)
    texts = [vocabulary.decode(reply.ids) for reply in replies]
    assert not [text for text in texts if "ab" in text or "cc" in text or "X" in text]
    assert {"ac", "bc", "ba"} <= {text[at : at + 2] for text in texts for at in range(len(text))}
    assert max(map(len, texts)) > 12 and all(texts)


@pytest.mark.parametrize(
    "chain, options, expected",
    [
        (CYCLE, {"stop_words": ["c"]}, "ab."),
        (CYCLE, {"stop_words": ["ca", "cb"]}, "ab."),
        (CYCLE, {"stop_words": ["cab"], "max_length": 5}, "ab."),
        # What looked like one and was none, or was cut, is said.
        (CYCLE, {"stop_words": ["cb"], "max_length": 4}, "abca…"),
        (CYCLE, {"stop_words": ["cab"], "max_length": 3}, "abc…"),
        # Whole tokens go; the first of several; case.
        ({"^": "a", "a": "bc", "bc": "."}, {"stop_words": ["c"]}, "a."),
        (CYCLE, {"stop_words": ["c", "b"]}, "a."),
        ({"^": "a", "a": "X"}, {"stop_words": ["x"]}, "a."),
        # Not before min_length: another token comes instead.
        ({"^": "a", "a": {"b": 9, "c": 8}, "c": "b"}, {"stop_words": ["b"], "min_length": 2}, "ac."),
    ],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_reply_ends_before_a_stop_word(chain, options, expected, beams):
    candidates = {"candidates": 2} if beams > 1 else {}
    assert say(chain, TOKENS, beams=beams, **candidates, **options) == expected


def test_beams_that_are_cut_to_one_reply_count_once():
    network, vocabulary = follow({"^": "a", "a": {"X": 9, "c": 9, "b": 1}}, TOKENS)
    decoding = Decoding(beams=3, candidates=3, max_length=4, stop_words=["x", "c"])
    [replies] = generate(network, [Prompt([0])], decoding, vocabulary, 0)
    ids = [tuple(reply.ids) for reply in replies]
    assert len(set(ids)) == len(ids) and ids[0] == tuple(vocabulary.encode("a"))


@pytest.mark.parametrize("options", [{"beams": 4, "candidates": 3}, {"candidates": 3}, {"top_k": 1}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_network_without_sense_still_replies(options, value):
    network = Table(torch.full((60, 60), value))
    [replies] = generate(network, [Prompt([2])], Decoding(max_length=4, **options), LETTERS, 0)
    assert replies and not any(math.isnan(reply.log_prob) for reply in replies)
    if value != math.inf:
        assert all(reply.ids == [] and reply.finished for reply in replies)


# ------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0}, "decoding.temperature=0: must be above 0"),
        ({"temperature": math.inf}, "decoding.temperature=inf: must be a finite number"),
        ({"temperature": math.nan}, "decoding.temperature=nan: must be a finite number"),
        ({"temperature": "hot"}, "decoding.temperature=hot: must be a finite number"),
        ({"top_k": -1}, "decoding.top_k=-1: must be at least 0"),
        ({"top_k": 2.5}, "decoding.top_k=2.5: must be a whole number"),
        ({"top_k": True}, "decoding.top_k=True: must be a whole number"),
        ({"top_p": 0.0}, "decoding.top_p=0.0: must be above 0"),
        ({"top_p": 1.1}, "decoding.top_p=1.1: must be at most 1"),
        ({"min_length": -1}, "decoding.min_length=-1: must be at least 0"),
        ({"max_length": 0}, "decoding.max_length=0: must be at least 1"),
        ({"min_length": 9, "max_length": 8}, "decoding.min_length=9: must be at most decoding.max_length=8"),
        ({"repetition_penalty": -1.0}, "decoding.repetition_penalty=-1.0: must be above 0"),
        ({"no_repeat_ngram": -1}, "decoding.no_repeat_ngram=-1: must be at least 0"),
        ({"beams": 0}, "decoding.beams=0: must be at least 1"),
        ({"candidates": 0}, "decoding.candidates=0: must be at least 1"),
        ({"beams": 2, "candidates": 3}, "decoding.candidates=3: must be at most decoding.beams=2"),
        ({"banned_words": "脏话"}, "decoding.banned_words=脏话: must be a list of texts"),
        ({"banned_words": [1]}, r"decoding.banned_words=\[1\]: must be a list of texts"),
        ({"stop_words": ["好", ""]}, r"decoding.stop_words=\['好', ''\]: a word must not be empty"),
        ({"topk": 5}, "decoding.topk: no such option; there are temperature, top_k"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Decoding().replace(**options)


def test_replace_keeps_the_rest():
    decoding = Decoding(top_k=3, stop_words=["好"])
    changed = decoding.replace(top_p=0.5, max_length=4)
    assert vars(changed) == vars(decoding) | {"top_p": 0.5, "max_length": 4}
    assert decoding.max_length == 32


def test_prompts_without_tokens(network):
    assert generate(network, [], Decoding(), LETTERS, 0) == []
    with pytest.raises(ValueError, match=r"prompts\[1\]: has no tokens"):
        generate(network, [Prompt([2]), Prompt([])], Decoding(), LETTERS, 0)
