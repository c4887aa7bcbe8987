"""The chat in the browser: over Gradio's own client, and (slow) in a headless Chromium."""

import asyncio
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_page import CHROMIUM, DRIVER, Browser, eventually, free_port, server
from fake_dialogue import FAILING, SILENT, FakeDialogue
from gradio_client import Client

from datamodules.corpus import DataError
from launch.chat import option_fields
from launch.chat_web import BROKE, NO_REPLY, Voice, build, check, serve, turns
from lightning_modules.decoding import Decoding

NAME = "runs/dialogpt-lccc/1"
# Of Gradio's use of pandas.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")
OWN = Decoding(top_k=7, max_length=40, banned_words=["two words"])

# ------------------------------------------------------------------------------------ over Gradio's client


@pytest.fixture(scope="module")
def served():
    """The model and the address of a page that is served from this process."""
    model, voice = FakeDialogue(pause=0.005, decoding=OWN), Voice()
    page = build(model, None, NAME, voice)
    _, url, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield model, url
    voice.close()
    page.close(verbose=False)


class Visitor:
    """One session of the page."""

    def __init__(self, url):
        self.client = Client(url, verbose=False, analytics_enabled=False)

    def submit(self, message, seed="", **options):
        own = {field.name: getattr(OWN, field.name) for field in option_fields()}
        values = [
            " ".join(value or ()) if "words" in name else value for name, value in (own | options).items()
        ]
        return self.client.submit(message, seed, *values, api_name="/chat")

    def say(self, message, seed="", **options):
        """The reply and the note below it."""
        said, note = self.submit(message, seed, **options).result()
        return said if isinstance(said, str) else said["content"], note


@pytest.fixture
def visitor(served):
    return Visitor(served[1])


def test_visitors_at_the_same_time_do_not_mix_and_the_model_makes_one_reply_after_another(served):
    model, url = served
    model.asked.clear()
    names = "甲乙丙"

    def talk(name):
        visitor = Visitor(url)
        return [visitor.say(f"{name}{number}")[0] for number in range(3)]

    with ThreadPoolExecutor(len(names)) as pool:
        talks = dict(zip(names, pool.map(talk, names), strict=True))
    for name, replies in talks.items():
        assert replies == [f"第{2 * number + 1}句：{name}0……{name}{number}。" for number in range(3)]
        own = [call.history for call in model.asked if call.history[0].startswith(name)]
        assert own[2] == (f"{name}0", replies[0], f"{name}1", replies[1], f"{name}2")
    assert model.at_once == 1 and len({call.thread for call in model.asked}) == 1


def test_a_reply_grows_while_it_is_made(visitor):
    job = visitor.submit("今天天气真好")
    job.result()
    pieces = [said for said, _ in job.outputs()]
    assert len(pieces) > 5 and pieces[-1] == "第1句：今天天气真好……今天天气真好。"
    assert all(pieces[-1].startswith(piece) for piece in pieces)


def test_the_oldest_turns_are_dropped_and_the_visitor_is_told(visitor):
    notes = [visitor.say(f"第{number}问")[1] for number in range(4)]
    assert notes[:3] == ["", "", ""] and "no longer sees the oldest turn" in notes[3]


@pytest.mark.parametrize(
    "message, told",
    [
        ("", "empty"),
        (" \n", "empty"),
        ("很长" * 5000, "……" + "很长" * 10),
        ("😀🎉", "😀🎉"),
        ("<b>*x*</b>\n$y$", "<b>*x*</b>\n$y$"),
        (FAILING, BROKE),
        (SILENT, "said nothing"),
    ],
    ids=["empty", "blank", "long", "emoji", "markup", "failing", "silent"],
)
def test_an_awkward_message_is_answered_kindly_and_the_talk_goes_on(served, message, told):
    visitor = Visitor(served[1])
    said, note = visitor.say(message, max_length=128)
    assert told in said
    assert note.startswith("The message is longer than the model's context") == (len(message) == 10_000)
    # What was not answered is no turn of the talk.
    answered = message.startswith(("很长", "😀", "<b>"))
    visitor.say("你好")
    assert served[0].asked[-1].history == ((message, said, "你好") if answered else ("你好",))


def test_options_begin_at_the_models_own_and_hold_for_one_visitor(served):
    model, url = served
    one, other = Visitor(url), Visitor(url)
    assert one.say("一二三四五", max_length=3, stop_words=["再见,", "拜拜"], seed="5") == ("第1句", "")
    changed = model.asked[-1]
    assert (changed.decoding.top_k, changed.decoding.stop_words, changed.seed) == (7, ["再见", "拜拜"], 5)
    assert changed.decoding.banned_words == ["two words"]
    assert other.say("你好")[0] == "第1句：你好……你好。"
    assert model.asked[-1].decoding.max_length == 40 and model.asked[-1].decoding.stop_words is None
    assert model.asked[-1].seed != 5


@pytest.mark.parametrize(
    "options, told",
    [
        ({"min_length": 20, "max_length": 4}, "min_length=20: must be at most max_length=4"),
        ({"seed": "many"}, "seed=many: must be a whole number, or empty"),
    ],
)
def test_options_that_cannot_be_are_told(visitor, options, told):
    assert visitor.say("你好", **options) == (told, "")
    assert visitor.say("你好")[0] == "第1句：你好……你好。"


# -------------------------------------------------------------------------------------------- without a page


def test_a_reply_that_nobody_waits_for_ends():
    voice, model = Voice(), FakeDialogue(pause=0.01)

    async def leave():
        pieces = voice.say(lambda: model.stream_reply(["很长" * 1000], None, OWN.replace(max_length=10_000)))
        first = await anext(pieces)
        await pieces.aclose()
        return first, [piece async for piece in voice.say(lambda: (piece for piece in "再见"))]

    assert asyncio.run(leave()) == ("第", ["再", "见"])
    assert model.speaking == 0
    voice.close()


def message(role, content, **more):
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    "messages, found",
    [
        ([], []),
        ([message("user", "甲"), message("assistant", "乙")], ["甲", "乙"]),
        (
            [message("user", [{"type": "text", "text": "甲"}]), message("assistant", [{"text": "乙"}])],
            ["甲", "乙"],
        ),
        ([message("user", "甲"), message("user", "丙"), message("assistant", "乙")], ["丙", "乙"]),
        ([message("user", "甲"), message("assistant", BROKE, metadata={"title": NO_REPLY})], []),
        ([message("user", "甲"), message("assistant", " ")], []),
        ([message("assistant", "乙")], []),
    ],
)
def test_turns_are_messages_with_their_replies(messages, found):
    assert turns(messages) == found


def test_a_port_that_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=rf"--port={port}: is in use on 127.0.0.1; .*--port {port + 1}"):
            serve(None, None, NAME, port=port)


@pytest.mark.parametrize(
    "host, port, said",
    [
        ("127.0.0.1", 0, "--port=0: must be from 1 to 65535"),
        ("127.0.0.1", 70000, "--port=70000: must be from 1 to 65535"),
        ("192.0.2.1", 7860, "--host=192.0.2.1: nothing can listen there"),
        ("no.such.host.invalid", 7860, "--host=no.such.host.invalid: nothing can listen there"),
    ],
)
def test_addresses_where_nothing_can_listen(host, port, said):
    with pytest.raises(DataError) as caught:
        check(host, port)
    assert str(caught.value).startswith(said)


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(DataError, match=r'--web: .*pip install -e "\.\[chat\]"'):
        check("127.0.0.1", 7860)


# ------------------------------------------------------------------------------------------- in a real browser

# It tells when it turns to another machine.
SERVER = f"""
import sys
from fake_dialogue import FakeDialogue
from launch.chat_web import serve

def heard(event, arguments):
    if event == "socket.connect" and "127.0.0.1" not in arguments[1]:
        print("ELSEWHERE", arguments[1], flush=True)

sys.addaudithook(heard)
serve(FakeDialogue(pause=0.08), None, "{NAME}", port=%d)
"""
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver: the packages chromium, chromium-driver"
)


@pytest.mark.slow
@needs_chromium
def test_a_chat_in_chromium(tmp_path):
    with server("-c", SERVER % free_port()) as (process, url), Browser() as browser:
        browser.open(url)
        browser.type("今天天气真好")
        seen = []
        whole = "第1句：今天天气真好……今天天气真好。"

        def ended():
            seen.extend(browser.messages()[1:])
            return seen[-1:] == [whole]

        eventually(ended, "no whole reply")
        grown = [piece for piece in dict.fromkeys(seen) if piece and whole.startswith(piece)]
        assert len(grown) >= 3 and grown == sorted(grown, key=len)

        # A second visitor, while the first waits for a reply.
        eventually(lambda: not browser.is_speaking(), "still speaking")
        browser.type("我很高兴")
        browser.open_window(url)
        assert browser.say("在吗") == "第1句：在吗……在吗。" and browser.messages()[0] == "在吗"
        browser.switch(0)
        eventually(
            lambda: browser.messages()[3:] == ["第3句：今天天气真好……我很高兴。"], "the first visitor's reply"
        )

        eventually(lambda: not browser.is_speaking(), "still speaking")
        browser.type("   ")
        assert "empty" in eventually(browser.complaint, "nothing is said of an empty message")
        assert len(browser.messages()) == 4

        assert BROKE in browser.say(FAILING)
        assert browser.say("还在吗") == "第5句：今天天气真好……还在吗。"

        browser.type("说一句很长很长很长很长很长的话")
        eventually(lambda: browser.messages()[-1].startswith("第7"), "no reply begins")
        browser.stop()
        eventually(lambda: not browser.is_speaking(), "it speaks on")
        stopped = browser.messages()[-1]
        assert stopped.startswith("第7") and not stopped.endswith("。")
        assert browser.say("好").endswith("……好。") and "no longer sees" in browser.note()

        browser.clear()
        eventually(lambda: not browser.messages() and not browser.note(), "not cleared")
        assert browser.say("重新来") == "第1句：重新来……重新来。"

        picture = tmp_path / "chat.png"
        browser.open_options()
        assert browser.driver.save_screenshot(str(picture)) and picture.stat().st_size > 10_000
        elsewhere = {
            address for address in browser.requested() if not address.startswith((url, "data:", "blob:"))
        }
        assert elsewhere == set()

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "ELSEWHERE" not in process.stdout.read()


@pytest.mark.slow
def test_ctrl_c_ends_the_server_while_it_speaks():
    with server("-c", SERVER % free_port()) as (process, url):
        job = Visitor(url).submit("一二三四五六七八九十")
        eventually(job.outputs, "no reply begins")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stdout.read()
