"""Directories that exist only when they are whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.corpus import DataError

UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
}


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/kexue-lightning`, or `~/.cache/kexue-lightning`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kexue-lightning"


def cache_key(*parts: object) -> str:
    """A directory name for content that is a function of `parts` (strings and numbers)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """Gives a directory beside `directory` to write into, and renames it when the block is through.

    Two runs that write the same directory at the same time do not disturb each other: the later one finds the
    earlier one's result and drops its own.

    Raises:
        DataError: the disk is full or cannot be written; nothing half-written stays.
    """
    building = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
        yield building
        try:
            building.rename(directory)
        except OSError:
            if not directory.exists():
                raise
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise DataError(
            f"{directory.parent}: cannot write the cache ({error}); free some space or set data.cache_dir="
        ) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
