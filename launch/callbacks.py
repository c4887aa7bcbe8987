"""Callbacks round every training: the checkpoint to continue from, counters and speed, progress."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections import deque
from typing import Annotated, Any

import pytorch_lightning as pl
import rich
import torch
from lightning_fabric.utilities.throughput import get_available_flops
from pytorch_lightning.callbacks import Callback, Checkpoint, RichProgressBar, Timer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from launch.csv_logger import CSVLogger

log = logging.getLogger(__name__)

WARMUP_BATCHES = 5  # of every process: compilation, memory, caches
ENOUGH_BATCHES = 20  # measured after the warm-up, from which on the warm-up is left out of the speed
WINDOW_BATCHES = 50  # behind the speed that is shown and logged
CLOCK_STEPS = 10  # between two looks at rank zero's clock, where other ranks have to be told
# Between two questions of several ranks whether one of them was told to stop; in batches at most so many.
AGREEMENT_SECONDS, AGREEMENT_BATCHES = 1.0, 200


class LastCheckpoint(Checkpoint):
    """Writes the state to continue from: every N optimiser steps, every M minutes, and where training ends.

    It writes between optimiser steps only, once a step, and after the validation of that step where there is
    one: the best score so far and early stopping's counter are then in it. Lightning moves `Checkpoint`s
    behind all other callbacks and keeps their order, so list this one after `ModelCheckpoint`. SIGTERM (a
    cluster's time limit) makes it write as well.

    Args:
        path: the file, usually <run>/checkpoints/last.ckpt.
        every_n_steps: optimiser steps; 0: by time only.
        every_minutes: after so many minutes without a write the next step writes; rank zero's clock decides.

    Raises:
        ValueError: an interval that is none.
    """

    def __init__(
        self,
        path: str,
        every_n_steps: Annotated[int, "x >= 0"],
        every_minutes: Annotated[float, "x > 0"] = 10.0,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps={every_n_steps}: must be 0 (by time only) or more")
        if not every_minutes > 0:
            raise ValueError(f"every_minutes={every_minutes}: must be above 0")
        self.path = path
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self._step = 0  # optimiser steps at the end of the last batch
        self._written_step = 0
        self._written_at = 0.0
        self._accumulating = False
        self._due = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = self._written_step = trainer.global_step
        self._written_at = time.monotonic()
        self._accumulating = self._due = False
        # After a checkpoint from an epoch's last batch Lightning counts that epoch as done, but never the
        # next one as begun: a second resume from such a checkpoint would be an epoch behind.
        progress = trainer.fit_loop.epoch_progress.total
        if trainer.fit_loop.restarted_mid_epoch and progress.processed == progress.started:
            trainer.fit_loop.reset_restart_stage()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._accumulating = trainer.global_step == self._step
        if self._accumulating:
            return
        self._step = trainer.global_step
        self._due = self._is_due(trainer)
        # A validation caused by the stop of the training, at the end of an epoch, would leave Lightning one
        # epoch behind.
        stops_with_epoch = trainer.should_stop and trainer.is_last_batch
        if self._due and (stops_with_epoch or not _validation_follows(trainer)):
            self._write(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Where early stopping has just ended the training, its end would be too late: by then Lightning has
        # counted the unfinished epoch as finished.
        if trainer.state.fn == "fit" and not self._accumulating and (self._due or trainer.should_stop):
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._accumulating:
            self._write(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # The one exception that Lightning raises between two batches; any other leaves a step half done. In
        # the middle of a validation, or of the change to the next epoch, the checkpoint written before is the
        # better one.
        between_batches = (
            isinstance(exception, SIGTERMException) and trainer.training and not trainer.is_last_batch
        )
        if between_batches and not self._accumulating:
            self._write(trainer)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step
        if trainer.should_stop or step == trainer.max_steps:
            return True
        if self.every_n_steps and step % self.every_n_steps == 0:
            return True
        late = time.monotonic() - self._written_at >= 60 * self.every_minutes
        if trainer.world_size == 1:
            return late
        return step % CLOCK_STEPS == 0 and trainer.strategy.broadcast(late)

    def _write(self, trainer: pl.Trainer) -> None:
        self._due = False
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.global_step == self._written_step:
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._written_step = trainer.global_step
        self._written_at = time.monotonic()


class Interruption(Callback):
    """Lets Ctrl-C take effect between two batches of training or validation; a second one acts at once.

    In the middle of a batch it may hit TensorBoard's writer while that holds a lock, and the process would
    wait for ever: Lightning ignores every further Ctrl-C then.

    Several ranks stop after the same training batch, on Ctrl-C and on SIGTERM, with last.ckpt written: about once a
    second they ask each other whether one was told to. Lightning asks with a broadcast before every batch, for which
    a GPU is waited for, and sends another one from the signal's handler, wherever that hits; both are left out.
    """

    def __init__(self) -> None:
        self._asked: int | None = None  # the signal that came
        self._handlers: dict[int, Any] = {}  # what the signals did before
        self._batches_until_agreement = 1
        self._agreed_at = 0.0
        self._interval = 1
        self._stops_after_validation = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._asked = None
        # Where a notebook or a launcher has its own handling, that stays.
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handle(signal.SIGINT)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing
            self._batches_until_agreement, self._interval, self._stops_after_validation = 1, 1, False
            self._agreed_at = time.monotonic()
            if _in_main_thread():  # by now Lightning has set its own
                self._handle(signal.SIGTERM)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size == 1:
            self._obey()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between two steps there is a checkpoint, within one there is none.
        if trainer.world_size == 1 or trainer.fit_loop._should_accumulate():
            return
        self._batches_until_agreement -= 1
        # Behind an epoch's last batch there would be no checkpoint; one batch later there is.
        patience = -1 if trainer.is_last_batch else 0
        if self._batches_until_agreement <= patience and self._agree(trainer):
            # Within a validation ranks could not stop together.
            self._stops_after_validation = _validation_follows(trainer)
            if not self._stops_after_validation:
                _stop_as_by_sigterm(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._stops_after_validation:
            _stop_as_by_sigterm(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.world_size == 1:
            self._obey()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # By now Lightning has put back what SIGTERM did before its own handler.
        self._handlers.pop(signal.SIGTERM, None)
        self._restore()
        if trainer.world_size > 1:
            if self._agree(trainer):
                raise SIGTERMException
        else:
            self._obey()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, KeyboardInterrupt):  # Lightning ends the process, undisturbed
            self._restore()

    def _agree(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was told to stop; settles when the ranks ask next, alike on all of them."""
        now = time.monotonic()
        seconds_per_batch = (now - self._agreed_at) / self._interval
        self._agreed_at = now
        wanted = torch.tensor(
            [float(self._asked is not None), seconds_per_batch], device=trainer.strategy.root_device
        )
        asked, slowest = trainer.strategy.reduce(wanted, reduce_op="max").tolist()
        interval = min(max(1.0, AGREEMENT_SECONDS / max(slowest, 1e-6)), AGREEMENT_BATCHES)
        self._batches_until_agreement = self._interval = int(interval)
        return asked > 0

    def _handle(self, number: int) -> None:
        self._handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number

    def _obey(self) -> None:
        if self._asked is not None:
            self._asked = None
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


class RunMetrics(Callback):
    """Counts tokens, rows and seconds of training over the life of a run, and makes its loggers continue.

    The seconds are those between the ends of training batches, waiting for data included; validation, the
    writing of checkpoints (by `AtomicCheckpointIO`) and everything before the first batch are not in them.
    With several ranks the counts are this rank's times their number. Text batches have `num_tokens` and
    `num_rows`; of others the rows are counted. Nothing here waits for the device.

    At every logged step it logs `train/tokens_per_second` over the last batches. When training starts it
    tells the loggers from which step on they will see steps again (`CSVLogger.resume_at`; for TensorBoard the
    event that hides later ones of earlier event files).

    Put it first in the list of callbacks.

    Attributes:
        earlier_wall_seconds: wall time of the processes that this one continues, up to the checkpoint.
    """

    def __init__(self) -> None:
        self.earlier_wall_seconds = 0.0
        self._started_at = time.monotonic()
        self._warmup = {"batches": 0, "rows": 0, "tokens": 0, "seconds": 0.0}
        self._measured = dict(self._warmup)
        self._window: deque[tuple[int, float]] = deque(maxlen=WINDOW_BATCHES)
        self._batches = 0  # of this process
        self._step = 0
        self._clock = 0.0
        self._flops_per_token = 0
        self._peak_flops: float | None = None

    def state_dict(self) -> dict[str, Any]:
        wall = self.earlier_wall_seconds + time.monotonic() - self._started_at
        return {"warmup": dict(self._warmup), "measured": dict(self._measured), "wall_seconds": wall}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not load_state_dict: Lightning calls that for trainer.test(ckpt_path=best) too, which would put the
        # counters back to the time of the best checkpoint.
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn == "fit" and state is not None:
            self._warmup, self._measured = dict(state["warmup"]), dict(state["measured"])
            self.earlier_wall_seconds = state["wall_seconds"]

    def tokens_per_second(self) -> float | None:
        """Speed over the last batches; None before the first and for batches without tokens."""
        tokens, seconds = (
            (sum(column) for column in zip(*self._window, strict=True)) if self._window else (0, 0)
        )
        return tokens / seconds if tokens and seconds else None

    def count(self, rows: int, tokens: int, seconds: float) -> None:
        """Add a batch of this process; `stage=predict`, which has no trainer's batches, does so itself."""
        self._batches += 1
        counts = self._warmup if self._batches <= WARMUP_BATCHES else self._measured
        for name, number in (("batches", 1), ("rows", rows), ("tokens", tokens), ("seconds", seconds)):
            counts[name] += number

    def throughput(self) -> dict[str, float | None]:
        """Speed over the life of the run, where it is long enough without the first batches of each process.

        Returns:
            `tokens_per_second`, `examples_per_second`, and `mfu`: 6 x parameters x tokens a second over the
            dense bf16 peak of the GPUs (an upper bound: embeddings are counted as if multiplied by). None:
            not measured.
        """
        total = self._measured
        if total["batches"] < ENOUGH_BATCHES:
            total = {name: total[name] + self._warmup[name] for name in total}
        tokens, rows = (
            total[name] / total["seconds"] if total["seconds"] else 0.0 for name in ("tokens", "rows")
        )
        mfu = tokens * self._flops_per_token / self._peak_flops if tokens and self._peak_flops else None
        return {"tokens_per_second": tokens or None, "examples_per_second": rows or None, "mfu": mfu}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches, self._step = 0, trainer.global_step
        self._flops_per_token = 6 * sum(parameter.numel() for parameter in pl_module.parameters())
        self._peak_flops = _peak_flops(trainer)
        self._clock = _training_clock(trainer)
        if trainer.is_global_zero:
            _continue_loggers(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._batches == 0 and pl_module.automatic_optimization:
            _align_logged_steps(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = _training_clock(trainer)
        seconds, self._clock = now - self._clock, now
        rows, tokens = (trainer.world_size * count for count in _rows_and_tokens(batch))
        self.count(rows, tokens, seconds)
        self._window.append((tokens, seconds))
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._log_speed(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock = _training_clock(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that was complete when it was loaded: Lightning has left training without having started it.
        if self._batches == 0:
            if trainer.is_global_zero:
                _continue_loggers(trainer)
            if pl_module.automatic_optimization:
                _align_logged_steps(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.automatic_optimization:
            _align_logged_steps(trainer)

    def _log_speed(self, trainer: pl.Trainer) -> None:
        every = trainer.log_every_n_steps
        speed = self.tokens_per_second()
        if speed and every and self._step % every == 0:
            for logger in trainer.loggers:
                logger.log_metrics({"train/tokens_per_second": speed}, step=self._step - 1)


class ProgressBar(RichProgressBar):
    """Lightning's bar with the step, tokens a second and the time left; plain lines without a terminal.

    The values are read from the device twice a second, not at every step (Lightning's own bar waits for the
    device whenever a batch ends). A plain line, in a CI log or a pipe, reads
    `step 120/300  train/loss 5.31  4,810 tokens/s  remaining 0:45`.

    Args:
        refresh_rate: how often a second the bar is drawn; 0: neither bar nor lines.
        leave: keep the bar of every epoch.
        line_every_seconds: between two plain lines.
    """

    def __init__(
        self,
        refresh_rate: Annotated[int, "x >= 0"] = 4,
        leave: bool = False,
        line_every_seconds: Annotated[float, "x > 0"] = 10.0,
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self.line_every_seconds = line_every_seconds
        self._plain = False
        self._line_at = -math.inf
        self._read_at = -math.inf
        self._values: dict[str, Any] = {}
        self._total_steps = math.inf
        self._first_step = 0
        self._started_at = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        console = rich.get_console()
        if self.is_enabled and not (console.is_terminal or console.is_jupyter):
            self._plain = True
            self.disable()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._total_steps = trainer.estimated_stepping_batches
        self._first_step = trainer.global_step
        self._started_at = self._line_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._plain and time.monotonic() - self._line_at >= self.line_every_seconds:
            self._print_line(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._plain:
            self._print_line(trainer, pl_module)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar; read anew twice a second."""
        now = time.monotonic()
        if now - self._read_at >= 0.5:
            self._read_at = now
            metrics = super().get_metrics(trainer, pl_module)
            metrics.pop("v_num", None)
            self._values = {"step": self._steps(trainer), **metrics, **self._speed(trainer)}
        return self._values

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}"  # Lightning's own appends "/-2" where no number of epochs is set

    def _print_line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._line_at = time.monotonic()
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if "train/loss" not in metrics and "train/loss" in trainer.callback_metrics:
            metrics = {"train/loss": trainer.callback_metrics["train/loss"].item(), **metrics}
        parts = [f"step {self._steps(trainer)}", *(f"{name} {value:.4g}" for name, value in metrics.items())]
        speed = self._speed(trainer)
        if "tokens/s" in speed:
            parts.append(f"{speed['tokens/s']} tokens/s")
        if "left" in speed:
            parts.append(f"remaining {speed['left']}")
        log.info("  ".join(parts))

    def _steps(self, trainer: pl.Trainer) -> str:
        total = "" if math.isinf(self._total_steps) else f"/{self._total_steps}"
        return f"{trainer.global_step}{total}"

    def _speed(self, trainer: pl.Trainer) -> dict[str, str]:
        values = {}
        speeds = [
            callback.tokens_per_second() for callback in trainer.callbacks if isinstance(callback, RunMetrics)
        ]
        if speeds and speeds[0]:
            values["tokens/s"] = f"{speeds[0]:,.0f}"
        limits = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
        done = trainer.global_step - self._first_step
        if done:
            step_seconds = (time.monotonic() - self._started_at) / done
            limits.append((self._total_steps - trainer.global_step) * step_seconds)
        left = min((limit for limit in limits if limit is not None), default=math.inf)
        if math.isfinite(left):
            values["left"] = _clock_time(left)
        return values


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _stop_as_by_sigterm(trainer: pl.Trainer) -> None:
    """Lightning then ends the training behind this batch."""
    trainer._signal_connector.received_sigterm = True


def _nothing() -> None:
    """In the place of a method."""


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates before the next training batch, asked in on_train_batch_end."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def _align_logged_steps(trainer: pl.Trainer) -> None:
    """Make the step that loggers see the number of optimiser steps.

    After a resume Lightning's counter is one too low where the checkpoint was written at the end of a
    validation that does not come at regular steps (the one that follows `should_stop`), and one too high
    where it was written at the end of training, after a regular one.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def _continue_loggers(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.resume_at(trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            # What SummaryWriter(purge_step=) writes; the writer exists before the step is known.
            start = Event(step=trainer.global_step, session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(start, step=trainer.global_step)


def _training_clock(trainer: pl.Trainer) -> float:
    """Seconds of a clock that stands still while a checkpoint is written."""
    return time.perf_counter() - getattr(trainer.strategy.checkpoint_io, "seconds", 0.0)


def _rows_and_tokens(batch: Any) -> tuple[int, int]:
    if hasattr(batch, "num_rows"):
        return batch.num_rows, getattr(batch, "num_tokens", 0)
    if isinstance(batch, (tuple, list)) and batch:
        return len(batch[0]), 0
    return (len(batch), 0) if isinstance(batch, torch.Tensor) else (0, 0)


def _peak_flops(trainer: pl.Trainer) -> float | None:
    """Dense bf16 peak of all devices together in FLOP/s; None where it is not known, as on a CPU."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    if "h200" in torch.cuda.get_device_name(device).lower():
        # Lightning's table has the figure with sparsity, and under a name that the driver does not use.
        peak = 989.4e12
    else:
        peak = get_available_flops(device, torch.bfloat16)
    return peak and peak * trainer.world_size


def _clock_time(seconds: float) -> str:
    hours, rest = divmod(max(0, round(seconds)), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
