"""One run, one directory: what is written into it, what it may not overwrite, what it continues."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from datamodules.atomic import write_whole

PACKAGES = {
    "kexue-lightning": "kexue-lightning",
    "torch": "torch",
    "lightning": "pytorch-lightning",
    "transformers": "transformers",
    "hydra": "hydra-core",
}

# Lines that Lightning prints at every run and that ask nothing of the reader, by their beginning.
NOISY_LINES = (
    "💡 Tip:",
    "`weights_only` was not set",
    "TPU available: False",
    "`Trainer.fit` stopped: `max_",
    "Initializing distributed: GLOBAL_RANK",
    f"{'-' * 100}\ndistributed_backend=",
    "`Trainer(limit_train_batches=1.0)`",
    "`Trainer(limit_val_batches=1.0)`",
    "`Trainer(limit_test_batches=1.0)`",
)
# Warnings of that kind, by a pattern of their beginning.
NOISY_WARNINGS = (
    r"The `srun` command is available on your system but is not used",
    r"The '\w+' does not have many workers which may be a bottleneck",  # num_workers=0 is the default here
    r"Checkpoint directory .* exists and is not empty",  # a resumed run
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


class ConfigError(Exception):
    """What the user typed cannot be; the message says what, where, and the way out. Told without a traceback,
    exit code 2."""


class Run:
    """The directory of one job, as a context manager: config.yaml, summary.json, its path as the last line.

    summary.json has the keys `stage, model, data, source, seed, overrides, metrics, throughput, world_size,
    wall_seconds, run_dir, versions, status, error` and, where given, `data_facts`. `status` is "running"
    until the block is left: then "finished"; "interrupted" after Ctrl-C or SIGTERM; "failed", with `error`
    "Type: message", after any other exception, which goes on its way. Only rank zero writes.

    Set what becomes known on the way: `source`, `world_size`, `data_facts`, `run_metrics`, and put results
    into `metrics` (numbers or one-element tensors; NaN and infinity are written as null).

    Args:
        directory: made where it is missing.
        config: the composed config as YAML.
        stage, model, data, seed: as chosen on the command line.
        ckpt_path: as typed; says whether a directory that holds a run may be continued.
        overrides: what was typed, `["model=wobert", "seed=2"]`.
        source: the corpus, "sample" or a path.

    Raises:
        ValueError: on entering, see `check_free`.

    Attributes:
        run_metrics: the trainer's `RunMetrics`: throughput, and wall seconds of the processes that were killed.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        config: str,
        stage: str,
        model: str,
        data: str,
        seed: int,
        ckpt_path: str | None = None,
        overrides: list[str] | None = None,
        source: str | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.config = config
        self.stage = stage
        self.model = model
        self.data = data
        self.seed = seed
        self.ckpt_path = ckpt_path
        self.overrides = overrides or []
        self.source = source
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))  # as far as is known before there is a trainer
        self.metrics: dict[str, Any] = {}
        self.data_facts: dict[str, Any] = {}
        self.run_metrics: Any = None
        self._started_at = time.monotonic()
        self._earlier_seconds = 0.0

    @classmethod
    def of(cls, cfg: DictConfig) -> Run:
        """The run of the job that Hydra has composed."""
        hydra = HydraConfig.get()
        return cls(
            hydra.runtime.output_dir,
            OmegaConf.to_yaml(cfg, resolve=True),
            stage=cfg.stage,
            model=hydra.runtime.choices.model,
            data=hydra.runtime.choices.data,
            seed=cfg.seed,
            ckpt_path=cfg.ckpt_path,
            overrides=OmegaConf.to_container(hydra.overrides.task),
        )

    def result(self, name: str) -> float | None:
        """The metric `name` as a plain number; None where the run has none of that name."""
        value = self.metrics.get(name)
        return value.item() if hasattr(value, "item") else value

    def __enter__(self) -> Run:
        if not _is_rank_zero():
            return self
        check_free(self.directory, self.ckpt_path, self.stage)
        self._started_at = time.monotonic()
        self._earlier_seconds = read_summary(self.directory).get("wall_seconds") or 0.0
        self.directory.mkdir(parents=True, exist_ok=True)
        write_whole(self.directory / "config.yaml", self.config)
        self.write_summary("running")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if not _is_rank_zero():
            return
        status = "finished" if error is None else "interrupted" if _is_interruption(error) else "failed"
        self.write_summary(status, error)
        wandb = sys.modules.get("wandb")  # not loaded: it has no run
        if getattr(wandb, "run", None) is not None:
            wandb.finish(0 if error is None else 1)  # else the next job of a sweep would go on with this run
        if status != "failed":
            print(shown(self.directory), flush=True)

    def write_summary(
        self,
        status: Literal["running", "finished", "interrupted", "failed"],
        error: BaseException | None = None,
    ) -> None:
        """Write summary.json, whole or not at all; in an existing directory."""
        throughput = {"tokens_per_second": None, "examples_per_second": None, "mfu": None}
        earlier = self._earlier_seconds
        if self.run_metrics is not None:
            throughput = self.run_metrics.throughput()
            # A killed process has left its wall time in last.ckpt only.
            earlier = max(earlier, self.run_metrics.earlier_wall_seconds)
        summary = {
            "stage": self.stage,
            "model": self.model,
            "data": self.data,
            "source": self.source,
            "seed": self.seed,
            "overrides": self.overrides,
            "metrics": {name: _number(value) for name, value in self.metrics.items()},
            "throughput": {name: _number(value) for name, value in throughput.items()},
            "world_size": self.world_size,
            "wall_seconds": round(earlier + time.monotonic() - self._started_at, 3),
            "run_dir": str(self.directory),
            "versions": _versions(),
            "status": status,
            "error": None if error is None else error_text(error),
        }
        if self.data_facts:
            summary["data_facts"] = self.data_facts
        _write_summary(self.directory, summary)


def read_summary(directory: Path) -> dict[str, Any]:
    """A run's summary.json; empty where there is none that can be read."""
    try:
        return json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def configs_then_and_now(directory: Path, cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run's config.yaml holds, and what it would hold if it were written from `cfg`."""
    saved = OmegaConf.load(directory / "config.yaml")
    wanted = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    return OmegaConf.to_container(saved), OmegaConf.to_container(wanted)


def amend_summary(directory: Path, **changes: Any) -> None:
    """Correct how a run ended, where its own process could not know or was not there to say it any more."""
    _write_summary(directory, read_summary(directory) | changes)


def _write_summary(directory: Path, summary: dict[str, Any]) -> None:
    write_whole(directory / "summary.json", json.dumps(summary, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def replaced_whole(directory: Path) -> Iterator[Path]:
    """Gives a directory beside `directory` to write into, which takes its place when the block is through."""
    building = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    yield building
    shutil.rmtree(directory, ignore_errors=True)
    building.rename(directory)


def check_free(directory: str | os.PathLike, ckpt_path: str | None, stage: str) -> None:
    """Refuse a directory that holds a run already, unless this job continues it.

    Cheap: may be asked before anything is imported or made.

    Raises:
        ValueError: `directory` holds a finished run, or a checkpoint, and `ckpt_path` does not continue it.
    """
    directory = Path(directory).absolute()
    status = read_summary(directory).get("status")
    last = directory / "checkpoints" / "last.ckpt"
    if status != "finished" and not last.exists():
        return
    if stage == "fit" and ckpt_path is not None:
        if ckpt_path == "last" or directory.resolve() in (
            path := Path(ckpt_path).expanduser().resolve(),
            *path.parents,
        ):
            return
    what = "a finished run" if status == "finished" else "the checkpoint of a run"
    if stage == "fit" and last.exists():
        raise ValueError(
            f"hydra.run.dir={shown(directory)}: holds {what}; "
            "continue it with ckpt_path=last, or choose another"
        )
    raise ValueError(f"hydra.run.dir={shown(directory)}: holds {what}; choose another")


def find_checkpoint(
    ckpt_path: str | None,
    run_dir: str | os.PathLike,
    stage: Literal["fit", "validate", "test", "predict"] = "fit",
) -> Path | None:
    """The checkpoint that `ckpt_path` means.

    Args:
        ckpt_path: None; "last": this run directory's last.ckpt; a run directory: its last.ckpt for fit, else its
            best.ckpt, or last.ckpt where it has no best; a .ckpt file.
        run_dir: this run's directory.
        stage: what it is for.

    Returns:
        None for None, and for "last" where fit is launched for the first time.

    Raises:
        ValueError: naming what was looked for.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        last = Path(run_dir) / "checkpoints" / "last.ckpt"
        if not last.is_file() and stage != "fit":
            raise ValueError(
                f"ckpt_path=last: {shown(last)} does not exist; name a run directory or a .ckpt file"
            )
        return last if last.is_file() else None
    path = Path(ckpt_path).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"ckpt_path={ckpt_path}: no such file or directory")
    names = ("last.ckpt",) if stage == "fit" else ("best.ckpt", "last.ckpt")
    for name in names:
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    looked_for = " nor ".join(f"checkpoints/{name}" for name in names)
    way_out = ""
    if (path / "config.json").is_file() or (path / "export").is_dir():
        way_out = f"; to start from its weights: model.init_from={ckpt_path}"
    raise ValueError(f"ckpt_path={ckpt_path}: this directory holds no {looked_for}{way_out}")


def quieten() -> None:
    """Drop the known lines that Lightning prints at every run; everything else passes."""
    for pattern in NOISY_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    # A logger's filter sees the records logged to it, not those of its children.
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "pytorch_lightning.trainer.connectors.checkpoint_connector",
        "lightning_fabric.utilities.rank_zero",
        "lightning_fabric.utilities.distributed",
    ):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISY_LINES)


def _is_rank_zero() -> bool:
    """By the variables that launchers set, as Lightning reads them: there is no trainer yet."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    return int(next((rank for rank in ranks if rank is not None), 0)) == 0


def _is_interruption(error: BaseException) -> bool:
    # Lightning turns Ctrl-C into SystemExit; its SIGTERMException is one too, by name to import nothing here.
    kinds = {type(one).__name__ for one in (error, error.__context__)}
    return isinstance(error, (KeyboardInterrupt, SystemExit)) and bool(
        kinds & {"KeyboardInterrupt", "SIGTERMException"}
    )


def error_text(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _number(value: Any) -> float | int | None:
    value = value.item() if hasattr(value, "item") else value
    return value if value is not None and math.isfinite(value) else None


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def shown(path: Path) -> str:
    """Relative to the working directory where it lies beneath: short, and can be pasted after ckpt_path=."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
