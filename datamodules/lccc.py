"""LCCC, short-text conversations: the embedded sample, the published files in all their forms, the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from datamodules.corpus import BadRows, Row, listed, shortened, text_problem
from datamodules.published import Publication, PublishedCorpus, read_published
from datamodules.text import Split

SAMPLE = Path(__file__).parent / "samples" / "lccc"
# The hub's own export of every dataset as parquet, in folders by configuration and split.
PARQUET_EXPORT = "refs/convert/parquet"
# The large corpus has one file only; it is evaluated on the base corpus' files.
TRAIN_FILES = {
    "base": ("LCCC-base_train.json", "lccc_base_train.jsonl", "base/train/*.parquet"),
    "large": ("LCCD.json", "LCCC-large.json", "lccc_large.jsonl", "large/train/*.parquet"),
}
EVALUATION_FILES = {
    "val": ("LCCC-base_valid.json", "lccc_base_valid.jsonl", "base/validation/*.parquet"),
    "test": ("LCCC-base_test.json", "lccc_base_test.jsonl", "base/test/*.parquet"),
}
SAMPLE_FILES = {"train": SAMPLE / "train.jsonl", "val": SAMPLE / "valid.jsonl", "test": SAMPLE / "test.jsonl"}
HELD_OUT = 0.01

# Scripts that are written with spaces: between two of their words or numbers one is the text's own.
_SPACED = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
_HAS_SPACED = re.compile(f"[{_SPACED}]")
_NEEDLESS_SPACE = re.compile(f"(?<![{_SPACED}]) +| +(?![{_SPACED} ])")
_TWO_TOGETHER = re.compile(r"[^ \0][^ \0]")


class LCCC(PublishedCorpus):
    """LCCC (Wang et al. 2020, arXiv 2008.03946), or files of dialogues in its form; a row is a dialogue.

    Files have one JSON array of dialogues, one dialogue a line, or a parquet column `dialog`; a dialogue is an
    array of turns. Which spaces are LCCC's and which are the text's own: see `despaced`.

    Args:
        source: `sample` (embedded, synthetic), `hub`, or a folder that holds the published files.
        variant: `base`, or `large`, which trains on the large corpus and evaluates on base's files.
        revision: of the hub's repository; "refs/convert/parquet" is its export as parquet.
        keep: which end of a dialogue is kept where it is too long, in whole turns: the `first`, as the article
            does, or the `last`.
        min_turns: a dialogue of fewer turns is a bad row.
        overlap: as of `FileCorpus`, but "remove" by default: the large corpus holds base's test split.
        options: as of `PublishedCorpus`; of named training files without `val` and `split` a hundredth is held out.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file or folder is not there.
    """

    provides = frozenset({"text", "turns"})

    def __init__(
        self,
        source: str = "sample",
        variant: Literal["base", "large"] = "base",
        revision: str | None = None,
        keep: Literal["first", "last"] = "first",
        min_turns: Annotated[int, "x >= 1"] = 2,
        overlap: Literal["remove", "refuse", "keep"] = "remove",
        **options: Any,
    ):
        if min_turns < 1:
            raise ValueError(f"min_turns={min_turns}: must be at least 1")
        if variant not in TRAIN_FILES:
            raise ValueError(f"variant={variant}: must be one of {', '.join(TRAIN_FILES)}")
        if keep not in ("first", "last"):
            raise ValueError(f"keep={keep}: must be one of first, last")
        self.truncation = "first_turns" if keep == "first" else "last_turns"
        self.min_turns = min_turns
        super().__init__(
            source=source,
            revision=revision,
            publication=_publication(variant, revision),
            overlap=overlap,
            held_out=HELD_OUT if source == "sample" else None,
            **options,
        )

    def row_options(self) -> tuple:
        return (self.min_turns,)

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row]:
        for place, value in read_published(path, bad_rows):
            turns = value.get("dialog", value) if isinstance(value, dict) else value
            problem = self._problem(turns)
            if problem is None:
                yield Row(despaced(turns))
            else:
                bad_rows.add(path, place, problem)

    def _problem(self, turns: Any) -> str | None:
        if isinstance(turns, dict):
            return f"no key 'dialog' (it has: {listed(map(repr, turns)) or 'none'})"
        if not isinstance(turns, list):
            return f"no dialogue (an array of texts), {shortened(turns)}"
        if len(turns) < self.min_turns:
            count = {0: "no turn", 1: "one turn"}.get(len(turns), f"{len(turns)} turns")
            return f"a dialogue of {count}, data.min_turns={self.min_turns} are needed"
        for number, turn in enumerate(turns, 1):
            if (problem := text_problem(turn)) is not None:
                return f"turn {number}: {problem}"
        return None


def despaced(turns: list[str]) -> tuple[str, ...]:
    """The turns without the spaces that LCCC's files put between characters (base's validation and test split) or
    words (all others).

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


def _publication(variant: str, revision: str | None) -> Publication:
    files: dict[Split, tuple[str, ...]] = {"train": TRAIN_FILES[variant], **EVALUATION_FILES}
    exported = str(revision).startswith(PARQUET_EXPORT)
    return Publication(
        name="lccc",
        folder=f"a folder that holds {files['train'][0]}",
        files=files,
        repository="silver/lccc",
        hub_files={split: names[-1] if exported else f"{names[-2]}.gz" for split, names in files.items()},
        sample=SAMPLE_FILES,
        sample_of="dialogues",
    )
