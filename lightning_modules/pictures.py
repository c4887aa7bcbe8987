"""What techniques draw with: colours, Chinese labels, and the pictures that several of them share."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

if TYPE_CHECKING:
    from lightning_modules.classification import Scores

log = logging.getLogger(__name__)

# Okabe and Ito's palette: told apart with any kind of colour vision, and in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"

CJK_FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Heiti SC", "Hiragino Sans GB",
    "Noto Sans CJK JP", "Source Han Sans", "Noto Serif CJK SC", "Arial Unicode MS", "Droid Sans Fallback",
    "SimSun",
)  # fmt: skip
CJK_PROBE = "的一是不了人我在有他词语训练模型"
# Of more classes a confusion matrix has the most confused, and the bars are of the most frequent and the rarest.
CONFUSION_CLASSES, BAR_CLASSES = 20, 40
# A class' name is cut there, in Latin characters' widths; a Chinese character has two.
NAME_WIDTH = 24
FONT_HINT = "no Chinese font found, so ids instead of characters (apt-get install fonts-noto-cjk)"


def plot_token_accuracy(
    path: str | os.PathLike,
    tokens: Sequence[str],
    accuracies: Sequence[float],
    counts: Sequence[int],
    ids: Sequence[int],
) -> Path:
    """Draw a bar for each token: how often it was predicted where it had been masked.

    Args:
        path: the PNG.
        tokens: at most some 40, the most frequent first.
        accuracies: in [0, 1], one for each token; counts: how often it was masked.
        ids: the tokens' ids, shown where no installed font has the token's characters.

    Raises:
        ValueError: the sequences differ in length.
    """
    if not len(tokens) == len(accuracies) == len(counts) == len(ids):
        raise ValueError(
            f"{len(tokens)} tokens, {len(accuracies)} accuracies, {len(counts)} counts, {len(ids)} ids"
        )
    figure = Figure(figsize=(6.4, 1.3 + 0.26 * len(tokens)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(tokens))
    axes.barh(places, accuracies, color=BLUE, height=0.72)
    without_font = _name_ticks(axes.yaxis, places, tokens, [f"id {id_}" for id_ in ids], size=10)
    for place, accuracy, count in zip(places, accuracies, counts, strict=True):
        axes.annotate(
            f"{accuracy:.0%} of {count:,}", (accuracy, place), (4, 0), textcoords="offset points",
            va="center", fontsize=8, color=GREY,
        )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, min(1.25, 1.3 * max([*accuracies, 0.02])))
    axes.set_ylim(len(tokens) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")
    axes.set_xlabel("predicted correctly where masked (validation)")
    axes.set_title("The most frequent masked tokens", loc="left", fontsize=11)
    clean(axes)
    axes.tick_params(axis="y", length=0)
    if without_font:
        _say_font_is_missing(figure, path)
    return save(figure, Path(path))


def plot_confusion(path: str | os.PathLike, names: Sequence[str], matrix: np.ndarray) -> Path:
    """Draw a confusion matrix: a cell's number is its rows, its colour their share of the true class.

    Of more than 20 classes those are drawn that take part in the most confusions; what was predicted of the others
    stands in a last column, so that a line still has all rows of its class.

    Args:
        path: the PNG.
        names: [C], the classes.
        matrix: int [C, C], rows by true class and predicted class.

    Raises:
        ValueError: the shapes do not agree.
    """
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"{len(names)} names, a matrix of shape {matrix.shape}")
    confusions = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    shown = np.sort(np.argsort(-confusions, kind="stable")[:CONFUSION_CLASSES])
    counts, title, columns = matrix[shown], "Confusion matrix", [names[i] for i in shown]
    stand_ins = [f"class {i}" for i in shown]
    if len(shown) < len(names):
        left_out = np.delete(np.arange(len(names)), shown)
        counts = np.column_stack([counts[:, shown], counts[:, left_out].sum(1)])
        title = f"The {len(shown)} most confused of {len(names):,} classes"
        columns.append(f"the other {len(left_out):,}")
    height, width = counts.shape
    cell = max(0.42, 2.4 / height)  # inches
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    rows = counts.sum(1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    image = axes.imshow(
        shares, cmap=LinearSegmentedColormap.from_list("share", ["white", BLUE]), vmin=0, vmax=1
    )
    size = min(9, 72 * 0.85 * cell / (0.64 * len(f"{counts.max(initial=0):,}")))
    for (line, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[line, column] > 0.55 else "black"
            axes.text(column, line, f"{count:,}", ha="center", va="center", fontsize=size, color=colour)
    without_font = _name_ticks(axes.yaxis, range(height), columns[:height], stand_ins, size=9)
    _name_ticks(axes.xaxis, range(width), columns, [*stand_ins, ""][:width], size=9)
    longest = max(label.get_window_extent().width for label in axes.get_xticklabels()) / figure.dpi
    below = 0.2
    if longest > 0.9 * cell:
        below = 0.75 * longest
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    figure.set_size_inches(cell * width + longest + 1.6, cell * height + below + 0.75)
    if width > height:
        axes.axvline(height - 0.5, color=GREY, linewidth=1)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#E6E6E6", linewidth=0.7)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=24, pad=0.02)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
    if without_font:
        _say_font_is_missing(figure, path)
    return save(figure, Path(path))


def plot_classes(path: str | os.PathLike, names: Sequence[str], scores: Scores) -> Path:
    """Draw recall and F1 of each class, the class with the most training rows first.

    Of more than 40 classes the 20 most frequent and the 20 rarest are drawn.

    Args:
        path: the PNG.
        names: [C], the classes.
        scores: of these classes.

    Raises:
        ValueError: there are more or fewer names than classes.
    """
    if len(names) != len(scores.rows):
        raise ValueError(f"{len(names)} names, scores of {len(scores.rows)} classes")
    order = np.argsort(-scores.train_rows, kind="stable")
    places = np.arange(len(order))
    left_out = max(0, len(order) - BAR_CLASSES)
    title = "Recall and F1 of each class"
    if left_out:
        half = BAR_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        places = np.delete(np.arange(BAR_CLASSES + 1), half)  # a gap where classes are left out
        title = f"The {half} most frequent and {half} rarest of {len(names):,} classes"
    lines = places[-1] + 1
    figure = Figure(figsize=(7.6, 1.6 + 0.26 * lines), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(places, np.nan_to_num(scores.recall[order]), color=BLUE, height=0.72)
    axes.plot(
        scores.f1[order], places, "D", color=ORANGE, markeredgecolor="white", markersize=6, clip_on=False
    )
    without_font = _name_ticks(
        axes.yaxis, places, [names[i] for i in order], [f"class {i}" for i in order], size=9
    )
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": GREY}
    for offset, above, numbers in (
        (46, "training\nrows", scores.train_rows),
        (100, "evaluated\nrows", scores.rows),
    ):
        axes.annotate(above, (1, -0.6), (offset, 10), ha="right", **beside)
        for place, number in zip(places, numbers[order], strict=True):
            axes.annotate(f"{number:,}", (1, place), (offset, 0), ha="right", **beside)
    for place in places[scores.rows[order] == 0]:
        axes.annotate("no rows", (0, place), (6, 0), **beside)
    if left_out:
        axes.annotate(f"{left_out:,} classes between", (0.5, BAR_CLASSES // 2), (0, 0), ha="center", **beside)
    axes.set_xlim(0, 1)
    axes.set_ylim(lines - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("bars: recall; diamonds: F1", fontsize=9)
    clean(axes)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    if without_font:
        _say_font_is_missing(figure, path)
    return save(figure, Path(path))


def _name_ticks(
    axis: Axis, places: Sequence[int], names: Sequence[str], stand_ins: Sequence[str], size: float
) -> bool:
    """Put a name at each tick, in a font that has its characters, or else its stand-in.

    Returns:
        Whether a name is missing because no Chinese font is installed.
    """
    chinese, latin = cjk_font(), FontProperties(family="DejaVu Sans")
    names = [_shortened(name) for name in names]
    fonts = [next((one for one in (latin, chinese) if one and _covers(one, name)), None) for name in names]
    axis.set_ticks(
        places,
        [name if one else stand_in for name, one, stand_in in zip(names, fonts, stand_ins, strict=True)],
    )
    for label, one in zip(axis.get_ticklabels(), fonts, strict=True):
        label.set_fontproperties(one or latin)
        label.set_fontsize(size)
        label.set_parse_math(False)
    return chinese is None and None in fonts


def _shortened(name: str) -> str:
    name = " ".join(name.split())
    if _width(name) <= NAME_WIDTH:
        return name
    while _width(name) >= NAME_WIDTH:
        name = name[:-1]
    return f"{name}…"


def _width(name: str) -> int:
    return sum(1 + (east_asian_width(character) in "FW") for character in name)


def _say_font_is_missing(figure: Figure, path: str | os.PathLike) -> None:
    figure.supxlabel(FONT_HINT, fontsize=8, color=ORANGE)
    log.warning("%s: %s", path, FONT_HINT)


@lru_cache(maxsize=1)
def cjk_font() -> FontProperties | None:
    """An installed font that draws Chinese: a known family, else any that has common characters; None without
    one."""
    by_family: dict[str, str] = {}
    for entry in font_manager.fontManager.ttflist:
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book"):
            by_family.setdefault(entry.name, entry.fname)
    # matplotlib's list is a cache, made before fonts that were installed since.
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    found_since = sorted(
        set(font_manager.findSystemFonts()) - known, key=lambda path: ("Regular" not in path, path)
    )
    candidates = [by_family[family] for family in CJK_FAMILIES if family in by_family]
    for path in (*candidates, *found_since, *by_family.values()):
        font = FontProperties(fname=path)
        # "Last Resort", which comes with matplotlib, has every character, as a box.
        if "LastResort" not in path and _covers(font, CJK_PROBE):
            return font
    return None


def _covers(font: FontProperties, text: str) -> bool:
    return {ord(character) for character in text} <= _characters(font_manager.findfont(font))


@lru_cache(maxsize=8)
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a file that is no outline font
        return frozenset()


def clean(axes: Axes) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if axes.containers else "both", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG that is the same for the same data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
    return path
