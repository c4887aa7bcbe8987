"""The page of `chat.py --web` in a headless Chromium.

As a program it takes the picture of the docs, of a real model: `python tests/chat_page.py RUN PICTURE.png MESSAGE ...`
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

REPOSITORY = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SECONDS = 30


def eventually(found: Callable[[], Any], what: str) -> Any:
    """What `found()` gives once it is true.

    Raises:
        TimeoutError: it does not become true.
    """
    until = time.monotonic() + SECONDS
    while not (value := found()):
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(*command: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, and the address that it prints."""
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))
    process = subprocess.Popen(
        [sys.executable, "-u", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if address := re.search(r"http://\S+", line):
                break
        else:
            raise RuntimeError("the server ended: " + "".join(said))
        yield process, address[0]
    finally:
        process.kill()
        process.communicate()


class Browser:
    """Windows on a chat, each a visitor; no name but 127.0.0.1 is found by it."""

    def __init__(self, width: int = 1200, height: int = 860) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        for argument in (
            "--headless=new",
            f"--window-size={width},{height}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            "--lang=en-US",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ):
            options.add_argument(argument)
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def open(self, url: str) -> None:
        """The page in the present window, ready to be typed into."""
        self.driver.get(url)
        eventually(self._box, "no box to type into")

    def open_window(self, url: str) -> None:
        """The page in a window of its own."""
        self.driver.switch_to.new_window("tab")
        self.open(url)

    def switch(self, window: int) -> None:
        self.driver.switch_to.window(self.driver.window_handles[window])

    def _box(self) -> Any:
        boxes = self.driver.find_elements(By.CSS_SELECTOR, "#message textarea")
        return boxes[0] if boxes and boxes[0].is_displayed() and boxes[0].is_enabled() else None

    def type(self, message: str) -> None:
        """Type a message and send it."""
        box = eventually(self._box, "the box is not free")
        box.clear()
        box.send_keys(message, Keys.ENTER)

    def say(self, message: str) -> str:
        """The whole reply to a message."""
        before = len(self.messages())
        self.type(message)
        eventually(lambda: len(self.messages()) >= before + 2 and not self.is_speaking(), "no reply")
        return self.messages()[-1]

    def is_speaking(self) -> bool:
        return bool(self._all(".stop-button")) or self.messages()[-1:] == ["Loading content"]

    def messages(self) -> list[str]:
        """The bubbles of the chat, the visitor's and the model's."""
        return self._texts("#chat .message.user, #chat .message.bot")

    def complaint(self) -> str:
        """What the page says of a message that it does not take."""
        return " ".join(self._texts("#message div.validation-error"))

    def note(self) -> str:
        return " ".join(self._texts("#note"))

    def stop(self) -> None:
        self._all(".stop-button")[0].click()

    def clear(self) -> None:
        self._all("#chat button[aria-label=Clear], #chat button[title=Clear]")[0].click()

    def open_options(self) -> None:
        self._all(".toggle-button")[0].click()
        time.sleep(0.5)  # it slides in

    def requested(self) -> set[str]:
        """The addresses that were asked for by the windows, since the last call."""
        sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {
            event["params"]["request"]["url"]
            for event in sent
            if event["method"] == "Network.requestWillBeSent"
        }

    def _all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def _texts(self, selector: str) -> list[str]:
        # In one go: Gradio replaces the elements while a reply grows.
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())", selector
        )


def main(run: str, picture: str, *messages: str) -> None:
    program = (str(REPOSITORY / "chat.py"), run, "--web", "--port", str(free_port()))
    with server(*program) as (_, url), Browser() as browser:
        browser.open(url)
        for message in messages:
            print(message, "->", browser.say(message))
        browser.open_options()
        browser.driver.save_screenshot(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
