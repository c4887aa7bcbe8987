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
from typing import Annotated, Literal, get_args

import numpy as np
import pytorch_lightning as pl
import torch

from datamodules.batch import TokenBatch
from datamodules.build import build
from datamodules.cache import cache_key, damaged, default_cache_dir, written_whole
from datamodules.corpus import DataError, Row
from datamodules.encoding import RowEncoder, Truncation
from datamodules.plan import BatchPlan, PlannedLoader, PlannedRows, micro_batches
from datamodules.store import FORMAT_VERSION, TokenStore, open_or_build
from datamodules.tokenizers.base import Tokenizer, load_tokenizer, read_saved

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class TextDataModule(pl.LightningDataModule):
    """Text rows as flat `TokenBatch`es, tokenized once into a cache.

    A corpus is a subclass that says what its rows are: `read`, `fingerprint`, `describe`, and `label_names` where
    it has labels. It declares, as literals (the configuration check reads them without importing anything heavy),
    what it `provides`, and as `metrics` the names in `metric_values()`.

    Args:
        tokenizer: a tokenizer's options with `_target_`, or a tokenizer; None is enough to `read` rows.
        max_length: longest row in tokens, special tokens included; texts are cut to as many characters.
        tokens_per_batch: tokens of one optimiser step, over all devices and micro-batches.
        max_tokens_per_device: tokens that a device holds at a time; more micro-batches make up the rest.
        num_workers: processes that assemble batches; 0: the training process does it between steps.
        num_proc: processes that tokenize; 1: this one.
        cache_dir: where token caches lie; None: `$XDG_CACHE_HOME/kexue-lightning` or `~/.cache/kexue-lightning`.
        seed: seed of the order of rows.
        inspect: look at the corpus and report, instead of training on it (train.py does).

    Attributes:
        truncation: how rows longer than `max_length` are cut, see `RowEncoder`.
        left_out: rows of a split's files that `read` did not give, by reason; complete when it is exhausted.
        stores: the tokenized splits, after `setup`.
    """

    kind = "text"
    provides = frozenset({"text"})
    metrics = ("data/characters_per_token", "data/unknown_share", "data/cut_share")
    label_names: list[str] | None = None
    truncation: Truncation = "longest"

    def __init__(
        self,
        tokenizer: dict | Tokenizer | None = None,
        max_length: Annotated[int, "x >= 4"] = 128,
        tokens_per_batch: Annotated[int, "x >= 1"] = 2048,
        max_tokens_per_device: Annotated[int, "x >= 1"] = 16384,
        num_workers: Annotated[int, "x >= 0"] = 0,
        num_proc: Annotated[int, "x >= 1"] = 1,
        cache_dir: str | None = None,
        seed: int = 0,
        inspect: bool = False,
    ):
        super().__init__()
        if max_length < 4:
            raise ValueError(f"max_length={max_length}: must be at least 4 ([CLS], [SEP] and some text)")
        micro_batches(tokens_per_batch, max_tokens_per_device, max_length, world_size=1)
        self.tokenizer = build(tokenizer)
        self.max_length = max_length
        self.tokens_per_batch = tokens_per_batch
        self.max_tokens_per_device = max_tokens_per_device
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.seed = seed
        self.inspect = inspect
        self.left_out: dict[Split, Counter[str]] = {}
        self.stores: dict[Split, TokenStore] = {}

    def read(self, split: Split) -> Iterator[Row]:
        """The rows of a split in a fixed order; none where the corpus lacks it."""
        raise NotImplementedError

    def fingerprint(self, split: Split) -> str:
        """Names the content that `read(split)` gives."""
        raise NotImplementedError

    def describe(self) -> dict:
        """What the summary says of the corpus; at least {"source": ...}."""
        raise NotImplementedError

    # Lightning calls this on one process of each machine: everything that is computed once is written here.
    def prepare_data(self) -> None:
        if self.stores:
            return
        self.prepare_tokenizer()
        for split in SPLITS:
            self._store(split)

    def setup(self, stage: str | None = None) -> None:
        if self.stores:
            return
        self.prepare_tokenizer()
        self.stores = {split: self._store(split) for split in SPLITS}
        if not len(self.stores["train"]):
            raise DataError(f"{self.describe()['source']}: the corpus has no training rows")
        for split, store in self.stores.items():
            if len(store):
                log.info(f"{split}: {_summary(store)}")

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
            "label_names": self.label_names,
        }

    def metric_values(self) -> dict[str, float]:
        """What a run reports of its training split, after `setup`: original characters a token covers, the share of
        [UNK] among the tokens, the share of rows that were cut."""
        return {f"data/{name}": value for name, value in _shares(self.stores["train"]).items()}

    def token_counts(self) -> np.ndarray:
        """int64 [vocab_size]: unigram counts of the training split."""
        return self.stores["train"].token_counts(self.tokenizer.vocab_size)

    def accumulate_grad_batches(self, world_size: int) -> int:
        """Micro-batches a step: what Trainer(accumulate_grad_batches=) has to be."""
        return micro_batches(self.tokens_per_batch, self.max_tokens_per_device, self.max_length, world_size)

    def train_dataloader(self) -> PlannedLoader:
        trainer, store = self.trainer, self.stores["train"]
        accumulate = self.accumulate_grad_batches(trainer.world_size)
        if trainer.accumulate_grad_batches != accumulate:
            raise ValueError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}): tokens_per_batch="
                f"{self.tokens_per_batch} under max_tokens_per_device={self.max_tokens_per_device} on "
                f"{trainer.world_size} rank(s) needs accumulate_grad_batches={accumulate}"
            )
        plan = BatchPlan(store.lengths, self.tokens_per_batch, self.seed, trainer.world_size * accumulate)
        count = getattr(trainer.lightning_module, "count_targets", None)
        rows = PlannedRows(plan, store.batch, count, trainer.global_rank, trainer.world_size, accumulate)
        limit, repeat = trainer.limit_train_batches, trainer.overfit_batches > 0
        return PlannedLoader(rows, self.num_workers, _on_gpu(trainer), limit, repeat)

    def val_dataloader(self) -> torch.utils.data.DataLoader | list:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> torch.utils.data.DataLoader | list:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: Split) -> torch.utils.data.DataLoader | list:
        store = self.stores[split]
        if not len(store):
            return []
        batches = evaluation_batches(store.lengths, self.max_tokens_per_device, self.trainer.world_size)
        return torch.utils.data.DataLoader(
            _EvaluationRows(store, batches[self.trainer.global_rank :: self.trainer.world_size]),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=_on_gpu(self.trainer),
            collate_fn=_as_it_is,
        )

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
        key = cache_key(
            self._content(split), self.tokenizer.fingerprint, self.max_length, self.truncation, FORMAT_VERSION
        )
        return open_or_build(
            self.cache_dir / "tokens" / key,
            self.read(split),
            RowEncoder(self.tokenizer, self.max_length, self.truncation),
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
    """

    tokenizer: Tokenizer
    max_length: int

    def encode(self, texts: list[str]) -> TokenBatch:
        """`[CLS] text [SEP]` rows, cut at `max_length`, as one batch; row ids count from 0."""
        encoded = RowEncoder(self.tokenizer, self.max_length)([Row(text) for text in texts])
        return TokenBatch.from_numpy(
            input_ids=encoded.tokens,
            lengths=encoded.lengths,
            char_counts=encoded.chars,
            word_starts=encoded.word_starts,
            text_starts=encoded.text_starts,
            row_ids=np.arange(len(texts)),
        )


def evaluation_batches(lengths: np.ndarray, max_tokens: int, world_size: int = 1) -> list[np.ndarray]:
    """Every row once, sorted by length, in equally many batches for each rank, of at most `max_tokens` tokens.

    Rank r takes every `world_size`-th batch from r on. The ranks compute together what a strategy computes together
    (FSDP gathers weights in every forward pass), so none has fewer batches; where there are fewer rows than ranks,
    the last batches are empty.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    parts = world_size * micro_batches(int(ends[-1]), max_tokens, int(lengths.max()), world_size)
    index = np.arange(1, parts)
    cuts = np.searchsorted(ends, index * (ends[-1] / parts))
    # A row for each part, as far as they go.
    cuts = np.clip(cuts, np.minimum(index, len(order)), np.maximum(len(order) - parts + index, index))
    return np.split(order, cuts)


class _EvaluationRows(torch.utils.data.Dataset):
    def __init__(self, store: TokenStore, batches: list[np.ndarray]):
        self.store = store
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> TokenBatch:
        return self.store.batch(self.batches[index])


def _as_it_is(batch: TokenBatch) -> TokenBatch:
    return batch


def _on_gpu(trainer: pl.Trainer) -> bool:
    return trainer.strategy.root_device.type == "cuda"
