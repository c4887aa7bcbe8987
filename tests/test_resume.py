"""A run that was stopped and continued equals the run that was not: numbers and weights, bit for bit."""

import os
import signal

import pytest
import torch
from running import (
    REPOSITORY,
    TINY,
    finished,
    metrics,
    run,
    start,
    summary,
    values,
    wait_for_step,
    weights,
)

# Seven steps an epoch; dropout, warm-up and decay are on.
OPTIONS = (*TINY, "data.tokens_per_batch=512", "max_steps=17", "validate_every=6", "log_every=1")
STEPS_PER_EPOCH = 7

# What the user's own folder holds in these tests.
STOP = '''
import signal

import pytorch_lightning as pl


class Stop(pl.Callback):
    """Breaks the run before optimiser step `step`."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError(f"stopped before step {self.step}")


class PressCtrlC(pl.Callback):
    """Ctrl-C in the middle of optimiser step `step`."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGINT)
'''


@pytest.fixture(scope="session")
def uninterrupted(corpus, tmp_path_factory):
    """The run without a stop, made once for each set of options."""
    runs = {}

    def make(*options):
        if options not in runs:
            runs[options] = tmp_path_factory.mktemp("uninterrupted") / "run"
            finished(runs[options], *OPTIONS, *corpus, *options)
        return runs[options]

    return make


@pytest.fixture
def own_classes(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "stopping.py").write_text(STOP, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def stopped(corpus, tmp_path, own_classes):
    """A run that broke before a step, its last checkpoint some steps older."""

    def make(step, checkpoint_every, *options):
        directory = tmp_path / "run"
        stop = ("+callbacks.stop._target_=stopping.Stop", f"+callbacks.stop.step={step}")
        with pytest.raises(RuntimeError, match=f"stopped before step {step}"):
            run(directory, *OPTIONS, *corpus, *stop, f"checkpoint_every={checkpoint_every}", *options)
        assert summary(directory)["status"] == "failed"
        assert f"stopped before step {step}" in summary(directory)["error"]
        assert torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["global_step"] == (
            (step // checkpoint_every) * checkpoint_every
        )
        return directory

    return make


def contents(directory) -> dict:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_same_run(one, other):
    assert metrics(one) == metrics(other)
    assert summary(one)["metrics"] == summary(other)["metrics"]
    for name in ("last.ckpt", "best.ckpt"):
        first, second = weights(one / "checkpoints" / name), weights(other / "checkpoints" / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    exported = [(directory / "export/model.safetensors").read_bytes() for directory in (one, other)]
    assert exported[0] == exported[1]


@pytest.mark.parametrize(
    "step, checkpoint_every, options",
    [
        pytest.param(5, 4, (), id="in-the-middle-of-an-epoch"),
        pytest.param(STEPS_PER_EPOCH + 1, STEPS_PER_EPOCH, (), id="at-an-epochs-end"),
        pytest.param(STEPS_PER_EPOCH, STEPS_PER_EPOCH, (), id="between-two-epochs"),
        pytest.param(11, 10, ("model=bert", "model.whole_word_masking=true"), id="in-the-second-epoch"),
        pytest.param(9, 8, ("data.max_tokens_per_device=280", "validate_every=4"), id="micro-batches"),
        pytest.param(8, 5, ("data.num_workers=1",), id="worker-process"),
        pytest.param(5, 4, ("trainer.limit_train_batches=4",), id="limited-epochs"),
        pytest.param(8, 5, ("callbacks=[default,ema]", "callbacks.ema.update_starting_at_step=2"), id="ema"),
        pytest.param(
            5,
            4,
            (
                "callbacks=[default,early_stopping]",
                "callbacks.early_stopping.patience=2",
                "validate_every=2",
                "model.optimizer.lr=2.0",
            ),
            id="early-stopping",
        ),
    ],
)
def test_a_continued_run_equals_the_uninterrupted_one(
    step, checkpoint_every, options, stopped, uninterrupted, corpus
):
    directory = stopped(step, checkpoint_every, *options)
    seconds = summary(directory)["wall_seconds"]
    finished(directory, *OPTIONS, *corpus, *options, f"checkpoint_every={checkpoint_every}", "ckpt_path=last")
    assert_same_run(directory, uninterrupted(*options))
    assert summary(directory)["wall_seconds"] > seconds
    assert [step for step, _ in values(directory, "train/loss")] == list(range(steps_made(directory)))


def without_epoch(rows) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "epoch"} for row in rows]


def steps_made(directory) -> int:
    return torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["global_step"]


def test_several_stops_at_ends_of_epochs(stopped, uninterrupted, corpus):
    """Lightning alone is an epoch behind after the second resume from an epoch's last batch."""
    every = f"checkpoint_every={STEPS_PER_EPOCH}"
    stopped(STEPS_PER_EPOCH + 1, STEPS_PER_EPOCH)
    directory = stopped(2 * STEPS_PER_EPOCH + 1, STEPS_PER_EPOCH, "ckpt_path=last")
    finished(directory, *OPTIONS, *corpus, every, "ckpt_path=last")
    assert_same_run(directory, uninterrupted())


def test_ctrl_c_waits_for_the_end_of_the_batch(own_classes, uninterrupted, corpus, tmp_path):
    directory = tmp_path / "run"
    options = (*OPTIONS, *corpus, "checkpoint_every=4")
    press = ("+callbacks.press._target_=stopping.PressCtrlC", "+callbacks.press.step=5")
    outcome = run(directory, *options, *press)
    assert outcome.code == 130 and "Traceback" not in outcome.err
    how = f"hydra.run.dir={os.path.relpath(directory)} ckpt_path=last"
    assert f"interrupted; to continue, type the same command with {how}" in outcome.err
    assert outcome.out.splitlines()[-1] == str(directory)
    assert summary(directory)["status"] == "interrupted"
    assert [step for step, _ in values(directory, "train/loss")] == list(range(6))
    finished(directory, *options, "ckpt_path=last")
    assert_same_run(directory, uninterrupted())


def test_another_directory_can_continue_a_run(stopped, uninterrupted, corpus, tmp_path):
    directory = stopped(5, 4)
    before = contents(directory)
    other = tmp_path / "other"
    finished(other, *OPTIONS, *corpus, f"ckpt_path={directory}")
    expected = uninterrupted()
    for name in ("train/loss", "val/loss"):
        assert values(other, name) == [value for value in values(expected, name) if value[0] >= 4]
    first, second = weights(other / "checkpoints/last.ckpt"), weights(expected / "checkpoints/last.ckpt")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert contents(directory) == before


def test_a_first_launch_with_ckpt_path_last_starts_anew(uninterrupted, corpus, tmp_path):
    finished(tmp_path / "run", *OPTIONS, *corpus, "ckpt_path=last")
    assert_same_run(tmp_path / "run", uninterrupted())


def test_a_finished_run_is_refused_and_may_be_continued(corpus, tmp_path):
    directory = tmp_path / "run"
    short = (*OPTIONS, *corpus, "max_steps=3")
    finished(directory, *short)
    before = contents(directory)
    for stage in ((), ("stage=test", f"ckpt_path={directory}")):
        refused = run(directory, *short, *stage)
        assert refused.code == 2 and "Traceback" not in refused.err
        assert "holds a finished run" in refused.err and str(directory) in refused.err
    assert contents(directory) == before

    # Continued with nothing left to do it stays what it is; with more steps it goes on.
    rows = metrics(directory)
    finished(directory, *short, "ckpt_path=last")
    assert without_epoch(metrics(directory)) == without_epoch(rows)
    finished(directory, *short, "ckpt_path=last", "max_steps=5")
    assert [step for step, _ in values(directory, "train/loss")] == list(range(5))
    assert values(directory, "train/loss")[:3] == [(row["step"], row["train/loss"]) for row in rows[:3]]


@pytest.mark.parametrize(
    "options, message",
    [
        (["data.tokens_per_batch=600"], "the checkpoint was written with another plan of batches"),
        (["data.max_tokens_per_device=280"], "the checkpoint was written with 1 micro-batches a step"),
        (["ckpt_path=damaged.ckpt"], "damaged.ckpt: this checkpoint is damaged or not a checkpoint"),
        (["model.backbone.hidden_size=48"], "ckpt_path: the checkpoint holds another network"),
    ],
)
def test_what_a_checkpoint_does_not_fit_is_told(options, message, stopped, corpus, tmp_path, monkeypatch):
    directory = stopped(3, 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.ckpt").write_bytes((directory / "checkpoints/last.ckpt").read_bytes()[:5000])
    outcome = run(tmp_path / "other", *OPTIONS, *corpus, f"ckpt_path={directory}", *options)
    assert outcome.code == 2
    assert message in outcome.err and "Traceback" not in outcome.err


LONG = (*OPTIONS, "max_steps=150", "validate_every=50", f"checkpoint_every={STEPS_PER_EPOCH}")


@pytest.mark.slow
def test_a_killed_run_goes_on(corpus, tmp_path):
    """SIGKILL leaves a whole last.ckpt and the rows written so far; the last launch ends as the whole run."""
    finished(tmp_path / "whole", *LONG, *corpus)
    directory = tmp_path / "killed"
    # Every checkpoint lies at the end of an epoch, as many resumes in a row as kills.
    for step in (20, 60, 100):
        process = start(directory, *LONG, *corpus, "ckpt_path=last")
        wait_for_step(directory, step, process)
        process.kill()
        process.wait()
        assert summary(directory)["status"] == "running"
        assert torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["global_step"] >= step - 7
    # What a process leaves that was killed while it wrote.
    (directory / "checkpoints/.last.ckpt.tmp").write_bytes(b"half a checkpoint")
    (directory / ".export.tmp").mkdir()
    finished(directory, *LONG, *corpus, "ckpt_path=last")
    assert_same_run(directory, tmp_path / "whole")
    assert not list(directory.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(number, code, corpus, tmp_path):
    directory = tmp_path / "run"
    process = start(directory, *LONG, *corpus)
    wait_for_step(directory, 20, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    how = f"hydra.run.dir={os.path.relpath(directory, REPOSITORY)} ckpt_path=last"
    assert f"interrupted; to continue, type the same command with {how}" in err
    assert summary(directory)["status"] == "interrupted"
    finished(directory, *LONG, *corpus, "ckpt_path=last")
    finished(tmp_path / "whole", *LONG, *corpus)
    assert_same_run(directory, tmp_path / "whole")
