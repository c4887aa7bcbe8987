"""The steps of train.py: what is built from a composed config, and what each stage does with it."""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate, to_absolute_path
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from pytorch_lightning.strategies import FSDPStrategy

from datamodules.atomic import write_whole
from datamodules.clue import check_submission, submission_line
from datamodules.inspection import inspect_corpus
from datamodules.tokenizers.base import Tokenizer, load_tokenizer
from launch.callbacks import Interruption, RunMetrics
from launch.checkpoint_io import AtomicCheckpointIO
from launch.data_plots import plot_labels, plot_lengths
from launch.data_report import report
from launch.export import export_run, score_names
from launch.leaderboard import collect, typed_metric, write
from launch.machine import check_compiler
from launch.plots import plot_curves
from launch.predict import (
    TOKENIZER,
    load_for_prediction,
    load_technique,
    read_queries,
    run_directory,
    written_lines,
)
from launch.run_dir import ConfigError, Run, find_checkpoint, quieten, replaced_whole
from launch.signatures import show

log = logging.getLogger(__name__)

EVALUATIONS = ("validate", "test")
# For which ranks wait while one reads and tokenizes a corpus.
PREPARE_TIMEOUT = timedelta(days=1)
# Of the words that a vocabulary got, so many from either end are printed.
SHOWN_WORDS = 8
# So few predictions are printed too, each cut to so many characters.
SHOWN_PREDICTIONS, SHOWN_CHARACTERS = 5, 400


def open_run(cfg: DictConfig) -> Run:
    """The run's directory, as a context manager; seeds everything that draws."""
    quieten()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    return Run.of(cfg)


def build_datamodule(cfg: DictConfig) -> pl.LightningDataModule:
    """The corpus. A stage that evaluates a run takes the run's tokenizer and corpus, changed by what was typed."""
    node = cfg.data
    if cfg.stage in EVALUATIONS:
        evaluated = run_directory(cfg.ckpt_path)
        node = OmegaConf.to_container(node, resolve=True)
        saved = OmegaConf.to_container(OmegaConf.load(evaluated / "config.yaml").data)
        chosen = any(override.startswith("data=") for override in HydraConfig.get().overrides.task)
        if saved["_target_"] == node["_target_"] or not chosen:
            node = {**saved, **_typed(cfg, "data")}
        if "tokenizer" in node:
            node["tokenizer"] = load_tokenizer(evaluated / TOKENIZER)
    return instantiate(node, _recursive_=False, _convert_="all")


def build_model(cfg: DictConfig, datamodule: pl.LightningDataModule) -> pl.LightningModule:
    """The technique: a run's, or a new one whose weights are made when the corpus' facts are known."""
    if cfg.stage in EVALUATIONS:
        run, trusted = run_directory(cfg.ckpt_path), cfg.model._target_
        model = load_technique(run, _checkpoint(cfg), trusted, _typed(cfg, "model"))
    else:
        model = instantiate(cfg.model, _recursive_=False, _convert_="all")
        try:
            model.check_corpus(datamodule)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if cfg.compile:
        torch.compiler.reset()  # the jobs of a sweep share a process, and with it the limit on graphs of one function
        model.compile(mode=None if cfg.compile is True else cfg.compile)
    return model


def build_trainer(cfg: DictConfig, run: Run, datamodule: pl.LightningDataModule) -> pl.Trainer:
    """The machine, with the callbacks and loggers of the config."""
    run.run_metrics = RunMetrics()
    loggers = [instantiate(node) for node in (cfg.get("logger") or {}).values()] if cfg.stage == "fit" else []
    callbacks = [instantiate(node) for node in (cfg.get("callbacks") or {}).values()]
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
    if isinstance(trainer.limit_train_batches, int):
        trainer.limit_train_batches *= accumulate
    if cfg.compile:
        check_compiler(trainer.strategy.root_device.type, f"compile={show(cfg.compile)}")
    if isinstance(trainer.strategy, FSDPStrategy):
        log.warning(
            "trainer=fsdp: tried on no GPU yet; its shards have one dimension, so weight decay reaches none of them"
        )
    run.world_size = trainer.world_size
    return trainer


def fit(cfg: DictConfig, run: Run, trainer: pl.Trainer, model: Any, datamodule: Any) -> None:
    """Train, take the best weights, validate, test where there are test rows, draw the curves, export."""
    _prepare(trainer, datamodule)
    datamodule.setup("fit")
    run.source, run.data_facts = _describe(datamodule)
    run.metrics.update(datamodule.metric_values())
    if trainer.is_global_zero and datamodule.tokenizer is not None:
        with replaced_whole(run.directory / TOKENIZER) as directory:
            datamodule.tokenizer.save(directory, datamodule.max_length)
    trainer.fit(model, datamodule, ckpt_path=_checkpoint(cfg), weights_only=True)
    _drop_requeue_checkpoint(trainer)
    run.metrics.update(trainer.callback_metrics)
    run.metrics.update(_take_best_weights(trainer, model, datamodule))
    if model.can_score(datamodule, "test"):
        run.metrics.update(trainer.test(model, datamodule, verbose=False)[0])
    if trainer.is_global_zero:
        plot_curves(run.directory)
        model.plot(run.directory / "plots", datamodule.tokenizer)
        export_run(run, model, datamodule)
    _tell(run.metrics)


def evaluate(cfg: DictConfig, run: Run, trainer: pl.Trainer, model: Any, datamodule: Any) -> None:
    """stage=validate|test: the scores of a run's best weights."""
    _prepare(trainer, datamodule)
    datamodule.setup(cfg.stage)
    split = "val" if cfg.stage == "validate" else "test"
    if not model.can_score(datamodule, split):
        what = "labels in its" if datamodule.num_rows(split) else "rows of a"
        way_out = "" if datamodule.tokenizer is None else f"; name a file with data.{split}=FILE"
        raise ConfigError(f"stage={cfg.stage}: the corpus has no {what} {split} split{way_out}")
    run.source, run.data_facts = _describe(datamodule)
    run.metrics.update(getattr(trainer, cfg.stage)(model, datamodule, verbose=False)[0])
    if trainer.is_global_zero:
        model.plot(run.directory / "plots", datamodule.tokenizer)
    _tell(run.metrics)


def predict(cfg: DictConfig, run: Run) -> None:
    """stage=predict: a run or an export does one of its technique's tasks on texts or arrays; a line of JSON for each.

    The throughput is that of tokenizer and network; reading and writing files is not in it.
    """
    model, inputs = load_for_prediction(cfg.ckpt_path, cfg.model._target_, _typed(cfg, "model"))
    trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    model = model.to(trainer.strategy.root_device).eval()
    task = getattr(model, f"predict_{cfg.predict.task}")
    queries = read_queries(cfg.predict.input, inputs)
    submits = cfg.predict.format == "clue"
    if submits:
        check_submission(model.hparams.facts, [query.id for query in queries], str(cfg.predict.input))
    output = Path(cfg.predict.output or run.directory / "predictions.jsonl").expanduser()
    run.source = str(cfg.predict.input)
    run.run_metrics = RunMetrics()
    with written_lines(output) as write, torch.inference_mode():
        for start in range(0, len(queries), cfg.predict.batch_size):
            batch, started = queries[start : start + cfg.predict.batch_size], time.perf_counter()
            results = task([query.content for query in batch], inputs)
            run.run_metrics.count(len(batch), 0, time.perf_counter() - started)
            for query, result in zip(batch, results, strict=True):
                if submits:
                    result = submission_line(query.id, result["label"], model.hparams.facts)
                elif query.id is not None:
                    result = {"id": query.id, **result}
                line = write(result)
                if len(queries) <= SHOWN_PREDICTIONS:
                    print(line if len(line) < SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} ...")
    log.info(f"{len(queries)} predictions in {output}")


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


def compare(cfg: DictConfig, run: Run) -> None:
    """stage=compare: the leaderboard of finished runs, by the metric that was typed or else by their own."""
    directories = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs
    jobs = collect([to_absolute_path(str(Path(directory).expanduser())) for directory in directories])
    run.source = ", ".join(directories)
    print(write(jobs, run.directory, typed_metric(run.overrides)))


def inspect_data(run: Run, datamodule: Any) -> None:
    """data.inspect=true: what the corpus holds, as a report, inspection.json and pictures; nothing is trained."""
    run.stage = "inspect"
    facts = inspect_corpus(datamodule)
    run.source, run.data_facts = _describe(datamodule)
    run.metrics.update(datamodule.metric_values())
    log.info("\n".join(["what the corpus holds", "", *report(facts), ""]))
    write_whole(run.directory / "inspection.json", json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    plot_lengths(run.directory / "plots" / "lengths.png", facts)
    plot_labels(run.directory / "plots" / "labels.png", facts)
    log.info("examples of all splits in inspection.json, pictures in plots/")


def _typed(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The options of a group that were typed one by one, with their values."""
    keys = [override.split("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task]
    names = [key.split(".")[1] for key in keys if key.startswith(f"{group}.")]
    if not names:
        return {}
    node = OmegaConf.to_container(cfg[group], resolve=True)
    return {name: node[name] for name in names}


def _prepare(trainer: pl.Trainer, datamodule: pl.LightningDataModule) -> None:
    """Read and tokenize once on each machine, before the run asks what there is; the other ranks wait."""
    if trainer.world_size == 1:
        datamodule.prepare_data()
        return
    trainer.strategy.setup_environment()  # from here on ranks can wait for each other
    if trainer.is_global_zero:
        log.info(f"{trainer.world_size} ranks ({torch.distributed.get_backend()})")
    if trainer.local_rank == 0:
        datamodule.prepare_data()
    # Of its own: for the trainer's group a rank that prepares a large corpus would be one that is gone.
    patient = torch.distributed.new_group(backend="gloo", timeout=PREPARE_TIMEOUT)
    torch.distributed.barrier(patient)
    torch.distributed.destroy_process_group(patient)


def _drop_requeue_checkpoint(trainer: pl.Trainer) -> None:
    """Under Slurm Lightning loads it wherever it is given no checkpoint: the evaluation that follows the training would be
    that of the step at which the job was requeued, and so would the export."""
    if trainer.is_global_zero:
        for path in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
            path.unlink()
    trainer.strategy.barrier()


def _checkpoint(cfg: DictConfig) -> Path | None:
    try:
        return find_checkpoint(cfg.ckpt_path, HydraConfig.get().runtime.output_dir, cfg.stage)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _take_best_weights(trainer: pl.Trainer, model: Any, datamodule: Any) -> dict[str, float]:
    """Load the weights with the best monitored score into `model`; returns their validation scores.

    The last validation of the fit may lie before its last step, so the final weights are scored once more.
    """
    if not model.can_score(datamodule, "val"):
        return {}
    # Lightning adds one of its own, which monitors nothing, where there is none.
    checkpoints = (c for c in trainer.callbacks if isinstance(c, ModelCheckpoint))
    best = next((c for c in checkpoints if c.monitor is not None), None)
    # The average is the model's own weights by now; the callback would put it in the place of others once more.
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
    final = trainer.validate(model, datamodule, verbose=False)[0]
    score = None if best is None else best.best_model_score
    if best is None or final[best.monitor] == score:
        return final
    if score is None or (final[best.monitor] < score) == (best.mode == "min"):
        trainer.save_checkpoint(Path(best.dirpath) / "best.ckpt")
        return final
    state = trainer.strategy.checkpoint_io.load_checkpoint(best.best_model_path)
    model.load_state_dict(state["state_dict"])
    return trainer.validate(model, datamodule, verbose=False)[0]


def _describe(datamodule: Any) -> tuple[str, dict[str, Any]]:
    """The corpus' name for the summary, and its facts."""
    facts = datamodule.summary()
    return facts["source"], facts


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
