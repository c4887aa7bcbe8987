"""conf/experiment/claims/dialogpt_length.yaml: replies at positions beyond the length of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from launch.claims import Job, Report, grouped, spread
from launch.predict import load_for_prediction
from launch.reports.dialogpt import dialogues_of
from lightning_modules.pictures import BLUE, GREY, ORANGE, clean
from lightning_modules.replies import ReplyScores

POSITIONS, LENGTH = "model.backbone.positions", "data.max_length"
BEYOND = "val/beyond_bits_per_char"
# By position so many held-out dialogues are looked at: one that is more would change nothing in the picture.
DIALOGUES, AT_A_TIME = 2000, 128
COLOURS = {"rotary": BLUE, "absolute": ORANGE}


@dataclass(frozen=True)
class Placed:
    """The replies of a model by the positions of their tokens.

    Attributes:
        edges: positions at which a range starts, and the end of the last range.
        bits, characters: of each range.
    """

    edges: list[int]
    bits: list[float]
    characters: list[int]

    def bits_per_char(self, start: int, end: int) -> float:
        """From the edge `start` to the edge `end`; NaN where there is no character."""
        of = slice(self.edges.index(start), self.edges.index(end))
        characters = sum(self.characters[of])
        return sum(self.bits[of]) / characters if characters else float("nan")


@dataclass(frozen=True)
class Arm:
    """The models of one kind.

    Attributes:
        positions, length: of their training.
        placed: by seed.
    """

    positions: str
    length: int
    placed: list[Placed]

    @property
    def name(self) -> str:
        return f"{self.positions}, trained at {self.length}"

    def scores(self, start: int, end: int) -> list[float]:
        """Bits per character in a range of positions, by seed."""
        return [one.bits_per_char(start, end) for one in self.placed]


def report(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if, for each seed, rotary positions need at least the share `thresholds["gain"]` fewer bits per character
    beyond the training length than absolute ones."""
    trained = {positions: jobs for (positions,), jobs in grouped(steps["train"], POSITIONS).items()}
    [length] = {job.options[LENGTH] for job in steps["train"]}
    [longest] = {job.options[LENGTH] for job in steps["bound"]}
    asked = {job.origin.directory: job.summary["metrics"][BEYOND] for job in steps["beyond"]}
    rotary, absolute = ([asked[job.directory] for job in trained[name]] for name in COLOURS)
    gains = [1 - ours / theirs for ours, theirs in zip(rotary, absolute, strict=True)]

    dialogues = list(islice(dialogues_of(steps["bound"][0], "val"), DIALOGUES))
    edges = edges_of(length, longest)
    arms = [
        Arm(positions, of_length, [placed(job, dialogues, edges) for job in jobs])
        for positions, of_length, jobs in (
            *((name, length, trained[name]) for name in COLOURS),
            ("rotary", longest, steps["bound"]),
        )
    ]
    ours, _, bound = (fmean(arm.scores(length, longest)) for arm in arms)
    return Report(
        met=min(gains) >= thresholds["gain"],
        because=f"beyond {length} tokens rotary positions need {fmean(rotary):.3f} bits a character and absolute ones "
        f"{fmean(absolute):.3f}; the least gain of a seed is {100 * min(gains):.1f} %. Rotary positions that were "
        f"trained at {longest} tokens need {bound:.3f}: those trained at {length} are {100 * (ours / bound - 1):.1f} % "
        "worse.",
        numbers={"gain/least": min(gains), "gain/mean": fmean(gains), "worse_than_bound": ours / bound - 1}
        | {"beyond/rotary": fmean(rotary), "beyond/absolute": fmean(absolute)}
        | {f"{start}_to_{end}/{arm.name}": fmean(arm.scores(start, end)) for arm in arms
           for start, end in pairwise([0, length, longest])},
        header=["", f"bits a character up to {length} tokens", f"from {length} to {longest}"],
        rows=[[arm.name, spread(arm.scores(0, length)), spread(arm.scores(length, longest))] for arm in arms],
        notes=_notes(arms[0], dialogues, len(rotary), longest),
        figures={"by_position": _draw(arms)},
    )  # fmt: skip


def edges_of(length: int, longest: int) -> list[int]:
    """Positions between which bits are told apart, among them the training length."""
    edges = [0, length // 4, length // 2, length]
    while edges[-1] < longest:
        edges.append(min(edges[-1] * 3 // 2, longest))
    return edges


def placed(job: Job, dialogues: Sequence[tuple[str, ...]], edges: list[int]) -> Placed:
    """The replies of dialogues that are cut to the last of the edges, under the job's model."""
    model, inputs = load_for_prediction(str(job.directory / "export"), trusted="")
    model.eval()
    facts = model.hparams.facts
    ranges = [ReplyScores(facts["unk_id"], facts["train_characters"], edges[-1]) for _ in edges[1:]]
    for start in range(0, len(dialogues), AT_A_TIME):
        batch = inputs.encode(list(dialogues[start : start + AT_A_TIME]), "first_turns", edges[-1])
        written = model.written(batch)
        ids, at = written.batch.input_ids, written.replies.nonzero().squeeze(1)
        with torch.inference_mode():
            states = model.network(written.batch, written.role_ids)[at - 1]
            losses = F.cross_entropy(
                model.network.vocabulary_logits(states).float(), ids[at], reduction="none"
            )
        positions = written.batch.position_ids[at]
        counts, turns = written.batch.char_counts[at], written.turns[at] + 1
        for scores, (first, end) in zip(ranges, pairwise(edges), strict=True):
            of = (positions >= first) & (positions < end)
            scores.update(losses[of], ids[at][of], counts[of], turns[of], positions[of])
    return Placed(
        edges,
        bits=[scores.bits.sum().item() for scores in ranges],
        characters=[int(scores.characters.sum()) for scores in ranges],
    )


def _notes(arm: Arm, dialogues: Sequence[tuple[str, ...]], seeds: int, longest: int) -> str:
    one = arm.placed[0]
    beyond = sum(one.characters[one.edges.index(arm.length) :])
    return (
        f"Replies, the last turns, of {len(dialogues):,} held-out dialogues of up to {longest} tokens: {beyond:,} of their "
        f"{sum(one.characters):,} characters lie beyond {arm.length} tokens. Means of {seeds} seeds ± the sample standard "
        "deviation. All have been trained for as many steps of as many tokens; in the picture a dot is a seed, and the "
        "dotted line the length of the training."
    )


def _draw(arms: list[Arm]) -> Figure:
    figure = Figure(figsize=(6.8, 3.8), layout="constrained")
    axes = figure.subplots()
    ranges = list(pairwise(arms[0].placed[0].edges))
    middles = [(start + end) / 2 for start, end in ranges]
    for arm in arms:
        bound = arm is arms[-1]
        colour = GREY if bound else COLOURS[arm.positions]
        scores = [arm.scores(*one) for one in ranges]
        line = "--" if bound else "-"
        axes.plot(
            middles, list(map(fmean, scores)), color=colour, linestyle=line, linewidth=1.6, label=arm.name
        )
        for middle, one in zip(middles, scores, strict=True):
            axes.plot([middle] * len(one), one, "o", color=colour, markersize=3.5, alpha=0.5)
    axes.axvline(arms[0].length, color=GREY, linestyle=":", linewidth=1)
    axes.set_xticks(arms[0].placed[0].edges)
    axes.set_title("bits a character of replies, by the place of the token", loc="left", fontsize=11)
    axes.set_xlabel("place in the dialogue (tokens)")
    axes.legend(frameon=False, fontsize=8)
    clean(axes)
    return figure
