"""The command line: Hydra's `main`, with mistakes told in the user's words.

Exit codes: 0 done; 1 something broke (with its traceback); 2 something that was typed, a config or an input
file is wrong (one line each, no traceback); 130 Ctrl-C, 143 SIGTERM. Nothing here imports torch or Lightning.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
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

CONFIG_NAME = "train"
VERSION_BASE = "1.3"
# About a minute of training on two cores with the embedded sample.
DEFAULT_STEPS = 800

Task = Callable[[DictConfig], Any]


def entrypoint(task: Task) -> Callable[[], Any]:
    """Make `task(cfg)` a program whose configs lie in `conf/` beside the file that defines it."""
    conf = Path(inspect.getfile(task)).resolve().parent / "conf"
    started = _Started()

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        started.run_dir = Path(HydraConfig.get().runtime.output_dir)
        typed = copy.deepcopy(config)  # Hydra resolves interpolations in place when it builds a node
        try:
            return task(config)
        except Exception as error:
            line = _mistake(error, typed)
            # In a sweep Hydra goes on with the other jobs and raises at the end.
            if line is None or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _leave(2, line)

    @functools.wraps(task)
    def main() -> Any:
        # Without it Hydra prints exceptions itself, shortened, and exits.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        started.run_dir = None
        register_resolvers()
        _refuse_unknown_flags()
        try:
            program = hydra.main(config_path=str(conf), config_name=CONFIG_NAME, version_base=VERSION_BASE)
            return program(job)()
        except KeyboardInterrupt:
            _leave(130, _interrupted(started))
        except SystemExit as leaving:
            if isinstance(
                leaving.__context__, KeyboardInterrupt
            ):  # Lightning has ended the run in good order
                _leave(130, _interrupted(started))
            # A cluster's time limit, which Lightning lets pass for success; by name to import nothing here.
            if type(leaving).__name__ == "SIGTERMException":
                _leave(143, _interrupted(started))
            raise
        except Exception as error:
            if not _is_composition_error(error, started):
                line = _mistake(error)
                if line is None:
                    raise
                _leave(2, line)
            lines = _explained(conf)
            if not lines:  # not of the user's making
                raise
            _leave(2, "\n".join(lines))

    return main


class _Started:
    """What is known of the job once it runs."""

    run_dir: Path | None = None


def register_resolvers() -> None:
    """The interpolations that conf/ uses: `${run_name:stage,inspect,model,data}`, `${step_limit:...}`,
    `${run_id:directory}`."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("step_limit", step_limit, replace=True)
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)


def run_name(stage: str, inspect: bool, model: str, data: str) -> str:
    """The run directory's parent: `wobert-clue` for training, `inspect-clue` for a look at the corpus, else the
    stage."""
    if stage != "fit":
        return str(stage)
    return f"inspect-{data}" if inspect is True else f"{model}-{data}"


def run_id(directory: str) -> str:
    """A name for a run that is the same whenever it is resumed in its directory."""
    return hashlib.sha256(os.path.abspath(directory).encode()).hexdigest()[:16]


def step_limit(max_steps: int | None, max_epochs: int, max_time: str | None) -> int:
    """How many optimiser steps a run makes at most: as typed, else DEFAULT_STEPS unless it has another limit."""
    if isinstance(max_steps, int):
        return max_steps
    # What is no number is told under its own name.
    return DEFAULT_STEPS if max_steps is not None or (max_epochs == -1 and max_time is None) else -1


def _refuse_unknown_flags() -> None:
    _, unknown = get_args_parser().parse_known_args()
    if unknown:
        flag = unknown[0]
        if not flag.startswith("-"):
            _leave(2, f"{flag}: type it beside the other options, not behind a flag such as --config-dir")
        name = flag.lstrip("-")
        way_out = f"type {name}" if "=" in name else f"type {name}=VALUE, or see --help"
        _leave(2, f"{flag}: options are typed without dashes; {way_out}")


def _is_composition_error(error: Exception, started: _Started) -> bool:
    if isinstance(error, InstantiationException):
        return False
    if started.run_dir is None:
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
    from launch.check import ConfigError

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
    run_dir = started.run_dir
    if run_dir is None or not (run_dir / "checkpoints" / "last.ckpt").is_file():
        return "interrupted"
    return (
        "interrupted; to continue, type the same command with "
        f"hydra.run.dir={os.path.relpath(run_dir)} ckpt_path=last"
    )


def _leave(code: int, text: str) -> None:
    print(text, file=sys.stderr)
    raise SystemExit(code)
