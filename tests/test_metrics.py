"""Every technique and corpus logs the metrics that it declares, and no others; only those can be asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from running import REPOSITORY, TINY, finished, metrics, run, summary

from launch.signatures import class_attribute, locate


def of_the_run(names: set[str]) -> set[str]:
    """What is logged by the loggers, launch.callbacks.RunMetrics and Lightning's LearningRateMonitor."""
    return {"step", "epoch", "train/tokens_per_second"} | {name for name in names if name.startswith("lr-")}


def options_of(group: str) -> list[str]:
    return sorted(file.stem for file in (REPOSITORY / "conf" / group).glob("*.yaml"))


def declared(config, group: str) -> set[str]:
    """The metrics of the class that a run's config names, read without importing it; arrays have none of their own."""
    names = class_attribute(locate(config[group]._target_), "metrics") or ()
    assert len(names) == len(set(names))
    return set(names)


def write_idx(path: Path, magic: int, values: np.ndarray) -> None:
    header = np.array([magic, *values.shape], dtype=">i4").tobytes()
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def tiny(corpus, tmp_path_factory) -> dict:
    """Option of data -> the options of a small corpus, and whether it has rows to test on."""
    folder = tmp_path_factory.mktemp("corpora")
    rows = ["text,label", *(f"今天天气很{'好坏'[number % 2]}{number},{number % 2}" for number in range(200))]
    (folder / "texts.csv").write_text("\n".join(rows), encoding="utf-8")
    dialogues = '["今天 天气 很 好", "我们 去 公园 玩"]\n' * 100
    (folder / "dialogues.jsonl").write_text(dialogues, encoding="utf-8")
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (60, 8, 8))
    write_idx(folder / "train-images-idx3-ubyte", 0x803, images)
    write_idx(folder / "train-labels-idx1-ubyte", 0x801, np.arange(60) % 10)
    return {
        "clue": (corpus, True),
        "dialogue": ([f"data.train={folder}/dialogues.jsonl", f"data.val={folder}/dialogues.jsonl"], False),
        "digits": ([], True),
        "lccc": ([f"data.train={folder}/dialogues.jsonl", f"data.val={folder}/dialogues.jsonl"], False),
        "mnist": ([f"data.source={folder}", "data.val=0.2"], False),
        "sinusoid2d": (["data.test=100"], True),
        "text": ([f"data.train={folder}/texts.csv", f"data.val={folder}/texts.csv"], False),
    }


# What a classifier of one label a row always logs; it has few-shot classes and their like only where there are some.
ALWAYS = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
SHOTS = ("many_shot_accuracy", "medium_shot_accuracy", "few_shot_accuracy")


@pytest.mark.parametrize("data", options_of("data"))
@pytest.mark.parametrize("model", options_of("model"))
def test_declared_is_logged(model, data, tiny, tmp_path):
    options, has_test = tiny[data]
    directory = tmp_path / "run"
    of_arrays = data in ("digits", "mnist", "sinusoid2d")
    own = ("trainer=cpu",) if of_arrays else (*TINY, "data.overlap=keep")
    if model == "dialogpt":
        own = tuple(option.replace("=tiny", "=gpt_tiny") for option in own)
    outcome = run(directory, *own, "debug=fast", f"model={model}", f"data={data}", *options)
    if of_arrays and model != "classifier":
        # Such models bring a text encoder, and the options of the corpus' own backbone are not its.
        assert outcome.code == 2 and "needs text" in outcome.err
        return
    if model == "classifier" and data in ("dialogue", "lccc"):
        assert outcome.code == 2 and f"needs label, which data={data} does not provide" in outcome.err
        return
    if model == "dialogpt" and data not in ("dialogue", "lccc"):
        assert outcome.code == 2 and f"needs turns, which data={data} does not provide" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    config = OmegaConf.load(directory / "config.yaml")
    splits = ("val", "test") if has_test else ("val",)
    of_technique = {name for name in declared(config, "model") if has_test or not name.startswith("test/")}
    told, columns = set(summary(directory)["metrics"]), {name for row in metrics(directory) for name in row}
    if model == "classifier":
        certain = {"train/loss", *(f"{split}/{name}" for split in splits for name in ALWAYS)}
        possible = {f"{split}/{name}" for split in splits for name in SHOTS}
        logged = told - of_the_run(told) - declared(config, "data")
        assert certain <= logged <= certain | possible and len(logged) > len(certain)
        assert of_technique == certain | possible | {f"{split}/micro_f1" for split in splits}
        of_technique = logged
    if model == "dialogpt":
        # Of turns that no evaluated dialogue has, and of rows that are no longer than those of the training.
        absent = {name for name in of_technique if "_turn_" in name or "beyond_" in name}
        logged = told - of_the_run(told) - declared(config, "data")
        assert of_technique - absent <= logged <= of_technique
        of_technique = logged
    assert told - of_the_run(told) == of_technique | declared(config, "data")
    assert columns - of_the_run(columns) == of_technique


def test_a_classifier_of_several_labels_a_row_has_one_score_more(tmp_path):
    rows = [{"text": f"第{number}条", "label": [["a"], ["a", "b"], []][number % 3]} for number in range(120)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "tagged.jsonl").write_text(lines, encoding="utf-8")
    options = (
        "model=classifier",
        "data=text",
        f"data.train={tmp_path}/tagged.jsonl",
        "data.multi_label=true",
    )
    finished(tmp_path / "run", *TINY, "debug=fast", *options, "model/loss=bce")
    scores = {name for name in summary(tmp_path / "run")["metrics"] if name.startswith("val/")}
    assert {"val/micro_f1", "val/macro_f1", "val/accuracy", "val/loss"} <= scores
    assert "val/balanced_accuracy" not in scores


def test_numbers_of_the_corpus_are_its_training_splits(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("今天天气很好\n我们去公园玩\n" * 100, encoding="utf-8")
    options = [f"data.train={texts}", f"data.val={texts}"]
    unknown = 'tokenizer.vocab=["[PAD]","[UNK]","[CLS]","[SEP]","[MASK]","今","天","气","很"]'
    finished(
        tmp_path / "run",
        *TINY,
        "data=text",
        *options,
        "data.max_length=7",
        "tokenizer=char",
        unknown,
        "data.inspect=true",
    )
    told = summary(tmp_path / "run")["metrics"]
    # Two rows of six characters, each cut to five; 好 is not among them, of 我们去公 none is known.
    assert told == {"data/characters_per_token": 1, "data/unknown_share": 0.5, "data/cut_share": 1}


@pytest.mark.parametrize(
    "options, line",
    [
        (
            ["optimized_metric=data/unknown"],
            "optimized_metric=data/unknown: WoBERT logs no such metric; did you mean data/unknown_share?",
        ),
        (
            ["callbacks.best.monitor=data/cut_share"],
            "callbacks.best.monitor=data/cut_share: is not logged while training",
        ),
        (
            ["callbacks.best.monitor=test/loss"],
            "callbacks.best.monitor=test/loss: is not logged while training; did you mean",
        ),
        (
            ["stage=test", "ckpt_path={run}", "optimized_metric=val/loss"],
            "optimized_metric=val/loss: WoBERT logs no such metric at stage=test",
        ),
        (
            ["stage=validate", "ckpt_path={run}", "optimized_metric=test/loss"],
            "optimized_metric=test/loss: WoBERT logs no such metric at stage=validate (there are: val/loss",
        ),
    ],
)
def test_a_metric_that_will_not_be_there_is_told_before_anything_starts(options, line, trained, tmp_path):
    outcome = run(tmp_path / "run", *(option.format(run=trained) for option in options))
    assert outcome.code == 2 and not (tmp_path / "run").exists()
    assert outcome.err.startswith(line)
    assert len(outcome.err.splitlines()) == 1


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    finished(directory, *TINY, "debug=fast", *corpus, "optimized_metric=data/unknown_share")
    return directory


def test_a_metric_of_the_corpus_can_be_optimised_and_the_default_does_not_hinder_a_test(trained, tmp_path):
    finished(tmp_path / "test", *TINY, "stage=test", f"ckpt_path={trained}")
    assert set(summary(tmp_path / "test")["metrics"]) == {
        "test/loss",
        "test/masked_accuracy",
        "test/bits_per_char",
    }
