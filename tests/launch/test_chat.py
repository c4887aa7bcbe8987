"""The chat in the terminal and through a pipe."""

import fcntl
import inspect
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from fake_dialogue import FAILING, FakeDialogue
from running import REPOSITORY, finished

from datamodules.build import TECHNIQUE
from datamodules.corpus import BadRows
from datamodules.dialogue import read_dialogues, turns_of
from launch import chat
from launch.chat import Conversation, is_command, obey, option_fields, piped, problem_of
from lightning_modules.decoding import Decoding

INPUTS = SimpleNamespace(max_length=128)


class Mute(FakeDialogue):
    def stream_reply(self, *_, **__):
        yield from ("", " ")


class ShortSighted(FakeDialogue):
    """Sees the last turn, and of it the last two characters."""

    def kept_history(self, history, inputs, decoding=None):
        return (history[-1][-2:],)


def conversation(model=None, **options) -> Conversation:
    return Conversation(model or FakeDialogue(), INPUTS, **options)


def say(talk: Conversation, *messages: str) -> str:
    """The last reply."""
    said = ""
    for message in messages:
        *_, said = talk.answer(message)
    return said


# ------------------------------------------------------------------------------------------- conversation


def test_the_model_sees_all_turns_and_each_reply_has_its_seed():
    model = FakeDialogue()
    talk = conversation(model, seed=7)
    first = say(talk, "你好")
    second = say(talk, " 再见\t")
    assert talk.history == ["你好", first, "再见", second]
    assert [asked.history for asked in model.asked] == [("你好",), ("你好", first, "再见")]
    seeds = [asked.seed for asked in model.asked]
    again = FakeDialogue()
    say(conversation(again, seed=7), "你好", "再见")
    assert [asked.seed for asked in again.asked] == seeds
    assert len(set(seeds)) == 2


def test_a_reply_that_was_undone_is_drawn_anew():
    model = FakeDialogue()
    talk = conversation(model)
    say(talk, "你好", "再见")
    before = talk.history[:2]
    assert talk.undo()
    assert talk.history == before
    say(talk, "再见")
    assert model.asked[1].history == model.asked[2].history
    assert model.asked[1].seed != model.asked[2].seed
    talk.reset()
    assert talk.history == []
    assert not talk.undo()


def test_a_stream_that_is_closed_keeps_what_was_said():
    talk = conversation()
    reply = talk.answer("你好")
    said = [next(reply), next(reply)][-1]
    reply.close()
    assert talk.history == ["你好", said]

    reply = talk.answer("再见")
    reply.close()  # before it began
    assert talk.history == ["你好", said]


def test_an_error_leaves_the_history_as_it_was():
    talk = conversation()
    say(talk, "你好")
    before = list(talk.history)
    with pytest.raises(RuntimeError):
        say(talk, FAILING)
    assert talk.history == before
    say(talk, "再见")
    assert len(talk.history) == 4


def test_a_model_that_says_nothing_does_not_spoil_the_history():
    talk = conversation(Mute())
    say(talk, "你好")
    assert talk.history == []
    assert "said nothing" in talk.note


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("", "empty"),
        (" \u3000\t\n", "empty"),
        ("\u200b", "empty"),
        ("a\0b", "NUL"),
        ("好\ud83d", "surrogate"),
        (None, "no text"),
    ],
)
def test_a_message_that_is_no_text_is_refused(message, problem):
    model = FakeDialogue()
    talk = conversation(model)
    assert problem in problem_of(message)
    with pytest.raises(ValueError, match=problem):
        say(talk, message)
    assert talk.history == [] and model.asked == []


@pytest.mark.parametrize("message", ["😀", "?", "a" * 5000, "第一行\n第二行"])
def test_any_other_message_is_answered(message):
    assert problem_of(message) is None
    assert say(conversation(), message)


def test_what_the_model_does_not_see_is_told():
    talk = conversation(FakeDialogue(turns_seen=3))
    say(talk, "一", "二")
    assert talk.note is None
    say(talk, "三")
    assert "the oldest 2 turns" in talk.note and talk.news == talk.note
    say(talk, "四")
    assert "the oldest 4 turns" in talk.note and talk.news is None  # told once
    talk = conversation(ShortSighted())
    say(talk, "你好吗")
    assert "only the end" in talk.note
    say(talk, "好")
    assert "the oldest 2 turns" in talk.note and "only the end" not in talk.note


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("top_k", "20", 20),
        ("temperature", "1", 1),
        ("top_p", " 0.9 ", 0.9),
        ("banned_words", "坏 话", ["坏", "话"]),
        ("stop_words", "[。,！]", ["。", "！"]),
        ("stop_words", "null", None),
        ("banned_words", "7", ["7"]),
        ("banned_words", "[doge] [笑]", ["[doge]", "[笑]"]),
        ("banned_words", "[坏,话]", ["坏", "话"]),
    ],
)
def test_an_option_is_set_from_text(name, text, value):
    model = FakeDialogue()
    talk = conversation(model)
    talk.set(name, text)
    say(talk, "你好")
    assert (getattr(model.asked[0].decoding, name) or None) == value
    assert getattr(model.decoding, name) == getattr(Decoding(), name)  # the model's own


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("top_k", "-1", "top_k=-1: must be >= 0"),
        ("top_k", "many", "top_k=many: must be a whole number"),
        ("top_k", "2.5", "top_k=2.5: must be a whole number"),
        ("top_p", "1.5", r"top_p=1.5: must satisfy 0 < top_p <= 1"),
        ("temperature", "0", "temperature=0: must be > 0"),
        ("temperature", "nan", "temperature=nan: must be"),
        ("temperature", "inf", "temperature=inf: must be"),
        ("temperature", "true", "temperature=true: must be a number"),
        ("min_length", "33", "min_length=33: "),
        ("topk", "3", "topk: no such option; did you mean top_k?"),
        ("speed", "3", "speed: no such option; there are temperature, top_k, .*stop_words"),
    ],
)
def test_a_wrong_option_is_told_and_changes_nothing(name, text, told):
    talk = conversation()
    before = talk.decoding
    with pytest.raises(ValueError, match=re.escape(told) if ".*" not in told else told):
        talk.set(name, text)
    assert talk.decoding is before


def test_every_option_of_the_decoding_is_there_with_its_help():
    fields = option_fields()
    assert [field.name for field in fields] == list(inspect.signature(Decoding).parameters)
    assert all(getattr(Decoding(), field.name) == field.default or field.default is None for field in fields)
    assert all(field.help for field in fields)
    shown = obey(conversation(), "/options")
    assert all(f"{field.name} " in shown and field.help in shown for field in fields)


# ----------------------------------------------------------------------------------------------- commands


def test_commands():
    talk = conversation()
    assert obey(talk, "/history") == "No turns yet."
    assert "Nothing to undo" in obey(talk, "/undo")
    say(talk, "你好\n吗")
    assert obey(talk, "/history").splitlines() == [
        "you: 你好 吗",
        f"model: {chat.on_one_line(talk.history[1])}",
    ]
    assert obey(talk, "/set top_k = 9") == "top_k = 9"
    assert obey(talk, "/set stop_words 。 ！") == "stop_words = 。 ！"
    assert obey(talk, "/undo") == "Undone."
    obey(talk, "/reset")
    assert talk.history == [] and talk.decoding.top_k == 9
    assert all(f"/{name}" in obey(talk, "/help") for name in chat.COMMANDS)
    with pytest.raises(chat.Quit):
        obey(talk, "/quit")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/rest", "/rest: no such command; did you mean reset?"),
        ("/x", "/x: no such command; /help lists them"),
        ("/reset now", "/reset takes nothing behind it"),
        ("/set", "/set NAME VALUE"),
        ("/set top_k", "/set NAME VALUE"),
        ("/save", "/save FILE.jsonl: name a file"),
    ],
)
def test_a_wrong_command_is_told_and_does_nothing(line, told):
    talk = conversation()
    say(talk, "你好")
    history, decoding = list(talk.history), talk.decoding
    assert is_command(line)
    with pytest.raises(ValueError, match=re.escape(told)):
        obey(talk, line)
    assert talk.history == history and talk.decoding is decoding


@pytest.mark.parametrize("line", ["/微笑", " /reset", "/", "/ reset", "//", "a/b"])
def test_what_only_looks_like_a_command_is_a_message(line):
    assert not is_command(line)


@pytest.mark.parametrize("messages", [["你好"], ['在吗\n"引号"\t', "h e l l o", "😀"]])
def test_a_saved_talk_is_read_as_a_dialogue(tmp_path, messages):
    talk = conversation()
    say(talk, *messages)
    path = tmp_path / "a talk.jsonl"
    assert obey(talk, f"/save {path}") == f"{len(talk.history)} turns in {path}"
    bad_rows = BadRows(0)
    dialogues = [turns_of(value) for _, value in read_dialogues(path, "json", "train", bad_rows)]
    assert dialogues == [(tuple(talk.history), None)]


def test_saving_never_overwrites_and_never_ends_the_talk(tmp_path):
    talk = conversation()
    with pytest.raises(ValueError, match="nothing to save"):
        obey(talk, f"/save {tmp_path / 'x.jsonl'}")
    say(talk, "你好")
    (tmp_path / "kept.jsonl").write_text("mine", encoding="utf-8")
    for name, told in {
        "kept.jsonl": "exists",
        "talk.txt": "end its name in .jsonl",
        "nowhere/talk.jsonl": "not written",
        "kept.jsonl/talk.jsonl": "not written",
        "x" * 300 + ".jsonl": "not written",
    }.items():
        with pytest.raises(ValueError, match=told):
            obey(talk, f"/save {tmp_path / name}")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]
    assert (tmp_path / "kept.jsonl").read_text(encoding="utf-8") == "mine"


# ---------------------------------------------------------------------------------------------- by a pipe


def test_each_line_of_a_pipe_has_its_line():
    lines = [
        b"\xef\xbb\xbf\xe4\xbd\xa0\xe5\xa5\xbd\r\n",
        b"\n",
        b"\xc4\xe3\xba\xc3\n",  # GB18030
        b"/set top_k 0" + b"\n",
        FAILING.encode() + b"\n",
        b"/nothing" + b"\n",
        "再见".encode(),
    ]
    model, out, err = FakeDialogue(), io.StringIO(), io.StringIO()
    assert piped(conversation(model), lines, out, err) == 1
    said = out.getvalue().splitlines()
    assert [bool(line) for line in said] == [True, False, False, False, False, False, True]
    assert [asked.history[-1] for asked in model.asked] == ["你好", FAILING, "再见"]
    assert model.asked[-1].history == ("你好", said[0], "再见")
    assert model.asked[-1].decoding.top_k == 0
    remarks = err.getvalue().splitlines()
    assert [remark.partition(":")[0] for remark in remarks] == [f"line {number}" for number in range(2, 7)]
    for remark, told in zip(
        remarks, ["empty", "GB18030", "top_k = 0", "network broke", "no such"], strict=True
    ):
        assert told in remark


def test_a_reply_stays_on_its_line_whatever_the_model_says():
    class Wild(FakeDialogue):
        def stream_reply(self, *_, **__):
            yield "一\n二\x1b[2J\u2028三"

    out = io.StringIO()
    talk = conversation(Wild())
    assert piped(talk, ["你好".encode(), b"/quit\n", b"later\n"], out, io.StringIO()) == 0
    assert out.getvalue() == "一 二 [2J 三\n"
    assert "\n" in talk.history[1]


# A model of no network, which needs no torch: that takes seconds to import.
TALK = """
import signal, sys, time
from types import SimpleNamespace
from launch.chat import talk

class Echo:
    device, context, decoding = SimpleNamespace(type="cpu"), 128, None

    def parameters(self):
        return ()

    def kept_history(self, history, inputs, decoding=None):
        return history

    def stream_reply(self, history, inputs, decoding, seed):
        reply = f"第{len(history)}句：{history[-1]}。"
        if history[-1] == "沉默":
            time.sleep(100)
        for end in range(1, len(reply) + 1):
            if history[-1] == "出错吧" and end == 3:
                raise RuntimeError("the network broke")
            time.sleep(float(sys.argv[1]))
            yield reply[:end]

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", file=sys.stderr, flush=True)
sys.exit(talk(Echo(), SimpleNamespace(max_length=128), "RUN", seed=1))
"""


def start(*command: str, terminal: int | None = None, **streams) -> subprocess.Popen:
    """A process of its own; at the pseudo-terminal `terminal`, or between `streams`."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell in the background has ignored
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)  # whose Ctrl-C reaches it

    if terminal is not None:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environ = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environ | {"PYTHONUTF8": "1"},
        start_new_session=terminal is not None,
        preexec_fn=prepare,
        **streams,
    )


class Terminal:
    """A process at a pseudo-terminal; what it shows is read as it comes."""

    def __init__(self, *command: str):
        self.ours, theirs = os.openpty()
        self.process = start(*command, terminal=theirs)
        os.close(theirs)
        self.text, self.seen = "", 0

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, *patterns: str) -> None:
        """Return when the terminal has shown these, in turn, since the last call."""
        for pattern in patterns:
            end = time.monotonic() + 100
            while (found := re.compile(pattern).search(self.text, self.seen)) is None:
                why = f"no {pattern!r} in {self.text!r}, exit code {self.process.poll()}"
                assert time.monotonic() < end and self._read(), why
            self.seen = found.end()

    def _read(self) -> bool:
        """Whether there may be more."""
        if not select.select([self.ours], [], [], 0.2)[0]:
            return True
        with suppress(OSError):  # the other side has ended
            self._bytes += os.read(self.ours, 65536)
            self.text = self._bytes.decode(errors="replace")
            return True
        return False

    _bytes = b""

    def end(self) -> int:
        """The exit code, when all is read."""
        end = time.monotonic() + 100
        while self._read():
            assert time.monotonic() < end, self.text
        os.close(self.ours)
        return self.process.wait(20)


@pytest.fixture
def processes():
    """What a test has started; ended with it."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_talk_at_a_terminal(processes, tmp_path):
    # They load at the same time.
    terminal, left, killed = (Terminal("-c", TALK, "0.05") for _ in range(3))
    processes += terminal.process, left.process, killed.process

    long = "今天天气怎么样" * 30
    terminal.wait_for("Echo from RUN", "/help", "you: ")
    terminal.type("你好\n")
    terminal.wait_for("model: 第1句：你好。", "you: ")
    terminal.type("\n")
    terminal.wait_for("is empty", "you: ")
    terminal.type(FAILING + "\n")
    terminal.wait_for("could not answer this: RuntimeError: the network broke", "you: ")
    terminal.type(long + "\n")
    terminal.wait_for("model: 第3句：")
    terminal.type("\x03")
    terminal.wait_for(r"\(stopped\)", "you: ")
    terminal.type("/history\n")
    terminal.wait_for("you: 今天天气", "model: 第3句：")
    terminal.wait_for("you: ")
    terminal.type(f"/save {tmp_path}/talk.jsonl\n")
    terminal.wait_for("4 turns in", "you: ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    (line,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    stopped = json.loads(line)["dialog"][3]
    assert f"第3句：{long}".startswith(stopped)

    left.wait_for("you: ")
    left.type("沉默\n")
    left.wait_for("model: ")
    left.type("\x03")
    left.wait_for("your message was not kept", "you: ")
    left.type("\x03")
    assert left.end() == 0
    assert "Traceback" not in left.text

    killed.wait_for("you: ")
    killed.type("你好\n")
    killed.wait_for("model: 第")
    killed.process.terminate()
    assert killed.end() == 143
    assert "Traceback" not in killed.text


def test_a_talk_through_a_pipe(processes):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    whole, cut, stopped = (start("-c", TALK, pause, **pipes) for pause in ("0", "0", "0.05"))
    processes += whole, cut, stopped
    out, err = whole.communicate("你好\n\n再见".encode(), timeout=100)
    assert out.decode().splitlines() == ["第1句：你好。", "", "第3句：再见。"]
    assert err.decode().splitlines() == ["ready", f"line 2: {problem_of('')}"]
    assert whole.returncode == 0

    # As `yes | chat.py RUN | head -1`.
    cut.stdin.write("你好\n".encode())
    cut.stdin.flush()
    assert cut.stdout.readline().decode() == "第1句：你好。\n"  # before the input ends
    cut.stdout.close()
    with suppress(BrokenPipeError):
        cut.stdin.write("再见\n".encode() * 3)
        cut.stdin.close()
    assert cut.stderr.read().decode() == "ready\n"
    assert cut.wait(100) == 0

    stopped.stdin.write("你好\n".encode())
    stopped.stdin.flush()
    stopped.stderr.readline()
    stopped.send_signal(signal.SIGTERM)
    assert stopped.communicate(timeout=100)[1] == b""
    assert stopped.returncode == 143


# ------------------------------------------------------------------------------------------- command line


def test_help_comes_at_once_and_arguments_are_told_on_one_line():
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", REPOSITORY / "chat.py", "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "RUN" in shown.stdout
    assert not re.search(r"\| *(torch|numpy|launch)", shown.stderr)
    wrong = subprocess.run(
        [sys.executable, REPOSITORY / "chat.py", "RUN", "--port", "80"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr == "--port: is of --web; see --help\n"


@pytest.fixture
def told(capsys):
    """What `chat.py` tells of arguments that it cannot use; it ends with 2."""
    before = signal.getsignal(signal.SIGTERM)

    def run(path, *settings: str, device: str = "cpu") -> str:
        assert chat.main(str(path), 0, device, settings, None) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("top_k", "--set top_k: type NAME=VALUE"),
        ("topk=3", "--set topk: no such option; did you mean top_k?"),
        ("top_k=-1", "--set top_k=-1: must be >= 0"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_loaded(told, setting, line):
    assert told("/no/such/run", setting).startswith(line)


def test_what_is_no_run_is_told(told, tmp_path):
    assert told(tmp_path / "nothing") == f"{tmp_path / 'nothing'}: no such file or directory"
    assert told("~nobody-of-this-name") == "~nobody-of-this-name: Could not determine home directory."
    assert "holds no checkpoints/best.ckpt" in told(tmp_path)
    checkpoint = tmp_path / "checkpoints/best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"PK\x03\x04 half of it")
    assert told(tmp_path).endswith("and " + str(tmp_path) + " has no config.yaml")
    for config in ("", "model: 3", "{", "model: {_target_: lightning_modules.dialogpt.DialoGPT}"):
        (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
        assert "damaged" in told(tmp_path)
    assert "damaged" in told(checkpoint)
    (tmp_path / TECHNIQUE).write_text("{", encoding="utf-8")
    for name in ("model.safetensors", "kexue_tokenizer.json"):
        assert told(tmp_path) == f"{tmp_path}: holds no {name}; copy the whole export/"
        (tmp_path / name).touch()
    assert told(tmp_path).startswith(f"{tmp_path}: cannot be loaded: damaged")
    (tmp_path / TECHNIQUE).write_text('{"_target_": "os.system"}', encoding="utf-8")
    assert told(tmp_path) == f"{tmp_path}: was written by os.system, which is not of this project"
    (tmp_path / TECHNIQUE).rename(tmp_path / "checkpoints" / TECHNIQUE)
    checkpoint.unlink()
    (tmp_path / "checkpoints").rename(tmp_path / "export")
    assert told(tmp_path).endswith(f"nor checkpoints/last.ckpt; type {tmp_path / 'export'}")


def test_a_model_that_cannot_reply_is_refused(told, monkeypatch):
    def loads(**model) -> None:
        fake = SimpleNamespace(**{"needs": {"text", "turns"}, "hparams": {}, "stream_reply": None} | model)
        monkeypatch.setattr("launch.predict.load_for_prediction", lambda path, trusted: (fake, INPUTS))
        monkeypatch.setattr(chat, "check_path", lambda path: None)

    loads(needs={"text", "labels"})
    assert "has learned no dialogues; train a model that has: python train.py model=dialogpt" in told("RUN")
    loads(hparams={"backward": True})
    assert "RUN: was trained with model.backward=true" in told("RUN")
    loads(decoding=Decoding())
    assert told("RUN", "min_length=40").startswith("--set min_length=40: ")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert told("RUN", device="cuda") == "--device cuda: PyTorch finds no GPU here; type --device cpu"


@pytest.mark.slow
def test_a_trained_model_is_talked_to(processes, tmp_path):
    finished(
        tmp_path / "run",
        *("model=dialogpt", "data=lccc", "trainer=cpu", "model/backbone=gpt_tiny"),
        *("model.backbone.hidden_size=32", "model.backbone.intermediate_size=64", "data.limit=64"),
        *("max_steps=5", "model.sampled_replies=2", "model.context=3000"),
    )
    program, run = str(REPOSITORY / "chat.py"), str(tmp_path / "run")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    terminal = Terminal(program, run, "--set", "min_length=1400", "--set", "max_length=1400")
    by_pipe = [start(program, path, "--seed", "3", **pipes) for path in (run, f"{run}/export")]
    processes += terminal.process, *by_pipe

    terminal.wait_for("DialoGPT from", "3000 tokens", "you: ")
    terminal.type("你好\n")
    terminal.wait_for(r"model: \S")
    terminal.type("\x03")
    terminal.wait_for(r"\(stopped\)", "you: ")
    terminal.type("/set min_length 5\n/set max_length 5\n😀吃饭了吗\n")
    terminal.wait_for("max_length = 5", "model: ", "you: ")
    terminal.type(f"/save {tmp_path}/talk.jsonl\n\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text and "could not answer" not in terminal.text
    (line,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    turns = json.loads(line)["dialog"]
    assert turns[::2] == ["你好", "😀吃饭了吗"]
    assert 0 < len(turns[1]) < 1400 and len(turns[3]) == 5

    said = [process.communicate("你好\n\n再见\n".encode(), timeout=100) for process in by_pipe]
    assert said[0] == said[1]
    assert [bool(line) for line in said[0][0].decode().splitlines()] == [True, False, True]
    assert said[0][1].decode() == f"line 2: {problem_of('')}\n"
    assert [process.returncode for process in by_pipe] == [0, 0]
