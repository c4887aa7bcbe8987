"""The benchmarks run from end to end on a handful of texts; what they measure is nobody's business here."""

import importlib
import importlib.util
import json
import logging
import re

import pytest
from running import REPOSITORY

from datamodules.corpus import DataError


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark by its name, as `python benchmarks/<name>.py` imports it."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module


@pytest.fixture
def titles(tmp_path):
    sample = REPOSITORY / "datamodules" / "samples" / "tnews" / "train.json"
    with sample.open(encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["sentence"] for _ in range(60)]
    file = tmp_path / "titles.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    return str(file)


def test_masked_lm(benchmark, titles, capsys, caplog):
    caplog.set_level(logging.WARNING, "pytorch_lightning")  # and back: the benchmark sets it
    small = ["--max-length", "32", "--vocab", "800", "--tokens", "128", "--device", "cpu"]
    short = ["--steps", "2", "--warmup", "1", "--rounds", "1"]
    contestants = ["ours", "loop", "trainer", "blocks"]
    speeds = benchmark("masked_lm").main(["--text", titles, *small, *short, "--contestants", *contestants])
    out = capsys.readouterr().out
    if importlib.util.find_spec("accelerate") is None:
        contestants.remove("trainer")
        assert "trainer is left out: it needs accelerate" in out
    assert list(speeds) == contestants
    assert all(len(values) == 1 and values[0] > 0 for values in speeds.values())
    # The contestants have the same tokens before them.
    assert re.search(r"^tokens: ([\d,]+) by WordTokenizer, \1 by RoFormerTokenizer$", out, re.MULTILINE)
    assert "vocabulary 800," in out
    assert "ours / loop, by round: median" in out


def test_masked_lm_names_a_vocabulary_that_is_too_small(benchmark, titles):
    with pytest.raises(DataError, match=r"--vocab 20: the texts alone have \d+ tokens"):
        benchmark("masked_lm").main(["--text", titles, "--vocab", "20"])


def test_tokenization(benchmark, titles, capsys):
    speeds = benchmark("tokenization").main(["--text", titles, "--repeat", "1", "--rounds", "2"])
    assert all(len(values) == 2 and min(values) > 0 for values in speeds.values())
    rows = re.findall(r"^(\S+), .*? ([\d,]+) +[\d.]+ times$", capsys.readouterr().out, re.MULTILINE)
    tokens = {name: count for name, count in rows}
    assert tokens["word"] == tokens["RoFormerTokenizer"]
    assert tokens["char"] == tokens["BertTokenizer"]


def test_texts_of_files(benchmark, tmp_path):
    read_texts = benchmark("texts").read_texts
    (tmp_path / "a.json").write_text('{"sentence": "今天很好"}\n{"sentence": " "}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_text("我们\n\n公园\u2028里\n", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "今天"}\n', encoding="utf-8")
    assert read_texts([str(tmp_path / "a.json"), str(tmp_path / "b.txt")]) == [
        "今天很好",
        "我们",
        "公园\u2028里",
    ]
    assert len(read_texts(None)) == 4000
    with pytest.raises(DataError, match="sentence"):
        read_texts([str(tmp_path / "c.jsonl")])
    with pytest.raises(DataError, match="no such file"):
        read_texts([str(tmp_path / "none.txt")])
