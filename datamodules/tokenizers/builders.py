"""What a vocabulary is built of: characters and words counted in texts, jieba's dictionary, a list of words, and
the vocabulary that is there already.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from importlib.metadata import version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from datamodules.tokenizers.segment import JIEBA_RUN, read_user_dict
from datamodules.tokenizers.wordpiece import (
    ALONE,
    DROPPED,
    KINDS,
    PLAIN,
    PRIVATE,
    basic_tokens,
    is_cjk,
    is_punctuation,
    normalize,
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: What every vocabulary has; only a masked language model needs the fifth.
NEEDED_TOKENS = SPECIAL_TOKENS[:4]
#: Punctuation since Unicode 6.1, symbols before: WoBERT's vocabulary was made by Python 2.7, which knows 5.2, and
#: has kept `##§`.
_ONCE_SYMBOLS = "§¶\u0f14\u1360\U00010102"


class Origin(NamedTuple):
    """Where the entries of a vocabulary come from; those of the words are its last ones.

    kept: entries that are no added words.
    dropped: entries that were left out because they can never come out.
    words: "corpus", "jieba", "list", or None where no words were added.
    added: how many words were.
    base: "vocabulary" where the kept entries are of one that was there, "texts" where they are the special tokens and
        the characters of texts.
    """

    kept: int
    dropped: int = 0
    words: str | None = None
    added: int = 0
    base: str = "vocabulary"


def choose_characters(words: Counter[str], min_count: int, max_size: int) -> list[str]:
    """The special tokens, then the characters of counted words, at most `max_size` tokens.

    Characters, and `##x` for those inside a run of letters, are taken when counted `min_count` times, by falling
    count, then by text. ASCII letters and digits that occur are taken in both forms whatever their count, so
    that no Latin word is [UNK].
    """
    chars: Counter[str] = Counter()
    for word, count in words.items():
        for token in basic_tokens(word, 0, len(word), (DROPPED, PRIVATE)):
            chars[word[token[0]]] += count
            for index in token[1:]:
                chars["##" + word[index]] += count
    needed = set()
    for char in {token.removeprefix("##") if len(token) == 3 else token for token in chars}:
        if char.isascii() and char.isalnum():
            needed.update((char, "##" + char))
    room = max_size - len(SPECIAL_TOKENS)
    rank = _by_count(chars)
    frequent = sorted((t for t, n in chars.items() if n >= min_count and t not in needed), key=rank)
    taken = sorted(needed, key=rank)[:room]
    return [*SPECIAL_TOKENS, *sorted(taken + frequent[: room - len(taken)], key=rank)]


def choose_words(words: Counter[str], min_count: int, word_maxlen: int) -> list[str]:
    """The words of 2 to `word_maxlen` letters, signs and ideographs that were counted `min_count` times, by
    falling count, then by text.
    """
    whole = (
        word
        for word, count in words.items()
        if count >= min_count
        and 1 < len(word) <= word_maxlen
        and all(KINDS[c] in (PLAIN, ALONE) for c in word)
    )
    return sorted(whole, key=_by_count(words))


def jieba_version() -> str:
    """Names the dictionary that `jieba_words` reads."""
    return f"jieba {version('jieba')}"


def jieba_words(lowercase: bool) -> Iterator[str]:
    """The words of jieba's dictionary by falling frequency, then in its order, as the article's script has them.

    With `lowercase` those with capitals are left out: they can never come out.
    """
    lines = (files("jieba") / "dict.txt").read_text("utf-8").split("\n")
    # A word that stands twice has its later frequency in its earlier place.
    counts = {word: int(count) for word, count, _ in (line.split(" ") for line in lines if line)}
    for word in sorted(counts, key=lambda word: -counts[word]):
        if normalize(word, lowercase)[0] == word:
            yield word


def read_words(path: str, lowercase: bool) -> list[str]:
    """The words of a list, `word [count [tag]]` a line, in their normal form: by falling count, else in its order.

    Words that jieba can never yield are named in a warning and left out. Raises ValueError, as `read_user_dict`.
    """
    if not Path(path).expanduser().is_file():
        raise ValueError(
            f"words={path}: is neither corpus nor jieba, and there is no such file; a list has one "
            "`word [count]` a line"
        )
    entries = [line.split() for line in read_user_dict(path, "words").splitlines() if line.strip()]
    entries.sort(key=lambda fields: -int(fields[1]) if len(fields) > 1 else 0)
    words = dict.fromkeys(normalize(fields[0], lowercase)[0] for fields in entries)
    return [word for word in words if JIEBA_RUN.fullmatch(word)]


def new_words(ranked: Iterable[str], known: Container[str], limit: int | None) -> list[str]:
    """The first `limit` words (None: all) that are not `known`."""
    return list(islice((word for word in ranked if word not in known), limit))


def has_words(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary has whole Chinese words, as WoBERT's; BERT's has none."""
    return any(len(t) > 1 and not t.startswith("##") and any(map(is_cjk, t)) for t in tokens)


def simplified(tokens: list[str]) -> list[str]:
    """A character vocabulary without what can never come out, the special tokens first, the others in their order.

    Left out are tokens of more than one character whose part after `##` holds an ideograph or punctuation: BERT
    sets both apart, so that `##中` and `[unused1]` are never met. BERT's own 21,128 entries become WoBERT's first
    13,586. Whole words are left out too.
    """

    def redundant(token: str) -> bool:
        stem = token.removeprefix("##")
        return len(token) > 1 and any(
            is_cjk(c) or (is_punctuation(c) and c not in _ONCE_SYMBOLS) for c in stem
        )

    special = [token for token in SPECIAL_TOKENS if token in tokens]
    return [*special, *(t for t in tokens if t not in SPECIAL_TOKENS and not redundant(t))]


def _by_count(counts: Counter[str]) -> Callable[[str], tuple[int, str]]:
    return lambda token: (-counts[token], token)
