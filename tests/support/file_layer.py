"""Every call that Python code makes of the file system, below one folder, passes here: counted, told to others, or failing as asked.

Functions of `os`, `open` in both modules and `mmap` are replaced in this process, which is a child that ends soon. A call counts if its
path lies in the folder or its handle was opened there. `tests/faults/test_layer.py` has strace compare the counts with those of the system.
"""

from __future__ import annotations

import builtins
import errno
import io
import mmap
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from deltapack.format import placing

__all__ = ["CREATES", "FAULTS", "READS", "WRITES", "Fault", "Layer"]

OPENS = ("open", "scandir", "listdir")
CREATES = ("mkdir", "rename", "replace", "link", "symlink", "renameat2")
WRITES = ("write", "pwrite", "ftruncate", "truncate", "posix_fallocate", "copy_file_range", "sendfile", "fsync", "fdatasync")
READS = ("read", "pread", "preadv", "mmap")
LOOKS = ("stat", "lstat", "fstat", "statvfs", "access")
OTHERS = ("close", "unlink", "remove", "rmdir", "chmod")
ALL = (*OPENS, *CREATES, *WRITES, *READS, *LOOKS, *OTHERS)
REMOVES = ("unlink", "remove", "rmdir")
FAULTS: dict[str, tuple[str, ...]] = {
    "EIO": ALL,
    "ENOSPC": ("create", *CREATES, *WRITES, "close"),
    "EDQUOT": ("create", *CREATES, *WRITES, "close"),
    "EMFILE": (*OPENS, "create", "mmap"),
    "short": ("read", "pread", "preadv", "write", "pwrite", "copy_file_range", "sendfile"),
}
"""What may go wrong, and the calls that tell so; `create` is an `open` that makes a file."""
_LASTING = ("create", *CREATES, *WRITES)
_NOTHING = object()


@dataclass(frozen=True)
class Fault:
    """The call of a number fails, or a signal comes before it.

    With `lasting` all later calls fail that need room, as on a disk that is and stays full.
    """

    number: int
    kind: str
    lasting: bool = False

    def hits(self, number: int, call: str) -> bool:
        """Whether a call fails."""
        return number == self.number or (self.lasting and number > self.number and call in _LASTING)


@dataclass
class Layer:
    """The calls below a folder.

    Attributes:
        root: The folder, as a real path.
        fault: What fails, if anything.
        told: Called before and after each call that succeeds: what it returns before is handed to it after.
        calls: The calls that were made, in order.
        failed: Those that failed.
    """

    root: str
    fault: Fault | None = None
    told: Callable[[str, tuple[Any, ...], Any, Any], Any] | None = None
    calls: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    handles: set[int] = field(default_factory=set)
    busy: threading.local = field(default_factory=threading.local)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def counts(self) -> Counter[str]:
        """How often each function was called."""
        return Counter(self.calls)

    def install(self) -> None:
        """Take the place of the functions, for the rest of the process."""
        self._open = os.open
        for name in ALL:
            if hasattr(os, name):
                setattr(os, name, self._wrapped(name, getattr(os, name)))
        if hasattr(os, "scandir"):
            os.supports_fd |= {os.scandir, os.stat, os.listdir, os.chmod, os.statvfs}
            os.supports_dir_fd |= {os.open, os.stat, os.lstat, os.unlink, os.rmdir, os.mkdir, os.rename, os.link}
            os.supports_follow_symlinks |= {os.stat, os.link, os.chmod}
        placing._renameat2 = self._wrapped("renameat2", placing._renameat2)
        io.open = builtins.open = cast(Any, self._python_open)
        self._map = mmap.mmap
        mmap.mmap = self._wrapped("mmap", mmap.mmap)  # type: ignore[misc, assignment]

    def counted(self, call: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether a call concerns the folder."""
        if getattr(self.busy, "on", False) or not (arguments or named.get("path")):
            return False
        if call in ("copy_file_range", "sendfile"):
            return arguments[0] in self.handles or arguments[1] in self.handles
        place = next((named[key] for key in ("dir_fd", "src_dir_fd") if named.get(key) is not None), None)
        where = place if place is not None else arguments[0] if arguments else named["path"]
        if isinstance(where, int):
            return where in self.handles
        text = os.fspath(where)
        text = os.fsdecode(text)
        return (os.path.join(os.getcwd(), text) + "/").startswith(self.root + "/")

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if not self.counted(name, arguments, named):
                return original(*arguments, **named)
            with self.lock:  # numbers are given one by one, so that what is recorded has an order
                return self.passed(name, original, arguments, named)

        return call

    def passed(self, name: str, original: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Count a call and make it, or let it fail."""
        number = len(self.calls)
        kind = "create" if name == "open" and len(arguments) > 1 and arguments[1] & os.O_CREAT else name
        self.calls.append(kind)
        before = self._tell(name, arguments, named, _NOTHING)
        short = False
        if self.fault is not None and self.fault.kind.startswith("SIG"):
            if number == self.fault.number:
                os.kill(os.getpid(), getattr(signal, self.fault.kind))
        elif self.fault is not None and self.fault.hits(number, kind):
            self.failed.append(kind)
            short = self.fault.kind == "short"
            if not short:
                self._fail(name, original, arguments, self.fault.kind)
        result = _short(name, original, arguments) if short else original(*arguments, **named)
        if name == "open":
            self.handles.add(result)
        elif name == "close" and isinstance(arguments[0], int):
            self.handles.discard(arguments[0])
        self._tell(name, arguments, {**named, "before": before}, result)
        return result

    def _fail(self, name: str, original: Callable[..., Any], arguments: tuple[Any, ...], kind: str) -> None:
        if name == "close":  # the handle is gone all the same
            self.handles.discard(arguments[0])
            original(*arguments)
        code = getattr(errno, kind)
        paths = [
            os.fspath(one)
            for one in arguments[: 2 if name in ("rename", "replace", "link", "renameat2") else 1]
            if isinstance(one, str | os.PathLike)
        ]
        raise OSError(code, os.strerror(code), *paths[:1], *([None, *paths[1:]] if len(paths) > 1 else []))

    def _tell(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
        if self.told is None:
            return None
        self.busy.on = True
        try:
            return self.told(name, arguments, named, None if result is _NOTHING else (result,))
        finally:
            self.busy.on = False

    def _python_open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """`open` of Python, whose file makes its calls here."""
        raw = _File(self, file, "".join(one for one in mode if one in "rwxa+"), closefd, opener)
        try:
            if "b" in mode and buffering == 0:
                return raw
            size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
            kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
            buffer = cast(Any, kind)(raw, size)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)
        except BaseException:
            raw.close()
            raise


class _File(io.FileIO):
    def __init__(self, layer: Layer, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        self._layer = layer
        super().__init__(file, mode, closefd, opener or (lambda path, flags: os.open(path, flags, 0o666)))

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        layer, handle = self._layer, self.fileno() if not self.closed else -1
        if handle not in layer.handles or getattr(layer.busy, "on", False):
            return method(*arguments)
        with layer.lock:
            return layer.passed(name, lambda _, *given: method(*given), (handle, *arguments), {})

    def read(self, size: int | None = -1) -> Any:
        return self.readall() if size is None or size < 0 else self._call("read", super().read, size)

    def readall(self) -> Any:
        parts = []
        while part := self.read(1 << 20):
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: Any) -> Any:
        return self._call("read", super().readinto, memoryview(buffer).cast("B"))

    def write(self, data: Any) -> Any:
        return self._call("write", super().write, memoryview(data).cast("B"))

    def truncate(self, size: int | None = None) -> Any:
        return self._call("ftruncate", super().truncate, self.tell() if size is None else size)

    def close(self) -> None:
        if not self.closed and self.closefd:
            self._call("close", super().close)
        else:
            super().close()


def _short(name: str, original: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make a call of about half of what was asked, but at least a byte; one that moves nothing is made as it is."""
    if len(arguments) < 2:  # the run makes other calls than the one that was counted
        return original(*arguments)
    handle, what, *more = arguments
    if name == "preadv":
        return original(handle, [what[0][: max(1, len(what[0]) // 2)]], *more)
    if name in ("copy_file_range", "sendfile"):
        *start, count = [handle, what, more[0]] if name == "copy_file_range" else [handle, what, more[0], more[1]]
        rest = more[1:] if name == "copy_file_range" else ()
        return original(*start, max(1, count // 2), *rest)
    return original(handle, max(1, what // 2) if isinstance(what, int) else what[: max(1, len(what) // 2)], *more)
