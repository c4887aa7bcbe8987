"""conf/experiment/claims/imbalance_digits.yaml and imbalance_iflytek.yaml: what losses gain on rare classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from launch.claims import Job, Report, spread
from launch.signatures import show
from lightning_modules.pictures import BLUE, GREY, ORANGE, clean

# The two of which the criteria speak, as `Method` names them.
REFERENCE = "cross entropy"
ADJUSTED = "logit adjustment, tau 1"
OPTIONS = ("model.posthoc_tau", "data.sampler")
TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "many_shot_accuracy": "many-shot accuracy",
    "medium_shot_accuracy": "medium-shot accuracy",
    "few_shot_accuracy": "few-shot accuracy",
}


@dataclass(frozen=True)
class Method:
    """A loss with its options.

    Attributes:
        name: as typed, without underscores.
        jobs: in the order of the seeds.
    """

    name: str
    jobs: list[Job]

    def scores(self, metric: str) -> list[float]:
        """On the test split, by seed."""
        return [job.summary["metrics"][f"test/{metric}"] for job in self.jobs]

    def mean(self, metric: str) -> float:
        return fmean(self.scores(metric))


def digits(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if logit adjustment's balanced accuracy is at least `thresholds["gain"]` above cross-entropy's, mean of the
    seeds."""
    methods = _methods(steps)
    before, after = (methods[name].mean("balanced_accuracy") for name in (REFERENCE, ADJUSTED))
    return Report(
        met=after - before >= thresholds["gain"],
        because=f"the balanced accuracy is {after:.4f} with logit adjustment and {before:.4f} with cross-entropy, "
        f"{100 * (after - before):+.2f} points.",
        notes=_notes(methods),
        **_found(
            methods,
            columns=("balanced_accuracy", "macro_f1", "few_shot_accuracy", "accuracy"),
            drawn=("balanced_accuracy", "few_shot_accuracy"),
        ),
    )


def iflytek(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if logit adjustment's macro-F1 and its few-shot accuracy are more than `thresholds["gain"]` above
    cross-entropy's, for each seed."""
    methods = _methods(steps)
    least = {
        metric: min(
            after - before
            for before, after in zip(
                methods[REFERENCE].scores(metric), methods[ADJUSTED].scores(metric), strict=True
            )
        )
        for metric in ("macro_f1", "few_shot_accuracy")
    }
    told = " and ".join(f"{100 * gain:+.2f} points of {TITLES[metric]}" for metric, gain in least.items())
    return Report(
        met=all(gain > thresholds["gain"] for gain in least.values()),
        because=f"logit adjustment's least gain over cross-entropy, of all seeds, is {told}.",
        notes=_notes(methods),
        **_found(
            methods,
            columns=(
                "macro_f1", "many_shot_accuracy", "medium_shot_accuracy", "few_shot_accuracy", "balanced_accuracy",
                "accuracy",
            ),
            drawn=("macro_f1", "many_shot_accuracy", "medium_shot_accuracy", "few_shot_accuracy"),
        ),
    )  # fmt: skip


def _methods(steps: dict[str, list[Job]]) -> dict[str, Method]:
    by_name: dict[str, list[Job]] = {}
    for job in (job for jobs in steps.values() for job in jobs):
        by_name.setdefault(_name(job.options), []).append(job)
    return {name: Method(name, jobs) for name, jobs in by_name.items()}


def _name(options: dict[str, Any]) -> str:
    """`logit adjustment, tau 1`."""
    own = {key: value for key, value in options.items() if key.startswith("model.loss.") or key in OPTIONS}
    parts = [
        options["model/loss"],
        *(f"{key.rpartition('.')[2]} {show(value)}" for key, value in own.items()),
    ]
    return ", ".join(parts).replace("_", " ")


def _found(methods: dict[str, Method], columns: Sequence[str], drawn: Sequence[str]) -> dict[str, Any]:
    """Numbers, table and picture."""
    return {
        "numbers": {
            f"{metric}/{name}": method.mean(metric) for name, method in methods.items() for metric in columns
        },
        "header": ["loss", *(TITLES[metric] for metric in columns)],
        "rows": [
            [name, *(spread(method.scores(metric)) for metric in columns)] for name, method in methods.items()
        ],
        "figures": {"by_loss": _draw(list(methods.values()), drawn)},
    }


def _notes(methods: dict[str, Method]) -> str:
    job, seeds = methods[REFERENCE].jobs[0], len(methods[REFERENCE].jobs)
    facts = job.summary["data_facts"]
    groups = OmegaConf.load(job.directory / "config.yaml").model
    counts = sorted(facts["trained_on"]["class_counts"], reverse=True)
    many, few = sum(n > groups.many_shot for n in counts), sum(n < groups.few_shot for n in counts)
    left_out = sum(facts["splits"]["test"].get("left_out", {}).values())
    of_no_class = f" ({left_out} more are of no class that was trained on)" if left_out else ""
    return (
        f"Scores on {facts['splits']['test']['num_rows']:,} test rows{of_no_class}, means over {seeds} seeds ± the sample "
        f"standard deviation. Trained on {sum(counts):,} rows of {len(counts)} classes, {counts[0]} of the most frequent "
        f"and {counts[-1]} of the rarest. Balanced accuracy is the mean recall of the classes; many-shot, few-shot and "
        f"medium-shot accuracy are that of the classes with more than {groups.many_shot} training rows, with fewer than "
        f"{groups.few_shot}, and those between: {many}, {few} and {len(counts) - many - few} classes. tau at a loss acts in "
        "training, posthoc tau on the logits of a network that was trained without. In the picture a dot is a seed, a line "
        "the mean, dotted that of cross-entropy."
    )


def _draw(methods: list[Method], metrics: Sequence[str]) -> Figure:
    """Methods from the best to the worst by the first metric."""
    methods = sorted(methods, key=lambda method: method.mean(metrics[0]))
    figure = Figure(figsize=(2.2 + 2.4 * len(metrics), 0.9 + 0.25 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for place, method in enumerate(methods):
            colour = ORANGE if method.name in (REFERENCE, ADJUSTED) else BLUE
            scores = method.scores(metric)
            axes.plot(
                scores, [place] * len(scores), "o", color=colour, markersize=3.5, alpha=0.4, markeredgewidth=0
            )
            axes.plot(fmean(scores), place, "|", color=colour, markersize=11, markeredgewidth=2.2)
            if method.name == REFERENCE:
                axes.axvline(fmean(scores), color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title(TITLES[metric], loc="left", fontsize=11)
        axes.grid(axis="y", color=GREY, alpha=0.15, linewidth=0.6)
        clean(axes)
    panels[0].set_yticks(range(len(methods)), [method.name for method in methods])
    return figure
