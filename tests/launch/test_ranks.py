"""Which processes are ranks, what is handed to them, and what is known of one that failed."""

import json
import re

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from launch import ranks
from launch.ranks import Place, place_by
from launch.run_dir import ConfigError

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, None),
        (TORCHRUN, Place(3, 4, 2)),
        (SRUN, Place(2, 4, 2)),
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        # A batch script's own process, and what a shell may have kept.
        ({name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}, None),
        ({"LOCAL_RANK": "0"}, None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, None),
    ],
)
def test_whether_a_process_is_a_rank_shows_in_its_environment(environ, expected):
    assert place_by(environ) == expected


def job(stage="fit", **trainer):
    options = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"} | trainer
    return OmegaConf.create({"stage": stage, "trainer": options, "data": {"inspect": False}})


@pytest.mark.parametrize(
    "cfg, expected",
    [
        (job(), 0),
        (job(devices=2), 2),
        (job(devices="2", strategy="ddp"), 2),
        (job(devices=1, strategy="ddp"), 1),
        (job(devices=2, stage="validate"), 2),
        (job(devices=2, stage="predict"), 0),
        (job(devices=2, stage="vocabulary"), 0),
    ],
)
def test_how_many_ranks_a_job_needs(cfg, expected, monkeypatch):
    monkeypatch.setattr(ranks, "place", lambda: None)
    assert ranks.are_needed(cfg) == expected


@pytest.mark.parametrize(
    "cfg, message",
    [
        (
            job(devices=1),
            "trainer.devices=1: 2 processes were started on this machine, 4 in all; "
            "type trainer.devices=2 trainer.num_nodes=2 and a trainer such as ddp",
        ),
        (job(devices=4, strategy="ddp"), "trainer.devices=4: 2 processes were started on this machine"),
        (job(stage="predict"), "stage=predict: runs in one process; type it without torchrun or srun"),
    ],
)
def test_another_number_of_processes_than_the_trainer_wants(cfg, message, monkeypatch):
    monkeypatch.setattr(ranks, "place", lambda: Place(0, 4, 2))
    with pytest.raises(ConfigError, match=re.escape(message)):
        ranks.are_needed(cfg)


def test_a_job_arrives_as_it_was_settled(monkeypatch):
    """`${now:}` and the like have one value, and a text that looks like an interpolation stays a text."""
    hydra = {
        "runtime": {"output_dir": "/runs/x"},
        "mode": "MULTIRUN",
        "sweep": {"subdir": "${hydra.job.num}"},
    }
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    monkeypatch.setattr(ranks, "place", lambda: Place(1, 2, 2))
    counter = iter(range(100))
    OmegaConf.register_new_resolver("count", lambda: next(counter), replace=True)
    cfg = OmegaConf.create(
        {"seed": "${count:}", "again": "${seed}", "text": r"a \${b}", "none": None, "list": [1, 2.5]}
    )
    sent = json.loads(json.dumps(ranks._job(cfg)))
    received = []
    monkeypatch.setattr(ranks.warnings, "simplefilter", lambda action: None)
    ranks.run_received(sent, lambda config, composed: received.append((config, composed)))
    config, composed = received[0]
    assert [config.text, config.none, list(config.list)] == ["a ${b}", None, [1, 2.5]]
    assert OmegaConf.is_config(config) and isinstance(config.seed, int) and config.seed == config.seed
    assert OmegaConf.to_container(composed, resolve=False)["again"] == "${seed}"
    assert HydraConfig.get().runtime.output_dir == "/runs/x" and HydraConfig.get().mode == "RUN"


def test_the_first_error_is_the_one_that_counts(tmp_path, monkeypatch):
    hydra = {"runtime": {"output_dir": str(tmp_path)}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    (tmp_path / "summary.json").write_text('{"status": "failed", "error": "RuntimeError: gone", "seed": 1}')
    monkeypatch.setattr(ranks, "place", lambda: Place(1, 2, 2))
    assert ranks.leave_error(ValueError("broken"), None)
    monkeypatch.setattr(ranks, "place", lambda: Place(0, 2, 2))
    assert not ranks.leave_error(RuntimeError("gone"), None)
    assert ranks._first_error(tmp_path)["text"] == "ValueError: broken"
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told == {"status": "failed", "error": "ValueError: broken (rank 1)", "seed": 1}


@pytest.mark.parametrize(
    "failure, killed, text",
    [
        (None, False, None),
        ((1, 1), False, "exit code 1"),
        ((1, -9), True, "killed by SIGKILL (out of memory?)"),
        ((0, -11), True, "killed by SIGSEGV"),
        ((0, -6), False, "killed by SIGABRT"),  # torch ends a rank so that waits for one that is gone
    ],
)
def test_how_a_rank_ended_that_could_say_nothing(failure, killed, text):
    processes = ranks._Ranks()
    processes.first_failure = failure
    ended = processes.how_one_ended()
    assert (ended and ended["text"]) == text
    assert (processes.how_one_was_killed() is not None) == killed
