"""A claim: one statement of an article, checked by runs and a criterion that were both fixed before the runs.

`python train.py experiment=claims/NAME` types the steps of the claim's yaml for the user. Each is a sweep in a process
of its own, so whatever holds for `python train.py -m` holds for it. Then a function of `launch.reports` reads what the
runs have left and gives the verdict. A claim that is typed again goes on where it was: what is finished stays.

    claim:
      statement: ...                                what the article says
      article: https://kexue.fm/archives/...
      criterion: ...                                in words, when it is met
      thresholds: {speedup: 1.0}                    its numbers, for the report
      minutes: 20                                   how long scale=quick took on two cores
      scale: quick                                  full: the steps with their `full` options
      report: launch.reports.NAME.report            a function (steps, thresholds) -> Report
      asks:                                         options that only the user can give
        data.source: a folder with ...
      steps:
        pretrain:
          overrides: [model=wobert, 'seed=1,2,3']   as typed behind `python train.py -m`
          full: [model/backbone=base]               added with scale=full, or in the place of the same option
        finetune:
          for_each: pretrain                        for each of its jobs: {pretrain} is the job's directory,
          overrides:                                {pretrain:seed} what the step typed for it
            - model=classifier
            - model.init_from={pretrain}
            - seed={pretrain:seed}

What else the yaml sets, as any experiment does, holds for the jobs of all steps, and so does what the user types beside
the claim.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from launch import leaderboard, ranks
from launch.run_dir import (
    ConfigError,
    Run,
    amend_summary,
    configs_then_and_now,
    read_summary,
    shown,
    write_whole,
)
from launch.signatures import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# May be written anew without making another claim of it.
PROSE = ("claim.statement", "claim.article", "claim.minutes", "claim.asks")
# Typed by the claim itself, never by a step or beside the claim.
RESERVED = ("experiment", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode")
PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


class StepFailed(Exception):
    """Jobs of a step have failed, and have told why; `code` is the exit code of their sweep."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# --------------------------------------------------------------------------------------------------- for reports


@dataclass(frozen=True)
class Job:
    """A job of a step.

    Attributes:
        directory: its run directory.
        options: what the step typed for it, `{"model": "bert", "seed": 1}`.
        origin: the job of the earlier step that it was run for, in a step with `for_each`.
    """

    directory: Path
    options: dict[str, Any]
    origin: Job | None = None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The summary.json of a finished job."""
        return read_summary(self.directory)

    @property
    def finished(self) -> bool:
        return read_summary(self.directory).get("status") == "finished"


@dataclass
class Report:
    """What a claim's report function finds.

    Attributes:
        met: whether the criterion is met.
        because: the numbers that decide, as the end of the sentence `Met: ...`.
        numbers: all that was found, by name; they are the claim's metrics.
        header, rows: the table.
        notes: Markdown below it: what ± means, where a surprising result comes from.
        figures: pictures, by name.
    """

    met: bool
    because: str
    numbers: dict[str, float]
    header: list[str]
    rows: list[list[Any]]
    notes: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def verdict(self) -> Literal["met", "missed"]:
        return "met" if self.met else "missed"


def grouped(jobs: Iterable[Job], *options: str) -> dict[tuple, list[Job]]:
    """Jobs by their values of `options`, in the order of the jobs."""
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.options[option] for option in options), []).append(job)
    return groups


def spread(values: list[float], form: str = ".3f") -> str:
    """`1.234 ± 0.012`: mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


# ---------------------------------------------------------------------------------------------- the claim's yaml


@dataclass(frozen=True)
class Step:
    """A named list of overrides.

    Attributes:
        for_each: the earlier step for each of whose jobs it is run.
    """

    name: str
    overrides: list[str]
    for_each: str | None

    @property
    def of_run(self) -> list[str]:
        """The overrides that name the run of the earlier step."""
        return [override for override in self.overrides if f"{{{self.for_each}}}" in override]

    def filled(self, override: str, job: Job) -> str:
        """With the directory of the earlier step's job, and with what was typed for it."""

        def value(found: re.Match) -> str:
            if found[1] != self.for_each:
                return found[0]
            return show(job.options[found[2]]) if found[2] else str(job.directory)

        return PLACEHOLDER.sub(value, override)


@dataclass(frozen=True)
class Claim:
    """The node `claim` of a config, with the steps of its scale."""

    experiment: str
    statement: str
    article: str
    criterion: str
    thresholds: dict[str, Any]
    minutes: float
    scale: Literal["quick", "full"]
    report: str
    asks: dict[str, str]
    steps: list[Step]

    @classmethod
    def of(cls, config: DictConfig, choices: DictConfig) -> Claim:
        """`choices`: Hydra's, of groups."""
        # Interpolations in overrides are the jobs' own.
        node = OmegaConf.to_container(config.claim, resolve=False)
        steps = []
        for name, step in node["steps"].items():
            overrides = {key_of(override): override for override in step["overrides"]}
            if node["scale"] == "full":
                overrides |= {key_of(override): override for override in step.get("full", [])}
            steps.append(Step(name, list(overrides.values()), step.get("for_each")))
        given = {"thresholds": {}, "asks": {}, **node, "steps": steps}
        return cls(**given, experiment=str(choices.get("experiment")))

    @property
    def name(self) -> str:
        return self.experiment.removeprefix("claims/")


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


@dataclass(frozen=True)
class Sweep:
    """One `python train.py -m`: a step, or a part of a step with `for_each`.

    Attributes:
        directory: the sweep's.
        jobs: in the order of their numbers, each with its overrides.
    """

    directory: Path
    overrides: list[str]
    jobs: list[tuple[Job, list[str]]]

    @property
    def trains(self) -> bool:
        """Whether `ckpt_path` is free for the sweep to continue its jobs."""
        return not {"ckpt_path", "stage", "data.inspect"} & set(
            map(key_of, set(self.overrides) - {"stage=fit"})
        )

    @property
    def arguments(self) -> list[str]:
        """Its overrides, with the one by which it goes on where it was stopped."""
        return self.overrides + (["ckpt_path=last"] if self.trains else [])


def plan(claim: Claim, directory: Path, loader: ConfigLoader, sample: bool = False) -> dict[str, list[Sweep]]:
    """The sweeps of every step, all of them known before anything is run.

    Args:
        directory: the claim's.
        sample: sweep one run of an earlier step, not all: enough for a check.
    """
    steps: dict[str, list[Sweep]] = {}
    for step in claim.steps:
        place = directory / step.name
        if step.for_each is None:
            steps[step.name] = [_sweep(place, step.overrides, {}, loader)]
        else:
            earlier = [job for sweep in steps[step.for_each] for job, _ in sweep.jobs]
            steps[step.name] = _sweeps_for_each(step, earlier, place, loader, sample)
    return steps


def _sweeps_for_each(
    step: Step, earlier: list[Job], place: Path, loader: ConfigLoader, sample: bool
) -> list[Sweep]:
    """The runs of the earlier jobs that agree in what `{step:option}` gives are swept together."""
    [of_run] = step.of_run
    others = [override for override in step.overrides if override != of_run]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in earlier:
        groups.setdefault(tuple(step.filled(override, job) for override in others), []).append(job)
    sweeps = []
    for filled, jobs in groups.items():
        option, _, pattern = of_run.partition("=")
        origins = {step.filled(pattern, job): job for job in (jobs[:1] if sample else jobs)}
        runs = f"{option}={','.join(map(_quoted, origins))}"
        taken = [text for text, override in zip(filled, others, strict=True) if text != override]
        name = ",".join(taken).replace("/", ".")
        sweeps.append(_sweep(place / name, [*filled, runs], origins, loader))
    return sweeps


def _sweep(directory: Path, overrides: list[str], origins: dict[str, Job], loader: ConfigLoader) -> Sweep:
    jobs = []
    for number, typed in enumerate(BasicSweeper.split_arguments(parsed(overrides, loader), None)[0]):
        options = {one.get_key_element().lstrip("+"): one.value() for one in parsed(typed, loader)}
        texts = [value for value in options.values() if isinstance(value, str)]
        origin = next((origins[text] for text in texts if text in origins), None)
        jobs.append((Job(directory / str(number), options, origin), typed))
    return Sweep(directory, overrides, jobs)


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def parsed(overrides: list[str], loader: ConfigLoader | None = None) -> list[Override]:
    return OverridesParser.create(config_loader=loader).parse_overrides(overrides)


# ------------------------------------------------------------------------------------------------- what is typed


@dataclass(frozen=True)
class Typed:
    """The command line of a claim, and what of it goes to the jobs of its steps.

    Attributes:
        task, hydra: overrides as typed, Hydra's own apart.
        config_dir: of `--config-dir`.
    """

    task: list[str]
    hydra: list[str]
    config_dir: str | None

    @classmethod
    def of(cls, hydra: DictConfig) -> Typed:
        """`hydra`: Hydra's node of the composed config."""
        sources = [one.path for one in hydra.runtime.config_sources if one.provider == "command-line"]
        return cls(
            OmegaConf.to_container(hydra.overrides.task),
            OmegaConf.to_container(hydra.overrides.hydra),
            next(iter(sources), None),
        )

    @property
    def options(self) -> list[str]:
        """What the user has set besides the claim."""
        task = [one for one in self.task if key_of(one).split(".")[0] not in ("experiment", "claim")]
        return task + [one for one in self.hydra if key_of(one) not in RESERVED]

    @property
    def flags(self) -> list[str]:
        return [] if self.config_dir is None else ["--config-dir", self.config_dir]

    @property
    def command(self) -> str:
        """To type it again."""
        hydra = [override for override in self.hydra if key_of(override) != "hydra.mode"]
        return shlex.join(["python", "train.py", *self.flags, *self.task, *hydra])

    def of_job(self, overrides: list[str]) -> list[str]:
        """All overrides of a job (or, with commas, of a sweep) of a step."""
        experiment = [override for override in self.task if key_of(override) == "experiment"]
        return [*experiment, "claim=null", *self.options, *overrides]


# ------------------------------------------------------------------------------------------------------- the run


def run(cfg: DictConfig) -> None:
    """Run the steps that are not finished, then write verdict.json, report.md and plots/ and print the verdict.

    Raises:
        ConfigError: the run directory holds something else, or this process is one of several ranks.
        SystemExit: with 1 (or 2) where jobs failed, 130 after Ctrl-C and 143 after SIGTERM; typed again, the claim goes
            on.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    claim, typed = Claim.of(cfg, hydra.runtime.choices), Typed.of(hydra)
    if ranks.place() is not None:
        raise ConfigError(
            f"experiment={claim.experiment}: starts its runs itself; leave out torchrun or srun"
        )
    with read_write(cfg), open_dict(cfg):
        # Interpolations in a step are its jobs' own, and stand in config.yaml as they were written.
        cfg.claim = ranks.escaped(OmegaConf.to_container(cfg.claim, resolve=False))
    _check_unchanged(directory, cfg)
    code = 0
    try:
        with Run.of(cfg) as run:
            run.stage = "claim"
            if claim.scale == "quick":
                log.info(f"{claim.name}: about {claim.minutes:g} minutes on two cores")
            started, earlier = time.monotonic(), read_summary(directory)["wall_seconds"]
            jobs = _run(claim, typed, run)
            report = _report_function(claim)(jobs, claim.thresholds)
            run.metrics.update(report.numbers)
            facts = {
                "runs": sum(map(len, jobs.values())),
                "minutes": round((earlier + time.monotonic() - started) / 60, 1),
                "machine": _machine(cfg),
                "versions": read_summary(directory)["versions"],
            }
            _write(claim, typed, directory, report, facts)
            print(
                "\n".join(
                    ["", *leaderboard.markdown_table([report.header, *report.rows]), "", _verdict(report), ""]
                )
            )
    except StepFailed as failed:
        print(failed, file=sys.stderr)
        code = failed.code
    except KeyboardInterrupt as stopped:
        print("stopped; to go on type the same again: what is finished is kept", file=sys.stderr)
        [code] = stopped.args or [130]
    if code:
        raise SystemExit(code)


def _check_unchanged(directory: Path, cfg: DictConfig) -> None:
    """A claim goes on only as it was begun: nothing of its yaml, the defaults or what was typed may differ."""
    summary = read_summary(directory)
    if not summary:
        if any(path.suffix != ".log" for path in directory.iterdir()):
            raise ConfigError(f"hydra.run.dir={shown(directory)}: holds something else; choose another")
        return
    if summary.get("stage") != "claim":
        raise ConfigError(f"hydra.run.dir={shown(directory)}: holds a run; choose another")
    differing = _differing(*configs_then_and_now(directory, cfg))
    if differing:
        raise ConfigError(
            f"hydra.run.dir={shown(directory)}: was begun otherwise, with {'; '.join(differing)}. Runs of two kinds "
            "give no verdict: choose another directory, or remove this one"
        )
    if summary["status"] == "finished":
        amend_summary(directory, status="interrupted")  # it will be written anew


def _differing(saved: Any, wanted: Any, path: str = "") -> list[str]:
    """The options of two configs that differ, with the value that was saved."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = [key for key in dict.fromkeys([*saved, *wanted]) if f"{path}{key}" not in PROSE]
        return [
            text
            for key in keys
            for text in _differing(saved.get(key, ...), wanted.get(key, ...), f"{path}{key}.")
        ]
    return [] if saved == wanted else [path.rstrip(".") + ("" if saved is ... else f"={show(saved)}")]


def _run(claim: Claim, typed: Typed, run: Run) -> dict[str, list[Job]]:
    """The jobs of every step, all of them finished."""
    steps = plan(claim, run.directory, GlobalHydra.instance().config_loader())
    for name, sweeps in steps.items():
        for sweep in sweeps:
            _run_sweep(name, sweep, typed)
    return {name: [job for sweep in sweeps for job, _ in sweep.jobs] for name, sweeps in steps.items()}


def _run_sweep(step: str, sweep: Sweep, typed: Typed) -> None:
    pending = [(job, overrides) for job, overrides in sweep.jobs if not job.finished]
    place = f"step {step}: {shown(sweep.directory)}"
    if not pending:
        log.info(f"{place}: finished already")
        return
    log.info(f"{place}: {len(pending)} of {len(sweep.jobs)} jobs to run")
    if sweep.trains or len(pending) == len(sweep.jobs):
        directory = f"hydra.sweep.dir={_quoted(str(sweep.directory))}"
        code = _train(typed, ["-m", *typed.of_job(sweep.arguments), directory])
    else:  # a sweep would write where finished evaluations are
        codes = [
            _train(typed, [*typed.of_job(overrides), f"hydra.run.dir={_quoted(str(job.directory))}"])
            for job, overrides in pending
        ]
        code = max(codes)
        leaderboard.update(sweep.directory)
    failed = [shown(job.directory) for job, _ in pending if not job.finished]
    if failed:
        raise StepFailed(
            f"step {step}: no verdict, since these have failed: {', '.join(failed)}. When the reason, which is told "
            "above, is mended, type the same again: what is finished is kept",
            2 if code == 2 else 1,
        )


def _train(typed: Typed, arguments: list[str]) -> int:
    """Type `python train.py` with the arguments, in a process of its own; gives its exit code."""
    hydra = HydraConfig.get()
    conf = next(one.path for one in hydra.runtime.config_sources if one.provider == "main")
    program = Path(conf).parent / f"{hydra.job.name}.py"
    processes: list[subprocess.Popen] = []
    with ranks.signals_passed_on(processes) as signals:
        process = subprocess.Popen(
            [sys.executable, str(program), *typed.flags, *arguments],
            start_new_session=True,  # Ctrl-C in a terminal would reach it twice
            stdin=subprocess.PIPE,
            env={**os.environ, ranks.TIED: "1"},
        )
        processes.append(process)
        code = process.wait()
    process.stdin.close()
    if signal.SIGTERM in signals or code == 143:
        raise KeyboardInterrupt(143)
    if signals or code == 130:
        raise KeyboardInterrupt(130)
    return code


# ------------------------------------------------------------------------------------------------ what it leaves


def _report_function(claim: Claim) -> Callable[[dict[str, list[Job]], dict[str, Any]], Report]:
    module, _, name = claim.report.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _write(claim: Claim, typed: Typed, directory: Path, report: Report, facts: dict[str, Any]) -> None:
    """verdict.json, plots/ and report.md, the section of docs/results.md.

    Args:
        facts: how it was measured: runs, minutes, machine, versions.
    """
    from lightning_modules.pictures import save

    for name, figure in report.figures.items():
        save(figure, directory / "plots" / f"{name}.png")
    verdict = {
        "claim": claim.name,
        "scale": claim.scale,
        "statement": claim.statement,
        "article": claim.article,
        "criterion": claim.criterion,
        "thresholds": claim.thresholds,
        "verdict": report.verdict,
        "because": report.because,
        "numbers": report.numbers,
        "options": typed.options,
        "command": typed.command,
        **facts,
    }
    write_whole(directory / "verdict.json", json.dumps(verdict, ensure_ascii=False, indent=2) + "\n")
    parts = [
        f"# {claim.statement}",
        f"[The article]({claim.article}). Criterion, written before the runs: {claim.criterion}",
        f"```bash\n{typed.command}\n```",
        "\n".join(leaderboard.markdown_table([report.header, *report.rows])),
        report.notes,
        *(f"![{name.replace('_', ' ')}](plots/{name}.png)" for name in report.figures),
        f"**{report.verdict.capitalize()}**: {report.because}",
        f"{facts['runs']} runs in {facts['minutes']:.0f} minutes on {facts['machine']}, PyTorch "
        f"{facts['versions']['torch']}, `claim.scale={claim.scale}`.",
    ]
    write_whole(directory / "report.md", "\n\n".join(filter(None, parts)) + "\n")


def _verdict(report: Report) -> str:
    return f"{report.verdict.capitalize()}: {report.because}"


def _machine(cfg: DictConfig) -> str:
    """The jobs' device, by the trainer of the claim's own config."""
    import torch

    if cfg.trainer.get("accelerator") != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores"
