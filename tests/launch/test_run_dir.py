"""What a run leaves in its directory, which directory it refuses, which checkpoint it continues."""

import json
import logging
import math
import types
import warnings

import pytest
import torch

from launch.run_dir import Run, check_free, find_checkpoint, quieten

KEYS = [
    "stage", "model", "data", "source", "seed", "overrides", "metrics", "throughput", "world_size", "wall_seconds",
    "run_dir", "versions", "status", "error",
]  # fmt: skip


def new_run(directory, **options):
    return Run(
        directory, "seed: 1\n", **{"stage": "fit", "model": "wobert", "data": "clue", "seed": 1, **options}
    )


def summary(directory):
    return json.loads((directory / "summary.json").read_text(encoding="utf-8"))


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_finished_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "runs" / "a"
    with new_run(directory, source="sample") as run:
        assert summary(directory)["status"] == "running" and list(summary(directory)) == KEYS
        run.metrics |= {"val/loss": torch.tensor(2.5), "rows": 3, "worst": math.inf, "none": float("nan")}
        run.world_size = 2
    written = summary(directory)
    assert list(written) == KEYS
    assert written["metrics"] == {"val/loss": 2.5, "rows": 3, "worst": None, "none": None}
    assert written["throughput"] == {"tokens_per_second": None, "examples_per_second": None, "mfu": None}
    assert (written["status"], written["error"], written["world_size"]) == ("finished", None, 2)
    assert (written["stage"], written["model"], written["data"], written["source"]) == (
        "fit",
        "wobert",
        "clue",
        "sample",
    )
    assert written["run_dir"] == str(directory) and written["wall_seconds"] >= 0
    assert list(written["versions"]) == [
        "python",
        "kexue-lightning",
        "torch",
        "lightning",
        "transformers",
        "hydra",
    ]
    assert written["versions"]["torch"] == torch.__version__
    assert (directory / "config.yaml").read_text() == "seed: 1\n"
    assert sorted(path.name for path in directory.iterdir()) == ["config.yaml", "summary.json"]
    assert capsys.readouterr().out.splitlines()[-1] == "runs/a"


def test_data_facts_and_throughput(tmp_path):
    with new_run(tmp_path) as run:
        run.data_facts = {"notice": "合成"}
        run.run_metrics = types.SimpleNamespace(
            earlier_wall_seconds=1000.0,
            throughput=lambda: {"tokens_per_second": 5.0, "examples_per_second": 1.0, "mfu": None},
        )
    assert list(summary(tmp_path)) == [*KEYS, "data_facts"]
    assert summary(tmp_path)["throughput"]["tokens_per_second"] == 5.0
    assert summary(tmp_path)["wall_seconds"] >= 1000
    assert "合成" in (tmp_path / "summary.json").read_text(encoding="utf-8")


def test_a_failed_run(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError):
        with new_run(tmp_path):
            raise ZeroDivisionError("division by zero")
    assert summary(tmp_path)["status"] == "failed"
    assert summary(tmp_path)["error"] == "ZeroDivisionError: division by zero"
    assert capsys.readouterr().out == ""


class SIGTERMException(SystemExit):
    """Stands for Lightning's."""


def ctrl_c_as_lightning_passes_it_on():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (raising(KeyboardInterrupt()), "interrupted"),
        (ctrl_c_as_lightning_passes_it_on, "interrupted"),
        (raising(SIGTERMException()), "interrupted"),
        (raising(SystemExit(2)), "failed"),
    ],
)
def test_an_interrupted_run(tmp_path, capsys, monkeypatch, stop, status):
    with pytest.raises(BaseException):  # noqa: B017
        with new_run(tmp_path):
            stop()
    assert summary(tmp_path)["status"] == status
    assert (str(tmp_path) in capsys.readouterr().out) == (status == "interrupted")


def test_wall_seconds_are_added_up(tmp_path):
    with new_run(tmp_path):
        pass
    written = summary(tmp_path) | {"wall_seconds": 500.0, "status": "interrupted"}
    (tmp_path / "summary.json").write_text(json.dumps(written))
    with new_run(tmp_path, ckpt_path="last"):
        pass
    assert summary(tmp_path)["wall_seconds"] >= 500


def test_other_ranks_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with new_run(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_directory_that_holds_a_run_is_refused_unless_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "a"
    check_free(directory, None, "fit")
    with new_run(directory):
        pass
    before = (directory / "summary.json").read_bytes()
    with pytest.raises(ValueError, match=r"^hydra.run.dir=a: holds a finished run; choose another$"):
        check_free(directory, None, "fit")
    last = touch(directory / "checkpoints" / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"^hydra.run.dir=a: holds a finished run; continue it with ckpt_path=last"
    ):
        with new_run(directory):
            pass
    with pytest.raises(ValueError, match="choose another$"):
        check_free(directory, "a", "test")
    with pytest.raises(ValueError, match="continue it"):
        check_free(directory, str(tmp_path / "b"), "fit")
    assert (directory / "summary.json").read_bytes() == before
    for ckpt_path in ("last", "a", str(directory), str(last)):
        check_free(directory, ckpt_path, "fit")
    (directory / "summary.json").unlink()
    with pytest.raises(ValueError, match="holds the checkpoint of a run; continue it"):
        check_free(directory, None, "fit")


def test_a_failed_run_without_checkpoint_may_be_repeated(tmp_path):
    for _ in range(2):
        with pytest.raises(OSError):
            with new_run(tmp_path):
                raise OSError("x")


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_no_checkpoint_asked_for(tmp_path, stage):
    assert find_checkpoint(None, tmp_path, stage) is None


def test_last(tmp_path):
    assert find_checkpoint("last", tmp_path) is None
    with pytest.raises(ValueError, match=r"^ckpt_path=last: .*last.ckpt does not exist"):
        find_checkpoint("last", tmp_path, "predict")
    last = touch(tmp_path / "checkpoints" / "last.ckpt")
    assert find_checkpoint("last", tmp_path) == find_checkpoint("last", tmp_path, "test") == last


def test_a_run_directory(tmp_path):
    last = touch(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for stage in ("fit", "validate", "test", "predict"):
        assert find_checkpoint(str(tmp_path / "run"), tmp_path / "new", stage) == last
    best = touch(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert find_checkpoint(str(tmp_path / "run"), tmp_path / "new", "fit") == last
    assert find_checkpoint(str(tmp_path / "run"), tmp_path / "new", "predict") == best
    assert find_checkpoint(str(best), tmp_path / "new", "fit") == best


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^ckpt_path=nowhere: no such file or directory$"):
        find_checkpoint("nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no checkpoints/last.ckpt$"):
        find_checkpoint(str(tmp_path / "empty"), tmp_path)
    with pytest.raises(ValueError, match=r"holds no checkpoints/best.ckpt nor checkpoints/last.ckpt$"):
        find_checkpoint(str(tmp_path / "empty"), tmp_path, "test")
    touch(tmp_path / "export" / "config.json")
    with pytest.raises(ValueError, match=r"to start from its weights: model.init_from=.*export$"):
        find_checkpoint(str(tmp_path / "export"), tmp_path)


def test_known_noise_is_dropped_and_nothing_else(caplog):
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    filters = list(logger.filters)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            caplog.at_level(logging.INFO, logger=logger.name),
        ):
            warnings.simplefilter("always")
            quieten()
            warnings.warn(
                "The `srun` command is available on your system but is not used. HINT: ...", stacklevel=1
            )
            warnings.warn(
                "The 'val_dataloader' does not have many workers which may be a bottleneck. ...", stacklevel=1
            )
            warnings.warn("The dirpath has changed", stacklevel=1)
            logger.info("💡 Tip: For seamless cloud logging ...")
            logger.info("Restored all states")
    finally:
        logger.filters = filters
    assert [str(one.message) for one in caught] == ["The dirpath has changed"]
    assert [record.getMessage() for record in caplog.records if record.name == logger.name] == [
        "Restored all states"
    ]
