"""CLUE's classification tasks: the embedded samples, the published files, the hub, or files of the same form."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datamodules.corpus import BadRows, DataError, Row, listed, shown, text_problem
from datamodules.file_corpus import FileCorpus
from datamodules.files import only_records, read_jsonl, read_values
from datamodules.hub import download
from datamodules.text import Split

log = logging.getLogger(__name__)

SAMPLES = Path(__file__).parent / "samples"
SAMPLED = ("tnews", "afqmc")
# By split: CLUE's own names (OCNLI's largest training file has one of its own), and the hub's.
SPLIT_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train.json", "train.50k.json", "train-*.parquet"),
    "val": ("dev.json", "validation-*.parquet"),
    "test": ("test.json", "test-*.parquet"),
}
HUB_REPOSITORY = "clue/clue"
NAME_KEYS = ("label_desc", "label_des")  # TNEWS and IFLYTEK spell it differently; some exports have both
ID_KEYS = ("id", "idx")
NO_AGREEMENT = "no agreement on the label"


class Task(NamedTuple):
    """What a task's records hold.

    Attributes:
        ids: official labels in order (TNEWS has no 105 and 111).
        names: their names where the task fixes them.
        keys: the keys of a record's text or texts.
        dropped: labels that mean that the annotators did not agree.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...] | None = None
    keys: tuple[str, ...] = ("sentence",)
    dropped: tuple[str, ...] = ()


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
PAIR = ("sentence1", "sentence2")
# The hub writes a label that is missing as -1.
INFERENCE = Task(("neutral", "entailment", "contradiction"), keys=PAIR, dropped=("-", "-1"))
TASKS = {
    "tnews": Task(tuple(TNEWS), tuple(TNEWS.values())),
    "iflytek": Task(tuple(str(number) for number in range(119))),
    "afqmc": Task(("0", "1"), ("different", "same"), keys=PAIR),
    "cmnli": INFERENCE,
    "ocnli": INFERENCE,
    "csl": Task(("0", "1"), ("wrong keywords", "right keywords"), keys=("abst", "keyword")),
}


class Labels(NamedTuple):
    """How the files of a folder write labels; `official` unless a labels.json there has ids of its own."""

    ids: tuple[str, ...]
    names: tuple[str, ...] | None
    official: bool


class CLUE(FileCorpus):
    """CLUE (arXiv 2004.05986): single texts (tnews, iflytek), pairs of sentences (afqmc, cmnli, ocnli), and
    abstracts with keywords that are theirs or not (csl).

    Where files come from and how labels are read is told in conf/data/clue.yaml.

    Args:
        task: one of CLUE's classification tasks.
        source: `sample` (embedded, synthetic: tnews and afqmc), `hub`, or a folder that holds `<task>/train.json`,
            `train.json`, or the hub's parquet files.
        revision: of the hub's repository: a branch, a tag or a commit.
        options: as of `FileCorpus`; with `source="sample"` named files stand alone.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file or folder is not there.
    """

    provides = frozenset({"text", "label"})

    def __init__(
        self,
        task: Literal["tnews", "iflytek", "afqmc", "cmnli", "ocnli", "csl"] = "tnews",
        source: str = "sample",
        revision: str | None = None,
        **options: Any,
    ):
        if task not in TASKS:
            raise ValueError(f"task={task}: must be one of {', '.join(TASKS)}")
        super().__init__(**options)
        self.task = task
        self.source = source
        self.revision = revision
        self.commit: str | None = None
        self.is_sample = source == "sample" and not self.named
        self._check_source()
        if source != "hub":
            self.files  # noqa: B018  (missing files are told at once)
        if self.is_sample:
            log.warning(f"THIS IS THE EMBEDDED SAMPLE, NOT A REAL CORPUS: {self.describe()['note']}")

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes, in the order of their ids; the id itself where the files give no name."""
        labels = self._labels(self.files["train"][0])
        for paths in self.files.values():
            for path in paths:
                other = self._labels(path)
                if other.ids != labels.ids or not labels.official and other.names != labels.names:
                    raise DataError(
                        f"{path} and {self.files['train'][0]} number their labels in two ways (see the "
                        "labels.json beside them): take all files from one publication of the corpus"
                    )
        return list(labels.names or self._names_in_rows(labels))

    def source_files(self, wanted: tuple[Split, ...]) -> dict[Split, list[Path]]:
        if self.source == "hub":
            patterns = [f"{self.task}/{SPLIT_FILES[split][-1]}" for split in wanted]
            way_out = f"data.source=/path/to/clue (a folder that holds {self.task}/train.json)"
            snapshot = download(HUB_REPOSITORY, patterns, self.revision, way_out)
            self.commit = snapshot.commit
            return _folder_files(snapshot.folder, self.task, wanted)
        if self.source != "sample":
            return _folder_files(Path(self.source).expanduser(), self.task, wanted)
        return _folder_files(SAMPLES, self.task, wanted) if self.is_sample else {}

    def row_options(self) -> tuple:
        # What a labels.json beside a file says decides how its labels are read.
        return (self.task, *(self._labels(paths[0]) for paths in self.files.values()))

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row | str]:
        task, labels = TASKS[self.task], self._labels(path)
        index_of = {label_id: index for index, label_id in enumerate(labels.ids)}
        labelled = split != "test"
        first_place: dict[Any, str] = {}
        counts_from_zero: bool | None = None
        for place, record in _records(path, bad_rows):
            texts, problem = _texts(record, task, labelled)
            problem = problem or _repeated(record, first_place, place)
            written = record.get("label")
            label = None
            if (
                problem is None
                and labelled
                and not isinstance(written, bool)
                and str(written) in task.dropped
            ):
                yield NO_AGREEMENT
                continue
            if problem is None and (labelled or not _is_unlabelled(written, task)):
                label, from_zero, problem = _label_index(written, labels, index_of, self.task)
                if problem is None and counts_from_zero is None:
                    counts_from_zero = from_zero
                if problem is None and from_zero != counts_from_zero:
                    problem = f"label {written!r} is of another numbering than the labels before it"
                problem = problem or _contradiction(record, labels, label)
            if problem is None:
                yield Row(texts[0] if len(texts) == 1 else texts, label)
            else:
                bad_rows.add(path, place, problem)

    def describe(self) -> dict:
        """Where the rows come from, for the summary of a run."""
        if self.is_sample:
            note = (
                f"synthetic {'news titles' if self.task == 'tnews' else 'pairs of questions'} that this project "
                f"wrote, good for trying out and no more; the real corpus: data.source=/path/to/clue (the folder "
                f"that holds {self.task}/train.json) or data.source=hub"
            )
            return {"source": "sample", "task": self.task, "synthetic": True, "note": note}
        about = super().describe() | {"task": self.task}
        if self.source != "sample":
            about["source"] = self.source
        return about | ({"revision": self.commit} if self.commit else {})

    def _check_source(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ValueError(
                f"source={self.source}: must be `sample`, `hub`, or the folder that holds {self.task}/train.json"
            )
        if self.revision is not None and self.source != "hub":
            raise ValueError(f"revision={self.revision}: is of the hub; add data.source=hub")
        if self.fractions is not None:
            if self.source != "sample":
                raise ValueError(
                    f"split={self.fractions}: cuts data.train alone; leave out data.source={self.source}"
                )
        elif self.source == "sample" and self.named:
            remedies = {"train": "data.train=FILE", "val": "data.val=FILE or data.split=[0.9,0.1]"}
            for key, remedy in remedies.items():
                if key not in self.named:
                    given, value = next(iter(self.named.items()))
                    raise ValueError(
                        f"{given}={value}: files stand alone, the sample is not mixed into them; "
                        f"add {remedy}, or take the rest from a folder: data.source=/path/to/clue"
                    )
        elif self.source == "sample" and self.task not in SAMPLED:
            raise ValueError(
                f"task={self.task}: the embedded samples are {' and '.join(SAMPLED)}; give the real corpus: "
                f"data.task={self.task} data.source=/path/to/clue (the folder that holds {self.task}/train.json) "
                "or data.source=hub"
            )

    def _labels(self, path: Path) -> Labels:
        task = TASKS[self.task]
        file = path.parent / "labels.json"
        if not file.is_file():
            return Labels(task.ids, task.names, official=True)
        bad_rows = BadRows(self.max_bad_rows)
        listed: dict[str, str] = {}
        for place, record in read_jsonl(file, bad_rows):
            label = str(record.get("label", ""))
            if not (label.isdecimal() or label in task.ids) or label in listed:
                bad_rows.add(file, place, f"the label {label[:40]!r} is no whole number, or occurs twice")
            else:
                names = [record[key] for key in NAME_KEYS if text_problem(record.get(key)) is None]
                listed[label] = names[0] if names else label
        bad_rows.finish()
        if set(listed) <= set(task.ids):
            names = task.names or tuple(listed.get(label_id, label_id) for label_id in task.ids)
            return Labels(task.ids, names, official=True)
        ids = tuple(sorted(listed, key=int))
        return Labels(ids, tuple(listed[label_id] for label_id in ids), official=False)

    def _names_in_rows(self, labels: Labels) -> list[str]:
        names: dict[str, str] = {}
        for path in self.files["train"]:
            for _, record in _records(path, BadRows(self.max_bad_rows)):
                for key in NAME_KEYS:
                    if text_problem(record.get(key)) is None:
                        names.setdefault(str(record.get("label")), record[key])
        return [names.get(label_id, label_id) for label_id in labels.ids]


def _records(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    # CLUE's files are JSON, whatever people call them; only the hub's have another form.
    kind = "parquet" if path.suffix == ".parquet" else "json"
    return only_records(path, read_values(path, bad_rows, kind), bad_rows)


def _folder_files(root: Path, task: str, wanted: tuple[Split, ...]) -> dict[Split, list[Path]]:
    """A folder's files of the `wanted` splits; only the test files may be missing."""
    if not root.is_dir():
        what = "a file; name files by data.train= and data.val=" if root.exists() else "no such folder"
        raise DataError(
            f"source={root}: {what} (seen from {Path.cwd()}); "
            f"it takes `sample`, `hub`, or the folder that holds {task}/train.json"
        )
    files = {}
    for split in wanted:
        names = [name + ending for name in SPLIT_FILES[split] for ending in ("", ".gz")]
        found = next(
            (
                paths
                for folder in (root / task, root)
                for name in names
                if (paths := sorted(folder.glob(name)))
            ),
            None,
        )
        if found:
            files[split] = found
        elif split != "test":
            name = SPLIT_FILES[split][0]
            raise DataError(
                f"source={root}: no {name}; looked for {root / task / name} and {root / name} (or with .gz, or the "
                f"hub's {SPLIT_FILES[split][-1]}). Name the file: data.{split}=FILE, or cut one file: "
                "data.train=FILE data.split=[0.8,0.1,0.1]"
            )
    return files


def _texts(record: dict[str, Any], task: Task, labelled: bool) -> tuple[tuple[str, ...], str | None]:
    """The record's text or texts, and what is wrong with them."""
    for key in (*task.keys, "label") if labelled else task.keys:
        if key not in record:
            return (), f"no key {key!r} (it has: {listed(map(repr, record)) or 'none'})"
    texts = []
    for key in task.keys:
        text = record[key]
        if key == "keyword" and isinstance(text, list) and all(isinstance(word, str) for word in text):
            text = "；".join(text)
        if (problem := text_problem(text)) is not None:
            return (), problem if len(task.keys) == 1 else f"{key}: {problem}"
        texts.append(text)
    return tuple(texts), None


def _repeated(record: dict[str, Any], first_place: dict[Any, str], place: str) -> str | None:
    """An id that stands twice: a file that was joined from parts, or is in it twice."""
    for key in ID_KEYS:
        value = record.get(key)
        if isinstance(value, (int, str)):
            if (key, value) in first_place:
                return f"{key} {value!r} stands on {first_place[key, value]} already"
            first_place[key, value] = place
    return None


def _is_unlabelled(label: Any, task: Task) -> bool:
    """-1 as the hub has it, null or nothing: a test row that keeps its label secret."""
    return label in (None, -1, "-1", "", *task.dropped) and not isinstance(label, bool)


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
    problem = f"unknown label {shown(label)}"
    if labels.official and label in map(str, range(len(labels.ids))):
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
