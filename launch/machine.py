"""What this machine can do of what a trainer's options ask for."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from launch.run_dir import ConfigError


def num_processes(trainer: dict[str, Any]) -> int:
    """How many ranks of a job run on this machine, each in a process of its own.

    Torch is imported only where GPUs have to be looked for: the process that starts the ranks needs it for nothing else.

    Args:
        trainer: the trainer's node, every value settled.

    Raises:
        ConfigError: the machine lacks what the options name, or something else has to start the processes.
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    strategy = _name_of(trainer.get("strategy", "auto"))
    _check_start(trainer)
    wanted = _wanted(devices)
    if accelerator == "auto" and strategy == "auto" and wanted == 1:
        return 1
    if accelerator == "cpu":
        if "fsdp" in strategy:
            raise ConfigError("trainer.accelerator=cpu: FSDP needs GPUs; use trainer=ddp_cpu")
        return _processes_of_cpu(devices, wanted)
    import torch

    gpus = 0 if accelerator == "mps" else torch.cuda.device_count()
    if accelerator != "cuda" and torch.backends.mps.is_available():
        if wanted not in (1, None, [0]) or strategy != "auto":
            what = "Apple's GPU works alone, without DDP or FSDP"
            raise ConfigError(
                f"trainer.devices={_typed(devices)}: {what}; use trainer=gpu or trainer=ddp_cpu"
            )
        return 1
    if not gpus and (accelerator != "auto" or "fsdp" in strategy):
        build = f"torch {torch.__version__}" + (f" (CUDA {torch.version.cuda})" if torch.version.cuda else "")
        raise ConfigError(
            f"trainer.accelerator={accelerator}: {build} sees no GPU; use trainer=cpu or trainer=ddp_cpu"
        )
    if not gpus:
        return _processes_of_cpu(devices, wanted)
    if wanted is None:
        return gpus
    last, number = (max(wanted), len(wanted)) if isinstance(wanted, list) else (wanted - 1, wanted)
    if last >= gpus:
        raise ConfigError(f"trainer.devices={_typed(devices)}: this machine has {gpus} GPU{'s' * (gpus > 1)}")
    return number


def check_compiler(device_type: str, typed: str) -> None:
    """Whether torch.compile finds the compiler that it calls: C++ for a CPU, C for the launchers of GPU kernels.

    Args:
        device_type: "cpu" or that of a GPU.
        typed: the option that asks for it, as it was typed.

    Raises:
        ConfigError: there is none.
    """
    if device_type == "cpu":
        names = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    else:
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    if not any(map(shutil.which, names)):
        raise ConfigError(
            f"{typed}: torch.compile needs a compiler, and there is no {' nor '.join(names)} here; install one (Debian: "
            "apt install g++), name one in CXX (CC on a GPU), or type compile=false"
        )


def _check_start(trainer: dict[str, Any]) -> None:
    """Who starts the processes: srun, torchrun, or, on one machine, train.py."""
    in_srun, tasks = "SLURM_STEP_ID" in os.environ, os.environ.get("SLURM_NTASKS", "1")
    strategy, machines = trainer.get("strategy"), trainer.get("num_nodes", 1)
    cluster = strategy.get("cluster_environment") if isinstance(strategy, dict) else None
    if not in_srun and cluster is not None and "slurm" in _name_of(cluster):
        raise ConfigError(
            "trainer=slurm: this process is no task of srun; use trainer=ddp on one machine, or start it with srun "
            "(docs/scaling.md)"
        )
    if in_srun and tasks != "1" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"srun --ntasks={tasks}: tasks are counted on each machine; type srun --ntasks-per-node=N"
        )
    if machines > 1 and not in_srun and "RANK" not in os.environ:
        raise ConfigError(
            f"trainer.num_nodes={machines}: on several machines torchrun or srun starts the processes (docs/scaling.md)"
        )


def _name_of(node: str | dict[str, Any]) -> str:
    return (node if isinstance(node, str) else node["_target_"].rpartition(".")[2]).lower()


def _wanted(devices: int | str | list[int]) -> int | list[int] | None:
    """A number, which ones, or None for all."""
    if devices in ("auto", "-1", -1):
        return None
    if isinstance(devices, str):
        numbers = [part.strip() for part in devices.split(",") if part.strip()]
        if not numbers or not all(number.isdecimal() for number in numbers):
            raise ConfigError(
                f"trainer.devices={devices}: must be a number, auto, or which ones: 'trainer.devices=[0,2]'"
            )
        devices = [int(number) for number in numbers] if "," in devices else int(numbers[0])
    if devices in (0, []) or (isinstance(devices, list) and len(set(devices)) < len(devices)):
        raise ConfigError(f"trainer.devices={_typed(devices)}: must name at least one device, and none twice")
    return devices


def _processes_of_cpu(devices: Any, wanted: int | list[int] | None) -> int:
    if devices == "auto":
        return 1
    if not isinstance(wanted, int):
        raise ConfigError(
            f"trainer.devices={_typed(devices)}: on a CPU it is how many processes there are, trainer.devices=2"
        )
    return wanted


def _typed(devices: Any) -> str:
    return str(devices).replace(" ", "")
