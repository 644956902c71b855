"""What a Hub on this machine has, who may see it, and how requests find their endpoints; `support.hub` has these."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"
LARGE = 2000
"""Bytes from which files that are no text go by LFS, as packs do there."""


@dataclass
class Repo:
    """A repository: branches with their commits, and the files of each commit by name."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main", *, over: str | None = None) -> str:
        """Add files to a branch, or to another commit."""
        at = over or self.branches.get(branch)
        tree = {**(self.commits[at] if at else {}), **files}
        told = "".join(f"{name}:{hashlib.sha1(data).hexdigest()}" for name, data in sorted(tree.items()))
        oid = hashlib.sha1(f"{at}{len(self.commits)}{told}".encode()).hexdigest()
        self.commits[oid] = tree
        if over is None:
            self.branches[branch] = oid
        return oid

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits[self.branches[branch]]


Fault = Callable[["Handler"], bool]


class Hub:
    """Repositories by name; `faults` see each request first, and answer it if they return true."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.messages: list[str] = []
        self.faults: list[Fault] = []
        self.writers = {TOKEN}
        self.url = ""

    def fail(self, pattern: str, status: int, *, times: int = 1000, headers: Mapping[str, str] | None = None) -> None:
        """Answer requests such as `PUT /upload/...` with a status, so many times."""
        left = [times]

        def fault(handler: Handler) -> bool:
            if left[0] == 0 or not re.search(pattern, f"{handler.command} {handler.path}"):
                return False
            left[0] -= 1
            handler.answer(status, {"error": "as asked"}, headers or {})
            return True

        self.faults.append(fault)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: Hub
    endpoints: Sequence[tuple[Sequence[str], str, Callable[..., None]]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_request(self) -> None:
        """Find the endpoint."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), parts.path
        self.hub.asked.append(f"{self.command} {self.path}")
        if any(fault(self) for fault in self.hub.faults):
            return
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        for method, pattern, endpoint in self.endpoints:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                endpoint(self, *map(unquote, found.groups()))
                return
        self.answer(404, {"error": f"no endpoint {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def repo(self, name: str, *, write: bool = False) -> Repo | None:
        """A repository that this token may see, or an answer."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.token):
            code = {"X-Error-Code": "RepoNotFound"}
            self.answer(404 if self.token else 401, {"error": "Repository not found"}, code)
        elif repo.gated and self.token not in self.hub.writers:
            self.answer(403 if self.token else 401, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif write and self.token not in self.hub.writers:
            self.answer(403, {"error": "Forbidden: pass `create_pr=1`"})
        else:
            return repo
        return None

    def revision(self, repo: Repo, name: str) -> str | None:
        """A commit, or an answer."""
        commit = repo.branches.get(name, name if name in repo.commits else None)
        if commit is None:
            self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return commit
