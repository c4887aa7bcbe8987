"""`data.source=hub` through the entrypoint, against a hub on 127.0.0.1 that serves the real repositories' layout."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import HubServer
from running import REPOSITORY, TINY, summary


def parquet(rows: list[dict]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def jsonl(dialogues: list[list[str]]) -> bytes:
    return gzip.compress("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in dialogues).encode())


def titles(count: int, start: int = 0) -> list[dict]:
    return [{"sentence": f"第{n}条新闻标题", "label": n % 15, "idx": n} for n in range(start, start + count)]


def dialogues(count: int, start: int = 0, spaced: str = " ") -> list[list[str]]:
    return [[spaced.join(f"第{n}个问题"), f"回答{n}"] for n in range(start, start + count)]


CLUE = {
    "README.md": b"# CLUE",
    "tnews/train-00000-of-00001.parquet": parquet(titles(200)),
    "tnews/validation-00000-of-00001.parquet": parquet(titles(60, 200)),
    "tnews/test-00000-of-00001.parquet": parquet([{**row, "label": -1} for row in titles(60, 260)]),
}
LCCC = {
    "lccc_base_train.jsonl.gz": jsonl(dialogues(200)),
    "lccc_base_valid.jsonl.gz": jsonl(dialogues(60, 200)),
    # Five of them stand in the large corpus too.
    "lccc_base_test.jsonl.gz": jsonl(dialogues(60, 260)),
    "lccc_large.jsonl.gz": jsonl(dialogues(200) + dialogues(5, 260, spaced="")),
}
EXPORT = {
    "base/train/0000.parquet": parquet([{"dialog": d} for d in dialogues(100)]),
    "base/train/0001.parquet": parquet([{"dialog": d} for d in dialogues(100, 100)]),
    "base/validation/0000.parquet": parquet([{"dialog": d} for d in dialogues(60, 200)]),
    "base/test/0000.parquet": parquet([{"dialog": d} for d in dialogues(60, 260)]),
}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def train(directory: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [
        sys.executable,
        REPOSITORY / "train.py",
        f"hydra.run.dir={directory}",
        *options,
        *TINY,
        "debug=fast",
    ]
    return subprocess.run(
        command,
        cwd=directory.parent,
        env=inherited | environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_clue_from_the_hub_and_then_from_its_cache(hub, tmp_path):
    commit = hub.add("clue/clue", CLUE)
    environment = hub.environment(tmp_path / "home")
    done = train(tmp_path / "first", environment, "data=clue", "data.source=hub")
    assert done.returncode == 0, done.stderr
    assert "HTTP Request" not in done.stdout + done.stderr
    told = summary(tmp_path / "first")
    assert told["source"] == "hub" and told["data_facts"]["revision"] == commit
    assert [told["data_facts"]["splits"][split]["num_rows"] for split in ("train", "val", "test")] == [
        200,
        60,
        60,
    ]
    asked = len(hub.requests)
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    done = train(tmp_path / "second", offline, "data=clue", "data.source=hub")
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == asked
    assert summary(tmp_path / "second")["metrics"] == told["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, rows, left_out",
    [
        ((), 200, {}),
        (("data.revision=refs/convert/parquet",), 200, {}),
        (("data.variant=large",), 200, {"rows of the evaluation files": 5}),
    ],
)
def test_lccc_from_the_hub(hub, tmp_path, options, rows, left_out):
    hub.add("silver/lccc", LCCC)
    hub.add("silver/lccc", EXPORT, "refs/convert/parquet")
    environment = hub.environment(tmp_path / "home")
    done = train(tmp_path / "run", environment, "data=lccc", "data.source=hub", *options)
    assert done.returncode == 0, done.stderr
    facts = summary(tmp_path / "run")["data_facts"]["splits"]
    assert facts["train"]["num_rows"] == rows and facts["train"]["left_out"] == left_out
    assert facts["val"]["num_rows"] == facts["test"]["num_rows"] == 60


def test_an_unreachable_hub_ends_the_run_in_one_line(tmp_path):
    with HubServer() as gone:
        environment = gone.environment(tmp_path / "home")
    done = train(tmp_path / "run", environment, "data=clue", "data.source=hub")
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("clue/clue (revision main) from http://127.0.0.1:") and "cannot be reached" in line
    assert "HF_ENDPOINT" in line and "data.source=/path/to/clue" in line
    assert "Traceback" not in done.stderr and "SAMPLE" not in done.stdout + done.stderr
    assert summary(tmp_path / "run")["status"] == "failed"
