"""claims/imbalance_digits and claims/imbalance_iflytek: what their reports make of jobs."""

import json
from pathlib import Path

import pytest

from datamodules.atomic import write_whole
from launch.claims import Job
from launch.reports import imbalance

METRICS = tuple(imbalance.TITLES)


def ended(directory: Path, options: dict, scores: list[dict]) -> list[Job]:
    """A job for each seed; `scores` has what is not 0.5."""
    jobs = []
    for seed, own in enumerate(scores):
        place = directory / str(seed)
        place.mkdir(parents=True)
        told = {
            "status": "finished",
            "metrics": {f"test/{name}": own.get(name, 0.5) for name in METRICS},
            "data_facts": {
                "splits": {"test": {"num_rows": 1450, "left_out": {"unknown label": 4}}},
                "trained_on": {"class_counts": [2, 100, 50]},
            },
        }
        write_whole(place / "summary.json", json.dumps(told))
        write_whole(place / "config.yaml", "model:\n  many_shot: 60\n  few_shot: 5\n")
        jobs.append(Job(place, {**options, "seed": seed, "~callbacks.best": None}))
    return jobs


@pytest.fixture
def steps_with(tmp_path):
    def made(plain: list[dict], adjusted: list[dict]) -> dict[str, list[Job]]:
        loss, tau = "model/loss", "model.loss.tau"
        balanced = {loss: "cross_entropy", "data.sampler": "balanced"}
        return {
            "losses": ended(tmp_path / "losses", {loss: "cross_entropy"}, plain),
            "sampler": ended(tmp_path / "sampler", balanced, [{}, {}]),
            "adjusted": ended(tmp_path / "one", {loss: "logit_adjustment", tau: 1}, adjusted)
            + ended(tmp_path / "two", {loss: "logit_adjustment", tau: 2}, [{}, {}]),
        }

    return made


@pytest.mark.parametrize("gain, met", [(0.05, True), (0.03, False)])
def test_digits_compares_the_means_of_the_seeds(gain, met, steps_with):
    plain = [{"balanced_accuracy": 0.80}, {"balanced_accuracy": 0.84}]
    # One seed gains nothing: it is the mean that counts.
    adjusted = [{"balanced_accuracy": 0.80}, {"balanced_accuracy": 0.84 + 2 * gain}]
    found = imbalance.digits(steps_with(plain, adjusted), {"gain": 0.04})
    assert found.met is met
    assert f"{0.82 + gain:.4f} with logit adjustment and 0.8200 with cross-entropy" in found.because
    assert f"{100 * gain:+.2f} points" in found.because
    assert found.numbers["balanced_accuracy/cross entropy"] == pytest.approx(0.82)


def test_every_loss_with_its_options_is_a_row(steps_with):
    found = imbalance.digits(steps_with([{"macro_f1": 0.25}, {"macro_f1": 0.75}], [{}, {}]), {"gain": 0.04})
    names = [row[0] for row in found.rows]
    assert names == [
        "cross entropy",
        "cross entropy, sampler balanced",
        "logit adjustment, tau 1",
        "logit adjustment, tau 2",
    ]
    assert found.rows[0][found.header.index("macro-F1")] == "0.500 ± 0.354"
    assert all(len(row) == len(found.header) for row in found.rows)
    drawn = [axes.get_title(loc="left") for axes in found.figures["by_loss"].axes]
    assert drawn == ["balanced accuracy", "few-shot accuracy"]


@pytest.mark.parametrize(
    "plain, adjusted, met",
    [
        ([{}, {}], [{"macro_f1": 0.6, "few_shot_accuracy": 0.7}] * 2, True),
        ([{}, {}], [{"macro_f1": 0.6, "few_shot_accuracy": 0.5}] * 2, False),
        (
            [{}, {"macro_f1": 0.7}],
            [{"macro_f1": 0.9, "few_shot_accuracy": 0.6}, {"macro_f1": 0.6, "few_shot_accuracy": 0.6}],
            False,
        ),
    ],
    ids=["both scores", "macro-F1 alone", "one seed is worse"],
)
def test_iflytek_asks_for_a_gain_of_every_seed(plain, adjusted, met, steps_with):
    found = imbalance.iflytek(steps_with(plain, adjusted), {"gain": 0.0})
    assert found.met is met
    assert len(found.figures["by_loss"].axes) == 4


def test_the_least_gain_is_told(steps_with):
    plain = [{"macro_f1": 0.5}, {"macro_f1": 0.7}]
    adjusted = [{"macro_f1": 0.9, "few_shot_accuracy": 0.6}, {"macro_f1": 0.6, "few_shot_accuracy": 0.8}]
    found = imbalance.iflytek(steps_with(plain, adjusted), {"gain": 0.0})
    assert "-10.00 points of macro-F1 and +10.00 points of few-shot accuracy" in found.because


def test_the_notes_tell_the_groups_of_classes(steps_with):
    notes = imbalance.digits(steps_with([{}, {}], [{}, {}]), {"gain": 0.04}).notes
    for part in (
        "1,450 test rows (4 more",
        "2 seeds",
        "152 rows of 3 classes, 100 of the most frequent and 2 of the rarest",
        "more than 60 training rows, with fewer than 5, and those between: 1, 1 and 1 classes",
    ):
        assert part in notes
