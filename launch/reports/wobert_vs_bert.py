"""conf/experiment/claims/wobert_vs_bert.yaml: a word model and a character model, pretrained alike, as classifiers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.naive_bayes import MultinomialNB

from launch.claims import Job, Report, grouped, spread
from lightning_modules.pictures import BLUE, GREY, ORANGE, clean

UNITS = {"words": "word", "characters": "char"}
CONFIGURATION = ("model.optimizer.lr", "max_epochs")
SCORES = ("test/accuracy", "test/macro_f1")
SPECIAL_TOKENS = 2
SMOOTHING = 0.1  # 1, the library's default, is 4 points worse


@dataclass(frozen=True)
class Arm:
    """The runs of one way to a classifier.

    Attributes:
        name: as the table has it.
        jobs: of the chosen configuration, by seed; configuration: its options.
        tried: how many configurations there were.
    """

    name: str
    jobs: list[Job]
    configuration: str
    tried: int

    @classmethod
    def of(cls, name: str, jobs: list[Job]) -> Arm:
        """The configuration with the best mean accuracy on the rows that were kept from training."""
        options = [option for option in CONFIGURATION if option in jobs[0].options]
        by_options = grouped(jobs, *options)
        best = max(by_options, key=lambda values: _mean(by_options[values], "val/accuracy"))
        chosen = ", ".join(f"{o.rpartition('.')[2]} {v}" for o, v in zip(options, best, strict=True))
        return cls(name, by_options[best], chosen, len(by_options))

    def scores(self, name: str) -> list[float]:
        return [job.summary["metrics"][name] for job in self.jobs]

    @property
    def tokens_per_text(self) -> float:
        facts = self.jobs[0].summary["data_facts"]["splits"]["train"]
        return facts["num_tokens"] / facts["num_rows"] - SPECIAL_TOKENS

    @property
    def texts_per_second(self) -> float:
        """In training."""
        return fmean(job.summary["throughput"]["examples_per_second"] for job in self.jobs)


def report(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if the accuracy of the word model minus that of the character model, means over the seeds, is at least
    `thresholds["gain"]`."""
    arms = {}
    for unit, tokenizer in UNITS.items():
        for step, name in (("finetune", f"{unit}, pretrained"), ("scratch", f"{unit}, from scratch")):
            arms[name] = Arm.of(name, grouped(steps[step], "tokenizer")[tokenizer,])
    words, characters = (fmean(arms[f"{unit}, pretrained"].scores("test/accuracy")) for unit in UNITS)
    files = arms["words, pretrained"].jobs[0].summary["data_facts"]["files"]
    baseline = naive_bayes(files["train"], files["test"])
    rows = [_row(arm) for arm in arms.values()]
    rows.append(["naive Bayes, character bigrams", "", *(f"{value:.3f}" for value in baseline), "", ""])
    return Report(
        met=words - characters >= thresholds["gain"],
        because=f"accuracy is {words:.3f} in words and {characters:.3f} in characters.",
        numbers={
            f"{score}/{name}": fmean(arm.scores(score)) for name, arm in arms.items() for score in SCORES
        }
        | dict(zip((f"{score}/naive_bayes" for score in SCORES), baseline, strict=True)),
        header=["", "chosen", "accuracy", "macro-F1", "tokens a text", "texts a second in training"],
        rows=rows,
        notes=_notes({job.options["tokenizer"]: job for job in steps["pretrain"]}, arms),
        figures={"accuracy": _draw(list(arms.values()), baseline[0])},
    )


def naive_bayes(train: list[str], test: list[str]) -> tuple[float, float]:
    """Accuracy and macro-F1 of a multinomial naive Bayes on counts of characters and their bigrams, to which SMOOTHING is
    added."""
    (texts, labels), (unseen, truth) = _read(train), _read(test)
    counter = CountVectorizer(analyzer="char", ngram_range=(1, 2))
    model = MultinomialNB(alpha=SMOOTHING).fit(counter.fit_transform(texts), labels)
    predicted = model.predict(counter.transform(unseen))
    return accuracy_score(truth, predicted), f1_score(truth, predicted, average="macro")


def _read(files: list[str]) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    records = []
    for file in files:
        with Path(file).open(encoding="utf-8-sig") as lines:
            records += map(json.loads, lines)
    return [record["sentence"] for record in records], [str(record["label"]) for record in records]


def _mean(jobs: list[Job], metric: str) -> float:
    return fmean(job.summary["metrics"][metric] for job in jobs)


def _row(arm: Arm) -> list[Any]:
    scores = [spread(arm.scores(name)) for name in SCORES]
    chosen = f"{arm.configuration} (of {arm.tried})"
    return [arm.name, chosen, *scores, f"{arm.tokens_per_text:.1f}", f"{arm.texts_per_second:,.0f}"]


def _notes(pretrained: dict[str, Job], arms: dict[str, Arm]) -> str:
    told = []
    for unit, tokenizer in UNITS.items():
        summary = pretrained[tokenizer].summary
        rows = summary["data_facts"]["splits"]["train"]["num_rows"]
        speed = summary["throughput"]["examples_per_second"]
        bits = summary["metrics"]["val/bits_per_char"]
        told.append(
            f"in {unit} {speed:,.0f} of {rows:,} texts a second, {bits:.2f} bits a character on the dev titles"
        )
    left_out = summary["data_facts"]["splits"]["train"]["left_out"].get("rows of the evaluation files", 0)
    return (
        f"Pretraining: {'; '.join(told)}; {left_out:,} texts stand in the dev split and were left out. Configurations are "
        f"chosen by the mean accuracy on a tenth of the training rows, scores are of the dev split, means of "
        f"{len(next(iter(arms.values())).jobs)} seeds ± the sample standard deviation; naive Bayes has all training rows."
    )


def _draw(arms: list[Arm], baseline: float) -> Figure:
    figure = Figure(figsize=(6.8, 3.0), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        colour = BLUE if arm.name.startswith("words") else ORANGE
        accuracies = arm.scores("test/accuracy")
        axes.barh(
            place,
            fmean(accuracies),
            color=colour,
            height=0.6,
            alpha=1.0 if "pretrained" in arm.name else 0.45,
        )
        axes.plot(accuracies, [place] * len(accuracies), "o", color="black", markersize=3)
    axes.axvline(baseline, color=GREY, linestyle=":")
    axes.annotate("naive Bayes", (baseline, -0.6), (3, 0), textcoords="offset points", fontsize=8, color=GREY)
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.9)
    axes.set_xlabel("accuracy on the TNEWS dev split; dots: each seed")
    clean(axes)
    return figure
