"""Log lines that go together with a live progress bar."""

import logging
import sys


class StdoutHandler(logging.StreamHandler):
    """Writes to what `sys.stdout` is at the moment: a live bar stands in for it to print lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)
