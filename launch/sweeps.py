"""What a sweep (-m) is besides its jobs: one directory, jobs that are done already, a leaderboard, an exit code."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from launch import explain, leaderboard
from launch.run_dir import ConfigError, Run, configs_then_and_now, error_text, read_summary, shown

log = logging.getLogger(__name__)

# Groups that name the directory of a sweep.
NAMING = ("model", "data")

# What may differ where a job goes on: for how long, where, and what is written on the way.
FREE = ("ckpt_path", "max_steps", "max_epochs", "max_time", "trainer", "callbacks", "logger", "debug")
FREE += ("validate_every", "log_every", "checkpoint_every", "compile", "precision", "optimized_metric")

# Names what a sweep varies, in the environment of its jobs.
SWEPT = "KEXUE_LIGHTNING_SWEPT"

# The sweep that this process runs, once it is settled; and whether a database holds what it has found.
directory: Path | None = None
is_stored = False


def settle_directory(loader: ConfigLoader, config: DictConfig) -> None:
    """Give all jobs of a sweep the same directory, whatever they vary and however long they take.

    Hydra resolves `hydra.sweep.dir` for each job anew: jobs that differ in the model, or whose clock differs, would
    lie in several. The groups that are swept give their names together: `runs/sweep-wobert+bert-clue/...`.

    Args:
        config: Hydra's config of the sweep, changed in place; the jobs are composed from its overrides.

    """
    global directory, is_stored
    typed = OverridesParser.create(config_loader=loader).parse_overrides(explain.typed_overrides(config))
    fixed = [override.input_line for override in typed if not override.is_sweep_override()]
    base, _ = explain.compose(
        loader, config.hydra.job.config_name, [*explain.typed_overrides(config, "hydra"), *fixed], RunMode.RUN
    )
    OmegaConf.set_readonly(base.hydra, False)
    OmegaConf.set_struct(base.hydra, False)
    for override in typed:
        key = override.get_key_element()
        if key in NAMING and override.is_choice_sweep():
            base.hydra.runtime.choices[key] = "+".join(override.sweep_string_iterator())
    before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, base
    try:
        directory = Path(base.hydra.sweep.dir).absolute()
    finally:
        HydraConfig.instance().cfg = before
    quoted = QuotedString(str(directory), Quote.single).with_quotes()
    # What is searched or swept tells the jobs apart, whatever it is; the environment reaches every launcher's jobs.
    swept = [one.get_key_element().lstrip("+~") for one in typed if one.is_sweep_override()]
    swept += list(OmegaConf.select(base, "hydra.sweeper.params") or {})
    is_stored = OmegaConf.select(base, "hydra.sweeper.storage") is not None
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(directory)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted}")
        config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{SWEPT}='{' '.join(swept)}'")


def is_done(cfg: DictConfig) -> bool:
    """Whether the job was finished by an earlier launch of its sweep, which `ckpt_path=last` continues.

    Raises:
        ConfigError: the job of that number was another one.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    summary = read_summary(run_dir)
    if cfg.ckpt_path != "last" or not summary:
        return False
    swept = HydraConfig.get().job.env_set.get(SWEPT, "").split()
    was, is_now = (_fixed(typed, swept) for typed in (summary.get("overrides", []), Run.of(cfg).overrides))
    if was != is_now:
        raise ConfigError(
            f"hydra.sweep.dir={shown(run_dir.parent)}: its job {run_dir.name} was another one, with "
            f"{' '.join(sorted(was - is_now)) or 'fewer options'} and not {' '.join(sorted(is_now - was)) or 'more'}; "
            "type the sweep as it was, or choose another directory"
        )
    if summary["status"] != "finished":
        return False
    saved, wanted = configs_then_and_now(run_dir, cfg)
    return saved | {"ckpt_path": None} == wanted | {"ckpt_path": None}


def _fixed(overrides: list[str], swept: list[str]) -> set[str]:
    """Those that may not differ where a job goes on."""
    keys = {typed: typed.lstrip("+~").partition("=")[0] for typed in overrides}
    return {typed for typed, key in keys.items() if key in swept or re.split(r"[./@]", key)[0] not in FREE}


def result_of_done(cfg: DictConfig) -> float | None:
    """The metric that a job returns which `is_done`."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    log.info(f"finished already: {shown(run_dir)}")
    return read_summary(run_dir)["metrics"].get(cfg.optimized_metric)


def job_failed(cfg: DictConfig, error: Exception, line: str | None) -> None:
    """Tell at once, while the sweep goes on, and leave a summary also where the job did not come to write one.

    Args:
        line: all that there is to say, where a traceback would say no more.
    """
    run = Run.of(cfg)
    if not read_summary(run.directory):
        run.write_summary("failed", error)
    if line is None:
        traceback.print_exception(error)
    else:
        print(line, file=sys.stderr)


def job_ended() -> None:
    """Rewrite the leaderboard of the sweep that this job belongs to."""
    leaderboard.update(HydraConfig.get().sweep.dir)


def unfinished(directory: Path) -> list[str]:
    """A line for each job that is not finished: `job 3: failed, RuntimeError: ...  [seed=2]`."""
    summaries = {path.name: read_summary(path) for path in leaderboard.job_directories(directory)}
    typed = [set(summary.get("overrides", [])) for summary in summaries.values()]
    common = set.intersection(*typed) if len(typed) > 1 else set()
    lines = []
    for name, summary in summaries.items():
        if summary.get("status") != "finished":
            error = (summary.get("error") or "").splitlines()
            varied = " ".join(override for override in summary.get("overrides", []) if override not in common)
            lines.append(f"job {name}: {', '.join([str(summary.get('status')), *error[:1]])}  [{varied}]")
    return lines


def show(directory: Path) -> None:
    """Print the leaderboard, and the sweep's directory as the last line."""
    table = directory / "leaderboard.md"
    if table.is_file():
        print(table.read_text(encoding="utf-8"))
    print(shown(directory), flush=True)


def told(error: BaseException, directory: Path) -> bool:
    """Whether `error`, which ended a sweep, is that of a job and was told when it failed."""
    errors = [read_summary(path).get("error") or "" for path in leaderboard.job_directories(directory)]
    return any(str(error) in told or error_text(error) == told for told in errors)


def how_to_go_on(directory: Path) -> str:
    if is_stored:
        return "interrupted; to add to the study, type the same command again"
    return (
        "interrupted; to continue the sweep, type the same command with "
        f"hydra.sweep.dir={os.path.relpath(directory)} ckpt_path=last"
    )
