"""Dataset files from the Hugging Face hub, through the cache that all of Hugging Face's libraries share."""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from errno import ENOSPC
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from datamodules.cache import UNWRITABLE
from datamodules.corpus import DataError

log = logging.getLogger(__name__)

T = TypeVar("T")

# A part of a split that is written as several files.
SHARD = re.compile(r"(.*-)(\d{5})(-of-(\d{5}).*)")

ATTEMPTS = 5
# Seconds after which no further look-up starts; one takes HF_HUB_ETAG_TIMEOUT (10) at most.
PATIENCE = 12.0
# Seconds that are waited at most where the hub asks for a pause.
LONGEST_PAUSE = 60.0


class Snapshot(NamedTuple):
    """Files of one commit of a dataset repository.

    Attributes:
        folder: the commit's folder in the hub's cache; the files lie in it as they do in the repository.
        commit: its full hash, which names the same files for ever.
    """

    folder: Path
    commit: str


def download(
    repo_id: str, patterns: Sequence[str], revision: str | None = None, way_out: str = "a copy on disk"
) -> Snapshot:
    """The files of the dataset repository `repo_id` that match `patterns`, from the hub or its cache.

    A snapshot is whole or it is not returned: the list of a commit's files, which the hub gave and the cache
    keeps beside them, says what has to be there and how long it is. (A cache without the list is used where names
    show as much.) A commit that the cache holds whole is used without a request; so is every revision with
    `HF_HUB_OFFLINE=1`. Where the hub does not answer, a cached commit of the revision is used with a warning.

    Args:
        patterns: as for `fnmatch`, `*` also for `/`; every one has to match a file.
        revision: a branch, a tag, a full commit hash or `refs/convert/parquet`; None is `main`.
        way_out: what else a user can do, for error messages.

    Raises:
        DataError: the files cannot be had. One line: repository, revision, endpoint, reason, ways out.
    """
    from huggingface_hub import constants

    source = f"{repo_id} (revision {revision or 'main'}) from {constants.ENDPOINT}"
    try:
        return _download(source, repo_id, patterns, revision)
    except Exception as error:  # huggingface_hub lets out nearly every class, httpx's and hf_xet's among them
        problem, remedy = _told(error)
        raise DataError(f"{source}: {problem}; {remedy}, or {way_out}") from error


class _Unusable(Exception):
    """Why there is no whole snapshot, and what to do about it."""

    def __init__(self, problem: str, remedy: str = "run it again"):
        super().__init__(problem, remedy)


def _download(source: str, repo_id: str, patterns: Sequence[str], revision: str | None) -> Snapshot:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    cached: Snapshot | None = None
    try:
        cached = _cached(repo_id, patterns, revision)
    except _Unusable as lack:
        if constants.HF_HUB_OFFLINE:
            remedy = "unset HF_HUB_OFFLINE to download, set HF_HOME to a filled cache"
            raise _Unusable(f"HF_HUB_OFFLINE is set, and {lack.args[0]}", remedy) from None
    if cached is not None and (constants.HF_HUB_OFFLINE or cached.commit == revision):
        return cached

    def look_up() -> str:
        # Not left to snapshot_download: it tries once, without a time limit, and falls back without a word.
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        return HfApi().dataset_info(repo_id, revision=revision, timeout=timeout).sha

    def fetch() -> Path:
        at = {"repo_type": "dataset", "revision": commit}
        folder = Path(snapshot_download(repo_id, allow_patterns=list(patterns), **at))
        # For huggingface_hub a file that is there is whole, whatever its size.
        for name in _lacking(folder, repo_id, patterns):
            hf_hub_download(repo_id, name, force_download=True, **at)
        return folder

    try:
        commit = _patiently(source, look_up, _is_unreached, 0 if cached else PATIENCE)
    except Exception as error:
        if cached is None or not _is_unreached(error):
            raise
        log.warning(
            f"{source}: {_told(error)[0]}; using what the cache holds, which may not be the newest: "
            f"commit {cached.commit}"
        )
        return cached
    folder = _patiently(source, fetch, _is_torn, math.inf)
    if lacking := _lacking(folder, repo_id, patterns):
        raise _Unusable(f"{_some(lacking)} did not come whole")
    if revision != commit:
        _note(folder, revision or "main")
    return Snapshot(folder, commit)


def _cached(repo_id: str, patterns: Sequence[str], revision: str | None) -> Snapshot:
    """What the cache holds of the revision, without a request; _Unusable where that is not all of it."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    options = {"repo_type": "dataset", "revision": revision, "allow_patterns": list(patterns)}
    try:
        folder = Path(snapshot_download(repo_id, local_files_only=True, **options))
    except IncompleteSnapshotError as error:
        folder = Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        raise _Unusable(f"the cache {constants.HF_HUB_CACHE} does not hold it") from None
    if lacking := _lacking(folder, repo_id, patterns):
        raise _Unusable(f"the cache {constants.HF_HUB_CACHE} lacks {_some(lacking)}")
    return Snapshot(folder, folder.name)


def _lacking(folder: Path, repo_id: str, patterns: Sequence[str]) -> list[str]:
    """The files of a snapshot's commit that match `patterns` and are not in `folder`, or not whole."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = get_cached_repo_tree(repo_id, repo_type="dataset", revision=folder.name)
    except CachedRepoTreeNotFoundError:
        # In a cache that is shared, too: huggingface_hub writes the list for its owner's eyes only.
        if doubtful := [pattern for pattern in patterns if not _shown_by_names(folder, pattern)]:
            raise _Unusable(
                f"without the list of the files of commit {folder.name} nothing says whether {folder} has all of "
                f"{_some(doubtful)}"
            ) from None
        return []
    for pattern in patterns:
        if not any(fnmatchcase(file.path, pattern) for file in files):
            names = [file.path for file in files]
            raise _Unusable(f"no file matches {pattern} (it has {_some(names)})", "take another revision")
    wanted = [file for file in files if any(fnmatchcase(file.path, pattern) for pattern in patterns)]
    return [file.path for file in wanted if _size(folder / file.path) != file.size]


def _shown_by_names(folder: Path, pattern: str) -> bool:
    """Whether names are enough to know all files that match to be there: exact ones, `-00000-of-00002` and its like."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if pattern in names:
        return True
    expected: set[str] = set()
    for name in names:
        if fnmatchcase(name, pattern):
            shard = SHARD.fullmatch(name)
            if shard is None:
                return False
            expected |= {f"{shard[1]}{i:05}{shard[3]}" for i in range(int(shard[4]))}
    return bool(expected) and expected <= names


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _note(folder: Path, revision: str) -> None:
    """Notes the commit of a branch or tag where huggingface_hub looks when the hub cannot be asked.

    Not left to huggingface_hub, which does so before a download: one that is interrupted would hide the whole
    snapshot of the commit before.
    """
    ref = folder.parents[1] / "refs" / revision
    beside = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(folder.name)
        os.replace(beside, ref)
    except OSError as error:  # a cache that somebody else filled may be read-only
        log.warning(f"{ref}: cannot be written ({error.strerror}); offline, name the commit: {folder.name}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _patiently(source: str, call: Callable[[], T], passes: Callable[[Exception], bool], patience: float) -> T:
    """`call()`, up to ATTEMPTS times while it fails for a reason that `passes`, with pauses of 1, 2, 4, ... seconds.

    A pause that the hub asks for (Retry-After) is kept up to LONGEST_PAUSE; others end with `patience` (seconds).
    """
    start = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return call()
        except Exception as error:
            asked = _retry_after(error)
            pause = 2.0 ** (attempt - 1) if asked is None else asked
            over = time.monotonic() - start + pause > patience if asked is None else pause > LONGEST_PAUSE
            if attempt == ATTEMPTS or patience == 0 or over or not passes(error):
                raise
            log.warning(f"{source}: {_told(error)[0]}; trying again in {pause:g} s")
            time.sleep(pause)


def _is_unreached(error: Exception) -> bool:
    """The hub did not answer, or only that it cannot for now."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, _http().TransportError)


def _is_torn(error: Exception) -> bool:
    """A transfer broke off in a way that huggingface_hub does not try again itself.

    It does for connections that are refused, time out or are closed in good order (five times each).
    """
    status = _status(error)
    if status is not None:
        return status >= 500
    wrong_size = type(error) is OSError and error.errno is None
    return wrong_size or isinstance(error, _http().ReadError)


def _told(error: Exception) -> tuple[str, str]:
    """(what is wrong, what to do) in words, for whatever the hub's libraries raise."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if isinstance(error, _Unusable):
        return error.args
    if isinstance(error, HFValidationError):
        return _line(error), "name it as owner/dataset"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _told(error.__cause__)
    if _status(error) is not None:
        return _told_by_status(error)
    words = f"{type(error).__name__}: {_line(error)}"
    mirror = "set HF_ENDPOINT to a mirror of the hub"
    full = os.strerror(ENOSPC) in words  # also in hf_xet's RuntimeError
    if full or isinstance(error, OSError) and error.errno in UNWRITABLE:
        reason = os.strerror(ENOSPC if full else error.errno)
        remedy = "free some space or set HF_HOME to a folder on another disk"
        return f"the cache {constants.HF_HUB_CACHE} cannot be written ({reason})", remedy
    if _is_torn(error):
        return f"the transfer broke off ({words})", f"run it again, {mirror}"
    if isinstance(error, _http().TransportError):
        return f"the hub cannot be reached ({words})", mirror
    if isinstance(error, RuntimeError):
        return f"the transfer failed ({words})", "set HF_HUB_DISABLE_XET=1 to download without Xet"
    return f"the answer is not that of a hub ({words})", "check HF_ENDPOINT"


def _told_by_status(error: Exception) -> tuple[str, str]:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = _status(error)
    token = "set HF_TOKEN to a token that may read it"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision", "type a branch, a tag or a full commit hash"
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return f"there is no such dataset, or it is private ({status})", token
    if status in (401, 403):
        return f"access is refused ({status}: {_line(error.server_message or error)})", token
    if status == 429:
        asked = _retry_after(error)
        pause = "" if asked is None else f", for {asked:g} s"
        return f"too many requests (429{pause})", "wait, set HF_TOKEN (its owner may ask more often)"
    reason = error.response.reason_phrase
    return f"the hub answers {status} {reason}", "try later, set HF_ENDPOINT to a mirror of the hub"


def _status(error: Exception) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _retry_after(error: Exception) -> float | None:
    asked = "" if _status(error) is None else error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None


def _http() -> ModuleType:
    """The client under huggingface_hub: httpx in its versions 1, httpx2 in its versions 2."""
    from huggingface_hub.errors import HTTPError

    return importlib.import_module(HTTPError.__module__.partition(".")[0])


def _line(text: object) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= 200 else words[:197] + "..."
