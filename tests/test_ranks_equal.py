"""One rank equals two, however a step is cut: losses, gradients, weights, and the rows that an evaluation sees.

The ranks are processes that meet as torchrun's do; they run this file.
"""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics.utilities.prints

from datamodules.corpus import Row
from datamodules.text import TextDataModule
from launch.csv_logger import CSVLogger, read_metrics
from lightning_modules.wobert import WoBERT

REPOSITORY = Path(__file__).resolve().parents[1]
# Lightning takes it out of the environment at the end of the first training.
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
STEPS, VALIDATE_EVERY = 20, 10
ROWS = {"train": 203, "val": 37, "test": 7}
# So few targets that a share of a step may have none; at so small a budget a step is cut into four shares.
MASK_RATE, FEW_TOKENS = 0.03, 90
SCORES = ("loss", "masked_accuracy", "bits_per_char")
LEVEL = 2.4  # of flooding: some steps of this training are above it, some below


class Memory(TextDataModule):
    """Random texts of very different lengths."""

    def __init__(self, cache_dir, rows=ROWS, **options):
        tokenizer = {"_target_": "datamodules.tokenizers.char.CharTokenizer", "min_count": 1}
        options = {"max_length": 24, "tokens_per_batch": 240, **options}
        super().__init__(tokenizer, cache_dir=str(cache_dir), seed=1, **options)
        self.rows = rows

    def read(self, split):
        random = np.random.Generator(np.random.PCG64([len(split), 0]))
        for _ in range(self.rows[split]):
            length = min(random.geometric(0.1), 30)
            yield Row("".join(chr(0x4E00 + int(i)) for i in random.geometric(0.3, size=length)))

    def fingerprint(self, split):
        return f"{split} {self.rows[split]}"

    def describe(self):
        return {"source": "memory"}


class Spied(WoBERT):
    """Keeps the ids of the rows that it evaluates."""

    def __init__(self, **options):
        super().__init__(
            backbone={
                "_target_": "lightning_modules.networks.text_encoder.TextEncoder",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "hidden_dropout": 0.0,
            },
            optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-2},
            seed=1,
            **options,
        )
        self.rows = []

    def evaluate(self, batch):
        self.rows += batch.row_ids.tolist()
        super().evaluate(batch)


class Unweighted(Spied):
    """What plain DDP computes: the mean of the shares' means."""

    def training_step(self, batch, batch_idx):
        batch.loss_weight = 1.0
        return super().training_step(batch, batch_idx)


class Watch(pl.Callback):
    """Keeps the gradient of every step, after the ranks' mean and before clipping, and the targets of every batch."""

    def __init__(self):
        self.gradients, self.targets = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.targets.append(batch.num_targets)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]))


class Collectives(pl.Callback):
    """Counts what two whole steps exchange, by the name of the operation."""

    FIRST, LAST = 4, 5

    def __init__(self):
        self.counts = {}
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.FIRST:
            self._profile.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.LAST:
            self._profile.stop()
            events = self._profile.key_averages()
            self.counts = {event.key: event.count for event in events if event.key.startswith("gloo:")}


def trainer_of(data: Memory, **options) -> pl.Trainer:
    accumulate = data.accumulate_grad_batches(WORLD_SIZE)
    return pl.Trainer(
        accelerator="cpu",
        devices=WORLD_SIZE,
        strategy="ddp" if WORLD_SIZE > 1 else "auto",
        accumulate_grad_batches=accumulate,
        val_check_interval=VALIDATE_EVERY * accumulate,
        **{
            "max_steps": STEPS,
            "max_epochs": -1,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 1.0,
            "logger": False,
            "use_distributed_sampler": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )


def training(folder: Path, name: str, cls=Spied, steps=STEPS, regularizer=None, **options) -> dict:
    """20 steps in float64, so that what is not rounding shows."""
    torch.manual_seed(0)
    data, watch = Memory(folder / "cache", **options), Watch()
    path = folder / f"{name}-of-{WORLD_SIZE}.csv"
    trainer = trainer_of(
        data,
        precision="64-true",
        max_steps=steps,
        callbacks=[watch],
        logger=CSVLogger(str(path)),
        log_every_n_steps=1,
    )
    model = cls(mask_rate=MASK_RATE, regularizer=regularizer)
    trainer.fit(model, data)
    return {
        "gradients": torch.stack(watch.gradients),
        "targets": watch.targets,
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        "metrics": read_metrics(path) if trainer.is_global_zero else [],
        "summary": {key: float(value) for key, value in trainer.callback_metrics.items()},
    }


def evaluation(folder: Path, name: str, rows=ROWS, **options) -> dict:
    """The scores and rows of both splits, in float32, and what was warned of."""
    torch.manual_seed(0)
    # As on the first rank of every machine: torchmetrics warns there.
    torchmetrics.utilities.prints.rank_zero_only.rank = 0
    data, result = Memory(folder / "cache", rows, max_tokens_per_device=FEW_TOKENS), {}
    model = Spied(mask_rate=0.3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for stage, split in (("validate", "val"), ("test", "test")):
            trainer, model.rows = trainer_of(data, **options), []
            scores = getattr(trainer, stage)(model, data, verbose=False)
            result[split] = {"scores": scores[0] if scores else {}, "rows": model.rows}
    return result | {"warnings": [str(warning.message) for warning in told]}


def short(folder: Path, name: str, rows=ROWS) -> dict:
    """A training with three validations of two batches at most, and what two of its steps exchange."""
    data = Memory(folder / "cache", rows, max_tokens_per_device=FEW_TOKENS, tokens_per_batch=60)
    collectives, model = Collectives(), Spied()
    trainer = trainer_of(data, max_steps=6, limit_val_batches=2, callbacks=[collectives])
    trainer.val_check_interval = 2 * trainer.accumulate_grad_batches
    trainer.fit(model, data)
    return {"collectives": collectives.counts, "rows": model.rows}


def few(**rows) -> dict:
    return {**ROWS, **rows}


FLOODED = {
    "flooding": {"_target_": "lightning_modules.regularizers.flooding.Flooding", "b": LEVEL},
    "weissi": {"_target_": "lightning_modules.regularizers.weissi.WEISSI", "lambda1": 0.01},
}

# name -> function and options
RUNS = {
    "whole": (training, {}),
    "micro-batches": (training, {"max_tokens_per_device": FEW_TOKENS}),
    "unweighted": (training, {"cls": Unweighted, "steps": 3}),
    "regularized": (training, {"regularizer": FLOODED}),
    "regularized micro-batches": (training, {"regularizer": FLOODED, "max_tokens_per_device": FEW_TOKENS}),
    "evaluation": (evaluation, {}),
    "one-row": (evaluation, {"rows": few(val=1, test=3)}),
    "short": (short, {}),
    "short, one row": (short, {"rows": few(val=1)}),
}
ON_FOUR = {"three-rows": (evaluation, {"rows": few(val=3, test=0)}), "whole": (training, {"steps": 3})}


def run_all(folder: Path, runs: dict) -> dict:
    return {name: function(folder, name, **options) for name, (function, options) in runs.items()}


def on_ranks(folder: Path, world_size: int) -> list[dict]:
    """What each of `world_size` processes returns of its runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, folder],
            cwd=REPOSITORY,
            # A seed that another test has left there: Lightning sets it anew on several ranks, not on one.
            env={name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
            | {"PYTHONPATH": str(REPOSITORY), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {name: str(value) for name, value in shared.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        told = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, told, strict=True):
        assert process.returncode == 0, text
    return [
        torch.load(folder / f"{rank}-of-{world_size}.pt", weights_only=True) for rank in range(world_size)
    ]


def main(folder: Path) -> None:
    results = run_all(folder, ON_FOUR if WORLD_SIZE == 4 else RUNS)
    torch.save(results, folder / f"{os.environ['RANK']}-of-{WORLD_SIZE}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder) -> dict:
    # A process of its own as well: nothing that other tests have left behind is in it.
    return on_ranks(folder, 1)[0]


@pytest.fixture(scope="module")
def two(folder) -> list[dict]:
    return on_ranks(folder, 2)


def differences(run: dict, other: dict) -> torch.Tensor:
    """[steps], the greatest difference of a step's gradients as a share of the greatest gradient."""
    difference = (run["gradients"] - other["gradients"]).abs().amax(1)
    return difference / other["gradients"].abs().amax(1)


def curve(run: dict, name: str) -> list[float]:
    return [row[name] for row in run["metrics"] if name in row]


@pytest.mark.parametrize("cut", ["1 rank, 4 micro-batches", "2 ranks", "2 ranks, 2 micro-batches"])
def test_a_step_is_the_same_however_it_is_cut(cut, one, two):
    whole = one["whole"]
    ranks = two if cut.startswith("2 ranks") else [one]
    runs = [rank["micro-batches" if "micro-batches" in cut else "whole"] for rank in ranks]
    assert len(whole["gradients"]) == STEPS
    # The loss is computed in float32, everything else here in float64.
    for run in runs:
        assert differences(run, whole).max() < 2e-6
        torch.testing.assert_close(run["weights"], whole["weights"], rtol=0, atol=1e-6)
    assert len(curve(runs[0], "train/loss")) == STEPS
    for name in ("train/loss", *(f"val/{score}" for score in SCORES)):
        np.testing.assert_allclose(curve(runs[0], name), curve(whole, name), rtol=1e-6, err_msg=name)
    for run in runs:
        assert run["summary"] == runs[0]["summary"]


@pytest.mark.parametrize("cut", ["1 rank, 4 micro-batches", "2 ranks", "2 ranks, 2 micro-batches"])
def test_regularisers_act_on_the_whole_step(cut, one, two):
    """Flooding turns the gradient where the loss of the step is below the level, whatever a share of it has."""
    whole = one["regularized"]
    ranks = two if cut.startswith("2 ranks") else [one]
    runs = [rank["regularized micro-batches" if "micro-batches" in cut else "regularized"] for rank in ranks]
    below = np.array(curve(whole, "train/loss")) < LEVEL
    assert 3 < below.sum() < STEPS - 3
    for run in runs:
        torch.testing.assert_close(run["weights"], whole["weights"], rtol=0, atol=1e-6)
    for name in ("train/loss", "train/objective"):
        np.testing.assert_allclose(curve(runs[0], name), curve(whole, name), rtol=1e-6, err_msg=name)


def test_a_share_of_a_step_may_have_no_target(two):
    targets = [target for rank in two for target in rank["micro-batches"]["targets"]]
    assert len(targets) == 4 * STEPS and targets.count(0) > 0


def test_the_mean_over_ranks_alone_would_be_another_loss(one, two):
    """What this file would not see is no proof: without `loss_weight` the ranks' mean is not the step's."""
    runs = two[0]["unweighted"], one["unweighted"]
    assert differences(*runs).min() > 0.01
    losses, truth = (np.array(curve(run, "train/loss")) for run in runs)
    assert (abs(losses - truth) / truth).max() > 0.005


@pytest.mark.parametrize("run", ["evaluation", "one-row"])
def test_an_evaluation_sees_every_row_once(run, one, two):
    rows = RUNS[run][1].get("rows", ROWS)
    for split in ("val", "test"):
        seen = [row for rank in two for row in rank[run][split]["rows"]]
        assert sorted(seen) == list(range(rows[split])) == sorted(one[run][split]["rows"])
        scores = one[run][split]["scores"]
        assert {f"{split}/{name}" for name in SCORES} <= scores.keys()
        for rank in two:
            assert rank[run][split]["scores"] == pytest.approx(scores, rel=1e-6)


def test_a_rank_without_rows_is_no_reason_to_warn(two):
    assert two[1]["one-row"]["val"]["rows"] == []
    told = {line for rank in two for run in ("evaluation", "one-row") for line in rank[run]["warnings"]}
    assert not [line for line in told if "metric" in line or "sync_dist" in line or "zero" in line]


def test_validations_of_a_training_may_be_limited_or_leave_a_rank_without_rows(two):
    first, second = (rank["short"]["rows"] for rank in two)
    assert first and second and not set(first) & set(second)
    assert [rank["short, one row"]["rows"] for rank in two] == [[0, 0, 0], []]


def test_ranks_exchange_the_gradients_of_a_step_and_nothing_else(two):
    for rank in two:
        assert rank["short"]["collectives"] == {
            "gloo:all_reduce": 2,  # the gradients of two steps
            "gloo:broadcast": 1,  # Lightning's word on SIGTERM, between the two
        }


@pytest.mark.slow
def test_four_ranks(folder, one):
    """Also with three rows to validate on, and none to test."""
    ranks = on_ranks(folder, 4)
    assert [len(rank["three-rows"]["val"]["rows"]) for rank in ranks] == [1, 1, 1, 0]
    assert sorted(row for rank in ranks for row in rank["three-rows"]["val"]["rows"]) == [0, 1, 2]
    assert ranks[3]["three-rows"]["val"]["scores"] == ranks[0]["three-rows"]["val"]["scores"]
    whole = {"gradients": one["whole"]["gradients"][:3]}
    assert all(differences(rank["whole"], whole).max() < 2e-6 for rank in ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
