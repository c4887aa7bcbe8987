"""A talk with a trained dialogue model: its turns and options, and the loops of the terminal and of a pipe.

Torch and Lightning take seconds to import: nothing here does before what was typed is known to be right.
"""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import re
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from datamodules.atomic import write_whole
from datamodules.build import TECHNIQUE
from datamodules.corpus import DataError, text_problem
from launch.run_dir import ConfigError, find_checkpoint
from launch.signatures import Parameter, describe, did_you_mean, locate, misfit, signature

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from datamodules.text import TextInput
    from lightning_modules.decoding import Decoding

EXPORTED = ("model.safetensors", "kexue_tokenizer.json")  # and its options
DECODING = "lightning_modules.decoding.Decoding"
SEEDS = 2**31


# ------------------------------------------------------------------------------------------------ options


class OptionField(NamedTuple):
    """An option of `Decoding`: its name, its annotation as in the signature (`Annotated` kept), its default, and what
    the docstring says of it."""

    name: str
    type: Any
    default: Any
    help: str


def option_fields() -> list[OptionField]:
    """The options that a reply is decoded with, in the order of `Decoding`'s signature."""
    import inspect
    from typing import get_type_hints

    from lightning_modules.decoding import Decoding

    types, helps = get_type_hints(Decoding.__init__, include_extras=True), _helps()
    return [
        OptionField(name, types[name], parameter.default, helps.get(name, ""))
        for name, parameter in inspect.signature(Decoding).parameters.items()
    ]


def read_option(name: str, text: str) -> Any:
    """The value that `text` stands for, read by the option's annotation: `10`, `0.8`, words between spaces or commas.

    Raises:
        ValueError: `Decoding` has no such option, or the value does not fit it.
    """
    parameters = _parameters()
    if name not in parameters:
        otherwise = f"; there are {', '.join(parameters)}"
        raise ValueError(f"{name}: no such option{did_you_mean(name, parameters)}{otherwise}")
    annotation = ast.unparse(parameters[name].annotation)
    if "list" in annotation:
        # [a,b] is a list, as for train.py; [doge] is one of Weibo's emoticons.
        typed = text.strip()
        if typed.startswith("[") and typed.endswith("]") and "," in typed:
            typed = typed[1:-1]
        words = typed.replace(",", " ").split()
        return None if words in ([], ["null"]) else words
    value: Any = text.strip()
    for number in (int, float):
        with suppress(ValueError):
            value = number(value)
            break
    failure = misfit(value, parameters[name].annotation, parameters[name].module)
    if failure is not None or (isinstance(value, float) and not math.isfinite(value)):
        words = describe(failure, name, value) if failure else "must be a finite number"
        raise ValueError(f"{name}={text}: {words}")
    return value


def changed(decoding: Decoding, options: Mapping[str, Any]) -> Decoding:
    """`decoding` with other options.

    Raises:
        ValueError: they contradict each other; named as they are typed here.
    """
    try:
        return decoding.replace(**options)
    except ValueError as error:
        raise ValueError(str(error).replace("decoding.", "")) from error


def _parameters() -> dict[str, Parameter]:
    return signature(locate(DECODING)).parameters


def _helps() -> dict[str, str]:
    """What the `Args:` of `Decoding` say of each option."""
    lines = (ast.get_docstring(locate(DECODING).node) or "").partition("Args:\n")[2].splitlines()
    helps, name = {}, ""
    for line in lines:
        if line.strip() and not line.startswith("    "):
            break
        if line.startswith("    ") and not line[4:5].isspace() and ":" in line:
            name, _, line = line.strip().partition(":")
            helps[name] = ""
        if name and line.strip():
            helps[name] = f"{helps[name]} {line.strip()}".strip()
    return helps


# ------------------------------------------------------------------------------------------- conversation


def problem_of(message: Any) -> str | None:
    """Why `message` cannot be answered, as a sentence for who typed it; None where it can."""
    problem = text_problem(message)
    if problem is None:
        return None
    if problem == "empty text":
        return "The message is empty: type something to talk about."
    return f"The message cannot be read: {problem}."


class Conversation:
    """One visitor's talk with a model.

    Args:
        model: a technique with `stream_reply`, `kept_history`, `decoding` and `context`.
        inputs: how its texts are prepared.
        decoding: how replies are decoded; None: as the model's own.
        seed: of the first reply; each further one has its own.

    Attributes:
        history: the turns, oldest first, the visitor's and the model's in turn.
        decoding: how the next reply is decoded.
        note: a remark on the last answer for the visitor (turns that the model no longer saw); None: nothing to say.
        news: of the note what did not hold before, too.
    """

    def __init__(
        self,
        model: pl.LightningModule,
        inputs: TextInput,
        decoding: Decoding | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.inputs = model, inputs
        self.decoding: Decoding = model.decoding if decoding is None else decoding
        self.seed = seed
        self.history: list[str] = []
        self.note: str | None = None
        self.news: str | None = None
        self._drops = False
        self._undone = 0

    def answer(self, message: str) -> Iterator[str]:
        """The reply so far, growing. The message and the reply join the history when it is complete.

        Of a stream that is closed, or stopped by Ctrl-C, what was said so far stays; after an error, and where nothing
        was said, the history is as before.

        Raises:
            ValueError: `problem_of` the message.
        """
        problem = problem_of(message)
        if problem is not None:
            raise ValueError(problem)
        turns = [*self.history, message.strip()]
        self._look(turns)
        said = ""
        # What was undone is asked again to hear something else.
        seed = (self.seed + len(self.history) + self._undone) % SEEDS
        try:
            for said in self.model.stream_reply(turns, self.inputs, self.decoding, seed):
                yield said
        except (GeneratorExit, KeyboardInterrupt):
            self._take(turns, said)
            raise
        self._take(turns, said)
        if not said.strip():
            self.note = self.news = "The model said nothing; your message was not kept."

    def _look(self, turns: Sequence[str]) -> None:
        """Note what of `turns` the model does not see."""
        self.note = self.news = None
        kept = self.model.kept_history(turns, self.inputs, self.decoding)
        dropped, cut = len(turns) - len(kept), kept[-1] != turns[-1]
        what = "the oldest turn" if dropped == 1 else f"the oldest {dropped} turns"
        old = f"The talk is longer than the model's context: it no longer sees {what}." if dropped else ""
        new = "The message is longer than the model's context: it sees only the end of it." if cut else ""
        self.note = f"{old} {new}".strip() or None
        self.news = new or None if self._drops else self.note
        self._drops = dropped > 0

    def _take(self, turns: list[str], said: str) -> None:
        if said.strip():  # a history with an empty turn could not be answered
            self.history = [*turns, said]

    def set(self, name: str, value: str) -> None:
        """Change one option of the decoding, given as text.

        Raises:
            ValueError: no such option, or a value that it cannot have; the decoding stays as it is.
        """
        self.decoding = changed(self.decoding, {name: read_option(name, value)})

    def undo(self) -> bool:
        """Forget the last message and its reply; False where there is none."""
        if not self.history:
            return False
        del self.history[-2:]
        self._undone += 1
        self.note = self.news = None
        return True

    def reset(self) -> None:
        """Forget the history; the options stay."""
        self.history, self.note, self.news, self._drops, self._undone = [], None, None, False, 0


# ----------------------------------------------------------------------------------------------- commands

HELP = """\
/help               this list
/set NAME VALUE     change an option of the decoding: /set top_k 20
/options            the options of the decoding, what they are now and what they mean
/history            the turns so far
/undo               forget your last message and its reply
/reset              forget all turns; the options stay
/save FILE.jsonl    write the turns to a new file, which data=dialogue and predict.input read
/quit               end; Ctrl-D does, too
A message that begins with / and a letter is a command; to say it, type a space before it."""
COMMANDS = ("help", "set", "options", "history", "undo", "reset", "save", "quit")
# What would move the cursor of a terminal or end a line.
NOT_UTF8 = "What you typed is not UTF-8: nothing was sent."
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as what a terminal's bytes are where Python escapes them
_CONTROLS = {code: " " for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class Quit(Exception):
    """The visitor wants to end."""


def is_command(line: str) -> bool:
    """Chinese writes emoticons as /微笑: those are no commands."""
    return line[:1] == "/" and line[1:2].isascii() and line[1:2].isalpha()


def obey(conversation: Conversation, line: str) -> str:
    """Do what a command says; returns what to tell of it.

    Raises:
        ValueError: there is no such command, or it cannot be done; nothing was done.
        Quit: that was the command.
    """
    name, _, rest = line[1:].strip().partition(" ")
    rest = rest.strip()
    if name not in COMMANDS:
        way_out = did_you_mean(name, COMMANDS) or "; /help lists them"
        raise ValueError(f"/{name}: no such command{way_out} (to say it, type a space before it)")
    if rest and name not in ("set", "save"):
        raise ValueError(f"/{name} takes nothing behind it")
    match name:
        case "help":
            return HELP
        case "options":
            return _options(conversation.decoding)
        case "history":
            return "\n".join(_shown_turns(conversation.history)) or "No turns yet."
        case "undo":
            return "Undone." if conversation.undo() else "Nothing to undo: no turns yet."
        case "reset":
            conversation.reset()
            return "A new talk; the options stay."
        case "set":
            option, value = (re.match(r"(\w+)\s*[= ]\s*(.*)", rest) or re.match("()()", "")).groups()
            if not value:
                raise ValueError("/set NAME VALUE, for example /set top_k 20; /options lists the names")
            conversation.set(option, value)
            return f"{option} = {_as_typed(getattr(conversation.decoding, option))}"
        case "save":
            return _save(conversation.history, rest)
        case _:
            raise Quit


def _options(decoding: Decoding) -> str:
    helps = _helps()
    values = {name: _as_typed(getattr(decoding, name)) for name in _parameters()}
    widths = max(map(len, values)), max(map(len, values.values()))
    lines = (
        f"{name:<{widths[0]}}  {value:<{widths[1]}}  {helps.get(name, '')}" for name, value in values.items()
    )
    return "\n".join(map(str.rstrip, lines))


def _as_typed(value: Any) -> str:
    if value is None or isinstance(value, (list, tuple)):
        return " ".join(value or ()) or "null"
    return str(value)


def _shown_turns(history: Sequence[str]) -> Iterator[str]:
    for number, turn in enumerate(history):
        yield f"{('you', 'model')[number % 2]}: {on_one_line(turn)}"


def _save(history: Sequence[str], name: str) -> str:
    if not name:
        raise ValueError("/save FILE.jsonl: name a file")
    if not history:
        raise ValueError("/save: nothing to save, no turns yet")
    try:
        path = Path(name).expanduser()
        if path.suffix not in (".jsonl", ".json"):
            raise ValueError(f"/save {name}: end its name in .jsonl: that is what is written")
        if path.exists():
            raise ValueError(f"/save {name}: exists, and is left as it is; choose another name")
        if not path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        # A file of one bare array would be read as dialogues of one turn.
        write_whole(path, json.dumps({"dialog": list(history)}, ensure_ascii=False) + "\n")
    except (OSError, RuntimeError) as error:  # RuntimeError: ~nobody
        raise ValueError(
            f"/save {name}: not written ({getattr(error, 'strerror', None) or error})"
        ) from error
    return f"{len(history)} turns in {path}"


def on_one_line(text: str) -> str:
    """`text` without what would end a line or steer a terminal."""
    return text.translate(_CONTROLS)


# -------------------------------------------------------------------------------------------------- loops


def interactive(conversation: Conversation) -> int:
    """Talk with who sits at the terminal until /quit, Ctrl-D, or Ctrl-C at the prompt; returns the exit code."""
    with suppress(ImportError):
        import readline  # noqa: F401  (`input` edits lines by it)
    while True:
        try:
            line = input("you: ")
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        except UnicodeDecodeError:
            _remark(NOT_UTF8)
            continue
        try:
            if is_command(line):
                print(obey(conversation, line))
            elif _NOT_UTF8.search(line):
                _remark(NOT_UTF8)
            elif (problem := problem_of(line)) is not None:
                _remark(problem)
            else:
                _show_reply(conversation, line)
        except Quit:
            return 0
        except ValueError as error:
            _remark(str(error))
        except KeyboardInterrupt:  # it came as the reply ended
            print()


def _show_reply(conversation: Conversation, message: str) -> None:
    """Print the reply as it comes; Ctrl-C stops it."""
    shown, remark, before = "", None, len(conversation.history)
    with closing(conversation.answer(message)) as pieces:
        try:
            print("model: ", end="", flush=True)
            for said in map(on_one_line, pieces):
                # A tokenizer may take back what it wrote.
                new = said[len(shown) :] if said.startswith(shown) else f"\nmodel: {said}"
                print(new, end="", flush=True)
                shown = said
        except KeyboardInterrupt:
            remark = "stopped"
        except Exception as error:
            remark = _broken(error)
    if remark == "stopped" and len(conversation.history) == before:
        remark = "stopped before a word; your message was not kept"
    print()
    for text in (remark, conversation.news):
        if text:
            _remark(text)


def _remark(text: str) -> None:
    print(f"  ({text})", flush=True)


def _broken(error: Exception) -> str:
    """A reply that fails does not end the talk: what is told of it, on one line."""
    return f"The model could not answer this: {_line_of(error)}"


def piped(conversation: Conversation, lines: Iterable[bytes], out: IO[str], err: IO[str]) -> int:
    """One line of output for each line of input: the reply, or nothing where there is none, and on `err` why.

    Returns:
        The exit code: 1 where a reply failed, else 0.
    """
    code = 0
    for number, raw in enumerate(lines, 1):
        said, remark = "", None
        try:
            line = raw.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
            if is_command(line):
                remark = obey(conversation, line)
            else:
                remark = problem_of(line)
                if remark is None:
                    said, remark, failed = _whole_reply(conversation, line)
                    code = code or int(failed)
        except UnicodeDecodeError as error:
            remark = f"not UTF-8 (byte {error.start + 1}); convert it, e.g. iconv -f GB18030 -t UTF-8"
        except ValueError as error:
            remark = str(error)
        except Quit:
            break
        if remark:
            print(f"line {number}: {remark}", file=err, flush=True)
        print(on_one_line(said), file=out, flush=True)
    return code


def _whole_reply(conversation: Conversation, message: str) -> tuple[str, str | None, bool]:
    """The reply, a remark on it, and whether it failed."""
    said = ""
    try:
        for piece in conversation.answer(message):
            said = piece
    except Exception as error:
        return "", _broken(error), True
    return said, conversation.news, False


def talk(model: pl.LightningModule, inputs: TextInput, name: str, seed: int | None = None) -> int:
    """Talk in the terminal, or answer the lines of a pipe; returns the exit code.

    Args:
        name: what the greeting calls the model.
        seed: of the first reply; None: drawn.
    """
    conversation = Conversation(model, inputs, seed=secrets.randbelow(SEEDS) if seed is None else seed)
    try:
        if _is_terminal(sys.stdin) and _is_terminal(sys.stdout):
            sys.stdout.reconfigure(errors="replace")
            print(_greeting(model, inputs, name))
            return interactive(conversation)
        if sys.stdout is not None:
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        return piped(conversation, () if sys.stdin is None else sys.stdin.buffer, sys.stdout, sys.stderr)
    except OSError as error:  # of the output: those of a reply do not come this far
        if not isinstance(error, BrokenPipeError):  # there who reads has enough
            print(f"the reply cannot be written: {error.strerror}", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            os.dup2(nowhere, stream.fileno())  # Python flushes them once more when it ends
        return int(not isinstance(error, BrokenPipeError))


def _is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and stream.isatty()


def _greeting(model: pl.LightningModule, inputs: TextInput, name: str) -> str:
    size = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{type(model).__name__} from {name}: {size:,} parameters on {model.device.type}, a context of "
        f"{model.context} tokens.\n"
        "For research: it continues talks as its corpus would, knows nothing, and can be rude.\n"
        "/help lists the commands. Ctrl-C stops a reply, Ctrl-D ends."
    )


# --------------------------------------------------------------------------------------------------- main


def main(
    path: str,
    seed: int | None,
    device: str,
    settings: Sequence[str],
    page: tuple[str, int] | None,
) -> int:
    """Load the model and talk until the visitor ends; returns the exit code.

    Args:
        path: a run, a checkpoint or an export/.
        device: auto, cpu or cuda.
        settings: options of the decoding, `NAME=VALUE`.
        page: address and port of the page in the browser; None: talk in the terminal.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        changes = _changes(settings)
        check_path(path)
        if page is not None:
            from launch import chat_web

            chat_web.check(*page)
        if _is_terminal(sys.stderr):
            print(f"Loading {path} ...", file=sys.stderr)
        model, inputs = load(path, device, changes)
        if page is None:
            return talk(model, inputs, path, seed)
        chat_web.serve(model, inputs, path, *page)
        return 0
    except (ConfigError, DataError) as error:
        print(_line_of(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _changes(settings: Sequence[str]) -> dict[str, Any]:
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: type NAME=VALUE, for example --set top_k=20")
        try:
            changes[name] = read_option(name, text)
        except ValueError as error:
            raise ConfigError(f"--set {error}") from error
    return changes


def check_path(path: str) -> None:
    """Cheap, before anything heavy is imported.

    Raises:
        ConfigError: there is no run, checkpoint or export at `path`.
    """
    if not path:
        raise ConfigError("RUN: is empty; name a run directory, one of its checkpoints, or an export/")
    try:
        there = Path(path).expanduser()
        if (there / TECHNIQUE).is_file():
            lacking = [name for name in EXPORTED if not (there / name).is_file()]
            if lacking:
                raise ConfigError(f"{path}: holds no {lacking[0]}; copy the whole export/")
        elif there.is_file() and there.suffix != ".ckpt":
            raise ConfigError(f"{path}: is no checkpoint; type the run's directory, or a .ckpt file of it")
        elif there.is_dir() and there.name == "checkpoints":
            raise ConfigError(f"{path}: type the run's directory, {there.parent}")
        else:
            find_checkpoint(path, ".", "predict")
    except (ValueError, OSError) as error:
        text = _of_path(error, path).partition("; to start")[0]  # a training is what that begins
        there = Path(path).expanduser() / "export" / TECHNIQUE
        raise ConfigError(f"{text}; type {there.parent}" if there.is_file() else text) from error
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{path}: {error}") from error


def load(path: str, device: str, changes: Mapping[str, Any]) -> tuple[pl.LightningModule, TextInput]:
    """A dialogue model, ready to reply, and how its texts are prepared.

    Args:
        device: auto (a GPU where there is one), cpu or cuda.
        changes: options that its decoding gets.

    Raises:
        ConfigError: no such device, nothing that can be loaded, or no model of dialogues.
    """
    import torch

    from launch.predict import load_for_prediction

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here; type --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, inputs = load_for_prediction(path, trusted="")
    except DataError as error:
        raise ConfigError(_of_path(error, path)) from error
    except Exception as error:  # what damage shows as, nobody can list
        raise ConfigError(
            f"{path}: cannot be loaded: damaged, or written by another version ({_line_of(error)})"
        ) from error
    kind = type(model).__name__
    if "turns" not in model.needs or not hasattr(model, "stream_reply"):
        raise ConfigError(
            f"{path}: a {kind} has learned no dialogues; train a model that has: python train.py model=dialogpt data=lccc"
        )
    if model.hparams.get("backward"):
        raise ConfigError(
            f"{path}: was trained with model.backward=true, it knows what precedes a reply, not replies; give one that was "
            "trained forwards"
        )
    try:
        model.decoding = changed(model.decoding, changes)
    except ValueError as error:
        raise ConfigError(f"--set {error}") from error
    return model.to(device).eval(), inputs


def _of_path(error: Exception, path: str) -> str:
    """The path stands here for itself, and not as the option of train.py, nor beside others of its options."""
    text = str(error).replace("ckpt_path: ", f"{path}: ").replace("ckpt_path=", "")
    return text.partition("; if it is yours")[0]


def _line_of(error: BaseException) -> str:
    """What an error says, on one line; its type where that is no sentence for who typed."""
    text = " ".join(str(error).split())
    if isinstance(error, (ConfigError, ValueError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
