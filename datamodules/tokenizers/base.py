"""The interface of tokenizers, the traced form of a text that all of them share, and where saved ones are
found.
"""

import hashlib
import importlib
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.tokenizers.builders import Origin
from datamodules.tokenizers.segment import Segmenter
from datamodules.tokenizers.wordpiece import ALONE, DROPPED, KINDS, PLAIN, PRIVATE, normalize

_LOG = logging.getLogger(__name__)

#: The file that `save` writes beside the Hugging Face files, and that `load_tokenizer` reads.
SAVED_NAME = "kexue_tokenizer.json"
SAVED_USER_DICT = "user_dict.txt"
#: Part of every fingerprint: raised when the same options and vocabulary would give other tokens.
CODE_VERSION = 1
#: A token such as [speaker1] or [unused1].
_NAME = re.compile(r"\[[A-Za-z]\w*\]", re.ASCII)

_CLASSES = {
    "WordTokenizer": "datamodules.tokenizers.word",
    "CharTokenizer": "datamodules.tokenizers.char",
    "PretrainedTokenizer": "datamodules.tokenizers.pretrained",
}


class Encodings(NamedTuple):
    """N texts as T tokens in one row, without [CLS] and [SEP].

    ids: int32 [T].
    chars: uint16 [T], the ORIGINAL characters that a token covers, without white space and what BERT's
        cleaning drops (control, format and private-use characters, accents written apart). Each character
        counts once, so the sum over a text is the same for every tokenizer.
    word_starts: bool [T], the token opens a word: one of jieba's segmentation of the lower-cased text, where
        a run of letters that BERT never splits (Cyrillic, kana) is not split either. So the words of a text
        are the same for the word tokenizer and for the character tokenizer.
    lengths: int64 [N], tokens of each text.
    """

    ids: NDArray[np.int32]
    chars: NDArray[np.uint16]
    word_starts: NDArray[np.bool_]
    lengths: NDArray[np.int64]


class Token(NamedTuple):
    """One token of a text: `start` and `end` are offsets to the original characters."""

    id: int
    text: str
    start: int
    end: int
    chars: int
    word_start: bool


class Tokenizer(ABC):
    """What techniques and corpora may rely on. All ids are ints; `vocab[i]` is the token of id i.

    `unk_id` and `mask_id` are None where the vocabulary has no such token: dialogue models have no [MASK], byte-level
    tokenizers know every text. One token may have several roles: GPT-2's end of text is `pad_id`, `cls_id` and
    `sep_id`.
    """

    vocab: list[str]
    pad_id: int
    unk_id: int | None
    cls_id: int
    sep_id: int
    mask_id: int | None

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.vocab)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of [PAD], [UNK], [CLS], [SEP], [MASK], in this order, each once; what the vocabulary lacks is left out."""
        ids = (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    @cached_property
    def textless_ids(self) -> frozenset[int]:
        """Ids that stand for no text and that `decode` leaves out: the special ones, and names in brackets that no text
        gives, as [speaker1] and [unused1].
        """
        named = [(i, token) for i, token in enumerate(self.vocab) if not token or _NAME.fullmatch(token)]
        never = (i for i, token in named if i not in self.encode(token))
        return frozenset((*self.special_ids, *never))

    @property
    def origin(self) -> Origin:
        """Where the vocabulary's entries come from, as far as that is known."""
        return Origin(self.vocab_size)

    @property
    @abstractmethod
    def built(self) -> bool:
        """Whether there is a vocabulary; where not, `build` must be called once before anything else."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names everything that decides the tokens of a text (class, options, vocabulary, dictionary,
        versions).
        """

    @abstractmethod
    def build(self, texts: Iterable[str], progress: bool = True, processes: int = 1) -> None:
        """Make the vocabulary from the training texts. Raises ValueError where there already is one."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> Encodings:
        """Many texts to ids, the fast way."""

    @abstractmethod
    def analyse(self, text: str) -> list[Token]:
        """The tokens of one text with all that is known of them. Special tokens in the text are kept."""

    @classmethod
    @abstractmethod
    def from_saved(cls, directory: str, options: dict[str, Any]) -> "Tokenizer":
        """The tokenizer that `save` wrote to `directory` with these options (for `load_tokenizer`)."""

    @abstractmethod
    def stock_differences(self) -> list[str]:
        """Where the stock class that loads the saved files gives other ids, a sentence a case (for the model
        card).
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Ids to readable text without `textless_ids`; bytes that are no whole character become U+FFFD."""

    @abstractmethod
    def save(self, directory: str, max_length: int | None = None) -> None:
        """Write files that `load_tokenizer` and stock `transformers.AutoTokenizer` load.

        `max_length` tells the stock class where to truncate (its `model_max_length`).
        """

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one text as strings, [UNK] for an unknown one."""
        return [token.text for token in self.analyse(text)]

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without [CLS] and [SEP]."""
        return [token.id for token in self.analyse(text)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each token in the ORIGINAL text, in characters."""
        return [(token.start, token.end) for token in self.analyse(text)]


class Traced(NamedTuple):
    """A text's normal form and its words. Indices are into `text`, `origin` leads to the original text."""

    text: str
    origin: list[int]
    words: list[str]  # jieba's, which join to `text`
    counted: list[bool]  # an original character that counts in `Encodings.chars` begins here
    opens: list[bool]  # a word of `Encodings.word_starts` begins here


def trace(text: str, segmenter: Segmenter) -> Traced:
    """Normalise `text` (free of special tokens), segment it, and mark what counts and what opens a word."""
    normal, origin = normalize(text, segmenter.lowercase)
    words = segmenter.cut(normal)
    counted, opens = [False] * len(normal), [False] * len(normal)
    last_origin = -1
    in_run = False  # the last character that was not dropped continues a run of letters
    start = 0
    for word in words:
        for index in range(start, start + len(word)):
            kind = KINDS[normal[index]]
            if kind in (DROPPED, PRIVATE):
                continue
            if kind in (PLAIN, ALONE):
                counted[index] = origin[index] != last_origin
                last_origin = origin[index]
                opens[index] = index == start and not (in_run and kind == PLAIN)
            in_run = kind == PLAIN
        start += len(word)
    return Traced(normal, origin, words, counted, opens)


def fingerprint_of(*parts: Any) -> str:
    """A short hash of the parts' repr."""
    return hashlib.sha256(repr((CODE_VERSION, *parts)).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def resolve_pretrained(path: str) -> str:
    """What `init_from` means: a run -> its export/, another directory -> itself, else a hub name as it is.

    Raises ValueError for a path that does not exist or holds nothing to load.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        if (directory / "export").is_dir():
            return str(directory / "export")
        if (directory / "checkpoints").is_dir():
            raise ValueError(
                f"init_from={path}: this run has left no export/ (it is written when stage=fit ends)"
            )
        return str(directory)
    if directory.is_file():
        raise ValueError(
            f"init_from={path}: is a file; name a run directory, its export/ or a Hugging Face directory"
        )
    # A hub name is `name` or `owner/name`; `runs/x` beside an existing runs/ is a mistyped path.
    is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?", path)
    if not is_hub_name or ("/" in path and directory.parent.is_dir()):
        raise ValueError(
            f"init_from={path}: no such directory; name a run directory, its export/, a Hugging Face "
            "directory or a hub name such as bert-base-chinese"
        )
    return path


def read_saved(directory: str) -> dict[str, Any] | None:
    """What `save` noted in `directory`, or None where another program wrote it."""
    file = Path(directory) / SAVED_NAME
    if not file.is_file():
        return None
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved.get("class") not in _CLASSES:
        raise ValueError(f"{file}: unknown class {saved.get('class')!r}; known are {', '.join(_CLASSES)}")
    return saved


def write_saved(tokenizer: Tokenizer, directory: str, options: dict[str, Any], **notes: Any) -> None:
    """Note class and constructor options of `tokenizer` in `directory`, and what else is worth knowing."""
    made_by = {"class": type(tokenizer).__name__, "options": options, "fingerprint": tokenizer.fingerprint}
    saved = {**made_by, **notes}
    file = Path(directory) / SAVED_NAME
    file.write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(directory: str) -> Tokenizer:
    """The tokenizer that `save` wrote to `directory`. Builds classes of this package and nothing else.

    Raises ValueError where `directory` was written by another program.
    """
    saved = read_saved(directory)
    if saved is None:
        raise ValueError(
            f"{directory}: holds no {SAVED_NAME}; for a tokenizer of another program use "
            f"tokenizer=pretrained tokenizer.name={directory}"
        )
    cls = getattr(importlib.import_module(_CLASSES[saved["class"]]), saved["class"])
    tokenizer = cls.from_saved(directory, saved["options"])
    if tokenizer.fingerprint != saved["fingerprint"]:
        _LOG.warning(
            "%s: was saved with other versions of jieba or Unicode; words may be cut differently", directory
        )
    return tokenizer
