"""A Hugging Face hub on this machine, for the hub's own client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What it serves: one repository with one commit."""

    repository: str = "org/tiny"
    files: dict[str, bytes] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    # The token that opens it; empty: open to all.
    token: str = ""
    url: str = ""
    # Paths asked for, with their method.
    requests: list[str] = field(default_factory=list)

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        if not path.startswith((f"/api/models/{self.repository}/", f"/{self.repository}/")):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if token != self.token:
            return 401 if not token else 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        parts = path.removeprefix("/api/models").removeprefix(f"/{self.repository}/").split("/", 2)
        kind, revision = parts[0], unquote(parts[1])
        if revision not in self.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "revision":
            return 200, {}, json.dumps(self._info()).encode()
        if kind == "tree":
            return 200, {}, json.dumps(self._tree()).encode()
        return self._file(parts[2])

    def _info(self) -> dict[str, object]:
        siblings = [{"rfilename": name} for name in self.files]
        return {"id": self.repository, "sha": COMMIT, "siblings": siblings}

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
            for name, data in self.files.items()
        ]

    def _file(self, name: str) -> tuple[int, dict[str, str], bytes]:
        data = self.files[name]
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT}
        return 200, headers, data


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serves it at `hub.url` for as long as the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            path = urlsplit(self.path).path
            hub.requests.append(f"{self.command} {path}")
            status, headers, body = hub.answer(path, token)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the handler's own spelling

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
