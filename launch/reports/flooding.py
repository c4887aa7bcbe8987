"""conf/experiment/claims/flooding.yaml: a floor under the training loss where labels are noisy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.claims import Job, Report, grouped, spread
from launch.csv_logger import read_metrics
from lightning_modules.pictures import BLUE, GREEN, GREY, ORANGE, clean

LEVEL = "model.regularizer.flooding.b"


def report(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if the clean test accuracy at the level that each seed's noisy validation rows choose is, on average, at least
    `thresholds["gain"]` above that without flooding."""
    levels = _by_level(steps["levels"])
    chosen = [_chosen(jobs) for jobs in zip(*levels.values(), strict=True)]
    without, with_flooding = (_scores(jobs, "test/accuracy") for jobs in (levels[0], chosen))
    gain = fmean(with_flooding) - fmean(without)
    clean_levels = _by_level(steps["clean"])
    named = ", ".join(str(job.options[LEVEL]) for job in chosen)
    return Report(
        met=gain >= thresholds["gain"],
        because=f"accuracy is {fmean(with_flooding):.3f} with the chosen levels and {fmean(without):.3f} without "
        f"flooding, {100 * gain:+.2f} points.",
        numbers={"gain": gain, "chosen/accuracy": fmean(with_flooding)}
        | {f"accuracy/{level}": fmean(_scores(jobs, "test/accuracy")) for level, jobs in levels.items()}
        | {f"accuracy_without_noise/{b}": fmean(_scores(jobs, "test/accuracy")) for b, jobs in clean_levels.items()},
        header=["b", "test accuracy", "test loss", "validation accuracy", "last training loss", "steps below b",
                "accuracy without noise"],
        rows=[_row(level, jobs, clean_levels.get(level, [])) for level, jobs in levels.items()]
        + [["chosen", spread(with_flooding), spread(_scores(chosen, "test/loss")), spread(_scores(chosen, "val/accuracy")),
            "", "", ""]],
        notes=f"Test labels are clean, training and validation labels are not. Means of {len(chosen)} seeds ± the sample "
        f"standard deviation. The levels that the seeds choose: {named}.",
        figures={"flooding": _draw(levels, chosen, _by_level(steps["curves"]))},
    )  # fmt: skip


def _by_level(jobs: list[Job]) -> dict[float, list[Job]]:
    return {level: of_level for (level,), of_level in grouped(jobs, LEVEL).items()}


def _chosen(jobs: Sequence[Job]) -> Job:
    """Of a seed's jobs, one a level."""
    return max(
        jobs, key=lambda job: (job.summary["metrics"]["val/accuracy"], -job.summary["metrics"]["val/loss"])
    )


def _scores(jobs: list[Job], name: str) -> list[float]:
    return [job.summary["metrics"][name] for job in jobs]


def _flooded(job: Job) -> float:
    """The share of the steps in which the loss was below the level."""
    steps = [row for row in read_metrics(job.directory / "metrics.csv") if "train/objective" in row]
    return fmean(row["train/objective"] > row["train/loss"] for row in steps)


def _row(level: float, jobs: list[Job], without_noise: list[Job]) -> list[Any]:
    scores = [
        spread(_scores(jobs, name)) for name in ("test/accuracy", "test/loss", "val/accuracy", "train/loss")
    ]
    control = spread(_scores(without_noise, "test/accuracy")) if without_noise else ""
    return [level, *scores, f"{fmean(map(_flooded, jobs)):.2f}", control]


def _draw(levels: dict[float, list[Job]], chosen: list[Job], curves: dict[float, list[Job]]) -> Figure:
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_levels(left, levels, chosen)
    for (level, (job, *_)), colour in zip(curves.items(), (GREY, BLUE, ORANGE, GREEN), strict=False):
        rows = [row for row in read_metrics(job.directory / "metrics.csv") if "val/loss" in row]
        label = f"b = {level}" if level else "no flooding"
        right.plot(
            [row["step"] for row in rows], [row["val/loss"] for row in rows], color=colour, label=label
        )
    right.set_ylim(bottom=0)
    right.set_title("loss on clean rows that choose nothing", loc="left", fontsize=11)
    right.set_xlabel("step")
    right.legend(frameon=False, fontsize=8)
    clean(right)
    return figure


def _draw_levels(axes: Axes, levels: dict[float, list[Job]], chosen: list[Job]) -> None:
    means = [fmean(_scores(jobs, "test/accuracy")) for jobs in levels.values()]
    axes.plot(list(levels), means, color=BLUE, linewidth=1.6, label="mean")
    for level, jobs in levels.items():
        axes.plot(
            [level] * len(jobs), _scores(jobs, "test/accuracy"), "o", color=BLUE, markersize=3.5, alpha=0.5
        )
    axes.plot(
        [job.options[LEVEL] for job in chosen], _scores(chosen, "test/accuracy"), "o", color=ORANGE, markersize=7,
        fillstyle="none", label="chosen on noisy validation labels",
    )  # fmt: skip
    axes.set_title("accuracy on clean test rows; dots: each seed", loc="left", fontsize=11)
    axes.set_xlabel("flood level b")
    axes.legend(frameon=False, fontsize=8)
    clean(axes)
