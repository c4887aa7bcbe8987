"""claims/weissi: what its report makes of jobs."""

import json
from pathlib import Path

import pytest
import torch

from datamodules.atomic import write_whole
from datamodules.build import TECHNIQUE
from launch.claims import Job
from launch.reports import weissi
from lightning_modules.classifier import Classifier

THRESHOLDS = {"difference": 1e-6, "gain": 0.0}


def export(directory: Path, bias: bool = False) -> None:
    """Of a network of three layers."""
    torch.manual_seed(0)
    model = Classifier(
        backbone={"_target_": "lightning_modules.networks.mlp.MLP", "hidden_sizes": [8, 8], "bias": bias},
        loss={"_target_": "lightning_modules.losses.cross_entropy.CrossEntropy"},
        optimizer={"_target_": "torch.optim.SGD", "lr": 0.1},
        facts={
            "shape": [1, 2, 2],
            "label_names": ["0", "1", "2"],
            "class_counts": [5, 5, 5],
            "num_train_rows": 15,
            "multi_label": False,
            "sampler": None,
        },
    )
    model.configure_model()
    directory.mkdir(parents=True)
    model.export(directory)
    target = {"_target_": "lightning_modules.classifier.Classifier"}
    write_whole(directory / TECHNIQUE, json.dumps(target | model.exported_options()))


def ended(directory: Path, options: dict, scores: list[dict], bias: bool = False) -> list[Job]:
    """A job for each seed; `scores` has what is not 0.5."""
    jobs = []
    for seed, own in enumerate(scores):
        place = directory / str(seed)
        export(place / "export", bias)
        names = ("val/accuracy", "val/loss", "test/accuracy", "test/loss")
        metrics = {name: own.get(name.replace("/", "_"), 0.5) for name in names}
        write_whole(place / "summary.json", json.dumps({"status": "finished", "metrics": metrics}))
        jobs.append(Job(place, {**options, "seed": seed}))
    return jobs


@pytest.fixture
def steps_with(tmp_path):
    def made(bias: bool = False, **levels: dict[float, list[dict]]) -> dict[str, list[Job]]:
        """`levels`: of l2 and weissi, the scores of each seed by strength."""
        steps = {"none": ended(tmp_path / "none", {}, [{}, {}], bias)}
        for name, by_strength in levels.items():
            option = weissi.STRENGTHS[name]
            steps[name] = [
                job
                for strength, scores in by_strength.items()
                for job in ended(tmp_path / name / str(strength), {option: strength}, scores)
            ]
        return steps

    return made


def test_rescaling_changes_neither_outputs_nor_weissi_but_l2(steps_with):
    found = weissi.rescale(steps_with()["none"][0])
    assert found.outputs < 1e-12
    assert found.weissi < 1e-8  # its epsilon counts beside the small weights of a new head
    assert found.l2 > 0.1


def test_a_network_with_biases_is_not_invariant_and_the_claim_is_missed(steps_with):
    steps = steps_with(bias=True, l2={0.1: [{}, {}]}, weissi={0.1: [{}, {}]})
    found = weissi.report(steps, THRESHOLDS)
    assert found.numbers["rescaled/outputs"] > 1e-3
    assert found.numbers["gain"] == 0 and not found.met


@pytest.mark.parametrize("test_accuracy, met", [(0.75, True), (0.625, True), (0.5, False)])
def test_weissi_may_not_be_worse_than_l2(test_accuracy, met, steps_with):
    l2 = [{"test_accuracy": 0.5}, {"test_accuracy": 0.75}]
    # One seed is worse: it is the mean that counts.
    own = [{"test_accuracy": 0.25}, {"test_accuracy": 2 * test_accuracy - 0.25}]
    found = weissi.report(steps_with(l2={0.1: l2}, weissi={0.3: own}), THRESHOLDS)
    assert found.met is met
    assert f"{test_accuracy:.3f} with WEISSI (lambda1 0.3) and 0.625 with L2 (weight 0.1)" in found.because
    assert f"{100 * (test_accuracy - 0.625):+.2f} points" in found.because


def test_strengths_are_chosen_by_validation_and_not_by_test(steps_with):
    levels = {
        0.01: [{"test_accuracy": 0.9}, {"test_accuracy": 0.9}],
        0.1: [{"val_accuracy": 0.4, "test_accuracy": 0.8}, {"val_accuracy": 0.8, "test_accuracy": 0.8}],
    }
    found = weissi.report(steps_with(l2=levels, weissi=levels), THRESHOLDS)
    assert found.numbers["accuracy/l2"] == found.numbers["accuracy/weissi"] == pytest.approx(0.8)
    assert [row[1] for row in found.rows] == ["", 0.01, "0.1, chosen", 0.01, "0.1, chosen"]


def test_of_equal_accuracies_the_lower_validation_loss_is_chosen(steps_with):
    levels = {0.01: [{}, {}], 0.1: [{"val_loss": 0.3}, {"val_loss": 0.4}], 0.3: [{"val_loss": 0.45}, {}]}
    found = weissi.report(steps_with(l2=levels, weissi={0.2: [{}, {}]}), THRESHOLDS)
    assert [row[1] for row in found.rows if row[0] == "L2"] == [0.01, "0.1, chosen", 0.3]


def test_every_strength_is_a_row_and_is_drawn(steps_with):
    levels = {0.01: [{"test_accuracy": 0.25}, {"test_accuracy": 0.75}], 0.1: [{}, {}]}
    found = weissi.report(steps_with(l2=levels, weissi=levels), THRESHOLDS)
    assert [row[0] for row in found.rows] == ["none", "L2", "L2", "WEISSI", "WEISSI"]
    assert found.rows[1][found.header.index("test accuracy")] == "0.500 ± 0.354"
    assert all(len(row) == len(found.header) for row in found.rows)
    [axes] = found.figures["accuracy"].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["L2", "WEISSI", "neither"]
