"""A character model that gets words: new rows as means of their characters against random ones.

    python benchmarks/expand_vocabulary.py runs/bert/1 runs/bert/2 runs/bert/3 --words 20000 --steps 400 \\
        --picture docs/images/expand_vocabulary.png

Each RUN is a finished run of model=bert; its corpus, seed and size of batches are taken. Its vocabulary is expanded as
`model.expand_vocabulary=` does, once with each kind of rows, and the network is validated before its first step
and as it trains on. All see the same hidden words, the character model itself too. With --steps 0 nothing is trained.
"""

from __future__ import annotations

import argparse
import logging
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytorch_lightning as pl
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from datamodules.build import build
from datamodules.corpus import DataError
from datamodules.text import TextDataModule
from datamodules.tokenizers.base import Tokenizer
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.word import WordTokenizer
from launch.run_dir import quieten
from lightning_modules.pictures import BLUE, GREY, ORANGE, clean, save
from lightning_modules.wobert import WoBERT

ENCODER = {"_target_": "lightning_modules.networks.text_encoder.TextEncoder"}
ROWS = {"mean": BLUE, "random": ORANGE}
COLUMNS = {
    "loss": "val/loss",
    "bits/char": "val/bits_per_char",
    "masked accuracy": "val/masked_accuracy",
}

Scores = dict[str, float]
Curve = list[tuple[int, Scores]]  # (optimiser steps, validation scores)


class Validations(pl.Callback):
    """Keeps the scores of every validation."""

    def __init__(self) -> None:
        self.curve: Curve = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.curve.append((trainer.global_step, scores))


def corpus(run: Path, tokenizer: Tokenizer) -> tuple[TextDataModule, int]:
    """The corpus that a run was trained on, in another tokenizer's tokens, and the run's seed."""
    config = OmegaConf.load(run / "config.yaml")
    return build({**OmegaConf.to_container(config.data), "tokenizer": tokenizer}), config.seed


def trained(model: WoBERT, data: TextDataModule, steps: int, every: int) -> Curve:
    """Validate, train `steps` steps, and validate at every `every`th of them."""
    validations, accumulate = Validations(), data.accumulate_grad_batches(world_size=1)
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=max(steps, 1),
        max_epochs=-1,
        gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate,
        val_check_interval=every * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,  # the scores are added to in both modes
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[validations],
    )
    trainer.validate(model, data, verbose=False)
    if steps:
        trainer.fit(model, data)
    return validations.curve


def measure(run: Path, options: argparse.Namespace) -> dict[str, Curve]:
    """What the character model scores, and its two expansions."""
    data, seed = corpus(run, CharTokenizer(init_from=str(run)))
    curves = {"characters": trained(WoBERT(ENCODER, init_from=str(run), seed=seed), data, 0, 1)}
    tokenizer = WordTokenizer(init_from=str(run), words=options.source, add_words=options.words)
    for new_rows in ROWS:
        data, seed = corpus(run, tokenizer)
        pl.seed_everything(seed, verbose=False)
        model = WoBERT(
            ENCODER,
            optimizer={"_target_": "torch.optim.AdamW", "lr": options.lr, "weight_decay": 0.01},
            init_from=str(run),
            expand_vocabulary=options.words,
            new_rows=new_rows,
            seed=seed,
        )
        curves[new_rows] = trained(model, data, options.steps, options.every)
    return curves


def table(results: list[dict[str, Curve]], steps: int) -> str:
    """A line for each network and moment: mean over the runs and the greatest deviation from it."""
    lines = [f"| start | step | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 2)]
    for name, place in _moments(steps):
        last = [result[name][place] for result in results]
        cells = [_spread([scores[key] for _, scores in last]) for key in COLUMNS.values()]
        lines.append(f"| {name} | {last[0][0]} | {' | '.join(cells)} |")
    baseline = [result["mean"][0][1] for result in results]
    keys = ("baseline/unigram_loss", "baseline/unigram_bits_per_char", "baseline/most_frequent_share")
    cells = [_spread([scores[key] for scores in baseline]) for key in keys]
    return "\n".join([*lines, f"| unigram model of the words | | {' | '.join(cells)} |"])


def _moments(steps: int) -> Iterator[tuple[str, int]]:
    yield "characters", 0
    for place in (0, -1) if steps else (0,):
        for name in ROWS:
            yield name, place


def _spread(values: list[float]) -> str:
    middle = mean(values)
    return f"{middle:.3f} ± {max(abs(value - middle) for value in values):.3f}"


def plot(results: list[dict[str, Curve]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, result in enumerate(results):
        for name, colour in ROWS.items():
            steps, scores = zip(*result[name], strict=True)
            values = [score[COLUMNS["bits/char"]] for score in scores]
            label = f"{name} rows" if number == 0 else None
            axes.plot(steps, values, color=colour, marker="o", markersize=2.5, label=label)
    unigram = mean(result["mean"][0][1]["baseline/unigram_bits_per_char"] for result in results)
    axes.axhline(unigram, color=GREY, linestyle="--", linewidth=1, label="unigram model")
    axes.set_xlabel("optimiser steps after the expansion")
    axes.set_ylabel("bits per character of hidden words")
    axes.legend(frameon=False)
    clean(axes)
    save(figure, path)


def main(arguments: list[str] | None = None) -> list[dict[str, Curve]]:
    """Measure, print and draw; returns the curves of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="finished runs of model=bert, one for each seed")
    add("--words", type=int, default=20000, metavar="N", help="words to add; default: 20000")
    add("--source", default="jieba", help="where they come from, as tokenizer.words; default: jieba")
    add("--steps", type=int, default=0, metavar="N", help="optimiser steps afterwards; default: 0")
    add("--every", type=int, default=50, metavar="N", help="steps between two validations; default: 50")
    add("--lr", type=float, default=2e-4, help="constant learning rate of these steps; default: 2e-4")
    add("--picture", type=Path, metavar="FILE", help="draw the curves")
    options = parser.parse_args(arguments)
    quieten()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    results = []
    for run in options.runs:
        results.append(measure(run, options))
        for name, curve in results[-1].items():
            points = ", ".join(
                f"{step}: {scores[COLUMNS['bits/char']]:.3f} ({scores[COLUMNS['loss']]:.3f})"
                for step, scores in curve
            )
            print(f"{run} {name:10} bits/char (loss) by step {points}", flush=True)
    print(f"\n{table(results, options.steps)}")
    if options.picture is not None:
        plot(results, options.picture)
    return results


if __name__ == "__main__":
    try:
        main()
    except (DataError, ValueError) as error:
        sys.exit(str(error))
