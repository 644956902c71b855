"""Folders of object stores: whose files are there, and what says that an upload has begun and was not finished.

Stores cannot rename, so the files of a folder appear one by one. The hidden file `.deltapack.begun.json` is there first, with the names
of all files that are or will be in the folder; the list of the folder (`manifest.py`) comes last, and then the first one goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from deltapack.checkpoint.manifest import MANIFEST, WHOLE_BYTES, few, list_of
from deltapack.checkpoint.safetensors import says_ours
from deltapack.errors import CheckpointError, OutputError, SourceError
from deltapack.limits import DEFAULT_LIMITS
from deltapack.sources import stores
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.sending import drop_begun, remove, send_bytes
from deltapack.sources.urls import OBJECTS

__all__ = ["BEGUN", "begin", "check_finished", "check_remote_output", "end", "take_back"]

BEGUN = ".deltapack.begun.json"
_VERSION = 1
_MAX_LIST = 1 << 24


def check_finished(folder: Any, names: Collection[str]) -> None:
    """Refuse to read a folder whose upload was not finished.

    Args:
        folder: The folder, here or on another machine.
        names: What is in it.

    Raises:
        CheckpointError: It was not.
    """
    if BEGUN in names:
        hint = "Run the command that wrote it again: it replaces what is there."
        raise CheckpointError("the upload of this folder was not finished", path=folder, found=BEGUN, hint=hint)


def check_remote_output(out: RemotePath, *, folder: bool, force: bool) -> None:
    """Refuse an output in a store that cannot be, or that `force` must not replace.

    As for folders of this machine, only what this program wrote is replaced: all of a folder must be in its list, of the size said there,
    no younger than the list, and up to 1 MiB with the content said there. What an unfinished upload has left is replaced without `force`.

    Raises:
        OutputError: It exists and is not ours to replace.
        SourceError: The store refuses, or does not answer.
    """
    stores.forget()
    if out.url.scheme not in OBJECTS:
        raise OutputError("nothing is written to web servers", path=out, hint="Name a place in a store (s3://, gs://), or of this machine.")
    if not out.url.parts:
        raise OutputError("the output has no name", path=out, hint="Name a place in the bucket.")
    if not out.exists():
        return
    if out.is_dir() != folder:
        kind = "a folder" if out.is_dir() else "a file"
        raise OutputError(f"the output exists and is {kind}", path=out, hint="Choose another name.")
    if folder and (out / BEGUN).is_file():
        _refuse_others(out, _begun_names(out))
        return
    if not force:
        raise OutputError("the output exists", path=out, hint="Choose another name, or use --force.")
    if folder:
        _check_own(out)
    else:
        _check_file(out)


def begin(out: RemotePath, names: Collection[str]) -> None:
    """Begin an upload in a folder that may be written: its list goes, then what will not be written again.

    Raises:
        SourceError: The store refuses, or does not answer.
    """
    drop_begun(out.url)
    there = [name for name in _names(out) if name not in (BEGUN, MANIFEST)] if out.exists() else []
    text = json.dumps({"deltapack": _VERSION, "kind": "upload", "files": sorted({*names, *there})}, indent=1) + "\n"
    send_bytes(text.encode(), (out / BEGUN).url)
    for name in [MANIFEST, *(name for name in there if name not in names)]:
        remove(_at(out, name).url)


def end(out: RemotePath, manifest: bytes) -> None:
    """Say that all is there; raises as `begin`."""
    send_bytes(manifest, (out / MANIFEST).url)
    remove((out / BEGUN).url)


def take_back(out: RemotePath, names: Collection[str]) -> None:
    """Remove what an upload has sent that failed; what the store does not let go is replaced by the next one."""
    with suppress(SourceError):
        for name in [*names, BEGUN]:
            remove(_at(out, name).url)


def _begun_names(out: RemotePath) -> Collection[str]:
    path = out / BEGUN
    try:
        document = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_LIST else None
    except (ValueError, RecursionError):
        document = None
    said = document if isinstance(document, dict) else {}
    names = said.get("files") if said.get("deltapack") == _VERSION and said.get("kind") == "upload" else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise OutputError("the list of an unfinished upload cannot be read", path=path, hint="Move or remove the folder yourself.")
    return frozenset((*names, BEGUN, MANIFEST))


def _refuse_others(out: RemotePath, own: Collection[str]) -> None:
    others = [name for name in _names(out) if name not in own]
    if others:
        hint = "Only what it wrote is replaced, and nothing was: move them away, or choose another output."
        raise OutputError("the folder holds files that deltapack did not write", path=out, found=few(others), hint=hint)


def _check_own(out: RemotePath) -> None:
    own = list_of(out, "checkpoint")
    if own is None:
        what = f"the folder has no list of what a checkpoint of deltapack wrote there ({MANIFEST}), so all in it may be someone's"
        hint = "Move or remove it yourself, or choose another output."
        raise OutputError(what, path=out, found=few(_names(out)), hint=hint)
    _refuse_others(out, {*own, MANIFEST})
    written = (out / MANIFEST).stat().st_mtime
    changed = [name for name in _names(out) if name != MANIFEST and not _is_own(_at(out, name), own[name], written)]
    if changed:
        hint = "Only what it wrote is replaced, and nothing was: move them away, or choose another output."
        raise OutputError("the folder holds files that were changed since they were written", path=out, found=few(changed), hint=hint)


def _is_own(path: RemotePath, said: object, written: float) -> bool:
    status = path.stat()
    if not isinstance(said, Mapping) or said.get("size") != status.st_size or status.st_mtime > written:
        return False
    return status.st_size > WHOLE_BYTES or said.get("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()


def _check_file(out: RemotePath) -> None:
    """Refuse to replace a file that does not say that this program wrote it."""
    with out.open("rb") as file:
        head = file.read(9)
        length = int.from_bytes(head[:8], "little")
        header = head[8:] + file.read(length - 1) if head[8:] == b"{" and length <= DEFAULT_LIMITS.header_bytes else b""
    if head and not says_ours(header):
        what = "the output is a file that deltapack did not write, or restored byte for byte, so that nothing in it says so"
        raise OutputError(what, path=out, hint="Move or remove it yourself, or choose another name.")


def _names(folder: RemotePath) -> list[str]:
    """Return the files of a folder and of those in it, with `/`."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _at(out: RemotePath, name: str) -> RemotePath:
    return out.joinpath(*name.split("/"))
