"""The command line: Hydra's `main`, with mistakes told in the user's words.

Exit codes: 0 done; 1 something broke (with its traceback); 2 something that was typed, a config or an input
file is wrong (one line each, no traceback); 130 Ctrl-C, 143 SIGTERM. Nothing here imports torch or Lightning.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch import parallel, ranks, sweeps
from launch.run_dir import ConfigError
from launch.signatures import TargetError, class_attribute, locate

CONFIG_NAME = "train"
VERSION_BASE = "1.3"
# About a minute of training on two cores with the embedded sample.
DEFAULT_STEPS = 800
# How Optuna's sweeper ends where it has no best trial to report, in memory and in a database.
NO_TRIAL = ("No trials are completed yet.", "Record does not exist.")

Task = Callable[[DictConfig], Any]


def entrypoint(task: Task) -> Callable[[], Any]:
    """Make `task(cfg)` a program whose configs lie in `conf/` beside the file that defines it.

    A job on several devices runs once in each of their processes (`launch.ranks`).
    """
    script = Path(inspect.getfile(task)).resolve()
    conf = script.parent / "conf"
    started = _Started()

    @functools.wraps(task)
    def job(config: DictConfig, composed: DictConfig | None = None) -> Any:
        started.run_dir = Path(HydraConfig.get().runtime.output_dir)
        # Hydra resolves interpolations in place when it builds a node.
        typed = copy.deepcopy(config) if composed is None else composed
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            if in_sweep and sweeps.is_done(config):
                return sweeps.result_of_done(config)
            processes = ranks.are_needed(config) or parallel.processes(config)
            if processes:
                return ranks.run_ranks(config, processes, script)
            ranks.publish(config)
            result = task(config)
            ranks.part()
            # There is no such value: Optuna's sweeper would end the sweep on NaN.
            return result if result is None or math.isfinite(result) else None
        except Exception as error:
            line = _mistake(error, typed)
            if in_sweep:  # Hydra goes on with the other jobs and raises at the end
                sweeps.job_failed(config, error, str(error) if isinstance(error, ranks.RankError) else line)
                raise
            if ranks.place() is not None and not ranks.leave_error(error, line):
                raise SystemExit(1) from error  # another rank failed first, and has told why
            if line is None:
                raise
            _leave(2, line)
        finally:
            if in_sweep:
                sweeps.job_ended()

    @functools.wraps(task)
    def main() -> Any:
        # Without it Hydra prints exceptions itself, shortened, and exits.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        started.run_dir = sweeps.directory = None
        ranks.place()
        register_resolvers()
        try:
            if ranks.place() is not None and not ranks.started_here():
                _refuse_sweep_of_ranks()
            received = ranks.received()
            if received is not None:
                return ranks.run_received(received, job)
            _refuse_unknown_flags()
            program = hydra.main(config_path=str(conf), config_name=CONFIG_NAME, version_base=VERSION_BASE)
            returned = program(parallel.in_worker(job))()
        except KeyboardInterrupt:
            _leave(130, _interrupted(started))
        except SystemExit as leaving:
            if isinstance(
                leaving.__context__, KeyboardInterrupt
            ):  # Lightning has ended the run in good order
                _leave(130, _interrupted(started))
            # A cluster's time limit, which Lightning lets pass for success; by name to import nothing here.
            if type(leaving).__name__ == "SIGTERMException" or leaving.code == 143:
                _leave(143, _interrupted(started))
            raise
        except Exception as error:
            _leave_for(error, conf, started)
        _end_of_sweep(None)
        return returned

    return main


def _leave_for(error: Exception, conf: Path, started: _Started) -> None:
    """Exit with the code and the line that an error deserves, or let it pass to be printed with its traceback."""
    if str(error) in NO_TRIAL and sweeps.directory is not None:
        _end_of_sweep(None)
        _leave(1, "no trial has returned a value")
    if isinstance(error, ranks.RankError):
        _end_of_sweep(error)
        _leave(1, str(error))
    if _is_composition_error(error, started):
        lines = _explained(conf)
        if not lines:  # not of the user's making
            raise error
        _leave(2, "\n".join(lines))
    _end_of_sweep(error)
    line = _mistake(error)
    if line is None:
        raise error
    _leave(2, line)


def _end_of_sweep(error: Exception | None) -> None:
    """Where this was a sweep: show its leaderboard, and leave with the failed jobs where there are any."""
    directory = sweeps.directory
    if directory is None:
        return
    lines = sweeps.unfinished(directory)
    if error is not None and not sweeps.told(error, directory):
        return
    sweeps.show(directory)
    if lines:
        _leave(1, "\n".join(lines))


class _Started:
    """What is known of the job once it runs."""

    run_dir: Path | None = None


def register_resolvers() -> None:
    """The interpolations that conf/ uses: `${run_dir:name,time,experiment,scale}`,
    `${run_name:stage,inspect,model,data}`, `${step_limit:...}`, `${run_id:directory}`, `${or_else:value,otherwise}`,
    `${if_needed:label}`."""
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("step_limit", step_limit, replace=True)
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("or_else", or_else, replace=True)
    OmegaConf.register_new_resolver("if_needed", if_needed, replace=True)
    OmegaConf.register_new_resolver("study_seed", study_seed, replace=True)


def run_dir(name: str, time: str, experiment: str | None, scale: str | None) -> str:
    """Where a run goes; a claim, which has a scale, has one place where it goes on: `runs/claims/NAME`."""
    if scale is None:
        return f"runs/{name}/{time}"
    return f"runs/claims/{str(experiment).removeprefix('claims/')}" + ("-full" if scale == "full" else "")


def run_name(stage: str, inspect: bool, model: str, data: str) -> str:
    """The run directory's parent: `wobert-clue` for training, `inspect-clue` for a look at the corpus, else the
    stage."""
    if stage != "fit":
        return str(stage)
    return f"inspect-{data}" if inspect is True else f"{model}-{data}"


def run_id(directory: str) -> str:
    """A name for a run that is the same whenever it is resumed in its directory."""
    return hashlib.sha256(os.path.abspath(directory).encode()).hexdigest()[:16]


def or_else(value: Any, otherwise: Any) -> Any:
    """What was typed, or what a preset says where nothing was."""
    return otherwise if value is None else value


def if_needed(name: str, *, _root_: DictConfig) -> str | None:
    """A column's usual name, where the technique needs what it holds, else nothing: other techniques stumble over no
    label."""
    try:
        technique = locate(str(OmegaConf.select(_root_, "model._target_")))
    except TargetError:
        return None
    return name if technique is not None and name in (class_attribute(technique, "needs") or ()) else None


def step_limit(max_steps: int | None, max_epochs: int, max_time: str | None) -> int:
    """How many optimiser steps a run makes at most: as typed, else DEFAULT_STEPS unless it has another limit."""
    if isinstance(max_steps, int):
        return max_steps
    # What is no number is told under its own name.
    return DEFAULT_STEPS if max_steps is not None or (max_epochs == -1 and max_time is None) else -1


def study_seed(seed: int, storage: str | None) -> int | None:
    """The sampler's seed; none for a study that is stored: it would draw the same values each time it goes on."""
    return seed if storage is None else None


def _refuse_unknown_flags() -> None:
    _, unknown = get_args_parser().parse_known_args()
    if unknown:
        flag = unknown[0]
        if not flag.startswith("-"):
            _leave(2, f"{flag}: type it beside the other options, not behind a flag such as --config-dir")
        name = flag.lstrip("-")
        way_out = f"type {name}" if "=" in name else f"type {name}=VALUE, or see --help"
        _leave(2, f"{flag}: options are typed without dashes; {way_out}")


def _refuse_sweep_of_ranks() -> None:
    arguments, _ = get_args_parser().parse_known_args()
    if arguments.multirun:
        _leave(2, "-m: a sweep starts the ranks of its jobs itself; type it without torchrun or srun")


def _is_composition_error(error: Exception, started: _Started) -> bool:
    if isinstance(error, InstantiationException):
        return False
    if started.run_dir is None and sweeps.directory is None:
        return isinstance(error, (HydraException, OmegaConfBaseException, ValueError))
    return isinstance(error, (ConfigCompositionException, OverrideParseException))  # a later job of a sweep


def _explained(conf: Path) -> list[str]:
    from launch.check import check_command_line
    from launch.explain import config_loader

    arguments = get_args_parser().parse_args()
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        return [f"--config-dir {arguments.config_dir}: there is no such directory"]
    multirun = arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
    return check_command_line(
        config_loader(conf, arguments.config_dir),
        arguments.config_name or CONFIG_NAME,
        # Hydra itself has appended its mode to the overrides that it was given.
        [override for override in arguments.overrides if not override.startswith("hydra.mode=")],
        multirun,
    )


def _mistake(error: Exception, config: DictConfig | None = None) -> str | None:
    """The line for an error that is the user's to mend, None for every other one.

    The user's are: `ConfigError`; `DataError`; what a constructor refuses; and a ValueError that begins with
    an option of the config and its value, `hidden_size=65: ...`.
    """
    corpus = sys.modules.get("datamodules.corpus")  # not loaded: it cannot have raised
    if isinstance(error, ConfigError):
        return str(error)
    cause, node = error, ""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        cause, node = error.__cause__, _node_of(error, config)
    option = _option_of(cause, node, config) if isinstance(cause, ValueError) else None
    if option is not None:
        return f"{option}={str(cause).partition('=')[2]}"
    if corpus is not None and isinstance(cause, corpus.DataError):
        return str(cause)
    refused = isinstance(cause, (ValueError, OSError)) or type(cause).__name__ == "MisconfigurationException"
    return f"{node}: {cause}" if node and refused else None


def _node_of(error: InstantiationException, config: DictConfig | None) -> str:
    """The path of the node that Hydra could not build: by name, or by its class where a plain dict was
    built."""
    path = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
    target = re.search(r"target '(.+)'", str(error))
    if path is not None or target is None or config is None:
        return path[1] if path else ""
    nodes = [str(key) for key in config if OmegaConf.select(config, f"{key}._target_") == target[1]]
    return nodes[0] if nodes else ""


def _option_of(error: ValueError, node: str, config: DictConfig | None) -> str | None:
    """What was typed, `model.backbone.hidden_size`, for `hidden_size=65: ...` where the config holds that value."""
    named = re.match(r"(\w+)=([^:,]*)", str(error))
    if named is None or config is None:
        return None
    paths = [
        path
        for path, value in _leaves(OmegaConf.to_container(config, resolve=True))
        if path.rpartition(".")[2] == named[1] and str(value) == named[2] and path.startswith(node)
    ]
    path = min(paths, key=lambda path: path.count("."), default=None)
    return None if path is None else _as_typed(path, OmegaConf.to_container(config, resolve=False))


def _as_typed(path: str, values: dict[str, Any]) -> str:
    """`tokenizer.words` for `data.tokenizer.words`, whose parent is interpolated: `values` are the unresolved ones."""
    from launch.check import INTERPOLATED

    keys, value = path.split("."), values
    for place, key in enumerate(keys, 1):
        value = value.get(key)
        source = INTERPOLATED.fullmatch(value) if isinstance(value, str) else None
        if source is not None:
            return _as_typed(".".join([source[1], *keys[place:]]), values)
    return path


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _interrupted(started: _Started) -> str:
    if sweeps.directory is not None:
        return sweeps.how_to_go_on(sweeps.directory)
    run_dir = started.run_dir
    if run_dir is None or not (run_dir / "checkpoints" / "last.ckpt").is_file():
        return "interrupted"
    return (
        "interrupted; to continue, type the same command with "
        f"hydra.run.dir={os.path.relpath(run_dir)} ckpt_path=last"
    )


def _leave(code: int, text: str) -> None:
    # What ranks have to say the process says that has started them, or else rank zero.
    here = ranks.place()
    if here is None or (here.rank == 0 and not ranks.started_here()):
        print(text, file=sys.stderr)
    raise SystemExit(code)
