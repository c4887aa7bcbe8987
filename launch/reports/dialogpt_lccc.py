"""conf/experiment/claims/dialogpt_lccc.yaml: a dialogue model beside n-grams of characters, and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from datamodules.encoding import keep_turns
from launch.claims import Job, Report
from launch.csv_logger import read_metrics
from launch.reports.dialogpt import BITS, BITS_AT_TURN, PERPLEXITY, dialogues_of
from launch.reports.kneser_ney import KneserNey, symbols_of
from lightning_modules.pictures import BLUE, GREY, ORANGE, clean
from lightning_modules.replies import SampleReply, as_markdown

# By the order of n: the one of the criterion, and the next, which knows more of a turn.
NAMES = {2: "Kneser-Ney bigrams", 3: "Kneser-Ney trigrams"}
GENERATED = {
    "dist_1": "Dist-1",
    "dist_2": "Dist-2",
    "bleu_2": "BLEU-2",
    "bleu_4": "BLEU-4",
    "repetition_rate": "repetition rate",
}
SAMPLES = 20


def report(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if the model needs at least the share `thresholds["gain"]` fewer bits per character for the held-out replies
    than bigrams that have counted all turns of the training dialogues."""
    [job] = steps["train"]
    metrics = job.summary["metrics"]
    said, replies = _texts(job)
    models = {order: KneserNey(said, order) for order in NAMES}
    baselines = {NAMES[order]: model.bits_per_char(replies) for order, model in models.items()}
    gain = 1 - metrics[BITS] / baselines[NAMES[2]]
    return Report(
        met=gain >= thresholds["gain"],
        because=f"the model needs {metrics[BITS]:.3f} bits a character and the bigrams {baselines[NAMES[2]]:.3f}, "
        f"{-100 * gain:+.1f} % (the trigrams {baselines[NAMES[3]]:.3f}).",
        numbers={"gain": gain, "bits/model": metrics[BITS], "perplexity/model": metrics[PERPLEXITY]}
        | {f"bits/{name}": value for name, value in baselines.items()}
        | {name: metrics[f"val/{name}"] for name in GENERATED},
        header=["", "held-out replies"],
        rows=[
            ["all characters as probable, bits a character", f"{uniform(models[2], replies):.3f}"],
            *([f"{name}, bits a character", f"{value:.3f}"] for name, value in baselines.items()),
            ["dialogue model, bits a character", f"{metrics[BITS]:.3f}"],
            *(
                [f"at turn {turn}", f"{metrics[metric]:.3f}"]
                for turn, metric in BITS_AT_TURN.items()
                if metric in metrics
            ),
            ["perplexity of a token", f"{metrics[PERPLEXITY]:.2f}"],
            *(
                [f"{title} of its own replies", f"{metrics[f'val/{name}']:.3f}"]
                for name, title in GENERATED.items()
            ),
        ],
        notes=_notes(job, said, replies),
        figures={"learning": _draw(job, baselines)},
    )


def uniform(model: KneserNey, replies: Sequence[str]) -> float:
    """Bits per character where all symbols that the model knows are equally probable."""
    bits, characters = 0.0, 0
    for reply in replies:
        symbols, count = symbols_of(reply)
        unknown = sum(symbol not in model.vocabulary for symbol in symbols)
        bits += (len(symbols) + 1) * math.log2(len(model.vocabulary)) + unknown * model.bits_per_unknown
        characters += count
    return bits / characters


def _texts(job: Job) -> tuple[list[str], list[str]]:
    """All turns of the training dialogues, and the replies that the job is scored on: the last turns of held-out
    dialogues, as far as these are not cut."""
    data = OmegaConf.load(job.directory / "config.yaml").data
    said = [turn for turns in dialogues_of(job, "train") for turn in turns]
    kept = (keep_turns(turns, data.max_length, data.keep == "last") for turns in dialogues_of(job, "val"))
    return said, [turns[-1] for turns in kept]


def _samples(job: Job) -> list[SampleReply]:
    """The job's replies to the first held-out dialogues, under its last weights."""
    lines = (job.directory / "replies" / "val.jsonl").read_text(encoding="utf-8").splitlines()
    return list(map(json.loads, lines))


def _notes(job: Job, said: Sequence[str], replies: Sequence[str]) -> str:
    summary, samples = job.summary, _samples(job)
    splits = summary["data_facts"]["splits"]
    config = OmegaConf.load(job.directory / "config.yaml")
    decoding = config.model.decoding
    steps = max((row["step"] for row in read_metrics(job.directory / "metrics.csv")), default=0)
    return "\n\n".join(
        [
            f"Trained on {splits['train']['num_rows']:,} dialogues of {len(said):,} turns for {summary['wall_seconds'] / 60:.0f} "
            f"minutes, validations included ({steps:,} steps of {config.data.tokens_per_batch:,} tokens); scored on the last "
            f"turns of {len(replies):,} held-out ones. Bits a character include what closes a reply, also those of the "
            "n-grams, which see nothing of what a reply answers; characters that were never seen cost all of them a "
            f"uniform code over those that were. The model's own replies to the first {len(samples)} of the held-out "
            f"dialogues are drawn from the {decoding.top_k} most probable tokens at temperature {decoding.temperature:g}, "
            f"at most {decoding.max_length} tokens; the first {min(SAMPLES, len(samples))}, unpicked:",
            as_markdown(samples, SAMPLES),
        ]
    )


def _draw(job: Job, baselines: dict[str, float]) -> Figure:
    figure = Figure(figsize=(6.8, 3.6), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in read_metrics(job.directory / "metrics.csv") if BITS in row]
    axes.plot([row["step"] for row in rows], [row[BITS] for row in rows], "o-", color=BLUE, markersize=4)
    for (name, bits), colour in zip(baselines.items(), (ORANGE, GREY), strict=True):
        axes.axhline(bits, color=colour, linestyle="--", linewidth=1.2)
        axes.annotate(
            name, (1, bits), (0, 4), xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="right",
            fontsize=8, color=colour,
        )  # fmt: skip
    axes.set_title("bits a character of held-out replies, which choose nothing", loc="left", fontsize=11)
    axes.set_xlabel("step")
    clean(axes)
    return figure
