"""Where a pack is cut into parts, and which names they get: none that an older pack's index speaks of, nor a file of somebody else."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from deltapack.errors import OutputError, RecipeError
from deltapack.format.parts import MOST_PARTS, Parts, part_name
from deltapack.format.reader import PackReader

__all__ = ["Spans", "blocks", "blocks_of", "cut_beside", "digest", "names_of", "taken"]

_BLOCK = 1 << 23

Spans = Mapping[str, tuple[int, int]]
"""Where each part begins and its length, by its name."""


def _cut(source: PackReader, out: Path, part_bytes: int) -> Spans:
    """Return the parts of a pack.

    Raises:
        RecipeError: There would be too many.
    """
    size, stem = source.file_bytes, out.name.removesuffix(".dpk")
    count = -(-size // part_bytes)
    if count > MOST_PARTS:
        raise RecipeError("there would be too many parts", path=out, expected=f"at most {MOST_PARTS}", found=count)
    starts = range(0, size, part_bytes)
    return {part_name(stem, number, count): (start, min(part_bytes, size - start)) for number, start in enumerate(starts, 1)}


def cut_beside(source: PackReader, out: Path, part_bytes: int, old: Parts | None) -> Spans:
    """Return parts that have other names than those of the pack that they replace.

    As many parts would have the same names, and there would be a moment in which the old index speaks of new parts. So there are more
    then, each a little smaller, and the old pack is whole until the new index takes the place of its own.

    Raises:
        OutputError: There is no room for more.
        RecipeError: There would be too many.
    """
    spans = _cut(source, out, part_bytes)
    wanted = len(spans)
    while old is not None and (_stand_for(old, source, spans) or taken(out, source, spans, names_of(old)) is not None):
        wanted += 1
        if wanted > MOST_PARTS:
            raise OutputError("there is no name for one more part", path=out, hint="Remove the old parts first, or choose a larger size.")
        spans = _cut(source, out, -(-source.file_bytes // wanted))
    return spans


def _stand_for(old: Parts, source: PackReader, spans: Spans) -> bool:
    """Whether the names are those of an older pack, and not of this very one, cut as it is."""
    same = (old.pack_id, old.size, [part.size for part in old.parts]) == (
        source.pack_id,
        source.file_bytes,
        [length for _, length in spans.values()],
    )
    return not same and not names_of(old).isdisjoint(spans)


def names_of(old: Parts | None) -> frozenset[str]:
    """Return the names of the parts of an older pack, if there is one."""
    return frozenset(part.name for part in old.parts) if old is not None else frozenset()


def taken(out: Path, source: PackReader, spans: Spans, ours: Collection[str]) -> Path | None:
    """Return a file that has the name of a part and may not be replaced; what a run left that was stopped is the same as the part."""
    for name, (start, length) in spans.items():
        path = out.with_name(name)
        if name in ours or not path.exists():
            continue
        same = path.is_file() and path.stat().st_size == length
        if not same or digest(blocks_of(path)) != digest(blocks(source, start, length)):
            return path
    return None


def blocks(source: PackReader, start: int, length: int) -> Iterator[bytes]:
    """Yield bytes of a pack, some MiB at a time."""
    for at in range(start, start + length, _BLOCK):
        yield source.read(at, min(_BLOCK, start + length - at))


def blocks_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, some MiB at a time; raises `OSError`."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def digest(pieces: Iterable[bytes]) -> str:
    """Return the SHA-256 of bytes that come in pieces."""
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()
