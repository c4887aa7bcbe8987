"""The curves of a run."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.csv_logger import read_metrics
from lightning_modules.pictures import BLUE, GREEN, GREY, ORANGE, clean, save

BASELINES = {
    "val/loss": ("baseline/unigram_loss", "unigram baseline"),
    "val/bits_per_char": ("baseline/unigram_bits_per_char", "unigram baseline"),
    "val/masked_accuracy": ("baseline/most_frequent_share", "most frequent token"),
}
LABELS = {"val/masked_accuracy": "masked accuracy", "val/bits_per_char": "bits per character"}
PANELS = 6


def plot_curves(run_dir: str | os.PathLike) -> Path | None:
    """Draw <run_dir>/plots/curves.png from metrics.csv.

    The losses, the learning rate, and a panel for every other `val/` metric (up to 6 panels); dashed lines
    are the baselines that were logged.

    Returns:
        The picture's path; None where metrics.csv has nothing to draw.
    """
    rows = read_metrics(Path(run_dir) / "metrics.csv")
    names = list(dict.fromkeys(name for row in rows for name in row))
    # Parameter groups mostly share one rate: a curve for each that differs.
    rates = {tuple(row.get(name) for row in rows): name for name in reversed(names) if name.startswith("lr-")}
    rates = [name for name in names if name in rates.values()]
    panels = [["train/loss", "val/loss"]] if {"train/loss", "val/loss"} & set(names) else []
    panels += [rates] if rates else []
    panels += [[name] for name in names if name.startswith("val/") and name != "val/loss"]
    panels = panels[:PANELS]
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.4 * columns, 3.4 * lines), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        _draw_panel(axes, rows, panel)
    return save(figure, Path(run_dir) / "plots" / "curves.png")


def _draw_panel(axes: Axes, rows: list[dict[str, float]], names: list[str]) -> None:
    """Draw the curves `names` over the optimiser steps made; the legend has the last values."""
    for name in names:
        points = [(row["step"] + 1, row[name]) for row in rows if name in row]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        if name.startswith("train/"):
            axes.plot(steps, values, color=GREY, linewidth=0.9, label="training")
        elif name.startswith("val/"):
            label = f"validation ({values[-1]:.4g})"
            axes.plot(steps, values, color=BLUE, linewidth=1.8, marker="o", markersize=3.5, label=label)
        else:
            axes.plot(steps, values, color=GREEN, linewidth=1.4, label=name)
    title = " and ".join(LABELS.get(name, name.removeprefix("val/")) for name in names)
    if "val/loss" in names:
        title = "loss"
    elif names[0].startswith("lr-"):
        title = "learning rate"
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for name in names:
        baseline, label = BASELINES.get(name, ("", ""))
        values = [row[baseline] for row in rows if baseline in row]
        if values:
            axes.axhline(
                values[-1], color=ORANGE, linewidth=1.2, linestyle="--", label=f"{label} ({values[-1]:.4g})"
            )
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel("optimiser steps")
    axes.set_xlim(left=0)
    if title != "learning rate" or len(names) > 1:
        axes.legend(frameon=False, fontsize=8)
    clean(axes)
