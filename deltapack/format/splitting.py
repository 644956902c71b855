"""Write a pack in numbered parts (spec/11-parts.md): slices of its bytes, and last the index that names them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from deltapack.errors import FormatError, OutputError, RecipeError
from deltapack.format.atomic import check_free_space, claimed, fsync_folder, sweep, temporary_sibling, writing
from deltapack.format.parts import MOST_PARTS, Part, Parts, parse_parts, part_name, parts_text
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

_BLOCK, _MOST_INDEX = 1 << 23, 1 << 20


def parts_at(out: Path) -> Parts | None:
    """Return the parts of a pack that lie where `out` would be; none where there are none, or their index is not ours."""
    index = _index_of(out)
    if not index.is_file():
        return None
    try:
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
    names = [_index_of(out).name, *(part.name for part in old.parts)]
    for name in names:
        if name in keep:
            continue
        path = out.with_name(name)
        if isinstance(path, RemotePath):
            remove(path.url)
        elif path in seen:
            check_as_seen(path, seen[path])
            path.unlink(missing_ok=True)


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
                _drop_placed(out, path, frozenset() if kept is None else frozenset(part.name for part in kept.parts))
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
        if part.name not in kept and path.is_file() and path.stat().st_size == part.size:
            state = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    state.update(block)
            if state.hexdigest() == part.sha256:
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
    count = -(-source.file_bytes // part_bytes)
    if count > MOST_PARTS:
        raise RecipeError("there would be too many parts", path=out, expected=f"at most {MOST_PARTS}", found=count)
    old = parts_at(out)
    names = [part_name(out.name.removesuffix(".dpk"), number, count) for number in range(1, count + 1)]
    _check_free(out, names, old, seen)
    spans = [(start, min(part_bytes, source.file_bytes - start)) for start in range(0, source.file_bytes, part_bytes)]
    with writing(out):
        with _placing(out, seen) as write:
            parts = tuple(Part(name, span[1], write(name, source, *span)) for name, span in zip(names, spans, strict=True))
            parts_of = Parts(source.pack_id, source.file_bytes, parts)
            write.index = parts_text(parts_of)
        drop_parts(out, old, seen, frozenset((*names, _index_of(out).name)))
    return parts_of


def _check_free(out: Path, names: list[str], old: Parts | None, seen: Seen) -> None:
    """Refuse to take the place of what is no part of a pack that may be replaced, or is read."""
    ours = {part.name for part in old.parts} if old is not None else set()
    if not isinstance(out, RemotePath):
        for path in (_index_of(out), *map(out.with_name, names)):
            refuse_input(path)
        check_as_seen(_index_of(out), seen.get(_index_of(out)))
    for name in names:
        if name not in ours and out.with_name(name).exists():
            raise OutputError("a file has the name of a part", path=out.with_name(name), hint="Move it, or choose another name.")
    if isinstance(out, RemotePath):
        check_new_there(out.with_name(names[0]), force=True)


@contextlib.contextmanager
def _placing(out: Path, seen: Seen) -> Iterator[_Place]:
    """Return what writes a part: those of this machine get their names when all are there, of a store each is sent at once.

    Where a name cannot be given, those that were given to new files are taken back.
    """
    if isinstance(out, RemotePath):
        with staging() as folder:
            write = _Place(out, folder)
            yield write
        index = _index_of(out)
        assert isinstance(index, RemotePath)
        send_bytes(write.index, index.url)
        return
    write, index, placed = _Place(out, None), temporary_sibling(out), list[Path]()
    try:
        yield write
        _write_synced(index, write.index)  # before the parts have their names, so that who finds some of them knows whose they are
        for temporary, path in write.written:
            place(temporary, path, seen.get(path))
            placed.append(path)
        fsync_folder(out.parent)
        place(index, _index_of(out), seen.get(_index_of(out)))
        placed.clear()
        fsync_folder(out.parent)
    finally:
        for path in placed:
            if path not in seen:
                path.unlink(missing_ok=True)
        for temporary in (index, *(temporary for temporary, _ in write.written)):
            temporary.unlink(missing_ok=True)


class _Place:
    def __init__(self, out: Path, folder: Path | None) -> None:
        self.out, self.folder = out, folder
        self.written: list[tuple[Path, Path]] = []
        self.index = b""

    def __call__(self, name: str, source: PackReader, start: int, length: int) -> str:
        """Write a part; return its digest."""
        path = self.out.with_name(name)
        temporary = temporary_sibling(self.out) if self.folder is None else self.folder / name
        check_free_space(temporary.parent, length, temporary)
        if self.folder is None:
            self.written.append((temporary, path))
        state = hashlib.sha256()
        with open(temporary, "xb") as file:
            for at in range(start, start + length, _BLOCK):
                block = source.read(at, min(_BLOCK, start + length - at))
                state.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if isinstance(path, RemotePath):
            check_inputs()
            drop_begun(path.url)
            send_file(temporary, path.url)
            temporary.unlink()
        return state.hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _index_of(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".dpk") + PARTS_INDEX)
