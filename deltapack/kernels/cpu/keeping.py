"""Compiled loops kept on disk, so that only the first process of a machine compiles.

numba can do that, too. Its files have no checksum: what is damaged there, or torn as a machine lost power, runs. Two processes that compile
at once may give one number to two loops. A full disk ends the command. And its files are pickles, read from any folder that is found. Here

* a loop is a file of its own, named by all that decides its code, complete under that name or not there at all;
* a file is read if its digest is right, and if it was made of these very sources, those of helpers too, by this very numba;
* a file is read if it belongs to this user, or to root, and nobody else can write to it; a folder where anybody can write is not used;
* what fails costs the time to compile, and is told of once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import secrets
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numba
import xxhash
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from deltapack.kernels.telling import LoopsWarning

__all__ = ["LoopCache", "folders_of_loops", "home_of_loops"]

_HERE = Path(__file__).parent
_MAGIC = b"dpkloop1"
_DIGEST = 16
_ENDING = f".{sys.implementation.cache_tag}.loop"
_STALE_SECONDS = 3600.0
"""After so long what is unfinished belongs to a process that was killed."""
_told: set[str] = set()


class LoopCache(_Cache):
    """Keeps what numba compiles of one function; what numba calls, and `deltapack.kernels.cpu.bits.compiled` gives it.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @property
    def cache_path(self) -> str | None:
        """The folder that files are written to; none where there is none."""
        home = home_of_loops()
        return None if home is None else str(home)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for these types, or none."""
        target_context.refresh()
        name = self._name(sig, target_context.codegen())
        for folder in folders_of_loops():
            try:
                payload = _read(folder / name)
                if payload is not None:
                    return CompileResult._rebuild(target_context, *pickle.loads(payload))  # type: ignore[no-untyped-call]
            except FileNotFoundError:
                continue
            except Exception as error:
                _tell("damaged", f"compiled loops in {folder} are not used and compiled anew ({error})")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for these types, where that can be."""
        if data.library.has_dynamic_globals or any(not lifted.can_cache for lifted in data.lifted):
            return
        home = home_of_loops()
        if home is None:
            _tell("nowhere", "compiled loops cannot be kept, each process compiles its own: NUMBA_CACHE_DIR may name a folder of yours")
            return
        try:
            _write(home / self._name(sig, data.codegen), dumps(data._reduce()))  # type: ignore[no-untyped-call]
        except Exception as error:
            _tell("unkept", f"compiled loops cannot be kept in {home}, each process compiles its own ({error})")

    def flush(self) -> None:
        """Forget nothing: files that no longer fit are not read."""

    def enable(self) -> None:
        """As it is."""

    def disable(self) -> None:
        """As it is."""

    def _name(self, sig: Any, codegen: Any) -> str:
        """Return the name of the file for some types."""
        decides = repr((self._own, sig, codegen.magic_tuple(), getattr(numba.config, "BOUNDSCHECK", None)))
        return f"{self._function.__name__}-{hashlib.sha256(decides.encode()).hexdigest()[:32]}{_ENDING}"

    @cached_property
    def _own(self) -> tuple[object, ...]:
        """What tells this function from others."""
        code, cells = self._function.__code__, self._function.__closure__ or ()
        closed_over = dumps(tuple(cell.cell_contents for cell in cells)) if cells else b""  # type: ignore[no-untyped-call]
        digests = [hashlib.sha256(data).hexdigest() for data in (code.co_code, closed_over)]
        return self._function.__module__, self._function.__qualname__, code.co_firstlineno, *digests


@cache
def folders_of_loops() -> tuple[Path, ...]:
    """Return the folders that compiled loops are read from: they are there or could be made, and nobody else writes there."""
    found = []
    for folder in _candidates():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
        except OSError:
            continue
        if not _is_of_user(status, stat.S_IWOTH):
            _tell(
                "others",
                f"compiled loops are neither read from {folder} nor kept there: it belongs to somebody else, or anybody can write there",
            )
            continue
        found.append(folder)
    return tuple(found)


def _candidates() -> Iterator[Path]:
    """Yield where compiled loops may be, the best place first: where `NUMBA_CACHE_DIR` says, beside the sources, in the user's cache."""
    place = f"deltapack-{hashlib.sha256(str(_HERE).encode()).hexdigest()[:16]}"
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        yield Path(named).absolute() / place
        return
    yield _HERE / "__pycache__"
    if sys.platform == "win32":
        places = [os.environ.get("LOCALAPPDATA", "")]
    elif sys.platform == "darwin":
        places = [os.path.expanduser("~/Library/Caches")]
    else:
        places = [os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")]
    usable = [folder for folder in places if os.path.isabs(folder)]  # without a home, `~` stays: it would be a folder of the current one
    if usable:
        yield Path(usable[0]) / place


@cache
def home_of_loops() -> Path | None:
    """Return the folder that compiled loops are written to: the first that can be written; what killed processes left there is removed."""
    for folder in folders_of_loops():
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        with contextlib.suppress(OSError):
            _tidy(folder)
        return folder
    return None


def _tidy(folder: Path) -> None:
    """Remove what is unfinished and old, and loops of other sources than these."""
    for path in folder.glob(".*.loop.tmp"):
        if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
            path.unlink(missing_ok=True)
    for path in folder.glob(f"*{_ENDING}"):
        with path.open("rb") as file:
            head = file.read(len(_MAGIC) + len(_stamp()))
        if head != _MAGIC + _stamp():
            path.unlink(missing_ok=True)


@cache
def _stamp() -> bytes:
    """Return a digest of all that loops are made of and by: `[32]` bytes."""
    digest = hashlib.sha256(repr((numba.__version__, sys.version)).encode())
    for source in sorted(_HERE.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.digest()


def _read(path: Path) -> bytes | None:
    """Return what a file keeps; none where it is of other sources.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or somebody else can write to it.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not _is_of_user(status, stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("a file belongs to somebody else, or others can write to it")
        data = file.read()
    head = _MAGIC + _stamp()
    if len(data) < len(head) + _DIGEST or not data.startswith(_MAGIC):
        raise ValueError("a file is cut or is none")
    payload = data[len(head) + _DIGEST :]
    if xxhash.xxh3_128_digest(data[: len(head)] + payload) != data[len(head) : len(head) + _DIGEST]:
        raise ValueError("a file is damaged")
    return payload if data.startswith(head) else None


def _write(path: Path, payload: bytes) -> None:
    """Write a file that is complete or not there; raises `OSError` as the system says."""
    head = _MAGIC + _stamp()
    temporary = path.with_name(f".{path.name.removesuffix('.loop')}.{secrets.token_hex(4)}.loop.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(head + xxhash.xxh3_128_digest(head + payload) + payload)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _is_of_user(status: os.stat_result, writers: int) -> bool:
    """Whether a file or folder is this user's or root's, and has none of these permissions for others to write."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & writers


def _tell(kind: str, what: str) -> None:
    """Warn, once for each kind of trouble."""
    if kind not in _told:
        _told.add(kind)
        warnings.warn(f"{what}: the same results, later", LoopsWarning, stacklevel=2)
