"""Trainer and debug presets, precision and torch.compile: they compose with everything, and run where this machine can."""

import functools
import gzip
import inspect
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import version
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from running import REPOSITORY, TINY, finished, metrics, run, summary, values, weights
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers.models.bert.modeling_bert import BertLayer

from launch.check import check_command_line
from launch.cli import VERSION_BASE, register_resolvers
from launch.explain import compose, config_loader
from lightning_modules.wobert import WoBERT

CONF = REPOSITORY / "conf"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


TRAINERS, DEBUGS = names("trainer"), names("debug")
OF_DATA = {
    "text": ("data.train=a.txt",),
    "dialogue": ("data.train=a.txt",),
    "mnist": ("data.source=/corpora/mnist",),
}
WITHOUT_DROPOUT = "model.backbone.hidden_dropout=0"
CONSTANT = ("model/scheduler=constant", "model.scheduler.warmup=0")
SHORT = (*TINY, "logger=csv", "data.tokens_per_batch=300", "log_every=1")


@pytest.fixture
def composing(tmp_path, monkeypatch):
    """What Hydra's own main prepares, in a directory without runs; no variables of Slurm."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_NNODES", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    version.setbase(VERSION_BASE)
    setup_globals()
    register_resolvers()


@pytest.fixture
def trainer_node(composing, monkeypatch):
    """A function that gives the trainer's node of a command line, every value settled."""

    def make(*typed):
        config, lines = compose(config_loader(CONF), "train", list(typed))
        assert lines == []
        OmegaConf.set_struct(config.hydra, False)
        config.hydra.runtime.output_dir = "/the/run"
        monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
        return OmegaConf.to_container(config.trainer, resolve=True)

    return make


def test_there_are_the_presets_that_the_docs_name():
    assert TRAINERS == ["auto", "cpu", "ddp", "ddp_cpu", "fsdp", "gpu", "slurm"]
    assert DEBUGS == ["fast", "limit", "overfit", "profile"]


ARRAYS, DIALOGUES = ("digits", "mnist", "sinusoid2d"), ("dialogue", "lccc")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_goes_with_every_model_and_every_corpus(trainer, composing):
    pairs = itertools.product(names("model"), names("data"))
    if trainer != "auto":  # what fits what does not change with the trainer
        pairs = [*((model, "lccc") for model in names("model")), *(("bert", data) for data in names("data"))]
    for model, data in pairs:
        typed = [f"trainer={trainer}", f"model={model}", f"data={data}", *OF_DATA.get(data, ())]
        told = check_command_line(config_loader(CONF), "train", typed)
        # But for what a model needs and a corpus has not, which no trainer changes.
        assert all(line.startswith(f"model={model}: needs ") for line in told), typed
        misfits = {"classifier": data in DIALOGUES, "dialogpt": data not in DIALOGUES}
        assert bool(told) == misfits.get(model, data in ARRAYS), typed


@pytest.mark.parametrize("debug", DEBUGS)
def test_a_debug_preset_goes_with_every_trainer(debug, composing):
    for trainer in TRAINERS:
        typed = [f"trainer={trainer}", f"debug={debug}"]
        assert check_command_line(config_loader(CONF), "train", typed) == [], typed


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_no_trainer_may_change(trainer, trainer_node):
    base, node = trainer_node("trainer=auto"), trainer_node(f"trainer={trainer}")
    free = {"accelerator", "devices", "num_nodes", "strategy", "precision"}
    assert node.keys() == base.keys()
    assert {name for name in base if node[name] != base[name]} <= free
    assert node["use_distributed_sampler"] is False
    assert node["default_root_dir"] == "/the/run"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_precision_is_the_trainers_unless_it_is_typed(trainer, trainer_node):
    own = "32-true" if trainer in ("auto", "cpu", "ddp_cpu") else "bf16-mixed"
    assert trainer_node(f"trainer={trainer}")["precision"] == own
    assert trainer_node(f"trainer={trainer}", "precision=bf16-true")["precision"] == "bf16-true"
    assert trainer_node(f"trainer={trainer}", "trainer.precision=16-mixed")["precision"] == "16-mixed"


def test_slurm_takes_its_numbers_from_the_allocation(trainer_node, monkeypatch):
    node = trainer_node("trainer=slurm")
    assert (node["num_nodes"], node["devices"]) == (1, 1)
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    node = trainer_node("trainer=slurm")
    assert (node["num_nodes"], node["devices"]) == (2, 8)


@pytest.mark.parametrize("trainer", ["ddp", "ddp_cpu", "slurm"])
def test_ddp_knows_the_options_that_it_is_given(trainer, trainer_node):
    strategy = instantiate(trainer_node(f"trainer={trainer}")["strategy"])
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs.keys() <= inspect.signature(DistributedDataParallel).parameters.keys()
    assert strategy._ddp_kwargs["gradient_as_bucket_view"] is True
    is_slurm = isinstance(strategy.cluster_environment, SLURMEnvironment)
    assert is_slurm == (trainer == "slurm")


def test_fsdp_knows_the_options_that_it_is_given(trainer_node):
    strategy = instantiate(trainer_node("trainer=fsdp")["strategy"])
    assert strategy.kwargs.keys() <= inspect.signature(FullyShardedDataParallel).parameters.keys()
    assert BertLayer in strategy.kwargs["auto_wrap_policy"]._module_classes
    assert strategy._state_dict_type == "full"


def test_gradients_that_are_sharded_are_clipped_by_the_norm_of_all_ranks():
    """FSDP's wrapped model does it; Lightning alone refuses to clip there."""
    asked = []
    backbone = {"_target_": "lightning_modules.networks.text_encoder.TextEncoder"}
    model = WoBERT(backbone, {"_target_": "torch.optim.AdamW", "lr": 1e-3})
    sharded = SimpleNamespace(clip_grad_norm_=asked.append)
    model._trainer = SimpleNamespace(strategy=SimpleNamespace(model=sharded))
    model.configure_gradient_clipping(None, gradient_clip_val=0.0)
    model.configure_gradient_clipping(None, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
    assert asked == [0.5]


# ------------------------------------------------------------------------------------------------ runs on a machine


@pytest.mark.parametrize("trainer", ["auto", "cpu"])
def test_what_every_machine_can_do(trainer, corpus, tmp_path):
    finished(tmp_path / "run", *TINY[1:], f"trainer={trainer}", *corpus, "debug=fast")
    assert summary(tmp_path / "run")["world_size"] == 1


@pytest.mark.parametrize("trainer", ["gpu", "ddp", "fsdp"])
def test_a_machine_without_a_gpu_says_so(trainer, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    outcome = run(tmp_path / "run", *TINY[1:], f"trainer={trainer}", *corpus, "debug=fast")
    assert outcome.code == 2
    assert outcome.err.startswith("trainer.accelerator=gpu: torch ")
    assert outcome.err.endswith(" sees no GPU; use trainer=cpu or trainer=ddp_cpu\n")


def test_slurm_without_srun_says_so(corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    outcome = run(tmp_path / "run", *TINY[1:], "trainer=slurm", *corpus, "debug=fast")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "trainer=slurm: this process is no task of srun; use trainer=ddp on one machine"
    )


def test_a_requeued_job_ends_with_the_weights_that_it_has_trained(corpus, tmp_path, monkeypatch):
    options = (*SHORT, *corpus, *CONSTANT, "validate_every=4", "max_steps=4")
    finished(tmp_path / "plain", *options)
    finished(tmp_path / "stopped", *options, "max_steps=2")
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "stopped/checkpoints/last.ckpt", tmp_path / "run/hpc_ckpt_1.ckpt")
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    finished(tmp_path / "run", *options)
    assert summary(tmp_path / "run")["metrics"] == summary(tmp_path / "plain")["metrics"]
    assert [step for step, _ in values(tmp_path / "run", "train/loss")] == [2, 3]
    assert not list((tmp_path / "run").glob("hpc_ckpt_*"))


# ---------------------------------------------------------------------------------------------------- debug presets

OF_A_RUN = {"config.yaml", "summary.json", "metrics.csv", "checkpoints", "plots", "export", "train.log"}


def left_by(directory: Path) -> set[str]:
    checkpoints = {path.name for path in (directory / "checkpoints").glob("*.ckpt")}
    assert checkpoints == {"best.ckpt", "last.ckpt"}
    assert (directory / "export" / "model.safetensors").is_file()
    assert {"val/loss", "test/loss"} <= set(summary(directory)["metrics"])
    return {path.name for path in directory.iterdir()}


def test_overfit_learns_one_step_by_heart(corpus, tmp_path):
    options = ("debug=overfit", "data.tokens_per_batch=120", "model.optimizer.lr=1e-2", "log_every=1")
    finished(tmp_path / "run", *TINY, "logger=csv", *corpus, *options, "max_steps=120")
    losses = [loss for _, loss in values(tmp_path / "run", "train/loss")]
    assert len(losses) == 120 and losses[0] > 5
    assert losses[-1] < 0.05
    assert left_by(tmp_path / "run") == OF_A_RUN


def test_overfit_repeats_whole_steps_with_their_masks(corpus, tmp_path):
    """Two steps in turn, whole or in micro-batches. At a learning rate of next to nothing their losses stay as they
    are: the rows, the masks and the network (dropout is on in the preset that is overfitted) are the same."""
    options = (*SHORT, *corpus, "debug=overfit", "trainer.overfit_batches=2", "max_steps=6", "log_every=1")
    options += ("model.optimizer.lr=1e-12", "model.backbone.hidden_dropout=0.5")
    finished(tmp_path / "whole", *options)
    finished(tmp_path / "parts", *options, "data.max_tokens_per_device=200")
    whole, parts = (
        [loss for _, loss in values(tmp_path / name, "train/loss")] for name in ("whole", "parts")
    )
    assert whole[0] != whole[1]
    assert whole == pytest.approx(whole[:2] * 3, abs=1e-5)
    assert parts == pytest.approx(whole, abs=1e-5)


def test_limit_goes_the_whole_way_in_small(corpus, tmp_path):
    finished(
        tmp_path / "run", *SHORT, *corpus, "debug=limit", "trainer.limit_train_batches=3", "validate_every=2"
    )
    epochs = {row["epoch"] for row in metrics(tmp_path / "run") if "train/loss" in row}
    assert [step for step, _ in values(tmp_path / "run", "train/loss")] == list(range(6))
    assert epochs == {0, 1}
    assert left_by(tmp_path / "run") == OF_A_RUN


def test_profile_says_where_the_time_goes(corpus, tmp_path):
    outcome = finished(tmp_path / "run", *SHORT, *corpus, "debug=profile")
    profile = tmp_path / "run" / "profile"
    assert f"3 batches profiled: {profile}/operations.txt, trace.json.gz" in outcome.out
    table = (profile / "operations.txt").read_text(encoding="utf-8")
    assert "aten::addmm" in table and "Self CPU" in table and "AdamW.step" in table
    with gzip.open(profile / "trace.json.gz", "rt", encoding="utf-8") as file:
        assert len(json.load(file)["traceEvents"]) > 1000
    assert sum(path.stat().st_size for path in profile.iterdir()) < 2_000_000
    assert left_by(tmp_path / "run") == OF_A_RUN | {"profile"}


# ------------------------------------------------------------------------------------------ precision and torch.compile


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_precision_changes_rounding_only(precision, corpus, tmp_path):
    options = (*SHORT, *corpus, "max_steps=4", "validate_every=4", WITHOUT_DROPOUT)
    for name in ("32-true", precision):
        finished(tmp_path / name, *options, f"precision={name}", "data.max_tokens_per_device=128")
    reference, other = (summary(tmp_path / name)["metrics"] for name in ("32-true", precision))
    for name in ("train/loss", "val/loss", "val/bits_per_char"):
        assert other[name] == pytest.approx(reference[name], rel=5e-3), name
    # Sums over the whole validation are not rounded with the model.
    assert other["baseline/unigram_loss"] == pytest.approx(reference["baseline/unigram_loss"], rel=1e-6)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes, which must not break; they run as they are instead of being compiled."""
    made = []

    def keep(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=keep, fullgraph=True))
    return made


@pytest.mark.parametrize("options", [(), ("model.attention=padded", "precision=bf16-mixed")], ids=" ".join)
def test_compile_makes_two_graphs_and_changes_nothing(options, corpus, tmp_path, graphs):
    options = (*SHORT, *corpus, "max_steps=10", "validate_every=5", WITHOUT_DROPOUT, *options)
    finished(tmp_path / "compiled", *options, "compile=true")
    assert len(graphs) == 2  # for training and for evaluation, though no two batches have the same size
    finished(tmp_path / "plain", *options)
    assert len(graphs) == 2
    assert metrics(tmp_path / "compiled") == metrics(tmp_path / "plain")
    compiled, plain = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in ("compiled", "plain"))
    assert compiled.keys() == plain.keys()


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_with_and_without_compile(corpus, tmp_path, graphs):
    options = (*SHORT, *corpus, *CONSTANT, "validate_every=3")
    finished(tmp_path / "plain", *options, "max_steps=9")
    for steps, compiled, made in ((3, "true", 2), (6, "false", 2), (9, "default", 4)):
        finished(tmp_path / "run", *options, f"max_steps={steps}", f"compile={compiled}", "ckpt_path=last")
        assert len(graphs) == made
    assert metrics(tmp_path / "run")[-1] == metrics(tmp_path / "plain")[-1]
    evaluate = ("trainer=cpu", "stage=validate", f"ckpt_path={tmp_path / 'plain'}", "compile=true")
    finished(tmp_path / "validate", *evaluate)
    assert len(graphs) == 5
    loss = summary(tmp_path / "plain")["metrics"]["val/loss"]
    assert summary(tmp_path / "validate")["metrics"]["val/loss"] == pytest.approx(loss, rel=1e-6)


def test_compile_without_a_compiler_is_told(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    outcome = run(tmp_path / "run", *TINY, *corpus, "debug=fast", "compile=reduce-overhead")
    assert outcome.code == 2
    assert outcome.err == (
        "compile=reduce-overhead: torch.compile needs a compiler, and there is no /nowhere/g++ here; install one "
        "(Debian: apt install g++), name one in CXX (CC on a GPU), or type compile=false\n"
    )


@pytest.mark.slow
def test_compiled_code_computes_what_the_network_does(corpus, tmp_path):
    options = (*SHORT, *corpus, "max_steps=10", "validate_every=5", WITHOUT_DROPOUT)
    for name in ("true", "false"):
        finished(tmp_path / name, *options, f"compile={name}")
    for name in ("train/loss", "val/loss"):
        compiled, plain = (dict(values(tmp_path / run, name)) for run in ("true", "false"))
        assert compiled == pytest.approx(plain, abs=1e-4)
    compiled, plain = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in ("true", "false"))
    assert compiled.keys() == plain.keys()
