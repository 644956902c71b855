"""Use case: which pack follows which, from what their indices say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deltapack.checking import as_path, as_paths
from deltapack.errors import DeltapackError, RecipeError
from deltapack.format.digest import NOTHING
from deltapack.format.identity import content_of
from deltapack.format.reader import PackReader
from deltapack.sources.parts import parts_index_of, whole_packs

__all__ = ["Lineage", "LineageRow", "log_packs"]


@dataclass(frozen=True)
class LineageRow:
    """A pack and its place.

    Attributes:
        path: The pack.
        id: Its id.
        content_id: SHA-256 of what it restores, tensors and files (`Pack.content_id`).
        base: Fingerprint of the checkpoint that it was made from.
        result: Fingerprint of the checkpoint that it restores.
        root: Fingerprint of the checkpoint that its chain begins at; empty in a circle.
        follows: The pack that restores its base; empty where none of them does.
        link: Its place in its chain: packs from the first one on, itself included; 0 in a circle.
        forks: Forks before it.
        bytes: Its size.
        total_bytes: Its size and that of all packs that it follows; 0 in a circle.
        kind: `"exact"` where nothing is lost, else `"lossy"`.
        changed: Number of tensors of the result that it changes or adds.
        tensors: Number of tensors of the result.
        date: When the file was last changed, UTC.
    """

    path: Path
    id: str
    content_id: str
    base: str
    result: str
    root: str
    follows: str
    link: int
    forks: int
    bytes: int
    total_bytes: int
    kind: str
    changed: int
    tensors: int
    date: str

    @property
    def needs_base(self) -> bool:
        """Whether its chain begins at a checkpoint with tensors; else it holds all that it restores."""
        return self.root != NOTHING

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing."""
        return self.base == self.result


@dataclass(frozen=True)
class Lineage:
    """What packs say of their order.

    Attributes:
        rows: The packs, each after the one that it follows; those in a circle last.
        damaged: Paths of what cannot be read as a pack, with the error.
        notes: Gaps, forks and circles.
    """

    rows: Sequence[LineageRow]
    damaged: Sequence[tuple[Path, str]] = ()
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values; paths become strings."""
        rows = [asdict(row) | {"path": str(row.path), "needs_base": row.needs_base} for row in self.rows]
        return {"packs": rows, "damaged": [{"path": str(path), "error": text} for path, text in self.damaged], "notes": list(self.notes)}


def log_packs(paths: str | Path | Sequence[str | Path]) -> Lineage:
    """Tell which pack follows which, from their indices alone; a pack follows another one that restores its base.

    Args:
        paths: Packs, and folders, of which all `.dpk` files count.

    Raises:
        RecipeError: There is no pack at all, or something is no path.
    """
    given = (as_path("paths", paths),) if isinstance(paths, (str, Path)) else as_paths("paths", paths)
    rows, damaged = list[LineageRow](), list[tuple[Path, str]]()
    for path in _files(given):
        try:
            rows.append(_row(path))
        except DeltapackError as error:
            damaged.append((path, str(error)))
    if not rows and not damaged:
        raise RecipeError(
            "there are no packs", found=", ".join(map(str, given)) or "nothing", hint="Name packs, or a folder with .dpk files."
        )
    ordered, notes = _in_tree(rows)
    return Lineage(ordered, damaged, notes)


def _files(paths: Iterable[Path]) -> list[Path]:
    """Return files, each once, those of folders by name."""
    found: dict[Path, Path] = {}
    for path in paths:
        for file in [path / name for name in whole_packs(file.name for file in path.iterdir())] if path.is_dir() else (path,):
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _row(path: Path) -> LineageRow:
    """Read what a pack says of itself.

    Raises:
        FormatError: It is no pack, or damaged.
        LimitError: Its index is over a limit.
        UnsupportedError: It needs a newer version.
    """
    with PackReader(path) as pack:
        index, size, stamp = pack.index, pack.file_bytes, (parts_index_of(path) or path).stat().st_mtime
        changed = sum(entry.kind not in ("unchanged", "alias", "removed") for entry in index.telling)
        kind = "exact" if index.is_exact else "lossy"
        date = datetime.fromtimestamp(stamp, timezone.utc).isoformat(timespec="seconds")
        fingerprints = index.base_fingerprint, index.result_fingerprint
        return LineageRow(
            path, pack.pack_id, content_of(index), *fingerprints, "", "", 0, 0, size, 0, kind, changed, index.result_tensors, date
        )


def _in_tree(rows: Sequence[LineageRow]) -> tuple[list[LineageRow], list[str]]:
    """Return packs with their places, each after the one that it follows, and what is odd about them."""
    makers: dict[str, LineageRow] = {}
    notes = []
    for row in rows:
        other = makers.setdefault(row.result, row) if not row.is_idle else row
        if other is not row:
            notes.append(f"{row.path} and {other.path} restore the same checkpoint")
    children: dict[Path, list[LineageRow]] = {}
    for row in rows:
        if row.base in makers:
            children.setdefault(makers[row.base].path, []).append(row)
    firsts = [row for row in rows if row.base not in makers]
    ordered = list(_walk(firsts, children))
    notes += _gaps(firsts)
    reached = {row.path for row in ordered}
    circle = [replace(row, follows=str(makers[row.base].path)) for row in rows if row.path not in reached]
    if circle:
        notes.append(f"{', '.join(str(row.path) for row in circle)}: in a circle, or after one: no checkpoint begins it")
    return [*ordered, *circle], notes


def _walk(firsts: Sequence[LineageRow], children: Mapping[Path, Sequence[LineageRow]]) -> Iterator[LineageRow]:
    """Yield packs with their places, each after the one that it follows; a chain is told to its end before the next begins."""
    pending = [replace(row, root=row.base, link=1, total_bytes=row.bytes) for row in reversed(firsts)]
    while pending:
        row = pending.pop()
        yield row
        after = children.get(row.path, ())
        forks = row.forks + (len(after) > 1)
        pending += [
            replace(one, root=row.root, follows=str(row.path), link=row.link + 1, forks=forks, total_bytes=row.total_bytes + one.bytes)
            for one in reversed(after)
        ]


def _gaps(firsts: Sequence[LineageRow]) -> list[str]:
    """Say so where packs begin at several checkpoints: there are several bases, or a pack is missing."""
    bases = dict.fromkeys(row.base for row in firsts)
    if len(bases) < 2:
        return []
    named = [(base, next(row.path for row in firsts if row.base == base)) for base in bases]
    return [f"no pack here restores {base[:16]}, which {path} follows: a base of its own, or a pack is missing" for base, path in named]
