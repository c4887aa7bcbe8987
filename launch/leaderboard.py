"""The leaderboard of a sweep, or of any runs: leaderboard.csv, leaderboard.md and leaderboard.png.

A row is a job, finished or not. The columns between `status` and the metrics are what was varied: the options
that some job overrode and whose values differ between the jobs. An option has the value of config.yaml, so a
default stands beside what was typed; a group (`model/optimizer`) has its choice, and an empty cell where it was not
typed. Runs whose summary.json lacks `overrides` are told apart by what differs between their config.yaml.

Jobs are ranked by the metric that most of their configs name in `optimized_metric`. Whether lower is better says
the `mode` of a callback that monitors this metric; where there is none, a name with one of the words
LOWER_IS_BETTER is to be minimised, any other to be maximised. Only finished jobs have a rank; then come those
without a value, then running, interrupted, failed and unreadable ones.

The csv is one plain table, a line a job, all metrics with all their digits. Jobs that differ only in `seed` are
summed up as mean and sample standard deviation (n - 1 in the denominator) of the finished ones in a second table
of the md, and in the picture.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
import shutil
import statistics
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from datamodules.atomic import write_whole
from launch.run_dir import read_summary

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

LOWER_IS_BETTER = frozenset(
    {"loss", "bits", "perplexity", "ppl", "nll", "error", "mse", "mae", "rmse", "unknown", "cut"}
)
UNREADABLE = "unreadable"
# From the first row to the last.
STATUSES = ("finished", "running", "interrupted", "failed", UNREADABLE)
# Where configs differ without anything having been varied.
NOT_VARIED = ("_target_", "logger", "ckpt_path")
ERROR_CHARACTERS = 80  # of an error's first line, in the md


def update(directory: str | os.PathLike) -> None:
    """Rewrite the three files of a sweep from the jobs directly below its directory, each whole or not at all.

    Several processes may do so at once: each waits for its turn, so the last one has read what all have written.
    Whatever goes wrong is logged, and the sweep goes on.
    """
    directory = Path(directory)
    try:
        with _turn(directory) as alone:
            if alone:
                for left_by_a_kill in directory.glob(".leaderboard-*"):
                    shutil.rmtree(left_by_a_kill, ignore_errors=True)
            jobs = job_directories(directory)
            if jobs:
                write(_read_all(jobs), directory)
    except Exception as error:
        log.warning("%s: its leaderboard was not written: %s", directory, error, exc_info=True)


def job_directories(directory: str | os.PathLike) -> list[Path]:
    """`directory` itself where it is a run's, else those of the runs directly below it, such as a sweep's jobs; in
    the order of their numbers."""
    directory = Path(directory).expanduser()
    if (directory / "summary.json").is_file():
        return [directory]
    return sorted(
        (path.parent for path in directory.glob("*/summary.json")), key=lambda job: natural(job.name)
    )


def collect(directories: Iterable[str | os.PathLike] | str) -> list[Job]:
    """The jobs of runs and sweeps, each once, named by their place below the directory that holds them all.

    Args:
        directories: one or several of: a run's directory, a sweep's, one that holds runs (`runs/wobert-clue`).

    Raises:
        ValueError: naming the directory that does not exist or holds no run.
    """
    found: dict[Path, Path] = {}
    for directory in [directories] if isinstance(directories, str) else directories:
        if not Path(directory).expanduser().is_dir():
            raise ValueError(f"runs={directory}: there is no such directory")
        jobs = job_directories(directory)
        if not jobs:
            raise ValueError(
                f"runs={directory}: no run lies here nor directly below (each has a summary.json); "
                "name the directory of a run or of a sweep"
            )
        found |= {job.resolve(): job for job in jobs}
    return _read_all(list(found))


def typed_metric(overrides: Iterable[str]) -> str | None:
    """What the overrides of stage=compare say that the runs are to be ranked by; None: their own."""
    return _typed(overrides).get("optimized_metric")


def write(jobs: list[Job], directory: Path, metric: str | None = None) -> str:
    """Write leaderboard.csv, leaderboard.md and leaderboard.png.

    Args:
        jobs: at least one.
        directory: exists.
        metric: what to rank by instead of the jobs' own `optimized_metric`; a job may lack it.

    Returns:
        The text of leaderboard.md.
    """
    from launch.leaderboard_plot import plot_leaderboard  # matplotlib takes its time to import

    board = Leaderboard(jobs, metric)
    markdown = board.markdown()
    # Each writer has a directory of its own: nobody else's half-written file can come into place.
    with tempfile.TemporaryDirectory(prefix=".leaderboard-", dir=directory) as temporary:
        beside = Path(temporary)
        write_whole(beside / "leaderboard.csv", board.csv())
        write_whole(beside / "leaderboard.md", markdown)
        for name in ("leaderboard.csv", "leaderboard.md"):  # also where the picture fails
            os.replace(beside / name, directory / name)
        plot_leaderboard(beside / "leaderboard.png", board)
        os.replace(beside / "leaderboard.png", directory / "leaderboard.png")
    return markdown


@dataclass(frozen=True)
class Job:
    """What summary.json and config.yaml say of a job.

    Attributes:
        status: summary.json's; "unreadable" where that file is damaged.
        config: empty where config.yaml is damaged.
        metrics: the finite ones.
        choices: the groups that summary.json names, and the overrides as typed.
        has_overrides: false for runs that are older than the record of overrides.
        error: its first line.
    """

    name: str
    status: str
    config: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    has_overrides: bool = True
    tokens_per_second: float | None = None
    world_size: int | None = None
    wall_seconds: float | None = None
    error: str = ""

    def value(self, option: str) -> Any:
        """The option's value, for a group its choice; `...` where the job has none."""
        found: Any = self.config
        for key in option.split("."):
            found = found.get(key, ...) if isinstance(found, dict) else ...
        return self.choices.get(option, ...) if found is ... or isinstance(found, dict) else found

    def text(self, option: str) -> str:
        return _text(self.value(option))

    def score(self, metric: str) -> float | None:
        """What the job is ranked by: a finished job's metric."""
        return self.metrics.get(metric) if self.status == "finished" else None


@dataclass(frozen=True)
class Setting:
    """Jobs that differ at most in their seed."""

    jobs: list[Job]

    def value(self, option: str) -> Any:
        return self.jobs[0].value(option)

    def scores(self, metric: str) -> list[float]:
        return [score for job in self.jobs if (score := job.score(metric)) is not None]

    def mean(self, metric: str) -> float | None:
        scores = self.scores(metric)
        return statistics.fmean(scores) if scores else None

    def spread(self, metric: str) -> float | None:
        """The sample standard deviation; None for fewer than two scores."""
        scores = self.scores(metric)
        return statistics.stdev(scores) if len(scores) > 1 else None

    def summed_up(self, metric: str) -> str:
        """`2.3141 ± 0.0092`."""
        mean, spread = self.mean(metric), self.spread(metric)
        return _rounded(mean) + ("" if spread is None else f" ± {_rounded(spread, like=mean)}")


class Leaderboard:
    """Jobs in their order.

    Args:
        jobs: at least one.
        metric: see `write`.

    Attributes:
        metric: what they are ranked by.
        varied: the options in which they differ; options: those but `seed`.
        jobs: the best first.
        settings: the jobs in groups that differ only in their seed, the best mean first.
    """

    def __init__(self, jobs: list[Job], metric: str | None = None) -> None:
        self.metric = metric or _optimized_metric(jobs)
        self.lower_is_better = _is_minimised(self.metric, jobs)
        self.varied = _varied([job for job in jobs if job.status != UNREADABLE])
        self.options = [option for option in self.varied if option != "seed"]
        self.jobs = sorted(
            jobs, key=lambda job: (_place(job.status), *self._order(job.metrics.get(self.metric)))
        )
        settings: dict[tuple[str, ...], list[Job]] = {}
        for job in self.jobs:
            own = (job.name,) if job.status == UNREADABLE else ()  # who knows what it was
            settings.setdefault((*map(job.text, self.options), *own), []).append(job)
        self.settings = sorted(
            map(Setting, settings.values()), key=lambda setting: self._order(setting.mean(self.metric))
        )

    @property
    def title(self) -> str:
        return f"{self.metric}, {'lower' if self.lower_is_better else 'higher'} is better"

    def csv(self) -> str:
        """A line a job with every metric."""
        metrics = self._metrics(main=False)
        measured = ["tokens_per_second", "world_size", "wall_seconds", "error"]
        rows = [["rank", "job", "status", *self.varied, *metrics, *measured]]
        for rank, job in self._ranked(self.jobs, [job.score(self.metric) for job in self.jobs]):
            scores = [job.metrics.get(name) for name in metrics]
            measured = [job.tokens_per_second, job.world_size, job.wall_seconds, job.error]
            rows.append([rank, job.name, job.status, *map(job.text, self.varied), *scores, *measured])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def markdown(self) -> str:
        """The main metrics, and where seeds were varied a second table with their means."""
        counts = Counter(job.status for job in sorted(self.jobs, key=lambda job: _place(job.status)))
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines = [f"# {self.title}", "", f"{counted(len(self.jobs), 'job')}: {told}", "", *self._job_table()]
        if "seed" in self.varied and any(len(setting.scores(self.metric)) > 1 for setting in self.settings):
            head = [
                "## Jobs that differ only in seed",
                "",
                "Mean ± sample standard deviation of n finished jobs",
            ]
            lines += ["", *head, "", *self._setting_table()]
        return "\n".join(lines) + "\n"

    def _job_table(self) -> list[str]:
        metrics = self._metrics(main=True)
        rows = [
            ["rank", "job", "status", *self.varied, *metrics, "tokens/s", "world_size", "seconds", "error"]
        ]
        for rank, job in self._ranked(self.jobs, [job.score(self.metric) for job in self.jobs]):
            options = [brief(job.value(option)) for option in self.varied]
            scores = [_rounded(job.metrics.get(name)) for name in metrics]
            measured = [_whole(job.tokens_per_second), job.world_size, _whole(job.wall_seconds)]
            error = shortened(job.error, ERROR_CHARACTERS)
            rows.append([rank, job.name, job.status, *options, *scores, *measured, error])
        return markdown_table(rows)

    def _setting_table(self) -> list[str]:
        metrics = self._metrics(main=True)
        rows = [["rank", *self.options, "n", "seeds", *metrics]]
        means = [setting.mean(self.metric) for setting in self.settings]
        for rank, setting in self._ranked(self.settings, means):
            options = [brief(setting.value(option)) for option in self.options]
            scored = [job for job in setting.jobs if job.score(self.metric) is not None]
            seeds = " ".join(sorted((job.text("seed") for job in scored), key=natural))
            scores = []
            for name in metrics:
                count = len(setting.scores(name))
                of_others = f" (n={count})" if count not in (0, len(scored)) else ""
                scores.append(setting.summed_up(name) + of_others)
            rows.append([rank, *options, len(scored), seeds, *scores])
        return markdown_table(rows)

    def _metrics(self, main: bool) -> list[str]:
        """The optimised metric, then validation, test and, unless only the `main` ones are wanted, the others."""
        splits = ("val/", "test/", "train/")
        names = {name for job in self.jobs for name in job.metrics}
        if main:
            names = {name for name in names if name.startswith(splits[:2])}

        def place(name: str) -> tuple[bool, list[bool], str]:
            return name != self.metric, [not name.startswith(split) for split in splits], name

        return sorted(names | {self.metric}, key=place)

    def _order(self, value: float | None) -> tuple[bool, float]:
        """Sorts the best first and what has no value last."""
        return value is None, (value or 0.0) * (1 if self.lower_is_better else -1)

    @staticmethod
    def _ranked(rows: list[Any], values: list[float | None]) -> Iterator[tuple[int | None, Any]]:
        """Rows with their ranks by the values, which are sorted; equal ones share a rank."""
        for row, value in zip(rows, values, strict=True):
            yield None if value is None else 1 + values.index(value), row


# ----------------------------------------------------------------------------------------------------- reading


@contextmanager
def _turn(directory: Path) -> Iterator[bool]:
    """Waits until nobody else writes this leaderboard; gives false where the system cannot tell."""
    if fcntl is None:
        yield False
        return
    with open(directory / ".leaderboard.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:  # a network file system without locks
            alone = False
        yield alone


def _read_all(directories: list[Path]) -> list[Job]:
    directories = [directory.absolute() for directory in directories]
    common = os.path.commonpath([directory.parent for directory in directories])
    return [_read(directory, os.path.relpath(directory, common)) for directory in directories]


def _read(directory: Path, name: str) -> Job:
    summary = read_summary(directory)
    own = summary.get("run_dir") if isinstance(summary, dict) else None
    config = _read_config(directory / "config.yaml", own or str(directory))
    try:
        return Job(
            name,
            summary["status"],
            config,
            metrics={metric: value for metric, value in summary["metrics"].items() if is_number(value)},
            choices={group: summary[group] for group in ("model", "data")}
            | _typed(summary.get("overrides") or []),
            has_overrides="overrides" in summary,
            tokens_per_second=summary["throughput"]["tokens_per_second"],
            world_size=summary["world_size"],
            wall_seconds=summary["wall_seconds"],
            error=next(iter((summary["error"] or "").splitlines()), ""),
        )
    except (KeyError, TypeError, AttributeError):
        return Job(name, UNREADABLE, config, error="summary.json is damaged")


def _read_config(path: Path, run_dir: str) -> dict[str, Any]:
    """The config without the places of the run's own files, which differ from run to run."""
    try:
        text = path.read_text(encoding="utf-8").replace(f"{run_dir}{os.sep}", "")
        config = OmegaConf.to_container(OmegaConf.create(text))
    except Exception:  # whatever a damaged file makes of a parser: the row has fewer cells then
        return {}
    if not isinstance(config, dict):
        return {}
    if config.get("ckpt_path") == "last":  # a job that was continued is still the same job
        config["ckpt_path"] = None
    return config


def _typed(overrides: Iterable[str]) -> dict[str, str]:
    """`+model/loss=focal` as an option and its text."""
    parts = (override.partition("=") for override in overrides)
    return {option.lstrip("+~"): text for option, _, text in parts}


def _varied(jobs: list[Job]) -> list[str]:
    have_overrides = all(job.has_overrides for job in jobs)
    if have_overrides:
        names = dict.fromkeys(name for job in jobs for name in job.choices)
    else:
        differing = sorted(_differing([job.config for job in jobs]), key=lambda name: name.count("."))
        names = dict.fromkeys(["model", "data", *differing])
    columns = {name: tuple(job.text(name) for job in jobs) for name in names}
    varied = [name for name, texts in columns.items() if len(set(texts)) > 1]
    if have_overrides:
        return varied
    # An option that others are interpolated from differs there, too: its own path is the shortest.
    first: dict[tuple[str, ...], str] = {}
    return [name for name in varied if first.setdefault(columns[name], name) == name]


def _differing(nodes: list[dict[str, Any]], prefix: str = "") -> Iterator[str]:
    """The paths that all configs have and at which their values differ."""
    for key in nodes[0]:
        values = [node.get(key, ...) for node in nodes]
        if key in NOT_VARIED or ... in values:
            continue
        if all(isinstance(value, dict) for value in values):
            yield from _differing(values, f"{prefix}{key}.")
        elif any(value != values[0] for value in values):
            yield f"{prefix}{key}"


def _optimized_metric(jobs: list[Job]) -> str:
    names = Counter(name for job in jobs if isinstance(name := job.config.get("optimized_metric"), str))
    return names.most_common(1)[0][0] if names else "val/loss"


def _is_minimised(metric: str, jobs: list[Job]) -> bool:
    for job in jobs:
        callbacks = job.config.get("callbacks")
        for node in callbacks.values() if isinstance(callbacks, dict) else ():
            if (
                isinstance(node, dict)
                and node.get("monitor") == metric
                and node.get("mode") in ("min", "max")
            ):
                return node["mode"] == "min"
    return not LOWER_IS_BETTER.isdisjoint(re.split("[^a-z]+", metric.lower()))


def _place(status: str) -> int:
    return STATUSES.index(status) if status in STATUSES else len(STATUSES)


# ----------------------------------------------------------------------------------------------------- writing


def markdown_table(rows: list[list[Any]]) -> list[str]:
    """A Markdown table whose columns are aligned in a terminal, too; those without any content are left out.

    Args:
        rows: the header first; None is an empty cell.
    """
    columns = [[_cell(cell) for cell in column] for column in zip(*rows, strict=True)]
    aligned = [_aligned(name, cells) for name, *cells in columns if any(cells)]
    return [f"| {' | '.join(line)} |" for line in zip(*aligned, strict=True)]


def _aligned(name: str, cells: list[str]) -> list[str]:
    """Name, rule and cells of a column, equally wide; numbers to the right."""
    right = all(re.match(r"[-+.]?\d", cell) for cell in cells if cell)
    width = max(3, *(_width(text) for text in (name, *cells)))
    filled = [(" " * (width - _width(text)), text) for text in (name, *cells)]
    head, *body = [space + text if right else text + space for space, text in filled]
    return [head, "-" * (width - 1) + (":" if right else "-"), *body]


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return re.sub(r"([\\|<*`])", r"\\\1", text)


def _width(text: str) -> int:
    """In columns of a terminal, of which a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _text(value: Any) -> str:
    if value is ...:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def brief(value: Any) -> str:
    """An option's value as people read it: 0.3 for 0.30000000000000004."""
    text = _text(value)
    return f"{value:.4g}" if isinstance(value, float) and len(text) > 8 else text


def _rounded(value: float | None, like: float | None = None) -> str:
    """With four decimals, or as a power of ten where it, or the number that it is `like`, is too large or small."""
    if value is None:
        return ""
    size = abs(value if like is None else like)
    return f"{value:.4f}" if size == 0 or 1e-3 <= size < 1e5 else f"{value:.3e}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A key that sorts 2 before 10."""
    parts = re.split(r"(\d+)", text)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]


def is_number(value: Any) -> bool:
    """Finite, and neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
