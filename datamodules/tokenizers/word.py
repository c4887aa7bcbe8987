"""WoBERT's tokenizer: whole jieba words where the vocabulary has them, BERT's own way for the rest.

Source: https://kexue.fm/archives/7758, https://github.com/ZhuiyiTechnology/WoBERT.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from datamodules.tokenizers.base import Traced
from datamodules.tokenizers.vocabulary import COMMON_DIFFERENCES, VocabularyTokenizer
from datamodules.tokenizers.wordpiece import DROPPED, KINDS, SPACE, basic_tokens


class WordTokenizer(VocabularyTokenizer):
    """Lower-case, strip accents, `jieba.cut(HMM=False)`; words of the vocabulary are tokens, others are cut.

    Args:
        vocab: path of a vocab.txt (one token a line, empty lines keep their id) or the tokens themselves. It
            goes before `init_from`.
        init_from: a run directory, an export, a Hugging Face directory or a hub name, whose vocabulary and
            user dictionary are taken. With neither, `build` makes the vocabulary from the training texts.
        user_dict: path of a jieba dictionary, `word [count [tag]]` a line; jieba then segments in the place
            of rjieba.
        lowercase: lower-case and strip accents, before anything else.
        min_count: `build` takes characters and words that occur so often.
        max_size: `build` takes at most so many tokens, the five special ones included.

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
        min_count: Annotated[int, "x >= 1"] = 2,
        max_size: Annotated[int, "x >= 6"] = 20000,
    ) -> None:
        super().__init__(vocab, init_from, user_dict, lowercase, min_count, max_size)

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
