"""The entrypoint: what a run leaves behind, with which parts it works, and the same parts without it."""

import json
import os
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from real_data import REAL_DATA, needs_real_data
from running import REPOSITORY, TINY, finished, metrics, run, summary, values, weights

from datamodules.clue import CLUE
from lightning_modules.masking import Masking

SUMMARY_KEYS = [
    "stage",
    "model",
    "data",
    "source",
    "seed",
    "overrides",
    "metrics",
    "throughput",
    "world_size",
    "wall_seconds",
    "run_dir",
    "versions",
    "status",
    "error",
    "data_facts",
]
METRICS = {
    "train/loss",
    "val/loss",
    "val/masked_accuracy",
    "val/bits_per_char",
    "test/loss",
    "test/masked_accuracy",
    "test/bits_per_char",
    "baseline/unigram_loss",
    "baseline/unigram_bits_per_char",
    "baseline/most_frequent_share",
}
TOKENIZER = "datamodules.tokenizers.{}.{}Tokenizer"


@pytest.mark.parametrize("model", ["wobert", "bert"])
def test_debug_fast_leaves_everything_a_run_leaves(model, tmp_path):
    directory = tmp_path / "run"
    outcome = finished(directory, "debug=fast", "model/backbone=tiny", "trainer=cpu", f"model={model}")
    assert outcome.out.splitlines()[-1] == str(directory)
    assert "THIS IS THE EMBEDDED SAMPLE" in outcome.out
    assert {path.name for path in directory.iterdir()} == {
        "config.yaml",
        "summary.json",
        "metrics.csv",
        "tensorboard",
        "checkpoints",
        "plots",
        "export",
        "train.log",
    }

    told = summary(directory)
    assert list(told) == SUMMARY_KEYS
    assert (told["stage"], told["model"], told["data"], told["source"]) == ("fit", model, "clue", "sample")
    assert (told["status"], told["error"], told["seed"], told["world_size"]) == ("finished", None, 1, 1)
    assert told["run_dir"] == str(directory) and told["wall_seconds"] > 0
    assert METRICS <= set(told["metrics"]) and None not in told["metrics"].values()
    assert list(told["throughput"]) == ["tokens_per_second", "examples_per_second", "mfu"]
    assert told["throughput"]["tokens_per_second"] > told["throughput"]["examples_per_second"] > 0
    assert told["data_facts"]["synthetic"] is True
    assert {"python", "kexue-lightning", "torch", "lightning", "transformers", "hydra"} <= set(
        told["versions"]
    )

    assert [step for step, _ in values(directory, "train/loss")] == [0, 1]
    assert values(directory, "val/loss") and values(directory, "test/loss")
    assert list((directory / "tensorboard").glob("events.out.tfevents.*"))
    assert {path.name for path in (directory / "checkpoints").glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    assert {"config.json", "model.safetensors", "vocab.txt", "README.md"} <= {
        path.name for path in (directory / "export").iterdir()
    }
    pictures = list((directory / "plots").glob("*.png"))
    assert directory / "plots/curves.png" in pictures
    for path in pictures:
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.01
    assert not list(directory.rglob("*.tmp"))


@pytest.mark.parametrize(
    "options",
    [
        ("model=bert", "tokenizer=word"),
        ("tokenizer=char", "model.whole_word_masking=true", "model.mask_special_tokens=true"),
        ("model.attention=padded", "model/scheduler=cosine"),
        ("model/scheduler=constant", "logger=tensorboard", "callbacks=[default,ema]"),
        ("logger=none", "callbacks=[default,early_stopping]", "seed=7", "data.seed=1"),
        ("max_steps=-1", "max_epochs=1", "data.tokens_per_batch=1024", "data.num_workers=1"),
        ("~callbacks.best", "max_time=00:00:10:00"),
    ],
    ids=" ".join,
)
def test_parts_can_be_exchanged(options, corpus, tmp_path):
    finished(tmp_path / "run", *TINY, "debug=fast", *corpus, *options)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert ("metrics.csv" in files) == (not any(option.startswith("logger=") for option in options))
    assert ("tensorboard" in files) == ("logger=none" not in options)
    assert METRICS <= set(summary(tmp_path / "run")["metrics"])


def test_the_same_command_gives_the_same_run_and_another_seed_another(corpus, tmp_path):
    for name, *options in (("a",), ("b",), ("c", "seed=2")):
        finished(tmp_path / name, *TINY, "debug=fast", *corpus, *options)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    first, second = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert values(tmp_path / "a", "train/loss") != values(tmp_path / "c", "train/loss")


def test_micro_batches_change_nothing_but_rounding(corpus, tmp_path):
    options = (
        *TINY,
        *corpus,
        "max_steps=6",
        "validate_every=3",
        "log_every=1",
        "data.tokens_per_batch=512",
        "model.backbone.hidden_dropout=0",
    )
    finished(tmp_path / "whole", *options)
    finished(tmp_path / "parts", *options, "data.max_tokens_per_device=280")
    whole, parts = (np.array(values(tmp_path / name, "val/loss")) for name in ("whole", "parts"))
    assert len(whole) >= 2
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def prepared(model: str, source: str, cache_dir, max_length: int) -> CLUE:
    kind = {"wobert": ("word", "Word"), "bert": ("char", "Char")}[model]
    data = CLUE(
        source=source,
        tokenizer={"_target_": TOKENIZER.format(*kind)},
        max_length=max_length,
        cache_dir=str(cache_dir),
    )
    data.prepare_data()
    data.setup()
    return data


def hidden_characters(data: CLUE) -> set[tuple[int, int]]:
    """(row, number of the character) of all that a validation hides."""
    facts = data.facts
    masking = Masking(
        facts["vocab_size"],
        facts["mask_id"],
        tuple(i for i in facts["special_ids"] if i != facts["unk_id"]),
        seed=1,
    )
    store = data.stores["val"]
    hidden = set()
    for start in range(0, len(store), 500):
        batch = store.batch(np.arange(start, min(start + 500, len(store))))
        targets = masking.evaluation_targets(batch)
        row_start = batch.cu_seqlens[:-1].long().repeat_interleave(batch.cu_seqlens.diff())
        before = batch.char_counts.cumsum(0) - batch.char_counts
        place = before - before[row_start]
        for row, first, count in zip(
            batch.token_row_ids[targets].tolist(),
            place[targets].tolist(),
            batch.char_counts[targets].tolist(),
            strict=True,
        ):
            hidden.update((row, first + offset) for offset in range(count))
    return hidden


@pytest.mark.parametrize("source", ["sample", pytest.param("real", marks=needs_real_data)])
def test_words_and_characters_are_scored_on_the_same_characters(source, tmp_path):
    folder = "sample" if source == "sample" else os.path.join(REAL_DATA, "clue")
    words, characters = (prepared(model, folder, tmp_path, 24) for model in ("wobert", "bert"))
    hidden = hidden_characters(words)
    assert hidden == hidden_characters(characters)
    share = len(hidden) / words.stores["val"].facts["num_characters"]
    assert words.stores["val"].facts["num_characters"] == characters.stores["val"].facts["num_characters"]
    assert 0.13 < share < 0.17


def test_the_unigram_baseline_is_what_it_says(corpus, tmp_path):
    finished(tmp_path / "run", *TINY, "debug=fast", *corpus, "trainer.limit_val_batches=1.0")
    told = summary(tmp_path / "run")["metrics"]
    data = prepared("wobert", corpus[0].removeprefix("data.source="), tmp_path, 32)
    facts, store = data.facts, data.stores["val"]
    masking = Masking(facts["vocab_size"], facts["mask_id"], (0, 2, 3, 4), seed=1)
    assert facts["special_ids"] == [0, 1, 2, 3, 4] and facts["unk_id"] == 1
    batch = store.batch(np.arange(len(store)))
    targets = masking.evaluation_targets(batch)
    ids, chars = batch.input_ids[targets].numpy(), batch.char_counts[targets].numpy()
    counts = np.zeros(facts["vocab_size"])
    train = data.stores["train"]
    np.add.at(counts, train.tokens[:][train.chars[:] > 0], 1)
    nll = -np.log((counts + 1) / (counts + 1).sum())[ids]
    assert told["baseline/unigram_loss"] == pytest.approx(nll.mean(), rel=1e-5)
    hidden = chars[ids == facts["unk_id"]].sum() * np.log2(facts["train_characters"])
    bits = (nll.sum() / np.log(2) + hidden) / chars.sum()
    assert told["baseline/unigram_bits_per_char"] == pytest.approx(bits, rel=1e-5)
    assert told["baseline/most_frequent_share"] == pytest.approx((ids == counts.argmax()).mean(), rel=1e-5)


NOTEBOOK = """
import sys

import numpy as np
import pytorch_lightning as pl

from datamodules.clue import CLUE
from lightning_modules.wobert import WoBERT

tokenizer = {"_target_": "datamodules.tokenizers.word.WordTokenizer"}
data = CLUE(tokenizer=tokenizer, max_length=32, cache_dir=sys.argv[1])
model = WoBERT(
    backbone={"_target_": "lightning_modules.networks.text_encoder.TextEncoder", "hidden_size": 32},
    optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-3},
)
trainer = pl.Trainer(
    max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    use_distributed_sampler=False, val_check_interval=2, check_val_every_n_epoch=None, limit_val_batches=1,
)
trainer.fit(model, data)
trainer.save_checkpoint(sys.argv[1] + "/model.ckpt")
assert trainer.global_step == 2 and "val/loss" in trainer.callback_metrics
loaded = WoBERT.load_from_checkpoint(sys.argv[1] + "/model.ckpt").eval()
data.setup()
batch = data.stores["val"].batch(np.arange(5))
assert (loaded.network(batch) == model.eval().network(batch)).all()
ours = [name for name in ("hydra", "launch") if name in sys.modules]
assert not ours, ours
print("done")
"""


def test_the_parts_work_without_hydra(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


def test_the_scores_of_a_run_with_averaged_weights_are_those_of_its_best_checkpoint(corpus, tmp_path):
    options = (
        "callbacks=[default,ema]",
        "callbacks.ema.update_starting_at_step=0",
        "callbacks.ema.decay=0.5",
        "model.optimizer.lr=5",  # diverges, so that the best weights are early ones
        "model/scheduler=constant",
        "model.scheduler.warmup=0.9",
        "gradient_clip=0",
        "max_steps=12",
        "validate_every=1",
    )
    finished(tmp_path / "run", *TINY, *corpus, *options)
    told = summary(tmp_path / "run")["metrics"]
    losses = dict(values(tmp_path / "run", "val/loss"))
    assert losses[11] > told["val/loss"]  # the last average is not the best one
    finished(tmp_path / "again", "trainer=cpu", "stage=validate", f"ckpt_path={tmp_path / 'run'}")
    assert summary(tmp_path / "again")["metrics"]["val/loss"] == pytest.approx(told["val/loss"], rel=1e-5)


def test_a_stage_without_rows_is_told(corpus, tmp_path):
    finished(tmp_path / "run", *TINY, *corpus, "debug=fast")
    train = corpus[0].removeprefix("data.source=") + "/train.json"
    other = (f"data.train={train}", f"data.val={train}", "data.source=sample")
    outcome = run(tmp_path / "again", "trainer=cpu", "stage=test", f"ckpt_path={tmp_path / 'run'}", *other)
    assert outcome.code == 2
    assert (
        outcome.err.strip()
        == "stage=test: the corpus has no rows of a test split; name a file with data.test=FILE"
    )


def test_a_checkpoint_without_its_run_is_told(corpus, tmp_path):
    finished(tmp_path / "run", *TINY, *corpus, "debug=fast")
    (tmp_path / "elsewhere").mkdir()
    alone = tmp_path / "elsewhere" / "a.ckpt"
    alone.write_bytes((tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes())
    options = ("stage=predict", f"ckpt_path={alone}", "predict.task=embed", "predict.input=[a]")
    outcome = run(tmp_path / "again", "trainer=cpu", *options)
    assert outcome.code == 2 and "its run is needed too" in outcome.err


@pytest.mark.parametrize(
    "options, told",
    [
        (
            ["stage=vocabulary", "tokenizer.words=no.txt", "tokenizer.add_words=5"],
            "tokenizer.words=no.txt: is neither corpus nor jieba, and there is no such file",
        ),
        (["model.init_from=./no", "model.optimizer.lr=1e-5"], "model.init_from=./no: no such directory"),
        (
            ["model=bert", "tokenizer=pretrained", "model.init_from=./no", "model.optimizer.lr=1e-5"],
            "model.init_from=./no: no such directory",
        ),
        (["tokenizer.init_from=./no"], "tokenizer.init_from=./no: no such directory"),
    ],
)
def test_an_option_that_another_one_brings_is_told_as_it_is_typed(options, told, tmp_path):
    outcome = run(tmp_path / "run", *options)
    assert outcome.code == 2 and outcome.err.startswith(told), outcome.err


def test_an_inspection_leaves_a_report_and_trains_nothing(corpus, tmp_path):
    directory = tmp_path / "run"
    outcome = finished(directory, *corpus, "data.inspect=true")
    assert outcome.out.splitlines()[-1] == str(directory)
    assert {path.name for path in directory.iterdir()} == {
        "config.yaml",
        "summary.json",
        "inspection.json",
        "plots",
        "train.log",
    }
    told = summary(directory)
    assert list(told) == SUMMARY_KEYS
    assert (told["stage"], told["status"]) == ("inspect", "finished")
    assert set(told["metrics"]) == {"data/characters_per_token", "data/unknown_share", "data/cut_share"}
    assert told["source"] == corpus[0].removeprefix("data.source=")
    facts = json.loads((directory / "inspection.json").read_text(encoding="utf-8"))
    assert {name: split["rows"] for name, split in facts["splits"].items()} == {
        "train": 200,
        "val": 60,
        "test": 60,
    }
    report = [line.split() for line in outcome.out.splitlines()]
    assert ["rows", "200", "60", "60"] in report
    for name in ("lengths", "labels"):
        picture = matplotlib.image.imread(directory / "plots" / f"{name}.png")
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.01


def test_an_inspection_takes_no_stage_and_no_checkpoint(tmp_path):
    outcome = run(tmp_path / "run", "data.inspect=true", "stage=test", "ckpt_path=a")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "data.inspect=true: looks at the corpus and does nothing else; leave out stage=test",
        "ckpt_path=a: is not used with data.inspect=true",
    ]
    assert not (tmp_path / "run").exists()
