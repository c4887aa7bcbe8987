"""What holds for every loss: gradients, half precision, both kinds of labels, options, its yaml."""

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.build import build
from launch.signatures import class_attribute, locate
from lightning_modules.losses.base import ClassificationLoss, log_odds
from lightning_modules.losses.bce import BCE
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.losses.dice import Dice
from lightning_modules.losses.f1_weighted import F1Weighted
from lightning_modules.losses.focal import Focal
from lightning_modules.losses.hard_truncation import HardTruncation
from lightning_modules.losses.ldam import LDAM
from lightning_modules.losses.logit_adjustment import LogitAdjustment
from lightning_modules.losses.multilabel_softmax import MultilabelSoftmax
from lightning_modules.losses.smooth_accuracy import SmoothAccuracy
from lightning_modules.losses.soft_truncation import SoftTruncation
from lightning_modules.losses.weighted import Weighted

CONF = Path(__file__).parents[3] / "conf" / "model" / "loss"
COUNTS = torch.tensor([40, 3, 20, 7])

EVERY = {
    "cross_entropy": lambda: CrossEntropy(label_smoothing=0.1),
    "weighted": lambda: Weighted(),
    "weighted effective": lambda: Weighted("effective_number"),
    "hard_truncation": lambda: HardTruncation(),
    "soft_truncation": lambda: SoftTruncation(k=2.0),
    "focal": lambda: Focal(),
    "focal 0.5": lambda: Focal(gamma=0.5),
    "smooth_accuracy": lambda: SmoothAccuracy(),
    "f1_weighted": lambda: F1Weighted(),
    "f1_weighted ema": lambda: F1Weighted(ema=0.5),
    "dice": lambda: Dice(alpha=0.01),
    "dice mined": lambda: Dice(hard_example_mining=1.0),
    "dice squared": lambda: Dice(square_denominator=True, alpha=0.01, hard_example_mining=1.0),
    "logit_adjustment": lambda: LogitAdjustment(),
    "ldam": lambda: LDAM(reweight_from=0.0),
    "multilabel_softmax": lambda: MultilabelSoftmax(),
    "multilabel_softmax without": lambda: MultilabelSoftmax(threshold=False),
    "bce": lambda: BCE(),
    "bce balanced": lambda: BCE(pos_weight="balanced"),
}
CASES = [(name, kind) for name in EVERY for kind in sorted(EVERY[name]().labels)]


def made(name: str) -> ClassificationLoss:
    loss = EVERY[name]()
    loss.prepare(COUNTS, num_rows=70)
    return loss


@pytest.mark.parametrize("name, kind", CASES)
def test_gradients(draw, name, kind):
    logits, labels = draw(multi=kind == "multi")
    loss = made(name)
    if name.startswith("f1_weighted"):  # F1 is a constant of the gradient: here the one that training left
        loss = F1Weighted(ema=0.5)
        loss.prepare(COUNTS, num_rows=70)
        loss(*draw(multi=kind == "multi", seed=1))
        loss.eval()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels).sum(), logits.requires_grad_())


@pytest.mark.parametrize("name, kind", CASES)
def test_one_value_a_row_in_the_precision_of_the_logits(draw, name, kind):
    logits, labels = draw(multi=kind == "multi")
    loss = made(name)
    shape = (len(logits),) if loss.per_example else ()
    assert loss(logits, labels).shape == shape
    assert loss(logits, labels).dtype == torch.float64
    assert loss(logits.float(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    "dtype, size", [(torch.float16, 60000.0), (torch.bfloat16, 1e30), (torch.float32, 1e30)]
)
@pytest.mark.parametrize("name, kind", CASES)
def test_extreme_logits_of_half_precision(name, kind, dtype, size):
    """Sure and right, sure and wrong, all equal, no positive, all positive: finite losses and gradients."""
    rows = [[size, -size, 0, 0], [-size, size, 0, 0], [size] * 4, [-size] * 4, [0.0] * 4, [30, -30, 1, 0]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    loss = made(name)
    several = torch.tensor([[True, False, False, False]] * 4 + [[False] * 4, [True] * 4])
    values = loss(logits, several if kind == "multi" else torch.zeros(6, dtype=torch.long))
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    values.mean().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name, kind", CASES)
def test_module_in_half_precision_keeps_the_counts(draw, name, kind):
    """precision=bf16-true casts every floating-point buffer; 1,001 rows are no number of bfloat16."""
    logits, labels = draw(multi=kind == "multi")
    exact, cast = EVERY[name](), EVERY[name]()
    for loss in (exact, cast):
        loss.prepare(torch.tensor([100_001, 1001, 50, 3]), num_rows=200_003)
    cast.to(torch.bfloat16)
    tolerance = 0.01 if "ema" in name else 1e-6  # a moving average is a floating-point state
    torch.testing.assert_close(
        cast(logits, labels), exact(logits, labels), rtol=tolerance, atol=0.01 * tolerance
    )


@pytest.mark.parametrize("name, kind", CASES)
def test_no_rows(draw, name, kind):
    """A rank may have none: nothing fails, and gradients are zero."""
    logits, labels = draw(rows=0, multi=kind == "multi")
    values = made(name)(logits.requires_grad_(), labels)
    values.sum().backward()
    assert values.isfinite().all() and logits.grad.shape == (0, 4)


@pytest.mark.parametrize("name, kind", CASES)
def test_nan_is_not_hidden(draw, name, kind):
    logits, labels = draw(multi=kind == "multi")
    assert made(name)(logits * torch.nan, labels).isnan().any()


@pytest.mark.parametrize("name, kind", CASES)
def test_probabilities(draw, name, kind):
    logits, _ = draw()
    probabilities = made(name).probabilities(logits.half(), multi_label=kind == "multi")
    assert probabilities.dtype == torch.float32
    if kind == "single":
        torch.testing.assert_close(probabilities.sum(1), torch.ones(7))
        assert torch.equal(probabilities.argmax(1), logits.argmax(1))
    else:
        assert torch.equal(probabilities > 0.5, logits > 0)


@pytest.mark.parametrize("name", [name for name in EVERY if "multi" not in EVERY[name]().labels])
def test_several_labels_are_refused_with_a_way_out(draw, name):
    file = name.split()[0]
    with pytest.raises(ValueError, match=f"^model.loss={file}: takes one label a row.*type model/loss=bce"):
        made(name)(*draw(multi=True))


def test_labels_that_fit_no_form_are_told(draw):
    logits, labels = draw(multi=True)
    with pytest.raises(ValueError, match="^labels: torch.float32 of the shape .7, 4."):
        BCE()(logits, labels.float())
    with pytest.raises(ValueError, match="^labels: torch.bool of the shape .7, 1."):
        BCE()(logits, labels[:, :1])
    with pytest.raises(ValueError, match="at least two classes"):
        Focal()(logits[:, :1], torch.zeros(7, dtype=torch.long))


def test_counts_come_first(draw):
    with pytest.raises(ValueError, match="^model.loss=weighted: prepare"):
        Weighted()(*draw())
    loss = BCE(pos_weight="balanced")
    loss.prepare(COUNTS)
    with pytest.raises(ValueError, match="^model.loss=bce: .* needs num_rows"):
        loss(*draw(multi=True))


@pytest.mark.parametrize(
    "name, option",
    [
        ("cross_entropy", {"label_smoothing": 1.0}),
        ("cross_entropy", {"label_smoothing": -0.1}),
        ("weighted", {"by": "size"}),
        ("weighted", {"beta": 1.0}),
        ("hard_truncation", {"threshold": 0.0}),
        ("soft_truncation", {"k": 0.0}),
        ("focal", {"gamma": -1.0}),
        ("focal", {"alpha": 1.0}),
        ("f1_weighted", {"ema": 1.0}),
        ("f1_weighted", {"positive_class": 2}),
        ("dice", {"smooth": 0.0}),
        ("dice", {"alpha": -0.1}),
        ("dice", {"hard_example_mining": -1.0}),
        ("logit_adjustment", {"tau": -1.0}),
        ("ldam", {"max_margin": -0.1}),
        ("ldam", {"scale": 0.0}),
        ("ldam", {"reweight_from": 1.0}),
        ("ldam", {"beta": 1.0}),
        ("bce", {"pos_weight": "none"}),
    ],
)
def test_wrong_options_are_named(name, option):
    [key] = option
    with pytest.raises(ValueError, match=f"^{key}="):
        type(EVERY[name]())(**option)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_yaml_has_every_option_at_its_default(file):
    node = OmegaConf.to_container(OmegaConf.load(file))
    loss = build(node)
    defaults = {name: p.default for name, p in inspect.signature(type(loss)).parameters.items()}
    assert {key: value for key, value in node.items() if key != "_target_"} == defaults
    assert node["_target_"].split(".")[-2] == file.stem
    # What the configuration check reads from the source.
    assert class_attribute(locate(node["_target_"]), "labels") == type(loss).labels


def test_every_loss_has_a_yaml():
    assert {path.stem for path in CONF.glob("*.yaml")} == {name.split()[0] for name in EVERY}


def test_log_odds_do_not_cancel():
    """1 - p of the winner, e^-60, is below what float64 tells from 1."""
    logits = torch.tensor([[60.0, 0.0], [0.0, 60.0], [1.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    expected = torch.tensor([[60.0, -60.0], [-60.0, 60.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(log_odds(logits, labels), expected, rtol=1e-12, atol=1e-12)
