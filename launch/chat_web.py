"""A chat in the browser: Gradio's chat interface, served on this machine, that fetches nothing from elsewhere.

A visitor's turns belong to the session of that visitor's window: Gradio hands them over with each message, and each
reply gets a `Conversation` of its own, so visitors cannot mix. Replies are made one after another (`Voice`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import html
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any

from datamodules.corpus import DataError
from launch.chat import Conversation, OptionField, changed, option_fields, problem_of, read_option

if TYPE_CHECKING:
    import gradio
    import pytorch_lightning as pl

    from datamodules.text import TextInput
    from lightning_modules.decoding import Decoding

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Fonts of the visitor's own machine, with Chinese glyphs on each system; the page asks no server for one.
FONTS = (
    "system-ui", "Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "sans-serif",
)  # fmt: skip
MONO_FONTS = ("ui-monospace", "Noto Sans Mono CJK SC", "monospace")
# The lowest and the highest value of a slider and its step: what one tries, not all that is allowed.
SLIDERS = {
    "temperature": (0.05, 2.0, 0.05),
    "top_k": (0, 100, 1),
    "top_p": (0.05, 1.0, 0.05),
    "min_length": (0, 64, 1),
    "max_length": (1, 128, 1),
    "repetition_penalty": (0.5, 2.0, 0.05),
    "no_repeat_ngram": (0, 8, 1),
    "beams": (1, 16, 1),
    "candidates": (1, 16, 1),
}
# The help of a slider goes below its number, over the whole width.
STYLE = """
#options .head { display: block; position: relative; }
#options .head .tab-like-container { position: absolute; top: 0; right: 0; }
#options .head .info-text { margin-top: 0.8em; }
"""
NO_REPLY = "No reply"
BROKE = "The model could not answer this; the terminal of the server tells why. You can go on."


class Voice:
    """The one thread in which a model speaks, a reply at a time, from its first step to its last.

    A reply switches the network's attention while it is made, and `torch.inference_mode` belongs to a thread:
    two replies must not take turns on one network, and one must not wander over the server's threads.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reply")
        self._closed = threading.Event()

    async def say(self, reply: Callable[[], Generator[str]]) -> AsyncIterator[str]:
        """What `reply()` yields, as it comes. A reply that nobody waits for any longer ends at its next step.

        Raises:
            Exception: what the reply has raised.
        """
        loop, said, stopped = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def tell(event: str | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended with the server
                loop.call_soon_threadsafe(said.put_nowait, event)

        def speak() -> None:
            try:
                with contextlib.closing(reply()) as pieces:
                    for piece in pieces:
                        if stopped.is_set() or self._closed.is_set():
                            break
                        tell(piece)
            except Exception as error:
                tell(error)
            tell(None)

        job = self._thread.submit(speak)
        try:
            while (event := await said.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            stopped.set()
            job.cancel()

    def close(self) -> None:
        """End the reply that is being made, and those that wait."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)


def check(host: str, port: int) -> None:
    """Whether a page can be served there; asked before a model is loaded for it.

    Raises:
        DataError: Gradio is not installed, or nothing can listen at that address.
    """
    _gradio()
    host = host.strip("[]")
    if not 0 < port < 65536:
        raise DataError(f"--port={port}: must be from 1 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise _not_there(host, port, error) from None


def _not_there(host: str, port: int, error: OSError) -> DataError:
    if error.errno == errno.EACCES:
        return DataError(f"--port={port}: this account may not listen there; choose one above 1023")
    if error.errno in (errno.EADDRINUSE, None):
        return DataError(
            f"--port={port}: is in use on {host}; choose another (--port {port % 65535 + 1}) or end the program there"
        )
    return DataError(
        f"--host={host}: nothing can listen there ({error.strerror}); 127.0.0.1 is for this machine alone, 0.0.0.0 "
        "for all that reach it"
    )


def _gradio() -> ModuleType:
    """Gradio, which reads at its import that it must not call home.

    Raises:
        DataError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as missing:
        if missing.name != "gradio":
            raise
        raise DataError('--web: needs Gradio, which is not installed: pip install -e ".[chat]"') from None
    return gradio


def turns(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The turns of Gradio's `messages`, oldest first; a message without a reply (it failed, was stopped) is left out."""
    found: list[str] = []
    asked = None
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        if message["role"] == "user":
            asked = text
        elif asked is not None and text.strip() and (message.get("metadata") or {}).get("title") != NO_REPLY:
            found += asked, text
            asked = None
    return found


def build(model: pl.LightningModule, inputs: TextInput, name: str, voice: Voice) -> gradio.Blocks:
    """The page of a chat with `model`, not yet served.

    Args:
        name: what the page calls the model; the run or export that was typed.
        voice: where its replies are made.

    Raises:
        DataError: Gradio is not installed.
    """
    gr = _gradio()
    fields = option_fields()
    names = [field.name for field in fields]
    options = [_control(gr, field, getattr(model.decoding, field.name)) for field in fields]
    seed = gr.Textbox(
        "", label="seed", info="empty: another reply each time", placeholder="a whole number", render=False
    )

    async def reply(message: str, history: list[dict], seed: str, *values: Any):
        # An exception would leave Gradio's page waiting for ever: what is wrong is told as a message.
        problem = problem_of(message)
        if problem:
            yield _no_reply(problem), ""
            return
        try:
            decoding = _decoding(model.decoding, dict(zip(names, values, strict=True)))
            conversation = Conversation(model, inputs, decoding, _seed(seed))
        except ValueError as wrong:
            yield _no_reply(str(wrong)), ""
            return
        conversation.history = turns(history)
        said = ""
        try:
            async for said in voice.say(lambda: conversation.answer(message)):
                yield said, conversation.note or ""
            if not said.strip() and conversation.note:
                yield _no_reply(conversation.note), ""
        except Exception:
            log.exception("a reply failed")
            yield _no_reply(BROKE), ""

    def acceptable(message: str) -> dict:
        problem = problem_of(message)
        return gr.validate(problem is None, problem or "")

    with gr.Blocks(title=f"Chat with {name}", fill_height=True, analytics_enabled=False) as page:
        with gr.Sidebar(position="right", open=False, width=400, elem_id="options"):
            gr.Markdown("### Options of a reply\nThey hold from the next message on, in this window alone.")
            for control in (*options, seed):
                control.render()
        note = gr.Markdown(render=False, elem_id="note")
        chat = gr.ChatInterface(
            reply,
            chatbot=gr.Chatbot(
                label=name, scale=1, render_markdown=False, buttons=["copy_all"], layout="bubble",
                placeholder="Say something: 你好，今天过得怎么样？", elem_id="chat", group_consecutive_messages=False,
            ),
            textbox=gr.Textbox(
                label="Message", placeholder="Your message, sent by Enter", show_label=False, submit_btn=True, stop_btn=True,
                autofocus=True, scale=7, max_lines=6, elem_id="message",
            ),
            additional_inputs=[seed, *options],
            additional_outputs=[note],
            title=f"Chat with {html.escape(type(model).__name__)}",
            description=_about(model),
            validator=acceptable,
            concurrency_limit=1,
            fill_height=True,
            api_name="chat",
            analytics_enabled=False,
        )  # fmt: skip
        note.render()
        chat.chatbot.clear(lambda: "", None, note, queue=False, api_visibility="private")
    return page


def _about(model: pl.LightningModule) -> str:
    size = sum(weight.numel() for weight in model.parameters())
    return (
        f"A research model of {size / 1e6:,.1f} M weights: it continues a dialogue as its corpus would, knows nothing "
        "and can be rude. The arrow at the top right opens its options. Reloading the page forgets the conversation."
    )


def _no_reply(why: str) -> dict[str, Any]:
    """A message of the page that is no turn of the dialogue."""
    return {"role": "assistant", "content": why, "metadata": {"title": NO_REPLY}}


def _theme(gr: ModuleType) -> Any:
    theme = gr.themes.Default(font=FONTS, font_mono=MONO_FONTS)
    # Gradio's own grey of the help texts is too pale to be read with ease.
    return theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")


def _control(gr: ModuleType, field: OptionField, value: Any) -> Any:
    """What a visitor changes one option of the decoding with; it begins at the model's own `value`."""
    common = {"label": field.name, "info": field.help, "render": False}
    if field.name in SLIDERS:
        low, high, step = SLIDERS[field.name]
        return gr.Slider(min(low, value), max(high, value), value=value, step=step, **common)
    if isinstance(value, bool):
        return gr.Checkbox(value, **common)
    if isinstance(value, int | float):
        return gr.Number(value, precision=0 if isinstance(value, int) else None, **common)
    return gr.Textbox(_shown(value), placeholder="words between spaces", **common)


def _decoding(own: Decoding, typed: dict[str, Any]) -> Decoding:
    """The model's own options with those of the panel.

    Raises:
        ValueError: an option out of its range.
    """
    changes = {}
    for name, value in typed.items():
        before = getattr(own, name)
        if value is None:  # an emptied box: as the model has it
            continue
        if isinstance(value, str):
            # Words of the model's own may have spaces: left alone, they are not read anew.
            value = before if value == _shown(before) else read_option(name, value)
        elif isinstance(before, int):
            value = int(value)  # a slider's numbers are floats
        changes[name] = value
    return changed(own, changes)


def _seed(typed: str) -> int:
    try:
        return int(typed) if typed.strip() else secrets.randbits(31)
    except ValueError:
        raise ValueError(f"seed={typed[:20]}: must be a whole number, or empty") from None


def _shown(words: list[str] | None) -> str:
    return " ".join(words or ())


def serve(
    model: pl.LightningModule, inputs: TextInput, name: str, host: str = LOOPBACK[0], port: int = 7860
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        name: what the page calls the model.
        host: the address to listen at; the default is reached from this machine alone.

    Raises:
        DataError: Gradio is not installed, or nothing can listen at that address.
    """
    host = host.strip("[]")
    check(host, port)
    gr = _gradio()
    # Gradio looks whether it reaches its own server; through a proxy it would not.
    os.environ["no_proxy"] = "*"
    voice, ended = Voice(), threading.Event()
    page = build(model, inputs, name, voice)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: ended.set())
    try:
        try:
            _, url, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host, server_port=port, share=False, inbrowser=False, quiet=True, ssr_mode=False,
                prevent_thread_lock=True, run_history=False, footer_links=[], pwa=False, mcp_server=False,
                enable_monitoring=False, theme=_theme(gr), css=STYLE,
            )  # fmt: skip
        except OSError as error:
            raise _not_there(host, port, error) from None
        print(f"Chat with {name}: {url} (Ctrl-C ends it)", flush=True)
        if host not in LOOPBACK:
            print(f"--host={host}: whoever reaches this machine can talk to the model; there is no password")
        ended.wait()
    finally:
        # A second Ctrl-C does not wait for the last reply.
        for number, handler in before.items():
            signal.signal(number, handler)
        voice.close()
        _close(page)


def _close(page: gradio.Blocks) -> None:
    """End the server without waiting for the open pages, each of which keeps a connection for good."""
    if not page.is_running:
        return
    complaints = logging.getLogger("uvicorn.error")
    complaints.disabled = True  # it would print a traceback for each connection
    page.server.force_exit = True
    page.close(verbose=False)
    complaints.disabled = False
