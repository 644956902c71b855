"""A Hugging Face Hub on this machine: the endpoints that huggingface_hub asks to make, look at, fill and read a repository, with faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import LARGE, TOKEN, Handler, Hub, Repo

__all__ = ["TOKEN", "Handler", "Hub", "Repo", "asks", "served"]


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub, "endpoints": ENDPOINTS}))
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
        _forget_sessions()


def _forget_sessions() -> None:
    """Versions before 1.0 keep for each thread what sends requests, and with it whether the Hub may be asked at all."""
    kept = sys.modules.get("huggingface_hub.utils._http")
    getattr(kept, "reset_sessions", lambda: None)()


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
    _forget_sessions()
