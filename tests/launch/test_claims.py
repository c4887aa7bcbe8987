"""Claims without their runs: what is planned, what is refused, what is kept, what is left and recorded."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from running import REPOSITORY, run, summary

from datamodules.atomic import write_whole
from launch import claims
from launch.check import check_command_line
from launch.claims import Claim, Job, grouped, plan, spread
from launch.cli import register_resolvers
from launch.explain import config_loader
from launch.reports import wobert_speed

CLAIM = {
    "statement": "Two is more than one",
    "article": "https://kexue.fm/archives/7758",
    "criterion": "the gain is above its threshold for each seed.",
    "thresholds": {"gain": 0.5},
    "minutes": 1,
    "scale": "quick",
    "report": "gain_report.report",
    "asks": {"data.source": "a folder with tnews/train.json"},
    "steps": {
        "train": {"overrides": ["seed=1,2", "model=wobert,bert"], "full": ["seed=1,2,3", "max_steps=9"]},
        "test": {"for_each": "train", "overrides": ["stage=test", "ckpt_path={train}"]},
        "tune": {
            "for_each": "train",
            "overrides": [
                "model={train:model}",
                "model.init_from={train}",
                "seed={train:seed}",
                "max_steps=3,4",
            ],
        },
    },
}
REPORT = '''
from matplotlib.figure import Figure
from launch.claims import Report

def report(steps, thresholds):
    """The metric `gain` of every job of the step train."""
    gains = [job.summary["metrics"]["gain"] for job in steps["train"]]
    figure = Figure()
    figure.add_subplot()
    return Report(
        met=min(gains) > thresholds["gain"], because=f"the least gain is {min(gains)}.", numbers={"gain": min(gains)},
        header=["job", "gain"], rows=[[job.directory.name, gain] for job, gain in zip(steps["train"], gains)],
        notes="A note.", figures={"gains": figure},
    )
'''


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A directory with a claim of one's own, `experiment=claims/gain`, and its report function."""
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "gain_report.py").write_text(REPORT)
    (tmp_path / "conf" / "experiment" / "claims").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("gain_report", None)


def written(world: Path, **changes) -> Path:
    """The claim's yaml; `changes` go into its node, None takes a key away, "..." keys into a step."""
    node = OmegaConf.to_container(OmegaConf.create(CLAIM))
    for path, value in changes.items():
        parent, _, key = path.replace("__", ".").rpartition(".")
        holder = node
        for name in filter(None, parent.split(".")):
            holder = holder[name]
        if value is None:
            del holder[key]
        else:
            holder[key] = value
    file = world / "conf" / "experiment" / "claims" / "gain.yaml"
    file.write_text("# @package _global_\n" + OmegaConf.to_yaml({"max_steps": 2, "claim": node}))
    return file


# ---------------------------------------------------------------------------------------------------- the plan


def planned(directory: str = "runs/claims/gain", scale: str = "quick", **changes) -> dict[str, list]:
    node = CLAIM | {"scale": scale} | changes
    claim = Claim.of(OmegaConf.create({"claim": node}), OmegaConf.create({"experiment": "claims/gain"}))
    assert claim.name == "gain"
    return plan(claim, Path(directory), config_loader(REPOSITORY / "conf"))


def test_a_step_is_a_sweep():
    [train] = planned()["train"]
    assert train.directory == Path("runs/claims/gain/train")
    assert train.arguments == ["seed=1,2", "model=wobert,bert", "ckpt_path=last"]
    assert [(job.directory.name, job.options) for job, _ in train.jobs] == [
        ("0", {"seed": 1, "model": "wobert"}),
        ("1", {"seed": 1, "model": "bert"}),
        ("2", {"seed": 2, "model": "wobert"}),
        ("3", {"seed": 2, "model": "bert"}),
    ]


def test_a_step_for_each_job_of_another_sweeps_their_runs():
    steps = planned()
    [train], [test] = steps["train"], steps["test"]
    runs = ",".join(f"'runs/claims/gain/train/{number}'" for number in range(4))
    assert test.arguments == ["stage=test", f"ckpt_path={runs}"]  # it says itself where it goes on
    assert [job.origin for job, _ in test.jobs] == [job for job, _ in train.jobs]


def test_jobs_that_agree_in_what_is_taken_over_are_one_sweep():
    tuned = planned()["tune"]
    assert [sweep.directory.name for sweep in tuned] == [
        "model=wobert,seed=1",
        "model=bert,seed=1",
        "model=wobert,seed=2",
        "model=bert,seed=2",
    ]
    for number, sweep in enumerate(tuned):
        assert [job.options["max_steps"] for job, _ in sweep.jobs] == [3, 4]
        assert {job.origin.directory.name for job, _ in sweep.jobs} == {str(number)}
        assert all(job.options["seed"] == job.origin.options["seed"] for job, _ in sweep.jobs)
    steps = {
        **CLAIM["steps"],
        "tune": {"for_each": "train", "overrides": ["model.init_from={train}", "seed={train:seed}"]},
    }
    tuned = planned(steps=steps)["tune"]
    assert [[job.origin.options["model"] for job, _ in sweep.jobs] for sweep in tuned] == 2 * [
        ["wobert", "bert"]
    ]


def test_any_directory_can_be_named():
    odd = "it's a \\ run, 试=1 {x}"
    [test] = planned(odd)["test"]
    assert [job.origin.directory for job, _ in test.jobs] == [Path(odd, "train", str(n)) for n in range(4)]
    assert test.jobs[2][0].options["ckpt_path"] == f"{odd}/train/2"


def test_the_full_scale_adds_options_or_takes_their_place():
    [train] = planned(scale="full")["train"]
    assert train.overrides == ["seed=1,2,3", "model=wobert,bert", "max_steps=9"]
    assert len(planned(scale="full")["test"][0].jobs) == 6


# ------------------------------------------------------------------------------------------------ what is refused

SOURCE = "data.source=/corpora/clue"
MISTAKES = [
    ({}, [], ["data.source: experiment=claims/gain needs it: a folder with tnews/train.json"]),
    (
        {"minuets": 3, "minutes": None, "scale": "big", "steps": {}},
        [SOURCE],
        [
            "claim.minuets: no such option; did you mean minutes?",
            "claim.minutes: is missing; it must be given",
            "claim.scale=big: must be one of quick, full",
            "claim.steps: is empty; it names at least one step",
        ],
    ),
    (
        {"steps__train__overrides": "model=bert", "steps__test__foreach": "train", "steps__tune": ["seed=1"]},
        [SOURCE],
        [
            "claim.steps.train.overrides=model=bert: must be a list",
            "claim.steps.test.foreach: no such option; did you mean for_each?",
            "claim.steps.tune: must be a mapping with the key overrides",
        ],
    ),
    (
        {"report": "gain_report.reprot"},
        [SOURCE],
        ["claim.report=gain_report.reprot: there is no reprot in gain_report; did you mean report?"],
    ),
    (
        {"report": "launch.claims.Job"},
        [SOURCE],
        ["claim.report=launch.claims.Job: must be a function (steps, thresholds) -> Report"],
    ),
    (
        {"steps__test__for_each": "tarin", "steps__tune__overrides": ["seed={train:sede}"]},
        [SOURCE],
        [
            "claim.steps.test.for_each=tarin: no step before it has that name (there are: train)",
            "claim.steps.tune: one option names the run, ckpt_path={train} or model.init_from={train}; "
            "others can refer to that option: ${ckpt_path}",
            "claim.steps.tune: {train:sede}: step train types no such option (there are: seed, model)",
        ],
    ),
    (
        {"steps__test__for_each": None},
        [SOURCE],
        ["claim.steps.test: {train}: is known in a step with for_each: train"],
    ),
    (
        {"steps__train__overrides": ["seed=1", "ckpt_path=last", "hydra.sweep.dir=x", "model"]},
        [SOURCE],
        [
            "claim.steps.train: ckpt_path=last: is typed by the claim itself",
            "claim.steps.train: hydra.sweep.dir=x: is typed by the claim itself",
            "claim.steps.train: model: is no option=value; type model=VALUE",
        ],
    ),
    (
        {},
        [SOURCE, "seed=3", "ckpt_path=last", "claim.thresholds.gain=0"],
        [
            "claim.thresholds.gain=0: is fixed by experiment=claims/gain, whose criterion was written before the runs",
            "seed=3: is fixed by experiment=claims/gain (step train, tune); leave it out",
            "ckpt_path=last: is fixed by experiment=claims/gain (step test); leave it out",
        ],
    ),
    # What every job would tell again is told once; what a step's jobs alone get wrong, with the step's name.
    (
        {
            "steps__train__overrides": ["seed=1,2", "model=wobert,brt"],
            "steps__tune__overrides": ["model.init_from={train}", "model.mask_rat=1", "seed=x"],
        },
        [SOURCE, "max_steps=0"],
        [
            "max_steps=0: must be -1 or >= 1",
            "step train: model=brt: there is no model/brt; did you mean bert? (there are: bert, classifier, dialogpt, wobert)  [job model=brt]",
            "step tune: model.mask_rat: no such option; did you mean mask_rate?",
            "step tune: seed=x: must be a whole number",
        ],
    ),
]


def told(world: Path, *options: str, multirun: bool = False) -> list[str]:
    setup_globals()  # an earlier test may have cleared Hydra's resolvers
    register_resolvers()
    loader = config_loader(REPOSITORY / "conf", str(world / "conf"))
    return check_command_line(loader, "train", ["experiment=claims/gain", *options], multirun)


@pytest.mark.parametrize("changes, options, lines", MISTAKES)
def test_all_mistakes_are_told_at_once(changes, options, lines, world):
    written(world, **changes)
    assert sorted(told(world, *options)) == sorted(lines)


def test_a_claim_is_typed_without_m(world):
    written(world)
    assert told(world, SOURCE, multirun=True) == [
        "experiment=claims/gain: a claim types its sweeps itself; leave out -m"
    ]
    assert told(world, SOURCE, "claim=null", "seed=1,2", multirun=True) == []  # its jobs are typed with -m


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize(
    "name", [file.stem for file in (REPOSITORY / "conf/experiment/claims").glob("*.yaml")]
)
def test_the_claims_of_this_project_have_no_mistakes(name, scale, tmp_path):
    setup_globals()
    register_resolvers()
    file = tmp_path / "file.txt"
    file.write_text("x\n")
    node = OmegaConf.load(REPOSITORY / f"conf/experiment/claims/{name}.yaml").claim
    assert 0 < node.minutes <= 30
    given = [f"{option}={file}" for option in node.get("asks", {})]
    arguments = [f"experiment=claims/{name}", f"claim.scale={scale}", *given]
    assert check_command_line(config_loader(REPOSITORY / "conf"), "train", arguments) == []


# --------------------------------------------------------------------------------------------------- what is run


class Runs:
    """Stands in for the processes of a claim's steps: writes the summaries of their jobs."""

    def __init__(self, monkeypatch):
        self.started: list[str] = []
        self.commands: list[list[str]] = []
        self.gain = 1.0
        self.failing: tuple[str, ...] = ()
        self.stop_before: str | None = None
        monkeypatch.setattr(claims, "_train", self._train)

    def _train(self, typed, arguments):
        self.commands.append(arguments)
        task = [one for one in arguments if one != "-m" and not one.startswith("hydra.searchpath")]
        [place] = [one for one in claims.parsed(task) if one.is_hydra_override()]
        jobs = [Path(place.value())]
        if arguments[0] == "-m":
            rest = [one for one in claims.parsed(task) if not one.is_hydra_override()]
            jobs = [jobs[0] / str(n) for n, _ in enumerate(BasicSweeper.split_arguments(rest, None)[0])]
        for job in jobs:
            name = "/".join(job.parts[-2:])
            if self.stop_before == name:
                raise KeyboardInterrupt(130)
            if (job / "summary.json").exists() and summary(job)["status"] == "finished":
                continue
            self.started.append(name)
            job.mkdir(parents=True, exist_ok=True)
            status = "failed" if name in self.failing else "finished"
            write_whole(job / "summary.json", json.dumps({"status": status, "metrics": {"gain": self.gain}}))
        return int(any(f"{job.parent.name}/{job.name}" in self.failing for job in jobs))


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


def typed(world: Path, *options: str):
    search_path = f"hydra.searchpath=[file://{world}/conf]"
    return run(world / "out", search_path, "experiment=claims/gain", SOURCE, *options)


TRAINED = [f"train/{number}" for number in range(4)]
TESTED = [f"test/{number}" for number in range(4)]


def test_a_claim_leaves_its_verdict(world, runs):
    written(world, steps__tune=None)
    outcome = typed(world, "trainer=cpu")
    assert outcome.code == 0, outcome.err
    assert runs.started == TRAINED + TESTED
    # The user's options and search path go to every job.
    assert all({SOURCE, "trainer=cpu", "claim=null"} < set(command) for command in runs.commands)
    assert all(any(one.startswith("hydra.searchpath=") for one in command) for command in runs.commands)
    assert outcome.out.splitlines()[-4:] == ["", "Met: the least gain is 1.0.", "", "out"]
    assert "|   0 |  1.0 |" in outcome.out

    verdict = json.loads((world / "out" / "verdict.json").read_text())
    assert (verdict["claim"], verdict["verdict"], verdict["numbers"]) == ("gain", "met", {"gain": 1.0})
    assert verdict["criterion"] == CLAIM["criterion"] and verdict["thresholds"] == {"gain": 0.5}
    assert verdict["runs"] == 8 and verdict["options"][:2] == [SOURCE, "trainer=cpu"]
    assert "CPU cores" in verdict["machine"] and "torch" in verdict["versions"]
    report = (world / "out" / "report.md").read_text()
    for part in (
        CLAIM["statement"],
        CLAIM["criterion"],
        "|   0 |  1.0 |",
        "A note.",
        "**Met**",
        "8 runs in 0 minutes",
    ):
        assert part in report
    assert "![gains](plots/gains.png)" in report and (world / "out" / "plots" / "gains.png").exists()
    told = summary(world / "out")
    assert (told["stage"], told["status"], told["metrics"]) == ("claim", "finished", {"gain": 1.0})


def test_missed_is_a_result_too(world, runs):
    written(world, steps__tune=None)
    runs.gain = 0.5
    outcome = typed(world)
    assert outcome.code == 0
    assert "Missed: the least gain is 0.5." in outcome.out.splitlines()
    assert json.loads((world / "out" / "verdict.json").read_text())["verdict"] == "missed"


def test_typed_again_only_what_is_missing_is_run(world, runs):
    written(world, steps__tune=None)
    runs.stop_before = "test/0"
    outcome = typed(world)
    assert outcome.code == 130
    assert "stopped; to go on type the same again: what is finished is kept" in outcome.err
    assert summary(world / "out")["status"] == "interrupted" and not (world / "out" / "verdict.json").exists()
    runs.started.clear()
    runs.stop_before = None
    assert typed(world).code == 0
    assert runs.started == TESTED

    shutil.rmtree(world / "out" / "test" / "2")
    runs.started.clear()
    assert typed(world).code == 0
    assert runs.started == ["test/2"]
    runs.commands.clear()
    outcome = typed(world)
    assert outcome.code == 0 and not runs.commands
    assert "Met: the least gain is 1.0." in outcome.out


def test_a_failed_job_gives_no_verdict(world, runs):
    written(world, steps__tune=None)
    runs.failing = ("train/1", "train/3")
    outcome = typed(world)
    assert outcome.code == 1
    assert "step train: no verdict, since these have failed: out/train/1, out/train/3." in outcome.err
    assert "Traceback" not in outcome.err
    assert runs.started == TRAINED and not (world / "out" / "verdict.json").exists()
    assert summary(world / "out")["status"] == "failed"
    runs.failing = ()
    runs.started.clear()
    assert typed(world).code == 0
    assert runs.started == ["train/1", "train/3", *TESTED]


@pytest.mark.parametrize(
    "changes, options, what",
    [
        ({"thresholds": {"gain": 0.1}}, [], "claim.thresholds.gain=0.5"),
        ({"criterion": "Any gain will do."}, [], f"claim.criterion={CLAIM['criterion']}"),
        (
            {"steps__train__overrides": ["model=bert"]},
            [],
            "claim.steps.train.overrides=[seed=1,2,model=wobert,bert]",
        ),
        ({}, ["model.optimizer.lr=0.1"], "model.optimizer.lr=0.002"),
    ],
)
def test_a_claim_goes_on_only_as_it_was_begun(changes, options, what, world, runs):
    written(world, steps__tune=None)
    assert typed(world).code == 0
    written(world, steps__tune=None, **changes)
    runs.commands.clear()
    outcome = typed(world, *options)
    assert (outcome.code, runs.commands) == (2, [])
    assert outcome.err == (
        f"hydra.run.dir=out: was begun otherwise, with {what}. Runs of two kinds give no verdict: choose another "
        "directory, or remove this one\n"
    )


def test_what_is_said_of_a_claim_may_be_written_anew(world, runs):
    written(world, steps__tune=None)
    assert typed(world).code == 0
    written(world, steps__tune=None, minutes=7, statement="Two are more than one")
    assert typed(world).code == 0
    assert (world / "out" / "report.md").read_text().startswith("# Two are more than one\n")


def test_a_directory_that_holds_something_else_is_refused(world, runs):
    written(world)
    (world / "out").mkdir()
    write_whole(world / "out" / "summary.json", json.dumps({"stage": "fit", "status": "finished"}))
    outcome = typed(world)
    assert (outcome.code, outcome.err) == (2, "hydra.run.dir=out: holds a run; choose another\n")
    assert not runs.commands


# -------------------------------------------------------------------------------------------- what reports are made of


def test_jobs_are_grouped_by_their_options():
    jobs = [Job(Path(str(n)), {"model": "ab"[n % 2], "seed": n // 2}) for n in range(4)]
    assert grouped(jobs, "model") == {("a",): [jobs[0], jobs[2]], ("b",): [jobs[1], jobs[3]]}
    assert grouped(jobs, "seed", "model")[1, "a"] == [jobs[2]]


def test_a_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert spread([1.5], ".1f") == "1.5"


# ------------------------------------------------------------------------------------------------ claims/wobert_speed


def measured(directory: Path, tokens_per_second: dict, texts_per_second: dict) -> dict[str, list[Job]]:
    """Texts of 30 and 60 characters, words of 1.5 characters; the speeds by model, in the order of two seeds."""
    steps: dict[str, list[Job]] = {"train": [], "read": []}
    for length in (32, 62):
        characters = length - 2
        for seed in (0, 1):
            for model, per_token in (("wobert", 1.5), ("bert", 1.0)):
                split = {
                    "num_rows": 10,
                    "num_tokens": 10 * (characters / per_token + 2),
                    "num_characters": 10 * characters,
                }
                throughputs = {
                    "train": {"tokens_per_second": tokens_per_second[model][seed]},
                    "read": {"examples_per_second": texts_per_second[model][seed]},
                }
                origin = None
                for step, throughput in throughputs.items():
                    place = directory / step / str(len(steps[step]))
                    place.mkdir(parents=True)
                    facts = {"vocab_size": 100, "splits": {"train": split}}
                    told = {"status": "finished", "throughput": throughput, "data_facts": facts}
                    write_whole(place / "summary.json", json.dumps(told))
                    options = (
                        {"model": model, "seed": seed, "data.max_length": length} if origin is None else {}
                    )
                    steps[step].append(origin := Job(place, options, origin))
    return steps


def test_wobert_speed_compares_characters_a_second(tmp_path):
    # A word takes 1.25 times as long as a character in training: 1.5 / 1.25 = 1.2 times the characters.
    steps = measured(tmp_path, {"wobert": [80, 80], "bert": [100, 100]}, {"wobert": [3, 4], "bert": [2, 2]})
    found = wobert_speed.report(steps, {"speedup": 1.0})
    assert found.met and found.verdict == "met"
    numbers = found.numbers
    assert numbers["tokens_per_text/word/30"] == pytest.approx(20) and numbers[
        "tokens_ratio/60"
    ] == pytest.approx(1.5)
    assert numbers["training/word/30"] == pytest.approx(80 * 30 / 22)
    assert numbers["training/ratio/30"] == pytest.approx(80 / 22 / (100 / 32))
    assert numbers["inference/character/60"] == pytest.approx(2 * 60)
    assert numbers["inference/ratio/30"] == pytest.approx(1.75)
    assert numbers["inference/least_ratio/30"] == pytest.approx(1.5)
    assert numbers["cost_of_word/30"] == pytest.approx(1.25)
    assert "1.16 in training (30 characters) and 1.50 in inference (30 characters)" in found.because
    assert [row[0] for row in found.rows] == [30, 60] and len(found.header) == len(found.rows[0])
    assert len(found.figures["by_length"].axes) == 2


def test_wobert_speed_is_missed_where_one_seed_is_not_faster(tmp_path):
    steps = measured(tmp_path, {"wobert": [100, 100], "bert": [100, 100]}, {"wobert": [3, 2], "bert": [2, 2]})
    assert not wobert_speed.report(steps, {"speedup": 1.0}).met


# ------------------------------------------------------------------------------------------ benchmarks/record_claim.py


@pytest.fixture
def record_claim(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import record_claim

    return record_claim


def test_a_claim_is_recorded_and_recorded_anew(world, runs, record_claim, monkeypatch):
    written(world, steps__tune=None)
    monkeypatch.setenv("REAL_DATA", "/corpora/")
    docs = world / "docs"
    docs.mkdir()
    (docs / "results.md").write_text("# Results\n\n## Before\n\nText.\n")
    assert typed(world).code == 0
    record_claim.record(world / "out", docs)
    once = (docs / "results.md").read_text()
    assert once.startswith(
        "# Results\n\n## Before\n\nText.\n\n<!-- claim gain -->\n## Two is more than one\n"
    )
    assert "data.source=$REAL_DATA/clue" in once and "/corpora" not in once
    assert "![gains](images/gain_gains.png)" in once and (docs / "images" / "gain_gains.png").exists()

    (docs / "results.md").write_text(once + "\n## Behind\n")
    written(world, steps__tune=None, statement="Two are more than one")
    assert typed(world).code == 0
    record_claim.record(world / "out", docs)
    assert (docs / "results.md").read_text() == once.replace("Two is", "Two are") + "\n## Behind\n"


def test_without_a_verdict_nothing_is_recorded(record_claim, tmp_path):
    with pytest.raises(
        SystemExit, match="holds no verdict; python train.py experiment=claims/gain writes one"
    ):
        record_claim.main([str(tmp_path / "gain")])
