"""Claims with their runs, in processes of their own: the example of docs/extending.md, and claims/wobert_speed."""

import json
import re
import signal
import sys
import time

import pytest
from omegaconf import OmegaConf
from running import REPOSITORY, TINY, ended, launch, run, summary

EXTENDING = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The claim of docs/extending.md, `experiment=claims/fewer_bits`, where the docs have it."""
    (tmp_path / "conf" / "experiment" / "claims").mkdir(parents=True)
    (tmp_path / "code").mkdir()
    for language, folder, name in (
        ("yaml", "conf/experiment/claims", "fewer_bits.yaml"),
        ("python", "code", "fewer_bits.py"),
    ):
        [found] = re.findall(rf"^```{language}\n# \S*/{name}\n(.*?)^```", EXTENDING, re.MULTILINE | re.DOTALL)
        (tmp_path / folder / name).write_text(found, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))  # for the claim's processes
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("fewer_bits", None)


def changed(world, name: str, source, changes: dict) -> None:
    """A claim of one's own: `source` with other steps (path -> overrides) and whatever else."""
    node = OmegaConf.load(source)
    for path, value in changes.items():
        OmegaConf.update(node, path, value)
    text = "# @package _global_\n" + OmegaConf.to_yaml(node)
    (world / "conf" / "experiment" / "claims" / f"{name}.yaml").write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_steps_of_a_claim_are_runs(world, corpus):
    changed(
        world,
        "one",
        world / "conf/experiment/claims/fewer_bits.yaml",
        {
            "max_steps": 1,
            "claim.report": "one_report.report",
            "claim.steps": {"train": {"overrides": ["model=bert"]}},
        },
    )
    (world / "code" / "one_report.py").write_text(
        "from launch.claims import Report\n"
        "def report(steps, thresholds):\n"
        "    [job] = steps['train']\n"
        "    bits = job.summary['metrics']['val/bits_per_char']\n"
        "    return Report(bits < thresholds['bits'], f'{bits}', {'bits': bits}, ['bits'], [[bits]])\n"
    )
    search_path = f"hydra.searchpath=[file://{world}/conf]"
    outcome = run(world / "out", search_path, "experiment=claims/one", *TINY, *corpus)
    assert outcome.code == 0, outcome.err
    told = summary(world / "out" / "train" / "0")
    assert (told["stage"], told["model"], told["status"]) == ("fit", "bert", "finished")
    assert "model.backbone.hidden_size=32" in told["overrides"]
    assert summary(world / "out")["metrics"] == {"bits": told["metrics"]["val/bits_per_char"]}
    assert json.loads((world / "out" / "verdict.json").read_text())["verdict"] == "missed"
    assert OmegaConf.load(world / "out/train/0/config.yaml").claim is None


@pytest.mark.slow
def test_a_claim_that_is_stopped_goes_on(world, corpus):
    options = [*TINY, *corpus, "validate_every=100", "data.tokens_per_batch=1024"]
    claim = world / "out"
    command = ("--config-dir", str(world / "conf"), "experiment=claims/fewer_bits", f"hydra.run.dir={claim}")
    process = launch(*command, *options)
    while not (claim / "train" / "2" / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stopped = ended(process)
    assert stopped.code == 130, stopped.err
    assert "stopped; to go on type the same again: what is finished is kept" in stopped.err
    assert "Traceback" not in stopped.err
    assert summary(claim)["status"] == summary(claim / "train" / "2")["status"] == "interrupted"
    assert not (claim / "train" / "3").exists() and not (claim / "verdict.json").exists()
    before = (claim / "train" / "0" / "summary.json").stat().st_mtime_ns

    again = ended(launch(*command, *options))
    assert again.code == 0, again.err
    assert (claim / "train" / "0" / "summary.json").stat().st_mtime_ns == before
    verdict = json.loads((claim / "verdict.json").read_text())
    assert verdict["runs"] == 12 and verdict["options"] == options
    line = f"{verdict['verdict'].capitalize()}: {verdict['because']}"
    assert again.out.splitlines()[-3:] == [line, "", str(claim)]
    origins = [summary(claim / "test" / str(n))["overrides"][-1] for n in range(6)]
    assert origins == [f"ckpt_path='{claim}/train/{n}'" for n in range(6)]
    assert (claim / "test" / "leaderboard.md").exists()


@pytest.mark.slow
def test_a_failed_job_of_a_claim(world, corpus):
    changed(
        world,
        "failing",
        world / "conf/experiment/claims/fewer_bits.yaml",
        {"max_steps": 1, "claim.steps.train.overrides": ["model.backbone.num_attention_heads=2,3"]},
    )
    search_path = f"hydra.searchpath=[file://{world}/conf]"
    outcome = run(world / "out", search_path, "experiment=claims/failing", *TINY, *corpus)
    assert outcome.code != 0
    assert "step train: no verdict, since these have failed: out/train/1." in outcome.err
    assert summary(world / "out" / "train" / "0")["status"] == "finished"
    assert not (world / "out" / "test").exists()


@pytest.mark.slow
def test_wobert_speed(world):
    changed(
        world,
        "speed",
        REPOSITORY / "conf/experiment/claims/wobert_speed.yaml",
        {
            "max_steps": 6,
            "model.backbone.hidden_size": 32,
            "claim.steps.train.overrides": [
                "seed=1,2",
                "data.max_length=18,34",
                "model=wobert,bert",
                "~callbacks.best",
                "~callbacks.last",
            ],
        },
    )
    sample = (REPOSITORY / "datamodules/samples/tnews/train.json").read_text(encoding="utf-8").splitlines()
    titles = [json.loads(line)["sentence"] for line in sample[:300]]
    (world / "texts.txt").write_text(
        "\n".join(map("".join, zip(titles[::2], titles[1::2], strict=True))), encoding="utf-8"
    )
    search_path = f"hydra.searchpath=[file://{world}/conf]"
    outcome = run(
        world / "out", search_path, "experiment=claims/speed", "data.train=texts.txt", "trainer=cpu"
    )
    assert outcome.code == 0, outcome.err
    verdict = json.loads((world / "out" / "verdict.json").read_text())
    numbers = verdict["numbers"]
    assert verdict["runs"] == 16
    for cut in (16, 32):
        assert 1 < numbers[f"tokens_ratio/{cut}"] < 2
        assert numbers[f"training/word/{cut}"] > 0 and numbers[f"inference/character/{cut}"] > 0
    read = summary(world / "out" / "read" / "0")["throughput"]
    assert read["examples_per_second"] > 0 and read["tokens_per_second"] is None
    assert (world / "out" / "plots" / "by_length.png").exists()
    assert not list((world / "out").rglob("*.ckpt"))
