"""WoBERT's tokenizer: whole jieba words where the vocabulary has them, BERT's own way for the rest.

Source: https://kexue.fm/archives/7758, https://github.com/ZhuiyiTechnology/WoBERT.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

from datamodules.tokenizers.base import Traced
from datamodules.tokenizers.builders import (
    Origin,
    choose_characters,
    choose_words,
    has_words,
    jieba_version,
    jieba_words,
    read_words,
    simplified,
)
from datamodules.tokenizers.vocabulary import COMMON_DIFFERENCES, VocabularyTokenizer
from datamodules.tokenizers.wordpiece import DROPPED, KINDS, SPACE, basic_tokens


class WordTokenizer(VocabularyTokenizer):
    """Lower-case, strip accents, `jieba.cut(HMM=False)`; words of the vocabulary are tokens, others are cut.

    A vocabulary is taken as it is, or words are added to it (`add_words`), or it is built from the training
    texts: their characters, and words.

    Args:
        vocab: path of a vocab.txt (one token a line, empty lines keep their id) or the tokens themselves, [PAD],
            [UNK], [CLS] and [SEP] among them, and [MASK] for a masked model. It goes before `init_from`.
        init_from: a run directory, an export, a Hugging Face directory or a hub name, whose vocabulary and
            user dictionary are taken. With neither, `build` makes the vocabulary from the training texts.
        user_dict: path of a jieba dictionary, `word [count [tag]]` a line; jieba then segments in the place
            of rjieba.
        lowercase: lower-case and strip accents, before anything else.
        words: where words come from. "corpus": counted in the training texts; "jieba": jieba's own dictionary, by
            its frequencies; else the path of a list, `word [count]` a line, by falling count or in its order,
            whose words jieba is then told. None: "jieba" for an existing vocabulary, as the article; else
            "corpus".
        add_words: how many words the vocabulary lacks are appended to it, fewer where there are no more. None:
            none to an existing vocabulary; from scratch as many as `max_size` leaves room for.
        simplify: first leave out of an existing vocabulary what can never come out (`##中`, `[unused1]`), the
            special tokens first: other ids. None: where words of jieba are added to a vocabulary without words,
            as the article does.
        min_count: characters and words of the training texts are taken when they occur so often.
        max_size: from scratch at most so many tokens, the five special ones included; with `add_words`, so many
            before the words.

    Raises ValueError, the option's name first, for what cannot be used.
    """

    word_maxlen = 200
    stock_class = "RoFormerTokenizer"

    def __init__(
        self,
        vocab: str | list[str] | None = None,
        init_from: str | None = None,
        user_dict: str | None = None,
        lowercase: bool = True,
        words: str | None = None,
        add_words: Annotated[int, "x >= 1"] | None = None,
        simplify: bool | None = None,
        min_count: Annotated[int, "x >= 1"] = 2,
        max_size: Annotated[int, "x >= 6"] = 20000,
    ) -> None:
        exists = vocab is not None or init_from is not None
        if add_words is not None and add_words < 1:
            raise ValueError(f"add_words={add_words}: must be at least 1")
        if exists and words is not None and add_words is None:
            raise ValueError(
                f"words={words}: how many of them does the vocabulary get? type tokenizer.add_words=20000, or "
                "for the weights of a checkpoint model.expand_vocabulary=20000"
            )
        if simplify and not exists:
            raise ValueError(
                f"simplify={simplify}: there is no vocabulary yet; name one with tokenizer.vocab="
            )
        if simplify and vocab is None and add_words is None:
            raise ValueError(
                f"simplify={simplify}: gives other ids than the weights of {init_from} know; with "
                "model.expand_vocabulary=20000 they move along"
            )
        self.words = words or ("jieba" if exists else "corpus")
        self.add_words = add_words
        self.simplify = simplify
        self._base: tuple[list[str], Origin] | None = None  # the existing vocabulary, simplified if wanted
        self._list = None if self.words in ("corpus", "jieba") else read_words(self.words, lowercase)
        super().__init__(vocab, init_from, user_dict, lowercase, min_count, max_size)

    def _start_from(self, tokens: list[str], origin: Origin | None) -> None:
        if self.add_words is None and not self.simplify:
            return super()._start_from(tokens, origin)
        simplify = self.simplify
        if simplify is None:
            simplify = self.words == "jieba" and not has_words(tokens)
        kept = simplified(tokens) if simplify else tokens
        self._base = kept, Origin(len(kept), len(tokens) - len(kept))
        if self.add_words is None:
            self.set_vocabulary(*self._base)
        elif self.words != "corpus":
            self._choose(Counter())

    def _choose(self, words: Counter[str]) -> None:
        if self._base is None:
            tokens = choose_characters(words, self.min_count, self.max_size)
            origin = Origin(len(tokens), base="texts")
        else:
            tokens, origin = self._base
        if self._list is not None:
            ranked = self._list
        elif self.words == "jieba":
            ranked = jieba_words(self.lowercase)
        else:
            ranked = choose_words(words, self.min_count, self.word_maxlen)
        limit = self.max_size - len(tokens) if self.add_words is None else self.add_words
        source = self.words if self._list is None else "list"
        self._append(tokens, ranked, limit, origin._replace(words=source))
        if self._base is not None and self.vocab_size == len(tokens):
            raise ValueError(
                f"words={self.words}: the vocabulary has all of these words; there is none to add"
            )
        if self._list is not None:
            self.segmenter = self.segmenter.yielding(word for word in ranked if word in self.index)

    @property
    def _recipe(self) -> tuple[Any, ...]:
        if self.words == "corpus" and self.add_words is None:
            return super()._recipe
        words = jieba_version() if self.words == "jieba" else self._list or self.words
        return *super()._recipe, words, self.add_words, self._base

    def _takes_over(self, made_by: str) -> bool:
        return super()._takes_over(made_by) or (made_by == "CharTokenizer" and self.add_words is not None)

    def _other_way_out(self, made_by: str) -> str:
        if made_by != "CharTokenizer":
            return ""
        return ", or model.expand_vocabulary=20000 to add words to its characters"

    def _pieces(self, traced: Traced) -> Iterator[tuple[int, Sequence[int]]]:
        end = 0
        for word in traced.words:
            start, end = end, end + len(word)
            if word in self.index and KINDS[word[0]] != SPACE:
                yield self.index[word], range(start, end)
                continue
            for token in basic_tokens(traced.text, start, end, (DROPPED,)):
                yield from self._cut(traced.text, token)

    def stock_differences(self) -> list[str]:
        cases = [
            "Words of jieba's dictionary that contain punctuation and are not in the vocabulary (`c++`, "
            "`c#`): here each sign is a token, as in WoBERT; the stock class gives [UNK] or `##` pieces.",
            "Control and format characters (U+200B, U+FEFF): both remove them, but here they end a word, as "
            "in WoBERT; the stock class removes them before it segments.",
            "Private-use characters (U+E000 to U+F8FF and planes 15, 16): [UNK] here, as in WoBERT; removed "
            "by the stock class.",
            "Unbroken runs of 101 to 200 Latin letters and digits: WordPiece here, as in WoBERT; [UNK] in "
            "the stock class.",
            *COMMON_DIFFERENCES,
        ]
        if self.segmenter.user_dict is not None:
            user_dict = (
                "The user dictionary: the stock class does not know it and segments by jieba's own. For the "
                "ids of the training use `from datamodules.tokenizers.base import load_tokenizer; "
                "load_tokenizer(DIRECTORY)`."
            )
            cases.insert(0, user_dict)
        return cases

    def _words(self, normal: str) -> Iterable[str]:
        return self.segmenter.cut(normal)
