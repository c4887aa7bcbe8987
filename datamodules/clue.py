"""CLUE's text classification tasks: the embedded sample, the published files, or files of the same form."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from datamodules.corpus import (
    BadRows,
    DataError,
    Row,
    check_split,
    content_fingerprint,
    read_jsonl,
    split_rows,
    text_problem,
)
from datamodules.text import TextDataModule

log = logging.getLogger(__name__)

SAMPLES = Path(__file__).parent / "samples"
SPLIT_FILES = {"train": "train.json", "val": "dev.json", "test": "test.json"}
NAME_KEYS = ("label_desc", "label_des")  # TNEWS and IFLYTEK spell it differently; some exports have both
READER_VERSION = 1  # raise it when the same files give other rows than before: token caches go by it


class Task(NamedTuple):
    """Official label ids in order (TNEWS has no 105 and 111), and their names where the task fixes them."""

    ids: tuple[str, ...]
    names: tuple[str, ...] | None


TNEWS = {
    "100": "news_story",
    "101": "news_culture",
    "102": "news_entertainment",
    "103": "news_sports",
    "104": "news_finance",
    "106": "news_house",
    "107": "news_car",
    "108": "news_edu",
    "109": "news_tech",
    "110": "news_military",
    "112": "news_travel",
    "113": "news_world",
    "114": "news_stock",
    "115": "news_agriculture",
    "116": "news_game",
}
TASKS = {
    "tnews": Task(tuple(TNEWS), tuple(TNEWS.values())),
    "iflytek": Task(tuple(str(number) for number in range(119)), None),
}


class Labels(NamedTuple):
    """How the files of a folder write labels; `official` unless a labels.json there has ids of its own."""

    ids: tuple[str, ...]
    names: tuple[str, ...] | None
    official: bool


class CLUE(TextDataModule):
    """CLUE (arXiv 2004.05986): TNEWS, news titles in 15 classes, and IFLYTEK, app descriptions in 119.

    Where files come from and how labels are read is told in conf/data/clue.yaml.

    Args:
        task: `tnews` or `iflytek`.
        source: `sample` (synthetic TNEWS titles, embedded), or a folder that holds `<task>/train.json` or
            `train.json`.
        train, val, test: files to use instead of the source's; with `source="sample"` they stand alone.
        split: fractions that cut `train` into training, validation and, with a third one, test rows.
        max_bad_rows: unusable rows of a file that are skipped; one more is a `DataError`.
        tokenizer, max_length, tokens_per_batch, max_tokens_per_device, num_workers, cache_dir, seed: as in
            `TextDataModule`; the seed also draws `split`.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file or folder is not there.
    """

    provides = frozenset({"text", "label"})

    def __init__(
        self,
        task: Literal["tnews", "iflytek"] = "tnews",
        source: str = "sample",
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        split: list[Annotated[float, "0 < x < 1"]] | None = None,
        tokenizer: dict | None = None,
        max_length: Annotated[int, "x >= 4"] = 128,
        tokens_per_batch: Annotated[int, "x >= 1"] = 2048,
        max_tokens_per_device: Annotated[int, "x >= 1"] = 16384,
        num_workers: Annotated[int, "x >= 0"] = 0,
        max_bad_rows: Annotated[int, "x >= 0"] = 0,
        cache_dir: str | None = None,
        seed: int = 0,
    ):
        if task not in TASKS:
            raise ValueError(f"task={task}: must be one of {', '.join(TASKS)}")
        if isinstance(max_bad_rows, bool) or not isinstance(max_bad_rows, int) or max_bad_rows < 0:
            raise ValueError(f"max_bad_rows={max_bad_rows}: must be a whole number, 0 or more")
        check_split(split)
        files = {"train": train, "val": val, "test": test}
        named = {key: path for key, path in files.items() if path is not None}
        _check_options(task, source, named, split)
        super().__init__(
            tokenizer=tokenizer,
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            max_tokens_per_device=max_tokens_per_device,
            num_workers=num_workers,
            cache_dir=cache_dir,
            seed=seed,
        )
        self.task = task
        self.source = source
        self.fractions = split
        self.max_bad_rows = max_bad_rows
        self.is_sample = source == "sample" and not named
        self.files = {key: _existing_file(key, path) for key, path in named.items()}
        if split is not None:
            self.files |= dict.fromkeys(("val", "test")[: len(split) - 1], self.files["train"])
        elif self.is_sample:
            self.files = _folder_files(SAMPLES, task, named)
        elif source != "sample":
            self.files |= _folder_files(Path(source).expanduser(), task, named)
        if self.is_sample:
            log.warning(f"THIS IS THE EMBEDDED SAMPLE, NOT A REAL CORPUS: {self.describe()['note']}")

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes, in the order of their ids; the id itself where the files give no name."""
        found = {key: self._labels(path) for key, path in self.files.items()}
        labels = found["train"]
        for key, other in found.items():
            if other.ids != labels.ids or not labels.official and other.names != labels.names:
                raise DataError(
                    f"{self.files[key]} and {self.files['train']} number their labels in two ways (see the "
                    "labels.json beside them): take all files from one publication of the corpus"
                )
        return list(labels.names or self._names_in_rows(labels))

    def read(self, split: Literal["train", "val", "test"]) -> Iterator[Row]:
        """The rows of a split in file order; none where the corpus lacks it.

        Raises:
            DataError: a file cannot be read, has too many bad rows or none that is good.
        """
        if split not in self.files:
            return
        if self.fractions is not None and split in self._parts():
            rows = self._rows(self.files["train"], labelled=True)
            yield from split_rows(rows, self.fractions, self.seed)[self._parts().index(split)]
        else:
            yield from self._rows(self.files[split], labelled=split != "test")

    def fingerprint(self, split: Literal["train", "val", "test"]) -> str:
        """Names the rows that `read(split)` gives: file contents, and options that change or refuse rows."""
        if split not in self.files:
            return content_fingerprint([], READER_VERSION)
        path = self.files[split]
        labels_file = path.parent / "labels.json"
        paths = [path, labels_file] if labels_file.is_file() else [path]
        cut = (self.fractions, self.seed) if self.fractions is not None and split in self._parts() else None
        return content_fingerprint(paths, READER_VERSION, self.task, split, cut, self.max_bad_rows)

    def describe(self) -> dict:
        """Where the rows come from, for the summary of a run."""
        if self.is_sample:
            note = (
                "synthetic news titles that this project wrote, good for trying out and no more; "
                "the real corpus: data.source=/path/to/clue (the folder that holds tnews/train.json)"
            )
            return {"source": "sample", "task": self.task, "synthetic": True, "note": note}
        files = {key: str(path) for key, path in self.files.items()}
        source = files["train"] if self.source == "sample" else self.source
        return {"source": source, "task": self.task, "synthetic": False, "files": files}

    def _parts(self) -> tuple[str, ...]:
        return ("train", "val", "test")[: len(self.fractions)]

    def _rows(self, path: Path, labelled: bool) -> list[Row]:
        # A list: a bad last row is told before the first row has been tokenized.
        labels = self._labels(path)
        index_of = {label_id: index for index, label_id in enumerate(labels.ids)}
        bad_rows = BadRows(self.max_bad_rows)
        rows: list[Row] = []
        counts_from_zero: bool | None = None
        for number, record in read_jsonl(path, bad_rows):
            problem = _missing_key(record, labelled) or text_problem(record["sentence"])
            label = None
            if problem is None and (labelled or not _is_unlabelled(record.get("label"))):
                label, from_zero, problem = _label_index(record["label"], labels, index_of, self.task)
                if problem is None and counts_from_zero is None:
                    counts_from_zero = from_zero
                if problem is None and from_zero != counts_from_zero:
                    problem = f"label {record['label']!r} is of another numbering than the labels before it"
                problem = problem or _contradiction(record, labels, label)
            if problem is None:
                rows.append(Row(record["sentence"], label=label))
            else:
                bad_rows.add(path, number, problem)
        bad_rows.finish()
        if not rows:
            raise DataError(f"{path}: not one good row")
        return rows

    def _labels(self, path: Path) -> Labels:
        task = TASKS[self.task]
        file = path.parent / "labels.json"
        if not file.is_file():
            return Labels(task.ids, task.names, official=True)
        bad_rows = BadRows(self.max_bad_rows)
        listed: dict[str, str] = {}
        for number, record in read_jsonl(file, bad_rows):
            label = str(record.get("label", ""))
            if not label.isdecimal() or label in listed:
                bad_rows.add(file, number, f"the label {label!r} is no whole number, or occurs twice")
            else:
                listed[label] = next((str(record[key]) for key in NAME_KEYS if key in record), label)
        bad_rows.finish()
        if set(listed) <= set(task.ids):
            names = task.names or tuple(listed.get(label_id, label_id) for label_id in task.ids)
            return Labels(task.ids, names, official=True)
        ids = tuple(sorted(listed, key=int))
        return Labels(ids, tuple(listed[label_id] for label_id in ids), official=False)

    def _names_in_rows(self, labels: Labels) -> list[str]:
        names: dict[str, str] = {}
        for _, record in read_jsonl(self.files["train"], BadRows(self.max_bad_rows)):
            for key in NAME_KEYS:
                if isinstance(record.get(key), str):
                    names.setdefault(str(record.get("label")), record[key])
        return [names.get(label_id, label_id) for label_id in labels.ids]


def _check_options(task: str, source: str, named: dict[str, str], split: list[float] | None) -> None:
    if not isinstance(source, str) or not source:
        raise ValueError(f"source={source}: must be `sample`, or the folder that holds {task}/train.json")
    if split is not None:
        if "train" not in named:
            raise ValueError(f"split={split}: cuts one file; name it: data.train=FILE")
        if source != "sample":
            raise ValueError(f"split={split}: cuts data.train alone; leave out data.source={source}")
        for key in ("val", "test")[: len(split) - 1]:
            if key in named:
                raise ValueError(f"split={split}: cuts {key} rows out of data.train; leave out data.{key}=")
    elif source == "sample" and named:
        remedies = {"train": "data.train=FILE", "val": "data.val=FILE or data.split=[0.9,0.1]"}
        for key, remedy in remedies.items():
            if key not in named:
                given = next(iter(named))
                raise ValueError(
                    f"{given}={named[given]}: files stand alone, the sample is not mixed into them; "
                    f"add {remedy}, or take the rest from a folder: data.source=/path/to/clue"
                )
    elif source == "sample" and task != "tnews":
        raise ValueError(
            f"task={task}: the embedded sample has tnews only; give the real corpus: data.task={task} "
            f"data.source=/path/to/clue (the folder that holds {task}/train.json)"
        )


def _existing_file(option: str, path: str) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"{option}={path}: a directory; name a file, or take the folder: data.source={path}")
    if not file.exists():
        raise DataError(f"{option}={path}: no such file (seen from {Path.cwd()})")
    return file


def _folder_files(root: Path, task: str, named: dict[str, str]) -> dict[str, Path]:
    """A folder's files for the splits that `named` does not give; only the test file may be missing."""
    if not root.is_dir():
        what = "a file; name files by data.train= and data.val=" if root.exists() else "no such folder"
        raise DataError(
            f"source={root}: {what} (seen from {Path.cwd()}); "
            f"it takes `sample`, or the folder that holds {task}/train.json"
        )
    files = {}
    for key, name in SPLIT_FILES.items():
        if key in named:
            continue
        candidates = [root / folder / (name + ending) for folder in (task, "") for ending in ("", ".gz")]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is not None:
            files[key] = file
        elif key != "test":
            raise DataError(
                f"source={root}: no {name}; looked for {candidates[0]} and {candidates[2]} (or with .gz). "
                f"Name the file: data.{key}=FILE, or cut one file: data.train=FILE data.split=[0.8,0.1,0.1]"
            )
    return files


def _missing_key(record: dict[str, Any], labelled: bool) -> str | None:
    for key in ("sentence", "label") if labelled else ("sentence",):
        if key not in record:
            return f"no key {key!r} (it has: {', '.join(map(repr, record)) or 'none'})"
    return None


def _is_unlabelled(label: Any) -> bool:
    """-1 as the hub has it, null or nothing: a test row that keeps its label secret."""
    return label in (None, -1, "-1", "") and not isinstance(label, bool)


def _label_index(
    label: Any, labels: Labels, index_of: dict[str, int], task: str
) -> tuple[int | None, bool, str | None]:
    """(class index, whether the label was a class index itself, what is wrong)."""
    if isinstance(label, (int, str)) and not isinstance(label, bool):
        index = index_of.get(str(label))
        if index is not None:
            return index, False, None
        if labels.official and isinstance(label, int) and 0 <= label < len(labels.ids):
            return label, True, None
    written = json.dumps(label, ensure_ascii=False)
    problem = f"unknown label {written if len(written) <= 40 else written[:37] + '...'}"
    if labels.official and isinstance(label, str) and label.isdecimal() and int(label) < len(labels.ids):
        return None, False, f"{problem}: only a labels.json beside the file can say what it stands for"
    return None, False, f"{problem} ({task} has {len(labels.ids)}, from {labels.ids[0]} to {labels.ids[-1]})"


def _contradiction(record: dict[str, Any], labels: Labels, label: int | None) -> str | None:
    """Files numbered in another order give themselves away by the names beside the numbers."""
    if labels.names is None or label is None:
        return None
    for key in NAME_KEYS:
        name = record.get(key)
        if name in labels.names and name != labels.names[label]:
            return f"label {record['label']!r} is {labels.names[label]}, but {key!r} says {name}"
    return None
