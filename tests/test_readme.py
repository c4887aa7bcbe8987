"""README's commands and its notebook block run as they stand (each cut short by debug=fast)."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from running import REPOSITORY, TINY, finished, run, summary
from transformers import BertConfig, BertForMaskedLM

from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.word import WordTokenizer

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def commands(shell: bool = False) -> list[str]:
    """The `python train.py` lines of README's bash blocks after the set-up; with `shell` those that need a shell."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1:]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python train.py")]
    needs_shell = re.compile(r" (-m|--cfg) ")
    return [line for line in lines if bool(needs_shell.search(line)) == shell]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What README's paths stand for: a corpus, a checkpoint, a trained run, a file of texts."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(REPOSITORY / "datamodules" / "samples" / "tnews", root / "corpora" / "clue" / "tnews")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    for name, tokenizer in (
        ("wobert_chinese_base", WordTokenizer(vocab=[*SPECIALS, *"今天很好的一是不了人我在有他", "今天"])),
        ("bert-base-chinese", CharTokenizer(vocab=[*SPECIALS, *"今天很好的一是不了人我在有他"])),
    ):
        tokenizer.save(str(root / "models" / name))
        config = BertConfig(vocab_size=tokenizer.vocab_size, **shape)
        BertForMaskedLM(config).save_pretrained(root / "models" / name)
    lines = [f"床前明月光，疑是地上霜{number}。" for number in range(200)]
    (root / "poems.txt").write_text("\n".join(lines), encoding="utf-8")
    table = ["text,label", *(f"很好用{number},{'好坏'[number % 2]}评" for number in range(200))]
    (root / "my.csv").write_text("\n".join(table), encoding="utf-8")
    (root / "texts.txt").write_text("今天很好\n我们去公园玩\n", encoding="utf-8")
    finished(root / "runs" / "mine", *TINY, "debug=fast")
    finished(root / "runs" / "titles", *TINY, "debug=fast", "model=classifier")
    return root


@pytest.mark.parametrize("command", commands())
def test_command(command, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    arguments = shlex.split(command)[2:]
    arguments = [
        a.replace("=/corpora", f"={world}/corpora").replace("=/models", f"={world}/models") for a in arguments
    ]
    directory = tmp_path / "run"
    arguments = [a for a in arguments if not a.startswith("hydra.run.dir=")]
    if not any(a.startswith("stage=") for a in arguments):
        arguments = [a for a in arguments if not a.startswith("max_steps=") and a != "debug=fast"]
        arguments += [*made_small(arguments), "debug=fast"]
    finished(directory, *arguments)
    assert summary(directory)["error"] is None


def made_small(arguments: list[str]) -> list[str]:
    """Options for a run of milliseconds, but for the groups that the command itself chooses."""
    if any(argument.startswith("model/backbone=") for argument in arguments) or "data=digits" in arguments:
        return []
    chosen = {argument.partition("=")[0] for argument in arguments}
    return [option for option in TINY if option.partition("=")[0] not in chosen]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if re.search("optuna|joblib|ddp", command) else [])
        for command in commands(shell=True)
    ],
)
def test_command_in_a_shell(command, world):
    shutil.rmtree(world / "runs" / "sweep-wobert-clue", ignore_errors=True)
    shutil.rmtree(world / "runs" / "sweep-wobert+bert-clue", ignore_errors=True)
    line = command.replace("python train.py", f"{sys.executable} {REPOSITORY / 'train.py'}")
    if "--cfg" not in command:
        line = " ".join([line, "debug=fast", *made_small(shlex.split(command))])
    line = line.replace("seed=1,2,3", "seed=1").replace("n_trials=20", "n_trials=2")
    done = subprocess.run(line, shell=True, cwd=world, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "-m" in command:
        assert len(list(world.glob("runs/sweep-*/*/*/summary.json"))) == 2


def test_mistakes_are_told_as_shown(tmp_path):
    command, *told = re.search(r"^```\n\$ (python train.py .*?)\n```", README, re.MULTILINE | re.DOTALL)[
        1
    ].splitlines()
    outcome = run(tmp_path / "run", *shlex.split(command)[2:])
    assert outcome.code == 2
    assert outcome.err.strip().splitlines() == told
    assert not (tmp_path / "run").exists()


def test_notebook_block(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "WoBERT(" in block]
    assert "hydra" not in block.replace("no Hydra", "")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace("max_steps=20", "max_steps=2, accelerator='cpu', logger=False"), names)
    assert names["again"].hparams.mask_rate == names["model"].hparams.mask_rate


def test_export_block(world, monkeypatch):
    [block] = [
        b for b in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "fill = " in b
    ]
    monkeypatch.chdir(world)
    names = {}
    exec(block, names)
    assert len(names["fill"]("今天[MASK]很好")) == 5


def test_every_document_that_is_linked_exists():
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (REPOSITORY / link).exists(), link
