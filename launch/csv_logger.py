"""metrics.csv: every logged number of a run, in one file that a resumed run continues.

Lightning's own CSVLogger deletes the file of the run that it continues.
"""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class CSVLogger(Logger):
    """Writes one row a step: `step`, `epoch` and every metric logged with that step.

    `step` is Lightning's: the number of optimiser steps before the batch that the row speaks of. The row of
    the first batch, and of a validation right after it, has step 0; metrics logged after training (the test)
    have the number of steps made.

    A row is on disk when `log_metrics` returns. Further metrics of the last row's step are merged into it; a
    metric never seen before widens the header, for which the file is written beside and renamed. `resume_at`
    drops what a resumed run does again. Only rank zero writes.

    Args:
        path: the file, continued where it exists; its folder is made at the first row.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] | None = None  # None: the file has not been looked at yet
        self._last_row: dict[str, Any] = {}
        self._last_row_start = 0  # byte offset of the row that further metrics of its step may complete

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write `metrics` into the row of `step` (0 where it is None)."""
        row: dict[str, Any] = {"step": int(step or 0)}
        row |= {name: _plain(value) for name, value in metrics.items() if name != "step"}
        if self._columns is None:
            self._open()
        again = self._last_row.get("step") == row["step"]
        if again:
            row = self._last_row | row
        else:
            self._last_row_start = self.path.stat().st_size
        columns = [*self._columns, *(name for name in row if name not in self._columns)]
        line = _line([row.get(name, "") for name in columns])
        is_shorter = self._last_row_start + len(line) < self.path.stat().st_size
        if is_shorter or len(columns) > len(self._columns):
            rows = read_metrics(self.path)
            self._replace(columns, [*(rows[:-1] if again else rows), row])
            self._last_row_start = self.path.stat().st_size - len(line)
        else:
            # One call that covers the old row: a process that is killed, and one that reads, has the old or the new.
            with open(self.path, "r+b") as file:
                file.seek(self._last_row_start)
                file.write(line)
        self._last_row = row

    @rank_zero_only
    def resume_at(self, global_step: int) -> None:
        """Forget the rows of the steps that come after `global_step` optimiser steps; 0 empties the file.

        `RunMetrics` calls it where training starts: a run killed between two checkpoints left rows of steps
        that its continuation makes again.
        """
        self._open()
        kept = [row for row in read_metrics(self.path) if row["step"] < global_step]
        self._replace(self._columns if kept else ["step", "epoch"], kept)
        self._open()

    def _open(self) -> None:
        """Take over the file that is there, without a last line that was cut off while it was written."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            self._replace(["step", "epoch"], [])
        elif len(whole) < len(content):
            os.truncate(self.path, len(whole))
        with open(self.path, encoding="utf-8", newline="") as file:
            self._columns = next(csv.reader(file))
        rows = read_metrics(self.path)
        self._last_row = rows[-1] if rows else {}
        self._last_row_start = whole.rfind(b"\n", 0, -1) + 1

    def _replace(self, columns: list[str], rows: list[dict[str, float]]) -> None:
        beside = self.path.with_name(f".{self.path.name}.tmp")
        with open(beside, "wb") as file:
            file.write(_line(columns))
            file.writelines(_line([row.get(name, "") for name in columns]) for row in rows)
        os.replace(beside, self.path)
        self._columns = columns


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """Rows of a metrics.csv in the order of the file, each with the metrics that it has; `step`, `epoch` are
    int.

    A last line that was cut off while it was written is left out; a missing or empty file has no rows.
    """
    if not os.path.exists(path):
        return []
    content = Path(path).read_bytes()
    lines = csv.reader(io.StringIO(content[: content.rfind(b"\n") + 1].decode("utf-8")))
    columns = next(lines, [])
    return [
        {
            name: (int if name in ("step", "epoch") else float)(value)
            for name, value in zip(columns, line, strict=False)
            if value
        }
        for line in lines
    ]


def _line(values: list) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _plain(value: Any) -> float:
    return value.item() if hasattr(value, "item") else value
