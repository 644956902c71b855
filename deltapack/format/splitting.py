"""Write a pack in numbered parts (spec/11-parts.md): slices of its bytes, and last the index that names them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from deltapack.errors import FormatError, OutputError, RecipeError
from deltapack.format.atomic import check_free_space, fsync_folder, temporary_sibling, writing
from deltapack.format.parts import MOST_PARTS, Part, Parts, parse_parts, part_name, parts_text
from deltapack.format.placing import check_as_seen, place, seen_at
from deltapack.format.reader import PackReader
from deltapack.format.sent import check_new_there
from deltapack.sources.identity import Identity
from deltapack.sources.inputs import check_inputs, refuse_input
from deltapack.sources.parts import PARTS_INDEX
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.sending import drop_begun, remove, send_bytes, send_file, staging

__all__ = ["Seen", "check_no_parts", "check_parts_output", "drop_parts", "parts_at", "parts_seen", "write_parts"]

Seen = Mapping[Path, Identity]
"""What lay at the names of a pack's parts and of their index when the work began: it alone is replaced, or removed."""

_BLOCK = 1 << 23


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


def write_parts(source: PackReader, out: Path, part_bytes: int, *, force: bool, seen: Seen) -> Parts:
    """Write the parts of a pack; the parts that were there when the work began are replaced.

    Args:
        source: The pack, open.
        out: The name of the whole, `NAME.dpk`; the parts and their index lie beside it.
        part_bytes: The most bytes of a part.
        force: Whether to replace what is there.
        seen: What was there when the work began, of `parts_seen`.

    Returns:
        What was written.

    Raises:
        InputChangedError: What was read for it changed meanwhile.
        OutputError: Parts exist and `force` is false, or came meanwhile, or are inputs; or the system refuses to write.
        RecipeError: There would be more than 1,000 parts.
        SourceError: A store refuses, or does not answer.
    """
    check_parts_output(out, part_bytes)
    check_no_parts(out, force=force)
    count = -(-source.file_bytes // part_bytes)
    if count > MOST_PARTS:
        raise RecipeError("there would be too many parts", path=out, expected=f"at most {MOST_PARTS}", found=count)
    old = parts_at(out)
    names = [part_name(out.name.removesuffix(".dpk"), number, count) for number in range(1, count + 1)]
    _check_free(out, names, old, seen)
    spans = [(start, min(part_bytes, source.file_bytes - start)) for start in range(0, source.file_bytes, part_bytes)]
    with writing(out), _placing(out, seen) as write:
        parts = [Part(name, span[1], write(name, source, *span)) for name, span in zip(names, spans, strict=True)]
        parts_of = Parts(source.pack_id, source.file_bytes, tuple(parts))
        write.index(parts_text(parts_of))
    with writing(out):
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
    """Return what writes parts and index: those of this machine get their names when all are there, of a store each is sent at once.

    The index is last. Where a name cannot be given, those that were given to new files are taken back.
    """
    if isinstance(out, RemotePath):
        with staging() as folder:
            yield _Place(out, folder)
        return
    written, placed = _Place(out, None), list[Path]()
    try:
        yield written
        for temporary, path in written.written:
            place(temporary, path, seen.get(path))
            placed.append(path)
        fsync_folder(out.parent)
    except BaseException:
        for path in placed:
            if path not in seen:
                path.unlink(missing_ok=True)
        raise
    finally:
        for temporary, _ in written.written:
            temporary.unlink(missing_ok=True)


class _Place:
    def __init__(self, out: Path, folder: Path | None) -> None:
        self.out, self.folder = out, folder
        self.written: list[tuple[Path, Path]] = []

    def __call__(self, name: str, source: PackReader, start: int, length: int) -> str:
        """Write a part; return its digest."""
        path = self.out.with_name(name)
        temporary = temporary_sibling(path) if self.folder is None else self.folder / name
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

    def index(self, text: bytes) -> None:
        """Write the index."""
        index = _index_of(self.out)
        if isinstance(index, RemotePath):
            send_bytes(text, index.url)
            return
        temporary = temporary_sibling(index)
        self.written.append((temporary, index))
        with open(temporary, "xb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _index_of(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".dpk") + PARTS_INDEX)
