"""Jobs of a sweep side by side on one machine, `hydra/launcher=joblib`: what its worker processes leave to be done.

joblib gives every worker its share of the processor's cores (OMP_NUM_THREADS and its kin, where they are not set
already). It knows nothing of GPUs; a worker that is killed, out of memory, takes all others with it; on Ctrl-C it
kills them in the midst of what they write; and where the process that was typed is killed, they go on without it. So
a worker only waits: its job runs in a process of its own (`launch.ranks`), to which it passes signals on.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from launch import leaderboard
from launch.ranks import GRACE_AFTER_SIGNAL, is_of_one_process
from launch.run_dir import read_summary

NVIDIA_DRIVER = Path("/proc/driver/nvidia")


def job_number() -> int | None:
    """The number of this process' job where others run beside it, else None."""
    hydra = HydraConfig.get()
    return None if not _is_parallel(hydra) or OmegaConf.is_missing(hydra.job, "num") else hydra.job.num


def _is_parallel(hydra: DictConfig) -> bool:
    return hydra.launcher._target_.endswith(".JoblibLauncher")


# -------------------------------------------------------------------------------------- the process that was typed


def prepare(config: DictConfig) -> None:
    """Before a sweep whose jobs run side by side; for every other one nothing is done.

    On Ctrl-C and SIGTERM its jobs will end in good order before joblib kills them, and OMP_NUM_THREADS, where it is
    set, is what each job gets.

    Args:
        config: Hydra's config of the sweep, its directory settled.
    """
    if not _is_parallel(config.hydra):
        return
    if "OMP_NUM_THREADS" in os.environ:
        # Unset, it would be each worker's share, and torch takes it instead of the other one.
        os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    end_jobs = functools.partial(_end_jobs, Path(config.hydra.sweep.dir), time.time())
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is default:  # else it is ignored, as nohup has it
            signal.signal(number, end_jobs)


def _end_jobs(sweep_dir: Path, since: float, number: int, frame: Any) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, _interrupt_workers)  # for which they kill their jobs
    _interrupt_workers()
    end = time.monotonic() + GRACE_AFTER_SIGNAL
    while time.monotonic() < end and any(
        _is_running(path, since) for path in sweep_dir.glob("*/summary.json")
    ):
        time.sleep(0.1)
    leaderboard.update(sweep_dir)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)


def _interrupt_workers(*signal_and_frame: Any) -> None:
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)


def _is_running(summary: Path, since: float) -> bool:
    """Not one that another process has left so when it was killed, before the time `since`."""
    return summary.stat().st_mtime >= since and read_summary(summary.parent).get("status") == "running"


# ---------------------------------------------------------------------------------------------------------- a worker


def in_worker(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """`job`, for which the process is prepared where it is a worker."""

    @functools.wraps(job)
    def run(config: DictConfig) -> Any:
        if not _is_worker():
            return job(config)
        _settle()
        _take_gpu(config)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return job(config)
        except KeyboardInterrupt:
            _wait_for_the_end()
        finally:
            signal.signal(signal.SIGINT, _wait_for_the_end)

    return run


def processes(config: DictConfig) -> int:
    """1 where this process has to start another one for the job, and wait; else 0."""
    return int(_is_worker() and not is_of_one_process(config))


def _is_worker() -> bool:
    return multiprocessing.current_process().name.startswith("LokyProcess-")


def _wait_for_the_end(*signal_and_frame: Any) -> None:
    """Take no other job of a sweep that is being ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        signal.pause()


@functools.cache
def _settle() -> None:
    # Ctrl-C in a terminal is for the process that was typed, which passes it on.
    os.setpgid(0, 0)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def _take_gpu(config: DictConfig) -> None:
    """A job on one device gets the GPU that has its worker's number, round and round where there are fewer."""
    gpus = _gpus()
    if OmegaConf.select(config, "trainer.devices") == 1 and gpus:
        worker = int(multiprocessing.current_process().name.rpartition("-")[2])
        gpus = [gpus[worker % len(gpus)]]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)


@functools.cache
def _gpus() -> list[str]:
    """Those that this worker was given, before its first job took one of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    if not NVIDIA_DRIVER.exists():
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
