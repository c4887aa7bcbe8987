"""The pictures of a corpus: lengths, and classes few and many."""

import logging
import warnings

from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.image import imread

from launch import data_plots


def corpus(classes, longer=0):
    """What an inspection tells of two splits, as far as it is drawn."""
    lengths = {"median": 1, "max": 70}
    histogram = {"bin_width": 10, "rows": [6, 4 - longer], "longer": longer}
    split = {
        "rows": 10,
        "characters_a_row": lengths,
        "tokens_a_row": lengths,
        "histograms": {"characters_a_row": histogram, "tokens_a_row": histogram},
        "labels": None,
    }
    total = sum(classes.values())
    listed = [{"name": name, "rows": rows, "share": rows / total} for name, rows in classes.items()]
    labels = {"rows": total, "classes": listed} if listed else None
    return {"max_length": 16, "splits": {"train": {**split, "labels": labels}, "val": split}}


def strictly(draw, path, facts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return draw(path, facts)


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_lengths_of_all_splits_with_the_limit_and_the_tail(tmp_path, drawn):
    path = strictly(data_plots.plot_lengths, tmp_path / "plots" / "lengths.png", corpus({}, longer=1))
    assert imread(path).ndim == 3
    characters, tokens = drawn[0].axes
    assert characters.get_title(loc="left") == "Characters a row"
    assert tokens.get_title(loc="left") == "Tokens a row"
    labels = [text.get_text() for text in characters.get_legend().get_texts()]
    assert labels == ["train (median 1)", "val (median 1)", "data.max_length=16"]
    assert characters.get_xlabel() == "characters, 10 to a bar; 2 rows are longer, up to 70"


def test_no_labels_no_picture(tmp_path):
    assert data_plots.plot_labels(tmp_path / "labels.png", corpus({})) is None
    assert not list(tmp_path.iterdir())


def test_few_classes_by_name_the_most_frequent_first(tmp_path, drawn):
    strictly(data_plots.plot_labels, tmp_path / "labels.png", corpus({"a": 2, "$b$": 7, "c" * 50: 0}))
    [axes] = drawn[0].axes  # a split without labels has no panel
    assert names(axes) == ["$b$", "a", "c" * 23 + "…"]
    assert [bar.get_width() for bar in axes.patches] == [7 / 9, 2 / 9, 0]
    assert axes.get_title(loc="left") == "train, 9 rows"


def test_many_classes_by_rank_and_their_ends_by_name(tmp_path, drawn):
    facts = corpus({f"class {number}": 100 - number for number in range(60)})
    strictly(data_plots.plot_labels, tmp_path / "labels.png", facts)
    ranks, frequent, rare = drawn[0].axes
    assert len(ranks.patches) == 60 and ranks.get_yscale() == "log"
    assert names(frequent) == [f"class {number}" for number in range(15)]
    assert names(rare) == [f"class {number}" for number in range(45, 60)]


def test_chinese_names_are_drawn_where_a_font_has_them_and_are_numbers_elsewhere(
    tmp_path, drawn, monkeypatch, caplog
):
    facts = corpus({"体育": 2, "tech": 1})
    monkeypatch.setattr(data_plots, "cjk_font", lambda: None)
    with caplog.at_level(logging.WARNING):
        strictly(data_plots.plot_labels, tmp_path / "labels.png", facts)
    assert names(drawn[0].axes[0]) == ["id 0", "tech"]
    assert drawn[0].get_supxlabel() == data_plots.FONT_HINT and data_plots.FONT_HINT in caplog.text
    # A font that comes with matplotlib and has every character stands in for a Chinese one.
    path = next(entry.fname for entry in fontManager.ttflist if "LastResort" in entry.fname)
    monkeypatch.setattr(data_plots, "cjk_font", lambda: FontProperties(fname=path))
    strictly(data_plots.plot_labels, tmp_path / "labels.png", facts)
    assert names(drawn[1].axes[0]) == ["体育", "tech"]
    assert drawn[1].get_supxlabel() == ""
