"""The Hugging Face hub on 127.0.0.1: dataset repositories out of memory, and failures on demand.

It answers what `huggingface_hub` asks for a download: the revision's commit, its tree, and HEAD and GET of its
files. Files of git (README.md) come from the hub itself; large ones (.parquet, .gz) are redirected to a second
server by another name, as the real hub redirects to its content network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

LARGE = (".parquet", ".gz")


class Request(NamedTuple):
    """What was asked, and the status that was answered; `range` is the header, "" without."""

    method: str
    path: str
    status: int
    range: str
    token: str


class File(NamedTuple):
    content: bytes
    blob_id: str  # git's SHA-1 of the file, or of the pointer that stands for a large one
    sha256: str | None  # of large files

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id


@dataclass
class Failure:
    """What becomes of the next `times` requests of `method` whose path holds `part`.

    They are answered with `answer` (status, headers, body), or their body ends after `cut_after` bytes.
    """

    part: str
    method: str
    times: int
    answer: tuple[int, Mapping[str, str], bytes] | None = None
    cut_after: int = 0
    ending: Literal["close", "reset", "stall"] = "close"
    reached: threading.Event = field(default_factory=threading.Event)


class HubServer:
    """A hub for one test:

        with HubServer() as hub:
            commit = hub.add("clue/clue", {"tnews/train-00000-of-00001.parquet": content})
            subprocess.run(command, env=os.environ | hub.environment(tmp_path))

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        requests: what was asked of it, in order.
        xet: address of a Xet store that has the large files, as the real hub says of its own; "" for none.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.xet = ""
        self._repos: dict[str, dict[str, str]] = {}  # repository -> revision -> commit
        self._trees: dict[str, dict[str, File]] = {}  # commit -> path -> file
        self._tokens: dict[str, str] = {}
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._servers = [_Server(self) for _ in range(2)]
        self.endpoint, self._content_network = (
            f"http://{name}:{server.server_address[1]}"
            for name, server in zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        )

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        self._stopped.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
            for connection in server.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a process that is to use this hub, with its cache below `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def add(self, repo_id: str, files: Path | Mapping[str, bytes], revision: str = "main") -> str:
        """Commits `files` (a directory, or contents by their paths) as the `revision`; returns the hash."""
        if isinstance(files, Path):
            found = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        tree = {path: _file(path, content) for path, content in files.items()}
        listing = sorted((path, file.etag) for path, file in tree.items())
        commit = hashlib.sha1(repr((repo_id, listing)).encode()).hexdigest()
        self._trees[commit] = tree
        self._repos.setdefault(repo_id, {})[revision] = commit
        return commit

    def require(self, repo_id: str, token: str) -> None:
        """Makes a repository private: who does not send `token` is told that there is none."""
        self._tokens[repo_id] = token

    def fail(
        self,
        part: str,
        status: int,
        times: int = 1_000_000,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"{}",
    ) -> None:
        """Answers the next requests whose path holds `part` with `status`."""
        self._failures.append(Failure(part, method, times, (status, headers or {}, body)))

    def cut(
        self, part: str, after: int, ending: Literal["close", "reset", "stall"] = "close"
    ) -> threading.Event:
        """Ends the next GET after that many bytes: by a FIN, by a RST, or without a word. The event says when."""
        failure = Failure(part, "GET", 1, cut_after=after, ending=ending)
        self._failures.append(failure)
        return failure.reached

    def asked(self, part: str, method: str = "") -> list[Request]:
        """The requests whose path holds `part`."""
        return [r for r in self.requests if part in r.path and r.method.startswith(method)]

    def _failure(self, method: str, path: str) -> Failure | None:
        with self._lock:
            for failure in self._failures:
                if failure.times and failure.part in path and method.startswith(failure.method):
                    failure.times -= 1
                    return failure
        return None


def _file(path: str, content: bytes) -> File:
    sha256 = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else None
    stored = content if sha256 is None else _pointer(sha256, len(content))
    return File(content, hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest(), sha256)


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a handler may still wait for a client that was killed

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: list[socket.socket] = []

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def log_message(self, *_: object) -> None:
        pass

    def _respond(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        failure = hub._failure(self.command, path)
        if failure is not None and failure.answer is not None:
            status, headers, body = failure.answer
            self._send(status, dict(headers), body)
        elif match := re.fullmatch(r"/content/(\w+)/(.+)", path):
            self._content(hub._trees[match[1]][match[2]], {}, failure)
        elif found := self._find(path):
            kind, commit, rest = found
            if kind == "resolve":
                self._resolve(commit, rest, failure)
            elif kind == "tree":
                self._json(_tree(hub._trees[commit], hub.xet))
            elif kind == "info":
                self._json({"id": rest, "sha": commit})
            else:
                headers = {"X-Xet-Cas-Url": hub.xet, "X-Xet-Access-Token": "token"}
                self._send(200, headers | {"X-Xet-Token-Expiration": str(2**40)}, b"{}")

    def _find(self, path: str) -> tuple[str, str, str] | None:
        """What is asked, for which commit, of which repository or file; None once it is told why there is none."""
        hub = self.server.hub
        kinds = "revision|tree|resolve|xet-read-token"
        match = re.match(rf"(?:/api)?/datasets/([^/]+/[^/]+)(?:/({kinds})/(.+))?$", path)
        repo_id, kind, rest = match.groups() if match else (path, None, None)
        token = hub._tokens.get(repo_id)
        if repo_id not in hub._repos or token not in (None, self._token()):
            self._error(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        revisions = hub._repos[repo_id] | {commit: commit for commit in hub._repos[repo_id].values()}
        rest = rest or "main"
        for revision, commit in revisions.items():
            if rest == revision or rest.startswith(revision + "/"):
                if kind in (None, "revision"):
                    return "info", commit, repo_id
                return kind, commit, rest[len(revision) + 1 :]
        self._error(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {rest}"})
        return None

    def _resolve(self, commit: str, path: str, failure: Failure | None) -> None:
        file = self.server.hub._trees[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if file is None:
            self._error(404, headers | {"X-Error-Code": "EntryNotFound"})
        elif file.sha256 is None:
            self._content(file, headers, failure)
        else:
            headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
            headers |= {"Location": f"{self.server.hub._content_network}/content/{commit}/{path}"}
            self._send(302, headers, b"")

    def _content(self, file: File, headers: dict[str, str], failure: Failure | None) -> None:
        content, status = file.content, 200
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content, status = content[start:], 206
        self._send(status, headers, content, failure)

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, headers, b"{}")

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, failure: Failure | None = None
    ) -> None:
        request = Request(
            self.command,
            unquote(urlsplit(self.path).path),
            status,
            self.headers.get("Range", ""),
            self._token(),
        )
        self.server.hub.requests.append(request)
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if failure is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: failure.cut_after])
        failure.reached.set()
        self.close_connection = True
        if failure.ending == "stall":
            self.server.hub._stopped.wait()
        elif failure.ending == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # the last one that holds the socket closes it, and only that sends the RST
            self.connection.close()

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


def _tree(files: Mapping[str, File], xet: str) -> list[dict]:
    folders = sorted({parent.as_posix() for path in files for parent in Path(path).parents} - {"."})
    entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
    for path, file in files.items():
        size = len(file.content)
        entry = {"type": "file", "path": path, "size": size, "oid": file.blob_id}
        if file.sha256 is not None:
            pointer_size = len(_pointer(file.sha256, size))
            entry["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": pointer_size}
            entry |= {"xetHash": file.sha256} if xet else {}
        entries.append(entry)
    return entries
