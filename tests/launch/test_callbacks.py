"""last.ckpt, counters and progress; a resumed run leaves what an uninterrupted one leaves."""

import io
import logging
import types

import pytest
import pytorch_lightning as pl
import rich
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from launch import callbacks
from launch.callbacks import LastCheckpoint, ProgressBar, RunMetrics
from launch.checkpoint_io import AtomicCheckpointIO
from launch.csv_logger import CSVLogger, read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]

STEPS = 9
ROWS = 4


class Batch:
    """As much of a TokenBatch as the callbacks look at."""

    num_rows, num_tokens = ROWS, 10 * ROWS

    def __init__(self, seed):
        self.x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(seed))

    def to(self, device):
        return self


class Loader:
    """A few batches an epoch, other ones in every epoch, resumable."""

    def __init__(self, batches):
        self.batches, self.done, self.epoch = batches, 0, 0

    def __len__(self):
        return self.batches

    def __iter__(self):
        if self.done == self.batches:
            self.done, self.epoch = 0, self.epoch + 1
        while self.done < self.batches:
            self.done += 1
            yield Batch(1000 * self.epoch + self.done)

    def state_dict(self):
        return {"done": self.done, "epoch": self.epoch}

    def load_state_dict(self, state):
        self.done, self.epoch = state["done"], state["epoch"]


class Validation:
    def __len__(self):
        return 2

    def __iter__(self):
        return iter([Batch(-1), Batch(-2)])


class Killed(Exception):
    pass


class Linear(pl.LightningModule):
    """Fits the sum of three numbers; `at_batch(number of this process's batch, trainer)` may interrupt it."""

    def __init__(self, at_batch=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.at_batch = at_batch
        self.losses = []

    def loss(self, batch):
        return (self.layer(batch.x) - batch.x.sum(1, keepdim=True)).square().mean()

    def training_step(self, batch, batch_idx):
        if self.at_batch is not None:
            self.at_batch(len(self.losses) + 1, self.trainer)
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("train/loss", loss, prog_bar=True, batch_size=ROWS)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch), batch_size=ROWS)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch), batch_size=ROWS)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def run(
    directory, at_batch=None, epoch=6, accumulate=1, validate_every=2, checkpoint_every=2, max_steps=STEPS,
    loggers=None, extra=(), test=True, resume=False, io=None,
):  # fmt: skip
    """Fit (and test) in `directory`, continuing its last.ckpt where `resume`; returns (trainer, module)."""
    module = Linear(at_batch)
    last = directory / "checkpoints" / "last.ckpt"
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=max_steps, max_epochs=-1, accumulate_grad_batches=accumulate,
        check_val_every_n_epoch=None, val_check_interval=validate_every * accumulate, num_sanity_val_steps=0,
        log_every_n_steps=1, use_distributed_sampler=False, enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in extra),
        logger=[CSVLogger(str(directory / "metrics.csv"))] if loggers is None else loggers,
        plugins=[io or AtomicCheckpointIO()],
        callbacks=[
            RunMetrics(),
            ModelCheckpoint(last.parent, "best", monitor="val/loss", enable_version_counter=False),
            LastCheckpoint(str(last), checkpoint_every),
            *extra,
        ],
    )  # fmt: skip
    resumed = str(last) if resume and last.exists() else None
    trainer.fit(module, Loader(epoch), Validation(), ckpt_path=resumed, weights_only=True)
    if test:
        trainer.test(module, Validation(), verbose=False)
    return trainer, module


def metrics(directory):
    """Rows of metrics.csv without the timing column."""
    rows = read_metrics(directory / "metrics.csv")
    return [{name: row[name] for name in row if name != "train/tokens_per_second"} for row in rows]


def kill(at):
    def interrupt(number, trainer):
        if number == at:
            raise Killed

    return interrupt


def saved(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)


# Epochs of different lengths, with and without accumulation; validations that come before, with and after
# checkpoints.
PLANS = {
    "plain": {"epoch": 6, "validate_every": 2, "checkpoint_every": 2},
    "validation apart": {"epoch": 5, "validate_every": 3, "checkpoint_every": 2},
    "accumulation": {"epoch": 6, "accumulate": 2, "validate_every": 2, "checkpoint_every": 2},
    "short last step": {"epoch": 5, "accumulate": 2, "validate_every": 1, "checkpoint_every": 1},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, plan):
    whole, module = run(tmp_path / "whole", **plan, extra=[LearningRateMonitor("step")])
    batches = len(module.losses)
    for at in (2, batches // 2, batches // 2 + 1, batches):
        directory = tmp_path / f"killed at {at}"
        with pytest.raises(Killed):
            run(directory, kill(at), **plan, extra=[LearningRateMonitor("step")])
        trainer, resumed = run(directory, resume=True, **plan, extra=[LearningRateMonitor("step")])
        assert resumed.losses == module.losses[batches - len(resumed.losses) :]
        assert metrics(directory) == metrics(tmp_path / "whole")
        assert trainer.checkpoint_callback.best_model_score == whole.checkpoint_callback.best_model_score
        for name, weight in module.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], weight)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_stopped_at_a_step_and_continued_equals_uninterrupted(tmp_path, plan):
    _, module = run(tmp_path / "whole", **plan)
    for steps in (1, 4, 5):
        directory = tmp_path / f"stopped at {steps}"
        run(directory, max_steps=steps, test=False, **plan)
        assert saved(directory)["global_step"] == steps
        _, resumed = run(directory, resume=True, **plan)
        assert resumed.losses == module.losses[len(module.losses) - len(resumed.losses) :]
        assert metrics(directory) == metrics(tmp_path / "whole")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sigterm_writes_the_step_it_came_in(tmp_path, accumulate):
    plan = {"epoch": 6, "accumulate": accumulate, "validate_every": 4, "checkpoint_every": 100}
    _, module = run(tmp_path / "whole", **plan)

    def sigterm(number, trainer):
        if number == 3 * accumulate - 1:
            trainer._signal_connector.received_sigterm = True

    directory = tmp_path / "stopped"
    with pytest.raises(SystemExit):
        run(directory, sigterm, **plan)
    last = directory / "checkpoints" / "last.ckpt"
    assert not last.exists() if accumulate == 2 else saved(directory)["global_step"] == 2  # 2: half of a step
    _, resumed = run(directory, resume=True, **plan)
    assert resumed.losses == module.losses[len(module.losses) - len(resumed.losses) :]
    assert metrics(directory) == metrics(tmp_path / "whole")


def test_should_stop_writes_the_step_it_came_in(tmp_path):
    plan = {"epoch": 6, "validate_every": 100, "checkpoint_every": 100}
    _, module = run(tmp_path / "whole", **plan)

    def stop(number, trainer):
        trainer.should_stop = number == 4

    run(tmp_path / "stopped", stop, test=False, **plan)
    assert saved(tmp_path / "stopped")["global_step"] == 4
    _, resumed = run(tmp_path / "stopped", resume=True, **plan)
    assert resumed.losses == module.losses[4:]
    whole, continued = metrics(tmp_path / "whole"), metrics(tmp_path / "stopped")
    assert "val/loss" in continued[3] and continued[3].pop("val/loss")  # the stop brought a validation
    assert continued == whole


def test_last_checkpoint_knows_the_validation_of_its_step(tmp_path):
    early = EarlyStopping("val/loss", patience=100)
    trainer, _ = run(tmp_path, max_steps=4, extra=[early])
    states = saved(tmp_path)["callbacks"]
    best = next(state for name, state in states.items() if name.startswith("ModelCheckpoint"))
    assert best["best_model_score"] == trainer.checkpoint_callback.best_model_score
    stopping = next(state for name, state in states.items() if name.startswith("EarlyStopping"))
    assert stopping["best_score"] == early.best_score


def test_a_worse_score_after_the_resume_keeps_best(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill(4))
    best = (tmp_path / "checkpoints" / "best.ckpt").read_bytes()
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    for name in checkpoint["state_dict"]:
        checkpoint["state_dict"][name] += 100.0
    torch.save(checkpoint, last)
    trainer, _ = run(tmp_path, resume=True, max_steps=6)
    assert trainer.callback_metrics["test/loss"] > 1000
    assert (tmp_path / "checkpoints" / "best.ckpt").read_bytes() == best


class Counting(AtomicCheckpointIO):
    def __init__(self):
        super().__init__()
        self.written = []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if str(path).endswith("last.ckpt"):
            self.written.append(checkpoint["global_step"])
        super().save_checkpoint(checkpoint, path, storage_options)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_written_every_n_steps_and_at_the_end_once_each(tmp_path, accumulate):
    io = Counting()
    run(tmp_path, io=io, checkpoint_every=4, accumulate=accumulate, max_steps=10)
    assert io.written == [4, 8, 10]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_written_after_minutes_without_a_write(tmp_path, monkeypatch):
    minutes = iter(range(0, 10_000, 4))
    clock = types.SimpleNamespace(monotonic=lambda: 60.0 * next(minutes), perf_counter=lambda: 0.0)
    io = Counting()
    callback = LastCheckpoint(str(tmp_path / "last.ckpt"), every_n_steps=0, every_minutes=10)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=7, logger=False, plugins=[io], callbacks=[callback], limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    monkeypatch.setattr(callbacks, "time", clock)
    trainer.fit(Linear(), Loader(20))
    assert io.written == [
        3,
        6,
        7,
    ]  # every look at the clock finds it four minutes on, a write looks once more


@pytest.mark.parametrize("options", [{"every_n_steps": -1}, {"every_n_steps": 1, "every_minutes": 0.0}])
def test_useless_intervals(options):
    with pytest.raises(ValueError, match="^every_"):
        LastCheckpoint("last.ckpt", **options)


def test_counts_over_the_whole_life_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "WARMUP_BATCHES", 1)
    monkeypatch.setattr(callbacks, "ENOUGH_BATCHES", 4)
    with pytest.raises(Killed):
        run(tmp_path, kill(6), checkpoint_every=4, validate_every=3)
    before = saved(tmp_path)["callbacks"]["RunMetrics"]
    assert before["warmup"]["batches"] == 1 and before["measured"]["batches"] == 3
    trainer, _ = run(tmp_path, resume=True, validate_every=3)
    counted = trainer.callbacks[0]
    state = counted.state_dict()
    assert (state["warmup"]["batches"], state["measured"]["batches"]) == (2, 7)
    assert (state["measured"]["rows"], state["measured"]["tokens"]) == (7 * ROWS, 70 * ROWS)
    assert counted.earlier_wall_seconds == before["wall_seconds"] < state["wall_seconds"]
    throughput = counted.throughput()
    assert throughput["tokens_per_second"] == pytest.approx(70 * ROWS / state["measured"]["seconds"])
    assert throughput["examples_per_second"] == pytest.approx(7 * ROWS / state["measured"]["seconds"])
    assert throughput["mfu"] is None


def test_a_test_of_the_best_checkpoint_leaves_the_counts(tmp_path):
    trainer, module = run(tmp_path)
    state = trainer.callbacks[0].state_dict()
    trainer.test(module, Validation(), ckpt_path=str(tmp_path / "checkpoints" / "best.ckpt"), verbose=False)
    after = trainer.callbacks[0].state_dict()
    assert (after["warmup"], after["measured"]) == (state["warmup"], state["measured"])
    assert trainer.callbacks[0].earlier_wall_seconds == 0
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.csv") if "test/loss" in row]
    assert steps == [STEPS]


def test_few_batches_are_counted_with_the_warm_up():
    counted = RunMetrics()
    assert counted.throughput() == {"tokens_per_second": None, "examples_per_second": None, "mfu": None}
    empty = {"batches": 0, "rows": 0, "tokens": 0, "seconds": 0.0}
    state = {
        "warmup": {"batches": 2, "rows": 6, "tokens": 0, "seconds": 3.0},
        "measured": empty,
        "wall_seconds": 9.0,
    }
    trainer = types.SimpleNamespace(state=types.SimpleNamespace(fn="fit"))
    counted.on_load_checkpoint(trainer, None, {"callbacks": {"RunMetrics": state}})
    assert counted.throughput() == {"tokens_per_second": None, "examples_per_second": 2.0, "mfu": None}


def test_seconds_leave_out_validation_and_checkpoints(tmp_path, monkeypatch):
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: 0.0, perf_counter=lambda: now[0])
    monkeypatch.setattr(callbacks, "time", clock)

    class Slow(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            super().save_checkpoint(checkpoint, path, storage_options)
            now[0] += 1000
            self.seconds = 1000 * round(self.seconds / 1000 + 1)

    def train(number, trainer):
        now[0] += 2

    class Validate(pl.Callback):
        def on_validation_batch_start(self, *_, **__):
            now[0] += 50

    trainer, _ = run(tmp_path, train, io=Slow(), extra=[Validate()], max_steps=8)
    state = trainer.callbacks[0].state_dict()
    assert state["warmup"]["seconds"] + state["measured"]["seconds"] == 16
    speeds = [row.get("train/tokens_per_second") for row in read_metrics(tmp_path / "metrics.csv")]
    assert speeds == [10 * ROWS / 2] * 8 + [None]  # the last row is the test's


@pytest.mark.parametrize(
    ("batch", "counts"),
    [
        (Batch(0), (ROWS, 10 * ROWS)),
        ((torch.zeros(5, 2), torch.zeros(5)), (5, 0)),
        (torch.zeros(3, 2), (3, 0)),
        ({"x": 1}, (0, 0)),
    ],
)
def test_rows_and_tokens(batch, counts):
    assert callbacks._rows_and_tokens(batch) == counts


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H200", 989.4e12), ("NVIDIA A100-SXM4-40GB", 312e12)],
)
def test_dense_peak_of_all_gpus(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    strategy = types.SimpleNamespace(root_device=torch.device("cuda", 0))
    assert callbacks._peak_flops(types.SimpleNamespace(strategy=strategy, world_size=2)) == 2 * peak


def test_tensorboard_is_continued(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def loggers():
        return [TensorBoardLogger(tmp_path, name="", version="tensorboard", default_hp_metric=False)]

    with pytest.raises(Killed):
        run(tmp_path, kill(8), checkpoint_every=4, loggers=loggers())
    _, resumed = run(tmp_path, resume=True, loggers=loggers())
    assert len(resumed.losses) == STEPS - 4
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(STEPS))
    assert [event.step for event in events.Scalars("val/loss")] == [1, 3, 5, 7]


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(rich, "_console", rich.console.Console(file=io.StringIO(), force_terminal=False))


def test_plain_lines_where_there_is_no_terminal(tmp_path, no_terminal, caplog):
    caplog.set_level(logging.INFO, logger="launch.callbacks")
    run(tmp_path, extra=[ProgressBar(line_every_seconds=1e-9)])
    lines = [record.getMessage() for record in caplog.records if record.name == "launch.callbacks"]
    assert lines[3].startswith("step 4/9  train/loss ") and "tokens/s  remaining 0:0" in lines[3]
    assert len(lines) == STEPS + 1
    caplog.clear()
    run(tmp_path / "quiet", extra=[ProgressBar(refresh_rate=0)])
    assert not [record for record in caplog.records if record.name == "launch.callbacks"]


def test_the_bar_shows_step_and_speed(tmp_path, monkeypatch, caplog):
    screen = io.StringIO()
    monkeypatch.setattr(rich, "_console", rich.console.Console(file=screen, force_terminal=True, width=160))
    monkeypatch.setattr(callbacks.rich, "reconfigure", lambda: None, raising=False)
    bar = ProgressBar()
    trainer, module = run(tmp_path, extra=[bar])
    monkeypatch.setattr(bar, "_read_at", -float("inf"))
    values = bar.get_metrics(trainer, module)
    assert values["step"] == "9/9" and "tokens/s" in values and "left" in values and "v_num" not in values
    assert not [record for record in caplog.records if record.name == "launch.callbacks"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (45.4, "0:45"), (125, "2:05"), (3725, "1:02:05"), (-3, "0:00")]
)
def test_clock_time(seconds, text):
    assert callbacks._clock_time(seconds) == text
