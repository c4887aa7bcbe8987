"""Dialogues in files of the usual forms: what their turns are, which spaces are not theirs; files of one's own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from datamodules.corpus import BadRows, DataError, Row, listed, shortened, shown, text_problem
from datamodules.file_corpus import FileCorpus
from datamodules.files import BOM, LONGEST_ROW, format_of, open_binary, read_values
from datamodules.text import Split

log = logging.getLogger(__name__)

HELD_OUT = 0.1
# Where a record has its turns, the first that it has: LCCC, KdConv and CrossWOZ, ShareGPT, DuConv.
DIALOGUE_KEYS = (
    "dialog", "dialogue", "messages", "turns", "utterances", "conversation", "conversations", "history",
)  # fmt: skip
REPLY_KEYS = ("reply", "response")  # beside `history`, its next turn
INSTRUCTIONS = ("system", "developer")  # roles that are no turns
TOOLS = ("tool", "function")  # roles whose messages would be taken for a speaker's
TEXT_KEYS = ("message", "content", "text", "value", "utterance")
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("valid", "val", "dev", "validation"),
    "test": ("test",),
}

# Scripts that are written with spaces: between two of their words or numbers one is the text's own.
_SPACED = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
_HAS_SPACED = re.compile(f"[{_SPACED}]")
_NEEDLESS_SPACE = re.compile(f"(?<![{_SPACED}]) +| +(?![{_SPACED} ])")
_TWO_TOGETHER = re.compile(r"[^ \0][^ \0]")
# Chinese and Japanese characters and punctuation, and what stands between two of them.
_UNSPACED = "\u3001-\u30ff\u3400-\u9fff\uff01-\uffef\U00020000-\U0003ffff"
_GAP = re.compile(f"[{_UNSPACED}]( *)(?=[{_UNSPACED}])")
# Segmented text has a space in 0.6 of its gaps (0.4 or more in 95 of 100 single dialogues), other text in 0.01.
SPACED_GAPS = 0.4
LOOKED_AT = 1 << 17  # characters of a file by which its spaces are judged


class DialogueFiles(FileCorpus):
    """Rows that are dialogues, from files of the forms that `read_dialogues` and `turns_of` know.

    Args:
        keep: which end of a dialogue is kept where it is too long, in whole turns: `first` or `last`.
        min_turns: a dialogue of fewer turns is a bad row.
        spaces: given by a subclass: "remove" those that `despaced` takes for a segmenter's, "keep" all, or "auto": remove
            them from a file that is segmented, see `is_spaced`.
        options: as of the next class.

    Raises:
        ValueError: an option's value cannot be used.
    """

    provides = frozenset({"text", "turns"})

    def __init__(
        self,
        keep: Literal["first", "last"] = "first",
        min_turns: Annotated[int, "x >= 1"] = 2,
        *,
        spaces: Literal["auto", "keep", "remove"],
        **options: Any,
    ):
        if min_turns < 1:
            raise ValueError(f"min_turns={min_turns}: must be at least 1")
        if keep not in ("first", "last"):
            raise ValueError(f"keep={keep}: must be one of first, last")
        if spaces not in ("auto", "keep", "remove"):
            raise ValueError(f"spaces={spaces}: must be one of auto, keep, remove")
        self.truncation = "first_turns" if keep == "first" else "last_turns"
        self.min_turns = min_turns
        self.spaces = spaces
        super().__init__(**options)

    def kind_of(self, path: Path) -> str:
        """The format of a file, as `read_dialogues` takes it."""
        raise NotImplementedError

    def row_options(self) -> tuple:
        return (self.min_turns, self.spaces)

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row | str]:
        dialogues = self._dialogues(path, split, bad_rows)
        remove = self.spaces == "remove"
        if self.spaces == "auto":
            first, characters = [], 0
            for turns in dialogues:
                first.append(turns)
                characters += sum(map(len, turns))
                if characters > LOOKED_AT:
                    break
            remove = is_spaced(turns for turns in first if isinstance(turns, tuple))
            dialogues = chain(first, dialogues)
        for turns in dialogues:
            if isinstance(turns, tuple):
                yield Row(despaced(turns) if remove else turns)
            else:
                yield turns

    def _dialogues(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[tuple[str, ...] | str]:
        """The turns of each dialogue as they are written; in the place of one that a rule leaves out, its name."""
        for place, value in read_dialogues(path, self.kind_of(path), split, bad_rows):
            turns, problem = self._turns(value)
            if problem is None and isinstance(turns, tuple) and len(turns) < self.min_turns:
                count = {0: "no turn", 1: "one turn"}.get(len(turns), f"{len(turns)} turns")
                problem = f"a dialogue of {count}, data.min_turns={self.min_turns} are needed"
            if problem is None:
                yield turns
            else:
                bad_rows.add(path, place, problem)

    def _turns(self, value: Any) -> tuple[tuple[str, ...] | str, str | None]:
        """As `turns_of`; a text is the rule by which the dialogue is left out."""
        return turns_of(value)


class Dialogues(DialogueFiles):
    """Dialogues of one's own, or anybody's, from txt, tsv, JSON or parquet files; a row is a dialogue.

    Args:
        train: files, see `FileCorpus`. Without `val` and `split` a tenth of their dialogues is held out.
        format: txt or tsv (a dialogue a line, tabs between its turns), json or parquet; None: by the file's name.
        spaces: as of `DialogueFiles`.
        label_column: lines of txt and tsv files begin with a label, as ECD's (Zhang et al. 2018, arXiv 1806.09102):
            1; or 0, the last turn is a reply to something else, and the dialogue is left out.
        overlap: as of `FileCorpus`, but "remove" by default.
        options: as of `DialogueFiles` and `FileCorpus`.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file is not there.
    """

    def __init__(
        self,
        train: str | list[str],
        format: Literal["txt", "tsv", "json", "parquet"] | None = None,
        spaces: Literal["auto", "keep", "remove"] = "auto",
        label_column: bool = False,
        overlap: Literal["remove", "refuse", "keep"] = "remove",
        **options: Any,
    ):
        if not train:
            raise ValueError(f"train={train}: name a file, e.g. data.train=dialogues.jsonl")
        if format not in (None, "txt", "tsv", "json", "parquet"):
            raise ValueError(f"format={format}: must be one of txt, tsv, json, parquet")
        super().__init__(train=train, spaces=spaces, overlap=overlap, held_out=HELD_OUT, **options)
        self.format = format
        self.label_column = label_column
        for path in (path for paths in self.files.values() for path in paths):  # told at once
            if self.kind_of(path) not in ("txt", "tsv") and label_column:
                raise ValueError(f"label_column=true: is of the lines of txt and tsv files, not of {path}")

    def kind_of(self, path: Path) -> str:
        return format_of(path, self.format)

    def row_options(self) -> tuple:
        return (*super().row_options(), self.label_column)

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row | str]:
        rows = labelled = 0
        for row in super().rows_of(path, split, bad_rows):
            rows += 1
            labelled += isinstance(row, Row) and row.text[0] in ("0", "1")
            yield row
        if rows == labelled > 0 and not self.label_column and self._first_time(f"labels of {path}"):
            log.warning(
                f"{path}: every dialogue begins with 0 or 1; if that is a label: data.label_column=true"
            )

    def _content_of(self, split: Split) -> str:
        # The same bytes are other rows in another format.
        return " ".join([super()._content_of(split), *map(self.kind_of, self.files[split])])

    def _turns(self, value: Any) -> tuple[tuple[str, ...] | str, str | None]:
        if not self.label_column:
            return turns_of(value)
        label, *turns = value
        if label not in ("0", "1"):
            return (), f"label {shown(label)}: must be 0 or 1"
        return turns_of(turns) if label == "1" else ("dialogues of label 0", None)


def read_dialogues(path: Path, kind: str, split: Split, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    """(place, value) of each dialogue of a file, as a stream; `turns_of` says what a value's turns are.

    A txt or tsv file has a dialogue a line, tabs between its turns; JSON and parquet files are read as by
    `read_values`. A JSON file may also be one object: splits by their names, of which one is taken
    (`{"train": [...], "valid": [...]}`), or ids and their dialogues. Such a file is read as a whole.

    Raises:
        DataError: as of `read_values`; the file is a table, or an object without the split or without a dialogue.
    """
    if kind == "csv":
        raise DataError(
            f"{path}: dialogues are read from txt, tsv, json, jsonl or parquet files, not from csv"
        )
    if kind in ("txt", "tsv"):
        for place, line in read_values(path, bad_rows, "txt"):
            # Spreadsheets end a line with the tabs of the columns that it lacks.
            yield place, [turn.strip() for turn in line.rstrip("\t").split("\t")]
        return
    if kind == "parquet":
        yield from read_values(path, bad_rows, kind)
        return
    values = _one_object(path) or read_values(path, bad_rows, kind)
    first, second = next(values, None), next(values, None)
    if second is not None:
        yield from chain([first, second], values)
    elif first is not None:
        yield from _unpacked(path, *first, split)


def _one_object(path: Path) -> Iterator[tuple[str, Any]] | None:
    """The JSON object that a file is, where it stands on several lines."""
    with open_binary(path) as stream:
        line = stream.readline(LONGEST_ROW)
        opening = line.removeprefix(BOM).rstrip()
        if not opening.startswith(b"{") or not opening.endswith((b"{", b"[", b",")):
            return None
        try:
            return iter([("row 1", json.loads(line + stream.read()))])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: damaged, or no JSON in UTF-8 ({error})") from error


def _unpacked(path: Path, place: str, value: Any, split: Split) -> Iterator[tuple[str, Any]]:
    """The dialogues of a file's only value: itself, or those of a mapping of splits or ids."""
    if not isinstance(value, dict) or any(key in value for key in DIALOGUE_KEYS):
        yield place, value
        return
    within, unit = "", "dialogue"
    if any(name in value for names in SPLIT_NAMES.values() for name in names):
        name = next((name for name in SPLIT_NAMES[split] if name in value), None)
        if name is None:
            raise DataError(f"{path}: has no {split} split (it has: {listed(map(repr, value))})")
        within, value = f"{name}, ", value[name]
    elif not all(isinstance(dialogue, (dict, list)) for dialogue in value.values()):
        yield place, value
        return
    if not value or not isinstance(value, (dict, list)):
        raise DataError(f"{path}: {within}no dialogues but {shortened(value)}")
    if isinstance(value, list):
        unit, value = "row", dict(enumerate(value, 1))
    for key, dialogue in value.items():
        yield f"{within}{unit} {key}", dialogue


def turns_of(value: Any) -> tuple[tuple[str, ...], str | None]:
    """The turns of a dialogue, as they are written, and what is wrong with it (then it has none).

    Args:
        value: a list of messages, or a record that has it under one of `DIALOGUE_KEYS`; a message is a text, or a record
            that has it under one of `TEXT_KEYS`. Messages of the roles `INSTRUCTIONS` are no turns.
    """
    reply = []
    if isinstance(value, dict):
        key = next((key for key in DIALOGUE_KEYS if key in value), None)
        if key is None:
            return (), _no_key(DIALOGUE_KEYS, value)
        if key == "history":
            reply = [value[name] for name in REPLY_KEYS if name in value][:1]
        value = value[key]
    if not isinstance(value, list):
        return (), f"no dialogue (an array of texts), {shortened(value)}"
    turns = []
    for number, message in enumerate([*value, *reply], 1):
        if isinstance(message, dict):
            role = str(message.get("role") or message.get("from") or "").lower()
            if role in INSTRUCTIONS:
                continue
            if role in TOOLS:
                return (), f"turn {number}: is of the role {role}, which is no speaker"
            key = next((key for key in TEXT_KEYS if key in message), None)
            if key is None:
                return (), f"turn {number}: {_no_key(TEXT_KEYS, message)}"
            message = _joined(message[key])
        if (problem := text_problem(message)) is not None:
            return (), f"turn {number}: {problem}"
        turns.append(message)
    return tuple(turns), None


def _joined(content: Any) -> Any:
    """The text of a message in parts, `[{"type": "text", "text": ...}]`; of other content, itself."""
    if isinstance(content, list) and content and all(isinstance(p, dict) and "text" in p for p in content):
        texts = [part["text"] for part in content]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else content
    return content


def _no_key(keys: Sequence[str], record: dict) -> str:
    return f"none of the keys {', '.join(keys)} (it has: {listed(map(repr, record)) or 'none'})"


def is_spaced(dialogues: Iterable[Sequence[str]]) -> bool:
    """Whether dialogues were segmented: spaces stand between their Chinese words or characters.

    A space that is the text's own, as between two clauses, is rare; see `SPACED_GAPS`. Dialogues without Chinese or
    Japanese are not segmented.
    """
    gaps = [gap for turns in dialogues for turn in turns for gap in _GAP.findall(turn)]
    return sum(map(bool, gaps)) > SPACED_GAPS * len(gaps)


def despaced(turns: Sequence[str]) -> tuple[str, ...]:
    """The turns without the spaces that segmented files, such as LCCC's, have between characters or words.

    A dialogue in which every piece between spaces is one character is of the first kind: all spaces go, `h e l l o`
    becomes `hello` (that two Latin words stood there is lost in the file). In all others one space between two Latin
    words or numbers stays, `iphone 6`, however many there are.
    """
    joined = "\0".join(turns)  # which no text holds
    if _HAS_SPACED.search(joined) and _TWO_TOGETHER.search(joined):
        joined = _NEEDLESS_SPACE.sub("", joined)
    else:
        joined = joined.replace(" ", "")
    return tuple(joined.split("\0"))
