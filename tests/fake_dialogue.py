"""A dialogue model without a network, for the tests of the chats: its reply tells what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

from lightning_modules.decoding import Decoding

FAILING, SILENT = "出错吧", "别说话"


class FakeDialogue:
    """Answers with the number of the turn that it answers, the first turn that it sees, and the last one.

    Args:
        turns_seen: it sees so many turns of a history, the newest.
        characters_seen: of a last turn it sees so many characters, the last ones.
        pause: seconds before each character.

    Attributes:
        asked: the history, the options, the seed and the thread of every call of `stream_reply`.
        speaking: how many replies are being made.
        at_once: how many were at the same time, at most.
    """

    def __init__(
        self,
        turns_seen: int = 6,
        characters_seen: int = 100,
        pause: float = 0.0,
        decoding: Decoding | None = None,
    ):
        self.turns_seen, self.characters_seen, self.pause = turns_seen, characters_seen, pause
        self.decoding = decoding or Decoding()
        self.asked: list[SimpleNamespace] = []
        self.at_once = self.speaking = 0

    def parameters(self) -> list:
        return []

    def kept_history(
        self, history: Sequence[str], inputs: object, decoding: Decoding | None = None
    ) -> tuple[str, ...]:
        *before, last = history[-self.turns_seen :]
        return *before, last[-self.characters_seen :]

    def stream_reply(
        self, history: Sequence[str], inputs: object, decoding: Decoding | None = None, seed: int = 0
    ) -> Iterator[str]:
        """The reply so far, a character more each time; nothing where the last turn is `SILENT`.

        Raises:
            RuntimeError: the last turn is `FAILING`; after the first characters.
        """
        decoding = decoding or self.decoding
        thread = threading.get_ident()
        self.asked.append(
            SimpleNamespace(history=tuple(history), decoding=decoding, seed=seed, thread=thread)
        )
        seen = self.kept_history(history, inputs)
        reply = "" if seen[-1] == SILENT else f"第{len(history)}句：{seen[0]}……{seen[-1]}。"
        self.speaking += 1
        self.at_once = max(self.at_once, self.speaking)
        try:
            for end in range(1, min(len(reply), decoding.max_length) + 1):
                if seen[-1] == FAILING and end == 3:
                    raise RuntimeError("the network broke")
                time.sleep(self.pause)
                yield reply[:end]
        finally:
            self.speaking -= 1
