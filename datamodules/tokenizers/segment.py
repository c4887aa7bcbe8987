"""Word segmentation as `jieba.cut(text, HMM=False)`: by rjieba (Rust), or by jieba where a user dictionary is
given.
"""

import logging
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datamodules.tokenizers.wordpiece import normalize

_LOG = logging.getLogger(__name__)
#: jieba looks words up in runs of these characters only: an entry with any other can never come out.
JIEBA_RUN = re.compile(r"[\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+")


def read_user_dict(path: str, option: str = "user_dict") -> str:
    """The text of a user dictionary, checked line by line: `word`, `word count` or `word count tag`.

    Raises ValueError naming the file, the line and the way out.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"{option}={path}: no such file; name a text file with one `word [count [tag]]` a line"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}={path}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    never = []
    words = 0
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        words += 1
        if len(fields) > 3 or (len(fields) > 1 and not fields[1].isdecimal()):
            raise ValueError(
                f"{option}={path}: line {number}, {line.strip()!r}: expected `word`, `word count` "
                "or `word count tag`"
            )
        if not JIEBA_RUN.fullmatch(normalize(fields[0], True)[0]):
            never.append(f"{fields[0]} (line {number})")
    if not words:
        raise ValueError(f"{option}={path}: holds no word")
    if never:
        _LOG.warning(
            "%s=%s: jieba never yields words with such characters: %s%s",
            option,
            path,
            ", ".join(never[:5]),
            f" and {len(never) - 5} more" if len(never) > 5 else "",
        )
    return text


class Segmenter:
    """Cuts normalised text into words that join to it again; picklable, the dictionary is loaded at the first
    cut.

    Args:
        user_dict: text of a user dictionary (not its path), or None.
        lowercase: whether the texts are normalised to lower case; the dictionary's words then are as well.
    """

    def __init__(self, user_dict: str | None, lowercase: bool) -> None:
        self.user_dict = user_dict
        self.lowercase = lowercase
        self._engine: Any = None

    @property
    def name(self) -> str:
        """The engine and its version, which decide the segmentation."""
        engine = "rjieba" if self.user_dict is None else "jieba"
        return f"{engine} {version(engine)}"

    def cut(self, text: str) -> list[str]:
        """The words of `text`; white space and punctuation are words of one character."""
        if self._engine is None:
            self._engine = self._load()
        return self._engine(text)

    def yielding(self, words: Iterable[str]) -> "Segmenter":
        """This segmenter, or one whose user dictionary has, on top, those of `words` that this one cuts into
        parts.

        Without counts: jieba then takes the frequency at which a word comes out whole.
        """
        lacking = [word for word in words if self.cut(word) != [word]]
        if not lacking:
            return self
        lines = [*(self.user_dict or "").splitlines(), *lacking]
        return Segmenter("\n".join(lines) + "\n", self.lowercase)

    def _load(self) -> Any:
        if self.user_dict is None:
            import rjieba

            return lambda text: rjieba.cut(text, False)
        import jieba

        jieba.setLogLevel(logging.WARNING)
        tokenizer = jieba.Tokenizer()  # not jieba.dt, which other code may have changed
        for line in self.user_dict.splitlines():
            word, *rest = line.split() or [""]
            if word:
                tokenizer.add_word(normalize(word, self.lowercase)[0], *rest)
        return lambda text: tokenizer.lcut(text, HMM=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}  # neither engine pickles
