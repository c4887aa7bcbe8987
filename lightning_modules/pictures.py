"""What techniques draw with: colours, Chinese labels, and the pictures that several of them share."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

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
    font = cjk_font()
    latin = FontProperties(family="DejaVu Sans")
    fonts = [next((one for one in (latin, font) if one and _covers(one, token)), None) for token in tokens]
    figure = Figure(figsize=(6.4, 1.3 + 0.26 * len(tokens)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(tokens))
    axes.barh(places, accuracies, color=BLUE, height=0.72)
    labels = [token if one else f"id {id_}" for token, one, id_ in zip(tokens, fonts, ids, strict=True)]
    axes.set_yticks(places, labels)
    for label, one in zip(axes.get_yticklabels(), fonts, strict=True):
        label.set_fontproperties(one or latin)
        label.set_fontsize(10)
        label.set_parse_math(False)
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
    if font is None and None in fonts:
        figure.supxlabel(FONT_HINT, fontsize=8, color=ORANGE)
        log.warning("%s: %s", path, FONT_HINT)
    return save(figure, Path(path))


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
