"""CLUE's classification tasks: the embedded samples, the published files, the hub, or files of the same form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datamodules.corpus import BadRows, DataError, Row, listed, shown, text_problem
from datamodules.files import only_records, read_jsonl
from datamodules.published import Publication, PublishedCorpus, read_published
from datamodules.text import SPLITS, Split

SAMPLES = Path(__file__).parent / "samples"
SAMPLES_OF = {"tnews": "news titles", "afqmc": "pairs of questions"}
# By split: CLUE's own names (OCNLI's largest training file has one of its own), and the hub's.
SPLIT_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train.json", "train.50k.json", "train-*.parquet"),
    "val": ("dev.json", "validation-*.parquet"),
    "test": ("test.json", "test-*.parquet"),
}
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
        counts: the ids of the published test rows are 0, 1, 2, ...; csl's are any numbers.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...] | None = None
    keys: tuple[str, ...] = ("sentence",)
    dropped: tuple[str, ...] = ()
    counts: bool = True


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
INFERENCE = ("neutral", "entailment", "contradiction")
# The hub writes a label that is missing as -1.
INFERENCE_TASK = Task(INFERENCE, INFERENCE, keys=PAIR, dropped=("-", "-1"))
TASKS = {
    "tnews": Task(tuple(TNEWS), tuple(TNEWS.values())),
    "iflytek": Task(tuple(str(number) for number in range(119))),
    "afqmc": Task(("0", "1"), ("different", "same"), keys=PAIR),
    "cmnli": INFERENCE_TASK,
    "ocnli": INFERENCE_TASK,
    "csl": Task(("0", "1"), ("wrong keywords", "right keywords"), keys=("abst", "keyword"), counts=False),
}


class Labels(NamedTuple):
    """How the files of a folder write labels; `official` unless a labels.json there has ids of its own."""

    ids: tuple[str, ...]
    names: tuple[str, ...] | None
    official: bool


class CLUE(PublishedCorpus):
    """CLUE (arXiv 2004.05986): single texts (tnews, iflytek), pairs of sentences (afqmc, cmnli, ocnli), and
    abstracts with keywords that are theirs or not (csl).

    Where files come from and how labels are read is told in conf/data/clue.yaml.

    Args:
        task: one of CLUE's classification tasks.
        source: `sample` (embedded, synthetic: tnews and afqmc), `hub`, or a folder that holds `<task>/train.json`,
            `train.json`, or the hub's parquet files.
        revision: of the hub's repository: a branch, a tag or a commit.
        options: as of `PublishedCorpus`.

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
        named = any(options.get(split) is not None for split in SPLITS)
        if source == "sample" and not named and task not in SAMPLES_OF:
            raise ValueError(
                f"task={task}: the embedded samples are {' and '.join(SAMPLES_OF)}; give the real corpus: "
                f"data.task={task} data.source=/path/to/clue (the folder that holds {task}/train.json) "
                "or data.source=hub"
            )
        self.task = task
        super().__init__(source=source, revision=revision, publication=_publication(task), **options)

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes, in the order of their ids; the id itself where the files give no name."""
        first, *others = self._folders()
        labels = self._labels(first)
        for folder in others:
            other = self._labels(folder)
            if other.ids != labels.ids or not labels.official and other.names != labels.names:
                raise DataError(
                    f"{folder} and {first} number their labels in two ways (see the labels.json there): take all "
                    "files from one publication of the corpus"
                )
        return list(labels.names or self._names_in_rows(labels))

    @property
    def facts(self) -> dict:
        """As of every corpus, and what a file of predictions for CLUE's site needs (`submission_line`): the task, and the
        official ids of the classes in their order; None where the files number their labels otherwise."""
        labels = self._labels(self._folders()[0])
        ids = list(labels.ids) if labels.official else None
        return super().facts | {"clue_task": self.task, "label_ids": ids}

    def row_options(self) -> tuple:
        # What a labels.json beside a file says decides how its labels are read.
        return (self.task, *dict.fromkeys(map(self._labels, self._folders())))

    def rows_of(self, path: Path, split: Split, bad_rows: BadRows) -> Iterator[Row | str]:
        task, labels = TASKS[self.task], self._labels(path.parent)
        index_of = {label_id: index for index, label_id in enumerate(labels.ids)}
        labelled = split != "test"
        first_place: dict[Any, str] = {}
        counts_from_zero: bool | None = None
        for place, record in _records(path, bad_rows):
            texts, problem = texts_of(record, task.keys)
            if problem is None and labelled and "label" not in record:
                problem = _no_key("label", record)
            problem = problem or _repeated(record, first_place, place)
            written, label = record.get("label"), None
            if problem is None and labelled and str(written) in task.dropped:
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
        return super().describe() | {"task": self.task}

    def _folders(self) -> list[Path]:
        """The folders of the files, the first training file's first."""
        paths = (path for split in SPLITS for path in self.files.get(split, ()))
        return list(dict.fromkeys(path.parent for path in paths))

    def _labels(self, folder: Path) -> Labels:
        task = TASKS[self.task]
        file = folder / "labels.json"
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


def check_submission(facts: dict[str, Any], ids: Sequence[Any], source: str) -> None:
    """Whether the rows of `source`, whose records have these `ids`, can become a file of predictions for CLUE's site.

    The site compares line by line with the labels of the published test file: rows that are missing or in another order
    would be scored as wrong.

    Args:
        facts: those of the run's corpus.
        ids: of all rows in their order; None where a record has none.

    Raises:
        DataError: the run was not trained on a task of CLUE under its official labels, or the ids are not those of a whole
            test file.
    """
    if facts.get("clue_task") is None:
        raise DataError("predict.format=clue: the run was not trained on a task of CLUE (data=clue)")
    task = facts["clue_task"]
    if facts["label_ids"] is None:
        raise DataError(
            f"predict.format=clue: the labels.json of the run's training files numbers {task}'s labels in its own way; "
            "train on the files that CLUE publishes"
        )
    whole = f"; take the whole test.json of {task}, as published"
    seen: dict[int, int] = {}
    for row, value in enumerate(ids):
        where = f"{source}, row {row + 1}"
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, bool) or not isinstance(number, int):
            what = "no id" if value is None else f"the id {shown(value)} is no whole number"
            raise DataError(f"{where}: {what}{whole}")
        if number in seen:
            raise DataError(f"{where}: the id {number} stands on row {seen[number] + 1} already{whole}")
        if TASKS[task].counts and number != row:
            raise DataError(f"{where}: has the id {number}, where {row} is due{whole}")
        seen[number] = row


def submission_line(row_id: int | str, label: str, facts: dict[str, Any]) -> dict[str, Any]:
    """A line of a file of predictions for CLUE's site, as `{"id": 0, "label": "102"}`.

    One JSON object a row, in the order of the published test.json; the label is the official id, a string (the name of
    the class for cmnli and ocnli); other keys are not read. Files are named <task>_predict.json, but
    tnews10_predict.json and tnews11_predict.json (test1.0.json and test.json of tnews) and ocnli_50k_predict.json; a zip
    archive of them is uploaded (CLUE's notes on submission of 2021-09-04 and its clue_submit_examples.zip,
    www.cluebenchmarks.com/submit.html; github.com/CLUEbenchmark/CLUE/issues/104 on ocnli's name).

    Args:
        row_id: of the row in test.json; label: the predicted class, one of `facts["label_names"]`.
        facts: those of the run's corpus, as `check_submission` accepts them.
    """
    return {"id": int(row_id), "label": facts["label_ids"][facts["label_names"].index(label)]}


def _records(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    return only_records(path, read_published(path, bad_rows), bad_rows)


def _publication(task: str) -> Publication:
    return Publication(
        name="clue",
        folder=f"the folder that holds {task}/train.json",
        files=SPLIT_FILES,
        repository="clue/clue",
        hub_files={split: f"{task}/{names[-1]}" for split, names in SPLIT_FILES.items()},
        sample={split: SAMPLES / task / names[0] for split, names in SPLIT_FILES.items()},
        sample_of=SAMPLES_OF.get(task, ""),
        subfolders=(task, ""),
    )


def _no_key(key: str, record: dict[str, Any]) -> str:
    return f"no key {key!r} (it has: {listed(map(repr, record)) or 'none'})"


def texts_of(record: dict[str, Any], keys: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """The record's text or texts, and what is wrong with them; keywords are joined by `；`."""
    missing = next((key for key in keys if key not in record), None)
    if missing is not None:
        return (), _no_key(missing, record)
    texts = []
    for key in keys:
        text = record[key]
        if key == "keyword" and isinstance(text, list) and all(isinstance(word, str) for word in text):
            text = "；".join(text)
        if (problem := text_problem(text)) is not None:
            return (), problem if len(keys) == 1 else f"{key}: {problem}"
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
    return label in (None, -1, "-1", "", *task.dropped)


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
