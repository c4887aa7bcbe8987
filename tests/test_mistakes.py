"""What a user can get wrong, and the exact words that answer it; nothing is started, no directory is made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import version
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from launch.check import check_command_line
from launch.cli import VERSION_BASE, register_resolvers
from launch.explain import compose, config_loader

REPOSITORY = Path(__file__).resolve().parents[1]

QUOTES = "a text with spaces, quotes, brackets or letters that are not ASCII needs quotes"
OPTIONS_OF_WOBERT = (
    "backbone, optimizer, scheduler, init_from, expand_vocabulary, new_rows, mask_rate, mask_token_rate, "
    "random_token_rate, whole_word_masking, mask_special_tokens, attention, seed, regularizer"
)
PRECISIONS = "one of 32-true, bf16-mixed, bf16-true, 16-mixed, 16-true, 64-true, bf16, 16, 32, 64"

# What is typed -> the lines that are told, all of them.
MISTAKES = [
    # Names
    ("modle=wobert", ["modle: no such option; did you mean model?"]),
    (
        "model=wobret",
        [
            "model=wobret: there is no model/wobret; did you mean wobert? (there are: bert, classifier, dialogpt, wobert)"
        ],
    ),
    (
        "model/backbone=huge",
        [
            "model/backbone=huge: there is no model/backbone/huge (there are: base, cnn, gpt_base, gpt_small, gpt_tiny, image, mlp, small, text, tiny, vector)"
        ],
    ),
    (
        "callbacks=[default,earlystopping]",
        [
            "callbacks=[default,earlystopping]: there is no callbacks/earlystopping; did you mean "
            "early_stopping? (there are: default, early_stopping, ema)"
        ],
    ),
    (
        "model=wobert model/loss=focal",
        ["model=wobert has no group loss; these have it: model=classifier"],
    ),
    (
        "+model/loss=focal",
        [f"model.loss: no such option of WoBERT (there are: {OPTIONS_OF_WOBERT})"],
    ),
    ("model/optimiser=adamw", ["model=wobert has no group optimiser; did you mean optimizer?"]),
    ("backbone=tiny", ["backbone: no such option; did you mean model/backbone=tiny?"]),
    ("max_stepz=3", ["max_stepz: no such option; did you mean max_steps?"]),
    ("lr=3", ["lr: no such option; did you mean model.optimizer.lr?"]),
    ("optimizer.lr=3", ["optimizer.lr: no such option; did you mean model.optimizer.lr?"]),
    (
        "model/optimizer.lr=3",
        ["model/optimizer.lr=3: an option is model.optimizer.lr=3, with dots; only a choice has /"],
    ),
    ("model.mask_rat=.1", ["model.mask_rat: no such option; did you mean mask_rate?"]),
    (
        "model.backbone.hiden_size=64",
        ["model.backbone.hiden_size: no such option; did you mean hidden_size?"],
    ),
    (
        "data.tokenizer.min_count=5",
        ["data.tokenizer.min_count: data.tokenizer is taken from tokenizer; type tokenizer.min_count=5"],
    ),
    ("model.optimizer.lr.x=3", ["model.optimizer.lr.x: model.optimizer.lr is a value, it has no options"]),
    (
        "model.optimizer.betas.5=.9",
        ["model.optimizer.betas.5: the list model.optimizer.betas has 2 items, counted from 0"],
    ),
    ("+model.los=focal", [f"model.los: no such option of WoBERT (there are: {OPTIONS_OF_WOBERT})"]),
    ("+model.facts={}", [f"model.facts: no such option of WoBERT (there are: {OPTIONS_OF_WOBERT})"]),
    (
        "+model.optimizer.weigth_decay=0",
        ["model.optimizer.weigth_decay: no such option of AdamW; did you mean weight_decay?"],
    ),
    ("+trainer.max_epoch=3", ["trainer.max_epoch: no such option of Trainer; did you mean max_epochs?"]),
    ("+trainer.logger=false", ["trainer.logger: is chosen with the group: logger=NAME"]),
    ("+predict.tasks=embed", ["predict.tasks: no such option; did you mean task?"]),
    ("+lamda=3", ["lamda: no such option"]),
    ("hydra.run.dr=x", ["hydra.run.dr: no such option; did you mean dir?"]),
    # How it is typed
    ("wobert", ["wobert: is no option=value; did you mean model=wobert?"]),
    ("max_steps", ["max_steps: is no option=value; type max_steps=VALUE"]),
    ("=3", ["=3: the name before = is missing"]),
    (["data", "=", "clue"], ["data = clue: type it without spaces: data=clue"]),
    (["seed=", "3"], ["seed= 3: type it without spaces: seed=3"]),
    ("model=", ["model=: has no value (there are: bert, classifier, dialogpt, wobert)"]),
    ("trainer.devices=", ['trainer.devices=: has no value; null is none, "" an empty text']),
    (
        "model=null",
        ["model=null: must be the name of a choice (there are: bert, classifier, dialogpt, wobert)"],
    ),
    (["data.split=[0.8,0.2"], ["data.split=[0.8,0.2: [ is not closed; type 'data.split=[0.8,0.2]'"]),
    (
        ["predict.input=[今天[MASK]很好]"],
        [f"predict.input=[今天[MASK]很好]: {QUOTES}; type 'predict.input=[\"今天[MASK]很好\"]'"],
    ),
    (["data.source=/语料/clue"], [f"data.source=/语料/clue: {QUOTES}; type 'data.source=\"/语料/clue\"'"]),
    (
        "model.optimizer.betas[0]=.9",
        [
            "model.optimizer.betas[0]=.9: the name before = is not one; "
            "an item of a list is model.optimizer.betas.0=.9"
        ],
    ),
    (
        "seed=1,2",
        [
            "seed=1,2: several values are a sweep, which needs -m; a list is typed 'seed=[1,2]', "
            "a text 'seed=\"1,2\"'"
        ],
    ),
    (
        "callbacks=default,ema",
        [
            "callbacks=default,ema: a list of choices is typed 'callbacks=[default,ema]'; "
            "a sweep over them needs -m"
        ],
    ),
    ("seed=range(3)", ["seed=range(3): a sweep needs -m: python train.py -m ... 'seed=range(3)'"]),
    ("seed=1 seed=2", ["seed: given twice: seed=1 and seed=2"]),
    ("model=bert model=wobert", ["model: given twice: model=bert and model=wobert"]),
    ("++model=bert", ["++model=bert: a group is chosen without ++: model=bert"]),
    ("+seed=3", ["+seed=3: seed is there already; type seed=3"]),
    ("~model.los", ["~model.los: there is no model.los to remove"]),
    ("~callbacks", ["~callbacks: cannot be removed; to choose none type callbacks=[]"]),
    ("stage='fit", ["stage='fit: ' is not closed; type 'stage=\"fit\"'"]),
    (
        "model.optimizer=adamw",
        ["model.optimizer=adamw: must be a mapping or null; a choice is typed model/optimizer=adamw"],
    ),
    # Types and ranges
    ("seed=one", ["seed=one: must be a whole number"]),
    ("seed=-1", ["seed=-1: must satisfy 0 <= seed < 4294967296"]),
    (
        "stage=vocabulary ckpt_path=last predict.task=embed",
        [
            "predict.task=embed: is used with stage=predict only",
            "ckpt_path=last: is not used with stage=vocabulary",
        ],
    ),
    ("model.expand_vocabulary=0", ["model.expand_vocabulary=0: must be >= 1"]),
    ("model.new_rows=zero", ["model.new_rows=zero: must be one of mean, random"]),
    (
        "stage=tset",
        ["stage=tset: must be one of fit, validate, test, predict, vocabulary, compare; did you mean test?"],
    ),
    ("max_steps=1e3", ["max_steps=1000.0: must be a whole number or null; write 1000"]),
    ("max_steps=0", ["max_steps=0: must be -1 or >= 1"]),
    ("max_time=10", ["max_time=10: must be DD:HH:MM:SS, for example 00:00:10:00 for ten minutes"]),
    ("max_steps=-1", ["max_steps, max_epochs, max_time: the run has no end; limit one of them"]),
    ("model.mask_rate=true", ["model.mask_rate=true: must be a number"]),
    ("model.mask_rate=1.5", ["model.mask_rate=1.5: must satisfy 0 < mask_rate < 1"]),
    (
        "model.attention=padd",
        ["model.attention=padd: must be one of auto, unpadded, padded; did you mean padded?"],
    ),
    (
        "model.scheduler.warmup='1e-1'",
        ["model.scheduler.warmup=1e-1: must be a number; this is text, write it without quotes"],
    ),
    ("model.optimizer.lr=abc", ["model.optimizer.lr=abc: must be a number"]),
    ("model.optimizer.lr=-1", ["model.optimizer.lr=-1: must be > 0"]),
    ("model.optimizer.betas=[0.9]", ["model.optimizer.betas=[0.9]: must be a list of 2 values"]),
    (
        "model.optimizer.betas=[0.9,2]",
        ["model.optimizer.betas=[0.9,2]: each item must satisfy 0 <= item < 1"],
    ),
    ("data.split=[0.8,x]", ["data.split=[0.8,x]: must be a list in which each item is a number or null"]),
    ("data.max_length=3", ["data.max_length=3: must be >= 4"]),
    ("callbacks.best.mode=most", ["callbacks.best.mode=most: must be one of min, max"]),
    # The machine
    (
        "trainer=dpd",
        [
            "trainer=dpd: there is no trainer/dpd; did you mean ddp? (there are: auto, cpu, ddp, ddp_cpu, fsdp, gpu, "
            "slurm)"
        ],
    ),
    ("precision=bf16mixed", [f"precision=bf16mixed: must be {PRECISIONS} or null; did you mean bf16-mixed?"]),
    ("precision=fp16", [f"precision=fp16: must be {PRECISIONS} or null; did you mean bf16?"]),
    (
        "compile=max-autotun",
        [
            "compile=max-autotun: must be one of default, reduce-overhead, max-autotune or true or false; did you "
            "mean max-autotune?"
        ],
    ),
    (
        "trainer.accelerator=gpuu",
        ["trainer.accelerator=gpuu: must be one of auto, cpu, gpu, cuda, mps; did you mean gpu?"],
    ),
    ("trainer.devices=0", ["trainer.devices=0: must be -1 or >= 1"]),
    ("trainer.overfit_batches=-1", ["trainer.overfit_batches=-1: must be >= 0"]),
    (
        "trainer.strategy=ddp_spawn",
        ["trainer.strategy=ddp_spawn: train.py starts the processes itself; type trainer.strategy=ddp"],
    ),
    (
        "trainer=ddp trainer.strategy=ddp_notebook_find_unused_parameters_true",
        [
            "trainer.strategy=ddp_notebook_find_unused_parameters_true: train.py starts the processes itself; type "
            "trainer.strategy=ddp_find_unused_parameters_true"
        ],
    ),
    (
        "trainer.strategy=ddp_static",
        [
            "trainer.strategy=ddp_static: must be one of auto, ddp, ddp_find_unused_parameters_false, "
            "ddp_find_unused_parameters_true, fsdp, fsdp_cpu_offload or a mapping"
        ],
    ),
    (
        "trainer=ddp +trainer.strategy.start_method=spawn",
        ["trainer.strategy.start_method: train.py starts the processes itself; leave it out"],
    ),
    (
        "trainer=ddp +trainer.strategy.find_unused_paramters=true",
        [
            "trainer.strategy.find_unused_paramters: no such option of DDPStrategy; did you mean "
            "find_unused_parameters?"
        ],
    ),
    (
        "trainer=ddp trainer.strategy.static_graph=1",
        ["trainer.strategy.static_graph=1: must be true or false"],
    ),
    (
        "trainer=fsdp trainer.strategy.sharding_strategy=FULL",
        [
            "trainer.strategy.sharding_strategy=FULL: must be one of FULL_SHARD, SHARD_GRAD_OP, HYBRID_SHARD, "
            "NO_SHARD"
        ],
    ),
    (
        "trainer=fsdp trainer.strategy.state_dict_type=sharded",
        ["trainer.strategy.state_dict_type=sharded: must be one of full"],
    ),
    (
        "trainer=fsdp +trainer.strategy.limit_all_gather=false",
        [
            "trainer.strategy.limit_all_gather: no such option of FSDPStrategy; did you mean limit_all_gathers?"
        ],
    ),
    # What must be there, and what must not be used
    ("seed=???", ["seed: is missing; it must be given"]),
    ("seed=${sed}", ["seed=${sed}: refers to sed, which is not there"]),
    ("~model/backbone", ["model.backbone: is missing; WoBERT needs it"]),
    ("~data", ["data: is missing; choose one with data=NAME"]),
    ("callbacks.best=null", ["callbacks.best: has no _target_; to leave it out type ~callbacks.best"]),
    (
        "model._target_=lightning_modules.wobert.WoBRT",
        [
            "model._target_=lightning_modules.wobert.WoBRT: there is no WoBRT in lightning_modules.wobert; "
            "did you mean WoBERT?"
        ],
    ),
    (
        "model._target_=lightning_module.wobert.WoBERT",
        [
            "model._target_=lightning_module.wobert.WoBERT: there is no module lightning_module "
            "(code outside of this repository: PYTHONPATH=/the/folder/that/holds/it python train.py ...)"
        ],
    ),
    (
        "model.optimizer._target_=os.system",
        [
            "model.optimizer._target_=os.system: must be a class below datamodules., lightning_modules., "
            "torch.optim."
        ],
    ),
    ("hydra.searchpath=[/nowhere]", ["hydra.searchpath=/nowhere: there is no such directory"]),
    # What does not fit together
    (
        "optimized_metric=val/los",
        ["optimized_metric=val/los: WoBERT logs no such metric; did you mean val/loss?"],
    ),
    (
        "callbacks.best.monitor=val_loss",
        ["callbacks.best.monitor=val_loss: WoBERT logs no such metric; did you mean val/loss?"],
    ),
    ("predict.task=embed", ["predict.task=embed: is used with stage=predict only"]),
    ("ckpt_path=/nowhere", ["ckpt_path=/nowhere: no such file or directory"]),
    ("stage=test", ["ckpt_path: stage=test needs it: a run directory, a .ckpt file"]),
    (
        "stage=predict",
        [
            "predict.task: stage=predict needs it",
            """predict.input: stage=predict needs it: a file, or 'predict.input=["text","text"]'""",
            "ckpt_path: stage=predict needs it: a run directory, a .ckpt file or an export/",
        ],
    ),
    # Several at once: those of the command line, then those of the config
    (
        "model.mask_rat=.1 model/loss=focal +data.max_len=3 seed=x model.optimizer.lr=0",
        [
            "model.mask_rat: no such option; did you mean mask_rate?",
            "model=wobert has no group loss; these have it: model=classifier",
            "seed=x: must be a whole number",
            "model.optimizer.lr=0: must be > 0",
            "data.max_len: no such option of CLUE; did you mean max_length?",
        ],
    ),
]

SWEEPS = [
    (
        "seed=1,2 model.mask_rate=0.1,2",
        ["model.mask_rate=2: must satisfy 0 < mask_rate < 1  [job seed=1 model.mask_rate=2 and 1 more]"],
    ),
    (
        "model=wobert,brt seed=x",
        [
            "seed=x: must be a whole number",
            "model=brt: there is no model/brt; did you mean bert? (there are: bert, classifier, dialogpt, wobert)  [job model=brt]",
        ],
    ),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A directory without runs, and what Hydra's own main prepares."""
    monkeypatch.chdir(tmp_path)
    version.setbase(VERSION_BASE)
    setup_globals()
    register_resolvers()


def told(typed, multirun=False):
    arguments = typed.split(" ") if isinstance(typed, str) else typed
    return check_command_line(config_loader(REPOSITORY / "conf"), "train", arguments, multirun)


@pytest.mark.parametrize("typed, lines", MISTAKES, ids=[str(typed) for typed, _ in MISTAKES])
def test_mistake(typed, lines, tmp_path):
    assert told(typed) == lines
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("typed, lines", SWEEPS, ids=[typed for typed, _ in SWEEPS])
def test_mistake_of_a_sweep(typed, lines):
    assert sorted(told(typed, multirun=True)) == sorted(lines)


@pytest.mark.parametrize(
    "typed",
    [
        "model=wobert data=clue",
        "model=bert model.whole_word_masking=true model/backbone=tiny model/scheduler=cosine trainer=cpu",
        "callbacks=[default,early_stopping,ema] logger=wandb debug=fast max_time=00:00:10:00",
        "trainer=gpu logger=none trainer.precision=16-mixed data.split=[0.8,0.1,0.1] data.train=a.json",
        "ckpt_path=last hydra.run.dir=runs/new +model.optimizer.amsgrad=true tokenizer.min_count=1",
    ],
)
def test_what_is_right_passes(typed):
    assert told(typed) == []


@pytest.mark.parametrize(
    "typed, parent",
    [
        ("", "wobert-clue"),
        ("model=bert data=lccc data.inspect=false", "bert-lccc"),
        ("data=lccc data.inspect=true", "inspect-lccc"),
        ("~data.inspect", "wobert-clue"),  # a corpus that has no such option
        ("stage=vocabulary", "vocabulary"),
        ("stage=test ckpt_path=a data.inspect=true", "test"),
    ],
)
def test_the_directory_is_named_by_what_is_done(typed, parent, monkeypatch):
    config, lines = compose(config_loader(REPOSITORY / "conf"), "train", typed.split())
    assert lines == []
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    assert config.hydra.run.dir.startswith(f"runs/{parent}/")
    assert config.hydra.sweep.dir.startswith(f"runs/sweep-{parent}/")


def run_directory(path, status):
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "last.ckpt").touch()
    (path / "summary.json").write_text(json.dumps({"status": status}))
    OmegaConf.save({"model": {"_target_": "lightning_modules.wobert.WoBERT"}}, path / "config.yaml")


@pytest.mark.parametrize(
    "status, what", [("finished", "a finished run"), ("running", "the checkpoint of a run")]
)
def test_a_directory_that_holds_a_run_is_left_alone(status, what, tmp_path):
    run_directory(tmp_path / "a", status)
    assert told("hydra.run.dir=a") == [
        f"hydra.run.dir=a: holds {what}; continue it with ckpt_path=last, or choose another"
    ]
    assert told("hydra.run.dir=a ckpt_path=last") == []
    assert told("hydra.run.dir=a ckpt_path=a") == []


def test_predict_tells_the_tasks_of_the_run(tmp_path):
    run_directory(tmp_path / "a", "finished")
    (tmp_path / "titles.txt").write_text("x\n")
    assert told("stage=predict ckpt_path=a predict.task=fillmask predict.input=titles.txt") == [
        "predict.task=fillmask: no such task of WoBERT; did you mean fill_mask?"
    ]
    checkpoint = "a/checkpoints/last.ckpt"
    assert told(f"stage=predict ckpt_path={checkpoint} predict.task=translate predict.input=title.txt") == [
        "predict.task=translate: no such task of WoBERT (there are: fill_mask, embed)",
        """predict.input=title.txt: no such file; for a text itself type 'predict.input=["title.txt"]'""",
    ]
    assert told("stage=predict ckpt_path=a predict.task=embed predict.input=titles.txt") == []


def test_an_export_predicts_and_does_nothing_else(tmp_path):
    (tmp_path / "export").mkdir()
    technique = {"_target_": "lightning_modules.wobert.WoBERT"}
    (tmp_path / "export" / "kexue.json").write_text(json.dumps(technique))
    (tmp_path / "export" / "config.json").write_text("{}")
    assert told(["stage=predict", "ckpt_path=export", "predict.task=x", 'predict.input=["今天"]']) == [
        "predict.task=x: no such task of WoBERT (there are: fill_mask, embed)"
    ]
    assert told("stage=test ckpt_path=export") == [
        "ckpt_path=export: this directory holds no checkpoints/best.ckpt nor checkpoints/last.ckpt; "
        "to start from its weights: model.init_from=export"
    ]


@pytest.mark.parametrize(
    "arguments, lines",
    [
        (["model.mask_rat=.1", "seed=x"], 2),
        (["seed=x", "model.mask_rate=7"], 2),
        (["-m", "seed=1,2", "model.mask_rate=7"], 1),
    ],
    ids=["override", "config", "sweep"],
)
def test_the_program_ends_with_2_before_a_directory_is_made(arguments, lines, tmp_path):
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "train.py", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == lines, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not any(tmp_path.iterdir())
