"""Two ranks on this machine, started by train.py, by a sweep and by torchrun: every rank does the same job."""

import json
import os
import signal
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from running import (
    REPOSITORY,
    TINY,
    ended,
    jobs,
    launch,
    processes_of,
    summary,
    values,
    wait_for,
    wait_for_step,
)

# What the user's own folder holds in these tests.
SPY = '''
import json
import os
import signal
import time

import pytorch_lightning as pl


class Spy(pl.Callback):
    """Writes what its rank trains on; breaks or stands still where it is told to."""

    def __init__(self, folder, breaks=None, on_rank=1, in_job=None, how="raise", mark=None):
        self.folder, self.breaks, self.on_rank, self.how = folder, breaks, on_rank, how
        self.mine = in_job is None or in_job == mark
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append([trainer.global_step, sorted(batch.row_ids.tolist())])
        if trainer.global_step != self.breaks or not self.mine:
            return
        if trainer.global_rank == self.on_rank:
            if self.how == "raise":
                raise RuntimeError("this rank breaks")
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "raise":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)  # as in a collective call that no one answers

    def on_fit_end(self, trainer, pl_module):
        seen = {
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "lr": trainer.optimizers[0].defaults["lr"],
            "seed": pl_module.seed,
            "cwd": os.getcwd(),
            "rows": self.rows,
        }
        with open(os.path.join(self.folder, f"rank{trainer.global_rank}.json"), "w") as file:
            json.dump(seen, file)
'''

STEPS = 4
OPTIONS = (
    *(option for option in TINY if not option.startswith("trainer=")),
    "trainer=ddp_cpu",
    "trainer.devices=2",
    "data.tokens_per_batch=512",
    f"max_steps={STEPS}",
    f"validate_every={STEPS}",
    "log_every=1",
    "checkpoint_every=2",
    "logger=csv",
    "+callbacks.spy._target_=spying.Spy",
    "+callbacks.spy.folder=${hydra:runtime.output_dir}",
)


@pytest.fixture
def go(corpus, tmp_path):
    """Starts train.py with the spy at hand; afterwards no process of it may be left."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "spying.py").write_text(SPY, encoding="utf-8")
    mark = uuid.uuid4().hex

    def start(*options, **how):
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        flag = ["-m"] if "-m" in options else []
        rest = [option for option in options if option != "-m"]
        return launch(*flag, *OPTIONS, *corpus, *rest, PYTHONPATH=path, TEST_MARK=mark, **how)

    yield start
    end = time.monotonic() + 20
    while (left := processes_of(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left, "processes are left"


def seen(run_dir: Path) -> list[dict]:
    """What the ranks of a run have seen, by rank."""
    ranks = [json.loads(path.read_text()) for path in run_dir.glob("rank*.json")]
    return sorted(ranks, key=lambda one: one["rank"])


def assert_run_of(run_dir: Path, world_size: int) -> None:
    """The run is finished and was made by so many ranks, which have trained on different rows of the same steps."""
    told, ranks = summary(run_dir), seen(run_dir)
    assert told["status"] == "finished" and told["error"] is None
    assert told["world_size"] == world_size
    assert [(one["rank"], one["world_size"]) for one in ranks] == [(r, world_size) for r in range(world_size)]
    assert len({(one["lr"], one["seed"]) for one in ranks}) == 1
    rows = defaultdict(list)
    for one in ranks:
        assert len(one["rows"]) == STEPS
        for step, some in one["rows"]:
            rows[step] += some
    for some in rows.values():
        assert len(some) == len(set(some)) >= world_size
    assert len(values(run_dir, "train/loss")) == STEPS
    assert not (run_dir / ".ranks").exists()


def test_a_plain_run(go, tmp_path):
    outcome = ended(go(f"hydra.run.dir={tmp_path}/run"))
    assert outcome.code == 0, outcome.err
    assert_run_of(tmp_path / "run", 2)
    assert outcome.out.splitlines()[-1] == str(tmp_path / "run")
    assert "2 ranks (gloo)" in outcome.out
    assert outcome.out.count("WARNING") <= 2 and "rank 1" not in outcome.out + outcome.err
    # What is left serves one process as well.
    again = ended(
        go("stage=validate", f"ckpt_path={tmp_path}/run", f"hydra.run.dir={tmp_path}/val", "trainer=cpu")
    )
    assert again.code == 0, again.err
    one, two = (summary(tmp_path / name)["metrics"]["val/loss"] for name in ("run", "val"))
    assert one == pytest.approx(two, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1,2", "2,1"])
def test_a_sweep_over_the_number_of_ranks(devices, go, tmp_path):
    no_dropout = "model.backbone.hidden_dropout=0"  # it differs from rank to rank
    outcome = ended(go("-m", f"trainer.devices={devices}", no_dropout, f"hydra.sweep.dir={tmp_path}/sweep"))
    assert outcome.code == 0, outcome.err
    assert jobs(tmp_path / "sweep") == ["0", "1"]
    for job, number in enumerate(devices.split(",")):
        assert_run_of(tmp_path / "sweep" / str(job), int(number))
    # The same steps, whoever makes them.
    one, two = (values(tmp_path / "sweep" / job, "train/loss") for job in "01")
    assert [step for step, _ in one] == [step for step, _ in two]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.slow
def test_a_grid_in_a_directory_named_by_the_clock(go, tmp_path):
    """And a second sweep right after the first one."""
    for _ in range(2):
        outcome = ended(
            go("-m", "seed=1,2", "model=wobert,bert", f"hydra.sweep.dir={tmp_path}/${{now:%H-%M-%S-%f}}")
        )
        assert outcome.code == 0, outcome.err
    sweeps = sorted(path for path in tmp_path.iterdir() if path.name[0].isdigit())
    assert len(sweeps) == 2
    for sweep in sweeps:
        assert jobs(sweep) == ["0", "1", "2", "3"]
        for job in range(4):
            assert_run_of(sweep / str(job), 2)
        drawn = [(summary(sweep / str(job))["model"], seen(sweep / str(job))[1]["seed"]) for job in range(4)]
        assert drawn == [("wobert", 1), ("bert", 1), ("wobert", 2), ("bert", 2)]
        assert len((sweep / "leaderboard.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_an_optuna_sweep_gives_all_ranks_the_same_values(go, tmp_path):
    outcome = ended(
        go(
            "-m",
            "sweep=optuna",
            "hydra.sweeper.n_trials=3",
            "model.optimizer.lr=interval(0.0001,0.01)",
            f"hydra.sweep.dir={tmp_path}/sweep",
        )
    )
    assert outcome.code == 0, outcome.err
    assert jobs(tmp_path / "sweep") == ["0", "1", "2"]
    rates = set()
    for job in jobs(tmp_path / "sweep"):
        assert_run_of(tmp_path / "sweep" / job, 2)
        typed = [o for o in summary(tmp_path / "sweep" / job)["overrides"] if "optimizer.lr" in o]
        rate = float(typed[0].partition("=")[2])
        assert [one["lr"] for one in seen(tmp_path / "sweep" / job)] == [rate, rate]
        rates.add(rate)
    assert len(rates) == 3


@pytest.mark.parametrize(
    "how, error",
    [
        ("raise", "RuntimeError: this rank breaks (rank 1)"),
        pytest.param("kill", "killed by SIGKILL (out of memory?) (rank 1)", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_breaks_ends_its_job_and_no_other(how, error, go, tmp_path):
    outcome = ended(
        go(
            "-m",
            "seed=1,2,3",
            f"hydra.sweep.dir={tmp_path}/sweep",
            "+callbacks.spy.breaks=2",
            "+callbacks.spy.in_job=2",
            "+callbacks.spy.mark=${seed}",
            f"+callbacks.spy.how={how}",
        )
    )
    assert outcome.code == 1
    assert jobs(tmp_path / "sweep") == ["0", "1", "2"]
    for job in "02":
        assert_run_of(tmp_path / "sweep" / job, 2)
    told = summary(tmp_path / "sweep/1")
    assert (told["status"], told["error"], told["world_size"]) == ("failed", error, 2)
    assert outcome.err.count("RuntimeError: this rank breaks\n") == (how == "raise")  # its traceback, once
    assert outcome.err.splitlines()[-1].startswith(f"job 1: failed, {error}")
    assert error in (tmp_path / "sweep/leaderboard.csv").read_text()


@pytest.mark.slow
def test_a_run_whose_first_rank_breaks(go, tmp_path):
    outcome = ended(
        go(f"hydra.run.dir={tmp_path}/run", "+callbacks.spy.breaks=2", "+callbacks.spy.on_rank=0")
    )
    assert outcome.code == 1
    assert outcome.err.count("Traceback (most recent call last)") == 1
    assert outcome.err.splitlines()[-1] == "RuntimeError: this rank breaks (rank 0)"
    told = summary(tmp_path / "run")
    assert (told["status"], told["error"]) == ("failed", "RuntimeError: this rank breaks (rank 0)")


@pytest.mark.slow
def test_jobs_that_change_into_their_directory(go, tmp_path):
    outcome = ended(go("-m", "seed=1,2", "hydra.job.chdir=true", f"hydra.sweep.dir={tmp_path}/sweep"))
    assert outcome.code == 0, outcome.err
    for job in "01":
        assert_run_of(tmp_path / "sweep" / job, 2)
        assert {one["cwd"] for one in seen(tmp_path / "sweep" / job)} == {str(tmp_path / "sweep" / job)}
    assert (tmp_path / "sweep/leaderboard.csv").is_file()


@pytest.mark.slow
def test_ctrl_c_in_a_sweep_keeps_what_is_finished_and_the_sweep_goes_on(go, tmp_path):
    sweep = tmp_path / "sweep"
    options = ("-m", "seed=1,2,3", f"hydra.sweep.dir={sweep}")
    # Long enough to be caught in its middle; the third job has not begun by then.
    process = go(*options, "max_steps=2000", "max_time=00:00:00:08", "validate_every=2000")
    wait_for(sweep / "1", process)
    wait_for_step(sweep / "1", 0, process)
    process.send_signal(signal.SIGINT)
    outcome = ended(process, 60)
    assert outcome.code == 130 and "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1] == (
        "interrupted; to continue the sweep, type the same command with "
        f"hydra.sweep.dir={os.path.relpath(sweep, REPOSITORY)} ckpt_path=last"
    )
    assert [summary(sweep / job)["status"] for job in jobs(sweep)] == ["finished", "interrupted"]
    step = torch.load(sweep / "1/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step == len(values(sweep / "1", "train/loss"))
    first = (sweep / "0/summary.json").read_bytes()
    outcome = ended(
        go(*options, "max_steps=2000", "max_time=00:00:00:08", "validate_every=2000", "ckpt_path=last")
    )
    assert outcome.code == 0, outcome.err
    assert [summary(sweep / job)["status"] for job in jobs(sweep)] == ["finished"] * 3
    assert (sweep / "0/summary.json").read_bytes() == first
    steps = [step for step, _ in values(sweep / "1", "train/loss")]
    assert steps == list(range(len(steps))) and len(steps) > step


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint(go, tmp_path):
    process = go(
        f"hydra.run.dir={tmp_path}/run", "max_steps=5000", "validate_every=5000", "checkpoint_every=0"
    )
    wait_for_step(tmp_path / "run", 0, process)
    process.terminate()
    outcome = ended(process, 60)
    assert outcome.code == 143 and "Traceback" not in outcome.err
    assert summary(tmp_path / "run")["status"] == "interrupted"
    step = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step == len(values(tmp_path / "run", "train/loss"))


@pytest.mark.slow
def test_ranks_end_with_the_process_that_has_started_them(go, tmp_path):
    """What is left after SIGKILL is looked for when the test is over."""
    process = go(f"hydra.run.dir={tmp_path}/run", "max_steps=5000", "validate_every=5000")
    wait_for_step(tmp_path / "run", 0, process)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_torchrun_starts_the_ranks(go, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    outcome = ended(go(f"hydra.run.dir={tmp_path}/${{now:%H-%M-%S-%f}}", command=torchrun))
    assert outcome.code == 0, outcome.err
    (run_dir,) = [path for path in tmp_path.iterdir() if path.name[0].isdigit()]
    assert_run_of(run_dir, 2)
    outcome = ended(go("-m", "seed=1,2", command=torchrun))
    assert outcome.code != 0 and "-m: a sweep starts the ranks of its jobs itself" in outcome.err
    # Lightning alone would train two models there, one after the other's files.
    outcome = ended(go("trainer=cpu", "trainer.devices=1", f"hydra.run.dir={tmp_path}/one", command=torchrun))
    assert outcome.code != 0
    assert (
        "trainer.devices=1: 2 processes were started on this machine, 2 in all; type trainer.devices=2"
        in (outcome.err)
    )


@pytest.mark.slow
def test_what_all_ranks_find_wrong_is_told_once(go, tmp_path):
    outcome = ended(go(f"hydra.run.dir={tmp_path}/run", "data.tokens_per_batch=33", "data.num_workers=0"))
    assert outcome.code == 2
    assert (
        outcome.err.count("tokens_per_batch=33: a step may hold only") == 1 and "Traceback" not in outcome.err
    )
    assert summary(tmp_path / "run")["status"] == "failed"
