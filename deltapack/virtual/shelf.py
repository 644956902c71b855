"""A folder of packs as a folder of checkpoints: one for each pack, chain and merge recipe in it."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deltapack.checking import as_checkpoint, as_path
from deltapack.checkpoint.reader import open_checkpoint
from deltapack.errors import DeltapackError, RecipeError
from deltapack.format.digest import NOTHING
from deltapack.format.reader import PackReader
from deltapack.limits import DEFAULT_LIMITS
from deltapack.sources.identity import Stamp, stamp_of
from deltapack.sources.parts import whole_packs
from deltapack.virtual.folder import DEFAULT_CACHE, VirtualFolder
from deltapack.virtual.opened import OpenFolders, stamps_of_named
from deltapack.virtual.planning import is_recipe
from deltapack.virtual.starting import stands_between

__all__ = ["Shelf", "Title"]

_FRESH = 1.0
"""Seconds for which a look at the folder counts."""


@dataclass(frozen=True)
class Title:
    """A checkpoint that can be read.

    Attributes:
        name: What it is called: the file without `.dpk` or `.yaml`; with it where two files have that name.
        kind: `"pack"`, `"chain"` or `"recipe"`.
        paths: The packs, in order, or the recipe.
        stamps: What changes when one of the files does.
    """

    name: str
    kind: str
    paths: tuple[Path, ...]
    stamps: tuple[Stamp, ...]


@dataclass(frozen=True)
class _Known:
    """What a pack says of itself, or why it cannot be read."""

    stamp: Stamp
    base: str = ""
    result: str = ""
    error: str = ""


class Shelf:
    """Every pack, chain and merge recipe of a folder as a virtual folder; what appears there later is found, too.

    A pack that was made from what another pack of the folder restores is the end of a chain, which starts where the base stands: a pack
    that was made from the base itself follows no other. Any number of threads may read.
    """

    def __init__(
        self,
        base: str | Path,
        packs: str | Path,
        *,
        cache: int | str = DEFAULT_CACHE,
        verify: bool = True,
        workers: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at the folder.

        Args:
            base: The base of all packs.
            packs: The folder with them.
            cache: Bytes of restored tensors that are kept, or text such as `"512MB"`.
            verify: Whether digests are compared.
            workers: Threads that make ahead what readers will want.
            clock: Seconds.

        Raises:
            CheckpointError: The base is no checkpoint.
            RecipeError: The folder is none, or the size of the cache.
        """
        self.folder = as_path("the folder of packs", packs)
        with open_checkpoint(base := as_checkpoint("the base", base)):
            pass  # what is no base is none of any pack
        self._open = OpenFolders(base, cache=cache, verify=verify, workers=workers)
        self._base, self._known = base, dict[Path, _Known]()
        self._starts: dict[tuple[Path, Stamp, Path, Stamp], bool] = {}
        self._lock, self._clock = threading.Lock(), clock
        self._titles: Mapping[str, Title] = {}
        self._looked: float | None = None
        self.titles()

    def titles(self) -> Mapping[str, Title]:
        """Return what can be read, by name; looks again at the folder, but not twice in a second.

        Raises:
            RecipeError: The folder is gone.
        """
        with self._lock:
            now = self._clock()
            if self._looked is None or now - self._looked >= _FRESH:
                self._titles = self._look()
                self._looked = now
            return self._titles

    def damaged(self) -> Mapping[str, str]:
        """Return the files of the folder that are called packs and cannot be read, with the error of each."""
        self.titles()
        return {_shown(path.name): known.error for path, known in sorted(self._known.items()) if known.error}

    @contextmanager
    def use(self, name: str) -> Iterator[VirtualFolder]:
        """Give a virtual folder, which stays open as long as the block lasts.

        Raises:
            DeltapackError: As `VirtualFolder`.
            RecipeError: There is none of that name.
        """
        title = self.titles().get(name)
        if title is None:
            raise RecipeError("there is no such pack or recipe", path=self.folder, found=name)
        key = (title.paths, title.stamps, stamps_of_named(title.paths[0], title.stamps))
        with self._open.use(key, title.paths[0] if len(title.paths) == 1 else title.paths) as folder:
            yield folder

    def warm_soon(self) -> None:
        """Have a thread `warm` it; where the system starts none, the first reader waits."""
        with suppress(RuntimeError):
            threading.Thread(target=self.warm, daemon=True).start()

    def warm(self) -> None:
        """Read a byte of a weight file, so that what decodes is loaded before a reader waits for it; nothing is said where that fails."""
        for name in list(self.titles())[:1]:
            with suppress(DeltapackError), self.use(name) as folder:
                file, size = max(folder.names().items(), key=lambda item: item[1])
                folder.read(file, max(0, size - 1), 1)

    def close(self) -> None:
        """Close all."""
        self._open.close()

    def _look(self) -> Mapping[str, Title]:
        """Read what is in the folder; of packs that were read before, only whether they are still the same."""
        try:
            files = sorted(path for path in self.folder.iterdir() if not path.name.startswith(".") and path.is_file())
        except OSError as error:
            raise RecipeError(f"the folder of packs cannot be listed: {error.strerror}", path=self.folder) from error
        packs = [self.folder / name for name in whole_packs(path.name for path in files)]
        found = {path: known for path in packs if (known := self._read(path)) is not None}
        self._known = found
        sound = {path: known for path, known in found.items() if not known.error}
        by_result = {known.result: path for path, known in reversed(sound.items()) if known.base != known.result}
        starts = self._found_starts(sound, by_result)
        rows = [_chain(path, sound, by_result, starts) for path in sound]
        rows += [((path,), (stamp,)) for path in files if is_recipe(path) and _is_text(path.name) and (stamp := _stamp(path)) is not None]
        stems, full = Counter(_stem(paths[-1]) for paths, _ in rows), {paths[-1].name for paths, _ in rows}
        every = tuple(known.stamp for known in found.values())
        titles = []
        for paths, stamps in rows:
            last = paths[-1]
            kind = "recipe" if is_recipe(last) else "chain" if len(paths) > 1 else "pack"
            name = _stem(last) if stems[_stem(last)] == 1 and _stem(last) not in full else last.name
            titles.append(Title(name, kind, paths, (*stamps, *every) if kind == "recipe" else stamps))
        return {title.name: title for title in sorted(titles, key=lambda title: title.name)}

    def _found_starts(self, known: Mapping[Path, _Known], by_result: Mapping[str, Path]) -> set[Path]:
        """Return the packs that follow another one, and were made from the base itself."""
        pairs = {path: by_result.get(one.base, path) for path, one in known.items() if one.base != NOTHING}
        keys = {path: (before, known[before].stamp, path, known[path].stamp) for path, before in pairs.items() if before != path}
        self._starts = {key: self._starts[key] if key in self._starts else self._starts_here(key[0], key[2]) for key in keys.values()}
        return {path for path, key in keys.items() if self._starts[key]}

    def _starts_here(self, before: Path, path: Path) -> bool:
        """Whether the base stands between two packs; whoever reads is told of what is damaged."""
        try:
            with open_checkpoint(self._base) as base, PackReader(before) as one, PackReader(path) as two:
                return stands_between(base, one, two)
        except DeltapackError:
            return False

    def _read(self, path: Path) -> _Known | None:
        """Return what a pack says of itself; none where it has gone meanwhile."""
        stamp = _stamp(path)
        known = self._known.get(path)
        if stamp is None or (known is not None and known.stamp == stamp):
            return known if stamp is not None else None
        if not _is_text(path.name):
            return _Known(stamp, error="its name is not UTF-8, so no address leads to it")
        try:
            with PackReader(path) as reader:
                return _Known(stamp, reader.index.base_fingerprint, reader.index.result_fingerprint)
        except DeltapackError as error:
            return _Known(stamp, error=str(error))


def _is_text(name: str) -> bool:
    return _shown(name) == name


def _shown(name: str) -> str:
    """Return the name of a file as text; what is no UTF-8 is replaced."""
    return os.fsencode(name).decode(errors="replace")


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def _chain(
    path: Path, known: Mapping[Path, _Known], by_result: Mapping[str, Path], starts: Set[Path]
) -> tuple[tuple[Path, ...], tuple[Stamp, ...]]:
    """Return a pack after those that it follows, from the base on; alone where these go in a circle, or are too many."""
    chain: list[Path] = [path]
    while chain[0] not in starts and known[chain[0]].base != NOTHING and (before := by_result.get(known[chain[0]].base)) is not None:
        if before in chain or len(chain) == DEFAULT_LIMITS.links:
            chain = [path]
            break
        chain.insert(0, before)
    states = [known[link].base for link in chain]
    if known[path].result in states[:-1]:  # it comes back to where it was
        chain = [path]
    paths: Sequence[Path] = chain
    return tuple(paths), tuple(known[link].stamp for link in paths)


def _stem(path: Path) -> str:
    """Return what a pack is called; of one in parts the path is that of their index."""
    return Path(path.name.removesuffix(".index.json")).stem
