"""conf/experiment/claims/wobert_speed.yaml: characters a second of a word model and of a character model."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.claims import Job, Report, grouped, spread
from lightning_modules.pictures import BLUE, GREY, ORANGE, clean

Kind = Literal["training", "inference"]
KINDS: tuple[Kind, ...] = ("training", "inference")
MODELS = {"word": "wobert", "character": "bert"}
SPECIAL_TOKENS = 2
# Texts that are shorter than the cut on average, by so much, deserve a word.
SHORT = 0.9


@dataclass(frozen=True)
class Cut:
    """What was measured on texts cut to one length.

    Attributes:
        characters: the length.
        trained, read: the jobs of each model ("word", "character"), in the same order of seeds.
    """

    characters: int
    trained: dict[str, list[Job]]
    read: dict[str, list[Job]]

    def characters_per_text(self, model: str) -> float:
        """Without white space."""
        facts = _facts(self.trained[model][0])
        return facts["num_characters"] / facts["num_rows"]

    def tokens_per_text(self, model: str) -> float:
        """Without [CLS] and [SEP]."""
        facts = _facts(self.trained[model][0])
        return facts["num_tokens"] / facts["num_rows"] - SPECIAL_TOKENS

    @property
    def tokens_ratio(self) -> float:
        """How many times fewer tokens a text has in words."""
        return self.tokens_per_text("character") / self.tokens_per_text("word")

    def tokens_per_second(self, model: str) -> list[float]:
        """In training, by seed, [CLS] and [SEP] included."""
        return [job.summary["throughput"]["tokens_per_second"] for job in self.trained[model]]

    def speeds(self, kind: Kind, model: str) -> list[float]:
        """Characters a second, by seed."""
        if kind == "training":
            facts = _facts(self.trained[model][0])
            characters_per_token = facts["num_characters"] / facts["num_tokens"]
            return [speed * characters_per_token for speed in self.tokens_per_second(model)]
        texts_per_second = [job.summary["throughput"]["examples_per_second"] for job in self.read[model]]
        return [speed * self.characters_per_text(model) for speed in texts_per_second]

    def speedups(self, kind: Kind) -> list[float]:
        """Characters a second of words over those of characters, by seed."""
        return [
            word / character
            for word, character in zip(self.speeds(kind, "word"), self.speeds(kind, "character"), strict=True)
        ]

    @property
    def cost_of_word(self) -> float:
        """How many times longer a token takes in training where it is a word."""
        return fmean(self.tokens_per_second("character")) / fmean(self.tokens_per_second("word"))


def report(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if the word model's speed over the character model's is above `thresholds["speedup"]` in training and in
    inference, at every length, for every seed.

    Training: tokens a second times the characters a token of the training texts. Inference: texts a second times the
    characters a text.
    """
    trained = grouped(steps["train"], "data.max_length", "model")
    read = {job.origin.directory: job for job in steps["read"]}
    cuts = []
    for length in dict.fromkeys(length for length, _ in trained):
        by_model = {name: trained[length, model] for name, model in MODELS.items()}
        reading = {name: [read[job.directory] for job in jobs] for name, jobs in by_model.items()}
        cuts.append(Cut(length - SPECIAL_TOKENS, by_model, reading))

    least = {kind: min((min(cut.speedups(kind)), cut.characters) for cut in cuts) for kind in KINDS}
    told = " and ".join(f"{ratio:.2f} in {kind} ({cut} characters)" for kind, (ratio, cut) in least.items())
    return Report(
        met=all(ratio > thresholds["speedup"] for ratio, _ in least.values()),
        because=f"the lowest ratio of words to characters, of all lengths and seeds, is {told}.",
        numbers=dict(number for cut in cuts for number in _numbers(cut)),
        header=[
            "cut at", "length", "tokens in words", "in characters", "ratio", "training in words", "in characters",
            "ratio", "inference in words", "in characters", "ratio",
        ],
        rows=[_row(cut) for cut in cuts],
        notes=_notes(cuts),
        figures={"by_length": _draw(cuts)},
    )  # fmt: skip


def _facts(job: Job) -> dict[str, Any]:
    return job.summary["data_facts"]["splits"]["train"]


def _numbers(cut: Cut) -> list[tuple[str, float]]:
    numbers = {"tokens_ratio": cut.tokens_ratio, "cost_of_word": cut.cost_of_word}
    for model in MODELS:
        numbers[f"tokens_per_text/{model}"] = cut.tokens_per_text(model)
        for kind in KINDS:
            numbers[f"{kind}/{model}"] = fmean(cut.speeds(kind, model))
    for kind in KINDS:
        numbers[f"{kind}/ratio"] = fmean(cut.speedups(kind))
        numbers[f"{kind}/least_ratio"] = min(cut.speedups(kind))
    return [(f"{name}/{cut.characters}", value) for name, value in numbers.items()]


def _row(cut: Cut) -> list[Any]:
    row = [cut.characters, f"{cut.characters_per_text('word'):.1f}"]
    row += [f"{cut.tokens_per_text(model):.1f}" for model in MODELS] + [f"{cut.tokens_ratio:.2f}"]
    for kind in KINDS:
        row += [f"{fmean(cut.speeds(kind, model)):,.0f}" for model in MODELS]
        row.append(spread(cut.speedups(kind), ".2f"))
    return row


def _notes(cuts: list[Cut]) -> str:
    shape = {name: jobs[0].summary["data_facts"]["vocab_size"] for name, jobs in cuts[0].trained.items()}
    costs = [cut.cost_of_word for cut in cuts]
    notes = (
        f"Length and tokens of a text without white space, [CLS] and [SEP]; speeds in characters a second. Means over "
        f"{len(cuts[0].trained['word'])} seeds, of the ratios ± the sample standard deviation. The vocabularies are those "
        f"of the training texts, {shape['word']:,} and {shape['character']:,} tokens: in training a word takes "
        f"{min(costs):.2f} to {max(costs):.2f} times as long as a character."
    )
    short = [cut for cut in cuts if cut.characters_per_text("word") < SHORT * cut.characters]
    if short:
        lengths = ", ".join(str(cut.characters) for cut in short)
        notes += f" Many texts are shorter than {lengths} characters, see `length`."
    return notes


def _draw(cuts: list[Cut]) -> Figure:
    figure = Figure(figsize=(9.2, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths = [cut.characters for cut in cuts]
    for kind, line in zip(KINDS, ("-", "--"), strict=True):
        for model, colour in zip(MODELS, (BLUE, ORANGE), strict=True):
            speeds = [cut.speeds(kind, model) for cut in cuts]
            _draw_seeds(left, lengths, speeds, color=colour, linestyle=line, label=f"{kind}, {model}s")
    left.set_ylim(bottom=0)
    left.set_title("characters a second", loc="left", fontsize=11)
    for kind, colour in zip(KINDS, (BLUE, ORANGE), strict=True):
        _draw_seeds(right, lengths, [cut.speedups(kind) for cut in cuts], color=colour, label=kind)
    ratios = [cut.tokens_ratio for cut in cuts]
    right.plot(lengths, ratios, color=GREY, linestyle=":", label="tokens: characters / words")
    right.axhline(1.0, color=GREY, linewidth=0.8)
    right.set_title("words / characters; dots: each seed", loc="left", fontsize=11)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, map(str, lengths))
        axes.set_xlabel("characters at which a text is cut")
        axes.legend(frameon=False, fontsize=8)
        clean(axes)
    return figure


def _draw_seeds(axes: Axes, lengths: list[int], values: list[list[float]], **look: Any) -> None:
    axes.plot(lengths, [fmean(one) for one in values], linewidth=1.6, **look)
    for length, one in zip(lengths, values, strict=True):
        axes.plot([length] * len(one), one, "o", color=look["color"], markersize=3.5, alpha=0.5)
