"""Corpora that others publish: an embedded sample, a folder as they unpack, the Hugging Face hub, or named files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.corpus import BadRows, DataError
from datamodules.file_corpus import FileCorpus
from datamodules.files import read_values
from datamodules.hub import download
from datamodules.text import Split

log = logging.getLogger(__name__)


class Publication(NamedTuple):
    """What there is of a corpus, and where.

    Attributes:
        name: of the corpus, as messages have it in `/path/to/<name>`.
        folder: what `source` takes as a folder, in words.
        files: names (or patterns) of each split's files there, the best first; every one may also end in .gz.
        repository: of datasets, on the hub.
        hub_files: the pattern of each split's files in the repository; one of `files`, too.
        sample: the embedded files of each split.
        sample_of: what they hold, in words.
        subfolders: where in the folder the files may lie, the best first; "" is the folder itself.
    """

    name: str
    folder: str
    files: Mapping[Split, tuple[str, ...]]
    repository: str
    hub_files: Mapping[Split, str]
    sample: Mapping[Split, Path]
    sample_of: str
    subfolders: tuple[str, ...] = ("",)


class PublishedCorpus(FileCorpus):
    """A corpus that has a `Publication`.

    Args:
        source: `sample`, `hub`, or a folder.
        revision: of the hub's repository: a branch, a tag or a commit.
        publication: given by the subclass.
        options: as of `FileCorpus`; with `source="sample"` named files stand alone.

    Attributes:
        is_sample: the rows are the embedded sample's.
        commit: that the hub's files were taken from, once they were.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file or folder is not there.
    """

    def __init__(
        self, source: str = "sample", revision: str | None = None, *, publication: Publication, **options: Any
    ):
        if not isinstance(source, str) or not source:
            raise ValueError(f"source={source}: must be `sample`, `hub`, or {publication.folder}")
        if revision is not None and source != "hub":
            raise ValueError(f"revision={revision}: is of the hub; add data.source=hub")
        super().__init__(**options)
        self.source = source
        self.revision = revision
        self.publication = publication
        self.commit: str | None = None
        self.is_sample = source == "sample" and not self.named
        self._real = f"data.source=/path/to/{publication.name} ({publication.folder})"
        self._check_named()
        if source != "hub":
            self.files  # noqa: B018  (missing files are told at once)
        if self.is_sample:
            log.warning(f"THIS IS THE EMBEDDED SAMPLE, NOT A REAL CORPUS: {self.describe()['note']}")

    def source_files(self, wanted: tuple[Split, ...]) -> dict[Split, list[Path]]:
        if self.source == "sample":
            return {split: [self.publication.sample[split]] for split in wanted} if self.is_sample else {}
        if self.source != "hub":
            return self._folder_files(Path(self.source).expanduser(), wanted)
        patterns = [self.publication.hub_files[split] for split in wanted]
        snapshot = download(self.publication.repository, patterns, self.revision, self._real)
        self.commit = snapshot.commit
        return self._folder_files(snapshot.folder, wanted)

    def describe(self) -> dict:
        """Where the rows come from, for the summary of a run."""
        if self.is_sample:
            note = (
                f"synthetic {self.publication.sample_of} that this project wrote, good for trying out and no more; "
                f"the real corpus: {self._real} or data.source=hub"
            )
            return {"source": "sample", "synthetic": True, "note": note}
        about = super().describe()
        if self.source != "sample":
            about["source"] = self.source
        return about | ({"revision": self.commit} if self.commit else {})

    def _check_named(self) -> None:
        if self.fractions is not None:
            if self.source != "sample":
                raise ValueError(
                    f"split={self.fractions}: cuts data.train alone; leave out data.source={self.source}"
                )
        elif self.source == "sample" and self.named:
            remedies = {"train": "data.train=FILE", "val": "data.val=FILE or data.split=[0.9,0.1]"}
            for split, remedy in remedies.items():
                if split not in self.named:
                    given, value = next(iter(self.named.items()))
                    raise ValueError(
                        f"{given}={value}: files stand alone, the sample is not mixed into them; add {remedy}, or "
                        f"take the rest from a folder: data.source=/path/to/{self.publication.name}"
                    )

    def _folder_files(self, root: Path, wanted: tuple[Split, ...]) -> dict[Split, list[Path]]:
        """A folder's files of the `wanted` splits; only the test files may be missing."""
        if not root.is_dir():
            what = "a file; name files by data.train= and data.val=" if root.exists() else "no such folder"
            raise DataError(
                f"source={root}: {what} (seen from {Path.cwd()}); it takes `sample`, `hub`, or "
                f"{self.publication.folder}"
            )
        folders = [root / name for name in self.publication.subfolders]
        files = {}
        for split in wanted:
            names = self.publication.files[split]
            endings = [name + ending for name in names for ending in ("", ".gz")]
            matches = (sorted(folder.glob(name)) for folder in folders for name in endings)
            if found := next(filter(None, matches), None):
                files[split] = found
            elif split != "test":
                places = " and ".join(str(folder / names[0]) for folder in folders)
                raise DataError(
                    f"source={root}: no {' or '.join(names)} (or with .gz); looked for {places}. Name the file: "
                    f"data.{split}=FILE, or cut one file: data.train=FILE data.split=[0.8,0.1,0.1]"
                )
        return files


def read_published(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    """As `read_values`. Published files are JSON, whatever people call them; only the hub's have another form."""
    return read_values(path, bad_rows, "parquet" if path.suffix == ".parquet" else "json")
