"""A trained technique from a run directory or an export/, and the texts or arrays that it is asked about."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from omegaconf import ListConfig, OmegaConf

from datamodules.array_input import ArrayInput
from datamodules.build import ALLOWED, TECHNIQUE, build
from datamodules.clue import ID_KEYS, TASKS, texts_of
from datamodules.corpus import BadRows, DataError, Row, listed, text_problem
from datamodules.dialogue import despaced, is_spaced, read_dialogues, turns_of
from datamodules.files import FORMATS, only_records, read_values
from datamodules.text import TextInput
from datamodules.tokenizers.base import load_tokenizer
from launch.checkpoint_io import AtomicCheckpointIO
from launch.run_dir import find_checkpoint
from launch.signatures import class_attribute, locate

# Beside the checkpoints, so that a run that never came to its export can still be used.
TOKENIZER = "checkpoints/tokenizer"


def run_directory(ckpt_path: str) -> Path:
    """The run that `ckpt_path` (the run itself, or one of its checkpoints) belongs to."""
    path = Path(ckpt_path).expanduser()
    return path.parent.parent if path.is_file() else path


def load_technique(
    run: Path, checkpoint: Path, trusted: str, typed: Mapping[str, Any] = MappingProxyType({})
) -> pl.LightningModule:
    """The technique of a run with the weights of `checkpoint`.

    Classes of this project are built, and `trusted`: the class that the command line itself names (model=mine).

    Args:
        typed: options of the technique as they were typed; its `evaluation_options` are taken instead of the run's.

    Raises:
        DataError: the checkpoint does not lie in its run, or its class is not to be built.
    """
    _need(run, "config.yaml", checkpoint)
    target = OmegaConf.load(run / "config.yaml").model._target_
    state = AtomicCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")
    model = _build({"_target_": target, **state["hyper_parameters"]}, trusted, typed)
    model.load_state_dict(state["state_dict"])
    if not _of_arrays(model):
        _need(run, TOKENIZER, checkpoint)
    return model


def load_for_prediction(
    ckpt_path: str, trusted: str, typed: Mapping[str, Any] = MappingProxyType({})
) -> tuple[pl.LightningModule, TextInput | ArrayInput]:
    """The technique of a run directory, a checkpoint or an export/, and how its texts or arrays are prepared."""
    path = Path(ckpt_path).expanduser()
    if (path / TECHNIQUE).is_file():
        saved = json.loads((path / TECHNIQUE).read_text(encoding="utf-8"))
        model = _build({**saved, "init_from": str(path), "network_config": None}, trusted, typed)
        model.load_export(path)
        tokenizer = path
    else:
        run = run_directory(ckpt_path)
        model = load_technique(run, find_checkpoint(ckpt_path, ".", "predict"), trusted, typed)
        tokenizer = run / TOKENIZER
    if _of_arrays(model):
        return model, ArrayInput(tuple(model.hparams.facts["shape"]))
    max_length = model.hparams.facts["max_length"]
    return model, TextInput(load_tokenizer(tokenizer), max_length, dialogues="turns" in model.needs)


def _of_arrays(model: pl.LightningModule) -> bool:
    """Whether the technique was trained on vectors or images, for which there is no tokenizer."""
    return "shape" in model.hparams.facts


def _need(run: Path, name: str, checkpoint: Path) -> None:
    if not (run / name).exists():
        raise DataError(f"ckpt_path={checkpoint}: its run is needed too, and {run} has no {name}")


def _build(node: dict[str, Any], trusted: str, typed: Mapping[str, Any]) -> pl.LightningModule:
    target = node["_target_"]
    if target != trusted and not target.startswith(ALLOWED):
        raise DataError(
            f"ckpt_path: was written by {target}, which is not of this project; if it is yours, add its "
            "model=NAME (and --config-dir) to the command"
        )
    found = locate(target)
    changeable = (class_attribute(found, "evaluation_options") if found else None) or ()
    node = node | {name: value for name, value in typed.items() if name in changeable}
    if target.startswith(ALLOWED):
        model = build(node)
    else:
        module, _, name = target.rpartition(".")
        options = {key: value for key, value in node.items() if key != "_target_"}
        model = getattr(importlib.import_module(module), name)(**options)
    model.configure_model()
    return model


class Query(NamedTuple):
    """What a prediction is asked for.

    Attributes:
        content: a text, a pair of texts, the turns of a dialogue, or an array.
        id: what the record calls itself; None where it has no id.
    """

    content: str | tuple[str, ...] | np.ndarray
    id: Any = None


def read_queries(source: str | ListConfig, inputs: TextInput | ArrayInput) -> list[Query]:
    """What `predict.input` holds, in its order.

    For texts: a list of texts and pairs; a JSON, csv, tsv or parquet file whose records have `text` and perhaps `text_pair`,
    or the keys of CLUE's tasks, and perhaps `id`; any other file holds a text a line. For dialogues: a list of dialogues,
    each a list of turns or the text of its only turn; or a file as `read_dialogues` reads it, perhaps with `id`. For
    arrays: a .npy file.

    Raises:
        DataError: nothing to read there, or something that cannot be used.
    """
    if not isinstance(source, ListConfig) and not Path(source).expanduser().is_file():
        raise DataError(
            f"predict.input={source}: no such file; for a text itself type \"predict.input=['{source}']\""
        )
    if isinstance(inputs, ArrayInput):
        if isinstance(source, ListConfig) or not source.endswith(".npy"):
            shape = ", ".join(map(str, inputs.shape))
            raise DataError(
                f"predict.input={source}: the run was trained on arrays; give a .npy file of [N, {shape}]"
            )
        queries = [Query(row, number) for number, row in enumerate(inputs.read(Path(source).expanduser()))]
    elif isinstance(source, str) and source.endswith(".npy"):
        raise DataError(f"predict.input={source}: holds arrays, and the run was trained on texts")
    elif inputs.dialogues:
        queries = _dialogue_queries(source)
    elif isinstance(source, ListConfig):
        queries = [Query(_typed_text(item, number)) for number, item in enumerate(source)]
    else:
        queries = _file_queries(Path(source).expanduser())
    if not queries:
        raise DataError(f"predict.input={source}: holds nothing to predict")
    return queries


def _typed_text(item: Any, number: int) -> str | tuple[str, ...]:
    """An item of a typed list; a word such as 2024 is a text, too."""
    texts = tuple(item) if isinstance(item, ListConfig) else (item,)
    texts = tuple(str(text) if isinstance(text, (int, float)) else text for text in texts)
    problems = [problem for problem in map(text_problem, texts) if problem is not None]
    if problems or not texts:
        raise DataError(f"predict.input, item {number + 1}: {problems[0] if problems else 'no text'}")
    return texts if len(texts) > 1 else texts[0]


def _kind_of(path: Path) -> str:
    """As `format_of`, but a file of any other name holds lines."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return FORMATS.get(suffix.lower(), "txt")


def _dialogue_queries(source: str | ListConfig) -> list[Query]:
    if isinstance(source, ListConfig):
        queries = [Query(Row(_typed_text(item, number)).texts) for number, item in enumerate(source)]
    else:
        queries = _queries_of_dialogues(Path(source).expanduser())
    if not is_spaced(query.content for query in queries):
        return queries
    return [query._replace(content=despaced(query.content)) for query in queries]


def _queries_of_dialogues(path: Path) -> list[Query]:
    bad_rows, queries = BadRows(None), []
    for place, value in read_dialogues(path, _kind_of(path), "test", bad_rows):
        turns, problem = turns_of(value)
        if problem is None and not turns:
            problem = "a dialogue of no turn"
        if problem is None:
            queries.append(Query(turns, _id_of(value) if isinstance(value, dict) else None))
        else:
            bad_rows.add(path, place, problem)
    bad_rows.finish()
    return queries


def _file_queries(path: Path) -> list[Query]:
    bad_rows, queries = BadRows(None), []
    kind = _kind_of(path)
    values = read_values(path, bad_rows, kind)
    if kind == "txt":
        queries = [Query(line.strip()) for _, line in values]
    else:
        for place, record in only_records(path, values, bad_rows):
            texts, problem = _texts_of(record)
            if problem is None:
                queries.append(Query(texts if len(texts) > 1 else texts[0], _id_of(record)))
            else:
                bad_rows.add(path, place, problem)
    bad_rows.finish()
    return queries


def _id_of(record: dict[Any, Any]) -> Any:
    """What the record calls itself; None where it has no id."""
    given = (record.get(key) for key in ID_KEYS)
    return next((value for value in given if value not in (None, "")), None)


def _texts_of(record: dict[Any, Any]) -> tuple[tuple[str, ...], str | None]:
    """The record's texts under the names that are known, and what is wrong with them."""
    own = ("text", "text_pair") if record.get("text_pair") else ("text",)
    known = [own, *dict.fromkeys(task.keys for task in TASKS.values())]
    keys = next((keys for keys in known if keys[0] in record), None)
    if keys is None:
        names = " or ".join(", ".join(keys) for keys in known)
        return (), f"no text (it has: {listed(map(repr, record)) or 'none'}); name it {names}"
    return texts_of(record, keys)


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
