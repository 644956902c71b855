"""Write a pack in numbered parts (spec/11-parts.md): slices of its bytes, and last the index that names them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from deltapack.errors import FormatError, OutputError, RecipeError, SourceError
from deltapack.format.atomic import check_free_space, claimed, fsync_folder, sweep, temporary_sibling, writing
from deltapack.format.cutting import Spans, blocks, blocks_of, cut_beside, digest, names_of, taken
from deltapack.format.parts import Part, Parts, parse_parts, parts_text
from deltapack.format.placing import check_as_seen, place, seen_at
from deltapack.format.reader import PackReader
from deltapack.format.sent import check_new_there
from deltapack.sources.identity import Identity
from deltapack.sources.inputs import check_inputs, refuse_input
from deltapack.sources.parts import PARTS_INDEX
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.sending import drop_begun, remove, send_bytes, send_file, staging

__all__ = ["Seen", "check_no_parts", "check_parts_output", "claimed_pack", "drop_parts", "parts_at", "parts_seen", "write_parts"]

Seen = Mapping[Path, Identity]
"""What lay at the names of a pack's parts and of their index when the work began: it alone is replaced, or removed."""

_MOST_INDEX = 1 << 20


def parts_at(out: Path) -> Parts | None:
    """Return the parts of a pack that lie where `out` would be; none where there are none, or their index is not ours."""
    index = _index_of(out)
    try:
        with writing(index):
            if not index.is_file():
                return None
            if index.stat().st_size > _MOST_INDEX:
                raise FormatError("it is too long")
            return parse_parts(index.read_bytes(), index)
    except FormatError as error:
        hint = "Move or remove it yourself, or choose another name."
        raise OutputError("what lies beside the output is no index of the parts of a pack", path=index, hint=hint) from error


def check_no_parts(out: Path, *, force: bool) -> None:
    """Refuse a pack whose name stands for parts that are there, which `force` replaces.

    Raises:
        OutputError: They are, and `force` is false, or they are read; or the index is something else.
    """
    old = parts_at(out)
    if old is not None and not isinstance(out, RemotePath):
        for name in (_index_of(out).name, *(part.name for part in old.parts)):
            refuse_input(out.with_name(name))
    if old is not None and not force:
        sweep(out)
        raise OutputError("the output exists, in parts", path=_index_of(out), hint="Remove them, choose another name, or use --force.")


def parts_seen(out: Path) -> Seen:
    """Return what lies at the names of a pack's parts and of their index, for `write_parts`; nothing in a store, which keeps no identities.

    Raises:
        OutputError: The index is something else.
    """
    old = None if isinstance(out, RemotePath) else parts_at(out)
    names = [_index_of(out).name, *(part.name for part in old.parts)] if old is not None else []
    seen = {out.with_name(name): seen_at(out.with_name(name)) for name in names}
    return {path: identity for path, identity in seen.items() if identity is not None}


def check_parts_output(out: Path, part_bytes: int) -> None:
    """Refuse a size of parts that is out of range.

    Raises:
        RecipeError: It is.
    """
    if part_bytes < 1:
        raise RecipeError("the size of parts is too small", path=out, expected="at least 1 byte", found=part_bytes)


def drop_parts(out: Path, old: Parts | None, seen: Seen, keep: frozenset[str] = frozenset()) -> None:
    """Remove parts that were replaced; their index first, unless it was written anew, too. What came in their place meanwhile stays."""
    if old is None:
        return
    index = _index_of(out)
    names = [index.name, *(part.name for part in old.parts)]
    for name in names:
        if name in keep:
            continue
        path = out.with_name(name)
        if isinstance(path, RemotePath):
            remove(path.url)
        elif path in seen:
            check_as_seen(path, seen[path])
            path.unlink(missing_ok=True)
            if path == index:
                fsync_folder(out.parent)  # else a power cut could leave an index of parts that are gone


@contextlib.contextmanager
def claimed_pack(out: Path) -> Iterator[None]:
    """Claim a pack of this machine, as `claimed` does; parts that a killed run has given their names, but no index, are removed, too.

    Raises:
        OutputError: Another run writes it, or the system refuses.
    """
    if isinstance(out, RemotePath):
        yield
        return
    with claimed(out, sweep=False) as claim:
        with writing(out):
            kept = parts_at(out)
            for path in claim.unfinished():
                _drop_placed(out, path, names_of(kept))
            claim.sweep()
        yield


def _drop_placed(out: Path, unfinished: Path, kept: frozenset[str]) -> None:
    """Remove the parts that an unfinished index names: those that are what it says, byte for byte."""
    try:
        if not 0 < unfinished.stat().st_size <= _MOST_INDEX or unfinished.is_dir():
            return
        parts = parse_parts(unfinished.read_bytes(), unfinished).parts
    except FormatError:  # it is something else
        return
    for part in parts:
        path = out.with_name(part.name)
        if part.name not in kept and path.is_file() and path.stat().st_size == part.size and digest(blocks_of(path)) == part.sha256:
            path.unlink()


def write_parts(source: PackReader, out: Path, part_bytes: int, *, force: bool, seen: Seen | None = None, claim: bool = True) -> Parts:
    """Write the parts of a pack; the parts that were there when the work began are replaced.

    Args:
        source: The pack, open.
        out: The name of the whole, `NAME.dpk`; the parts and their index lie beside it.
        part_bytes: The most bytes of a part.
        force: Whether to replace what is there.
        seen: What was there when the work began, of `parts_seen`; it begins now unless given.
        claim: Whether to claim the output: not where the caller has.

    Returns:
        What was written.

    Raises:
        InputChangedError: What was read for it changed meanwhile.
        OutputError: Parts exist and `force` is false, or came meanwhile, or are inputs; another run writes there, or the system refuses.
        RecipeError: There would be more than 1,000 parts.
        SourceError: A store refuses, or does not answer.
    """
    with claimed_pack(out) if claim else contextlib.nullcontext():
        return _write_parts(source, out, part_bytes, parts_seen(out) if seen is None else seen, force=force)


def _write_parts(source: PackReader, out: Path, part_bytes: int, seen: Seen, *, force: bool) -> Parts:
    check_parts_output(out, part_bytes)
    check_no_parts(out, force=force)
    old = parts_at(out)
    with writing(out):
        spans = cut_beside(source, out, part_bytes, old)
    seen = _check_free(out, source, spans, names_of(old), seen)
    with writing(out):
        with _placing(out, seen) as write:
            parts = [Part(name, length, write.part(name, source, start, length)) for name, (start, length) in spans.items()]
            parts_of = Parts(source.pack_id, source.file_bytes, tuple(parts))
            write.finish(parts_text(parts_of))
        drop_parts(out, old, seen, frozenset((*spans, _index_of(out).name)))
    return parts_of


def _check_free(out: Path, source: PackReader, spans: Spans, ours: Collection[str], seen: Seen) -> Seen:
    """Refuse to take the place of what is no part of a pack that may be replaced, or is read.

    Returns:
        What was seen, and parts that a stopped run has left, which are what is written.
    """
    if not isinstance(out, RemotePath):
        for path in (_index_of(out), *map(out.with_name, spans)):
            refuse_input(path)
        check_as_seen(_index_of(out), seen.get(_index_of(out)))
    left = {out.with_name(name): seen_at(out.with_name(name)) for name in spans if name not in ours}
    with writing(out):
        found = taken(out, source, spans, ours)
    if found is not None:
        raise OutputError("a file has the name of a part", path=found, hint="Move it, or choose another name.")
    if isinstance(out, RemotePath):
        check_new_there(out.with_name(next(iter(spans))), force=True)
    return {**seen, **{path: identity for path, identity in left.items() if identity is not None}}


@contextlib.contextmanager
def _placing(out: Path, seen: Seen) -> Iterator[_Place]:
    """Return what writes parts: those of this machine get their names when all are there, of a store each is sent at once.

    Where a name cannot be given, those that were given to new files are taken back.
    """
    with staging() if isinstance(out, RemotePath) else contextlib.nullcontext() as folder:
        write = _Place(out, folder, seen)
        try:
            yield write
        except BaseException:
            write.take_back()
            raise
        finally:
            for temporary, _ in write.written:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)


class _Place:
    def __init__(self, out: Path, folder: Path | None, seen: Seen) -> None:
        self.out, self.folder, self._seen = out, folder, seen
        self.written: list[tuple[Path, Path]] = []
        self._placed: list[Path] = []
        self._text = b""

    def part(self, name: str, source: PackReader, start: int, length: int) -> str:
        """Write a part; return its digest."""
        path = self.out.with_name(name)
        made = self._write(path, blocks(source, start, length), length)
        if isinstance(path, RemotePath):
            check_inputs()
            drop_begun(path.url)
            self._placed += [] if path.exists() else [path]
            send_file(self.written[-1][0], path.url)
            self.written.pop()[0].unlink()
        return made

    def _write(self, path: Path, pieces: Iterable[bytes], length: int) -> str:
        temporary = temporary_sibling(self.out) if self.folder is None else self.folder / path.name
        check_free_space(temporary.parent, length, temporary)
        self.written.append((temporary, path))
        state = hashlib.sha256()
        with open(temporary, "xb") as file:
            for piece in pieces:
                state.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return state.hexdigest()

    def finish(self, index: bytes) -> None:
        """Give the parts their names, and then the index, so that it is there when all of them are."""
        path, self._text = _index_of(self.out), index
        if isinstance(path, RemotePath):
            send_bytes(index, path.url)
            self._placed = []
            return
        self._write(path, [index], len(index))
        *parts, (written, _) = self.written
        fsync_folder(path.parent)  # before the parts have their names, so that who finds some of them knows whose they are
        for temporary, part in parts:
            place(temporary, part, self._seen.get(part))
            self._placed += [] if part in self._seen else [part]
        fsync_folder(path.parent)
        place(written, path, self._seen.get(path))
        self._placed = []
        fsync_folder(path.parent)

    def take_back(self) -> None:
        """Remove the parts that have their names, where no index speaks of them."""
        if self._is_named():  # interrupted after the index had its name: all is there
            return
        for path in self._placed:
            with contextlib.suppress(OSError, SourceError):
                _remove(path)

    def _is_named(self) -> bool:
        """Whether the index is in its place; also where that cannot be seen, as parts too many do less harm than parts too few."""
        try:
            return bool(self._text) and _index_of(self.out).read_bytes() == self._text
        except FileNotFoundError:
            return False
        except (OSError, SourceError):
            return True


def _remove(path: Path) -> None:
    if isinstance(path, RemotePath):
        remove(path.url)
    else:
        path.unlink(missing_ok=True)


def _index_of(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".dpk") + PARTS_INDEX)
