"""Training speed of a masked language model: this project against Hugging Face's own way on the same work.

    python benchmarks/masked_lm.py --size small --vocab 21128 --text train.json

The contestants train the same network (one BERT configuration) with the same optimiser on the same texts and
vocabulary, masking 15 % of the tokens, and take about as many REAL tokens a step; padding is not counted.

    ours     WoBERT under pytorch_lightning.Trainer: flat batches from the plan, the vocabulary projected only
             where there is a target
    loop     a bare PyTorch loop as run_mlm_no_trainer.py: DataCollatorForLanguageModeling, random batches
             padded to their longest row, the vocabulary projected at every position
    trainer  transformers.Trainer on such batches, as run_mlm.py --line_by_line; needs accelerate
             (pip install -e ".[bench]")
    blocks   the loop on texts joined and cut into blocks of --max-length, run_mlm.py without --line_by_line:
             no padding, but texts attend to their neighbours. Another task, so it has to be asked for

Everybody's texts are tokenized beforehand. fp32 on a CPU; bf16 autocast on a GPU, and CUDA_VISIBLE_DEVICES=0
where there are several.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import platform
import random
import statistics
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from omegaconf import OmegaConf
from texts import HELP, read_texts
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

from datamodules.build import build
from datamodules.cache import cache_key
from datamodules.corpus import DataError, Row
from datamodules.text import TextDataModule
from datamodules.tokenizers.base import Tokenizer
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.word import WordTokenizer
from launch.run_dir import quieten
from lightning_modules.wobert import WoBERT

CONF = Path(__file__).resolve().parents[1] / "conf" / "model"
GRADIENT_CLIP = 1.0  # the default of transformers.Trainer and of conf/train.yaml
LOG_EVERY = 50
LEARNING_RATE = 1e-4  # safe at every size; it does not change the speed


class Texts(TextDataModule):
    """A list of texts as the training split."""

    def __init__(
        self, texts: list[str], tokenizer: Tokenizer, max_length: int, tokens_per_batch: int, cache_dir: str
    ):
        super().__init__(
            tokenizer=tokenizer,
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            # A step is one micro-batch, as it is for the other contestants.
            max_tokens_per_device=tokens_per_batch + 2 * max_length,
            cache_dir=cache_dir,
        )
        self.texts = texts

    def read(self, split: str) -> Iterator[Row]:
        yield from map(Row, self.texts if split == "train" else [])

    def fingerprint(self, split: str) -> str:
        return cache_key(split, *self.texts)

    def describe(self) -> dict:
        return {"source": "texts"}


class Clock:
    """Seconds between the end of the warm-up steps and the end of the last one."""

    def __init__(self, warmup: int, steps: int, device: str):
        self.bounds = (warmup, warmup + steps)
        self.device = device
        self.done = 0
        self.times: list[float] = []

    def tick(self) -> None:
        """A step has ended."""
        self.done += 1
        if self.done in self.bounds:
            if self.device == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self.times[1] - self.times[0]


@dataclass
class Work:
    """What all contestants do.

    Attributes:
        data: the texts for this project; features: the same rows for the others' collator.
        stock: Hugging Face's own tokenizer class with the same vocabulary.
        config: the network; backbone, optimizer: options with `_target_`.
        rows_per_step: rows that hold `data.tokens_per_batch` tokens on average.
        warmup, steps: untimed and timed optimiser steps of a round.
        device: "cpu" or "cuda".
        directory: for files that have to be somewhere.
    """

    data: Texts
    features: list[dict[str, list[int]]]
    stock: Any
    config: BertConfig
    backbone: dict[str, Any]
    optimizer: dict[str, Any]
    rows_per_step: int
    warmup: int
    steps: int
    device: str
    directory: str

    def clock(self) -> Clock:
        return Clock(self.warmup, self.steps, self.device)

    def network(self) -> BertForMaskedLM:
        return BertForMaskedLM(self.config).to(self.device).train()

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser that `Technique` makes: no decay on what has one dimension."""
        decay = [p for p in network.parameters() if p.ndim > 1]
        no_decay = [p for p in network.parameters() if p.ndim <= 1]
        return build(self.optimizer, [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}])


class Collator:
    """DataCollatorForLanguageModeling that notes how many real tokens and how many places each batch has."""

    def __init__(self, stock: Any):
        self.collator = DataCollatorForLanguageModeling(stock, mlm_probability=0.15)
        self.tokens: list[int] = []
        self.places: list[int] = []

    def __call__(self, features: list[dict[str, list[int]]]) -> Any:
        batch = self.collator(features)
        self.tokens.append(sum(len(row["input_ids"]) for row in features))
        self.places.append(batch["input_ids"].numel())
        return batch

    def speed(self, clock: Clock) -> float:
        """Real tokens a second of the timed steps."""
        return sum(self.tokens[slice(*clock.bounds)]) / clock.seconds


def ours(work: Work) -> float:
    """Real tokens a second of this project."""
    clock, tokens = work.clock(), []

    class Timing(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            tokens.append(batch.num_tokens)
            clock.tick()

    runner = pl.Trainer(
        accelerator="gpu" if work.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if work.device == "cuda" else "32-true",
        max_steps=clock.bounds[1],
        max_epochs=-1,
        gradient_clip_val=GRADIENT_CLIP,
        log_every_n_steps=LOG_EVERY,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Timing()],
    )
    runner.fit(WoBERT(backbone=work.backbone, optimizer=work.optimizer), work.data)
    return sum(tokens[slice(*clock.bounds)]) / clock.seconds


def loop(work: Work) -> float:
    """Real tokens a second of a bare loop over padded batches."""
    return _loop(work, work.features, work.rows_per_step)


def blocks(work: Work) -> float:
    """Real tokens a second of the same loop on joined texts; the last, short block is dropped."""
    ids = [i for feature in work.features for i in feature["input_ids"]]
    size = work.data.max_length
    whole = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    features = [{"input_ids": block, "attention_mask": [1] * size} for block in whole]
    return _loop(work, features, max(1, round(work.data.tokens_per_batch / size)))


def _loop(work: Work, features: list[dict[str, list[int]]], rows: int) -> float:
    clock, collator = work.clock(), Collator(work.stock)
    network = work.network()
    optimizer = work.optimizer_of(network)
    loader = DataLoader(features, batch_size=rows, shuffle=True, collate_fn=collator)
    while clock.done < clock.bounds[1]:
        for batch in loader:
            with torch.autocast(work.device, torch.bfloat16, enabled=work.device == "cuda"):
                loss = network(**batch.to(work.device)).loss
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
            optimizer.step()
            optimizer.zero_grad()
            clock.tick()
            if clock.done == clock.bounds[1]:
                break
    return collator.speed(clock)


def trainer(work: Work) -> float:
    """Real tokens a second of transformers.Trainer on the same padded batches."""
    clock, collator = work.clock(), Collator(work.stock)

    class Timing(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            clock.tick()

    options = transformers.TrainingArguments(
        output_dir=work.directory,
        max_steps=clock.bounds[1],
        per_device_train_batch_size=work.rows_per_step,
        lr_scheduler_type="constant",
        max_grad_norm=GRADIENT_CLIP,
        bf16=work.device == "cuda",
        use_cpu=work.device == "cpu",
        logging_steps=LOG_EVERY,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    network = work.network()
    runner = transformers.Trainer(
        model=network,
        args=options,
        data_collator=collator,
        train_dataset=work.features,
        optimizers=(work.optimizer_of(network), None),
        callbacks=[Timing()],
    )
    runner.remove_callback(transformers.PrinterCallback)
    runner.train()
    return collator.speed(clock)


CONTESTANTS: dict[str, Callable[[Work], float]] = {
    "ours": ours,
    "loop": loop,
    "trainer": trainer,
    "blocks": blocks,
}


def prepare(options: argparse.Namespace, directory: str) -> Work:
    """Tokenize the texts for everybody and choose the network.

    Raises:
        DataError: there is no text, or its vocabulary is larger than `--vocab`.
    """
    texts = read_texts(options.text)
    cls = {"word": WordTokenizer, "char": CharTokenizer}[options.tokenizer]
    tokenizer = cls()
    tokenizer.build(texts, progress=False)
    if options.vocab is not None:
        unused = options.vocab - tokenizer.vocab_size
        if unused < 0:
            raise DataError(f"--vocab {options.vocab}: the texts alone have {tokenizer.vocab_size} tokens")
        tokenizer = cls(vocab=[*tokenizer.vocab, *(f"[unused{i}]" for i in range(unused))])
    tokenizer.save(f"{directory}/tokenizer", options.max_length)
    data = Texts(texts, tokenizer, options.max_length, options.tokens, f"{directory}/cache")
    data.prepare_data()
    data.setup("fit")
    stock = AutoTokenizer.from_pretrained(f"{directory}/tokenizer")
    # Cut in characters first, as this project cuts.
    cut = [text[: options.max_length - 2] for text in texts]
    rows = stock(cut, truncation=True, return_special_tokens_mask=True)
    features = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    backbone = OmegaConf.to_container(OmegaConf.load(CONF / "backbone" / f"{options.size}.yaml"))
    config: BertConfig = build(backbone).config
    config.vocab_size, config.pad_token_id = tokenizer.vocab_size, tokenizer.pad_id
    optimizer = OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / "adamw.yaml"))
    return Work(
        data=data,
        features=features,
        stock=stock,
        config=config,
        backbone=backbone,
        optimizer={**optimizer, "lr": LEARNING_RATE},
        rows_per_step=max(1, round(options.tokens / data.stores["train"].lengths.mean())),
        warmup=options.warmup,
        steps=options.steps,
        device=options.device,
        directory=directory,
    )


def describe(work: Work, options: argparse.Namespace) -> None:
    """Print what is measured."""
    store, tokenizer, stock = work.data.stores["train"], work.data.tokenizer, work.stock
    stock_tokens = sum(len(row["input_ids"]) for row in work.features)
    collator = Collator(stock)
    rows = random.Random(0).sample(work.features, min(len(work.features), 50 * work.rows_per_step))
    for start in range(0, len(rows), work.rows_per_step):
        collator(rows[start : start + work.rows_per_step])
    padding = 1 - sum(collator.tokens) / sum(collator.places)
    parameters = sum(p.numel() for p in work.network().parameters())
    print(
        f"""\
texts: {len(store):,} of {store.lengths.mean():.1f} tokens on average, {store.lengths.max()} at most
tokens: {len(store.tokens):,} by {type(tokenizer).__name__}, {stock_tokens:,} by {type(stock).__name__}
padding in random batches: {padding:.0%} of all places
network: {options.size}, vocabulary {work.config.vocab_size:,}, {parameters / 1e6:.1f} M parameters
machine: {work.device}, {"bf16" if work.device == "cuda" else "fp32"}, {torch.get_num_threads()} threads
versions: Python {platform.python_version()}, torch {torch.__version__}, Lightning {pl.__version__}, \
transformers {transformers.__version__}
a step: about {options.tokens:,} real tokens ({work.rows_per_step} rows)
a round: {work.steps} steps after {work.warmup} untimed ones
"""
    )


def compete(work: Work, names: list[str], rounds: int) -> dict[str, list[float]]:
    """Real tokens a second of each contestant in each round; in a round they run one after the other."""
    speeds: dict[str, list[float]] = {name: [] for name in names}
    print("real tokens/s", *(f"{name:>10}" for name in names))
    for number in range(rounds):
        for name in names:
            pl.seed_everything(number, verbose=False)
            speeds[name].append(CONTESTANTS[name](work))
        print(f"round {number + 1:<7}", *(f"{speeds[name][-1]:10,.0f}" for name in names), flush=True)
    print("median       ", *(f"{statistics.median(speeds[name]):10,.0f}" for name in names))
    first = names[0]
    for other in names[1:]:
        ratios = [a / b for a, b in zip(speeds[first], speeds[other], strict=True)]
        print(
            f"{first} / {other}, by round: median {statistics.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    return speeds


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Measure and print; returns real tokens a second by contestant and round."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", nargs="+", metavar="FILE", help=HELP)
    add("--tokenizer", choices=["word", "char"], default="word", help="default: word")
    add("--size", choices=["tiny", "small", "base"], default="tiny", help="the network's; default: tiny")
    add("--vocab", type=int, metavar="N", help="fill the vocabulary up to N entries (BERT's: 21128)")
    add("--max-length", type=int, default=128, metavar="N", help="longest row in tokens; default: 128")
    add("--tokens", type=int, default=2048, metavar="N", help="real tokens of a step; default: 2048")
    add("--steps", type=int, default=10, metavar="N", help="timed steps of a round; default: 10")
    add("--warmup", type=int, default=3, metavar="N", help="untimed steps before them; default: 3")
    add("--rounds", type=int, default=5, metavar="N", help="default: 5")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=["ours", "loop", "trainer"])
    add("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu", help="default: a GPU if any")
    options = parser.parse_args(arguments)
    if min(options.warmup, options.steps, options.rounds) < 1:
        parser.error("--warmup, --steps and --rounds must be at least 1")
    names = list(dict.fromkeys(options.contestants))
    if "trainer" in names and importlib.util.find_spec("accelerate") is None:
        print('trainer is left out: it needs accelerate, not installed here (pip install -e ".[bench]")\n')
        names.remove("trainer")
    quieten()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        work = prepare(options, directory)
        describe(work, options)
        return compete(work, names, options.rounds)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
