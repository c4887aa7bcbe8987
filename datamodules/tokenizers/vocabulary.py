"""Vocabularies: read, chosen from texts, and the fast look-up that the word and char tokenizers share."""

import json
import re
import sys
import unicodedata
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.parallel import map_chunks
from datamodules.tokenizers.base import (
    SAVED_USER_DICT,
    Encodings,
    Token,
    Tokenizer,
    Traced,
    fingerprint_of,
    read_saved,
    resolve_pretrained,
    trace,
    write_saved,
)
from datamodules.tokenizers.builders import (
    NEEDED_TOKENS,
    SPECIAL_TOKENS,
    Origin,
    choose_characters,
    choose_words,
    new_words,
)
from datamodules.tokenizers.segment import Segmenter, read_user_dict
from datamodules.tokenizers.wordpiece import (
    ALONE,
    DROPPED,
    KINDS,
    PLAIN,
    PRIVATE,
    join_tokens,
    normalize,
    normalize_char,
    wordpiece,
)

#: Where every stock class of Hugging Face differs from ours: Rust's tables against Python's.
COMMON_DIFFERENCES = (
    "The Greek capital sigma at a word's end: `ς` here, as Python lower-cases; `σ` in the stock class. "
    "Letters, accents and punctuation that Unicode added after version 8, and the ideographs U+2B820 to "
    "U+2B91F, may be treated otherwise too.",
)

_CHUNK_CHARS = 1 << 18  # texts are cut into words together, up to so many characters at a time
_MEMO_ENTRIES = 300_000  # about 60 MB; new numbers and names never end, so the memo starts anew above this


def read_vocabulary(path: str, option: str = "vocab") -> list[str]:
    """The tokens of a `vocab.txt` (one a line, an EMPTY line is a token too and keeps its id) or a
    `tokenizer.json`.

    Raises ValueError that begins with `option=path`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{option}={path}: no such file; name a vocab.txt with one token a line")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}={path}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    if file.suffix == ".json":
        tokens = _read_tokenizer_json(text, f"{option}={path}")
    else:
        # Not splitlines(): U+2028, a token of BERT's, would end a line.
        tokens = [line.removesuffix("\r") for line in text.split("\n")]
        if tokens[-1] == "":
            tokens.pop()
    check_vocabulary(tokens, f"{option}={path}")
    return tokens


def _read_tokenizer_json(text: str, where: str) -> list[str]:
    try:
        model = json.loads(text)["model"]
        ids = model["vocab"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where}: is not a tokenizer.json") from None
    if model.get("type") != "WordPiece" or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{where}: is not a WordPiece vocabulary; use tokenizer=pretrained")
    return sorted(ids, key=ids.__getitem__)


def check_vocabulary(tokens: list[str], where: str) -> None:
    """Raises ValueError beginning with `where` for a missing special token or a token that stands twice."""
    known = set(tokens)
    missing = [token for token in NEEDED_TOKENS if token not in known]
    if missing:
        raise ValueError(f"{where}: lacks {', '.join(missing)}; a vocabulary needs {' '.join(NEEDED_TOKENS)}")
    if len(known) < len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        lines = [str(i + 1) for i, token in enumerate(tokens) if token == twice]
        raise ValueError(
            f"{where}: the token {twice!r} stands on lines {' and '.join(lines[:3])}; remove one"
        )


class Source(NamedTuple):
    """What lies where `init_from` leads."""

    vocab: list[str]
    saved: dict[str, Any] | None
    user_dict: str | None  # text of the dictionary


def read_source(init_from: str) -> Source:
    """Vocabulary, our notes and user dictionary of what `init_from` may name."""
    where = resolve_pretrained(init_from)
    if not Path(where).is_dir():
        return Source(read_vocabulary(_download_vocabulary(where), "init_from"), None, None)
    files = [Path(where) / name for name in ("vocab.txt", "tokenizer.json")]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise ValueError(f"init_from={init_from}: {where} holds neither vocab.txt nor tokenizer.json")
    user_dict = Path(where) / SAVED_USER_DICT
    saved = read_saved(where)
    ours = saved is not None and user_dict.is_file()
    return Source(
        read_vocabulary(str(file), "init_from"), saved, user_dict.read_text("utf-8") if ours else None
    )


def _download_vocabulary(name: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem: Exception | None = None
    for file in ("vocab.txt", "tokenizer.json"):
        try:
            return hf_hub_download(name, file)
        except LocalEntryNotFoundError as error:  # the hub did not answer and nothing is cached
            problem = error
            break
        except EntryNotFoundError:
            problem = problem or ValueError("it has neither vocab.txt nor tokenizer.json")
        except (OSError, ValueError) as error:
            problem = error
    raise ValueError(
        f"init_from={name}: no such directory, and the Hugging Face hub gave no vocabulary "
        f"({str(problem).strip().splitlines()[0]}); name a directory that holds a vocab.txt, or set "
        "HF_ENDPOINT to a mirror"
    )


class _Memo(dict[str, int]):
    """Word -> entry number; an unknown word is tokenized once and appended to the flat tables."""

    LEFT, RIGHT, DROPPED = 1, 2, 4  # flags of an entry: begins / ends inside a run of letters; is dropped
    SEPARATOR, EMPTY = 0, 1  # entries without tokens

    def __init__(self, tokens_of: Callable[[str], Iterable[tuple[int, int]]]) -> None:
        self._tokens_of = tokens_of
        self.ids, self.chars, self.offsets, self.flags = array("i"), array("H"), array("i", [0]), array("b")
        for word in "\n ":
            self[word]

    def __missing__(self, word: str) -> int:
        for token_id, chars in self._tokens_of(word):
            self.ids.append(token_id)
            self.chars.append(min(chars, 0xFFFF))
        self.offsets.append(len(self.ids))
        first, last = KINDS[word[0]], KINDS[word[-1]]
        flags = (
            (first == PLAIN) * self.LEFT | (last == PLAIN) * self.RIGHT | (first == DROPPED) * self.DROPPED
        )
        self.flags.append(flags)
        entry = self[word] = len(self)
        return entry


class _NormalTable(dict[int, str]):
    """A table for `str.translate` to the normal form; characters that need the exact way become NUL."""

    def __init__(self, lowercase: bool, vocab: dict[str, int]) -> None:
        self._lowercase = lowercase
        self._vocab = vocab

    def __missing__(self, code: int) -> str:
        char = chr(code)
        normal = normalize_char(char, self._lowercase)
        if char == "\r":
            normal = " "  # before the line's end that separates texts it would be one word with it
        elif (
            len(normal) > 1 or char == "Σ"
        ):  # characters are counted one for one; Σ depends on its neighbours
            normal = "\0"
        elif (
            normal
            and KINDS[normal] in (DROPPED, PRIVATE)
            and (KINDS[normal] == PRIVATE or normal in self._vocab)
        ):
            normal = "\0"
        self[code] = normal
        return normal


class VocabularyTokenizer(Tokenizer):
    """Tokens from a list by jieba's words or BERT's characters; what `WordTokenizer` and `CharTokenizer`
    share.

    A subclass gives `_pieces` (a traced text to tokens), `_words` (texts to what its vocabulary counts),
    `word_maxlen` and the stock class that loads its export.
    """

    word_maxlen: int
    stock_class: str
    unk_id: int

    def __init__(
        self,
        vocab: str | list[str] | None,
        init_from: str | None,
        user_dict: str | None,
        lowercase: bool,
        min_count: int,
        max_size: int,
    ) -> None:
        if min_count < 1:
            raise ValueError(f"min_count={min_count}: must be at least 1")
        if max_size <= len(SPECIAL_TOKENS):
            raise ValueError(
                f"max_size={max_size}: must be more than the {len(SPECIAL_TOKENS)} special tokens"
            )
        self.lowercase = lowercase
        self.min_count = min_count
        self.max_size = max_size
        dictionary = None if user_dict is None else read_user_dict(user_dict)
        tokens: list[str] | None = None
        origin: Origin | None = None
        if isinstance(vocab, str):
            tokens = read_vocabulary(vocab)
        elif vocab is not None:
            check_vocabulary(vocab, f"vocab=[{len(vocab)} tokens]")
            tokens = list(vocab)
        elif init_from is not None:
            source = read_source(init_from)
            self._check_source(init_from, source.saved)
            tokens = source.vocab
            if source.saved is not None and "origin" in source.saved:
                origin = Origin(**source.saved["origin"])
            dictionary = dictionary or source.user_dict
        self.segmenter = Segmenter(dictionary, lowercase)
        self.vocab = []
        self.index: dict[str, int] = {}
        self._origin: Origin | None = None
        self._special = _any_of(SPECIAL_TOKENS)  # in a text they are tokens; [speaker1] and the like are not
        self._forget()
        if tokens is not None:
            self._start_from(tokens, origin)

    def _check_source(self, init_from: str, saved: dict[str, Any] | None) -> None:
        if saved is None:
            return
        if not self._takes_over(saved["class"]):
            group = saved["class"].removesuffix("Tokenizer").lower()
            raise ValueError(
                f"init_from={init_from}: was made with {saved['class']}, not {type(self).__name__}; type "
                f"tokenizer={group}{self._other_way_out(saved['class'])}"
            )
        if saved["options"]["lowercase"] != self.lowercase:
            other = saved["options"]["lowercase"]
            raise ValueError(
                f"lowercase={self.lowercase}: {init_from} was made with tokenizer.lowercase={other}"
            )

    def _takes_over(self, made_by: str) -> bool:
        """Whether the vocabulary of a checkpoint that this class of ours made can be this one's."""
        return made_by == type(self).__name__

    def _other_way_out(self, made_by: str) -> str:
        """What else can be typed where `_takes_over` says no."""
        return ""

    @classmethod
    def from_saved(cls, directory: str, options: dict[str, Any]) -> Tokenizer:
        return cls(init_from=directory, **options)  # type: ignore[call-arg]

    # Vocabulary

    @property
    def built(self) -> bool:
        return bool(self.vocab)

    @property
    def origin(self) -> Origin:
        return self._origin or super().origin

    def _start_from(self, tokens: list[str], origin: Origin | None) -> None:
        """Take or change the vocabulary that `vocab` or `init_from` gives, made as `origin` says."""
        self.set_vocabulary(tokens, origin)

    def set_vocabulary(self, tokens: list[str], origin: Origin | None = None) -> None:
        """Take `tokens` as the vocabulary; ValueError where there is one."""
        if self.built:
            raise ValueError(f"vocab: there already is one of {len(self.vocab)} tokens")
        check_vocabulary(tokens, "vocab")
        self.vocab = list(tokens)
        self._origin = origin
        self.index = {token: i for i, token in enumerate(self.vocab)}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (self.index[t] for t in NEEDED_TOKENS)
        self.mask_id = self.index.get("[MASK]")
        self._special = _any_of(t for t in SPECIAL_TOKENS if t in self.index)
        self._forget()

    def _forget(self) -> None:
        self._memo: _Memo | None = None
        self._table: _NormalTable | None = None

    def build(self, texts: Iterable[str], progress: bool = True, processes: int = 1) -> None:
        """Make the vocabulary from the words of `texts`: special tokens, characters, whole words.

        A bar is shown on a terminal, or for more than 100,000 texts. `processes` count (see `map_chunks`).
        """
        if self.built:
            raise ValueError(f"vocab: there already is one of {len(self.vocab)} tokens")
        words: Counter[str] = Counter()
        for counted in map_chunks(self._count, _chunks(_with_bar(texts, progress)), processes):
            words.update(counted)
        self._choose(words)

    def _count(self, texts: list[str]) -> Counter[str]:
        plain = [self._special.sub(" ", text) for text in texts]
        lines = self._normal_lines(plain).split("\n")
        for i, line in enumerate(lines):
            if "\0" in line:
                lines[i] = normalize(plain[i], self.lowercase)[0].replace("\n", " ")
        return Counter(self._words("\n".join(lines)))

    def _choose(self, words: Counter[str]) -> None:
        """Make the vocabulary from counted words; where `max_size` is short, words go before characters."""
        tokens = choose_characters(words, self.min_count, self.max_size)
        ranked = choose_words(words, self.min_count, self.word_maxlen)
        self._append(
            tokens, ranked, self.max_size - len(tokens), Origin(len(tokens), words="corpus", base="texts")
        )

    def _append(self, tokens: list[str], ranked: Iterable[str], limit: int, origin: Origin) -> None:
        """Take `tokens` as the vocabulary and, behind them, the first `limit` of the `ranked` words that they lack."""
        # A character's `##x` and the word `##x` are the same token.
        added = new_words(ranked, set(tokens), limit)
        if not added and set(tokens) <= set(SPECIAL_TOKENS):
            raise ValueError(f"vocab: the texts hold nothing that occurs min_count={self.min_count} times")
        self.set_vocabulary(tokens + added, origin._replace(added=len(added)))

    @property
    def fingerprint(self) -> str:
        made_of = self.vocab if self.built else self._recipe
        segmenter = (self.segmenter.name, self.segmenter.user_dict)
        return fingerprint_of(
            type(self).__name__, self.lowercase, made_of, segmenter, unicodedata.unidata_version
        )

    @property
    def _recipe(self) -> tuple[Any, ...]:
        """What `build` goes by."""
        return self.min_count, self.max_size

    # One text, exactly

    @abstractmethod
    def _pieces(self, traced: Traced) -> Iterator[tuple[int, Sequence[int]]]:
        """Tokens of a traced text: the id and the indices of the token's characters in `traced.text`."""

    @abstractmethod
    def _words(self, normal: str) -> Iterable[str]:
        """What `build` counts in normalised text."""

    def analyse(self, text: str) -> list[Token]:
        self._require_built()
        tokens = []
        end = 0
        for match in self._special.finditer(text):
            tokens += self._analyse_plain(text, end, match.start())
            end = match.end()
            special = match.group()
            tokens.append(Token(self.index[special], special, match.start(), end, len(special), True))
        return tokens + self._analyse_plain(text, end, len(text))

    def _analyse_plain(self, text: str, start: int, end: int) -> list[Token]:
        traced = trace(text[start:end], self.segmenter)
        tokens = []
        for token_id, indices in self._pieces(traced):
            counted = [i for i in indices if traced.counted[i]]
            tokens.append(
                Token(
                    token_id,
                    self.vocab[token_id],
                    start + traced.origin[indices[0]],
                    start + traced.origin[indices[-1]] + 1,
                    min(len(counted), 0xFFFF),
                    bool(counted) and traced.opens[counted[0]],
                )
            )
        return tokens

    def _require_built(self) -> None:
        if not self.built:
            raise ValueError("vocab: there is none yet; call build(texts), or give vocab= or init_from=")

    def _cut(self, text: str, token: list[int]) -> list[tuple[int, list[int]]]:
        """WordPiece on one basic token of `text`, given and returned as its characters' indices."""
        word = "".join([text[i] for i in token])
        pieces = wordpiece(word, self.index, self.word_maxlen)
        if pieces is None:
            return [(self.unk_id, token)]
        return [(self.index[piece], token[a:b]) for piece, a, b in pieces]

    # Many texts, fast

    def encode_batch(self, texts: Sequence[str]) -> Encodings:
        """Many texts to ids: one cut for many texts, one look-up a word, and numpy expands the words to
        tokens.

        Equal to `analyse` on each text, which serves the few texts with special tokens, Hangul or private
        characters.
        """
        self._require_built()
        parts = [self._encode_chunk(chunk) for chunk in _chunks(texts)]
        if not parts:
            return pack([])._replace(lengths=np.zeros(0, dtype=np.int64))
        return Encodings(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _encode_chunk(self, texts: list[str]) -> Encodings:
        texts = list(texts)
        exact: dict[int, Encodings] = {}
        joined = self._normal_lines(texts)
        if "\0" in joined or "[" in joined:
            for i, (text, line) in enumerate(zip(texts, joined.split("\n"), strict=True)):
                if "\0" in line or ("[" in line and self._special.search(text)):
                    exact[i] = pack(self.analyse(text))
                    texts[i] = ""
            joined = self._normal_lines(texts)
        fast = self._encode_lines(joined)
        if not exact:
            return fast
        # Set the exact texts between the fast ones.
        ends = np.cumsum(fast.lengths)
        lengths = fast.lengths.copy()
        parts, done = [], 0
        for i, encodings in exact.items():
            parts += [[a[done : ends[i]] for a in fast[:3]], encodings[:3]]
            done = ends[i]
            lengths[i] = encodings.lengths[0]
        parts.append([a[done:] for a in fast[:3]])
        return Encodings(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)), lengths)

    def _normal_lines(self, texts: list[str]) -> str:
        """The texts' normal forms, a line each, with NUL in those that need the exact way."""
        if self._table is None:
            self._table = _NormalTable(self.lowercase, self.index)
        joined = "\n".join(texts)
        if joined.count("\n") >= len(texts):
            joined = "\n".join(text.replace("\n", " ") for text in texts)
        return joined.translate(self._table)

    def _encode_lines(self, joined: str) -> Encodings:
        if self._memo is None or len(self._memo) > _MEMO_ENTRIES:
            self._memo = _Memo(self._word_tokens)
        memo = self._memo
        words = self.segmenter.cut(joined)
        entries = np.fromiter(map(memo.__getitem__, words), np.int32, len(words))
        flags = np.array(memo.flags, dtype=np.int8)[entries]
        if (flags & memo.DROPPED).any():
            kept = np.flatnonzero((flags & memo.DROPPED) == 0)
            entries, flags = entries[kept], flags[kept]
            words = [words[i] for i in kept]
        inside = np.zeros(len(entries), dtype=bool)  # the word goes on with a run of letters
        inside[1:] = (flags[1:] & memo.LEFT).astype(bool) & (flags[:-1] & memo.RIGHT).astype(bool)
        self._join_runs(words, entries, inside)

        offsets = np.array(memo.offsets, dtype=np.int64)
        begin = offsets[entries]
        counts = offsets[entries + 1] - begin
        ends = np.cumsum(counts)
        first = ends - counts
        total = int(ends[-1]) if len(ends) else 0
        at = np.repeat(begin - first, counts) + np.arange(total)
        word_starts = np.zeros(total, dtype=bool)
        word_starts[first[(counts > 0) & ~inside]] = True
        bounds = np.concatenate(([0], first[entries == memo.SEPARATOR], [total]))
        ids, chars = np.array(memo.ids, dtype=np.int32), np.array(memo.chars, dtype=np.uint16)
        return Encodings(ids[at], chars[at], word_starts, np.diff(bounds))

    def _join_runs(self, words: list[str], entries: np.ndarray, inside: np.ndarray) -> None:
        """Change `entries` in place where tokens reach over words (BERT's do, WoBERT's do not)."""

    def _word_tokens(self, word: str) -> Iterator[tuple[int, int]]:
        """(id, counted characters) of each token of one normalised word."""
        counted = [KINDS[char] in (PLAIN, ALONE) for char in word]
        for token_id, indices in self._pieces(Traced(word, [], [word], counted, [])):
            yield token_id, sum([counted[i] for i in indices])

    # Back to text, to disk, to another process

    def decode(self, ids: Iterable[int]) -> str:
        return join_tokens([self.vocab[i] for i in ids if i not in self.textless_ids])

    def save(self, directory: str, max_length: int | None = None) -> None:
        """Write vocab.txt, the stock class's two JSON files, our notes and the user dictionary."""
        self._require_built()
        import transformers

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        options = {} if max_length is None else {"model_max_length": max_length}
        if self.mask_id is None:
            options["mask_token"] = None  # else it is given an id that the model has not
        # RoFormer's class would give no segment ids for pairs of texts.
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        stock = getattr(transformers, self.stock_class)(
            vocab=self.index, do_lower_case=self.lowercase, model_input_names=inputs, **options
        )
        stock.save_pretrained(directory)
        # As bytes: a text file would write "\r\n" on Windows.
        (folder / "vocab.txt").write_bytes("".join(token + "\n" for token in self.vocab).encode("utf-8"))
        if self.segmenter.user_dict is not None:
            (folder / SAVED_USER_DICT).write_bytes(self.segmenter.user_dict.encode("utf-8"))
        write_saved(self, directory, {"lowercase": self.lowercase}, origin=self.origin._asdict())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": None, "_table": None}


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)))


def pack(tokens: list[Token]) -> Encodings:
    """The tokens of one text as arrays."""
    return Encodings(
        np.array([t.id for t in tokens], dtype=np.int32),
        np.array([t.chars for t in tokens], dtype=np.uint16),
        np.array([t.word_start for t in tokens], dtype=bool),
        np.array([len(tokens)], dtype=np.int64),
    )


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text) + 1
        if size >= _CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _with_bar(texts: Iterable[str], progress: bool) -> Iterable[str]:
    total = len(texts) if isinstance(texts, Sized) else None
    if not progress or not (sys.stderr.isatty() or (total or 0) > 100_000):
        return texts
    from rich.console import Console
    from rich.progress import track

    return track(texts, "Building the vocabulary", total=total, console=Console(stderr=True), transient=True)
