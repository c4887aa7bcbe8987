"""Any tokenizer of the Hugging Face world, with character counts and word starts as the others give them."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.tokenizers.base import (
    Encodings,
    Token,
    Tokenizer,
    fingerprint_of,
    resolve_pretrained,
    trace,
    write_saved,
)
from datamodules.tokenizers.segment import Segmenter
from datamodules.tokenizers.vocabulary import pack
from datamodules.tokenizers.wordpiece import join_tokens

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_SURROGATES = re.compile("[\ud800-\udfff]")  # lone ones, which Rust cannot hold


class PretrainedTokenizer(Tokenizer):
    """`AutoTokenizer.from_pretrained(name)`, without code from the hub.

    Args:
        name: a Hugging Face directory, a run or its export, or a hub name. It needs a fast tokenizer (for
            offsets) with a sep or an eos token. eos stands in for sep and pad where they are missing, bos or eos for
            cls; unknown and mask tokens may be missing.

    Raises ValueError, `name` first, where nothing can be loaded or no token ends a text.
    """

    def __init__(self, name: str) -> None:
        if not name:
            raise ValueError(
                f"name={name}: name a Hugging Face directory, a run or a hub name such as bert-base-chinese"
            )
        self.name = name
        self._loaded: Any = _load(name)
        stock = self._stock
        sep_id = _first(stock.sep_token_id, stock.eos_token_id)
        if sep_id is None:
            raise ValueError(
                f"name={name}: this tokenizer has no token that ends a turn (neither sep_token nor eos_token); name "
                "one in its tokenizer_config.json, use another, or tokenizer=char"
            )
        tokens = self._stock.convert_ids_to_tokens(list(range(len(self._stock))))
        self.vocab = ["" if token is None else token for token in tokens]
        self.sep_id: int = sep_id
        self.cls_id = _first(stock.cls_token_id, stock.bos_token_id, sep_id)
        self.pad_id = _first(stock.pad_token_id, stock.eos_token_id, sep_id)
        self.mask_id = stock.mask_token_id
        # GPT-2 names its end of text the unknown token too, which would count as one in every row.
        shared = stock.unk_token_id in (self.pad_id, self.cls_id, self.sep_id)
        self.unk_id = None if shared else stock.unk_token_id
        special = sorted(set(self._stock.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)))
        self.segmenter = Segmenter(None, lowercase=True)

    @property
    def _stock(self) -> Any:
        if self._loaded is None:  # in another process
            self._loaded = _load(self.name)
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}  # RoFormer's class does not pickle

    @classmethod
    def from_saved(cls, directory: str, options: dict[str, Any]) -> Tokenizer:
        return cls(directory, **options)

    @property
    def built(self) -> bool:
        return True

    @property
    def fingerprint(self) -> str:
        stock = self._stock
        backend = stock.backend_tokenizer
        parts = (backend.normalizer, backend.pre_tokenizer, backend.model)
        # Models of one vocabulary may end their texts by different tokens, as Qwen's base and chat models do.
        named = stock.cls_token_id is not None and stock.sep_token_id is not None
        roles = () if named else (self.cls_id, self.sep_id)
        return fingerprint_of(
            type(self).__name__, type(stock).__name__, *map(_state, parts), self.segmenter.name, *roles
        )

    def build(self, texts: Iterable[str], progress: bool = True, processes: int = 1) -> None:
        raise ValueError(f"name={self.name}: a pretrained tokenizer brings its vocabulary")

    def encode_batch(self, texts: Sequence[str]) -> Encodings:
        rows = self._analyse_all(texts)
        packed = pack([token for row in rows for token in row])
        return packed._replace(lengths=np.array([len(row) for row in rows], dtype=np.int64))

    def analyse(self, text: str) -> list[Token]:
        return self._analyse_all([text])[0]

    def _analyse_all(self, texts: Sequence[str]) -> list[list[Token]]:
        if not texts:
            return []
        texts = [_SURROGATES.sub("\ufffd", text) for text in texts]
        encodings = self._stock(texts, add_special_tokens=False, return_offsets_mapping=True)
        return [
            self._tokens(text, ids, offsets)
            for text, ids, offsets in zip(
                texts, encodings["input_ids"], encodings["offset_mapping"], strict=True
            )
        ]

    def _tokens(self, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> list[Token]:
        counted, opens = self._marks(text)
        tokens = []
        done = 0  # tokens of one character's bytes share their offsets: it counts once
        for token_id, (start, end) in zip(ids, offsets, strict=True):
            fresh = [i for i in range(max(start, done), end) if counted[i]]
            done = max(done, end)
            word_start = bool(fresh) and opens[fresh[0]]
            tokens.append(
                Token(token_id, self.vocab[token_id], start, end, min(len(fresh), 0xFFFF), word_start)
            )
        return tokens

    def _marks(self, text: str) -> tuple[list[bool], list[bool]]:
        """For each original character: whether it counts, and whether a word opens there."""
        counted, opens = [False] * len(text), [False] * len(text)
        end = 0
        for match in [*self._special.finditer(text), None]:
            start, stop = end, len(text) if match is None else match.start()
            traced = trace(text[start:stop], self.segmenter)
            for index, origin in enumerate(traced.origin):
                counted[start + origin] |= traced.counted[index]
                opens[start + origin] |= traced.opens[index]
            if match is not None:
                end = match.end()
                counted[stop:end] = [True] * (end - stop)
                opens[stop] = True
        return counted, opens

    def stock_differences(self) -> list[str]:
        return []

    @cached_property
    def textless_ids(self) -> frozenset[int]:
        added = (i for i, token in self._stock.added_tokens_decoder.items() if token.special)
        return super().textless_ids.union(added)

    def decode(self, ids: Iterable[int]) -> str:
        kept = [i for i in ids if i not in self.textless_ids]
        if type(self._stock.backend_tokenizer.decoder).__name__ == "WordPiece":  # spaces Chinese
            return join_tokens([self.vocab[i] for i in kept])
        return self._stock.decode(kept)

    def save(self, directory: str, max_length: int | None = None) -> None:
        """Write the stock files and our notes."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        if max_length is not None:
            self._stock.model_max_length = max_length
        self._stock.save_pretrained(directory)
        write_saved(self, directory, {})


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _state(part: Any) -> Any:
    try:
        return part.__getstate__()
    except Exception:  # a pre-tokenizer written in Python has none; the class and its vocabulary name it
        return type(part).__name__


def _load(name: str) -> Any:
    try:
        where = resolve_pretrained(name)
    except ValueError as error:
        raise ValueError(str(error).replace("init_from=", "name=", 1)) from None
    if Path(where).is_dir() and not any((Path(where) / file).is_file() for file in _TOKENIZER_FILES):
        raise ValueError(f"name={name}: {where} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)})")
    from transformers import AutoTokenizer

    try:
        stock = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (
        Exception
    ) as error:  # transformers raises nearly every class here, KeyError and ImportError among them
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"name={name}: no tokenizer could be loaded ({lines[0]}); name a directory with tokenizer.json "
            "or vocab.txt and tokenizer_config.json, or set HF_ENDPOINT to a mirror of the hub"
        ) from None
    if not stock.is_fast:
        raise ValueError(f"name={name}: {type(stock).__name__} gives no offsets; a fast tokenizer is needed")
    return stock
