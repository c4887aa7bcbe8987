"""Every technique and corpus logs the metrics that it declares, and no others; only those can be asked for."""

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
    """The metrics of the class that a run's config names, read without importing it."""
    names = class_attribute(locate(config[group]._target_), "metrics")
    assert names and len(names) == len(set(names))
    return set(names)


@pytest.fixture(scope="module")
def tiny(corpus, tmp_path_factory) -> dict:
    """Option of data -> the options of a small corpus, and whether it has rows to test on."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "texts.txt").write_text("今天天气很好\n我们去公园玩\n" * 100, encoding="utf-8")
    dialogues = '["今天 天气 很 好", "我们 去 公园 玩"]\n' * 100
    (folder / "dialogues.jsonl").write_text(dialogues, encoding="utf-8")
    return {
        "clue": (corpus, True),
        "lccc": ([f"data.train={folder}/dialogues.jsonl", f"data.val={folder}/dialogues.jsonl"], False),
        "text": ([f"data.train={folder}/texts.txt", f"data.val={folder}/texts.txt"], False),
    }


@pytest.mark.parametrize("data", options_of("data"))
@pytest.mark.parametrize("model", options_of("model"))
def test_declared_is_logged(model, data, tiny, tmp_path):
    options, has_test = tiny[data]
    directory = tmp_path / "run"
    finished(directory, *TINY, "debug=fast", f"model={model}", f"data={data}", "data.overlap=keep", *options)
    config = OmegaConf.load(directory / "config.yaml")
    of_technique = {name for name in declared(config, "model") if has_test or not name.startswith("test/")}
    told, columns = set(summary(directory)["metrics"]), {name for row in metrics(directory) for name in row}
    assert told - of_the_run(told) == of_technique | declared(config, "data")
    assert columns - of_the_run(columns) == of_technique


def test_numbers_of_the_corpus_are_its_training_splits(tiny, tmp_path):
    options, _ = tiny["text"]
    unknown = 'tokenizer.vocab=["[PAD]","[UNK]","[CLS]","[SEP]","[MASK]","今","天","气","很"]'
    finished(
        tmp_path,
        *TINY,
        "data=text",
        *options,
        "data.max_length=7",
        "tokenizer=char",
        unknown,
        "data.inspect=true",
    )
    told = summary(tmp_path)["metrics"]
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
