"""The classifier apart from its runs: what it takes from the corpus' facts, how fast its layers learn, how it decides."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datamodules.batch import VectorBatch
from datamodules.corpus import DataError
from lightning_modules.classifier import Classifier, CosineLinear

COUNTS = [80, 15, 5]


def node(kind, name, **options):
    return {"_target_": f"lightning_modules.{kind}.{name}", **options}


def classifier(counts=COUNTS, multi_label=False, loss=None, num_rows=None, **options):
    facts = {
        "shape": [4],
        "label_names": [f"class {index}" for index in range(len(counts))],
        "class_counts": counts,
        "num_train_rows": num_rows or sum(counts),
        "multi_label": multi_label,
        "sampler": None,
    }
    torch.manual_seed(0)
    model = Classifier(
        backbone=options.pop("backbone", node("networks.mlp", "MLP", hidden_sizes=[8, 8])),
        loss=loss or node("losses.cross_entropy", "CrossEntropy"),
        optimizer={"_target_": "torch.optim.AdamW", "lr": 0.1},
        facts=facts,
        **options,
    )
    model.configure_model()
    return model


def batch(rows=6, classes=3, multi_label=False):
    torch.manual_seed(1)
    labels = torch.rand(rows, classes) > 0.5 if multi_label else torch.arange(rows) % classes
    return VectorBatch(values=torch.randn(rows, 4), labels=labels, row_ids=torch.arange(rows))


def test_the_first_loss_is_that_of_guessing():
    model = classifier()
    losses = model.loss(model(batch()), batch().labels)
    assert losses.mean().item() == pytest.approx(math.log(3), abs=0.02)


def test_layers_learn_the_more_slowly_the_deeper_they_lie():
    model = classifier(layerwise_lr_decay=0.5)
    rate = {id(p): group.get("lr", 0.1) for group in model._parameter_groups() for p in group["params"]}
    of_layers = [[m for m in model.network.modules() if isinstance(m, nn.Linear)], [model.head]]
    first, second, head = (rate[id(layer.weight)] for layer in (*of_layers[0], *of_layers[1]))
    assert (head, second, first) == (0.1, 0.05, 0.025)
    names = [group["name"] for group in model._parameter_groups()]
    assert len(names) == len(set(names)) and len(rate) == len(list(model.parameters()))


def test_without_decay_there_are_the_two_groups_of_every_technique():
    assert [group["name"] for group in classifier()._parameter_groups()] == ["weights", "biases_and_norms"]


@pytest.mark.parametrize("tau", [1.0, -1.0, 0.5])
def test_the_post_hoc_adjustment_is_that_of_the_logits(tau):
    logits = torch.randn(7, 3)
    plain, shifted = classifier(), classifier(posthoc_tau=tau)
    torch.testing.assert_close(plain.probabilities(logits), logits.softmax(1))
    prior = torch.tensor(COUNTS) / 100
    torch.testing.assert_close(shifted.probabilities(logits), (logits - tau * prior.log()).softmax(1))


def test_the_post_hoc_adjustment_of_several_labels_is_that_of_each_one():
    logits = torch.randn(7, 3)
    bce = node("losses.bce", "BCE")
    model = classifier([50, 20, 10], multi_label=True, loss=bce, num_rows=100, posthoc_tau=1.0)
    prior = torch.tensor([0.5, 0.2, 0.1])
    expected = (logits - (prior / (1 - prior)).log()).sigmoid()
    torch.testing.assert_close(model.probabilities(logits), expected)


def test_cosines_are_scaled_by_the_loss_that_wants_them():
    model = classifier(loss=node("losses.ldam", "LDAM", scale=20.0))
    assert isinstance(model.head, CosineLinear)
    logits = model(batch())
    assert logits.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(model.probabilities(logits), (20 * logits).softmax(1))


@pytest.mark.parametrize(
    "loss, tau, instead",
    [
        (node("losses.logit_adjustment", "LogitAdjustment"), 0.0, "model/loss=weighted"),
        (None, 1.0, "model.posthoc_tau=0"),
    ],
)
def test_a_class_without_training_rows_is_named(loss, tau, instead):
    with pytest.raises(DataError, match=rf"1 of 3 classes have no row: class 1; .*{instead}"):
        classifier([5, 0, 3], loss=loss, posthoc_tau=tau)
    assert classifier([5, 0, 3]).head is not None


@pytest.mark.parametrize(
    "options, said",
    [
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"layerwise_lr_decay": 0.0}, "layerwise_lr_decay=0.0"),
        ({"freeze": -1}, "freeze=-1"),
        ({"few_shot": 200}, "few_shot=200"),
        ({"freeze": 99}, "model.freeze=99"),
        ({"loss": node("losses.focal", "Focal", gamma=-1.0)}, "gamma=-1"),
        ({"loss": node("losses.cross_entropy", "CrossEntropy"), "multi_label": True}, "type model/loss=bce"),
        (
            {
                "loss": node("losses.dice", "Dice"),
                "regularizer": {"flooding": node("regularizers.flooding", "Flooding", per="example")},
            },
            "regularizer.flooding.per=example: Dice is one value a batch",
        ),
    ],
)
def test_what_does_not_fit_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        classifier(**options)


def test_an_evaluation_passes_over_rows_without_a_label():
    model = classifier().eval()
    rows = batch()
    rows.labels[::2] = -1
    model.evaluate(rows)
    scores = model.compute_scores("val")
    logits, labels = model(rows)[1::2], rows.labels[1::2]
    assert scores["val/loss"].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert scores["val/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_a_loss_of_the_batch_is_evaluated_on_all_rows_at_once():
    """However they were cut into batches: the mean of the batches' values would be another number."""
    model = classifier(loss=node("losses.dice", "Dice")).eval()
    rows = batch(9)
    for start in (0, 2, 6):
        stop = {0: 2, 2: 6, 6: 9}[start]
        ids = torch.arange(start, stop)
        model.evaluate(VectorBatch(values=rows.values[ids], labels=rows.labels[ids], row_ids=ids))
    expected = model.loss(model(rows), rows.labels).item()
    assert model.compute_scores("val")["val/loss"].item() == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_holds_what_is_needed(tmp_path):
    model = classifier(loss=node("losses.logit_adjustment", "LogitAdjustment", tau=0.5))
    again = Classifier(**model.hparams)
    again.configure_model()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(batch()), model.eval()(batch()))


ADJUSTED = node("losses.logit_adjustment", "LogitAdjustment")


@pytest.mark.parametrize(
    "loss, sampler, warned",
    [
        (ADJUSTED, "balanced", True),
        (node("losses.weighted", "Weighted"), "square_root", True),
        (node("losses.logit_adjustment", "LogitAdjustment", tau=0.0), "balanced", False),
        (None, "balanced", False),
        (ADJUSTED, None, False),
    ],
)
def test_a_sampler_beside_a_loss_that_corrects_the_prior_is_told(loss, sampler, warned, caplog):
    provides = frozenset({"vector", "label"})
    with caplog.at_level(logging.WARNING):
        classifier(loss=loss).check_corpus(SimpleNamespace(provides=provides, sampler=sampler))
    assert (f"data.sampler={sampler}" in caplog.text) == warned


@pytest.mark.parametrize(
    "loss, tau, warned", [(ADJUSTED, 1.0, True), (ADJUSTED, -1.0, False), (None, 1.0, False)]
)
def test_an_adjustment_on_top_of_another_is_told(loss, tau, warned, caplog):
    with caplog.at_level(logging.WARNING):
        classifier(loss=loss, posthoc_tau=tau)
    assert ("type model.posthoc_tau=0" in caplog.text) == warned


def test_a_label_of_every_row_has_no_odds():
    with pytest.raises(DataError, match="every row has class 0"):
        classifier([10, 5], multi_label=True, loss=node("losses.bce", "BCE"), num_rows=10, posthoc_tau=1.0)


def test_logits_that_are_no_numbers_are_no_prediction():
    model = classifier()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    inputs = SimpleNamespace(encode=lambda rows: batch(len(rows)))
    with pytest.raises(DataError, match="2 of 2 rows .* training has diverged"):
        model.predict_classify(["a", "b"], inputs)


def test_priors_are_whole_numbers_whatever_the_precision():
    model = classifier(loss=ADJUSTED).to(torch.bfloat16)
    prior = torch.tensor(COUNTS, dtype=torch.float64) / 100
    torch.testing.assert_close(model.loss.log_prior(torch.zeros(3, dtype=torch.float64), False), prior.log())


def test_the_learning_rate_need_not_be_typed_to_decay_by_layers():
    model = classifier(layerwise_lr_decay=0.5)
    model.optimizer_options = {"_target_": "torch.optim.AdamW"}
    assert {group.get("lr") for group in model._parameter_groups()} == {None, 5e-4, 2.5e-4}


def test_training_rows_without_a_label_are_told():
    with pytest.raises(DataError, match="2 training rows have no label"):
        classifier(num_rows=sum(COUNTS) + 2)
