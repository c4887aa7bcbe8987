"""Log lines that go together with a live progress bar, and with those of other jobs."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import rich

from launch.parallel import job_number


class StdoutHandler(logging.StreamHandler):
    """Writes to what `sys.stdout` is at the moment: a live bar stands in for it to print lines above itself.

    Where several jobs write at once, each line begins with the number of its job, and there is no live bar.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        number = job_number()
        self._prefix = "" if number is None else f"[{number}] "
        if self._prefix:
            rich.reconfigure(force_terminal=False)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return self._prefix + super().format(record)
