"""conf/experiment/claims/dialogpt_all_turns.yaml and dialogpt_roles.yaml: which loss and which input teach replies; and
what the other reports on dialogue models share with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from datamodules.build import build
from datamodules.text import Split
from launch.claims import Job, Report, grouped, spread
from lightning_modules.pictures import BLUE, ORANGE, clean
from lightning_modules.replies import TURNS

PERPLEXITY, BITS = "val/reply_perplexity", "val/reply_bits_per_char"
# A held-out corpus need not have replies at every turn.
BITS_AT_TURN = {name.replace("_", " "): f"{BITS}_turn_{name}" for name in TURNS}


@dataclass(frozen=True)
class Arm:
    """The runs of one side of a comparison.

    Attributes:
        name: as table and picture have it.
        jobs: in the order of the seeds.
    """

    name: str
    jobs: list[Job]

    def scores(self, metric: str) -> list[float]:
        """By seed; empty where a job lacks it."""
        found = [job.summary["metrics"].get(metric) for job in self.jobs]
        return [] if None in found else found

    def mean(self, metric: str) -> float:
        return fmean(self.scores(metric))

    @property
    def dialogues_per_second(self) -> list[float]:
        """In training, by seed."""
        return [job.summary["throughput"]["examples_per_second"] for job in self.jobs]

    @property
    def turns_per_dialogue(self) -> float:
        """Of the training dialogues, as far as they are not cut."""
        facts = self.jobs[0].summary["data_facts"]["splits"]["train"]
        return facts["num_texts"] / facts["num_rows"]


def dialogues_of(job: Job, split: Split) -> Iterator[tuple[str, ...]]:
    """The turns of each dialogue of a split, as a job has read them: in its order, and not yet cut to
    `data.max_length`."""
    node = OmegaConf.to_container(OmegaConf.load(job.directory / "config.yaml").data)
    return (row.texts for row in build({**node, "tokenizer": None}).read(split))


def all_turns(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if, for each seed, the reply perplexity with the loss on all turns is below `thresholds["perplexity"]` times
    that with the loss on the reply, and the replies trained a second above `thresholds["replies"]` times."""
    every, last = _arms(steps, "model.loss_on", {"all": "all turns", "reply": "the reply"})
    replies = {
        every.name: [(every.turns_per_dialogue - 1) * speed for speed in every.dialogues_per_second],
        last.name: last.dialogues_per_second,
    }
    perplexity = _ratios(every.scores(PERPLEXITY), last.scores(PERPLEXITY))
    speedup = _ratios(*replies.values())
    return Report(
        met=max(perplexity) < thresholds["perplexity"] and min(speedup) > thresholds["replies"],
        because=f"the reply perplexity is {every.mean(PERPLEXITY):.2f} with the loss on all turns and "
        f"{last.mean(PERPLEXITY):.2f} with that on the reply only, for each seed at most {max(perplexity):.3f} times as high; "
        f"replies trained a second are at least {min(speedup):.2f} times as many.",
        numbers=_numbers(every, last)
        | {f"replies_per_second/{name}": fmean(values) for name, values in replies.items()}
        | {"perplexity_ratio/worst": max(perplexity), "replies_ratio/least": min(speedup)},
        header=["loss on", *_header(every, last), "dialogues a second", "replies a second"],
        rows=[
            [
                *_row(arm, every, last),
                spread(arm.dialogues_per_second, ".0f"),
                spread(replies[arm.name], ".0f"),
            ]
            for arm in (every, last)
        ],
        notes=f"{_notes(every)} A dialogue has {every.turns_per_dialogue:.2f} turns: of the loss on all turns each but the "
        "first is a reply, of the loss on the reply the last one. Steps have as many tokens of as many dialogues; with the "
        "loss on the reply they are shorter, since only the reply's tokens are compared with the vocabulary.",
        figures={"by_turn": _draw(every, last, "loss on")},
    )


def roles(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if, for each seed, the reply perplexity with roles is below `thresholds["perplexity"]` times that without."""
    having, lacking = _arms(steps, "model.roles", {True: "with roles", False: "without"})
    ratios = _ratios(having.scores(PERPLEXITY), lacking.scores(PERPLEXITY))
    return Report(
        met=max(ratios) < thresholds["perplexity"],
        because=f"the reply perplexity is {having.mean(PERPLEXITY):.2f} with roles and {lacking.mean(PERPLEXITY):.2f} "
        f"without; by seed it is {', '.join(f'{ratio:.3f}' for ratio in ratios)} times as high with them.",
        numbers=_numbers(having, lacking)
        | {"perplexity_ratio/mean": fmean(ratios), "perplexity_ratio/worst": max(ratios)},
        header=["", *_header(having, lacking)],
        rows=[_row(arm, having, lacking) for arm in (having, lacking)],
        notes=_notes(having),
        figures={"by_turn": _draw(having, lacking, "")},
    )


def _arms(steps: dict[str, list[Job]], option: str, names: dict[Any, str]) -> list[Arm]:
    by_value = grouped(steps["train"], option)
    return [Arm(name, by_value[value,]) for value, name in names.items()]


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """By seed."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def _turns_of_both(*arms: Arm) -> dict[str, str]:
    """The turns at which all have scores, and the metrics."""
    return {turn: metric for turn, metric in BITS_AT_TURN.items() if all(arm.scores(metric) for arm in arms)}


def _numbers(*arms: Arm) -> dict[str, float]:
    metrics = [PERPLEXITY, BITS, *_turns_of_both(*arms).values()]
    return {
        f"{metric.removeprefix('val/')}/{arm.name}": arm.mean(metric) for arm in arms for metric in metrics
    }


def _header(*arms: Arm) -> list[str]:
    return ["reply perplexity", "bits a character", *(f"at turn {turn}" for turn in _turns_of_both(*arms))]


def _row(arm: Arm, *arms: Arm) -> list[str]:
    """Its scores, in the columns of all arms."""
    bits = [spread(arm.scores(metric)) for metric in (BITS, *_turns_of_both(*arms).values())]
    return [arm.name, spread(arm.scores(PERPLEXITY), ".2f"), *bits]


def _notes(arm: Arm) -> str:
    splits = arm.jobs[0].summary["data_facts"]["splits"]
    return (
        f"Trained on {splits['train']['num_rows']:,} dialogues; scores of the replies, the last turns, of "
        f"{splits['val']['num_rows']:,} held-out ones, means of {len(arm.jobs)} seeds ± the sample standard deviation. "
        "Perplexity is that of a token, and bits a character include what closes the reply."
    )


def _draw(ours: Arm, theirs: Arm, title: str) -> Figure:
    """Bits a character by the turn that is the reply."""
    turns = _turns_of_both(ours, theirs)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for arm, colour in ((ours, BLUE), (theirs, ORANGE)):
        scores = [arm.scores(metric) for metric in turns.values()]
        axes.plot(list(turns), [fmean(one) for one in scores], color=colour, linewidth=1.6, label=arm.name)
        for turn, one in zip(turns, scores, strict=True):
            axes.plot([turn] * len(one), one, "o", color=colour, markersize=3.5, alpha=0.5)
    axes.set_title("bits a character of the reply; dots: each seed", loc="left", fontsize=11)
    axes.set_xlabel("turn that is the reply")
    axes.legend(frameon=False, fontsize=8, title=title, title_fontsize=8)
    clean(axes)
    return figure
