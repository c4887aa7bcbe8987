"""stage=compare: the leaderboard of runs that are there."""

import csv
import json

import pytest
from running import finished, run, summary


@pytest.fixture
def runs(tmp_path):
    """Two runs and a sweep of two jobs, as far as they are compared."""
    root = tmp_path / "runs"
    for number, name in enumerate(("one", "two", "sweep/0", "sweep/1")):
        directory = root / name
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text(f"seed: {number}\noptimized_metric: val/loss\n")
        facts = {
            "stage": "fit", "model": "wobert", "data": "clue", "overrides": [f"seed={number}"],
            "metrics": {"val/loss": 3.0 - number, "val/mrr": 0.5 - number / 10}, "world_size": 1,
            "throughput": {"tokens_per_second": 10.0}, "wall_seconds": 1.0, "status": "finished", "error": None,
        }  # fmt: skip
        (directory / "summary.json").write_text(json.dumps(facts))
    return root


def jobs(directory):
    with open(directory / "leaderboard.csv", encoding="utf-8", newline="") as file:
        return [row["job"] for row in csv.DictReader(file)]


def test_leaves_the_files_of_a_sweep_and_prints_the_table(tmp_path, runs):
    outcome = finished(tmp_path / "board", "stage=compare", f"runs=[{runs / 'sweep'},{runs / 'one'}]")
    assert jobs(tmp_path / "board") == ["sweep/1", "sweep/0", "one"]
    assert {path.name for path in (tmp_path / "board").glob("lead*")} == {
        "leaderboard.csv", "leaderboard.md", "leaderboard.png",
    }  # fmt: skip
    assert (tmp_path / "board" / "leaderboard.md").read_text(encoding="utf-8") in outcome.out
    assert outcome.out.splitlines()[-1].endswith("board")
    told = summary(tmp_path / "board")
    assert (told["stage"], told["metrics"]) == ("compare", {})
    assert told["source"] == f"{runs / 'sweep'}, {runs / 'one'}"


def test_a_directory_of_runs_by_a_metric_that_no_model_of_this_project_logs(tmp_path, runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    options = ("stage=compare", "runs=runs", "optimized_metric=val/mrr", "hydra.job.chdir=true")
    finished(tmp_path / "board", *options)
    assert jobs(tmp_path / "board") == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["stage=compare"], "runs: stage=compare needs it, directories of runs or sweeps: 'runs=[DIR,DIR]'"),
        (["stage=compare", "runs=[runs/one,runs/nix]"], "runs=runs/nix: there is no such directory"),
        (
            ["stage=compare", "runs=[.]"],
            "runs=.: no run lies here nor directly below (each has a summary.json); "
            "name the directory of a run or of a sweep",
        ),
        (["runs=[runs/one]"], "runs=[runs/one]: is used with stage=compare only"),
        (
            ["stage=compare", "runs=runs", "optimized_metric=val/mr"],
            "optimized_metric=val/mr: none of the runs has it; did you mean val/mrr?",
        ),
        (
            ["stage=compare", "runs=runs", "ckpt_path=runs/one"],
            "ckpt_path=runs/one: is not used with stage=compare",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, runs, monkeypatch, options, line):
    monkeypatch.chdir(runs.parent)
    outcome = run(tmp_path / "board", *options)
    assert outcome.code == 2 and outcome.err.splitlines() == [line]
    assert not (tmp_path / "board").exists()
