"""Which rows of a checkpoint's embeddings make the rows of a vocabulary that has words added.

Source: https://kexue.fm/archives/7758 (a new word starts as the mean of its characters).
"""

import logging
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.tokenizers.base import Tokenizer
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.vocabulary import read_source
from datamodules.tokenizers.word import WordTokenizer

_LOG = logging.getLogger(__name__)


class RowSources(NamedTuple):
    """Row i of the new vocabulary is the mean of `counts[i]` old rows.

    ids: int64 [S], old ids, one new row after the other.
    counts: int64 [V]; 0: nothing old is taken, the row is new.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]


def row_sources(
    init_from: str, tokenizer: Tokenizer, new_rows: Literal["mean", "random"] = "mean"
) -> RowSources:
    """Rows by the tokens' text: a token that both vocabularies have keeps its row, wherever it stood.

    A token that the checkpoint lacks is the mean of the pieces that the checkpoint's own tokenizer makes of it:
    characters, WordPiece for Latin words, and words where it knows words. "random": such tokens have no source.

    Args:
        init_from: see `resolve_pretrained`; its vocabulary is the old one.
        tokenizer: has the new vocabulary.

    Raises:
        ValueError: `init_from` holds no vocabulary of a word or character tokenizer.
    """
    saved = read_source(init_from).saved
    made_by_chars = saved is not None and saved["class"] == CharTokenizer.__name__
    old = (CharTokenizer if made_by_chars else WordTokenizer)(
        init_from=init_from, lowercase=tokenizer.lowercase
    )
    counts = np.ones(tokenizer.vocab_size, dtype=np.int64)
    lacking = np.array([token not in old.index for token in tokenizer.vocab])
    pieces = old.encode_batch([token for token in tokenizer.vocab if token not in old.index])
    counts[lacking] = pieces.lengths if new_rows == "mean" else 0
    ids = np.empty(counts.sum(), dtype=np.int64)
    of_new = np.repeat(lacking, counts)
    ids[~of_new] = [old.index[token] for token in tokenizer.vocab if token in old.index]
    if new_rows == "mean":
        ids[of_new] = pieces.ids
    start = "means of their pieces" if new_rows == "mean" else "random"
    _LOG.info(
        f"vocabulary: {(~lacking).sum():,} of init_from's {len(old.vocab):,} rows are taken over, "
        f"{lacking.sum():,} are new ({start})"
    )
    return RowSources(ids, counts)
