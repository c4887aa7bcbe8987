"""Speed of tokenizers in one process: characters a second from text to ids.

    python benchmarks/tokenization.py --text train.json dev.json

    word, char         this project's: ids, the characters of each token, and which tokens open a word;
                       "first" has not seen a word of the text yet, "warm" has seen them all
    rjieba, jieba      segmentation alone (HMM=False), no ids
    BertTokenizer      Hugging Face's stock class with the vocabulary of `char`, ids only
    RoFormerTokenizer  their stock class for WoBERT with the vocabulary of `word`, ids only

This project's tokenizers, jieba and rjieba use one thread. The stock classes are measured with one thread
and, as they come, with one for every core. Dictionaries and vocabularies are loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from itertools import chain
from typing import Any
from unittest import mock

import jieba
import rjieba
from texts import HELP, read_texts
from transformers import AutoTokenizer

from datamodules.corpus import DataError
from datamodules.encoding import ROWS_PER_CHUNK
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.word import WordTokenizer

# Texts to the number of tokens that came out.
Encode = Callable[[list[str]], int]

REFERENCE = "word, warm"


def contestants(texts: list[str], vocab: str | None, directory: str) -> dict[str, Callable[[], Encode]]:
    """Name to what makes the function that is timed; making it is not timed.

    Args:
        vocab: a vocab.txt for all of them; None: `word` and `char` each build their own from the texts.
        directory: where the stock classes' files are written.
    """
    made: dict[str, Callable[[], Encode]] = {}
    for name, cls in (("word", WordTokenizer), ("char", CharTokenizer)):
        tokenizer = cls(vocab=vocab)
        if not tokenizer.built:
            tokenizer.build(texts, progress=False)
        tokenizer.save(f"{directory}/{name}")
        tokenizer.encode_batch(texts)
        made[f"{name}, first"] = lambda cls=cls, tokens=tokenizer.vocab: _ours(cls(vocab=tokens))
        made[f"{name}, warm"] = lambda tokenizer=tokenizer: _ours(tokenizer)
    made["rjieba"] = lambda: lambda batch: sum(len(rjieba.cut(text, False)) for text in batch)
    made["jieba"] = lambda: lambda batch: sum(len(jieba.lcut(text, HMM=False)) for text in batch)
    for name in ("char", "word"):
        stock = AutoTokenizer.from_pretrained(f"{directory}/{name}")
        title = type(stock).__name__
        made[f"{title}, 1 thread"] = lambda stock=stock: _stock(stock, parallel="false")
        made[f"{title}, {os.cpu_count()} threads"] = lambda stock=stock: _stock(stock, parallel="true")
    return made


def _ours(tokenizer: WordTokenizer | CharTokenizer) -> Encode:
    return lambda batch: len(tokenizer.encode_batch(batch).ids)


def _stock(stock: Any, parallel: str) -> Encode:
    only_ids = dict(add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)

    def encode(batch: list[str]) -> int:
        # The Rust side reads the variable at every call.
        with mock.patch.dict(os.environ, TOKENIZERS_PARALLELISM=parallel):
            rows = stock(batch, **only_ids)
        return sum(map(len, rows["input_ids"]))

    return encode


def measure(make: Callable[[], Encode], texts: list[str], repeat: int) -> tuple[float, int]:
    """Characters a second over `texts` taken `repeat` times, and the tokens of one pass."""
    encode = make()
    batches = [texts[start : start + ROWS_PER_CHUNK] for start in range(0, len(texts), ROWS_PER_CHUNK)]
    started = time.perf_counter()
    for _ in range(repeat):
        tokens = sum(map(encode, batches))
    return repeat * sum(map(len, texts)) / (time.perf_counter() - started), tokens


def report(speeds: dict[str, list[float]], tokens: dict[str, int]) -> None:
    """Print a row for each contestant."""
    print(f"{'':28}{'characters/s':>14}{'lowest':>12}{'highest':>12}{'tokens':>12}{f'{REFERENCE} is':>18}")
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speeds[REFERENCE], values, strict=True))
        print(
            f"{name:28}{statistics.median(values):14,.0f}{min(values):12,.0f}{max(values):12,.0f}"
            f"{tokens[name]:12,}{ratio:12.2f} times"
        )


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Measure and print; returns characters a second by contestant and round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", nargs="+", metavar="FILE", help=HELP)
    add("--vocab", metavar="FILE", help="a vocab.txt for all; default: built from the texts")
    add(
        "--repeat",
        type=int,
        default=3,
        metavar="N",
        help="passes over the texts (a first call is one); default: 3",
    )
    add("--rounds", type=int, default=5, metavar="N", help="default: 5")
    options = parser.parse_args(arguments)
    if min(options.repeat, options.rounds) < 1:
        parser.error("--repeat and --rounds must be at least 1")
    jieba.setLogLevel(logging.WARNING)
    jieba.initialize()
    texts = read_texts(options.text)
    characters = set(chain.from_iterable(texts))
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} characters, {len(characters):,} different ones\n")
    speeds: dict[str, list[float]] = {}
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as directory:
        made = contestants(texts, options.vocab, directory)
        for _ in range(options.rounds):
            for name, make in made.items():
                repeat = 1 if name.endswith("first") else options.repeat
                speed, tokens[name] = measure(make, texts, repeat)
                speeds.setdefault(name, []).append(speed)
    report(speeds, tokens)
    return speeds


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
