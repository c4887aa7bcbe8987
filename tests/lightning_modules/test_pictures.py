"""Chinese labels are drawn where a font has them, and never as boxes."""

import logging
import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lightning_modules import pictures

TOKENS = ["的", "中国", "[SEP]", "$x$", "##ing"]


def draw(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a character that its font lacks
        return pictures.plot_token_accuracy(
            tmp_path / "plots" / "tokens.png",
            TOKENS,
            [0.5, 0.25, 0, 1, 0.1],
            [9, 8, 7, 6, 5],
            [11, 12, 3, 14, 15],
        )


def labels(figure: Figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_ids_where_no_font_has_the_characters(tmp_path, drawn, monkeypatch, caplog):
    monkeypatch.setattr(pictures, "cjk_font", lambda: None)
    with caplog.at_level(logging.WARNING):
        path = draw(tmp_path)
    assert imread(path).ndim == 3
    assert labels(drawn[0]) == ["id 11", "id 12", "[SEP]", "$x$", "##ing"]
    assert drawn[0].get_supxlabel() == pictures.FONT_HINT
    assert pictures.FONT_HINT in caplog.text


def test_characters_where_a_font_has_them(tmp_path, drawn, monkeypatch, caplog):
    if pictures.cjk_font() is None:  # one that comes with matplotlib and has every character stands in
        path = next(
            entry.fname for entry in pictures.font_manager.fontManager.ttflist if "LastResort" in entry.fname
        )
        monkeypatch.setattr(pictures, "cjk_font", lambda: pictures.FontProperties(fname=path))
    with caplog.at_level(logging.WARNING):
        draw(tmp_path)
    assert labels(drawn[0]) == TOKENS
    assert drawn[0].get_supxlabel() == "" and not caplog.text


def test_the_font_that_draws_boxes_is_no_chinese_font(monkeypatch):
    fonts = [entry for entry in pictures.font_manager.fontManager.ttflist if "matplotlib" in entry.fname]
    assert any("LastResort" in entry.fname for entry in fonts)
    pictures.cjk_font.cache_clear()
    monkeypatch.setattr(pictures.font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(pictures.font_manager, "findSystemFonts", list)
    try:
        assert pictures.cjk_font() is None
    finally:
        pictures.cjk_font.cache_clear()


def test_lengths_must_agree(tmp_path):
    with pytest.raises(ValueError, match="2 tokens, 1 accuracies"):
        pictures.plot_token_accuracy(tmp_path / "x.png", ["a", "b"], [1.0], [1, 2], [1, 2])
