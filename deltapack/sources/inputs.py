"""What a call reads: seen again before its result gets a name, so that no result is made of a file that changed, or takes its place.

Each use case is `guarded`. While it runs, every local file that is opened to be read is noted here, with what the system said of it then.
Whatever gives an output its final name asks `check_inputs` first, and `refuse_input` whether that name is one of a file that is read. A
context variable holds the notes, so that calls of several threads know nothing of one another.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from deltapack.errors import InputChangedError, OutputError
from deltapack.sources.identity import Identity, key_of
from deltapack.sources.remote_path import RemotePath

__all__ = [
    "changed_here",
    "check_inputs",
    "check_protected",
    "forget_output",
    "guarded",
    "looking",
    "note_file",
    "note_input",
    "note_named",
    "reading",
    "refuse_input",
]

P = ParamSpec("P")
R = TypeVar("R")
_SMALL = 1 << 16
"""Bytes of a file whose content is compared: settings, lists, recipes. Clocks of file systems may be too coarse to tell writes apart."""
_HINT = "Inputs are never overwritten; choose another output."
_DEEPEST, _MOST = 5, 100_000
"""Levels of a folder that is read, and entries, that are looked at for the name of an output that is there."""


@dataclass(frozen=True)
class _Noted:
    path: Path
    identity: Identity
    sealed: bool
    digest: bytes | None

    def check(self) -> None:
        """Compare the file with what it was; one that is gone was read whole, through its open handle, and counts as it was."""
        try:
            now = Identity.of(os.stat(self.path))
            if now.key != self.identity.key and self.sealed:
                return  # the handle is still on the file that was opened, all of which has checksums
            if self.digest is not None:
                if now.stamp[1] <= _SMALL and _digest(self.path) == self.digest:
                    return
            elif now.key != self.identity.key:
                raise changed_here(self.path, ("the file that was opened", "another one in its place"))
        except OSError:
            return
        told = self.identity.changes(now, sealed=self.sealed)
        if told is None and self.digest is not None:
            told = "the content that was read", "another"
        if told is not None:
            raise changed_here(self.path, told)


@dataclass
class _Inputs:
    """Files by their absolute paths, those of them that no output has been made of yet, what was named to be read, and what was written."""

    files: dict[str, _Noted] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    named: dict[str, Path] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)

    def note(self, path: Path, identity: Identity, *, sealed: bool) -> None:
        name = os.path.abspath(path)
        if self.is_own(name):
            return
        known = self.files.get(name)
        if known is not None and name in self.open:
            known.check()  # opened again: what was read of it before and what comes now belong together
            return
        digest = _digest(path) if not sealed and identity.stamp[1] <= _SMALL else None
        self.files[name] = _Noted(path, identity, sealed, digest)
        self.open.add(name)

    def is_own(self, name: str) -> bool:
        """Whether this call has written it, as a draft that it reads and may write again."""
        return any(name == own or name.startswith(own + os.sep) for own in self.own)

    def check(self) -> None:
        for name in sorted(self.open):
            self.files[name].check()
        self.open.clear()

    def forget(self, path: Path) -> None:
        whole = os.path.abspath(path)
        self.own.add(whole)
        for name in [name for name in self.files if name == whole or name.startswith(whole + os.sep)]:
            del self.files[name]
            self.open.discard(name)
        for name in [name for name in self.named if name == whole or name.startswith(whole + os.sep)]:
            del self.named[name]


_READING: ContextVar[_Inputs | None] = ContextVar("reading", default=None)


@contextmanager
def reading() -> Iterator[None]:
    """Note what is read in the block, and see at its end that nothing of it changed; a block inside of another is part of that one.

    Raises:
        InputChangedError: A file did.
    """
    if _READING.get() is not None:
        yield
        return
    inputs = _Inputs()
    token = _READING.set(inputs)
    try:
        yield
        inputs.check()
    finally:
        _READING.reset(token)


@contextmanager
def looking() -> Iterator[None]:
    """Note nothing of what is read in the block: an output that is there is looked at, and is no input."""
    token = _READING.set(None)
    try:
        yield
    finally:
        _READING.reset(token)


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Return a use case whose inputs are noted and seen again."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with reading():
            return function(*args, **kwargs)

    return call


def note_file(path: Path, identity: Identity, *, sealed: bool) -> None:
    """Note a file that was opened.

    Args:
        path: Where it is.
        identity: What it was then.
        sealed: Whether checksums are compared of all of it, as of a pack: it may then be replaced while the handle stays on the old one.

    Raises:
        InputChangedError: It was noted before, and is another by now.
    """
    inputs = _READING.get()
    if inputs is not None:
        inputs.note(path, identity, sealed=sealed)


def note_input(path: Path) -> None:
    """Note a small file that is read whole; raises as `note_file`. What is not there is for its reader to tell."""
    if isinstance(path, RemotePath):
        return
    with suppress(OSError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):  # reading a pipe would wait, and take what it holds
            note_file(path, Identity.of(status), sealed=False)


def note_named(*paths: Path | None) -> None:
    """Note files and folders that are read: an output takes the place of none of them and of their files, whether opened yet or not."""
    inputs = _READING.get()
    for path in paths:
        if inputs is not None and path is not None and not isinstance(path, RemotePath) and not inputs.is_own(os.path.abspath(path)):
            inputs.named[os.path.abspath(path)] = path


def check_inputs() -> None:
    """See that nothing that was read has changed; called before an output made of it gets its name.

    Raises:
        InputChangedError: A file did.
    """
    inputs = _READING.get()
    if inputs is not None:
        inputs.check()


def forget_output(path: Path) -> None:
    """Forget what was read under a name that this call itself has written to; what it reads there from now on is its own, and no input."""
    inputs = _READING.get()
    if inputs is not None:
        inputs.forget(path)


def refuse_input(out: Path) -> None:
    """Refuse an output whose name, however it is spelled and linked, is one of a file that this call reads, or of its folders' files.

    Raises:
        OutputError: It is.
    """
    inputs = _READING.get()
    if inputs is None or isinstance(out, RemotePath) or not os.path.exists(out):
        return
    # Of what is gone the number may be another file's by now.
    keys: dict[tuple[int, int] | None, Path] = {
        noted.identity.key: noted.path for noted in inputs.files.values() if _key_at(noted.path) == noted.identity.key
    }
    for named in inputs.named.values():
        for entry in (named, *_entries(named)):
            if entry is named or entry.suffix != ".dpk":  # a pack in a folder is no file of the model there; one that is read was noted
                keys.setdefault(_key_at(entry), entry)
    keys.pop(None, None)  # links to nothing
    for mine in (out, *(_entries(out) if os.path.isdir(out) else ())):
        path = keys.get(_key_at(mine))
        if path is not None and (mine is out or not os.path.isdir(mine)):
            what = "the output is one of the inputs" if mine is out else "the output holds one of the inputs"
            raise OutputError(what, path=mine, found=str(path), hint=_HINT)


def check_protected(out: Path, protect: Iterable[Path]) -> None:
    """Refuse an output that is, holds, or lies in a folder that is read: links, other mounts and spellings do not hide it.

    Raises:
        OutputError: It does.
    """
    if isinstance(out, RemotePath):
        _check_protected_there(out, protect)
        return
    above = _keys_above(out)
    for path in protect:
        if isinstance(path, RemotePath):
            continue
        same = os.path.realpath(out) == os.path.realpath(path) or (os.path.exists(out) and _key_at(path) == _key_at(out))
        inside = not same and not above.isdisjoint({_key_at(folder) for folder, _ in _folders(path)})
        if same or inside or (os.path.isdir(out) and _key_at(out) in _keys_above(path)):
            where = "is" if same else "lies in" if inside else "holds"
            raise OutputError(f"the output {where} one of the inputs", path=out, found=str(path), hint=_HINT)


def changed_here(path: Path, told: tuple[str, str]) -> InputChangedError:
    """Return the error for a file of this machine that is another than when it was opened."""
    hint = "Somebody is writing to it: run again when that is done."
    return InputChangedError("the file changed while it was read", path=path, expected=told[0], found=told[1], hint=hint)


def _keys_above(path: Path) -> set[tuple[int, int] | None]:
    """Return the keys of the folders that a path lies in, as it is written and as its links lead."""
    return {_key_at(folder) for form in (os.path.abspath(path), os.path.realpath(path)) for folder in Path(form).parents} - {None}


def _check_protected_there(out: RemotePath, protect: Iterable[Path]) -> None:
    """Refuse an output in a store that is, holds, or lies in what is read there."""
    for path in protect:
        if out.is_relative_to(path) or (isinstance(path, RemotePath) and path.is_relative_to(out)):
            where = "is" if out == path else "lies in" if out.is_relative_to(path) else "holds"
            raise OutputError(f"the output {where} one of the inputs", path=out, found=str(path), hint=_HINT)


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, down to a bounded depth, links not followed, each with the names of what is in it."""
    top = len(folder.parts)
    for where, below, names in os.walk(folder):
        below[:] = sorted(below) if len(Path(where).parts) - top < _DEEPEST else []
        yield Path(where), [*below, *names]


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and in those below it; a bounded number."""
    return islice((where / name for where, names in _folders(folder) for name in names), _MOST)


def _key_at(path: str | Path) -> tuple[int, int] | None:
    """Return what all names of a file have in common; none of one that is gone."""
    try:
        return key_of(os.stat(path))
    except OSError:
        return None


def _digest(path: Path) -> bytes:
    """Return the SHA-256 of a small file; of one that cannot be read, of nothing."""
    with suppress(OSError), open(path, "rb") as file:
        return hashlib.sha256(file.read(_SMALL + 1)).digest()
    return b""
