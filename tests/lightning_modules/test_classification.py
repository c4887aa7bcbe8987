"""A classifier's scores are those of the written formulas, on any order, cut and number of ranks."""

import csv
import json
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.multiprocessing
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from datamodules.corpus import DataError
from lightning_modules.classification import (
    EvaluatedRows,
    Scores,
    multi_label_scores,
    single_label_scores,
    write_class_table,
)

C = 6
COUNTS = [500, 101, 100, 20, 19, 0]
# Which of the rows each of two ranks evaluates, batch by batch.
DEALS = {
    "even": [[[4, 0], [1]], [[2], [3, 5]]],
    "uneven": [[[3]], [[0, 5, 1], [4, 2]]],
    "one rank without rows": [[], [[5, 3, 1, 0], [2, 4]]],
    "one row": [[[0]], []],
    "no row": [[], []],
}


def probabilities(n: int, seed: int = 0, classes: int = C) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, classes, generator=generator)).softmax(1)


def draw(n: int, seed: int = 0, classes: int = C) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed + 1))


def one_hot(classes) -> Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(classes), C).float()


def calibration_error(confidence: np.ndarray, outcome: np.ndarray, bins: int = 15) -> float:
    """The written formula, row by row."""
    inside = [[] for _ in range(bins)]
    for p, came_true in zip(confidence, outcome, strict=True):
        inside[min(int(p * bins), bins - 1)].append((p, came_true))
    parts = [np.array(rows, dtype=float) for rows in inside if rows]
    return sum(len(rows) * abs(rows[:, 0].mean() - rows[:, 1].mean()) for rows in parts) / len(confidence)


SINGLE = {
    "random": (probabilities(300), draw(300)),
    "a class that is never predicted": (one_hot([0, 1, 2, 3, 4, 0]), torch.tensor([0, 1, 2, 3, 4, 5])),
    "classes without rows": (probabilities(50), draw(50, classes=3)),
    "only predicted classes without rows": (one_hot([4, 5, 5]), torch.tensor([0, 1, 1])),
    "one row": (probabilities(1), torch.tensor([3])),
    "all of one class": (probabilities(20), torch.full((20,), 2)),
    "all right": (one_hot(range(C)), torch.arange(C)),
}


@pytest.mark.parametrize("case", SINGLE)
def test_single_label_scores_are_those_of_scikit_learn(case):
    given, labels = SINGLE[case]
    scores, predicted = single_label_scores(given, labels, COUNTS), given.argmax(1)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "macro_f1": sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "calibration_error": calibration_error(given.max(1).values.double().numpy(), predicted == labels),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn speaks of predicted classes without rows
        expected["balanced_accuracy"] = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert {name: scores.metrics[name] for name in expected} == pytest.approx(expected)
    precision, recall, f1, rows = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(C), zero_division=np.nan
    )
    np.testing.assert_allclose(scores.precision, precision)
    np.testing.assert_allclose(scores.recall, recall)
    np.testing.assert_allclose(scores.f1, f1)
    np.testing.assert_array_equal(scores.rows, rows)
    np.testing.assert_array_equal(scores.train_rows, COUNTS)
    confusion = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(C))
    np.testing.assert_array_equal(scores.confusion, confusion)
    np.testing.assert_array_equal(scores.predicted, confusion.sum(0))


MULTI = {
    "random": (torch.rand(200, C, generator=torch.Generator().manual_seed(0)), probabilities(200, 1) > 0.2),
    "a class that is never predicted": (torch.tensor([[0.9, 0.1, 0.2, 0.9, 0.6, 0.4]]), one_hot([5]).bool()),
    "no positives, some predicted": (probabilities(9) * 2, torch.zeros(9, C, dtype=torch.bool)),
    "all right": (one_hot([3, 3, 1]), one_hot([3, 3, 1]).bool()),
}


@pytest.mark.parametrize("case", MULTI)
def test_multi_label_scores_are_those_of_scikit_learn(case):
    given, labels = MULTI[case]
    given = given.clamp(max=1)
    scores, predicted = multi_label_scores(given, labels, COUNTS), given > 0.5
    precision, recall, f1, rows = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, zero_division=np.nan
    )
    np.testing.assert_allclose(scores.precision, precision)
    np.testing.assert_allclose(scores.recall, recall)
    np.testing.assert_allclose(scores.f1, f1)
    np.testing.assert_array_equal(scores.rows, rows)
    np.testing.assert_array_equal(scores.predicted, predicted.sum(0))
    assert scores.confusion is None
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "micro_f1": sklearn_metrics.f1_score(labels, predicted, average="micro", zero_division=0),
        "macro_f1": np.nanmean(f1),
        "calibration_error": calibration_error(given.double().numpy().ravel(), labels.numpy().ravel()),
    }
    assert {name: scores.metrics[name] for name in expected} == pytest.approx(expected)


def test_without_any_positive_f1_is_not_defined():
    scores = multi_label_scores(torch.zeros(3, C), torch.zeros(3, C, dtype=torch.bool), COUNTS)
    assert scores.metrics["accuracy"] == 1 and scores.metrics["calibration_error"] == 0
    assert np.isnan([scores.metrics["micro_f1"], scores.metrics["macro_f1"]]).all()
    assert "many_shot_accuracy" not in scores.metrics


@pytest.mark.parametrize("certain", [1.0, 1.0000001, 1 - 1e-12])
def test_certain_predictions_share_the_last_bin(certain):
    """A certain row that is wrong, beside rows of .95 that are right: in one bin the errors make up for each other."""
    confidence = torch.tensor([certain, 0.95, 0.95, 0.95], dtype=torch.float64)
    given = torch.stack([confidence, 1 - confidence], dim=1)
    scores = single_label_scores(given, torch.tensor([1, 0, 0, 0]), [5, 5])
    assert scores.metrics["calibration_error"] == pytest.approx((1 + 3 * 0.95) / 4 - 3 / 4)


def test_groups_by_training_rows_are_mean_recalls():
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 2, 3, 3, 4, 5])
    given = one_hot([0, 1, 1, 1, 1, 0, 0, 3, 3, 4, 0])
    metrics = single_label_scores(given, labels, COUNTS).metrics
    assert metrics["many_shot_accuracy"] == pytest.approx((1 / 2 + 3 / 4) / 2)  # 500 and 101
    assert metrics["medium_shot_accuracy"] == pytest.approx((0 + 1) / 2)  # 100 and 20
    assert metrics["few_shot_accuracy"] == pytest.approx((1 + 0) / 2)  # 19 and 0
    metrics = single_label_scores(given, labels, COUNTS, many_shot=19, few_shot=19).metrics
    assert metrics["many_shot_accuracy"] == pytest.approx((1 / 2 + 3 / 4 + 0 + 1) / 4)
    assert metrics["medium_shot_accuracy"] == 1
    positives = multi_label_scores(given, one_hot(labels).bool(), COUNTS).metrics
    assert positives["few_shot_accuracy"] == pytest.approx((1 + 0) / 2)


def test_a_group_without_evaluated_rows_has_no_score():
    metrics = single_label_scores(one_hot([0, 4]), torch.tensor([0, 0]), COUNTS).metrics
    assert "many_shot_accuracy" in metrics
    assert not {"medium_shot_accuracy", "few_shot_accuracy"} & set(metrics)


@pytest.mark.parametrize("of_kind", [single_label_scores, multi_label_scores])
def test_counts_are_one_a_class(of_kind):
    with pytest.raises(ValueError, match="5 class counts for 6 classes"):
        of_kind(probabilities(2), draw(2), COUNTS[:5])


def row(index: int, multi_label: bool, bad: bool = False) -> tuple[Tensor, Tensor]:
    logits, labels = probabilities(6, seed=7).log()[index], draw(6, seed=7)[index]
    if bad and index == 0:
        logits = logits * float("nan")
    return logits, (probabilities(6, seed=8) > 0.2)[index] if multi_label else labels


def fill(rows: EvaluatedRows, batches: list[list[int]], multi_label: bool, bad: bool = False) -> None:
    for batch in batches:
        logits, labels = zip(*(row(index, multi_label, bad) for index in batch), strict=True)
        rows.update(torch.stack(logits), torch.stack(labels), torch.tensor(batch))


def evaluated(deal: str, multi_label: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What one rank has that evaluates all."""
    rows = EvaluatedRows(C, multi_label)
    fill(rows, [batch for batches in DEALS[deal] for batch in batches], multi_label)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method")
        return rows.compute()


def test_rows_come_back_in_the_order_of_their_ids():
    logits, labels, row_ids = evaluated("uneven", multi_label=False)
    assert row_ids.tolist() == list(range(6))
    assert torch.equal(logits, torch.stack([row(index, False)[0] for index in range(6)]))
    assert labels.tolist() == [row(index, False)[1] for index in range(6)]


def test_scores_do_not_depend_on_order_and_batches():
    given, labels = probabilities(300, seed=3).log(), draw(300, seed=3)
    found = []
    for seed in range(3):
        rows, start = EvaluatedRows(C), 0
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
        for size in (1, 150 + seed, 149 - seed):
            part = order[start : start + size]
            rows.update(given[part], labels[part], part)
            start += size
        logits, known, _ = rows.compute()
        found.append(single_label_scores(logits.softmax(1), known, COUNTS).metrics)
    assert found[0] == found[1] == found[2]


def test_the_next_evaluation_starts_from_nothing():
    rows = EvaluatedRows(C)
    fill(rows, [[0, 1, 2]], False)
    rows.compute()
    rows.reset()
    fill(rows, [[4]], False)
    assert rows.compute()[2].tolist() == [4]


@pytest.mark.parametrize("multi_label", [False, True])
def test_one_row_is_a_row(multi_label):
    logits, labels, row_ids = evaluated("one row", multi_label)
    assert logits.shape == (1, C) and row_ids.tolist() == [0]
    assert labels.shape == ((1, C) if multi_label else (1,))


def test_an_evaluation_is_no_part_of_a_checkpoint():
    rows = EvaluatedRows(C)
    fill(rows, [[0, 1]], False)
    assert not rows.state_dict()


def test_a_model_in_bf16_keeps_its_rows_in_float32():
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "scores": EvaluatedRows(C)})
    fill(model["scores"], [[0, 1]], False)
    model.to(torch.bfloat16)
    assert model["layer"].weight.dtype == torch.bfloat16
    model["scores"].update(torch.ones(1, C, dtype=torch.bfloat16), torch.tensor([0]), torch.tensor([70001]))
    logits, labels, row_ids = model["scores"].compute()
    assert logits.dtype == torch.float32 and labels.dtype == row_ids.dtype == torch.long
    assert row_ids[-1] == 70001  # no number of bf16
    assert torch.equal(logits[0], row(0, False)[0])


def test_a_model_in_float64_keeps_its_rows_in_float64():
    model = torch.nn.ModuleDict({"scores": EvaluatedRows(C)}).double()
    exact = torch.rand(2, C, dtype=torch.float64)
    model["scores"].update(exact, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert torch.equal(model["scores"].compute()[0], exact)
    torch.set_default_dtype(torch.float64)  # as Lightning does while a model is made, with precision=64-true
    try:
        rows = EvaluatedRows(C)
    finally:
        torch.set_default_dtype(torch.float32)
    rows.update(exact, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert torch.equal(rows.compute()[0], exact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_told_with_the_way_out(value):
    rows = EvaluatedRows(C)
    logits = torch.zeros(8, C)
    logits[2, 1] = logits[2, 3] = logits[5, 0] = value
    rows.update(logits, torch.zeros(8, dtype=torch.long), torch.arange(8))
    with pytest.raises(DataError, match=r"2 of 8 rows \(25\.0%\).*lower model\.optimizer\.lr"):
        rows.compute()


def _rank(rank: int, meeting: str, directory: str) -> None:
    """What one of two ranks does: every deal, for single and several labels; at last a row whose logits are NaN."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    warnings.filterwarnings("ignore", message="The ``compute`` method")
    found = {}
    for deal, by_rank in DEALS.items():
        for multi_label in (False, True):
            rows = EvaluatedRows(C, multi_label)
            for _ in range(2):  # the second time after a reset
                fill(rows, by_rank[rank], multi_label)
                found[deal, multi_label] = rows.compute()
                rows.reset()
    rows = EvaluatedRows(C)
    fill(rows, DEALS["one row"][rank], False, bad=True)
    try:
        rows.compute()
    except DataError as error:
        found["error"] = str(error)
    torch.save(found, f"{directory}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (str(directory / "meeting"), str(directory)), nprocs=2)
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("deal", DEALS)
def test_each_of_two_ranks_has_what_one_has(two_ranks, deal, multi_label):
    expected = evaluated(deal, multi_label)
    for found in two_ranks:
        for one, other in zip(found[deal, multi_label], expected, strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def test_every_rank_tells_of_the_row_that_one_has(two_ranks):
    first, second = (found["error"] for found in two_ranks)
    assert first == second and "1 of 1 rows" in first


NAMES = ["财经", 'a "quoted", name', "two\nlines", "体育", "e", "🀄"]


def test_the_table_of_classes_comes_back(tmp_path):
    given, labels = SINGLE["classes without rows"]
    scores = single_label_scores(given, labels, COUNTS)
    path = write_class_table(tmp_path / "plots" / "classes.csv", NAMES, scores)
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line.pop("class") for line in lines] == NAMES
    for column in ("train_rows", "rows", "predicted", "recall", "precision", "f1"):
        values = [float(line[column] or "nan") for line in lines]
        np.testing.assert_array_equal(values, getattr(scores, column))
    assert lines[3]["recall"] == "" and json.loads(lines[3]["rows"]) == 0


def test_a_table_that_cannot_be_made_leaves_the_old_one(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("old")
    scores: Scores = single_label_scores(*SINGLE["random"], COUNTS)
    with pytest.raises(ValueError):
        write_class_table(path, NAMES[:-1], scores)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
