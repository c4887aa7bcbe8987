"""A run's curves are drawn."""

import pytest
from matplotlib.image import imread

from launch import plots
from launch.csv_logger import CSVLogger


def log_run(path, metrics):
    logger = CSVLogger(str(path / "metrics.csv"))
    for step in range(0, 30, 5):
        logger.log_metrics({name: 1.0 + step for name in metrics}, step)


def test_panels_for_the_metrics_that_exist(tmp_path, drawn):
    log_run(
        tmp_path,
        ["lr-AdamW", "train/loss", "val/loss", "val/masked_accuracy", "val/bits_per_char", "test/loss",
         "baseline/unigram_loss", "baseline/unigram_bits_per_char", "train/tokens_per_second"],
    )  # fmt: skip
    path = plots.plot_curves(tmp_path)
    assert path == tmp_path / "plots" / "curves.png" and imread(path).ndim == 3
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["loss", "learning rate", "masked accuracy", "bits per character"]
    labels = [axes.get_legend_handles_labels()[1] for axes in drawn[0].axes]
    assert labels[0] == ["training", "validation (26)", "unigram baseline (26)"]
    assert labels[2] == ["validation (26)"]
    steps = drawn[0].axes[0].lines[0].get_xdata()
    assert list(steps) == [1, 6, 11, 16, 21, 26]  # the row of step 0 is the first optimiser step


@pytest.mark.parametrize("metrics", [["train/loss"], ["val/macro_f1"], ["lr-AdamW", "lr-AdamW/head"]])
def test_one_panel(tmp_path, drawn, metrics):
    log_run(tmp_path, metrics)
    assert plots.plot_curves(tmp_path).exists()
    assert len(drawn[0].axes) == 1


def test_nothing_to_draw(tmp_path):
    assert plots.plot_curves(tmp_path) is None
    log_run(tmp_path, ["test/loss"])
    assert plots.plot_curves(tmp_path) is None
    assert not (tmp_path / "plots").exists()
