"""A trained technique from a run directory or an export/, and the texts that it is asked about."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import ListConfig, OmegaConf

from datamodules.build import ALLOWED, build
from datamodules.corpus import BadRows, DataError, text_problem
from datamodules.files import read_jsonl, read_values
from datamodules.text import TextInput
from datamodules.tokenizers.base import load_tokenizer
from launch.checkpoint_io import AtomicCheckpointIO
from launch.run_dir import TECHNIQUE, find_checkpoint

# Beside the checkpoints, so that a run that never came to its export can still be used.
TOKENIZER = "checkpoints/tokenizer"


def run_directory(ckpt_path: str) -> Path:
    """The run that `ckpt_path` (the run itself, or one of its checkpoints) belongs to."""
    path = Path(ckpt_path).expanduser()
    return path.parent.parent if path.is_file() else path


def load_technique(run: Path, checkpoint: Path, trusted: str) -> pl.LightningModule:
    """The technique of a run with the weights of `checkpoint`.

    Classes of this project are built, and `trusted`: the class that the command line itself names (model=mine).

    Raises:
        DataError: the checkpoint does not lie in its run, or its class is not to be built.
    """
    for name in ("config.yaml", TOKENIZER):
        if not (run / name).exists():
            raise DataError(f"ckpt_path={checkpoint}: its run is needed too, and {run} has no {name}")
    target = OmegaConf.load(run / "config.yaml").model._target_
    state = AtomicCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")
    model = _build({"_target_": target, **state["hyper_parameters"]}, trusted)
    model.load_state_dict(state["state_dict"])
    return model


def load_for_prediction(ckpt_path: str, trusted: str) -> tuple[pl.LightningModule, TextInput]:
    """The technique of a run directory, a checkpoint or an export/, and how its texts are prepared."""
    path = Path(ckpt_path).expanduser()
    if (path / TECHNIQUE).is_file():
        saved = json.loads((path / TECHNIQUE).read_text(encoding="utf-8"))
        model = _build({**saved, "init_from": str(path), "network_config": None}, trusted)
        tokenizer = load_tokenizer(path)
    else:
        run = run_directory(ckpt_path)
        model = load_technique(run, find_checkpoint(ckpt_path, ".", "predict"), trusted)
        tokenizer = load_tokenizer(run / TOKENIZER)
    return model, TextInput(tokenizer, model.hparams.facts["max_length"])


def _build(node: dict[str, Any], trusted: str) -> pl.LightningModule:
    target = node["_target_"]
    if target == trusted and not target.startswith(ALLOWED):
        module, _, name = target.rpartition(".")
        options = {key: value for key, value in node.items() if key != "_target_"}
        model = getattr(importlib.import_module(module), name)(**options)
    elif target.startswith(ALLOWED):
        model = build(node)
    else:
        raise DataError(
            f"ckpt_path: was written by {target}, which is not of this project; if it is yours, add its "
            "model=NAME (and --config-dir) to the command"
        )
    model.configure_model()
    return model


def read_texts(source: str | ListConfig) -> list[str]:
    """The texts of `predict.input`: a list, a .jsonl file with the key `text`, or a file with a text a line.

    Raises:
        DataError: nothing to read there.
    """
    if isinstance(source, ListConfig):
        texts = [str(text) for text in source]
    elif not Path(source).expanduser().is_file():
        raise DataError(
            f"predict.input={source}: no such file; for a text itself type \"predict.input=['{source}']\""
        )
    else:
        path, bad, texts = Path(source).expanduser(), BadRows(None), []
        if source.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
            for place, row in read_jsonl(path, bad):
                if (problem := text_problem(row.get("text"))) is not None:
                    bad.add(source, place, f"`text` {problem}")
                else:
                    texts.append(row["text"])
        else:
            texts = [line.strip() for _, line in read_values(path, bad, "txt")]
        bad.finish()
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
