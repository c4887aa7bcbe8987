"""The common part of every text corpus: vocabulary, token cache, plan of batches, loaders."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from datamodules.base import SPLITS, Budget, CorpusDataModule, Split
from datamodules.batch import TokenBatch
from datamodules.build import build
from datamodules.cache import cache_key, damaged, default_cache_dir, written_whole
from datamodules.corpus import DataError, Row
from datamodules.encoding import RowEncoder, Truncation
from datamodules.plan import micro_batches
from datamodules.store import FORMAT_VERSION, TokenStore, open_or_build
from datamodules.tokenizers.base import Tokenizer, load_tokenizer, read_saved

log = logging.getLogger(__name__)


class TextDataModule(CorpusDataModule):
    """Text rows as flat `TokenBatch`es, tokenized once into a cache.

    A corpus is a subclass that says what its rows are: `read`, `fingerprint`, `describe`, and `label_names` where
    it has labels.

    Args:
        tokenizer: a tokenizer's options with `_target_`, or a tokenizer; None is enough to `read` rows.
        max_length: longest row in tokens, special tokens included; texts are cut to as many characters.
        tokens_per_batch: tokens of one optimiser step, over all devices and micro-batches.
        max_tokens_per_device: tokens that a device holds at a time; more micro-batches make up the rest.
        num_proc: processes that tokenize; 1: this one.
        cache_dir: where token caches lie; None: `$XDG_CACHE_HOME/kexue-lightning` or `~/.cache/kexue-lightning`.
        inspect: look at the corpus and report, instead of training on it (train.py does).
        options: as of `CorpusDataModule`.

    Attributes:
        truncation: how rows longer than `max_length` are cut, see `RowEncoder`.
        left_out: rows of a split's files that `read` did not give, by reason; complete when it is exhausted.
        stores: the tokenized splits, after `setup`.
    """

    kind = "text"
    provides = frozenset({"text"})
    metrics = ("data/characters_per_token", "data/unknown_share", "data/cut_share")
    truncation: Truncation = "longest"

    def __init__(
        self,
        tokenizer: dict | Tokenizer | None = None,
        max_length: Annotated[int, "x >= 4"] = 128,
        tokens_per_batch: Annotated[int, "x >= 1"] = 2048,
        max_tokens_per_device: Annotated[int, "x >= 1"] = 16384,
        num_proc: Annotated[int, "x >= 1"] = 1,
        cache_dir: str | None = None,
        inspect: bool = False,
        **options: Any,
    ):
        super().__init__(**options)
        if max_length < 4:
            raise ValueError(f"max_length={max_length}: must be at least 4 ([CLS], [SEP] and some text)")
        micro_batches(tokens_per_batch, max_tokens_per_device, max_length, world_size=1)
        self.tokenizer = build(tokenizer)
        self.max_length = max_length
        self.tokens_per_batch = tokens_per_batch
        self.max_tokens_per_device = max_tokens_per_device
        self.num_proc = num_proc
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.inspect = inspect
        self.left_out: dict[Split, Counter[str]] = {}

    def read(self, split: Split) -> Iterator[Row]:
        """The rows of a split in a fixed order; none where the corpus lacks it."""
        raise NotImplementedError

    def fingerprint(self, split: Split) -> str:
        """Names the content that `read(split)` gives."""
        raise NotImplementedError

    @property
    def budget(self) -> Budget:
        return Budget(self.tokens_per_batch, self.max_tokens_per_device, self.max_length)

    # Lightning calls this on one process of each machine: everything that is computed once is written here.
    def prepare_data(self) -> None:
        if self.stores:
            return
        self.check_selection()
        self.prepare_tokenizer()
        for split in SPLITS:
            self._store(split)

    def setup(self, stage: str | None = None) -> None:
        if self.stores:
            return
        self.check_selection()
        self.prepare_tokenizer()
        self.stores = {split: self._store(split) for split in SPLITS}
        for split, store in self.stores.items():
            if len(store):
                log.info(f"{split}: {_summary(store)}")
        self.select_rows()

    def prepare_tokenizer(self) -> None:
        """Give the tokenizer its vocabulary where it has none: from the cache, or from the training texts."""
        if self.tokenizer is None:
            raise ValueError("tokenizer=None: give one, or its options with _target_")
        if self.tokenizer.built:
            return
        key = cache_key(self._content("train"), self.tokenizer.fingerprint)
        directory = self.cache_dir / "vocabularies" / key
        if directory.exists():
            try:
                self.tokenizer = load_tokenizer(directory)
                if self.tokenizer.fingerprint != read_saved(directory)["fingerprint"]:
                    raise ValueError("it is not the one that was saved")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise damaged("vocabulary", directory, error) from error
            return
        texts = (text for row in self.read("train") for text in row.texts)
        try:
            self.tokenizer.build(texts, processes=self.num_proc)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{self.describe()['source']}: {error}") from error
        with written_whole(directory) as building:
            self.tokenizer.save(building)
        log.info(f"vocabulary: {self.tokenizer.vocab_size:,} entries, by what the training split holds")

    @property
    def facts(self) -> dict:
        """What a technique must know of the corpus, as primitives: ids, sizes, labels."""
        tokenizer = self.tokenizer
        return {
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "unk_id": tokenizer.unk_id,
            "cls_id": tokenizer.cls_id,
            "sep_id": tokenizer.sep_id,
            "mask_id": tokenizer.mask_id,
            "special_ids": [int(i) for i in tokenizer.special_ids],
            "max_length": self.max_length,
            "train_characters": self.stores["train"].facts["distinct_characters"],
            **super().facts,
        }

    def metric_values(self) -> dict[str, float]:
        """Of the training split as a whole: original characters a token covers, the share of [UNK] among the tokens, the
        share of rows that were cut."""
        return {f"data/{name}": value for name, value in _shares(self.stores["train"]).items()}

    def token_counts(self) -> np.ndarray:
        """int64 [vocab_size]: unigram counts of the training rows."""
        return self.stores["train"].token_counts(self.tokenizer.vocab_size, self.selected.rows)

    def _content(self, split: Split) -> tuple[object, ...]:
        """What `read(split)` gives: the code that reads it, and the corpus' own fingerprint, which is asked for anew:
        files may change before their rows are read."""
        return (*self._code, self.fingerprint(split))

    @cached_property
    def _code(self) -> tuple[str, ...]:
        """The code that reads the rows; asked for once, since the code that runs stays what it is."""
        cls = type(self)
        bases = [c for c in cls.__mro__ if issubclass(c, TextDataModule) and c is not TextDataModule]
        code = []
        for base in bases:
            with suppress(OSError, TypeError):  # a class that was typed into a notebook has no file
                code.append(hashlib.sha256(Path(inspect.getfile(base)).read_bytes()).hexdigest())
        return (f"{cls.__module__}.{cls.__qualname__}", *code)

    def _store(self, split: Split) -> TokenStore:
        num_classes = len(self.label_names) if self.multi_label else None
        options = (self.max_length, self.truncation, num_classes)
        key = cache_key(self._content(split), self.tokenizer.fingerprint, *options, FORMAT_VERSION)
        return open_or_build(
            self.cache_dir / "tokens" / key,
            self.read(split),
            RowEncoder(self.tokenizer, *options),
            f"{split} split",
            self.num_proc,
            lambda: self.left_out.get(split, {}),
        )


def _shares(store: TokenStore) -> dict[str, float]:
    """Of a split's texts as far as they are not cut, without special tokens and white space."""
    facts, tokens = store.facts, store.text_tokens
    return {
        "characters_per_token": facts["num_characters"] / tokens,
        "unknown_share": facts["unknown_tokens"] / tokens,
        "cut_share": facts["truncated_rows"] / facts["num_rows"],
    }


def _summary(store: TokenStore) -> str:
    """A store's facts in a line."""
    facts, shares = store.facts, _shares(store)
    line = (
        f"{facts['num_rows']:,} rows, {facts['num_tokens']:,} tokens, "
        f"{shares['characters_per_token']:.2f} characters a token, "
        f"{shares['unknown_share']:.2%} [UNK], {facts['truncated_rows']:,} rows cut"
    )
    return line + "".join(f", left out {count:,} ({why})" for why, count in facts["left_out"].items())


@dataclass
class TextInput:
    """Prepares texts that are not of the corpus as its rows are; what `predict_<task>` gets besides the texts.

    Attributes:
        tokenizer: the run's tokenizer.
        max_length: longest row in tokens.
        dialogues: rows are dialogues, each the tuple of its turns.
    """

    tokenizer: Tokenizer
    max_length: int
    dialogues: bool = False

    def encode(
        self,
        texts: list[str | tuple[str, ...]],
        truncation: Truncation | None = None,
        max_length: int | None = None,
    ) -> TokenBatch:
        """`[CLS] text [SEP]` rows, or `[CLS] text [SEP] pair [SEP]` of a pair, as one batch; row ids count from 0.

        Args:
            truncation: how longer rows are cut, see `RowEncoder`. None: dialogues lose their oldest turns, of other
                rows the longest text loses its end.
            max_length: longest row in tokens; None: the input's own.
        """
        truncation = truncation or ("last_turns" if self.dialogues else "longest")
        encode = RowEncoder(self.tokenizer, max_length or self.max_length, truncation)
        encoded = encode([Row(text) for text in texts])
        return TokenBatch.from_numpy(
            input_ids=encoded.tokens,
            lengths=encoded.lengths,
            char_counts=encoded.chars,
            word_starts=encoded.word_starts,
            text_starts=encoded.text_starts,
            row_ids=np.arange(len(texts)),
        )

    def shown(self, text: str | tuple[str, ...]) -> dict[str, Any]:
        """What a prediction says of its row: `text`, and `text_pair` of a pair; of more texts a list."""
        if isinstance(text, str):
            return {"text": text}
        return {"text": text[0], "text_pair": text[1]} if len(text) == 2 else {"text": list(text)}
