"""Runs of the real entrypoint, in this process (a second or two) or in one of their own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals

import train
from launch.cli import entrypoint
from launch.csv_logger import read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]

# A network whose steps take milliseconds.
TINY = (
    "trainer=cpu",
    "model/backbone=tiny",
    "model.backbone.hidden_size=32",
    "model.backbone.intermediate_size=64",
)


class Outcome(NamedTuple):
    """Exit code and output of a run."""

    code: int
    out: str
    err: str


def run(directory: Path, *options: str) -> Outcome:
    """`python train.py hydra.run.dir=<directory> <options>` in this process; a crash raises its exception."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level, threads = root.handlers[:], root.level, torch.get_num_threads()
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
    GlobalHydra.instance().clear()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    code = 0
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ))
            arguments = ["train.py", f"hydra.run.dir={directory}", *options]
            stack.enter_context(mock.patch.object(sys, "argv", arguments))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            try:
                # A program of its own each time: `main` remembers the run that it has started.
                entrypoint(train.main.__wrapped__)()
            except SystemExit as leaving:
                code = leaving.code
    finally:
        GlobalHydra.instance().clear()
        setup_globals()
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, ctrl_c)
    return Outcome(code, out.getvalue(), err.getvalue())


def finished(directory: Path, *options: str) -> Outcome:
    """`run`, which has to end well."""
    outcome = run(directory, *options)
    assert outcome.code == 0, outcome.err
    assert summary(directory)["status"] == "finished"
    return outcome


def start(directory: Path, *options: str) -> subprocess.Popen:
    """The same in a process of its own."""
    command = [sys.executable, REPOSITORY / "train.py", f"hydra.run.dir={directory}", *options]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def summary(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text(encoding="utf-8"))


def metrics(directory: Path) -> list[dict]:
    """The rows of metrics.csv without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if name != "train/tokens_per_second"}
        for row in read_metrics(directory / "metrics.csv")
    ]


def values(directory: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric in metrics.csv."""
    return [(row["step"], row[name]) for row in metrics(directory) if name in row]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
