"""Signatures read from source, the check of a composed config, and how the command line ends."""

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hydra import version
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from launch import check
from launch.cli import CONFIG_NAME, VERSION_BASE, register_resolvers
from launch.explain import config_loader
from launch.signatures import (
    TargetError,
    class_attribute,
    describe,
    holds,
    locate,
    misfit,
    signature,
)

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that writes a module of the package `kexue_probe`, which nothing may import."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    folder = tmp_path / "code" / "kexue_probe"
    folder.mkdir(parents=True)

    def write(name, source):
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        for cached in ("_spec", "_statements"):
            getattr(sys.modules["launch.signatures"], cached).cache_clear()

    write("__init__", "raise ImportError('this package is read, not imported')\nfrom .models import *\n")
    return write


def parameters(target):
    return list(signature(locate(target)).parameters)


def test_reads_reexports_aliases_and_inherited_constructors(package):
    package(
        "models",
        """
        from typing import Generic
        from .base import Base as Root

        class Model(Root, Generic[int]):
            pass

        Alias = Model

        def function(a, b=1):
            pass
        """,
    )
    package("base", "class Base:\n    def __init__(self, size: int, *, facts=None): ...\n")
    assert parameters("kexue_probe.Model") == ["size", "facts"]
    assert parameters("kexue_probe.models.Alias") == ["size", "facts"]
    assert parameters("kexue_probe.models.function") == ["a", "b"]
    assert signature(locate("kexue_probe.Model")).parameters["size"].required


def test_follows_kwargs_into_super_and_calls_other_ones_open(package):
    package(
        "models",
        """
        import abc

        class Base(abc.ABC):
            def __init__(self, size, depth=1, width=2): ...

        class Child(Base):
            def __init__(self, extra, **kwargs):
                super().__init__(extra, depth=3, **kwargs)

        class Open(Base):
            def __init__(self, extra, **kwargs):
                configure(**kwargs)
        """,
    )
    child, is_open = (
        signature(locate("kexue_probe.models.Child")),
        signature(locate("kexue_probe.models.Open")),
    )
    assert (list(child.parameters), child.open) == (["width", "extra"], False)
    assert (list(is_open.parameters), is_open.open) == (["extra"], True)


def test_reads_class_attributes_of_ancestors(package):
    package(
        "models",
        """
        class Base:
            needs: frozenset[str] = frozenset({"text"})
            metrics = ("val/loss",)

        class Child(Base):
            metrics = ("val/loss", "val/accuracy")
            computed = tuple(name for name in metrics)
        """,
    )
    child = locate("kexue_probe.models.Child")
    assert class_attribute(child, "needs") == {"text"}
    assert class_attribute(child, "metrics") == ("val/loss", "val/accuracy")
    assert class_attribute(child, "computed") is None
    assert class_attribute(child, "absent") is None


@pytest.mark.parametrize(
    "target, message",
    [
        ("WoBERT", "must be a dotted name"),
        ("kexue_nowhere.Model", "there is no module kexue_nowhere"),
        ("lightning_modules.wobrt.WoBERT", "there is no wobrt in lightning_modules"),
        ("lightning_modules.wobert", "is a module, not a class"),
    ],
)
def test_targets_that_lead_nowhere(target, message):
    with pytest.raises(TargetError, match=message):
        locate(target)


def test_reads_the_libraries_without_importing_them():
    assert {"lr", "betas", "weight_decay"} < set(parameters("torch.optim.AdamW"))
    assert {"max_steps", "precision"} < set(parameters("pytorch_lightning.Trainer"))
    assert {"monitor", "dirpath"} < set(parameters("pytorch_lightning.callbacks.ModelCheckpoint"))
    assert locate("math.sqrt") is None  # compiled: nothing can be said


@pytest.mark.parametrize(
    "value, annotation, words",
    [
        (3, "int", None),
        (3, "float", None),
        (True, "int", "must be a whole number"),
        (True, "float | bool", None),
        (3.5, "int", "must be a whole number"),
        (3.0, "int", "must be a whole number; write 3"),
        ("3e-4", "float", "must be a number; this is text, write it without quotes"),
        (None, "float", "must be a number"),
        (None, "Optional[float]", None),
        ("x", "Union[int, float, None]", "must be a number or null"),
        ("x", "Literal['a', 'b'] | None", "must be one of a, b or null"),
        (
            "bothh",
            "Literal['both', 'none'] | int",
            "must be one of both, none or a whole number; did you mean both?",
        ),
        (1, "Literal[1, 2]", None),
        (True, "Literal[1, 2]", "must be one of 1, 2"),
        ([1, 2], "list[int]", None),
        ([1, "x"], "list[int]", "must be a list in which each item is a whole number"),
        ([1, 2], "tuple[int, int]", None),
        ([1, 2, 3], "tuple[int, int]", "must be a list of 2 values"),
        ([1, 2, 3], "tuple[int, ...]", None),
        ("abc", "Sequence[str]", "must be a list"),
        ({"a": 1}, "dict[str, int]", None),
        (3, "dict | None", "must be a mapping or null"),
        (3, "Any", None),
        (3, "NowhereToBeFound", None),
        (0.5, "Annotated[float, '0 <= x < 1']", None),
        (1, "Annotated[float, '0 <= x < 1']", "must satisfy 0 <= rate < 1"),
        (0, "Annotated[int, 'x == -1 or x >= 1'] | None", "must be -1 or >= 1"),
        (None, "Annotated[int, 'x >= 1'] | None", None),
        ([0.5, 2], "list[Annotated[float, 'x <= 1']]", "each item must be <= 1"),
    ],
)
def test_values_against_annotations(value, annotation, words):
    failure = misfit(value, annotation)
    assert (failure and describe(failure, "rate", value)) == words


@pytest.mark.parametrize("constraint", ["x", "0 < y", "x in (1, 2)", "len(x) > 1", "__import__('os')", "x >"])
def test_a_constraint_is_a_comparison_and_nothing_else(constraint):
    if constraint == "x":
        assert holds(constraint, 1)
        return
    with pytest.raises(ValueError, match="not a constraint on x"):
        holds(constraint, 1)


def test_every_annotated_range_of_the_project_is_a_constraint():
    count = 0
    for file in REPOSITORY.glob("*/**/*.py"):
        if file.relative_to(REPOSITORY).parts[0] not in check.OWN_PACKAGES:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and getattr(node.value, "id", None) == "Annotated":
                holds(node.slice.elts[1].value, 1)
                count += 1
    assert count > 20


def test_the_table_of_options_is_that_of_train_yaml():
    train = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    assert list(check.OPTIONS) == [name for name in train if name not in ("defaults", "hydra")]
    assert list(check.OPTIONS["predict"]) == list(train["predict"])


# ---------------------------------------------------------------------- configs and classes of the user's own


@pytest.fixture
def own(tmp_path, package):
    """A directory of configs outside of the repository, with a technique and a corpus."""
    package(
        "mine",
        """
        class Mine:
            needs = frozenset({"text", "label"})
            metrics = ("val/loss", "val/accuracy")

            def __init__(self, width: int, rate: float = 0.5, *, facts: dict): ...

        class Labels:
            provides = frozenset({"label"})

            def __init__(self, tokenizer: dict): ...
        """,
    )
    conf = tmp_path / "own"
    (conf / "model").mkdir(parents=True)
    (conf / "data").mkdir()
    (conf / "model" / "mine.yaml").write_text(
        "defaults:\n  - /tokenizer@_global_.tokenizer: word\n  - _self_\n"
        "_target_: kexue_probe.mine.Mine\nwidth: 3\n"
    )
    (conf / "data" / "labels.yaml").write_text("_target_: kexue_probe.mine.Labels\ntokenizer: ${tokenizer}\n")
    version.setbase(VERSION_BASE)
    setup_globals()
    register_resolvers()
    monkey = pytest.MonkeyPatch()
    monkey.chdir(tmp_path)
    yield conf
    monkey.undo()


def told(own, *arguments):
    return check.check_command_line(config_loader(CONF, str(own)), CONFIG_NAME, list(arguments))


def test_a_users_own_config_and_class(own):
    assert told(own, "model=mine") == []
    assert told(own, "model=mine", "model.width=x", "+model.facts={}") == [
        "model.width=x: must be a whole number",
        "model.facts: no such option of Mine (there are: width, rate)",
    ]
    assert told(own, "model=mne") == [
        "model=mne: there is no model/mne; did you mean mine? (there are: bert, classifier, dialogpt, mine, wobert)"
    ]


def test_hydra_searchpath(own):
    loader = config_loader(CONF)
    typed = [f"hydra.searchpath=[file://{own}]", "model=mine", "~model.width"]
    assert check.check_command_line(loader, CONFIG_NAME, typed) == ["model.width: is missing; Mine needs it"]


def test_what_the_technique_needs_the_corpus_must_provide(own):
    assert told(own, "data=labels") == [
        "model=wobert: needs text, which data=labels does not provide; use data=clue or data=dialogue or data=lccc or data=text",
    ]
    assert told(own, "model=mine", "data=lccc") == [
        "model=mine: needs label, which data=lccc does not provide; use data=clue or data=text",
    ]


def test_what_a_corpus_provides_with_an_option(own):
    table = ("model=mine", "data=text", "data.train=my.csv")
    assert told(own, *table) == []
    assert told(own, *table, "data.label=class") == []
    assert told(own, *table, "data.label=null") == [
        "model=mine: needs label, which data=text provides with data.label="
    ]
    assert told(own, "data=text", "data.train=my.txt") == []


@pytest.mark.parametrize(
    "target, column",
    [
        ("lightning_modules.classifier.Classifier", "label"),
        ("lightning_modules.wobert.WoBERT", None),
        ("lightning_modules.nothing.Nothing", None),
    ],
)
def test_a_usual_column_is_read_where_the_technique_needs_it(target, column):
    register_resolvers()
    config = OmegaConf.create({"model": {"_target_": target}, "data": {"label": "${if_needed:label}"}})
    assert config.data.label == column


def test_a_preset_without_its_package_line(own):
    (own / "experiment").mkdir()
    (own / "experiment" / "x.yaml").write_text("seed: 3\n")
    assert told(own, "experiment=x") == [
        "experiment: experiment/x.yaml must begin with the line '# @package _global_'"
    ]


def test_an_interpolated_option_is_told_once_and_where_it_is_typed(own):
    assert told(own, "max_steps=many") == ["max_steps=many: must be a whole number or null"]
    assert told(own, "+width=3", "model=mine", "model.width=${width}") == []


# --------------------------------------------------------------------------------------- how the program ends

PROGRAM = """
from launch.cli import entrypoint

@entrypoint
def main(cfg):
    import hydra
    if cfg.what == "config":
        from launch.run_dir import ConfigError
        raise ConfigError("data.train=a.json: wrong")
    if cfg.what == "data":
        from datamodules.corpus import DataError
        raise DataError("a.json:3: no text")
    if cfg.what == "constructor":
        hydra.utils.instantiate(cfg.model, _recursive_=False)
    if cfg.what == "later":
        raise ValueError("hidden_size=65: must be a multiple of num_attention_heads=4")
    if cfg.what == "bug":
        raise ValueError("shapes do not match")
    if cfg.what == "interrupt":
        raise KeyboardInterrupt
    if cfg.what == "interrupted by Lightning":
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)
"""

PROGRAM_CONF = """
defaults:
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_
what: nothing
model:
  _target_: kexue_probe_ends.Model
  backbone:
    hidden_size: 65
hydra:
  run:
    dir: run
  output_subdir: null
"""


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """A function that runs the program with arguments: (exit code, lines on stderr)."""
    folder = tmp_path / "program"
    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "train.yaml").write_text(PROGRAM_CONF)
    (folder / "kexue_probe_train.py").write_text(PROGRAM)
    (folder / "kexue_probe_ends.py").write_text(
        "class Model:\n    def __init__(self, backbone):\n"
        "        raise ValueError('hidden_size=65: must be even')\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        module = importlib.import_module("kexue_probe_train")
        code = 0
        try:
            module.main()
        except SystemExit as leaving:
            code = leaving.code
        return code, capsys.readouterr().err.splitlines()

    yield run
    sys.modules.pop("kexue_probe_train", None)


def test_what_the_user_can_mend_is_told_without_a_traceback(program):
    assert program("what=config") == (2, ["data.train=a.json: wrong"])
    assert program("what=data") == (2, ["a.json:3: no text"])
    assert program("what=constructor") == (2, ["model.backbone.hidden_size=65: must be even"])
    assert program("what=later") == (
        2,
        ["model.backbone.hidden_size=65: must be a multiple of num_attention_heads=4"],
    )
    assert program("--max_steps=3") == (
        2,
        ["--max_steps=3: options are typed without dashes; type max_steps=3"],
    )
    assert program("what=data", "--config-dir", "/nowhere", "what=config") == (
        2,
        ["what=config: type it beside the other options, not behind a flag such as --config-dir"],
    )
    assert program("--config-dir", "/nowhere") == (2, ["--config-dir /nowhere: there is no such directory"])


def test_other_exceptions_arrive_whole(program):
    with pytest.raises(ValueError, match="shapes do not match"):
        program("what=bug")


def test_an_interrupted_run_says_how_to_continue(program, tmp_path):
    assert program("what=interrupt") == (130, ["interrupted"])
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    line = "interrupted; to continue, type the same command with hydra.run.dir=run ckpt_path=last"
    assert program("what=interrupted by Lightning") == (130, [line])


def test_nothing_heavy_is_imported():
    code = """if True:
        import sys
        from pathlib import Path
        from hydra import version
        from hydra.core.utils import setup_globals
        from launch.check import check_command_line
        from launch.cli import register_resolvers
        from launch.explain import config_loader

        version.setbase("1.3")
        setup_globals()
        register_resolvers()
        lines = check_command_line(config_loader(Path("conf").absolute()), "train", ["seed=x", "model.los=1"])
        heavy = ("torch", "pytorch_lightning", "transformers", "datasets", "numpy")
        print(len(lines), [name for name in heavy if name in sys.modules])
    """
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.stdout == "2 []\n", ended.stderr
