"""A sweep's directory, the jobs that it need not do again, its end. The jobs on several ranks: tests/test_ddp.py."""

import pytest
from running import TINY, jobs, metrics, summary, sweep

# What the user's own folder holds.
BREAK = """
import pytorch_lightning as pl


class Break(pl.Callback):
    def __init__(self, seed, breaks):
        self.breaks = seed == breaks

    def on_train_start(self, trainer, pl_module):
        if self.breaks:
            raise RuntimeError("this job breaks")
"""
OPTIONS = (*TINY, "data.tokens_per_batch=512", "max_steps=2", "validate_every=2", "log_every=1", "logger=csv")
BREAKS = ("+callbacks.own._target_=breaking.Break", "+callbacks.own.seed=${seed}")


@pytest.fixture
def own_classes(tmp_path, monkeypatch):
    (tmp_path / "breaking.py").write_text(BREAK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_all_jobs_lie_in_one_directory_named_after_all_of_them(corpus, tmp_path, monkeypatch):
    """Hydra itself asks for the directory's name anew for each job."""
    monkeypatch.chdir(tmp_path)
    directory = "runs/sweep-${hydra.runtime.choices.model}/${now:%H-%M-%S-%f}"
    outcome = sweep(directory, *OPTIONS, *corpus, "model=wobert,bert")
    assert outcome.code == 0, outcome.err
    (parent,) = (tmp_path / "runs").iterdir()
    assert parent.name == "sweep-wobert+bert"
    (together,) = parent.iterdir()
    assert jobs(together) == ["0", "1"]
    assert (together / "multirun.yaml").is_file() and (together / "leaderboard.csv").is_file()
    assert outcome.out.splitlines()[-1] == str(together.relative_to(tmp_path))
    assert "2 jobs: 2 finished" in outcome.out


def test_a_job_that_breaks_stops_no_other_and_a_second_launch_does_what_is_left(
    corpus, tmp_path, own_classes, capfd
):
    directory = tmp_path / "sweep"
    typed = (*OPTIONS, *corpus, *BREAKS, "seed=1,2,3")
    outcome = sweep(directory, *typed, "+callbacks.own.breaks=2")
    assert outcome.code == 1
    assert [summary(directory / job)["status"] for job in jobs(directory)] == [
        "finished",
        "failed",
        "finished",
    ]
    assert summary(directory / "1")["error"] == "RuntimeError: this job breaks"
    assert outcome.err.splitlines()[-1] == "job 1: failed, RuntimeError: this job breaks  [seed=2]"
    assert outcome.err.count("Traceback (most recent call last)") == 1
    table = (directory / "leaderboard.md").read_text(encoding="utf-8")
    assert "3 jobs: 2 finished, 1 failed" in table

    # The same command, mended: one job is done, the others are kept as they were.
    kept = {job: (directory / job / "summary.json").read_bytes() for job in "02"}
    refused = sweep(directory, *typed, "+callbacks.own.breaks=0")
    assert refused.code == 2 and "ckpt_path=last" in refused.err
    again = sweep(directory, *typed, "+callbacks.own.breaks=2", "ckpt_path=last")
    assert again.code == 1 and again.out.count("finished already: ") == 2
    mended = sweep(directory, *typed, "+callbacks.own.breaks=0", "ckpt_path=last")
    assert mended.code == 0, mended.err
    assert [summary(directory / job)["status"] for job in jobs(directory)] == ["finished"] * 3
    assert len(metrics(directory / "1")) > 0
    assert {job: (directory / job / "summary.json").read_bytes() for job in "02"}.keys() == kept.keys()


def test_a_finished_job_with_other_options_is_not_taken_for_done(corpus, tmp_path):
    directory = tmp_path / "sweep"
    assert sweep(directory, *OPTIONS, *corpus, "seed=1,2").code == 0
    before = (directory / "0/summary.json").read_bytes()
    outcome = sweep(directory, *OPTIONS, *corpus, "seed=1,2", "ckpt_path=last")
    assert outcome.code == 0 and outcome.out.count("finished already: ") == 2
    assert (directory / "0/summary.json").read_bytes() == before
    outcome = sweep(directory, *OPTIONS, *corpus, "seed=1,2", "ckpt_path=last", "max_steps=3")
    assert outcome.code == 0 and "finished already" not in outcome.out
    assert [row["step"] for row in metrics(directory / "0") if "train/loss" in row] == [0, 1, 2]
    # A limit is free where a sweep goes on, but not where it is what the jobs differ in.
    refused = sweep(directory, *OPTIONS, *corpus, "seed=1", "ckpt_path=last", "max_steps=2,3")
    assert refused.code == 2 and "its job 0 was another one" in refused.err
    # Job 0 of another sweep would go on with the weights of seed 1.
    before = (directory / "0/summary.json").read_bytes()
    refused = sweep(directory, *OPTIONS, *corpus, "seed=3,1", "ckpt_path=last", "max_steps=4")
    assert refused.code == 2 and "Traceback" not in refused.err
    assert "its job 0 was another one, with seed=1 and not seed=3" in refused.err
    assert (directory / "0/summary.json").read_bytes() == before


def test_what_the_user_has_typed_wrong_is_told_without_a_traceback(corpus, tmp_path):
    """Only the corpus can show it, so the other jobs run."""
    directory = tmp_path / "sweep"
    outcome = sweep(directory, *OPTIONS, *corpus, "data.task=tnews,afqmc")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("job 1: failed, DataError: ")
    assert [summary(directory / job)["status"] for job in jobs(directory)] == ["finished", "failed"]
