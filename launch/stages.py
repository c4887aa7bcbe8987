"""The steps of train.py: what is built from a composed config, and what each stage does with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging

from datamodules.inspection import inspect_corpus
from datamodules.tokenizers.base import Tokenizer, load_tokenizer
from launch.callbacks import Interruption, RunMetrics
from launch.check import ConfigError
from launch.checkpoint_io import AtomicCheckpointIO
from launch.data_plots import plot_labels, plot_lengths
from launch.data_report import report
from launch.export import export_run, score_names
from launch.plots import plot_curves
from launch.predict import (
    TOKENIZER,
    load_for_prediction,
    load_technique,
    read_texts,
    run_directory,
    written_lines,
)
from launch.run_dir import Run, find_checkpoint, quieten, replaced_whole, write_whole

log = logging.getLogger(__name__)

EVALUATIONS = ("validate", "test")
# Of the words that a vocabulary got, so many from either end are printed.
SHOWN_WORDS = 8
# So few predictions are printed too, each cut to so many characters.
SHOWN_PREDICTIONS, SHOWN_CHARACTERS = 5, 400


def open_run(cfg: DictConfig) -> Run:
    """The run's directory, as a context manager; seeds everything that draws."""
    quieten()
    hydra = HydraConfig.get()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    return Run(
        hydra.runtime.output_dir,
        OmegaConf.to_yaml(cfg, resolve=True),
        stage=cfg.stage,
        model=hydra.runtime.choices.model,
        data=hydra.runtime.choices.data,
        seed=cfg.seed,
        ckpt_path=cfg.ckpt_path,
    )


def build_datamodule(cfg: DictConfig) -> pl.LightningDataModule:
    """The corpus. A stage that evaluates a run takes the run's tokenizer and corpus, changed by what was typed."""
    node = cfg.data
    if cfg.stage in EVALUATIONS:
        evaluated = run_directory(cfg.ckpt_path)
        node = OmegaConf.to_container(node, resolve=True)
        saved = OmegaConf.to_container(OmegaConf.load(evaluated / "config.yaml").data)
        if saved["_target_"] == node["_target_"]:
            typed = [override.split("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task]
            names = [name.removeprefix("data.") for name in typed if name.startswith("data.")]
            node = {**saved, **{name: node[name] for name in names}}
        node["tokenizer"] = load_tokenizer(evaluated / TOKENIZER)
    return instantiate(node, _recursive_=False, _convert_="all")


def build_model(cfg: DictConfig, datamodule: pl.LightningDataModule) -> pl.LightningModule:
    """The technique: a run's, or a new one whose weights are made when the corpus' facts are known."""
    if cfg.stage in EVALUATIONS:
        return load_technique(run_directory(cfg.ckpt_path), _checkpoint(cfg), trusted=cfg.model._target_)
    model = instantiate(cfg.model, _recursive_=False, _convert_="all")
    try:
        model.check_corpus(datamodule)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return model


def build_trainer(cfg: DictConfig, run: Run, datamodule: pl.LightningDataModule) -> pl.Trainer:
    """The machine, with the callbacks and loggers of the config."""
    run.run_metrics = RunMetrics()
    loggers = [instantiate(node) for node in (cfg.logger or {}).values()] if cfg.stage == "fit" else []
    callbacks = [instantiate(node) for node in (cfg.callbacks or {}).values()]
    if not loggers:
        # It refuses to log nowhere.
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    trainer = instantiate(
        cfg.trainer,
        callbacks=[Interruption(), run.run_metrics, *callbacks],
        logger=loggers or False,
        plugins=[AtomicCheckpointIO()],
    )
    # Lightning counts in micro-batches, the config in optimiser steps.
    accumulate = datamodule.accumulate_grad_batches(trainer.world_size)
    trainer.accumulate_grad_batches = accumulate
    trainer.val_check_interval = cfg.validate_every * accumulate
    run.world_size = trainer.world_size
    return trainer


def fit(cfg: DictConfig, run: Run, trainer: pl.Trainer, model: Any, datamodule: Any) -> None:
    """Train, take the best weights, validate, test where there are test rows, draw the curves, export."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    run.source, run.data_facts = _describe(datamodule)
    if trainer.is_global_zero:
        with replaced_whole(run.directory / TOKENIZER) as directory:
            datamodule.tokenizer.save(directory, datamodule.max_length)
    trainer.fit(model, datamodule, ckpt_path=_checkpoint(cfg), weights_only=True)
    run.metrics.update(trainer.callback_metrics)
    run.metrics.update(_take_best_weights(trainer, model, datamodule))
    if len(datamodule.stores["test"]):
        run.metrics.update(trainer.test(model, datamodule, verbose=False)[0])
    if trainer.is_global_zero:
        plot_curves(run.directory)
        model.plot(run.directory / "plots", datamodule.tokenizer)
        export_run(run, model, datamodule)
    _tell(run.metrics)


def evaluate(cfg: DictConfig, run: Run, trainer: pl.Trainer, model: Any, datamodule: Any) -> None:
    """stage=validate|test: the scores of a run's best weights."""
    datamodule.prepare_data()
    datamodule.setup(cfg.stage)
    split = "val" if cfg.stage == "validate" else "test"
    if not len(datamodule.stores[split]):
        raise ConfigError(
            f"stage={cfg.stage}: the corpus has no such rows; name a file with data.{split}=FILE"
        )
    run.source, run.data_facts = _describe(datamodule)
    run.metrics.update(getattr(trainer, cfg.stage)(model, datamodule, verbose=False)[0])
    _tell(run.metrics)


def predict(cfg: DictConfig, run: Run) -> None:
    """stage=predict: a run or an export does one of its technique's tasks on texts; a line of JSON for each."""
    model, inputs = load_for_prediction(cfg.ckpt_path, trusted=cfg.model._target_)
    trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    model = model.to(trainer.strategy.root_device).eval()
    task = getattr(model, f"predict_{cfg.predict.task}")
    texts = read_texts(cfg.predict.input)
    output = Path(cfg.predict.output or run.directory / "predictions.jsonl").expanduser()
    run.source = str(cfg.predict.input)
    with written_lines(output) as write, torch.inference_mode():
        for start in range(0, len(texts), cfg.predict.batch_size):
            for result in task(texts[start : start + cfg.predict.batch_size], inputs):
                line = write(result)
                if len(texts) <= SHOWN_PREDICTIONS:
                    print(line if len(line) < SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} ...")
    log.info(f"{len(texts)} predictions in {output}")


def vocabulary(cfg: DictConfig, run: Run, datamodule: Any) -> None:
    """stage=vocabulary: the tokenizer that the config describes, saved in the run; reads texts only to count them."""
    datamodule.prepare_tokenizer()
    tokenizer = datamodule.tokenizer
    directory = run.directory / "tokenizer"
    with replaced_whole(directory) as building:
        tokenizer.save(building, datamodule.max_length)
    origin = tokenizer.origin
    run.source = datamodule.describe()["source"]
    run.metrics = {
        "vocabulary/size": tokenizer.vocab_size,
        "vocabulary/kept": origin.kept,
        "vocabulary/dropped": origin.dropped,
        "vocabulary/added": origin.added,
    }
    _tell_vocabulary(tokenizer)
    log.info(f"to use it: tokenizer.init_from={directory}")


def inspect_data(run: Run, datamodule: Any) -> None:
    """data.inspect=true: what the corpus holds, as a report, inspection.json and pictures; nothing is trained."""
    run.stage = "inspect"
    facts = inspect_corpus(datamodule)
    run.source, run.data_facts = _describe(datamodule)
    log.info("\n".join(["what the corpus holds", "", *report(facts), ""]))
    write_whole(run.directory / "inspection.json", json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    plot_lengths(run.directory / "plots" / "lengths.png", facts)
    plot_labels(run.directory / "plots" / "labels.png", facts)
    log.info("examples of all splits in inspection.json, pictures in plots/")


def _checkpoint(cfg: DictConfig) -> Path | None:
    try:
        return find_checkpoint(cfg.ckpt_path, HydraConfig.get().runtime.output_dir, cfg.stage)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _take_best_weights(trainer: pl.Trainer, model: Any, datamodule: Any) -> dict[str, float]:
    """Load the weights with the lowest monitored loss into `model`; returns their validation scores.

    The last validation of the fit may lie before its last step, so the final weights are scored once more.
    """
    if not len(datamodule.stores["val"]):
        return {}
    best = next((c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)), None)
    # The average is the model's own weights by now; the callback would put it in the place of others once more.
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
    final = trainer.validate(model, datamodule, verbose=False)[0]
    score = None if best is None else best.best_model_score
    if best is None or final[best.monitor] == score:
        return final
    if score is None or final[best.monitor] < score:
        trainer.save_checkpoint(Path(best.dirpath) / "best.ckpt")
        return final
    state = trainer.strategy.checkpoint_io.load_checkpoint(best.best_model_path)
    model.load_state_dict(state["state_dict"])
    return trainer.validate(model, datamodule, verbose=False)[0]


def _describe(datamodule: Any) -> tuple[str, dict[str, Any]]:
    """The corpus' name for the summary, and its facts."""
    description = datamodule.describe()
    splits = {name: store.facts for name, store in datamodule.stores.items()}
    counts = {
        name: {key: value for key, value in facts.items() if key != "arrays"}
        for name, facts in splits.items()
    }
    return description["source"], {
        **description,
        "vocab_size": datamodule.tokenizer.vocab_size,
        "splits": counts,
    }


def _tell(metrics: dict[str, Any]) -> None:
    for name in score_names(metrics):
        log.info(f"{name:32} {float(metrics[name]):.4f}")


def _tell_vocabulary(tokenizer: Tokenizer) -> None:
    origin = tokenizer.origin
    kept = {"vocabulary": "of the vocabulary that was there", "texts": "special tokens and characters"}
    dropped = f", {origin.dropped:,} others of it dropped" if origin.dropped else ""
    log.info(f"{tokenizer.vocab_size:,} entries: {origin.kept:,} {kept[origin.base]}{dropped}")
    if origin.added:
        words = tokenizer.vocab[-origin.added :]
        shown = (
            words[:SHOWN_WORDS]
            + ["..."] * (len(words) > 2 * SHOWN_WORDS)
            + words[SHOWN_WORDS:][-SHOWN_WORDS:]
        )
        log.info(f"{origin.added:,} words added ({origin.words}): {' '.join(shown)}")
