"""BERT's text normalisation, basic tokenizer and WordPiece, with every character traced to the original text.

Source: Devlin et al. 2019 (arXiv 1810.04805) for the algorithm; https://kexue.fm/archives/7758 (WoBERT) for
its use on jieba's words.
"""

import unicodedata
from collections.abc import Container, Iterator

# What BERT's basic tokenizer does with a character.
PLAIN = 0  # part of a run of letters, digits or symbols, which WordPiece then cuts
ALONE = 1  # a CJK ideograph or a punctuation mark: a token of its own
SPACE = 2  # ends a run
DROPPED = 3  # control and format characters, NUL, U+FFFD: removed, and the run goes on
PRIVATE = 4  # private use: Google's and bert4keras' code keeps them (as [UNK]), Hugging Face's drops them

_CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def is_cjk(char: str) -> bool:
    """Whether `char` is an ideograph to BERT (kana and Hangul are not)."""
    code = ord(char)
    return any(low <= code <= high for low, high in _CJK_RANGES)


def is_punctuation(char: str) -> bool:
    """Whether `char` is punctuation to BERT: Unicode's, and every ASCII symbol such as `+` and `$`."""
    code = ord(char)
    if code < 128:
        return 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return unicodedata.category(char).startswith("P")


def _kind(char: str) -> int:
    category = unicodedata.category(char)
    if char in " \t\n\r" or category in ("Zs", "Zl", "Zp"):
        return SPACE
    if char in "\0\ufffd" or category in ("Cc", "Cf", "Cs"):
        return DROPPED
    if category == "Co":
        return PRIVATE
    return ALONE if is_cjk(char) or is_punctuation(char) else PLAIN


class _Kinds(dict[str, int]):
    def __missing__(self, char: str) -> int:
        kind = self[char] = _kind(char)
        return kind


#: Character -> PLAIN, ALONE, SPACE, DROPPED or PRIVATE, filled as characters are met.
KINDS = _Kinds()


def normalize_char(char: str, lowercase: bool) -> str:
    """The normal form of one character: lower case without accents (NFD, combining marks removed), or
    unchanged.

    It is empty for a combining mark and longer than one character for a Hangul syllable. A lone surrogate,
    which no Rust library can hold, becomes U+FFFD (and is dropped later).
    """
    if "\ud800" <= char <= "\udfff":
        return "\ufffd"
    if not lowercase:
        return char
    decomposed = unicodedata.normalize("NFD", char.lower())
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def normalize(text: str, lowercase: bool) -> tuple[str, list[int]]:
    """The normal form of `text` and, for each of its characters, the index of the original character it comes
    from.

    Equal to lower-casing, NFD and removal of the combining marks (Mn) of the whole text: canonical reordering
    moves combining marks only, and all of them but some signs of musical notation are removed.
    """
    lowered = text.lower() if lowercase else text
    chars: list[str] = []
    origin: list[int] = []
    position = 0
    for index, char in enumerate(text):
        # A capital sigma's lower case depends on its neighbours, so it is read from the text lowered as a
        # whole.
        length = len(char.lower()) if lowercase else 1
        for lower_char in lowered[position : position + length]:
            normal = normalize_char(lower_char, lowercase)
            chars.append(normal)
            origin.extend([index] * len(normal))
        position += length
    return "".join(chars), origin


def basic_tokens(text: str, start: int, end: int, dropped: Container[int]) -> Iterator[list[int]]:
    """BERT's basic tokens of the normalised `text[start:end]`, each as the list of its characters' indices.

    `dropped` names the kinds of characters that are removed (a run goes on across them).
    """
    run: list[int] = []
    for index in range(start, end):
        kind = KINDS[text[index]]
        if kind in dropped:
            continue
        if kind == SPACE or kind == ALONE:
            if run:
                yield run
                run = []
            if kind == ALONE:
                yield [index]
        else:
            run.append(index)
    if run:
        yield run


def wordpiece(word: str, vocab: Container[str], word_maxlen: int) -> list[tuple[str, int, int]] | None:
    """Greedy longest match of `word` from the left: (token, start, end) each, continuations written `##x`.

    None where the word as a whole is unknown: it is longer than `word_maxlen` characters, or some position
    matches nothing.
    """
    if len(word) > word_maxlen:
        return None
    if word in vocab:
        return [(word, 0, len(word))]
    pieces = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        for end in range(len(word), start, -1):
            token = prefix + word[start:end]
            if token in vocab:
                pieces.append((token, start, end))
                start = end
                break
        else:
            return None
    return pieces


def join_tokens(tokens: list[str]) -> str:
    """Tokens -> text: Chinese, punctuation and `##` pieces are glued, Latin words get a space between."""
    text = ""
    previous = ""
    for token in tokens:
        if token.startswith("##") and len(token) > 2:
            text += token[2:]
        else:
            if text and token and _needs_space(text, previous, token):
                text += " "
            text += token
        previous = token
    return unicodedata.normalize("NFC", text)  # Hangul was taken apart


def _needs_space(text: str, previous: str, token: str) -> bool:
    last, first = text[-1], token[0]
    if last in ",;!?" and len(text) > 1:  # "hello, world", but not "3,000"
        return text[-2].isascii() and text[-2].isalpha() and first.isascii() and first.isalpha()
    if not (last.isalnum() and first.isalnum()) or is_cjk(last) or is_cjk(first):
        return False
    # jieba cuts other scripts than Latin into letters, so that single ones are more often parts of a word.
    return (last.isascii() and first.isascii()) or (len(previous) > 1 and len(token) > 1)
