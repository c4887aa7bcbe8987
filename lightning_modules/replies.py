"""Scores of a dialogue model's replies: how probable the real ones are, and what the generated ones are like."""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import bleu_score

from datamodules.atomic import write_whole
from datamodules.tokenizers.wordpiece import DROPPED, KINDS, PRIVATE, normalize
from lightning_modules.precision import keeping_dtype

# The turns that have a score of their own; all after the last one share its score.
TURNS = ("2", "3", "4", "5_or_later")
# Lower case and without accents, a word of Latin letters and digits, or one character of any other kind.
_UNIT = re.compile(r"[a-z0-9ß-ɏ]+|\S")
_REPEATED = 4
# What Markdown, in TensorBoard or elsewhere, would read as its own.
_MARKUP = re.compile(r"[\\`*_\[\]<>&|~]")


class ReplyScores(Metric):
    """Sums over the targets of an evaluation: exact on any number of ranks and batches.

    A reply is the last turn of a dialogue and the [SEP] that closes it. Bits per character divides the sum of -log2 p
    by the replies' original characters, so models with different tokenizers and formats of dialogues compare. An [UNK]
    target is charged, besides its own -log2 p, a uniform code over the training characters for each character that it
    hides.

    Args:
        unk_id: id of [UNK]; None: there is none.
        characters: distinct characters of the training split.
        trained_length: tokens that a training row may have: targets at positions from it on are beyond what was trained.
    """

    full_state_update = False

    def __init__(self, unk_id: int | None, characters: int, trained_length: int):
        super().__init__(compute_with_cache=False)  # `update_loss` would not reset it
        self.unk_id = unk_id
        self.bits_per_unknown = math.log2(max(characters, 2))
        self.trained_length = trained_length
        # Apple's GPUs have no float64.
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
        # By turn: that of a dialogue of one, and those of TURNS.
        sizes = {
            "nll": (),
            "targets": (),
            "bits": (len(TURNS) + 1,),
            "characters": (len(TURNS) + 1,),
            "beyond_bits": (),
            "beyond_characters": (),
            "all_nll": (),
            "all_targets": (),
        }
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(size, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, function: Callable[[Tensor], Tensor], *arguments: Any) -> Metric:
        # precision=bf16-true converts all that a model holds, and a sum in bf16 soon stops to grow.
        return super()._apply(keeping_dtype(function), *arguments)

    def update(
        self, losses: Tensor, targets: Tensor, char_counts: Tensor, turn: Tensor, positions: Tensor
    ) -> None:
        """Add the K targets of replies, each tensor [K].

        Args:
            losses: -log p in nats.
            targets: ids.
            char_counts: original characters that each covers, 0 for the closing [SEP].
            turn: place of the target's reply among the turns of its dialogue, from 1.
            positions: place of the target in its row, from 0.
        """
        losses, char_counts = losses.to(self.nll.dtype), char_counts.to(self.nll.dtype)
        bits = self.bits_of(losses, targets, char_counts)
        self.nll += losses.sum()
        self.targets += losses.numel()
        group = turn.clamp(1, len(self.bits)) - 1
        self.bits.index_add_(0, group, bits)
        self.characters.index_add_(0, group, char_counts)
        beyond = positions >= self.trained_length
        self.beyond_bits += bits.where(beyond, 0).sum()
        self.beyond_characters += char_counts.where(beyond, 0).sum()

    def bits_of(self, losses: Tensor, targets: Tensor, char_counts: Tensor) -> Tensor:
        """Bits [K] that each target is charged, see the arguments of `update`."""
        bits = losses / math.log(2)
        if self.unk_id is not None:
            bits = bits + (targets == self.unk_id) * char_counts * self.bits_per_unknown
        return bits

    def update_loss(self, sum_of_losses: Tensor, count: Tensor | int) -> None:
        """Add targets of the training loss, replies or not: the sum of their -log p in nats, and their number."""
        self.all_nll += sum_of_losses
        self.all_targets += count

    def compute(self) -> dict[str, Tensor]:
        """`loss`, `reply_loss`, `reply_perplexity` (a token), `reply_bits_per_char`; where such a reply has a character,
        `reply_bits_per_char_turn_` 2, 3, 4 and `5_or_later` and `beyond_bits_per_char`, of the targets at positions
        from `trained_length` on.

        The first four are always there: without a target 0 / 0, NaN, which no checkpoint takes for the best one; without
        a character `reply_bits_per_char` is infinite.
        """
        reply_loss = self.nll / self.targets
        scores = {
            "loss": self.all_nll / self.all_targets,
            "reply_loss": reply_loss,
            "reply_perplexity": reply_loss.exp(),
            "reply_bits_per_char": self.bits.sum() / self.characters.sum(),
        }
        own = {
            f"reply_bits_per_char_turn_{name}": (self.bits[index], self.characters[index])
            for index, name in enumerate(TURNS, 1)
        }
        own["beyond_bits_per_char"] = self.beyond_bits, self.beyond_characters
        return scores | {name: bits / count for name, (bits, count) in own.items() if count > 0}


def units(text: str) -> list[str]:
    """What the scores of generated replies count: each character of Chinese, punctuation and other scripts, but Latin
    words and numbers whole.

    White space separates and is not counted, nor is what BERT's cleaning drops. All is lower-case and without accents:
    what a model says is, and what it is compared with may not be.
    """
    normal = "".join([c for c in normalize(text, lowercase=True)[0] if KINDS[c] not in (DROPPED, PRIVATE)])
    return _UNIT.findall(unicodedata.normalize("NFC", normal))  # Hangul was taken apart


def text_scores(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores, from 0 to 1, of generated replies beside the real ones, over `units`; without a reply there is none.

    dist_1, dist_2: distinct n-grams by all n-grams of all replies (Li et al. 2016, arXiv 1510.03055). They fall with
        the number of replies: compare equal numbers.
    bleu_2, bleu_4: BLEU of the replies as one corpus, one reference each, uniform weights up to 2- and 4-grams
        (Papineni et al. 2002), not smoothed: 0 where no n-gram of some length is in its reference.
    repetition_rate: share of the replies in which some 4-gram stands more than once, overlapping or not, so that their
        seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319) is not 0.

    An empty reply counts: it has no n-grams and does not repeat itself.

    Raises:
        ValueError: there are not as many references as replies.
    """
    if len(replies) != len(references):
        raise ValueError(f"references: {len(references)} for {len(replies)} replies")
    if not replies:
        return {}
    said = [units(reply) for reply in replies]
    expected = [[" ".join(units(reference))] for reference in references]
    spaced = [" ".join(own) for own in said]
    repeated = sum(max(_ngrams([own], _REPEATED).values(), default=0) > 1 for own in said)
    return {
        "dist_1": _distinct(said, 1),
        "dist_2": _distinct(said, 2),
        "bleu_2": bleu_score(spaced, expected, n_gram=2).item(),
        "bleu_4": bleu_score(spaced, expected, n_gram=4).item(),
        "repetition_rate": repeated / len(said),
    }


def _distinct(texts: list[list[str]], n: int) -> float:
    ngrams = _ngrams(texts, n)
    return len(ngrams) / max(ngrams.total(), 1)


def _ngrams(texts: list[list[str]], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))


class SampleReply(TypedDict):
    """An answer to a dialogue of an evaluation split.

    Attributes:
        row: index of the dialogue in its split.
        history: its turns but the last.
        reference: its last turn.
        reply: what the model says in its place.
    """

    row: int
    history: Sequence[str]
    reference: str
    reply: str


def gathered(samples: Sequence[SampleReply]) -> list[SampleReply]:
    """The samples of all ranks in the order of their rows; the same list on every rank. Every rank calls it."""
    parts: list[Sequence[SampleReply]] = [samples]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, samples)
    return sorted((sample for part in parts for sample in part), key=lambda sample: sample["row"])


def write_replies(path: str | os.PathLike, samples: Sequence[SampleReply], step: int) -> Path:
    """Write a line of JSON for each sample: step, row, history, reference, reply. The file is there whole or not at
    all; its folder is made where it is missing."""
    lines = [json.dumps({"step": step, **sample}, ensure_ascii=False) + "\n" for sample in samples]
    return write_whole(path, "".join(lines))


def as_markdown(samples: Sequence[SampleReply], most: int = 10) -> str:
    """A table of the first `most` samples, for TensorBoard's texts: history, the real reply, the model's.

    Texts show as they are, whatever in them Markdown would read as its own; the turns of a history have a line each.
    """
    rows = [["history", "reference", "reply"], ["---"] * 3]
    for sample in samples[:most]:
        history = "<br>".join(map(_cell, sample["history"]))
        rows.append([history, _cell(sample["reference"]), _cell(sample["reply"])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str) -> str:
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", " ".join(text.split()))
