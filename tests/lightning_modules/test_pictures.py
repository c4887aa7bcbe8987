"""Chinese labels are drawn where a font has them, and never as boxes."""

import logging
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lightning_modules import pictures
from lightning_modules.classification import Scores

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


@pytest.fixture
def chinese_font(monkeypatch):
    """A font with every character, where none with Chinese is installed."""
    if pictures.cjk_font() is None:
        path = next(
            entry.fname for entry in pictures.font_manager.fontManager.ttflist if "LastResort" in entry.fname
        )
        monkeypatch.setattr(pictures, "cjk_font", lambda: pictures.FontProperties(fname=path))


def class_names(count):
    return ["财经", "体育新闻", "$x$", *(f"很长的类别名称手机应用软件与服务{i}" for i in range(3, count))][
        :count
    ]


def scores_of(confusion, train_rows) -> Scores:
    rows, predicted = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        ratios = confusion.diagonal() / rows, confusion.diagonal() / predicted
        f1 = 2 * confusion.diagonal() / (rows + predicted)
    return Scores({}, np.array(train_rows), rows, predicted, *ratios, f1, confusion)


def confusions(count):
    random = np.random.Generator(np.random.PCG64(0))
    return random.poisson(0.3, (count, count)) + np.diag(random.integers(5, 30, count))


def overlaps(texts):
    """Pairs of texts, as drawn, whose boxes lie over each other."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [
        (one, other)
        for place, (one, box) in enumerate(boxes)
        for other, other_box in boxes[:place]
        if box.overlaps(other_box)
    ]


def test_a_confusion_matrix_shows_rows_and_their_shares(tmp_path, drawn, chinese_font):
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 1234]])  # the second class has no row
    path = pictures.plot_confusion(tmp_path / "plots" / "confusion.png", class_names(3), matrix)
    axes = drawn[0].axes[0]
    assert imread(path).ndim == 3
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [1 / 1235, 0, 1234 / 1235]]
    )
    cells = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "8", (0, 1): "2", (2, 0): "1", (2, 2): "1,234"}
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in ticks] == ["财经", "体育新闻", "$x$"]


def test_of_many_classes_the_most_confused_are_drawn(tmp_path, drawn, chinese_font):
    names = [f"c{i}" for i in range(30)]
    matrix = np.diag(np.full(30, 100))
    matrix[29, 3] = 7
    matrix[0, 25] = 5
    matrix[28, 9:29] += 1
    pictures.plot_confusion(tmp_path / "confusion.png", names, matrix)
    axes = drawn[0].axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert len(shown) == 20 and {"c0", "c3", "c25", "c28", "c29"} <= set(shown)
    assert [label.get_text() for label in axes.get_xticklabels()] == [*shown, "the other 10"]
    assert axes.get_title(loc="left") == "The 20 most confused of 30 classes"
    cells = {text.get_position()[::-1]: int(text.get_text()) for text in axes.texts}
    for line, name in enumerate(shown):  # a line has all rows of its class
        assert sum(count for (at, _), count in cells.items() if at == line) == matrix[names.index(name)].sum()


def test_bars_of_classes_go_by_training_rows(tmp_path, drawn, chinese_font):
    scores = scores_of(np.array([[8, 2, 0], [0, 0, 0], [1, 0, 9]]), [30, 5, 1200])
    path = pictures.plot_classes(tmp_path / "plots" / "classes.png", class_names(3), scores)
    axes = drawn[0].axes[0]
    assert imread(path).ndim == 3
    assert labels(drawn[0]) == ["$x$", "财经", "体育新闻"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.9, 0.8, 0])
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [18 / 19, 16 / 19, 0])
    texts = [text.get_text() for text in axes.texts]
    assert {"1,200", "30", "5"} <= set(texts)
    assert texts.count("no rows") == 1


def test_of_many_classes_the_head_and_the_tail_are_drawn(tmp_path, drawn, chinese_font):
    names = [f"c{i}" for i in range(45)]
    pictures.plot_classes(tmp_path / "classes.png", names, scores_of(confusions(45), range(45)))
    shown = [f"c{i}" for i in (*range(44, 24, -1), *range(19, -1, -1))]
    assert labels(drawn[0]) == shown
    assert "5 classes between" in [text.get_text() for text in drawn[0].axes[0].texts]
    assert drawn[0].axes[0].get_title(loc="left") == "The 20 most frequent and 20 rarest of 45 classes"


@pytest.mark.parametrize("font", [True, False])
@pytest.mark.parametrize("count", [2, 15, 119])
def test_no_text_lies_over_another(tmp_path, drawn, request, monkeypatch, count, font):
    if font:
        request.getfixturevalue("chinese_font")
    else:
        monkeypatch.setattr(pictures, "cjk_font", lambda: None)
    names, matrix = class_names(count), confusions(count) * 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a character that its font lacks
        pictures.plot_classes(tmp_path / "classes.png", names, scores_of(matrix, range(count)))
        pictures.plot_confusion(tmp_path / "confusion.png", names, matrix)
    bars, confusion = drawn
    axes = bars.axes[0]
    hint = [bars._supxlabel] if bars.get_supxlabel() else []
    assert not overlaps([*axes.get_yticklabels(), *axes.texts, axes.xaxis.label, *hint])
    assert not overlaps([*axes.get_xticklabels(), axes.xaxis.label, *hint])
    width, height = bars.canvas.get_width_height()
    for text in (*axes.get_yticklabels(), *axes.texts):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
    axes = confusion.axes[0]
    assert not overlaps([*axes.get_yticklabels(), *axes.texts, axes.xaxis.label, axes.yaxis.label])
    if not axes.get_xticklabels()[0].get_rotation():  # boxes of slanted names overlap where the names do not
        assert not overlaps([*axes.get_xticklabels(), axes.xaxis.label])


def test_class_numbers_where_no_font_has_the_characters(tmp_path, drawn, monkeypatch, caplog):
    monkeypatch.setattr(pictures, "cjk_font", lambda: None)
    with caplog.at_level(logging.WARNING):
        pictures.plot_classes(
            tmp_path / "classes.png", class_names(3), scores_of(np.eye(3, dtype=int), [3, 2, 1])
        )
        pictures.plot_confusion(tmp_path / "confusion.png", class_names(3), np.eye(3, dtype=int))
    for figure in drawn:
        assert labels(figure) == ["class 0", "class 1", "$x$"]
        assert figure.get_supxlabel() == pictures.FONT_HINT
    assert caplog.text.count(pictures.FONT_HINT) == 2


def test_long_names_are_cut(tmp_path, drawn, chinese_font):
    names = ["一二三四五六七八九十一二三", "a" * 24, "two\n lines"]
    pictures.plot_classes(tmp_path / "x.png", names, scores_of(np.eye(3, dtype=int), [3, 2, 1]))
    assert labels(drawn[0]) == ["一二三四五六七八九十一…", "a" * 24, "two lines"]


def test_classes_must_agree_with_their_names(tmp_path):
    with pytest.raises(ValueError, match="1 names, scores of 2 classes"):
        pictures.plot_classes(tmp_path / "x.png", ["a"], scores_of(np.eye(2, dtype=int), [1, 1]))
    with pytest.raises(ValueError, match=r"1 names, a matrix of shape \(2, 2\)"):
        pictures.plot_confusion(tmp_path / "x.png", ["a"], np.eye(2))
