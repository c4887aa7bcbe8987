"""Pictures of what `datamodules.inspection.inspect_corpus` found."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_modules.pictures import BLUE, FONT_HINT, GREEN, GREY, ORANGE, cjk_font, clean, save

log = logging.getLogger(__name__)

COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
# Of more classes than that, all are drawn by their rank, and the most frequent and the rarest by name.
LISTED_CLASSES, NAMED_CLASSES = 40, 15
NAME_CHARACTERS = 24


def plot_lengths(path: Path, facts: dict[str, Any]) -> Path:
    """Draw how long the rows of each split are, in characters and in tokens.

    Args:
        path: the PNG.
        facts: what `inspect_corpus` returns.
    """
    figure = Figure(figsize=(10.8, 3.8), layout="constrained")
    for number, unit in enumerate(("characters", "tokens")):
        _draw_lengths(figure.add_subplot(1, 2, number + 1), facts, unit)
    return save(figure, path)


def _draw_lengths(axes: Axes, facts: dict[str, Any], unit: str) -> None:
    for name, split in facts["splits"].items():
        histogram = split["histograms"][f"{unit}_a_row"]
        shares = [count / split["rows"] for count in histogram["rows"]]
        # A bar stands over the whole numbers that it counts.
        edges = [histogram["bin_width"] * number - 0.5 for number in range(len(shares) + 1)]
        label = f"{name} (median {split[f'{unit}_a_row']['median']:,})"
        axes.stairs(shares, edges, color=COLOURS[name], linewidth=1.5, label=label)
        if name == "train":
            axes.stairs(shares, edges, color=COLOURS[name], alpha=0.18, fill=True)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, 1.25 * axes.dataLim.ymax)  # room for the legend
    limit = facts["max_length"]
    if limit <= edges[-1]:
        axes.axvline(limit, color=GREY, linewidth=1.2, linestyle="--", label=f"data.max_length={limit}")
    width = histogram["bin_width"]
    longer = sum(split["histograms"][f"{unit}_a_row"]["longer"] for split in facts["splits"].values())
    notes = [unit + (f", {width} to a bar" if width > 1 else "")]
    if longer:
        longest = max(split[f"{unit}_a_row"]["max"] for split in facts["splits"].values())
        notes.append(f"{longer:,} row{'s are' if longer > 1 else ' is'} longer, up to {longest:,}")
    axes.set_xlabel("; ".join(notes))
    axes.set_ylabel("rows of the split")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(_percent)
    axes.set_title(f"{unit.capitalize()} a row", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    clean(axes)


def plot_labels(path: Path, facts: dict[str, Any]) -> Path | None:
    """Draw how many rows each class has, by split, the most frequent of the training split first.

    Returns:
        The picture's path; None where no row has a label.
    """
    labels = {name: split["labels"] for name, split in facts["splits"].items() if split["labels"]}
    if not labels:
        return None
    classes = {name: of_split["classes"] for name, of_split in labels.items()}
    first = next(iter(classes.values()))
    order = sorted(range(len(first)), key=lambda label: -first[label]["rows"])
    rows = {name: of_split["rows"] for name, of_split in labels.items()}
    by_name = len(order) <= LISTED_CLASSES
    figure = _drawn_by_name(classes, rows, order) if by_name else _drawn_by_rank(classes, order)
    names = (one["name"] for one in first)
    if cjk_font() is None and not all(name.isascii() for name in names):
        figure.supxlabel(FONT_HINT, fontsize=8, color=ORANGE)
        log.warning("%s: %s", path, FONT_HINT)
    return save(figure, path)


def _drawn_by_name(
    classes: dict[str, list[dict[str, Any]]], rows: dict[str, int], order: list[int]
) -> Figure:
    """A panel for each split."""
    figure = Figure(figsize=(2.2 + 3.2 * len(classes), 1.1 + 0.27 * len(order)), layout="constrained")
    panels = figure.subplots(1, len(classes), sharey=True, squeeze=False)[0]
    for axes, (name, listed) in zip(panels, classes.items(), strict=True):
        _draw_bars(axes, listed, order, COLOURS[name])
        axes.set_title(f"{name}, {rows[name]:,} rows", loc="left", fontsize=11)
    return figure


def _drawn_by_rank(classes: dict[str, list[dict[str, Any]]], order: list[int]) -> Figure:
    """Above all classes by their rank, below the ends of that curve by name."""
    figure = Figure(figsize=(10.8, 3.4 + 1 + 0.27 * NAMED_CLASSES), layout="constrained")
    panels = figure.subplot_mosaic(
        [["all", "all"], ["frequent", "rare"]], height_ratios=[3.4, 1 + 0.27 * NAMED_CLASSES]
    )
    axes = panels["all"]
    ranks, drawn = range(1, len(order) + 1), []
    first = next(iter(classes))
    for name, listed in classes.items():
        shares = [listed[label]["share"] or None for label in order]
        empty = shares.count(None)
        label = name + (f" ({empty:,} classes without a row)" if empty else "")
        if name == first:
            bars = [share or 0 for share in shares]
            drawn.append(axes.bar(ranks, bars, width=1, color=COLOURS[name], alpha=0.35, label=label))
        else:
            drawn += axes.plot(ranks, shares, ".", color=COLOURS[name], markersize=5, label=label)
    axes.set_yscale("log")
    axes.set_xlim(0.5, len(order) + 0.5)
    axes.yaxis.set_major_formatter(_percent)
    axes.set_xlabel(f"rank of the class in {first}")
    axes.set_ylabel("rows of the split")
    axes.set_title(f"All {len(order):,} classes", loc="left", fontsize=11)
    axes.legend(handles=drawn, frameon=False, fontsize=9)
    clean(axes)
    for axes, part, what in (
        (panels["frequent"], order[:NAMED_CLASSES], "most frequent"),
        (panels["rare"], order[-NAMED_CLASSES:], "rarest"),
    ):
        _draw_bars(axes, classes[first], part, COLOURS[first])
        axes.set_title(f"The {NAMED_CLASSES} {what} in {first}", loc="left", fontsize=11)
    return figure


def _draw_bars(axes: Axes, listed: list[dict[str, Any]], order: list[int], colour: str) -> None:
    shown = [listed[label] for label in order]
    shares = [one["share"] for one in shown]
    places = range(len(order))
    axes.barh(places, shares, color=colour, height=0.72)
    for place, one in zip(places, shown, strict=True):
        axes.annotate(
            f"{one['rows']:,}", (one["share"], place), (4, 0), textcoords="offset points",
            va="center", fontsize=8, color=GREY,
        )  # fmt: skip
    font = cjk_font()
    names = [
        _shortened(one["name"]) if font or one["name"].isascii() else f"id {label}"
        for label, one in zip(order, shown, strict=True)
    ]
    axes.set_yticks(places, names)
    for tick in axes.get_yticklabels():
        if not tick.get_text().isascii():
            tick.set_fontproperties(font)
        tick.set_fontsize(9)
        tick.set_parse_math(False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(shares) or 1)
    axes.xaxis.set_major_formatter(_percent)
    axes.set_xlabel("rows of the split")
    clean(axes)
    axes.tick_params(axis="y", length=0)


def _percent(share: float, _: int) -> str:
    return f"{100 * share:.3g}%"


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"
