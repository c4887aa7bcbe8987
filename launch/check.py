"""The static check of a composed config: every mistake at once, before the run directory exists.

Nothing heavy is imported. Each node with `_target_` is held against the signature that `launch.signatures`
reads: names, annotated types, `Literal`s, and ranges, which stand in the annotation of the constructor:

    from typing import Annotated
    def __init__(self, mask_rate: Annotated[float, "0 < x < 1"] = 0.15): ...

Rules:
- In this project's packages, and in classes of others below `model`, `data` and `tokenizer`, a keyword-only
  parameter (after a bare `*`) is supplied by code, never by yaml.
- Nodes within `model` and `data`, and `tokenizer`, are built by `datamodules.build.build`: classes of this
  project and of torch.optim, whose first parameter (what is optimised) is supplied by code. `model` and
  `data` themselves, callbacks, loggers and the trainer are built by Hydra and may be anyone's classes.
- What the technique and its children (its backbone) `needs` must be within what the corpus `provides`; `metrics` of all of
  them are what can be optimised, those of the technique and its children what callbacks can monitor; `predict_tasks` what `stage=predict` can do; `provided_by` says
  which option has to be given for something that a corpus `provides`. All are literals in the body of the class.
- A class whose `**kwargs` go elsewhere is open: names that it does not list are not questioned.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.build import ALLOWED, TECHNIQUE
from launch import explain, leaderboard, parallel, sweeps
from launch.run_dir import check_free, find_checkpoint
from launch.search_space import SearchSpace
from launch.search_space import find_mistakes as find_sweeper_mistakes
from launch.signatures import (
    Found,
    Parameter,
    Signature,
    TargetError,
    class_attribute,
    describe,
    did_you_mean,
    locate,
    misfit,
    show,
    signature,
)

# Lightning's names, and its short ones.
PRECISIONS = "Literal['32-true', 'bf16-mixed', 'bf16-true', '16-mixed', '16-true', '64-true', 'bf16', 16, 32, 64] | None"

# conf/train.yaml's options, in the language of annotations.
OPTIONS: dict[str, Any] = {
    "stage": "Literal['fit', 'validate', 'test', 'predict', 'vocabulary', 'compare']",
    "seed": "Annotated[int, '0 <= x < 4294967296']",
    "ckpt_path": "str | None",
    "runs": "str | list[str] | None",
    "max_steps": "Annotated[int, 'x == -1 or x >= 1'] | None",
    "max_epochs": "Annotated[int, 'x == -1 or x >= 1']",
    "max_time": "Any",  # DD:HH:MM:SS, see MAX_TIME
    "validate_every": "Annotated[int, 'x >= 1']",
    "log_every": "Annotated[int, 'x >= 1']",
    "gradient_clip": "Annotated[float, 'x >= 0']",
    "precision": PRECISIONS,
    "compile": "bool | Literal['default', 'reduce-overhead', 'max-autotune']",
    "checkpoint_every": "Annotated[int, 'x >= 0']",
    "optimized_metric": "str",
    "claim": "dict | None",
    "predict": {
        "task": "str | None",
        "input": "str | list[str | int | float | list[str | int | float]] | None",
        "output": "str | None",
        "format": "Literal['jsonl', 'clue']",
        "batch_size": "Annotated[int, 'x >= 1']",
    },
}

# Ranges that others' classes check late or not at all, by the prefix of the target.
RANGES = {
    "torch.optim.": {
        "lr": "Annotated[float, 'x > 0']",
        "betas": "list[Annotated[float, '0 <= x < 1']]",
        "eps": "Annotated[float, 'x > 0']",
        "weight_decay": "Annotated[float, 'x >= 0']",
        "momentum": "Annotated[float, '0 <= x < 1']",
    },
    "pytorch_lightning.callbacks.": {
        "mode": "Literal['min', 'max']",
        "patience": "Annotated[int, 'x >= 1']",
        "decay": "Annotated[float, '0 <= x < 1']",
        "save_top_k": "Annotated[int, 'x >= -1']",
    },
    "pytorch_lightning.Trainer": {
        "accelerator": "Literal['auto', 'cpu', 'gpu', 'cuda', 'mps']",
        "devices": "Annotated[int, 'x == -1 or x >= 1'] | str | list[Annotated[int, 'x >= 0']]",
        "num_nodes": "Annotated[int, 'x >= 1']",
        "strategy": (
            "Literal['auto', 'ddp', 'ddp_find_unused_parameters_false', 'ddp_find_unused_parameters_true', 'fsdp', "
            "'fsdp_cpu_offload'] | dict"
        ),
        "overfit_batches": "Annotated[int, 'x >= 0']",
    },
    "pytorch_lightning.strategies.": {
        "process_group_backend": "Literal['nccl', 'gloo'] | None",
        "find_unused_parameters": "bool",
        "static_graph": "bool",
        "gradient_as_bucket_view": "bool",
        "bucket_cap_mb": "Annotated[float, 'x > 0'] | None",
        "cpu_offload": "bool",
        "sharding_strategy": "Literal['FULL_SHARD', 'SHARD_GRAD_OP', 'HYBRID_SHARD', 'NO_SHARD']",
        "state_dict_type": "Literal['full']",
    },
}

# Others' classes whose `**kwargs` go to another one.
HANDED_ON = {
    "pytorch_lightning.strategies.ddp.DDPStrategy": "torch.nn.parallel.DistributedDataParallel",
    "pytorch_lightning.strategies.fsdp.FSDPStrategy": "torch.distributed.fsdp.FullyShardedDataParallel",
}

OWN_PACKAGES = ("lightning_modules", "datamodules", "launch")
NODES = ("model", "data", "tokenizer", "trainer")
NODE_GROUPS = ("callbacks", "logger")
PRESETS = ("experiment", "debug", "local", "sweep")
HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
# Beginnings of metrics that a stage does not log.
OTHER_SPLITS = {"fit": (), "validate": ("train/", "test/"), "test": ("train/", "val/")}
# Options that train.py sets, and what to type instead.
SET_BY_CODE = {
    "trainer.callbacks": "is chosen with the group: callbacks=NAME",
    "trainer.logger": "is chosen with the group: logger=NAME",
    "trainer.plugins": "is set by the program",
    "trainer.val_check_interval": "is set by validate_every",
    "trainer.accumulate_grad_batches": "follows from data.tokens_per_batch and data.max_tokens_per_device, of arrays data.batch_size and data.max_rows_per_device",
    "trainer.strategy.accelerator": "is set by trainer.accelerator",
    "trainer.strategy.parallel_devices": "is set by trainer.devices",
    "trainer.strategy.precision_plugin": "is set by precision",
    "trainer.strategy.checkpoint_io": "is set by the program",
    "trainer.strategy.start_method": "train.py starts the processes itself; leave it out",
    "trainer.strategy.module": "is set by the program",
    "trainer.strategy.device_ids": "is set by trainer.devices",
    "trainer.strategy.device_id": "is set by trainer.devices",
}
# Lightning's strategies that start processes; without the middle they are those that find them started.
STARTS_PROCESSES = re.compile(r"(ddp)_(?:spawn|fork|notebook)(\w*)")

MAX_TIME = re.compile(r"\d+:\d\d:\d\d:\d\d")
# The beginning of a path that an interpolation speaks of.
REFERENCED = re.compile(r"\$\{(?:oc\.select:)?(\w+)[.}]")
# An option that is taken from another one, whose path is the group.
INTERPOLATED = re.compile(r"\$\{(?:oc\.select:|or_else:\$\{)?([\w.]+)(?:,null|\},[\w-]+)?\}")


def _not_to_be_swallowed(check: Callable[..., None]) -> Callable[..., None]:
    """An error within a check is one of this program: without it Hydra would run what was never checked."""

    @functools.wraps(check)
    def checked(*arguments: Any, **options: Any) -> None:
        try:
            check(*arguments, **options)
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None

    return checked


class CheckConfig(Callback):
    """Hydra callback: ends with all mistakes on stderr and exit code 2, before anything is written.

    Hydra turns exceptions of callbacks into warnings, hence `SystemExit`.
    """

    @_not_to_be_swallowed
    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        tell(_find_mistakes_of_run(GlobalHydra.instance().config_loader(), config))

    @_not_to_be_swallowed
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        loader = GlobalHydra.instance().config_loader()
        tell(find_grid_mistakes(loader, config))
        sweeps.settle_directory(loader, config)
        parallel.prepare(config)


def tell(mistakes: list[str]) -> None:
    """Print the mistakes, if any, and leave.

    Raises:
        SystemExit: with code 2 where there are mistakes.
    """
    if mistakes:
        print("\n".join(mistakes), file=sys.stderr)
        raise SystemExit(2)


def check_command_line(
    loader: ConfigLoader, config_name: str, overrides: list[str], multirun: bool = False
) -> list[str]:
    """All mistakes of a command line: overrides that Hydra cannot apply, and what is wrong in the
    config that the others compose. Empty where there are none."""
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    config, lines = explain.compose(loader, config_name, overrides, mode)
    if config is None:
        return lines
    found = find_grid_mistakes(loader, config) if multirun else _find_mistakes_of_run(loader, config)
    return list(dict.fromkeys(lines + found))


def find_grid_mistakes(loader: ConfigLoader, config: DictConfig) -> list[str]:
    """The mistakes of every job of a sweep. Those of some jobs only name the first of them."""
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return find_search_mistakes(loader, config)
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = config.hydra.sweeper.params or {}
    typed = [f"{key}={value}" for key, value in params.items()] + explain.typed_overrides(config)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    try:
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException as error:
        return [str(error)]
    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    names = [" ".join(override for override in job if override.partition("=")[0] in swept) for job in jobs]
    return [
        line if len(numbers) == len(jobs) else f"{line}  [{_jobs([names[number] for number in numbers])}]"
        for line, numbers in _jobs_by_mistake(loader, config, jobs).items()
    ]


def find_search_mistakes(loader: ConfigLoader, config: DictConfig) -> list[str]:
    """The mistakes of a sweep whose jobs are not known before it runs: those at the ends of its search space."""
    space = SearchSpace.of(config)
    lines = [*space.mistakes, *find_sweeper_mistakes(config, space)]
    names, jobs = zip(*space.jobs(), strict=True)
    for line, numbers in _jobs_by_mistake(loader, config, jobs).items():
        # The directories of jobs are numbered; which values a job will have is not known.
        clear = line.startswith(("hydra.run.dir=", *(f"{option}=" for option in space.ends)))
        everywhere = clear or len(numbers) == len(jobs)
        lines.append(line if everywhere else f"{line}  [{_jobs([names[number] for number in numbers])}]")
    return lines


def _jobs_by_mistake(
    loader: ConfigLoader, config: DictConfig, jobs: Sequence[list[str]]
) -> dict[str, list[int]]:
    """The lines for the mistakes of jobs, given by their overrides, and the numbers of the jobs that have them."""
    found: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        job_config, lines = explain.compose(
            loader, config.hydra.job.config_name, explain.typed_overrides(config, "hydra") + job
        )
        if job_config is not None:
            lines = lines + find_mistakes(job_config, job_number=number)
        for line in dict.fromkeys(lines):
            found.setdefault(line, []).append(number)
    return found


def _jobs(names: list[str]) -> str:
    return f"job {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _find_mistakes_of_run(loader: ConfigLoader, config: DictConfig) -> list[str]:
    mistakes = find_mistakes(config)
    if not isinstance(config.get("claim"), DictConfig):
        return mistakes
    from launch import claim_check

    return claim_check.find_mistakes(loader, config, mistakes)


def find_mistakes(config: DictConfig, job_number: int | None = None) -> list[str]:
    """The mistakes of one composed config, Hydra's own node included; `job_number`: its place in a sweep."""
    config = copy.deepcopy(config)
    previous = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = config
    try:
        return _Check(config, job_number).run()
    finally:
        HydraConfig.instance().cfg = previous


class _Reference(dict):
    """A node that is interpolated in from elsewhere, where it is checked."""


class _Check:
    """One pass over a config; `mistakes` maps the path of an option to its line."""

    def __init__(self, config: DictConfig, job_number: int | None):
        self.config = config
        self.choices = OmegaConf.to_container(config.hydra.runtime.choices)
        self.mistakes: list[tuple[str, str]] = []
        self.sources: dict[str, str] = {}  # path of an interpolated option -> path that it is taken from
        self.referenced: set[str] = set()  # top-level names that interpolations speak of
        self.in_sweep = job_number is not None
        self.run_dir = self._find_run_dir(job_number)
        self.plain: dict[str, Any] = {
            str(key): self._read(config, key, str(key)) for key in config if key not in ("hydra", "claim")
        }
        # Its inside is for `launch.claim_check`.
        self.plain["claim"] = {} if isinstance(config.get("claim"), DictConfig) else config.get("claim")
        self.technique = self._class_of("model")
        self.corpus = self._class_of("data")

    def run(self) -> list[str]:
        self._check_search_path()
        self._check_sweep()
        self._check_options(OPTIONS, self.plain, "")
        self._check_top_level()
        for name in NODES:
            if name in self.plain:
                self._check_nodes(name, self.plain[name])
        for group in NODE_GROUPS:
            for name, node in (self.plain.get(group) or {}).items():
                self._check_nodes(f"{group}.{name}", node)
        self._check_needs()
        self._check_metrics()
        self._check_length()
        self._check_stage()
        if self.plain["claim"] is None:
            self._check_run_dir()
        elif self.in_sweep:
            self.add(self._choice("experiment"), "a claim types its sweeps itself; leave out -m")
        broken = {path for path, _ in self.mistakes}
        told_at_source = {
            path for path, source in self.sources.items() if source != path and source in broken
        }
        return list(dict.fromkeys(line for path, line in self.mistakes if path not in told_at_source))

    def add(self, path: str, what: str, value: Any = ...) -> None:
        typed = path if value is ... else f"{path}={show(value)}"
        self.mistakes.append((path, f"{typed}: {what}"))

    # ------------------------------------------------------------------------------------- reading the config

    def _find_run_dir(self, job_number: int | None) -> Path | None:
        hydra = self.config.hydra
        try:
            if job_number is None:
                directory = Path(hydra.run.dir)
            else:
                OmegaConf.set_struct(hydra, False)
                hydra.job.num = job_number
                directory = Path(hydra.sweep.dir) / str(hydra.sweep.subdir)
        except OmegaConfBaseException as error:
            self.add("hydra.run.dir", _unresolved(error))
            directory = None
        OmegaConf.set_struct(hydra, False)
        hydra.runtime.output_dir = str((directory or Path()).absolute())
        return directory

    def _read(self, parent: DictConfig | ListConfig, key: Any, path: str) -> Any:
        """The plain value of an option; what is missing or cannot be resolved is told and read as `...`."""
        if OmegaConf.is_missing(parent, key):
            self.add(path, "is missing; it must be given")
            return ...
        node = parent._get_node(key)
        interpolation = node._value() if node is not None and node._is_interpolation() else None
        if interpolation is not None:
            source = INTERPOLATED.fullmatch(str(interpolation))
            self.sources[path] = source[1] if source else path
            self.referenced.update(REFERENCED.findall(str(interpolation)))
        try:
            value = parent[key]
        except OmegaConfBaseException as error:
            self.add(path, _unresolved(error), interpolation)
            return ...
        if interpolation is not None and isinstance(value, DictConfig) and "_target_" in value:
            return _Reference()
        if isinstance(value, DictConfig):
            return {str(name): self._read(value, name, f"{path}.{name}") for name in value}
        if isinstance(value, ListConfig):
            return [self._read(value, index, f"{path}.{index}") for index in range(len(value))]
        return value

    def _class_of(self, name: str) -> Found | None:
        node = self.plain.get(name)
        return _class_of_target(node.get("_target_")) if isinstance(node, dict) else None

    def _choice(self, name: str) -> str:
        return f"{name}={self.choices.get(name)}"

    # -------------------------------------------------------------------------- conf/train.yaml's own options

    def _check_sweep(self) -> None:
        if self.choices.get("sweep") is not None and not self.in_sweep:
            self.add(self._choice("sweep"), "is for sweeps, which need -m: python train.py -m ...")

    def _check_search_path(self) -> None:
        for source in self.config.hydra.runtime.config_sources:
            if source.schema == "file" and source.provider != "main" and not Path(source.path).is_dir():
                self.add(f"hydra.searchpath={source.path}", "there is no such directory")

    def _check_options(self, options: dict[str, Any], values: dict[str, Any], prefix: str) -> None:
        for name, annotation in options.items():
            path = f"{prefix}{name}"
            if name not in values:
                self.add(path, "is missing; it must be given")
            elif isinstance(annotation, dict):
                if isinstance(values[name], dict):
                    self._check_options(annotation, values[name], f"{path}.")
                    for unknown in set(values[name]) - set(annotation):
                        self.add(f"{path}.{unknown}", "no such option" + _instead(unknown, list(annotation)))
                else:
                    names = ", ".join(f"{path}.{option}" for option in annotation)
                    self.add(path, f"must be given one by one: {names}")
            else:
                self._check_value(path, values[name], annotation, "builtins")
        max_time = values.get("max_time")
        if not prefix and max_time not in (None, ...) and not MAX_TIME.fullmatch(str(max_time)):
            self.add("max_time", "must be DD:HH:MM:SS, for example 00:00:10:00 for ten minutes", max_time)

    def _check_value(self, path: str, value: Any, annotation: Any, module: str) -> bool:
        failure = None if value is ... else misfit(_without_gaps(value), annotation, module)
        if failure is None:
            return True
        what = describe(failure, path.rpartition(".")[2], value)
        if isinstance(value, str) and path.replace(".", "/") in self.choices:
            what += f"; a choice is typed {path.replace('.', '/')}={value}"
        self.add(path, what, value)
        return False

    def _check_top_level(self) -> None:
        known = [*OPTIONS, *NODES, *NODE_GROUPS]
        typed = [name for name in known if name != "claim"]  # which comes with an experiment
        for name in list(self.plain):
            if name in PRESETS:
                file = f"{name}/{self.choices.get(name)}.yaml"
                self.add(name, f"{file} must begin with the line '# @package _global_'")
            elif "/" in name:  # +model/loss=focal, where there is no group model/loss at all
                top, _, group = name.partition("/")
                present = explain.chosen_groups(top, self.config)
                self.add(name, f"{self._choice(top)} has no group {group}" + _instead(group, present))
            elif name not in known and name not in self.referenced:
                self.add(name, "no such option" + did_you_mean(name, typed))
        for name in ("model", "data", "trainer"):
            node = self.plain.get(name)
            if node is None:
                self.add(name, f"is missing; choose one with {name}=NAME")
            elif not isinstance(node, dict):
                self.add(name, "must be a group's choice", node)
            elif "_target_" not in node:
                self.add(f"{name}._target_", "is missing; it names the class")
        for group in NODE_GROUPS:
            nodes = self.plain.get(group)
            if nodes is not None and not isinstance(nodes, dict):
                self.add(group, f"must be a group's choice, or a list of them: '{group}=[a,b]'", nodes)
                self.plain[group] = {}
                continue
            for name, node in (nodes or {}).items():
                if not isinstance(node, dict) or "_target_" not in node:
                    way_out = f"to leave it out type ~{group}.{name}"
                    self.add(f"{group}.{name}", f"has no _target_; {way_out}")

    # ------------------------------------------------------------------------------------ nodes with _target_

    def _check_nodes(self, path: str, node: Any) -> None:
        if isinstance(node, _Reference) or not isinstance(node, (dict, list)):
            return
        children = node.items() if isinstance(node, dict) else enumerate(node)
        if isinstance(node, dict):
            if "_target_" in node:
                self._check_node(path, node)
            for key in node:
                if key.startswith("_") and key not in HYDRA_KEYS:
                    self.add(f"{path}.{key}", "no such option" + did_you_mean(key, HYDRA_KEYS))
        for key, child in list(children):
            self._check_nodes(f"{path}.{key}", child)

    def _check_node(self, path: str, node: dict[str, Any]) -> None:
        target = node["_target_"]
        if target is ...:
            return
        is_child = path == "tokenizer" or path.startswith(("model.", "data.", "tokenizer."))
        if is_child and not str(target).startswith(ALLOWED):
            self.add(f"{path}._target_", f"must be a class below {', '.join(ALLOWED)}", target)
            return
        try:
            found = locate(str(target))
        except TargetError as error:
            self.add(f"{path}._target_", str(error), target)
            return
        if found is None:
            return
        known = _signature(found)
        options = self._options_of(path, str(target), found, known)
        name = str(target).rpartition(".")[2]
        for key, value in node.items():
            if key.startswith("_"):
                continue
            if f"{path}.{key}" in SET_BY_CODE:
                self.add(f"{path}.{key}", SET_BY_CODE[f"{path}.{key}"])
            elif key in options:
                self._check_option(f"{path}.{key}", str(target), value, options[key])
            elif not known.open:
                self.add(f"{path}.{key}", f"no such option of {name}" + _instead(key, list(options)))
        if "_args_" in node or node.get("_partial_"):
            return
        for key, parameter in options.items():
            if parameter.required and key not in node and not parameter.keyword_only:
                self.add(f"{path}.{key}", f"is missing; {name} needs it")

    def _options_of(self, path: str, target: str, found: Found, known: Signature) -> dict[str, Parameter]:
        """The parameters that yaml gives: not those that code supplies."""
        from_code = path.partition(".")[0] in ("model", "data", "tokenizer")
        options = {}
        for index, (name, parameter) in enumerate(known.parameters.items()):
            package = parameter.module.partition(".")[0]
            own = package in OWN_PACKAGES or (from_code and package not in ("torch", "pytorch_lightning"))
            if (own and parameter.keyword_only) or (target.startswith("torch.optim.") and index == 0):
                continue
            options[name] = parameter
        return options

    def _check_option(self, path: str, target: str, value: Any, parameter: Parameter) -> None:
        starts = STARTS_PROCESSES.fullmatch(str(value)) if path == "trainer.strategy" else None
        if starts is not None:
            way_out = f"type {path}={starts[1]}{starts[2]}"
            self.add(path, f"train.py starts the processes itself; {way_out}", value)
            return
        if not self._check_value(path, value, parameter.annotation, parameter.module):
            return
        ranges = next((r for prefix, r in RANGES.items() if target.startswith(prefix)), {})
        if parameter.name in ranges and value is not None:
            self._check_value(path, value, ranges[parameter.name], "builtins")

    # -------------------------------------------------------------------------- what fits what, and the stage

    def _check_needs(self) -> None:
        if self.technique is None or self.corpus is None or self._takes_the_runs_corpus():
            return
        provides = class_attribute(self.corpus, "provides")
        if provides is None:
            return
        named = {
            self._choice(path.replace(".", "/")): set(class_attribute(found, "needs") or ())
            for path, found in (("model", self.technique), *self._parts_of_model())
        }
        needs = set().union(*named.values())
        if needs <= set(provides):
            self._check_options_of_needs(needs)
            return
        fitting = [f"data={name}" for name, found in self._corpora() if needs <= _provided(found)]
        way_out = f"use {' or '.join(fitting)}" if fitting else "no corpus of conf/data provides it"
        told: set[str] = set()
        for choice, of_choice in named.items():
            if lacking := of_choice - set(provides) - told:
                told |= lacking
                instead = "" if choice.startswith("model=") else f", or leave out {choice}"
                what = f"needs {', '.join(sorted(lacking))}, which {self._choice('data')} does not provide"
                self.add(choice, f"{what}; {way_out}{instead}")

    def _takes_the_runs_corpus(self) -> bool:
        """Whether the composed corpus is none that the job reads: a run is evaluated on its own, a prediction has none."""
        stage = self.plain.get("stage")
        typed = any(name.startswith("data=") for name in explain.typed_overrides(self.config))
        return stage == "predict" or (stage in ("validate", "test") and not typed)

    def _check_options_of_needs(self, needs: set[str]) -> None:
        """What the corpus provides only if an option names it, such as the column of the label."""
        options = class_attribute(self.corpus, "provided_by") or {}
        for capability in sorted(needs & set(options)):
            option = options[capability]
            if self.plain["data"].get(option) is None:
                what = f"needs {capability}, which {self._choice('data')} provides with data.{option}="
                self.add(self._choice("model"), what)

    def _parts_of_model(self) -> Iterator[tuple[str, Found]]:
        """The classes of the technique's children, by the paths of their nodes."""
        left = [("model", self.plain.get("model"))]
        while left:
            path, node = left.pop(0)
            if not isinstance(node, dict):
                continue
            found = _class_of_target(node.get("_target_")) if path != "model" else None
            if found is not None:
                yield path, found
            left += [(f"{path}.{key}", child) for key, child in node.items()]

    def _corpora(self) -> Iterator[tuple[str, Found]]:
        for source in self.config.hydra.runtime.config_sources:
            if source.schema == "file":
                for file in sorted(Path(source.path, "data").glob("*.yaml")):
                    found = _class_of_target(OmegaConf.load(file).get("_target_"))
                    if found is not None:
                        yield file.stem, found

    def _check_metrics(self) -> None:
        """What is optimised is a metric that the job has in the end; callbacks see what is logged while training."""
        stage = self.plain.get("stage")
        fits = stage == "fit"
        technique = self.technique if fits else self._trained_technique() or self.technique
        metrics = class_attribute(technique, "metrics") if technique else None
        if not metrics or stage not in OTHER_SPLITS:
            return
        if fits:
            parts = (class_attribute(found, "metrics") or () for _, found in self._parts_of_model())
            metrics = dict.fromkeys((*metrics, *(metric for of_part in parts for metric in of_part)))
        wrong = f"{technique.node.name} logs no such metric"
        known = [metric for metric in metrics if not metric.startswith(OTHER_SPLITS[stage])]
        if fits:
            known += (self.corpus and class_attribute(self.corpus, "metrics")) or ()
        optimized = self.plain.get("optimized_metric")
        # The default speaks of training: to evaluate a run it need not be there.
        is_meant = fits or leaderboard.typed_metric(explain.typed_overrides(self.config)) is not None
        if is_meant and isinstance(optimized, str) and optimized not in known:
            at_stage = "" if fits else f" at stage={stage}"
            self.add("optimized_metric", wrong + at_stage + _instead(optimized, known), optimized)
        while_training = [metric for metric in metrics if not metric.startswith("test/")]
        for key, node in self._nodes("callbacks") if fits else ():
            monitor = node.get("monitor")
            if isinstance(monitor, str) and monitor not in while_training:
                what = "is not logged while training" if monitor in known else wrong
                self.add(f"callbacks.{key}.monitor", what + _instead(monitor, while_training), monitor)

    def _nodes(self, group: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, node in (self.plain.get(group) or {}).items():
            if isinstance(node, dict):
                yield name, node

    def _check_length(self) -> None:
        """Lightning ends a run without any limit after 1000 epochs, silently: no such run is started."""
        trainer = self.plain.get("trainer")
        if self.plain.get("stage") != "fit" or not isinstance(trainer, dict):
            return
        limits = ("max_steps", "max_epochs", "max_time")
        if all(trainer.get(name, self.plain.get(name)) in (-1, None) for name in limits):
            self.add(", ".join(limits), "the run has no end; limit one of them")

    def _check_stage(self) -> None:
        stage, checkpoint = self.plain.get("stage"), self.plain.get("ckpt_path")
        predict = self.plain.get("predict")
        predict = predict if isinstance(predict, dict) else {}
        if stage == "predict":
            self._check_predict(predict)
        else:
            for name, default in (("task", None), ("input", None), ("output", None), ("format", "jsonl")):
                if predict.get(name) not in (default, ...):
                    self.add(f"predict.{name}", "is used with stage=predict only", predict[name])
        self._check_runs(stage, self.plain.get("runs"))
        if checkpoint is None and stage in ("validate", "test", "predict"):
            kinds = "a run directory, a .ckpt file" + (" or an export/" if stage == "predict" else "")
            self.add("ckpt_path", f"stage={stage} needs it: {kinds}")
        data = self.plain.get("data")
        inspects = isinstance(data, dict) and data.get("inspect") is True
        if inspects and stage not in ("fit", ...):
            self.add(
                "data.inspect", f"looks at the corpus and does nothing else; leave out stage={stage}", True
            )
        if checkpoint not in (None, ...) and (inspects or stage in ("vocabulary", "compare")):
            what = "data.inspect=true" if inspects else f"stage={stage}"
            self.add("ckpt_path", f"is not used with {what}", checkpoint)
        elif isinstance(checkpoint, str):
            self._check_checkpoint(str(stage), checkpoint)

    def _check_runs(self, stage: Any, runs: Any) -> None:
        if stage == "compare" and not runs:
            self.add("runs", "stage=compare needs it, directories of runs or sweeps: 'runs=[DIR,DIR]'")
        elif stage != "compare" and runs not in (None, ...):
            self.add("runs", "is used with stage=compare only", runs)
        elif isinstance(runs, (str, list)):
            metrics: set[str] = set()
            for directory in [runs] if isinstance(runs, str) else runs:
                try:
                    metrics.update(*(job.metrics for job in leaderboard.collect(str(directory))))
                except ValueError as error:
                    self.mistakes.append(("runs", str(error)))
            metric = leaderboard.typed_metric(explain.typed_overrides(self.config))
            if metrics and metric is not None and metric not in metrics:
                what = "none of the runs has it" + _instead(metric, sorted(metrics))
                self.add("optimized_metric", what, metric)

    def _check_checkpoint(self, stage: str, checkpoint: str) -> None:
        if stage == "predict" and (Path(checkpoint).expanduser() / TECHNIQUE).is_file():
            return
        try:
            find_checkpoint(checkpoint, self.run_dir or Path(), stage)
        except ValueError as error:
            self.mistakes.append(("ckpt_path", str(error)))

    def _check_predict(self, predict: dict[str, Any]) -> None:
        trained = self._trained_technique()
        tasks = class_attribute(trained, "predict_tasks") if trained else None
        task = predict.get("task")
        if task is None:
            known = f", one of {', '.join(tasks)}" if tasks else ""
            self.add("predict.task", f"stage=predict needs it{known}")
        elif tasks is not None and isinstance(task, str) and task not in tasks:
            what = f"no such task of {trained.node.name}"
            self.add("predict.task", what + _instead(task, list(tasks)), task)
        texts = predict.get("input")
        if texts is None:
            self.add(
                "predict.input", """stage=predict needs it: a file, or 'predict.input=["text","text"]'"""
            )
        elif isinstance(texts, str) and not Path(texts).expanduser().is_file():
            way_out = f"""for a text itself type 'predict.input=["{texts}"]'"""
            self.add("predict.input", f"no such file; {way_out}", texts)
        if predict.get("format") == "clue" and task not in ("classify", None):
            self.add("predict.format", "is of predictions of classes: predict.task=classify", "clue")
        output = predict.get("output")
        if isinstance(output, str) and Path(output).is_dir():
            self.add("predict.output", "is a directory, must be a file", output)

    def _trained_technique(self) -> Found | None:
        """The class that `ckpt_path` was written by: named by the export, or by the run's config.yaml."""
        checkpoint = self.plain.get("ckpt_path")
        if not isinstance(checkpoint, str):
            return None
        path = Path(checkpoint).expanduser()
        if checkpoint == "last":
            path = self.run_dir or Path()
        try:
            if (path / TECHNIQUE).is_file():
                target = json.loads((path / TECHNIQUE).read_text(encoding="utf-8")).get("_target_")
            else:
                run = path.parent.parent if path.is_file() else path
                target = OmegaConf.load(run / "config.yaml").model._target_
        except (OSError, ValueError, AttributeError, OmegaConfBaseException):
            return None
        return _class_of_target(target)

    def _check_run_dir(self) -> None:
        if self.run_dir is None:
            return
        try:
            check_free(self.run_dir, self.plain.get("ckpt_path"), str(self.plain.get("stage")))
        except ValueError as error:
            self.mistakes.append(("hydra.run.dir", str(error)))


def _signature(found: Found) -> Signature:
    """The signature, with the options of the class to which this one hands its `**kwargs`."""
    known = signature(found)
    target = HANDED_ON.get(f"{found.module}.{getattr(found.node, 'name', '')}")
    receiver = None if target is None else locate(target)
    if receiver is None:
        return known
    further = signature(receiver)
    parameters = {name: parameter._replace(required=False) for name, parameter in further.parameters.items()}
    return Signature({**parameters, **known.parameters}, further.open)


def _class_of_target(target: Any) -> Found | None:
    try:
        return locate(target) if isinstance(target, str) else None
    except TargetError:
        return None


def _provided(found: Found) -> set[str]:
    return set(class_attribute(found, "provides") or ())


def _instead(name: str, names: list[str]) -> str:
    return did_you_mean(name, names) or (f" (there are: {', '.join(names)})" if names else "")


def _without_gaps(value: Any) -> Any:
    """Lists without the items that could not be read: those are told already."""
    return [item for item in value if item is not ...] if isinstance(value, list) else value


def _unresolved(error: OmegaConfBaseException) -> str:
    missing = re.search(r"Interpolation key '([^']+)' not found", str(error))
    return f"refers to {missing[1]}, which is not there" if missing else str(error).splitlines()[0]
