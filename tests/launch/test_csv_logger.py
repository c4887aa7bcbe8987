"""metrics.csv: merged rows, a header that grows, a file that is continued and repaired."""

import math
import os

import pytest
import torch

from launch.csv_logger import CSVLogger, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


def test_one_row_a_step(path):
    logger = CSVLogger(str(path))
    logger.log_metrics({"lr-AdamW": 0.5}, 0)
    logger.log_metrics({"train/loss": torch.tensor(2.5), "epoch": 0}, 0)
    logger.log_metrics({"train/loss": 2.25, "epoch": 0}, 1)
    logger.log_metrics({"val/loss": 3.0, "epoch": 0}, 1)
    assert path.read_text() == ("step,epoch,lr-AdamW,train/loss,val/loss\n0,0,0.5,2.5,\n1,0,,2.25,3.0\n")
    assert read_metrics(path) == [
        {"step": 0, "epoch": 0, "lr-AdamW": 0.5, "train/loss": 2.5},
        {"step": 1, "epoch": 0, "train/loss": 2.25, "val/loss": 3.0},
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.csv"]


def test_a_row_is_on_disk_at_once_and_numbers_survive(path):
    logger = CSVLogger(str(path))
    for step, value in enumerate([0.1 + 0.2, 1e-30, math.inf]):
        logger.log_metrics({"x": value}, step)
        assert read_metrics(path)[-1] == {"step": step, "x": value}
    logger.log_metrics({"x": math.nan}, 3)
    assert math.isnan(read_metrics(path)[-1]["x"])


def test_a_shorter_value_leaves_nothing_of_the_longer_one(path):
    logger = CSVLogger(str(path))
    logger.log_metrics({"x": 0.123456789}, 0)
    logger.log_metrics({"x": 1.0}, 0)
    assert path.read_text() == "step,epoch,x\n0,,1.0\n"


def test_names_with_commas_quotes_and_chinese(path):
    name = 'val/f1,"体育"'
    CSVLogger(str(path)).log_metrics({name: 1.0}, 0)
    CSVLogger(str(path)).log_metrics({name: 2.0}, 1)
    assert [row[name] for row in read_metrics(path)] == [1.0, 2.0]


def test_another_process_continues_the_file(path):
    CSVLogger(str(path)).log_metrics({"a": 1.0}, 0)
    CSVLogger(str(path)).log_metrics({"b": 2.0}, 1)
    CSVLogger(str(path)).log_metrics({"a": 3.0}, 1)
    assert read_metrics(path) == [{"step": 0, "a": 1.0}, {"step": 1, "b": 2.0, "a": 3.0}]


def test_resume_at_drops_the_steps_to_come(path):
    logger = CSVLogger(str(path))
    for step in range(6):
        logger.log_metrics({"a": float(step)}, step)
    resumed = CSVLogger(str(path))
    resumed.resume_at(4)  # four steps were made: those of the rows 0 to 3
    resumed.log_metrics({"a": 40.0}, 4)
    assert [(row["step"], row["a"]) for row in read_metrics(path)] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]
    resumed.resume_at(0)
    assert read_metrics(path) == []
    resumed.log_metrics({"b": 1.0}, 0)
    assert path.read_text() == "step,epoch,b\n0,,1.0\n"


def test_resume_at_without_a_file(path):
    logger = CSVLogger(str(path))
    logger.resume_at(0)
    logger.log_metrics({"a": 1.0}, 0)
    assert read_metrics(path) == [{"step": 0, "a": 1.0}]


@pytest.mark.parametrize("torn", ["1,,2", "1", "1,,体".encode()[:-1]])
def test_a_torn_last_line_is_repaired(path, torn):
    CSVLogger(str(path)).log_metrics({"a": 1.0}, 0)
    with open(path, "ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    assert read_metrics(path) == [{"step": 0, "a": 1.0}]
    CSVLogger(str(path)).log_metrics({"a": 3.0}, 2)
    assert path.read_text() == "step,epoch,a\n0,,1.0\n2,,3.0\n"


def test_a_torn_header_is_repaired(path):
    path.parent.mkdir()
    path.write_text("step,ep")
    assert read_metrics(path) == []
    CSVLogger(str(path)).log_metrics({"a": 3.0}, 2)
    assert path.read_text() == "step,epoch,a\n2,,3.0\n"


def test_a_missing_file_has_no_rows(path):
    assert read_metrics(path) == []


def test_a_row_that_becomes_shorter_leaves_nothing_of_the_longer_one(tmp_path, monkeypatch):
    """Not for a moment: whoever reads meanwhile, or a kill between two calls, would find the rest as a row."""
    logger = CSVLogger(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"a": 0.123456789, "b": 583.50684516464}, 3)
    seen = []
    replace = os.replace

    def watched(*paths):
        seen.append(read_metrics(tmp_path / "metrics.csv"))
        replace(*paths)

    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(os, "truncate", None)
    logger.log_metrics({"a": 1.0, "b": 2.0}, 3)
    assert seen == [[{"step": 3, "a": 0.123456789, "b": 583.50684516464}]]
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": 3, "a": 1.0, "b": 2.0}]
    logger.log_metrics({"a": 5.0}, 4)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [3, 4]
