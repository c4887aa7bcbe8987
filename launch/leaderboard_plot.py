"""The picture of a leaderboard."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from launch.leaderboard import UNREADABLE, Job, Leaderboard, Setting, brief, counted, is_number, shortened
from lightning_modules.pictures import BLUE, FONT_HINT, GREEN, GREY, ORANGE, cjk_font, clean, save

COLOURS = (BLUE, GREEN, ORANGE, GREY)
FAILED = ("failed", UNREADABLE)
# So many settings have a line, the best ones; so many characters its label.
DRAWN_SETTINGS, LABEL_CHARACTERS = 80, 60
# An axis is logarithmic from this ratio of its values on.
LOG_RATIO = 20


def plot_leaderboard(path: Path, board: Leaderboard) -> Path:
    """Draw what was reached with which options: a dot a finished job, bars for mean ± sample standard deviation of
    the seeds, crosses for failed jobs.

    Over the number that was varied, with a curve for each value of at most one other option; else in a line for
    each setting, the best first.
    """
    number = _varied_number(board)
    return save(_draw_settings(board) if number is None else _draw_over(board, number), path)


def _varied_number(board: Leaderboard) -> str | None:
    """The option that is drawn over: the one number that varies, beside at most one other option of few values."""
    settings = _known(board)
    numbers = [name for name in board.options if all(is_number(setting.value(name)) for setting in settings)]
    if len(numbers) != 1 or len(board.options) > 2 or len(_curves(board, numbers[0])) > len(COLOURS):
        return None
    scored = {setting.value(numbers[0]) for setting in settings if setting.scores(board.metric)}
    return numbers[0] if len(scored) > 1 else None


def _known(board: Leaderboard) -> list[Setting]:
    return [setting for setting in board.settings if setting.jobs[0].status != UNREADABLE]


def _curves(board: Leaderboard, number: str) -> list[list[Setting]]:
    """The settings in the order of the number, apart by what varies beside it."""
    others = [name for name in board.options if name != number]
    curves: dict[tuple[str, ...], list[Setting]] = {}
    for setting in sorted(_known(board), key=lambda setting: setting.value(number)):
        curves.setdefault(tuple(setting.jobs[0].text(name) for name in others), []).append(setting)
    return list(curves.values())


def _draw_over(board: Leaderboard, number: str) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    _scale(axes, "y", [score for setting in board.settings for score in setting.scores(board.metric)])
    values = sorted({setting.value(number) for setting in _known(board)})
    if _scale(axes, "x", values):
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xticks([], minor=True)
    curves = _curves(board, number)
    labels = [
        _label(board, settings[0], [name for name in board.options if name != number]) for settings in curves
    ]
    for colour, label, settings in zip(COLOURS, labels, curves, strict=False):
        scored = [setting for setting in settings if setting.scores(board.metric)]
        places = [setting.value(number) for setting in scored]
        for place, setting in zip(places, scored, strict=True):
            _draw_setting(axes, board, setting, place, colour, upright=True)
        means = [setting.mean(board.metric) for setting in scored]
        axes.plot(
            places, means, color=colour, linewidth=1.6, label=_drawable(label) if len(curves) > 1 else None
        )
    _mark_jobs_without_score(axes, board, number)
    axes.margins(y=0.12)
    axes.set_xlabel(number, parse_math=False)
    axes.set_ylabel(board.metric, parse_math=False)
    axes.set_title(_title(board), loc="left", fontsize=10, parse_math=False)
    if axes.get_legend_handles_labels()[1]:
        _set_fonts(axes.legend(frameon=False, fontsize=9).get_texts(), size=9)
    clean(axes)
    axes.grid(axis="both", color="#E6E6E6", linewidth=0.7)
    _hint_at_font(figure, labels)
    return figure


def _mark_jobs_without_score(axes: Axes, board: Leaderboard, number: str) -> None:
    """At the lower edge, where the curve has no point for them."""
    jobs = [job for job in board.jobs if job.score(board.metric) is None and is_number(job.value(number))]
    for status in dict.fromkeys(job.status for job in jobs):
        places = [job.value(number) for job in jobs if job.status == status]
        marker, colour = ("x", ORANGE) if status in FAILED else ("+", GREY)
        axes.plot(
            places, [0.03] * len(places), marker, color=colour, markersize=7, markeredgewidth=1.6,
            transform=axes.get_xaxis_transform(), label=_what_became(status, board.metric),
        )  # fmt: skip


def _draw_settings(board: Leaderboard) -> Figure:
    settings = board.settings[:DRAWN_SETTINGS]
    labels = [_label(board, setting, board.options) for setting in settings]
    figure = Figure(figsize=(8.4, 1.4 + 0.24 * len(settings)), layout="constrained")
    axes = figure.add_subplot()
    scores = [score for setting in settings for score in setting.scores(board.metric)]
    _scale(axes, "x", scores)
    for place, setting in enumerate(settings):
        _draw_setting(axes, board, setting, place, BLUE, upright=False)
        has_failed = any(job.status in FAILED for job in setting.jobs)
        if has_failed:
            axes.plot(
                1, place, "x", color=ORANGE, markersize=6, markeredgewidth=1.6, clip_on=False,
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        told = [setting.summed_up(board.metric), *_without_score(setting.jobs, board.metric)]
        axes.annotate(
            ", ".join(filter(None, told)), (1, place), (8, 0), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", va="center", fontsize=8, color=ORANGE if has_failed else GREY,
        )  # fmt: skip
    axes.set_yticks(range(len(settings)), [_drawable(label) for label in labels])
    _set_fonts(axes.get_yticklabels(), size=9)
    axes.set_ylim(len(settings) - 0.4, -0.6)
    if not scores:
        axes.set_xticks([])
    left_out = len(board.settings) - len(settings)
    beyond = f" ({counted(left_out, 'setting')} more in leaderboard.csv)" if left_out else ""
    axes.set_xlabel(f"{board.metric}{beyond}", parse_math=False)
    figure.suptitle(_title(board), x=0.01, ha="left", fontsize=10, parse_math=False)
    clean(axes)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    _hint_at_font(figure, labels)
    return figure


def _draw_setting(
    axes: Axes, board: Leaderboard, setting: Setting, place: float, colour: str, upright: bool
) -> None:
    """Its jobs as dots, and their mean and spread; `upright`: the scores go up, else to the right."""
    scores, spread = setting.scores(board.metric), setting.spread(board.metric)
    across = [place] * len(scores)
    axes.plot(
        *((across, scores) if upright else (scores, across)), "o", color=colour, alpha=0.5, markersize=4.5
    )
    if spread is not None:
        mean = setting.mean(board.metric)
        point = (
            {"x": place, "y": mean, "yerr": spread} if upright else {"x": mean, "y": place, "xerr": spread}
        )
        axes.errorbar(**point, fmt="D", color=colour, markersize=4, capsize=3, elinewidth=1.4)


def _scale(axes: Axes, axis: str, values: Sequence[float]) -> bool:
    """Make the axis logarithmic where the values span orders of magnitude; says whether each has room for a tick."""
    values = sorted(set(values))
    if values and values[0] > 0 and values[-1] / values[0] > LOG_RATIO:
        axes.set(**{f"{axis}scale": "log"})
        values = [math.log(value) for value in values]
    gaps = [after - before for before, after in zip(values, values[1:], strict=False)]
    return bool(gaps) and min(gaps) >= 0.08 * (values[-1] - values[0])


def _title(board: Leaderboard) -> str:
    has_spread = any(setting.spread(board.metric) is not None for setting in board.settings)
    return board.title + ("; bars: mean ± sample standard deviation of the seeds" if has_spread else "")


def _label(board: Leaderboard, setting: Setting, options: Sequence[str]) -> str:
    """`model=wobert lr=0.001`; the job's name where it has no options to be told by."""
    job = setting.jobs[0]
    if not board.options and len(setting.jobs) > 1:
        return counted(len(setting.jobs), "job")
    if not board.options or job.status == UNREADABLE:
        return shortened(f"job {job.name}" if job.name.isdecimal() else job.name, LABEL_CHARACTERS)
    short = {option: re.split(r"[./]", option)[-1] for option in board.varied}
    counts = Counter(short.values())
    told = [option for option in options if job.value(option) is not ...]
    parts = [
        f"{short[option] if counts[short[option]] == 1 else option}={brief(job.value(option))}"
        for option in told
    ]
    return shortened(" ".join(parts) or "default", LABEL_CHARACTERS)


def _without_score(jobs: Sequence[Job], metric: str) -> list[str]:
    """`1 of 3 failed`."""
    counts = Counter(_what_became(job.status, metric) for job in jobs if job.score(metric) is None)
    return [what if len(jobs) == 1 else f"{count} of {len(jobs)} {what}" for what, count in counts.items()]


def _what_became(status: str, metric: str) -> str:
    return f"without {metric}" if status == "finished" else status


def _drawable(text: str) -> str:
    """Code points instead of characters that no installed font has."""
    return text if text.isascii() or cjk_font() else text.encode("ascii", "backslashreplace").decode()


def _set_fonts(texts: Iterable[Text], size: int) -> None:
    for text in texts:
        if not text.get_text().isascii():
            text.set_fontproperties(cjk_font())
        text.set_fontsize(size)
        text.set_parse_math(False)


def _hint_at_font(figure: Figure, labels: Iterable[str]) -> None:
    if cjk_font() is None and not all(label.isascii() for label in labels):
        figure.supxlabel(FONT_HINT, fontsize=8, color=ORANGE)
