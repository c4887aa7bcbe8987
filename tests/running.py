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
import time
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
    return program(f"hydra.run.dir={directory}", *options)


def sweep(directory: Path, *options: str) -> Outcome:
    """`python train.py -m hydra.sweep.dir=<directory> <options>` in this process."""
    return program("-m", f"hydra.sweep.dir={directory}", *options)


def program(*arguments: str) -> Outcome:
    """`python train.py <arguments>` in this process."""
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
            stack.enter_context(mock.patch.object(sys, "argv", ["train.py", *arguments]))
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
    return launch(f"hydra.run.dir={directory}", *options)


def launch(*arguments: str, command: tuple = (sys.executable,), **environ: str) -> subprocess.Popen:
    """`python train.py <arguments>` in a process of its own."""
    return subprocess.Popen(
        [*command, REPOSITORY / "train.py", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: subprocess.Popen, seconds: float = 300) -> Outcome:
    """Wait for a process of `launch`; one that does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {seconds} s\n{out}\n{err}") from None
    return Outcome(process.returncode, out, err)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Return when `process` has made the file or directory."""
    end = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)


def wait_for_step(directory: Path, step: int, process: subprocess.Popen) -> None:
    """Return when metrics.csv tells of a step; it is read while the other process writes it."""
    end = time.monotonic() + 200
    done = -1
    while done < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run does not come on"
        time.sleep(0.02)
        with contextlib.suppress(ValueError):  # read in the midst of a write
            done = max((one for one, _ in values(directory, "train/loss")), default=-1)


def processes_of(mark: str) -> list[int]:
    """Living processes that have TEST_MARK=<mark> in their environment, but for this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"TEST_MARK={mark}".encode() in (entry / "environ").read_bytes()
            if marked and "\nState:\tZ" not in (entry / "status").read_text():
                found.append(int(entry.name))
        except OSError:  # it has ended, or is another user's
            continue
    return [process for process in found if process != os.getpid()]


def jobs(sweep_dir: Path) -> list[str]:
    """The jobs of a sweep that have begun, by their numbers."""
    return sorted(path.parent.name for path in sweep_dir.glob("*/summary.json"))


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
