"""Downloads from the hub, against a hub on this machine: what comes is whole, and what cannot come is told."""

import errno
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from hub_server import HubServer
from huggingface_hub import constants, file_download

from datamodules import hub as hub_module
from datamodules.corpus import DataError
from datamodules.hub import Snapshot, download

REPO = "clue/clue"
WAY_OUT = "data.source=/path/to/clue"
PATTERNS = ("tnews/train-*.parquet", "tnews/validation-*.parquet")
TRAIN, VALIDATION = (f"tnews/{split}-00000-of-00001.parquet" for split in ("train", "validation"))
LOOK_UP = f"/api/datasets/{REPO}"


def parquet(rows: int) -> bytes:
    table = pyarrow.table({"sentence": [f"第{i}条新闻" for i in range(rows)], "label": list(range(rows))})
    pyarrow.parquet.write_table(table, stream := io.BytesIO())
    return stream.getvalue()


FILES = {
    "README.md": b"---\nlicense: unknown\n---\n",
    TRAIN: parquet(20_000),
    VALIDATION: parquet(30),
    "afqmc/train-00000-of-00001.parquet": parquet(3),
}


@pytest.fixture
def server():
    with HubServer() as server:
        server.commit = server.add(REPO, FILES)
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server as this process' hub, whose variables huggingface_hub reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Seconds that pass at once, where they would have been waited."""
    pauses: list[float] = []
    clock = time.monotonic
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(pauses))
    return pauses


def get(patterns=PATTERNS, revision=None) -> Snapshot:
    return download(REPO, patterns, revision, WAY_OUT)


def refused(*arguments, **options) -> str:
    """The message of a download that fails: one line that says what was wanted from where, and the ways out."""
    with pytest.raises(DataError) as error:
        get(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(
        f"{REPO} (revision {options.get('revision', 'main')}) from {constants.ENDPOINT}: "
    )
    assert message.endswith(f", or {WAY_OUT}")
    return message


def assert_whole(snapshot: Snapshot, *names: str) -> None:
    for name in names or (TRAIN, VALIDATION):
        assert (snapshot.folder / name).read_bytes() == FILES[name]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_files_that_match_come_and_no_others(hub):
    snapshot = get()
    assert_whole(snapshot)
    assert snapshot.commit == snapshot.folder.name == hub.commit
    names = [path.relative_to(snapshot.folder).as_posix() for path in files_below(snapshot.folder)]
    assert sorted(names) == [TRAIN, VALIDATION]
    assert not hub.asked("README.md") and not hub.asked("afqmc")


def test_a_revision_is_what_comes_and_its_commit_can_be_typed_again(hub):
    export = {"base/train/0000.parquet": parquet(5)}
    commit = hub.add(REPO, export, revision="refs/convert/parquet")
    snapshot = get(["base/train/*.parquet"], "refs/convert/parquet")
    assert snapshot.commit == commit != hub.commit
    assert (snapshot.folder / "base/train/0000.parquet").read_bytes() == export["base/train/0000.parquet"]

    asked = len(hub.requests)
    assert get(["base/train/*.parquet"], commit) == snapshot
    assert len(hub.requests) == asked  # a commit never changes: nothing to ask


def test_a_branch_that_moved_is_followed_and_what_did_not_change_is_not_fetched_again(hub):
    before = get()
    moved = hub.add(REPO, FILES | {VALIDATION: parquet(31)})
    after = get()
    assert (before.commit, after.commit) == (hub.commit, moved)
    assert (after.folder / VALIDATION).read_bytes() == parquet(31)
    assert len(hub.asked("/content/", "GET")) == 3
    assert_whole(before)


def test_files_of_git_and_of_git_lfs_both_come(hub, tmp_path):
    for name, content in FILES.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    commit = hub.add(REPO, tmp_path / "tree", revision="v1")
    assert commit == hub.commit  # names the contents alone
    assert_whole(get(["*.md", "afqmc/*"], "v1"), "README.md", "afqmc/train-00000-of-00001.parquet")


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(lambda hub: hub.fail(LOOK_UP, 503, times=3), id="look-up 503, three times"),
        pytest.param(lambda hub: hub.fail("/tree/", 502, times=2), id="tree 502, twice"),
        pytest.param(lambda hub: hub.fail("/resolve/", 500, times=2, method="HEAD"), id="file 500, twice"),
        pytest.param(lambda hub: hub.fail("/content/", 503, times=2), id="content 503, twice"),
        pytest.param(lambda hub: hub.cut(LOOK_UP, 5, "reset"), id="look-up reset"),
        pytest.param(lambda hub: hub.cut("/content/", 900), id="content cut"),
        pytest.param(lambda hub: hub.cut("/content/", 900, "reset"), id="content reset"),
    ],
)
def test_a_passing_failure_passes(hub, pauses, failure):
    failure(hub)
    assert_whole(get())


def test_a_cut_transfer_of_a_large_file_goes_on_where_it_was(hub, pauses, monkeypatch):
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 1000
    )  # 10 MB: what huggingface_hub does not throw away
    hub.cut("/content/", 50_500)
    assert_whole(get([TRAIN]), TRAIN)
    assert [request.range for request in hub.asked("/content/")] == ["", "bytes=50000-"]


def test_a_pause_that_the_hub_asks_for_is_kept(hub, pauses):
    hub.fail(LOOK_UP, 429, times=1, headers={"Retry-After": "7"})
    assert_whole(get())
    assert pauses == [7]


def test_a_pause_of_minutes_is_told_instead(hub, pauses):
    hub.fail(LOOK_UP, 429, headers={"Retry-After": "300"})
    message = refused()
    assert "too many requests (429, for 300 s)" in message and "HF_TOKEN" in message
    assert pauses == []


def test_an_unreachable_hub_is_told_soon(hub, pauses):
    hub.stop()
    message = refused()
    assert "the hub cannot be reached (ConnectError: " in message
    assert "HF_ENDPOINT to a mirror" in message
    assert sum(pauses) <= hub_module.PATIENCE


def test_a_hub_that_never_answers_is_not_waited_for(hub, pauses, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the hub cannot be reached (ReadTimeout: " in refused()


def test_failures_that_last_are_told(hub, pauses):
    hub.fail("/content/", 503)
    assert "the hub answers 503 Service Unavailable; try later, set HF_ENDPOINT" in refused()
    assert len(hub.asked(f"/content/{hub.commit}/{TRAIN}")) <= hub_module.ATTEMPTS


def test_with_an_unreachable_hub_a_whole_snapshot_is_used_and_said_to_be(hub, pauses, caplog):
    snapshot = get()
    hub.stop()
    with caplog.at_level(logging.WARNING, "datamodules.hub"):
        assert get() == snapshot
    (record,) = [record for record in caplog.records if record.name == "datamodules.hub"]
    assert "cannot be reached" in record.getMessage() and snapshot.commit in record.getMessage()
    assert pauses == []  # what is there need not wait


def test_with_an_unreachable_hub_part_of_a_snapshot_is_not_used(hub, pauses):
    get([TRAIN])
    hub.stop()
    assert "the hub cannot be reached" in refused()


def test_a_repository_that_is_gone_is_told_although_it_is_cached(hub):
    commit = get().commit
    hub.require(REPO, "secret")
    assert "there is no such dataset, or it is private" in refused()
    assert_whole(get(revision=commit))


def test_an_update_that_fails_does_not_hide_the_snapshot_before(hub, pauses):
    before = get()
    hub.add(REPO, FILES | {VALIDATION: parquet(31)})
    hub.fail("/content/", 403)
    assert "access is refused (403" in refused()
    hub.stop()
    assert get() == before
    assert_whole(before)


@pytest.mark.parametrize(
    "failure, options, told",
    [
        (
            lambda hub: hub.require(REPO, "secret"),
            {},
            "there is no such dataset, or it is private (401); set HF_TOKEN",
        ),
        (
            lambda hub: hub.fail(
                "/resolve/",
                403,
                headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"},
            ),
            {},
            "access is refused (403: Access is restricted); set HF_TOKEN",
        ),
        (
            lambda hub: hub.fail(LOOK_UP, 401, headers={"X-Error-Message": "Invalid credentials"}),
            {},
            "access is refused (401: Invalid credentials); set HF_TOKEN",
        ),
        (
            lambda hub: None,
            {"revision": "v9"},
            "there is no such revision; type a branch, a tag or a full commit",
        ),
        (
            lambda hub: None,
            {"patterns": [TRAIN, "ocnli/*.parquet"]},
            f"no file matches ocnli/*.parquet (it has README.md, {TRAIN}, {VALIDATION} and 1 more)",
        ),
        (
            lambda hub: hub.fail(LOOK_UP, 200, body=b"<html>Log in to the network</html>"),
            {},
            "the answer is not that of a hub (JSONDecodeError",
        ),
    ],
    ids=["no repository", "gated", "bad token", "no revision", "no file", "no hub"],
)
def test_what_the_hub_refuses_is_told_in_one_line(hub, failure, options, told):
    failure(hub)
    assert told in refused(**options)


def test_a_name_that_is_none_is_told(hub):
    with pytest.raises(DataError, match="'clue/clue/tnews'.*; name it as owner/dataset, or "):
        download("clue/clue/tnews", PATTERNS)


def test_a_token_opens_a_private_repository_and_goes_to_nobody_else(hub, monkeypatch):
    hub.require(REPO, "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert_whole(get())
    assert {request.token for request in hub.asked("/content/")} == {""}


def test_a_full_disk_is_told_and_leaves_nothing(hub, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", full)
        message = refused()
    assert f"the cache {constants.HF_HUB_CACHE} cannot be written (No space left on device)" in message
    assert "HF_HOME" in message
    assert not files_below(Path(constants.HF_HUB_CACHE) / "datasets--clue--clue" / "blobs")
    assert_whole(get())


def test_a_cached_file_that_was_cut_is_fetched_again(hub, pauses):
    snapshot = get()
    for revision in (None, snapshot.commit):
        os.truncate(snapshot.folder / TRAIN, 1000)
        assert_whole(get(revision=revision))
    os.truncate(snapshot.folder / TRAIN, 1000)
    hub.stop()
    assert "cannot be reached" in refused()


def test_a_cache_that_another_program_filled_is_used(hub, monkeypatch):
    huggingface_hub.snapshot_download(REPO, repo_type="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_whole(get())


def test_without_a_list_of_the_files_their_names_have_to_show_that_none_is_missing(hub, monkeypatch):
    hub.add(REPO, FILES | {f"ocnli/train-0000{i}-of-00003.parquet": parquet(i) for i in range(3)})
    for name in (
        TRAIN,
        VALIDATION,
        "ocnli/train-00000-of-00003.parquet",
        "ocnli/train-00002-of-00003.parquet",
    ):
        huggingface_hub.hf_hub_download(REPO, name, repo_type="dataset")  # fetches no list
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_whole(get())
    assert_whole(get([TRAIN]), TRAIN)
    for pattern in ("ocnli/train-*.parquet", "afqmc/*.parquet", "README.md"):
        assert f"nothing says whether {constants.HF_HUB_CACHE}" in (message := refused([TRAIN, pattern]))
        assert f"has all of {pattern}; unset HF_HUB_OFFLINE" in message


# What huggingface_hub reads from the environment, and what only another process can show.

PROGRAM = """
import json, sys

from datamodules.hub import download

assert "huggingface_hub" not in sys.modules  # start-up stays light
repo_id, patterns, way_out = json.loads(sys.argv[1])
try:
    print(json.dumps(download(repo_id, patterns, None, way_out)._asdict(), default=str))
except ValueError as error:
    print(json.dumps({"error": str(error)}))
"""


def start(environment: dict[str, str], program: str = PROGRAM) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name[:3] != "HF_"} | environment
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps([REPO, PATTERNS, WAY_OUT])],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out) | {"stderr": err}


def test_endpoint_cache_and_offline_mode_come_from_the_environment(server, tmp_path):
    online = server.environment(tmp_path / "filled")
    first = result(start(online))
    assert first["commit"] == server.commit
    assert first["folder"].startswith(str(tmp_path / "filled" / "hub"))
    assert_whole(Snapshot(Path(first["folder"]), server.commit))
    assert "Fetching 2 files: 100%" in first["stderr"]

    server.requests.clear()
    offline = online | {"HF_HUB_OFFLINE": "1"}
    again = result(start(offline))
    assert (again["folder"], again["commit"]) == (first["folder"], first["commit"])

    message = result(start(offline | {"HF_HOME": str(tmp_path / "empty")}))["error"]
    assert message == (
        f"{REPO} (revision main) from {server.endpoint}: HF_HUB_OFFLINE is set, and the cache "
        f"{tmp_path / 'empty' / 'hub'} does not hold it; unset HF_HUB_OFFLINE to download, set HF_HOME to a filled "
        f"cache, or {WAY_OUT}"
    )
    assert server.requests == []


def test_a_download_that_was_killed_is_not_taken_for_whole(server, tmp_path):
    environment = server.environment(tmp_path)
    stalled = server.cut(f"/content/{server.commit}/{TRAIN}", 20_000, "stall")
    process = start(environment)
    assert stalled.wait(30)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    offline = environment | {"HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE is set, and the cache" in result(start(offline))["error"]
    found = result(start(environment))
    assert_whole(Snapshot(Path(found["folder"]), found["commit"]))


def test_a_xet_store_out_of_reach_is_told_with_the_way_round_it(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        server.xet = f"http://127.0.0.1:{closed.getsockname()[1]}"
    environment = server.environment(tmp_path) | {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}
    message = result(start(environment))["error"]
    assert "the transfer failed (RuntimeError: " in message and "HF_HUB_DISABLE_XET=1" in message
    found = result(start(environment | {"HF_HUB_DISABLE_XET": "1"}))
    assert_whole(Snapshot(Path(found["folder"]), found["commit"]))
