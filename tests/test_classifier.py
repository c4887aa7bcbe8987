"""Runs of the classifier: from a table to predictions, fine-tuning, regularisers with every technique, and mistakes."""

import json

import numpy as np
import pytest
import torch
from running import TINY, finished, metrics, run, summary, weights
from transformers import pipeline

CLASSIFIER = (*TINY, "model=classifier", "debug=fast")
ARRAYS = ("trainer=cpu", "model=classifier", "data=digits", "model/backbone=mlp", "debug=fast")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """my.csv: two classes that one character tells apart, and a third one that is rare."""
    path = tmp_path_factory.mktemp("table") / "my.csv"
    rows = [f"今天天气很{'好坏'[number % 2]}{number},{'好坏'[number % 2]}评" for number in range(200)]
    path.write_text(
        "\n".join(["text,label", *rows, *(f"不知道{number},中评" for number in range(10))]), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def pretrained(table, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pretrained") / "run"
    finished(directory, *TINY, "debug=fast", "data=text", f"data.train={table}")
    return directory


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    finished(directory, *CLASSIFIER, "data=text", f"data.train={table}", "model.backbone.pooling=cls")
    return directory


def predictions(directory, *options) -> list[dict]:
    finished(directory, "trainer=cpu", "stage=predict", "predict.task=classify", *options)
    lines = (directory / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_table_is_enough(trained):
    told = summary(trained)
    assert {"val/accuracy", "val/macro_f1"} <= told["metrics"].keys()
    assert set(told["data_facts"]["trained_on"]["class_counts"]) <= {90, 89, 91, 9}
    names = ("classes_val.csv", "classes_val.png", "confusion_val.png")
    assert all((trained / "plots" / name).stat().st_size for name in names)
    table = (trained / "plots" / "classes_val.csv").read_text(encoding="utf-8")
    assert "好评" in table and "中评" in table


def test_run_export_and_stock_transformers_predict_alike(trained, tmp_path):
    text = "今天天气很好"
    asked = f'predict.input=["{text}"]'
    [of_run] = predictions(tmp_path / "run", f"ckpt_path={trained}", asked)
    [of_export] = predictions(tmp_path / "export", f"ckpt_path={trained}/export", asked)
    assert of_run["text"] == text and of_export["label"] == of_run["label"]
    assert of_export["scores"] == pytest.approx(of_run["scores"], abs=1e-6)
    [stock] = pipeline("text-classification", model=str(trained / "export"))(text)
    assert stock["label"] == of_run["label"] and stock["score"] == pytest.approx(of_run["score"], abs=1e-5)


def test_arrays_are_predicted_from_a_file(tmp_path):
    finished(tmp_path / "run", *ARRAYS)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32))
    asked = f"predict.input={tmp_path}/x.npy"
    of_run = predictions(tmp_path / "p", f"ckpt_path={tmp_path}/run", asked)
    of_export = predictions(tmp_path / "q", f"ckpt_path={tmp_path}/run/export", asked)
    assert [row["id"] for row in of_run] == [0, 1, 2]
    assert [row["score"] for row in of_export] == pytest.approx([row["score"] for row in of_run], abs=1e-6)


def test_pairs_and_a_submission(tmp_path):
    finished(tmp_path / "run", *CLASSIFIER, "data=clue", "data.task=afqmc")
    rows = [{"id": number, "sentence1": "花呗怎么还", "sentence2": f"借呗{number}"} for number in range(5)]
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines = predictions(
        tmp_path / "p",
        f"ckpt_path={tmp_path}/run",
        f"predict.input={tmp_path}/test.json",
        "predict.format=clue",
    )
    assert [line["id"] for line in lines] == list(range(5))
    assert all(line.keys() == {"id", "label"} and line["label"] in ("0", "1") for line in lines)


def encoder_of(run) -> dict[str, torch.Tensor]:
    """The weights of a run's encoder, under the names that it has without a masked-LM head."""
    found = weights(run / "checkpoints" / "last.ckpt")
    return {name.replace(".bert.", "."): value for name, value in found.items() if "network." in name}


def test_a_pretrained_encoder_is_taken_over(pretrained, table, tmp_path):
    options = (f"model.init_from={pretrained}", "model.optimizer.lr=1e-30", "model.optimizer.weight_decay=0")
    finished(tmp_path / "run", *CLASSIFIER, "data=text", f"data.train={table}", *options)
    before, after = encoder_of(pretrained), encoder_of(tmp_path / "run")
    shared = [name for name in after if name in before]
    assert any("word_embeddings" in name for name in shared) and len(shared) > 20
    for name in shared:
        torch.testing.assert_close(after[name], before[name], msg=name)


def test_frozen_layers_keep_their_weights(pretrained, table, tmp_path):
    options = (f"model.init_from={pretrained}", "model.freeze=1", "model.layerwise_lr_decay=0.9")
    finished(tmp_path / "run", *CLASSIFIER, "data=text", f"data.train={table}", *options)
    before, after = encoder_of(pretrained), encoder_of(tmp_path / "run")
    moved = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    assert moved and all(".layer.1." in name for name in moved)


def test_adapters_are_merged_in_the_export(pretrained, table, tmp_path):
    options = (f"model.init_from={pretrained}", "model.lora={rank:2}")
    finished(tmp_path / "run", *CLASSIFIER, "data=text", f"data.train={table}", *options)
    assert any("lora_" in name for name in weights(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    asked = 'predict.input=["今天天气很好","不知道"]'
    of_run = predictions(tmp_path / "p", f"ckpt_path={tmp_path}/run", asked)
    of_export = predictions(tmp_path / "q", f"ckpt_path={tmp_path}/run/export", asked)
    assert [row["score"] for row in of_export] == pytest.approx([row["score"] for row in of_run], abs=1e-5)


def test_decisions_may_be_adjusted_after_training(trained, tmp_path):
    options = ("stage=validate", f"ckpt_path={trained}", "model=classifier")
    finished(tmp_path / "plain", *TINY, *options)
    finished(tmp_path / "adjusted", *TINY, *options, "model.posthoc_tau=5")
    plain, adjusted = (summary(tmp_path / name)["metrics"] for name in ("plain", "adjusted"))
    assert adjusted["val/loss"] == pytest.approx(plain["val/loss"])
    assert adjusted["val/calibration_error"] != pytest.approx(plain["val/calibration_error"])


@pytest.mark.parametrize("model", ["wobert", "bert", "classifier"])
def test_regularisers_go_with_every_technique(model, corpus, tmp_path):
    options = ("model/regularizer=[flooding,weissi,l2]", "model.optimizer.weight_decay=0", "log_every=1")
    finished(tmp_path / "run", *TINY, "debug=fast", f"model={model}", *corpus, *options)
    rows = [row for row in metrics(tmp_path / "run") if "train/objective" in row]
    assert rows and all(row["train/objective"] != row["train/loss"] for row in rows)


@pytest.mark.parametrize(
    "options, line",
    [
        (["model/loss=focal", "model.loss.gamma=-1"], "model.loss.gamma=-1: must be >= 0"),
        (["data.multi_label=true"], "label"),
        (
            ["model/loss=dice", "model/regularizer=[flooding]", "model.regularizer.flooding.per=example"],
            "regularizer.flooding.per=example: Dice is one value a batch",
        ),
        (["model.lora={rnk:8}"], "model.lora"),
        (["model/regularizer=[floding]"], "model/regularizer"),
        (["model.regularizer.flooding.b=1"], "model.regularizer.flooding.b"),
        (["data.sampler=even"], "data.sampler=even"),
        (["data.long_tail.imbalance=0.5"], "data.long_tail.imbalance=0.5"),
        (
            ["model/loss=logit_adjustment", 'data.labels=["好评","坏评","中评","差评"]'],
            "model.loss: LogitAdjustment takes",
        ),
        (["model.posthoc_tau=1", 'data.labels=["好评","坏评","中评","差评"]'], "model.posthoc_tau=1"),
        (["model.freeze=99"], "model.freeze=99"),
    ],
)
def test_mistakes_are_told(options, line, table, tmp_path):
    outcome = run(tmp_path / "run", *CLASSIFIER, "data=text", f"data.train={table}", *options)
    assert outcome.code == 2, outcome.err
    assert line in outcome.err and "Traceback" not in outcome.err


def test_a_backbone_of_images_reads_no_text(table, tmp_path):
    options = ("model=classifier", "model/backbone=cnn", "data=text", f"data.train={table}")
    outcome = run(tmp_path / "run", *options)
    assert outcome.code == 2
    assert outcome.err.startswith(
        "model/backbone=cnn: needs image, which data=text does not provide; use data=digits"
    )


def test_an_evaluation_takes_the_corpus_of_the_run_and_no_other_classes(trained, tmp_path):
    finished(tmp_path / "same", *TINY, "stage=validate", f"ckpt_path={trained}")
    names = [summary(directory)["metrics"]["val/accuracy"] for directory in (trained, tmp_path / "same")]
    assert names[0] == names[1]
    outcome = run(tmp_path / "other", *TINY, "stage=validate", f"ckpt_path={trained}", "data=clue")
    assert outcome.code == 2 and "the run was trained on" in outcome.err


def test_dialogues_have_no_labels(tmp_path):
    outcome = run(tmp_path / "run", *CLASSIFIER, "data=lccc")
    assert outcome.code == 2 and "needs label, which data=lccc does not provide" in outcome.err


def test_a_training_that_diverges_says_so(tmp_path):
    outcome = run(
        tmp_path / "run", *ARRAYS, "model.optimizer.lr=1e30", "model.optimizer.weight_decay=0", "log_every=1"
    )
    assert outcome.code == 2 and "diverged; lower model.optimizer.lr" in outcome.err.replace("\n", " ")


@pytest.mark.slow
def test_two_ranks_score_as_one_also_with_one_row_to_validate(table, tmp_path):
    one_row = tmp_path / "val.csv"
    one_row.write_text("text,label\n今天天气很好,好评\n", encoding="utf-8")
    flooding = ("model/regularizer=[flooding]", "model.regularizer.flooding.b=1.0", "data.sampler=balanced")
    texts = (
        *TINY,
        "data=text",
        f"data.train={table}",
        f"data.val={one_row}",
        "model.backbone.hidden_dropout=0",
    )
    digits = ("data=digits", "model/backbone=mlp", "data.label_noise=0.1", *flooding)
    for name, options in (("texts", texts), ("digits", digits)):
        options = (*options, "model=classifier", "model.dropout=0", "max_steps=20", "logger=csv")
        for world_size in (1, 2):
            machine = ("trainer=ddp_cpu", f"trainer.devices={world_size}")
            own = [option for option in options if not option.startswith("trainer=")]
            finished(tmp_path / f"{name}-{world_size}", *own, *machine)
        one, two = (summary(tmp_path / f"{name}-{world_size}")["metrics"] for world_size in (1, 2))
        scores = [key for key in one if key.startswith(("train/", "val/", "test/"))]
        assert len(scores) > 5 and [two[key] for key in scores] == pytest.approx(
            [one[key] for key in scores], rel=1e-5
        )
