"""A trained technique from a run directory or an export/, and the texts that it is asked about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import ListConfig, OmegaConf

from datamodules.build import build
from datamodules.corpus import BadRows, DataError, read_jsonl, text_problem
from datamodules.text import TextInput
from datamodules.tokenizers.base import Tokenizer, load_tokenizer
from launch.checkpoint_io import AtomicCheckpointIO
from launch.run_dir import find_checkpoint

# Beside the checkpoints, so that a run that never came to its export can still be used.
TOKENIZER = "checkpoints/tokenizer"
# What an export/ says of the technique behind its Hugging Face files.
TECHNIQUE = "kexue.json"


def run_directory(ckpt_path: str) -> Path:
    """The run that `ckpt_path` (the run itself, or one of its checkpoints) belongs to."""
    path = Path(ckpt_path).expanduser()
    return path.parent.parent if path.is_file() else path


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write the tokenizer, its files renamed into place when they are whole."""
    building = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    tokenizer.save(building, max_length)
    shutil.rmtree(directory, ignore_errors=True)
    building.rename(directory)


def load_technique(run: Path, checkpoint: Path) -> pl.LightningModule:
    """The technique of a run with the weights of `checkpoint`; nothing but this project's classes is built."""
    target = OmegaConf.load(run / "config.yaml").model._target_
    state = AtomicCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")
    model = build({"_target_": target, **state["hyper_parameters"]})
    model.configure_model()
    model.load_state_dict(state["state_dict"])
    return model


def load_for_prediction(ckpt_path: str) -> tuple[pl.LightningModule, TextInput]:
    """The technique of a run directory, a checkpoint or an export/, and how its texts are prepared."""
    path = Path(ckpt_path).expanduser()
    if (path / TECHNIQUE).is_file():
        saved = json.loads((path / TECHNIQUE).read_text(encoding="utf-8"))
        model = build({**saved, "init_from": str(path), "network_config": None})
        model.configure_model()
        tokenizer = load_tokenizer(path)
    else:
        run = run_directory(ckpt_path)
        model = load_technique(run, find_checkpoint(ckpt_path, ".", "predict"))
        tokenizer = load_tokenizer(run / TOKENIZER)
    return model, TextInput(tokenizer, model.hparams.facts["max_length"])


def read_texts(source: str | ListConfig) -> list[str]:
    """The texts of `predict.input`: a list, a .jsonl file with the key `text`, or a file with a text a line.

    Raises:
        DataError: nothing to read there.
    """
    if isinstance(source, ListConfig):
        texts = [str(text) for text in source]
    elif not Path(source).is_file():
        raise DataError(
            f"predict.input={source}: no such file; for a text itself type \"predict.input=['{source}']\""
        )
    elif source.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        bad = BadRows(0)
        texts = []
        for number, row in read_jsonl(source, bad):
            if (problem := text_problem(row.get("text"))) is not None:
                bad.add(source, number, f"`text` {problem}")
            else:
                texts.append(row["text"])
        bad.finish()
    else:
        texts = [line for line in Path(source).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not texts:
        raise DataError(f"predict.input={source}: holds no text")
    return texts


@contextmanager
def written_lines(path: Path) -> Iterator[Callable[[Any], str]]:
    """Gives a function that writes its argument as a line of JSON; the file appears when all are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:

            def write(value: Any) -> str:
                line = json.dumps(value, ensure_ascii=False)
                file.write(line + "\n")
                return line

            yield write
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
