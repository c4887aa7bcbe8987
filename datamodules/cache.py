"""Directories that exist only when they are whole."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
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
    errno.EFBIG,
    errno.ESTALE,
}
# `.<name>-<machine>-<process>-<random>`: what is being written.
_BUILDING = re.compile(r"\..+-(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})-[0-9a-f]{8}")
_RUST_ERROR = re.compile(r"\(os error (\d+)\)$")  # as `tokenizers` writes its files
WEEK = 7 * 24 * 3600


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/kexue-lightning`, or `~/.cache/kexue-lightning`.

    Raises:
        ValueError: there is neither.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kexue-lightning"
    except RuntimeError as error:
        raise ValueError(
            "cache_dir=None: there is no home directory; name a folder: data.cache_dir=DIR"
        ) from error


def cache_key(*parts: object) -> str:
    """A directory name for content that is a function of `parts` (strings and numbers)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def damaged(what: str, directory: Path, error: Exception) -> DataError:
    """What is said where a directory of the cache cannot be read: `what` it holds, why, and the way out."""
    reason = " ".join(str(error).split())
    return DataError(
        f"the {what} cache {directory} is damaged ({reason}); delete that directory and run again"
    )


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """Gives a directory beside `directory` to write into, and renames it when the block is through.

    Two runs that write the same directory at the same time do not disturb each other: the later one finds the
    earlier one's result and drops its own. What a run that was killed has left is removed by the next one.

    Raises:
        DataError: the disk is full or cannot be written; nothing half-written stays.
    """
    building = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory.parent)
        unique = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        building = directory.parent / f".{directory.name}-{unique}"
        building.mkdir()
        yield building
        # After a power cut, too, the directory is whole if it is there.
        for path in building.rglob("*"):
            _sync(path)
        _sync(building)
        try:
            building.rename(directory)
        except OSError:
            if not directory.exists():
                raise
        _sync(directory.parent)
    except Exception as error:
        if not _is_of_cache(error, directory.parent):
            raise
        raise DataError(
            f"{directory.parent}: cannot write the cache ({error}); free some space or set data.cache_dir="
        ) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def _is_of_cache(error: Exception, root: Path) -> bool:
    """Whether something could not be written, and it is not an error of the corpus that is read in the meantime."""
    if not isinstance(error, OSError):
        rust = _RUST_ERROR.search(str(error))
        return rust is not None and int(rust[1]) in UNWRITABLE
    if error.filename is None:
        return error.errno in UNWRITABLE
    file = Path(os.fsdecode(error.filename))
    return file.is_relative_to(root) or root.is_relative_to(file)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    if path.is_dir():
        with suppress(OSError):  # not every file system can
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    else:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _remove_abandoned(root: Path) -> None:
    """What writers left that were killed. Whether one still runs can be asked on its machine only; on others it
    counts as killed when it has written nothing for a week."""
    for path in root.iterdir():
        name = _BUILDING.fullmatch(path.name)
        if name is None:
            continue
        with suppress(OSError):  # gone in the meantime
            if name["machine"] == _machine() and os.name == "posix":  # elsewhere signal 0 is Ctrl-C
                abandoned = not _runs(int(name["process"]))
            else:
                written = max(file.stat().st_mtime for file in (path, *path.rglob("*")))
                abandoned = time.time() - written > WEEK
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)


@cache
def _machine() -> str:
    """Names the place where process ids are what they are here: containers of one host number theirs anew."""
    namespace = Path("/proc/self/ns/pid")
    return cache_key(platform.node(), os.readlink(namespace) if namespace.exists() else "")[:8]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
