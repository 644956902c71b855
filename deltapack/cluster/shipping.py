"""Work sent to another process: a pickle in which open files are their paths.

A plan of a compression or a merge holds open checkpoints and packs. They travel as what is known of them, and only their files are opened
again, once for each process; files must be there under the same path, and be the same. Locks and scratch memory are made anew.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import threading
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from deltapack.checkpoint.files import WriteFile, open_to_read
from deltapack.errors import BackendError, DeltapackError
from deltapack.format.reader import PackReader
from deltapack.sources.identity import Sent, machine
from deltapack.sources.local import LocalFile
from deltapack.sources.reading import Readable
from deltapack.sources.remote import RemoteFile
from deltapack.sources.remote_path import RemotePath

__all__ = ["Opened", "here", "shipped"]

_SHARED = "Base, fine-tune, packs and output must lie on a file system that every node has under the same path."


def shipped(value: Any, pickler: type[pickle.Pickler]) -> bytes:
    """Return a value as bytes for `Opened.value_of`.

    Args:
        value: Any value; open files in it become their paths.
        pickler: A pickler of cloudpickle, which also takes functions that are defined inside of others.
    """
    out = io.BytesIO()
    _with_paths(pickler)(out, pickle.HIGHEST_PROTOCOL).dump(value)
    return out.getvalue()


def here() -> str:
    """Return how an error names this machine."""
    return f"node {socket.gethostname()}"


def _place(path: Path) -> str | RemotePath:
    """Return where other processes find a file; of another machine's the address, with what is secret in it."""
    return path if isinstance(path, RemotePath) else os.path.abspath(path)


def _known(file: Readable | PackReader) -> object:
    """Return what a file must be in another process: that pack, the file that was opened, and of another machine's that very version."""
    if isinstance(file, LocalFile):
        return Sent(machine(), file.identity)
    return file.pack_id if isinstance(file, PackReader) else (file.size, getattr(file, "version", ""))


def _difference(known: object, found: object) -> tuple[object, object] | None:
    """Return what a file should be and what it is; none where it is that."""
    if isinstance(known, Sent) and isinstance(found, Sent):
        return known.differs(found)
    return None if known == found else (known, found)


def _with_paths(pickler: type[pickle.Pickler]) -> type[pickle.Pickler]:
    """Return a pickler that writes paths for open files."""
    rows: dict[type, Any] = {
        MappingProxyType: lambda proxy: (MappingProxyType, (dict(proxy),)),
        type(threading.Lock()): lambda lock: (threading.Lock, ()),
    }

    class Shipping(pickler):  # type: ignore[valid-type, misc]
        dispatch_table: ClassVar[Mapping[type, Any]] = ChainMap(rows, getattr(pickler, "dispatch_table", {}))

        def persistent_id(self, value: Any) -> tuple[str, str | RemotePath, Any] | None:
            if isinstance(value, LocalFile | RemoteFile):
                return "read", _place(value.path), _known(value)
            if isinstance(value, WriteFile):
                return "write", os.path.abspath(value.path), None
            if isinstance(value, PackReader):
                return "pack", _place(value.path), value.pack_id
            return None

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, threading.local):  # memory of a thread, such as `Buffers`
                return type(value), ()
            return super().reducer_override(value)

    return Shipping


class Opened:
    """Files that this process opened for the work that it was sent; each once."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str | RemotePath, Any], Readable | WriteFile | PackReader] = {}

    def value_of(self, data: bytes) -> Any:
        """Return what `shipped` was given.

        Raises:
            BackendError: A file is not here, or is another one.
        """
        loader = _Loader(io.BytesIO(data))
        loader.opened = self
        return loader.load()

    def file(self, kind: str, path: str | RemotePath, known: Any) -> Readable | WriteFile | PackReader:
        """Return an open file.

        Args:
            kind: What it is for.
            path: Where it is.
            known: What is known of it: identity or version of one that is read, the digest of a pack.

        Raises:
            BackendError: It is not here, or is another one.
        """
        key = (kind, path, known)
        if key not in self._files:
            self._files[key] = _open(kind, path, known)
        return self._files[key]

    def sync(self) -> None:
        """Wait until what was written is on the disk, where other machines see it.

        Raises:
            OSError: As the system says.
        """
        for file in self._files.values():
            if isinstance(file, WriteFile):
                file.sync()

    def close(self) -> None:
        """Close them all."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class _Loader(pickle.Unpickler):
    """Opens the files again."""

    opened: Opened

    def persistent_load(self, key: tuple[str, str | RemotePath, Any]) -> Readable | WriteFile | PackReader:
        return self.opened.file(*key)


def _open(kind: str, path: str | RemotePath, known: Any) -> Readable | WriteFile | PackReader:
    try:
        if kind == "write":
            return WriteFile.existing(Path(path))
        file = open_to_read(path if isinstance(path, RemotePath) else Path(path)) if kind == "read" else PackReader(path)
    except (DeltapackError, OSError) as error:
        what = error.what if isinstance(error, DeltapackError) else error.strerror or str(error)
        raise BackendError("a node of the cluster cannot open this file", path=path, found=f"{here()}: {what}", hint=_SHARED) from error
    told = _difference(known, _known(file))
    if told is not None:
        file.close()
        what = "a node of the cluster has another file under this path, or it changed"
        raise BackendError(what, path=path, expected=told[0], found=f"{here()}: {told[1]}", hint=_SHARED)
    return file
