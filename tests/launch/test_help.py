"""`--help` lists what there is; Hydra's own flags go on working."""

import os
import subprocess
import sys
from pathlib import Path

from launch.check import OPTIONS

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"


def train(*arguments, cwd, **environment):
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "train.py", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_help_lists_every_group_and_every_option(tmp_path):
    text = train("--help", cwd=tmp_path)
    described = {line.split()[0] for line in text.splitlines() if line.startswith("  ") and line.split()}
    groups = {str(folder.relative_to(CONF)) for folder in CONF.rglob("*") if folder.is_dir()}
    assert groups and groups | {"experiment", "local"} <= described
    for group in groups:
        for option in (CONF / group).glob("*.yaml"):
            assert any(line.startswith(f"{group}: ") and option.stem in line for line in text.splitlines())
    options = text[text.index("Options (option=value)") :]
    for name in (*OPTIONS, *OPTIONS["predict"]):
        assert name in options
    assert not any(tmp_path.iterdir())


def test_the_config_can_be_printed(tmp_path):
    text = train("model=bert", "seed=7", "--cfg", "job", cwd=tmp_path)
    assert "seed: 7" in text and "_target_: datamodules.tokenizers.char.CharTokenizer" in text
    assert not any(tmp_path.iterdir())


def test_the_shell_completes(tmp_path):
    assert "hydra_bash_completion" in train("-sc", "install=bash", cwd=tmp_path)
    completed = train("-sc", "query=bash", cwd=tmp_path, COMP_LINE="train.py model/scheduler=").split()
    assert completed == ["model/scheduler=constant", "model/scheduler=cosine", "model/scheduler=linear"]
