"""A Hugging Face Hub on this machine: the endpoints that huggingface_hub asks to make, look at, fill and read a repository, with faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

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
        for method, pattern, endpoint in ENDPOINTS:
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


def blob_of(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(data: bytes) -> bool:
    return len(data) >= LARGE and b"\0" in data


def lfs_of(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}


def create(handler: Handler) -> None:
    asked = json.loads(handler.body)
    name = f"{asked['organization']}/{asked['name']}"
    if handler.token not in handler.hub.writers:
        handler.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
    elif name in handler.hub.repos:
        handler.answer(409, {"error": "You already created this model repo", "url": f"{handler.hub.url}/{name}"})
    else:
        repo = handler.hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit({".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n"})
        handler.answer(200, {"url": f"{handler.hub.url}/{name}", "name": name})


def branch(handler: Handler, name: str, new: str) -> None:
    if repo := handler.repo(name, write=True):
        repo.branches[new] = repo.branches["main"]
        handler.answer(200, {})


def info(handler: Handler, name: str, revision: str = "main") -> None:
    repo = handler.repo(name)
    commit = handler.revision(repo, revision) if repo else None
    if repo is None or commit is None:
        return
    siblings = [
        {"rfilename": path, "size": len(data), "blobId": blob_of(data)} | ({"lfs": lfs_of(data)} if is_large(data) else {})
        for path, data in repo.commits[commit].items()
    ]
    shown = siblings if "blobs" in handler.query else [{"rfilename": one["rfilename"]} for one in siblings]
    handler.answer(200, {"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": shown, "tags": []})


def tree(handler: Handler, name: str, revision: str) -> None:
    repo = handler.repo(name)
    commit = handler.revision(repo, revision) if repo else None
    if repo is None or commit is None:
        return
    listed = []
    for path, data in repo.commits[commit].items():
        lfs = lfs_of(data)
        own = {"lfs": {"oid": lfs["sha256"], "size": len(data), "pointerSize": 130}} if is_large(data) else {}
        listed.append({"type": "file", "path": path, "size": len(data), "oid": blob_of(data), **own})
    handler.answer(200, listed)


def validate(handler: Handler) -> None:
    text = json.loads(handler.body)["content"]
    handler.answer(200, {"errors": [], "warnings": []}) if text.startswith("---\n") else handler.answer(
        400, {"errors": [{"message": "no metadata"}], "warnings": []}
    )


def preupload(handler: Handler, name: str, revision: str) -> None:
    repo = handler.repo(name, write="create_pr" not in handler.query)
    if repo is None or handler.revision(repo, revision) is None:
        return
    files = [
        {
            "path": file["path"],
            "shouldIgnore": False,
            "uploadMode": "lfs" if file["size"] >= LARGE and b"\0" in base64.b64decode(file["sample"]) else "regular",
        }
        for file in json.loads(handler.body)["files"]
    ]
    handler.answer(200, {"files": files})


def batch(handler: Handler, name: str) -> None:
    if handler.repo(name) is None:
        return
    objects = []
    for one in json.loads(handler.body)["objects"]:
        actions = {
            "upload": {"href": f"{handler.hub.url}/upload/{one['oid']}"},
            "verify": {"href": f"{handler.hub.url}/uploaded/{one['oid']}"},
        }
        objects.append(one if one["oid"] in handler.hub.large else one | {"actions": actions})
    handler.answer(200, {"transfer": "basic", "objects": objects})


def upload(handler: Handler, oid: str) -> None:
    if hashlib.sha256(handler.body).hexdigest() != oid:
        handler.answer(400, {"error": "another content"})
    else:
        handler.hub.large[oid] = handler.body
        handler.answer(200, b"")


def uploaded(handler: Handler, oid: str) -> None:
    handler.answer(200 if oid in handler.hub.large else 404, {})


def commit(handler: Handler, name: str, revision: str) -> None:
    pull = "create_pr" in handler.query
    repo = handler.repo(name, write=not pull)
    if repo is None or handler.revision(repo, revision) is None:
        return
    files: dict[str, bytes] = {}
    for line in handler.body.splitlines():
        said = json.loads(line)
        value = said["value"]
        if said["key"] == "header":
            handler.hub.messages.append(value["summary"])
            if value.get("parentCommit") not in (None, repo.branches[revision]):
                handler.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                return
        elif said["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        else:
            files[value["path"]] = handler.hub.large[value["oid"]]
    oid = repo.commit(files, revision, over=repo.branches[revision] if pull else None)
    url = f"{handler.hub.url}/{name}"
    handler.answer(
        200, {"commitOid": oid, "commitUrl": f"{url}/commit/{oid}"} | ({"pullRequestUrl": f"{url}/discussions/1"} if pull else {})
    )


def resolve(handler: Handler, name: str, revision: str, path: str) -> None:
    repo = handler.repo(name)
    commit = handler.revision(repo, revision) if repo else None
    if repo is None or commit is None:
        return
    data = repo.commits[commit].get(path)
    if data is None:
        handler.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return
    etag = lfs_of(data)["sha256"] if is_large(data) else blob_of(data)
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
    part = data[int(wanted[1]) :] if wanted else data
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}
    if wanted:
        headers["Content-Range"] = f"bytes {wanted[1]}-{len(data) - 1}/{len(data)}"
    handler.answer(206 if wanted else 200, part, headers)


NAME = r"([\w.-]+/[\w.-]+)"
ENDPOINTS: tuple[tuple[tuple[str, ...], str, Callable[..., None]], ...] = (
    (("POST",), "/api/repos/create", create),
    (("POST",), "/api/validate-yaml", validate),
    (("POST",), f"/api/models/{NAME}/branch/([^/]+)", branch),
    (("GET",), f"/api/models/{NAME}/tree/([^/]+)", tree),
    (("POST",), f"/api/models/{NAME}/preupload/([^/]+)", preupload),
    (("POST",), f"/api/models/{NAME}/commit/([^/]+)", commit),
    (("GET",), f"/api/models/{NAME}/revision/([^/]+)", info),
    (("GET",), f"/api/models/{NAME}", info),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", batch),
    (("PUT",), "/upload/([0-9a-f]{64})", upload),
    (("POST",), "/uploaded/([0-9a-f]{64})", uploaded),
    (("GET", "HEAD"), f"/{NAME}/resolve/([^/]+)/(.+)", resolve),
)


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that listens."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asks(patch: pytest.MonkeyPatch, hub: Hub, cache: Path, token: str | None = TOKEN) -> None:
    """Have huggingface_hub ask this hub, with a cache of its own; Xet, which is another protocol, is off."""
    from huggingface_hub import file_download, hf_api, utils

    assert file_download and utils  # loaded before names are looked for

    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_STORED_TOKENS_PATH": str(cache / "stored_tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    # Older ones import such names one by one.
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("huggingface_hub.")]
    for name, value in values.items():
        for module in modules:
            if name in vars(module):
                patch.setattr(module, name, value)
    patch.setattr(hf_api.api, "endpoint", hub.url)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)
