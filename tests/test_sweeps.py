"""Sweeps whose jobs run side by side (joblib) or are chosen by what the earlier ones gave (Optuna)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import joblib
import optuna
import pytest
from hydra import version
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from running import REPOSITORY, TINY, ended, launch, processes_of, summary, sweep, wait_for

from launch.check import check_command_line
from launch.cli import VERSION_BASE, register_resolvers
from launch.explain import config_loader

# What the user's own folder holds in these tests.
SPY = '''
import json
import os
import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch


class Spy(pl.Callback):
    """Writes what its job was given; meets the others, or breaks, where it is told to."""

    def __init__(self, run_dir, meets=0, breaks=None, how="raise"):
        self.run_dir, self.meets, self.how = Path(run_dir), meets, how
        self.breaks = self.run_dir.name == str(breaks)

    def on_train_start(self, trainer, pl_module):
        environ = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        seen = {"threads": torch.get_num_threads(), "parent": os.getppid(), "environ": environ}
        (self.run_dir / "seen.json").write_text(json.dumps(seen))
        end = time.monotonic() + 200
        while len(list(self.run_dir.parent.glob("*/seen.json"))) < self.meets:
            assert time.monotonic() < end, "no other job runs beside this one"
            time.sleep(0.05)
        if self.breaks and self.how == "raise":
            raise RuntimeError("this job breaks")
        if self.breaks:
            os.kill(os.getpid(), signal.SIGKILL)
'''
OPTIONS = (*TINY, "data.tokens_per_batch=512", "max_steps=2", "validate_every=2", "log_every=1", "logger=csv")
PARALLEL = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LR = "model.optimizer.lr=tag(log,interval(1e-4,1e-2))"


@pytest.fixture
def spy(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "spying.py").write_text(SPY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    return ("+callbacks.spy._target_=spying.Spy", "+callbacks.spy.run_dir=${hydra:runtime.output_dir}")


@pytest.fixture
def mark(monkeypatch):
    """In the environment of all processes that a test starts; none of them may outlive it."""
    name = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARK", name)
    yield name
    left = processes_of(name)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left, "processes are left"


def no_process_is_left(mark: str) -> bool:
    end = time.monotonic() + 20  # joblib's trackers of resources see that they are alone
    while processes_of(mark) and time.monotonic() < end:
        time.sleep(0.1)
    return not processes_of(mark)


def statuses(sweep_dir: Path) -> dict[str, str]:
    return {
        path.parent.name: summary(path.parent)["status"] for path in sorted(sweep_dir.glob("*/summary.json"))
    }


def value_in(run_dir: Path, option: str):
    return OmegaConf.select(OmegaConf.load(run_dir / "config.yaml"), option)


# ------------------------------------------------------------------------------------------------- side by side


@pytest.mark.slow
def test_jobs_run_side_by_side_each_with_its_share_of_threads(spy, mark, corpus, tmp_path):
    options = (*OPTIONS, *corpus, *spy, "+callbacks.spy.meets=2", "seed=1,2", f"hydra.sweep.dir={tmp_path}/s")
    without = ("env", "-u", "OMP_NUM_THREADS", sys.executable)
    outcome = ended(launch(*PARALLEL, *options, command=without, CUDA_VISIBLE_DEVICES="6,7"))
    assert outcome.code == 0, outcome.err
    assert statuses(tmp_path / "s") == {"0": "finished", "1": "finished"}
    seen = [json.loads((tmp_path / "s" / job / "seen.json").read_text()) for job in "01"]
    share = max(joblib.cpu_count() // 2, 1)
    assert [one["threads"] for one in seen] == [share, share]
    assert sorted(one["environ"]["CUDA_VISIBLE_DEVICES"] for one in seen) == ["6", "7"]
    assert seen[0]["parent"] != seen[1]["parent"]
    for job in "01":
        log = (tmp_path / "s" / job / "train.log").read_text(encoding="utf-8")
        assert "val/loss" in log and log.count("rows cut") == 3, "the log of this job and of no other"
        assert (
            sum(line.startswith(f"[{job}] ") and "val/loss" in line for line in outcome.out.splitlines()) == 1
        )
    assert len((tmp_path / "s" / "leaderboard.csv").read_text().splitlines()) == 3
    assert no_process_is_left(mark)


@pytest.mark.slow
def test_threads_that_the_user_sets_are_left_as_they_are(spy, mark, corpus, tmp_path):
    options = (*OPTIONS, *corpus, *spy, "seed=1,2", f"hydra.sweep.dir={tmp_path}/s")
    cores = str(joblib.cpu_count())
    outcome = ended(launch(*PARALLEL, *options, OMP_NUM_THREADS=cores))
    assert outcome.code == 0, outcome.err
    alone = subprocess.check_output(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"],
        env=os.environ | {"OMP_NUM_THREADS": cores},
    )
    for job in "01":
        assert json.loads((tmp_path / "s" / job / "seen.json").read_text())["threads"] == int(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, error", [("raise", "RuntimeError: this job breaks"), ("kill", "killed by SIGKILL (out of memory?)")]
)
def test_a_job_that_breaks_beside_others_stops_none(how, error, spy, mark, corpus, tmp_path):
    breaks = ("+callbacks.spy.breaks=0", f"+callbacks.spy.how={how}")
    options = (*OPTIONS, *corpus, *spy, *breaks, "seed=1,2,3", f"hydra.sweep.dir={tmp_path}/s")
    outcome = ended(launch(*PARALLEL, *options))
    assert outcome.code == 1
    assert statuses(tmp_path / "s") == {"0": "failed", "1": "finished", "2": "finished"}
    assert summary(tmp_path / "s" / "0")["error"].startswith(error)
    assert outcome.err.splitlines()[-1].startswith(f"job 0: failed, {error}")
    assert no_process_is_left(mark)


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_keeps_its_checkpoints(number, code, spy, mark, corpus, tmp_path):
    directory = f"hydra.sweep.dir={tmp_path}/s"
    options = (*OPTIONS, *corpus, "checkpoint_every=1", "seed=1,2,3", directory)
    process = launch(*PARALLEL, *options, "max_steps=100000", "validate_every=100000")
    for job in "01":
        wait_for(tmp_path / "s" / job / "checkpoints" / "last.ckpt", process)
    process.send_signal(number)
    outcome = ended(process)
    assert outcome.code == code
    assert "type the same command with hydra.sweep.dir=" in outcome.err.splitlines()[-1]
    assert statuses(tmp_path / "s") == {"0": "interrupted", "1": "interrupted"}
    assert "interrupted" in (tmp_path / "s" / "leaderboard.csv").read_text()
    assert no_process_is_left(mark)


@pytest.mark.slow
def test_no_job_outlives_the_process_that_was_typed(spy, mark, corpus, tmp_path):
    options = (*OPTIONS, *corpus, *spy, "seed=1,2", f"hydra.sweep.dir={tmp_path}/s", "max_steps=100000")
    process = launch(*PARALLEL, *options)
    for job in "01":
        wait_for(tmp_path / "s" / job / "seen.json", process)
    process.kill()
    process.communicate()
    assert no_process_is_left(mark)


# ------------------------------------------------------------------------------------------------------- Optuna


def trials(tmp_path: Path, name: str = "lr") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/study.db").trials


def stored(tmp_path: Path) -> tuple[str, ...]:
    return f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db", "hydra.sweeper.study_name=lr"


def test_every_trial_trains_with_the_values_that_the_study_has(corpus, tmp_path):
    space = (LR, "model.mask_rate=choice(0.15,0.3)", "model.backbone.num_hidden_layers=range(1,2)")
    options = (*OPTIONS, *corpus, *stored(tmp_path), *space, "hydra.sweeper.n_trials=3")
    outcome = sweep(tmp_path / "s", "sweep=optuna", *options)
    assert outcome.code == 0, outcome.err
    drawn = trials(tmp_path)
    assert len(drawn) == 3 and len({trial.params["model.optimizer.lr"] for trial in drawn}) == 3
    for trial in drawn:
        run_dir = tmp_path / "s" / str(trial.number)
        assert trial.value == summary(run_dir)["metrics"]["val/loss"]
        for option, value in trial.params.items():
            assert value_in(run_dir, option) == value
    best = min(drawn, key=lambda trial: trial.value)
    results = OmegaConf.load(tmp_path / "s" / "optimization_results.yaml")
    assert (results.best_value, results.best_params) == (best.value, best.params)


def test_a_search_space_in_a_preset_of_ones_own(corpus, tmp_path):
    """The one that docs/sweeps.md shows."""
    docs = (REPOSITORY / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (preset,) = re.findall(r"^```yaml\n# \S*/sweep/rates.yaml\n(.*?)^```", docs, re.MULTILINE | re.DOTALL)
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "rates.yaml").write_text(preset)
    own = (f"hydra.searchpath=[file://{tmp_path}/conf]", "sweep=rates", "hydra.sweeper.n_trials=2")
    outcome = sweep(tmp_path / "s", *own, *OPTIONS, *corpus, "model.mask_rate=0.2")
    assert outcome.code == 0, outcome.err
    assert statuses(tmp_path / "s") == {"0": "finished", "1": "finished"}
    rates = {value_in(tmp_path / "s" / job, "model.optimizer.lr") for job in "01"}
    assert len(rates) == 2 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert {value_in(tmp_path / "s" / job, "model.mask_rate") for job in "01"} == {0.2}


def test_a_trial_that_breaks_ends_neither_the_sweep_nor_the_study(spy, corpus, tmp_path):
    options = (*OPTIONS, *corpus, *spy, *stored(tmp_path), LR, "hydra.sweeper.n_trials=3")
    outcome = sweep(tmp_path / "s", "sweep=optuna", *options, "+callbacks.spy.breaks=1")
    assert outcome.code == 1
    assert statuses(tmp_path / "s") == {"0": "finished", "1": "failed", "2": "finished"}
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert outcome.err.splitlines()[-1].startswith("job 1: failed, RuntimeError: this job breaks")


def test_trials_that_diverge_have_no_value(corpus, tmp_path):
    options = (*OPTIONS, *corpus, *stored(tmp_path), "model.optimizer.lr=interval(1e29,1e30)")
    outcome = sweep(tmp_path / "s", "sweep=optuna", *options, "hydra.sweeper.n_trials=2")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("job 1: failed, DataError: train/loss is nan at step")
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL", "FAIL"]
    assert statuses(tmp_path / "s") == {"0": "failed", "1": "failed"}


def test_a_search_goes_on_in_its_directory(corpus, tmp_path):
    """The same seed draws the same values as long as the results are the same."""
    options = ("sweep=optuna", *OPTIONS, *corpus, LR)
    assert sweep(tmp_path / "s", *options, "hydra.sweeper.n_trials=1").code == 0
    before = (tmp_path / "s" / "0" / "summary.json").stat().st_mtime_ns
    outcome = sweep(tmp_path / "s", *options, "hydra.sweeper.n_trials=2", "ckpt_path=last")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("finished already") == 1
    assert (tmp_path / "s" / "0" / "summary.json").stat().st_mtime_ns == before
    assert sweep(tmp_path / "whole", *options, "hydra.sweeper.n_trials=2").code == 0
    rates = [
        [value_in(tmp_path / name / job, "model.optimizer.lr") for job in "01"] for name in ("s", "whole")
    ]
    assert rates[0] == rates[1] and len(set(rates[0])) == 2


@pytest.mark.slow
def test_a_stored_study_that_is_stopped_goes_on_in_another_directory(mark, corpus, tmp_path):
    options = (*OPTIONS, *corpus, *stored(tmp_path), LR, "checkpoint_every=1", "hydra.sweeper.n_trials=3")
    options += ("max_steps=60", f"hydra.sweep.dir={tmp_path}/" + "${now:%H-%M-%S-%f}")
    process = launch("-m", "sweep=optuna", *options)
    end = time.monotonic() + 200
    while not (found := list(tmp_path.glob("*/2/checkpoints/last.ckpt"))):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130
    first = found[0].parents[2]
    assert statuses(first) == {"0": "finished", "1": "finished", "2": "interrupted"}
    before = {path: path.read_bytes() for path in first.glob("*/summary.json")}

    outcome = ended(launch("-m", "sweep=optuna", *options))
    assert outcome.code == 0, outcome.err
    assert all(path.read_bytes() == content for path, content in before.items())
    (second,) = {path.parents[1] for path in tmp_path.glob("*/*/summary.json")} - {first}
    assert statuses(second) == {"0": "finished", "1": "finished", "2": "finished"}
    states = [trial.state.name for trial in trials(tmp_path)]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE", "COMPLETE", "COMPLETE"]
    rates = [trial.params["model.optimizer.lr"] for trial in trials(tmp_path)]
    assert len(set(rates)) == 6, "a study that goes on draws other values"
    assert [value_in(second / job, "model.optimizer.lr") for job in "012"] == rates[3:]


@pytest.mark.slow
def test_trials_run_side_by_side(spy, mark, corpus, tmp_path):
    search = ("sweep=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", LR, *stored(tmp_path))
    options = (*OPTIONS, *corpus, *spy, "+callbacks.spy.meets=2", f"hydra.sweep.dir={tmp_path}/s")
    outcome = ended(launch(*PARALLEL, *search, *options))
    assert outcome.code == 0, outcome.err
    assert set(statuses(tmp_path / "s").items()) == {(job, "finished") for job in "0123"}
    assert [trial.value for trial in trials(tmp_path)] == [
        summary(tmp_path / "s" / job)["metrics"]["val/loss"] for job in "0123"
    ]
    assert no_process_is_left(mark)


# ----------------------------------------------------------------------------------------------------- mistakes

NOTHING = (
    "hydra.sweeper.params: there is nothing to search; "
    "type for example 'model.optimizer.lr=tag(log,interval(1e-4,1e-2))'"
)
MISTAKES = [
    # The ends of the search space, one option at a time
    ("model.mask_rate=interval(0.1,1.5)", ["model.mask_rate=1.5: must satisfy 0 < mask_rate < 1"]),
    (
        "model.mask_rate=choice(0.1,2,3) seed=x",
        [
            "seed=x: must be a whole number",
            "model.mask_rate=2: must satisfy 0 < mask_rate < 1",
            "model.mask_rate=3: must satisfy 0 < mask_rate < 1",
        ],
    ),
    (
        "model.backbone.num_hidden_layers=range(0,6,4) seed=1,2",
        ["model.backbone.num_hidden_layers=0: must be >= 1"],
    ),
    ("model.mask_rate=range(0.5,1.0,0.25)", ["model.mask_rate=1.0: must satisfy 0 < mask_rate < 1"]),
    (
        "model.optimizer.betas=choice([0.9,0.98],[0.9,2])",
        ["model.optimizer.betas=[0.9,2]: each item must satisfy 0 <= item < 1"],
    ),
    (
        "model.optimiser.lr=interval(1e-4,1e-2)",
        ["model.optimiser.lr: no such option; did you mean optimizer?"],
    ),
    (
        "model=bert,brt",
        [
            "model=brt: there is no model/brt; did you mean bert? (there are: bert, classifier, dialogpt, wobert)"
        ],
    ),
    (
        "stage=choice(fit,vocabulary) ckpt_path=last",
        ["ckpt_path=last: is not used with stage=vocabulary  [job stage=vocabulary]"],
    ),
    # What cannot be searched
    ("model=glob(*)", ["model=glob(*): cannot be searched; type its values: choice(...)"]),
    (
        "model.optimizer.lr=tag(log,interval(0,1e-2))",
        ["model.optimizer.lr=tag(log,interval(0,1e-2)): a logarithm needs numbers above 0"],
    ),
    (
        "model.optimizer.lr=interval(1,1e-2)",
        ["model.optimizer.lr=interval(1,1e-2): its end lies before its start"],
    ),
    (
        "data.source=choice('/语料/a',b)",
        [
            "data.source=choice('/语料/a',b): choice() loses the quotes of /语料/a; "
            "type the values with commas between them, without choice()"
        ],
    ),
    # The sweeper's own options
    ("", [NOTHING]),
    ("seed=3 hydra.sweeper.n_trials=0", ["hydra.sweeper.n_trials=0: must be >= 1", NOTHING]),
    (
        "seed=1,2 hydra.sweeper.direction=minimum",
        ["hydra.sweeper.direction=minimum: must be one of minimize, maximize; did you mean minimize?"],
    ),
    (
        "seed=1,2 optimized_metric=val/masked_accuracy",
        [
            "hydra.sweeper.direction=minimize: looks for the worst val/masked_accuracy; "
            "type hydra.sweeper.direction=maximize"
        ],
    ),
    (
        "seed=1,2 optimized_metric=val/los",
        ["optimized_metric=val/los: WoBERT logs no such metric; did you mean val/loss?"],
    ),
    # A study that is stored
    (
        "seed=1,2 hydra.sweeper.storage=sqlite:///nowhere/study.db",
        [
            "hydra.sweeper.study_name: a study that is stored needs a name, by which it is continued",
            "hydra.sweeper.storage=sqlite:///nowhere/study.db: there is no directory nowhere",
        ],
    ),
]
RIGHT = [
    "model.optimizer.lr=tag(log,interval(1e-4,1e-2)) model.mask_rate=0.15,0.3 +trainer.detect_anomaly=true",
    "seed=1,2 optimized_metric=val/masked_accuracy hydra.sweeper.direction=maximize",
    "seed=1,2 hydra.sweeper.storage=sqlite:///study.db hydra.sweeper.study_name=a hydra/sweeper/sampler=random",
    "data.source='/语料/a','/语料/b' model.init_from=null,/models/a ~callbacks.learning_rate",
    "data=text data.train=choice(a.txt,b.txt)",
]


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version.setbase(VERSION_BASE)
    setup_globals()
    register_resolvers()

    def tell(typed: str, *sweeper: str, multirun: bool = True) -> list[str]:
        own = str(tmp_path / "conf") if (tmp_path / "conf").is_dir() else None
        loader = config_loader(REPOSITORY / "conf", own)
        return check_command_line(loader, "train", [*sweeper, *typed.split()], multirun)

    return tell


@pytest.mark.parametrize("typed, lines", MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_in_a_search_is_told_before_the_first_trial(typed, lines, told, tmp_path):
    assert told(typed, "sweep=optuna") == lines
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("typed", RIGHT)
def test_a_search_that_is_right_passes(typed, told):
    assert told(typed, "sweep=optuna") == []


def test_a_search_without_m(told):
    assert told("", "sweep=optuna", multirun=False) == [
        "sweep=optuna: is for sweeps, which need -m: python train.py -m ..."
    ]


def test_mistakes_in_a_preset(told, tmp_path):
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "own.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - optuna\n  - _self_\n"
        "hydra:\n  sweeper:\n    params:\n"
        "      model.mask_rate: interval(0.1,1.5)\n      model.mask_rte: 0.1\n"
        "      data.max_length: interval(32\n      seed: 3\n"
    )
    assert told("seed=1,2", "sweep=own") == [
        "hydra.sweeper.params.data.max_length=interval(32: "
        "is neither a value nor a search such as interval(1e-4,1e-2)",
        "seed: given twice: seed=3 and seed=1,2",
        "model.mask_rte: no such option; did you mean mask_rate?",
        "model.mask_rate=1.5: must satisfy 0 < mask_rate < 1",
    ]


def test_a_directory_that_holds_jobs_is_left_alone(told, tmp_path):
    (tmp_path / "s" / "0").mkdir(parents=True)
    (tmp_path / "s" / "0" / "summary.json").write_text('{"status": "finished"}')
    options = "seed=1,2 hydra.sweep.dir=s"
    assert told(options, "sweep=optuna") == ["hydra.run.dir=s/0: holds a finished run; choose another"]
    assert told(f"{options} ckpt_path=last", "sweep=optuna") == []
    study = "hydra.sweeper.storage=sqlite:///study.db hydra.sweeper.study_name=a ckpt_path=last"
    assert told(f"{options} {study}", "sweep=optuna") == [
        "hydra.sweep.dir=s: holds jobs; "
        "a study that is stored goes on in a new directory, so leave hydra.sweep.dir out"
    ]


@pytest.mark.parametrize("typed", ["sweep=optuna", "hydra/launcher=joblib"])
def test_without_the_extra(typed, tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "__init__.py").touch()  # hides the packages of Hydra's plugins
    done = subprocess.run(
        [sys.executable, REPOSITORY / "train.py", "-m", typed, "seed=1,2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    line = f'{typed}: is not installed; pip install -e ".[sweep]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_the_program_ends_with_2_before_a_directory_is_made(tmp_path):
    arguments = ["-m", "sweep=optuna", "model.mask_rate=interval(0.1,1.5)"]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "train.py", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    line = "model.mask_rate=1.5: must satisfy 0 < mask_rate < 1\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not any(tmp_path.iterdir())
