"""Compare finished runs of equal training time: a Markdown table, and their validation curves over the minutes.

    python benchmarks/compare_runs.py runs/real/* --picture docs/images/real_titles.png

Runs that differ only in their seed make one line: mean and greatest deviation from it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_modules.pictures import BLUE, GREEN, GREY, ORANGE, clean, save

METRIC = "val/bits_per_char"
COLUMNS = {
    "bits/char": METRIC,
    "unigram bits/char": "baseline/unigram_bits_per_char",
    "loss": "val/loss",
    "unigram loss": "baseline/unigram_loss",
    "masked accuracy": "val/masked_accuracy",
    "most frequent": "baseline/most_frequent_share",
}


def table(groups: dict[str, list[dict]]) -> str:
    """A line for each group of summaries that differ only in their seed."""
    lines = [f"| model | seeds | {' | '.join(COLUMNS)} | tokens/s | characters/s |"]
    lines.append("|" + "---|" * (len(COLUMNS) + 4))
    for name, summaries in groups.items():
        cells = [name, ", ".join(str(summary["seed"]) for summary in summaries)]
        cells += [spread([summary["metrics"][key] for summary in summaries]) for key in COLUMNS.values()]
        speeds = [summary["throughput"]["tokens_per_second"] for summary in summaries]
        characters = [
            speed * characters_per_token(summary) for speed, summary in zip(speeds, summaries, strict=True)
        ]
        cells += [f"{mean(speeds):,.0f}", f"{mean(characters):,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    middle = mean(values)
    return f"{middle:.3f} ± {max(abs(value - middle) for value in values):.3f}"


def characters_per_token(summary: dict) -> float:
    """Of the training split, [CLS] and [SEP] counted as tokens as the speed counts them."""
    facts = summary["data_facts"]["splits"]["train"]
    return facts["num_characters"] / facts["num_tokens"]


def curve(run: Path) -> list[tuple[float, float]]:
    """(minutes since the first event, bits per character) at every validation of the fit."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    start = events.FirstEventTimestamp()
    points = [((event.wall_time - start) / 60, event.value) for event in events.Scalars(METRIC)]
    return points[:-1]  # the last one is the best weights' once more


def plot(runs: dict[Path, dict], path: Path) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours = dict(
        zip(dict.fromkeys(s["model"] for s in runs.values()), (BLUE, ORANGE, GREEN, GREY), strict=False)
    )
    seen = set()
    for run, summary in runs.items():
        name = summary["model"]
        label = None if name in seen else f"{name}, each seed"
        axes.plot(
            *zip(*curve(run), strict=True), color=colours[name], marker="o", markersize=2.5, label=label
        )
        if label:
            baseline = summary["metrics"]["baseline/unigram_bits_per_char"]
            axes.axhline(
                baseline, color=colours[name], linestyle="--", linewidth=1, label=f"{name}'s unigram"
            )
        seen.add(name)
    axes.set_xlabel("minutes of training, validations included")
    axes.set_title("bits per character on the same masked words", loc="left", fontsize=11)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8)
    clean(axes)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--picture", type=Path, help="a PNG of the validation curves")
    arguments = parser.parse_args()
    runs = {
        run: json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in sorted(arguments.runs)
    }
    groups = defaultdict(list)
    for summary in runs.values():
        groups[summary["model"]].append(summary)
    print(table(groups))
    if arguments.picture:
        plot(runs, arguments.picture)


if __name__ == "__main__":
    main()
