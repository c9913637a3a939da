"""A server that answers as the Hugging Face Hub does, from memory, with the faults that a test asks for."""

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = 2000  # bytes from which a file is kept by LFS, under its sha256


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that was answered."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclasses.dataclass
class Repository:
    """Commits by hash, each of them files by name; branches and tags; and the token that may read it."""

    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    references: dict[str, str] = dataclasses.field(default_factory=dict)
    token: str | None = None
    gated: bool = False


class Hub:
    """Repositories, the faults of the server, and the requests that it has answered."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cut: dict[str, list[int]] = {}  # bytes after which the connection of a file's next GETs ends
        self.instead: dict[str, bytes] = {}  # bytes that are sent in place of a file's own
        self.down = False  # every answer is an error of the server
        self.down_after_cut = False  # from the first connection that is cut on
        self.portal = False  # every answer is a page that asks for a login
        self.endpoint = ""

    def publish(self, repository: str, files: Mapping[str, bytes] | Path, **settings: Any) -> str:
        """Make a commit of the repository's main branch, and return its hash."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*")}
        commit = hashlib.sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        found = self.repositories.setdefault(repository, Repository(**settings))
        found.commits[commit] = dict(files)
        found.references["main"] = commit
        return commit

    def downloads(self) -> list[str]:
        """The names of the files that were downloaded, in order."""
        return [
            each.path.split("/", 5)[5]
            for each in self.requests
            if each.method == "GET" and "/resolve/" in each.path
        ]


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on this machine until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), sent))
        if self.hub.down:
            return self._refuse(503, "")
        if self.hub.portal:
            return self._page(b"<html>Log in to this network</html>", "text/html")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            name, revision, file = found[1], found[2] or "main", None
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
        else:
            return self._refuse(404, "")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.token not in (None, sent) and not repository.gated):
            # As the Hub does, which does not tell those without a right what is there.
            return self._refuse(404 if sent else 401, "RepoNotFound")
        if repository.token not in (None, sent) and file is not None:
            return self._refuse(403, "GatedRepo")
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if file is None:
            return self._list(name, commit, files)
        if file not in files:
            return self._refuse(404, "EntryNotFound", commit)
        return self._send(file, commit, files[file])

    def _list(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        siblings = []
        for file, content in files.items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _git(content)}
            if len(content) >= _LARGE:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        listing = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        self._page(json.dumps(listing).encode(), "application/json")

    def _page(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, file: str, commit: str, content: bytes) -> None:
        etag = hashlib.sha256(content).hexdigest() if len(content) >= _LARGE else _git(content)
        sent = self.hub.instead.get(file, content)
        first = 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(found[1])
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(sent) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(sent) - 1}/{len(sent)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut.get(file):
            self.wfile.write(sent[first : first + self.hub.cut[file].pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.hub.down |= self.hub.down_after_cut
            self.connection.shutdown(2)
            return
        self.wfile.write(sent[first:])

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _git(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
