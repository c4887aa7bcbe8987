"""One process a rank: started by `python train.py`, alone or within a sweep, or by torchrun and srun.

Lightning's own launcher makes the main process rank zero and lets every other rank type the command line again.
Within a sweep those ranks walk the whole sweep once more, an Optuna sweep draws other values in each of them, and
`${now:}` gives each its own directory; what it leaves in the environment makes the next job believe that its ranks
are there already; and where a rank fails, the process that runs the sweep is killed or waits for ever. Here

- a job on several devices is run by a process that is no rank itself. It starts all ranks, hands them the composed
  config, passes on signals, and ends them all where one fails. It trains nothing and joins no process
  group (it imports torch only to count GPUs), and is as it was when the next job comes;
- every rank has the config that rank zero has, value by value. Started by torchrun or srun, rank zero composes and
  the others are given its config through the store at MASTER_ADDR:MASTER_PORT: one run, one directory.

To Lightning all of them are processes that something else has created, so every strategy works as it is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from datamodules.atomic import write_whole
from launch.machine import num_processes
from launch.run_dir import ConfigError, Run, amend_summary, read_summary

# Marks a process that `run_ranks` has started; its job comes through stdin.
STARTED_HERE = "KEXUE_LIGHTNING_RANK"
# Marks one that must not outlive the process that has started it, whose pipe is its stdin.
TIED = "KEXUE_LIGHTNING_TIED"
# Within the run directory while its ranks live: what the ranks that failed have to say.
ERRORS = ".ranks"
# Seconds that ranks have to end by themselves once one has failed: another may sit in a collective call for ever.
GRACE_AFTER_FAILURE = 10.0
# The same once one has obeyed a signal: rank zero may be writing a checkpoint.
GRACE_AFTER_SIGNAL = 60.0
# Ranks on other machines may start late.
STORE_TIMEOUT = timedelta(minutes=30)

# The others run in one process.
STAGES = ("fit", "validate", "test")


class RankError(Exception):
    """A rank has failed; the message says which one, and what it raised. The rank has told its traceback."""


@dataclass(frozen=True)
class Place:
    """Where a process that something else has started stands among its ranks.

    Attributes:
        rank: of all machines.
        world_size: ranks of all machines.
        local_world_size: ranks of this machine.
    """

    rank: int
    world_size: int
    local_world_size: int


@cache
def place() -> Place | None:
    """Of this process; asked for once, because Lightning tidies the variables away when a training ends."""
    return place_by(os.environ)


def place_by(environ: Mapping[str, str]) -> Place | None:
    """By the variables of torchrun (and of `run_ranks`) or srun; None for a process that was typed."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(environ):
        world_size = int(environ["WORLD_SIZE"])
        return Place(int(environ["RANK"]), world_size, int(environ.get("LOCAL_WORLD_SIZE", world_size)))
    if "SLURM_STEP_ID" in environ and int(environ.get("SLURM_NTASKS", 1)) > 1:
        world_size = int(environ["SLURM_NTASKS"])
        machines = int(environ.get("SLURM_NNODES", 1))
        return Place(int(environ["SLURM_PROCID"]), world_size, world_size // machines)
    return None


def is_of_one_process(cfg: DictConfig) -> bool:
    """Whether the job neither trains nor evaluates."""
    return cfg.stage not in STAGES or OmegaConf.select(cfg, "data.inspect") is True


def are_needed(cfg: DictConfig) -> int:
    """How many ranks this process has to start for the job; 0: it runs the job itself.

    Raises:
        ConfigError: the machine cannot do what the trainer asks for, or torchrun or srun have started another number
            of processes.
    """
    if (
        cfg.get("trainer") is None or cfg.get("claim") is not None
    ):  # the runs of a claim are jobs of their own
        return 0
    in_one_process = is_of_one_process(cfg)
    here = place()
    if in_one_process and here is None and cfg.stage != "predict":  # there is no trainer
        return 0
    processes = num_processes(OmegaConf.to_container(cfg.trainer, resolve=True))
    if here is not None:
        if in_one_process:
            raise ConfigError(f"stage={cfg.stage}: runs in one process; type it without torchrun or srun")
        devices, machines = processes, int(cfg.trainer.get("num_nodes", 1))
        if (devices, machines * devices) != (here.local_world_size, here.world_size):
            raise ConfigError(
                f"trainer.devices={cfg.trainer.devices}: {here.local_world_size} processes were started on this "
                f"machine, {here.world_size} in all; type trainer.devices={here.local_world_size} "
                f"trainer.num_nodes={here.world_size // here.local_world_size} and a trainer such as ddp"
            )
        return 0
    several = processes > 1 or cfg.trainer.get("strategy", "auto") != "auto"
    return processes if several and not in_one_process else 0


# ------------------------------------------------------------------------------- the process that starts the ranks


def run_ranks(cfg: DictConfig, processes: int, script: Path) -> float | None:
    """Run the job of this process in `processes` ranks on this machine.

    Args:
        cfg: the composed config.
        processes: number of ranks.
        script: the program, whose `main` has to be an `entrypoint`.

    Returns:
        The metric that `optimized_metric` names, from summary.json.

    Raises:
        RankError, ConfigError: a rank failed; all others have been ended. summary.json has the first error.
        KeyboardInterrupt: Ctrl-C; all ranks have ended.
        SystemExit: with code 143 after SIGTERM.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    shutil.rmtree(run_dir / ERRORS, ignore_errors=True)
    before, start = read_summary(run_dir), time.monotonic()
    job = json.dumps(_job(cfg)).encode()
    ranks = _Ranks()
    try:
        with signals_passed_on(ranks.processes) as ranks.signals:
            ranks.start(script, job, processes)
            ranks.wait()
    finally:
        ranks.kill()
    told = ranks.how_one_was_killed() or _first_error(run_dir) or ranks.how_one_ended()
    shutil.rmtree(run_dir / ERRORS, ignore_errors=True)
    if read_summary(run_dir) != before or not before:  # else a run of before, which no rank has touched
        _settle(cfg, run_dir, ranks, told, time.monotonic() - start)
    if ranks.signals:
        raise KeyboardInterrupt if ranks.signals[0] == signal.SIGINT else SystemExit(143)
    if told is not None:
        raise ConfigError(told["text"]) if told["code"] == 2 else RankError(_told(told))
    return read_summary(run_dir)["metrics"].get(cfg.optimized_metric)


def _settle(
    cfg: DictConfig, run_dir: Path, ranks: _Ranks, told: dict[str, Any] | None, seconds: float
) -> None:
    """See that summary.json says how the run ended: rank zero may have been killed, or know the consequence only."""
    if not read_summary(run_dir):
        Run.of(cfg).write_summary("running")
    status = read_summary(run_dir)["status"]
    if ranks.signals:
        if status not in ("finished", "interrupted"):
            amend_summary(run_dir, status="interrupted", error=None)
    elif told is not None:
        changes = {"status": "failed", "error": told["text"] if told["code"] == 2 else _told(told)}
        if status == "running":
            changes |= {"world_size": len(ranks.processes), "wall_seconds": round(seconds, 3)}
        amend_summary(run_dir, **changes)


class _Ranks:
    """The processes of a job's ranks.

    Attributes:
        signals: those that were passed on.
        first_failure: rank and exit code of the one that ended first with another code than 0.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.signals: list[int] = []
        self.first_failure: tuple[int, int] | None = None

    def start(self, script: Path, job: bytes, number: int) -> None:
        common = {
            **os.environ,
            STARTED_HERE: "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(number),
            "LOCAL_WORLD_SIZE": str(number),
            "NODE_RANK": "0",
            # Lightning would take a batch script's processes for those of srun, but for this name.
            "SLURM_JOB_NAME": "interactive",
        }
        for rank in range(number):
            process = subprocess.Popen(
                [sys.executable, str(script)],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                # Ctrl-C in a terminal goes to all of its processes: a rank would hear it twice, and hearing it twice
                # means to end at once.
                start_new_session=True,
            )
            self.processes.append(process)
        for process in self.processes:
            if self.signals:  # it came before this process was there to hear it
                process.send_signal(self.signals[0])
            with suppress(BrokenPipeError):  # it is gone already; `wait` will see
                # The pipe stays open: a rank ends when it is closed, that is when this process is gone.
                process.stdin.write(len(job).to_bytes(8, "little") + job)
                process.stdin.flush()

    def wait(self) -> None:
        """Return when all have ended; once one has failed, or has obeyed a signal, the others have not long."""
        deadline = None
        running = True
        while running:
            codes = [process.poll() for process in self.processes]
            running = None in codes
            if self.first_failure is None:
                failures = [(rank, code) for rank, code in enumerate(codes) if code]
                self.first_failure = min(
                    failures, key=lambda failure: failure[1], default=None
                )  # killed ones first
            if deadline is None and (self.first_failure or (self.signals and 0 in codes)):
                grace = GRACE_AFTER_FAILURE if not self.signals else GRACE_AFTER_SIGNAL
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
            time.sleep(0.05 if running else 0)

    def how_one_was_killed(self) -> dict[str, Any] | None:
        """Of a rank that something else has killed: whatever the others raised is a consequence."""
        # Torch's watchdog aborts the ranks that wait for one that is gone.
        return (
            self.how_one_ended() if self.first_failure and self.first_failure[1] < -signal.SIGABRT else None
        )

    def how_one_ended(self) -> dict[str, Any] | None:
        """Of the rank that failed first, where it could not say a word itself."""
        if self.first_failure is None:
            return None
        rank, code = self.first_failure
        text = f"exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            text = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return {"rank": rank, "ranks": len(self.processes), "code": 1, "text": text}

    def kill(self) -> None:
        """End all at once, with the processes that they have started."""
        for process in self.processes:
            with suppress(ProcessLookupError, PermissionError):  # a group outlives its leader
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with suppress(BrokenPipeError):  # it ended before it had read its job
                process.stdin.close()


@contextmanager
def signals_passed_on(processes: list[subprocess.Popen]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM go to `processes` within the block; a second one kills them. Gives those that came."""
    came: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if came else number)
        came.append(number)

    # A thread cannot have handlers; what starts threads for jobs has signals of its own.
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, signal.SIGTERM] if in_main_thread else []
    numbers = [
        number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN
    ]  # nohup has it so
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# -------------------------------------------------------------------------------------------------- a job, handed on


def _job(cfg: DictConfig) -> dict[str, Any]:
    """What a rank needs: the config with every value settled, and as it was composed, for messages."""
    hydra = HydraConfig.instance().cfg.hydra
    return {
        "config": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "composed": OmegaConf.to_container(cfg, resolve=False, enum_to_str=True),
        "hydra": OmegaConf.to_container(hydra, resolve=False, enum_to_str=True),
        "cwd": os.getcwd(),
    }


@cache
def started_here() -> bool:
    """Whether `run_ranks` has started this process, and waits for it."""
    return os.environ.pop(STARTED_HERE, None) is not None  # not for what this process may start in its turn


def publish(cfg: DictConfig) -> None:
    """Rank zero under torchrun or srun: hand the job to the other ranks."""
    here = place()
    if here is None or here.rank > 0 or started_here() or here.world_size == 1:
        return
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return  # submitit: every rank was handed its job by Hydra
    shutil.rmtree(Path(HydraConfig.get().runtime.output_dir) / ERRORS, ignore_errors=True)
    _store(here).set("job", json.dumps(_job(cfg)))


def received() -> dict[str, Any] | None:
    """The job that this process was started for, as a rank; None: it has to read its command line.

    Raises:
        SystemExit: rank zero has left without a job.
    """
    if started_here():
        stdin = sys.stdin.buffer
        job = json.loads(stdin.read(int.from_bytes(stdin.read(8), "little")))
        _end_with_parent()
        return job
    if os.environ.pop(TIED, None) is not None:
        _end_with_parent()
    here = place()
    if here is None or here.rank == 0:
        return None
    try:
        return json.loads(_store(here).get("job"))
    except ConfigError:
        raise
    except Exception as error:
        print(f"[rank {here.rank}] rank 0 has left without a job ({error})", file=sys.stderr)
        raise SystemExit(2) from error


def run_received(job: dict[str, Any], task: Callable[[DictConfig, DictConfig], Any]) -> None:
    """Do in this rank what Hydra does round a job: its own node, the log, and `task(config, composed config)`.

    Raises:
        SystemExit: with the exit code of a rank that failed; the others learn from a file in the run directory.
    """
    rank = place().rank
    setup_globals()
    cfg = OmegaConf.create(escaped(job["config"]))
    OmegaConf.set_struct(cfg, True)
    hydra = OmegaConf.create({"hydra": {**job["hydra"], "mode": RunMode.RUN.name}})
    HydraConfig.instance().cfg = hydra
    os.chdir(job["cwd"])
    if rank == 0:
        configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    else:
        # What all ranks have to say rank zero says. Not the logger's level, which Lightning's own have set lower.
        handler = logging.StreamHandler()
        handler.setLevel(logging.ERROR)
        logging.basicConfig(handlers=[handler], format=f"[rank {rank}] %(levelname)s %(message)s")
        warnings.simplefilter("ignore")
    task(cfg, OmegaConf.create(job["composed"]))


def part() -> None:
    """The end of a rank's job: leave the process group in good order, before the process goes."""
    torch = sys.modules.get("torch")  # not loaded: there is none
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave_error(error: BaseException, line: str | None) -> bool:
    """Tell the other ranks why this one fails.

    Args:
        error: what it was.
        line: for a mistake of the user's, what is wrong.

    Returns:
        Whether this rank was the first: what the others raise then is only that this one is gone.
    """
    run_dir, here = Path(HydraConfig.get().runtime.output_dir), place()
    earlier = _first_error(run_dir)
    kind, text = type(error).__name__, str(error)
    told = {
        "rank": here.rank,
        "ranks": here.world_size,
        "time": time.time(),
        "code": 1 if line is None else 2,
        "text": line or (f"{kind}: {text}" if text else kind),
    }
    try:
        (run_dir / ERRORS).mkdir(parents=True, exist_ok=True)
        write_whole(run_dir / ERRORS / f"{here.rank}.json", json.dumps(told))
        if here.rank == 0 and earlier is not None:
            amend_summary(run_dir, status="failed", error=_told(earlier))
    except OSError:  # a full disk may be the very error
        pass
    return earlier is None


def _told(error: dict[str, Any]) -> str:
    return error["text"] + (f" (rank {error['rank']})" if error["ranks"] > 1 else "")


def _first_error(run_dir: Path) -> dict[str, Any] | None:
    told = [json.loads(path.read_text(encoding="utf-8")) for path in (run_dir / ERRORS).glob("*.json")]
    return min(told, key=lambda one: one["time"], default=None)


@cache  # and so kept: with it would go its server, and the job
def _store(here: Place) -> Any:
    from torch.distributed import TCPStore

    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if port is None:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        address, port = slurm.main_address, slurm.main_port
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:  # torch would try for half an hour
        raise ConfigError(
            f"MASTER_ADDR={address}: does not resolve ({error}); export MASTER_ADDR=ADDRESS of the first machine"
        ) from error
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself holds the store
    return TCPStore(
        address,
        int(port),
        is_master=here.rank == 0 and not agents,
        timeout=STORE_TIMEOUT,
        wait_for_workers=False,
        multi_tenant=True,  # the process group will use the same
    )


def _end_with_parent() -> None:
    """End when the pipe is closed by whose end it is: a process that was killed could not pass anything on."""
    # The bare descriptor: Python closes `sys.stdin` when it ends, and would wait for who reads it.
    pipe = os.dup(sys.stdin.fileno())

    def wait() -> None:
        os.read(pipe, 1)
        os.killpg(os.getpgid(0), signal.SIGKILL)  # with this process' own children

    threading.Thread(target=wait, daemon=True).start()


def escaped(value: Any) -> Any:
    """Text that looks like an interpolation is a value by now."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value
