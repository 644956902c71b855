"""Virtual folders that are open, a bounded number of them: those that nobody read for longest are closed."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from deltapack.errors import DeltapackError, RecipeError
from deltapack.merging.arguments import Numbers
from deltapack.merging.recipe_files import read_merge_file
from deltapack.sources.identity import Stamp, stamp_of
from deltapack.virtual.cache import ChunkCache
from deltapack.virtual.folder import DEFAULT_CACHE, VirtualFolder, cache_of
from deltapack.virtual.planning import is_recipe

__all__ = ["OpenFolders", "stamps_of_named"]

_AT_ONCE = 16


def stamps_of_named(path: Path, known: Hashable) -> tuple[Stamp, ...]:
    """Return what changes when something does that a recipe names, packs and adapters; nothing for a pack.

    Args:
        path: The recipe.
        known: What changes when the recipe does.
    """
    if not is_recipe(path):
        return ()
    files, stamps = list(_named_by(path, known)), []
    for named in tuple(files):
        with suppress(OSError, DeltapackError):
            files += sorted(named.iterdir()) if named.is_dir() else []
    for file in files:
        with suppress(OSError, DeltapackError):
            stamps.append(stamp_of(file.stat()))
    return tuple(stamps)


@lru_cache(256)
def _named_by(path: Path, known: Hashable) -> tuple[Path, ...]:
    try:
        return read_merge_file(path).packs
    except DeltapackError:  # whoever opens it is told
        return ()


@dataclass
class _Opened:
    """A folder and who uses it; whoever comes first opens it while others wait."""

    folder: VirtualFolder | None = None
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class OpenFolders:
    """Virtual folders over one base that share a cache; they are opened when they are asked for. Any number of threads may ask."""

    def __init__(
        self,
        base: str | Path,
        *,
        cache: int | str = DEFAULT_CACHE,
        verify: bool = True,
        workers: int | None = None,
        at_once: int = _AT_ONCE,
    ) -> None:
        """Open nothing yet.

        Args:
            base: The base.
            cache: Bytes of restored tensors that are kept, of all folders together, or text such as `"512MB"`.
            verify: Whether digests are compared.
            workers: Threads of each folder.
            at_once: Folders that stay open; more only while they are in use.

        Raises:
            RecipeError: The size is none, or too small.
        """
        self._base, self._cache = base, ChunkCache(cache_of(cache))
        self._verify, self._workers, self._at_once = verify, workers, at_once
        self._opened: dict[Hashable, _Opened] = {}
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def use(self, key: Hashable, packs: str | Path | Sequence[str | Path], *, weights: Numbers | None = None) -> Iterator[VirtualFolder]:
        """Give a folder, which stays open as long as the block lasts.

        Args:
            key: What tells it from others; another one when the files have changed.
            packs: What `VirtualFolder` takes.
            weights: Likewise.

        Raises:
            DeltapackError: As `VirtualFolder`.
            RecipeError: All was closed.
        """
        entry = self._take(key)
        try:
            with entry.lock:
                if entry.folder is None:
                    entry.folder = VirtualFolder(
                        self._base, packs, weights=weights, cache=self._cache, verify=self._verify, workers=self._workers
                    )
            yield entry.folder
        finally:
            self._give_back(key, entry)

    def close(self) -> None:
        """Close all folders, those in use when they are given back."""
        with self._lock:
            self._closed = True
            idle = [key for key, entry in self._opened.items() if not entry.users]
            closing = [self._opened.pop(key) for key in idle]
        _close(closing)

    def __len__(self) -> int:
        return len(self._opened)

    def _take(self, key: Hashable) -> _Opened:
        with self._lock:
            if self._closed:
                raise RecipeError("the folders are closed")
            entry = self._opened.pop(key, None) or _Opened()
            self._opened[key] = entry  # last: used just now
            entry.users += 1
            return entry

    def _give_back(self, key: Hashable, entry: _Opened) -> None:
        """Close what is too much, and what could not be opened."""
        with self._lock:
            entry.users -= 1
            idle = [other for other, held in self._opened.items() if not held.users]
            failed = [other for other in idle if self._opened[other].folder is None]
            spare = len(self._opened) - len(failed) - (0 if self._closed else self._at_once)
            gone = failed + [other for other in idle if other not in failed][: max(0, spare)]
            closing = [self._opened.pop(other) for other in gone]
        _close(closing)


def _close(entries: Sequence[_Opened]) -> None:
    for entry in entries:
        if entry.folder is not None:
            with suppress(OSError):
                entry.folder.close()
