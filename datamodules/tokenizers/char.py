"""BERT's tokenizer: every Chinese character a token, WordPiece for the rest.

Source: Devlin et al. 2019 (arXiv 1810.04805); ids as Hugging Face's `BertTokenizer`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import numpy as np

from datamodules.tokenizers.base import Traced
from datamodules.tokenizers.vocabulary import COMMON_DIFFERENCES, VocabularyTokenizer
from datamodules.tokenizers.wordpiece import ALONE, DROPPED, KINDS, PLAIN, PRIVATE, SPACE, basic_tokens


class CharTokenizer(VocabularyTokenizer):
    """Lower-case, strip accents, split at characters and punctuation, WordPiece on what is left.

    jieba's segmentation tells which tokens open a word (for whole-word masking); it does not change the
    tokens.

    Args:
        vocab: path of a vocab.txt (one token a line, empty lines keep their id) or the tokens themselves, [PAD],
            [UNK], [CLS] and [SEP] among them, and [MASK] for a masked model. It goes before `init_from`.
        init_from: a run directory, an export, a Hugging Face directory or a hub name, whose vocabulary is
            taken. With neither, `build` makes the vocabulary from the training texts: characters, and Latin
            words and numbers.
        lowercase: lower-case and strip accents, before anything else.
        min_count: `build` takes tokens that occur so often.
        max_size: `build` takes at most so many tokens, the five special ones included.

    Raises ValueError, the option's name first, for what cannot be used.
    """

    word_maxlen = 100  # Hugging Face's limit; Google's code and WoBERT have 200
    stock_class = "BertTokenizer"

    def __init__(
        self,
        vocab: str | list[str] | None = None,
        init_from: str | None = None,
        lowercase: bool = True,
        min_count: Annotated[int, "x >= 1"] = 2,
        max_size: Annotated[int, "x >= 6"] = 20000,
    ) -> None:
        super().__init__(vocab, init_from, None, lowercase, min_count, max_size)

    def _pieces(self, traced: Traced) -> Iterator[tuple[int, Sequence[int]]]:
        for token in basic_tokens(traced.text, 0, len(traced.text), (DROPPED, PRIVATE)):
            yield from self._cut(traced.text, token)

    def _join_runs(self, words: list[str], entries: np.ndarray, inside: np.ndarray) -> None:
        """A run of letters that jieba cuts (kana, Cyrillic, signs) is one word to BERT: look it up as a
        whole.
        """
        memo = self._memo
        assert memo is not None
        edges = np.flatnonzero(np.diff(inside.astype(np.int8), append=np.int8(0)))
        for before, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            entries[before] = memo["".join(words[before : last + 1])]
            entries[before + 1 : last + 1] = memo.EMPTY

    def stock_differences(self) -> list[str]:
        return list(COMMON_DIFFERENCES)

    def _words(self, normal: str) -> Iterable[str]:
        return normal.translate(_SPACED).split()


class _Spaced(dict[int, str]):
    """Table for `str.translate` that sets spaces so that `split` gives BERT's basic tokens."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        spaced = {PLAIN: char, ALONE: f" {char} ", SPACE: " "}.get(KINDS[char], "")
        self[code] = spaced
        return spaced


_SPACED = _Spaced()
