"""LCCC, short-text conversations: the embedded sample, the published files in all their forms, the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from datamodules.corpus import BadRows, DataError, Row, listed, shortened, text_problem
from datamodules.file_corpus import FileCorpus
from datamodules.files import read_values
from datamodules.hub import download
from datamodules.text import Split

log = logging.getLogger(__name__)

SAMPLE = Path(__file__).parent / "samples" / "lccc"
HUB_REPOSITORY = "silver/lccc"
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
SAMPLE_FILES = {"train": "train.jsonl", "val": "valid.jsonl", "test": "test.jsonl"}
HELD_OUT = 0.01

# Scripts that are written with spaces: one between two of their words or numbers is the text's own.
_SPACED = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
_HAS_SPACED = re.compile(f"[{_SPACED}]")
_NEEDLESS_SPACE = re.compile(f"(?<![{_SPACED}]) +| +(?![{_SPACED}])")
_TWO_TOGETHER = re.compile(r"[^ \0][^ \0]")


class LCCC(FileCorpus):
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
        options: as of `FileCorpus`. Training dialogues that stand in an evaluation file are removed by default:
            the large corpus holds base's test split.

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
        if not isinstance(source, str) or not source:
            raise ValueError(f"source={source}: must be `sample`, `hub`, or a folder that holds LCCC's files")
        if revision is not None and source != "hub":
            raise ValueError(f"revision={revision}: is of the hub; add data.source=hub")
        self.source = source
        self.variant = variant
        self.revision = revision
        self.commit: str | None = None
        self.truncation = "first_turns" if keep == "first" else "last_turns"
        self.min_turns = min_turns
        stands_alone = source == "sample" and options.get("train") is not None
        if stands_alone and options.get("val") is None and options.get("split") is None:
            options["split"] = [1 - HELD_OUT, HELD_OUT]
            log.info(f"no validation file is named: {HELD_OUT:.0%} of data.train is held out (data.split)")
        super().__init__(overlap=overlap, **options)
        self.is_sample = source == "sample" and not self.named
        if source == "sample" and self.named and "train" not in self.named:
            given, value = next(iter(self.named.items()))
            raise ValueError(
                f"{given}={value}: files stand alone, the sample is not mixed into them; add data.train=FILE, or take "
                "the rest from a folder: data.source=/path/to/lccc"
            )
        if source != "hub":
            self.files  # noqa: B018  (missing files are told at once)
        if self.is_sample:
            log.warning(f"THIS IS THE EMBEDDED SAMPLE, NOT A REAL CORPUS: {self.describe()['note']}")

    def source_files(self, wanted: tuple[Split, ...]) -> dict[Split, list[Path]]:
        if self.is_sample:
            return {split: [SAMPLE / SAMPLE_FILES[split]] for split in wanted}
        if self.source == "sample":
            return {}
        names = {"train": TRAIN_FILES[self.variant], **EVALUATION_FILES}
        if self.source != "hub":
            return _folder_files(Path(self.source).expanduser(), {split: names[split] for split in wanted})
        exported = self.revision is not None and self.revision.startswith(PARQUET_EXPORT)
        patterns = [names[split][-1] if exported else f"{names[split][-2]}.gz" for split in wanted]
        snapshot = download(
            HUB_REPOSITORY,
            patterns,
            self.revision,
            "data.source=/path/to/lccc (a folder that holds LCCC's files)",
        )
        self.commit = snapshot.commit
        return _folder_files(snapshot.folder, {split: names[split] for split in wanted})

    def row_options(self) -> tuple:
        return (self.min_turns,)

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row]:
        # LCCC's files are JSON, whatever people call them; only the hub's have another form.
        kind = "parquet" if path.suffix == ".parquet" else "json"
        for place, value in read_values(path, bad_rows, kind):
            turns = value.get("dialog", value) if isinstance(value, dict) else value
            problem = self._problem(turns)
            if problem is None:
                yield Row(despaced(turns))
            else:
                bad_rows.add(path, place, problem)

    def describe(self) -> dict:
        """Where the rows come from, for the summary of a run."""
        if self.is_sample:
            note = (
                "synthetic dialogues that this project wrote, good for trying out and no more; the real corpus: "
                "data.source=/path/to/lccc (the folder that holds LCCC-base_train.json) or data.source=hub"
            )
            return {"source": "sample", "synthetic": True, "note": note}
        about = super().describe()
        if self.source != "sample":
            about["source"] = self.source
        return about | ({"revision": self.commit} if self.commit else {})

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
    becomes `hello` (that two Latin words stood there is lost in the file). In all others only a space between two
    Latin words or numbers stays, `iphone 6`.
    """
    joined = "\0".join(turns)  # which no text holds
    if _HAS_SPACED.search(joined) and _TWO_TOGETHER.search(joined):
        joined = _NEEDLESS_SPACE.sub("", joined)
    else:
        joined = joined.replace(" ", "")
    return tuple(joined.split("\0"))


def _folder_files(root: Path, names: dict[Split, tuple[str, ...]]) -> dict[Split, list[Path]]:
    """The files of each split, by the first of its names that `root` has; only the test files may be missing."""
    if not root.is_dir():
        what = "a file; name files by data.train= and data.val=" if root.exists() else "no such folder"
        raise DataError(
            f"source={root}: {what} (seen from {Path.cwd()}); it takes `sample`, `hub`, or a folder with LCCC's files"
        )
    files = {}
    for split, patterns in names.items():
        endings = [name + ending for name in patterns for ending in ("", ".gz")]
        found = next((paths for name in endings if (paths := sorted(root.glob(name)))), None)
        if found:
            files[split] = found
        elif split != "test":
            raise DataError(
                f"source={root}: no {' or '.join(patterns)} (or with .gz); name the file: data.{split}=FILE, or cut "
                "one file: data.train=FILE data.split=[0.99,0.01]"
            )
    return files
