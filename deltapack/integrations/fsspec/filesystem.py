"""A file system of fsspec whose files are those of virtual folders.

`deltapack:///packs/math.dpk/model.safetensors?base=/models/base`: the path of a pack or merge recipe, then a file of what it restores. The
base is named there or by the option `base`. `::`, by which fsspec chains file systems, is no part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from deltapack.checking import as_path
from deltapack.errors import RecipeError, UnsupportedError
from deltapack.forks import forking_lock
from deltapack.sources.identity import stamp_of
from deltapack.virtual.folder import DEFAULT_CACHE, VirtualFolder
from deltapack.virtual.opened import OpenFolders, stamps_of_named
from deltapack.virtual.planning import RECIPES

__all__ = ["DeltapackFileSystem"]

_ENDS = (".dpk", *RECIPES)
_BLOCK = 1 << 22


class DeltapackFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Reads what packs restore from a base; nothing can be written."""

    protocol = "deltapack"
    root_marker = ""

    def __init__(
        self,
        base: str | Path | None = None,
        packs: str | Path | Sequence[str | Path] | None = None,
        *,
        weights: float | Sequence[float] | None = None,
        cache: int | str = DEFAULT_CACHE,
        verify: bool = True,
        **options: Any,
    ) -> None:
        """Open nothing yet.

        Args:
            base: The base.
            packs: A pack, a list of them, or a merge recipe, as `deltapack.VirtualFolder` takes them; paths then are those of files inside.
                Unless given, each path says its pack.
            weights: Weights of `packs`.
            cache: Bytes of restored tensors that are kept.
            verify: Whether digests are compared.
            options: What fsspec itself takes.

        Raises:
            RecipeError: No base is named, or an argument is out of range.
        """
        super().__init__(**options)
        if base is None:
            hint = "Give the storage option base=, or end the URL with ?base=PATH."
            raise RecipeError("deltapack:// needs the base that its packs were made from", hint=hint)
        if weights is not None and packs is None:
            raise RecipeError("weights are for packs that are given, too", found=weights)
        self.base, self.packs, self.weights = base, packs, weights
        self._folders = OpenFolders(base, cache=cache, verify=verify, at_once=4)
        self._lock = forking_lock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return the path without protocol and base."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return super()._strip_protocol(str(path).partition("?base=")[0])

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        """Return the base that a URL names."""
        found = parse_qs(path.partition("?")[2]).get("base")
        return {"base": found[0]} if found else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the full URL of a path."""
        return f"{super().unstrip_protocol(name)}?{urlencode({'base': str(self.base)})}"

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """List a folder: of files that packs restore, or of packs.

        Raises:
            DeltapackError: As `deltapack.VirtualFolder`.
            FileNotFoundError: There is no such path.
        """
        path = self._strip_protocol(path)
        pack, inside = self._split(path)
        if pack is None and self.packs is None:
            rows = _packs_in(path)
        else:
            with self._use(pack, path) as folder:
                rows = _rows(folder, "" if pack is None else f"{pack}/", inside, path)
        return rows if detail else sorted(row["name"] for row in rows)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return name, size and type of a path. Raises as `ls`."""
        path = self._strip_protocol(path)
        rows = self.ls(path)
        if len(rows) == 1 and rows[0]["name"] == path:
            return dict(rows[0])
        return {"name": path, "size": 0, "type": "directory"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Return the content of a file, or a part of it; negative numbers count from its end. Raises as `ls`."""
        with self._file(path) as (folder, name):
            first, last, _ = slice(start, end).indices(folder.names()[name])
            return folder.read(name, first, max(0, last - first))

    def ukey(self, path: str) -> str:
        """Return what changes when the content of a file does. Raises as `ls`."""
        with self._file(path) as (folder, name):
            return folder.etag(name)

    checksum = ukey

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        """Open a file for reading.

        Raises:
            UnsupportedError: It is to be written.
        """
        if mode != "rb":
            raise UnsupportedError("deltapack:// only reads", path=path, found=f"mode {mode}")
        info = self.info(path)
        if info["type"] != "file":
            raise IsADirectoryError(path)
        options.setdefault("cache_type", "readahead")
        return _File(self, path, mode, block_size or _BLOCK, size=info["size"], **options)

    @contextmanager
    def _file(self, path: str) -> Iterator[tuple[VirtualFolder, str]]:
        """Give the folder of a file, and its name there."""
        path = self._strip_protocol(path)
        pack, inside = self._split(path)
        with self._use(pack, path) as folder:
            if inside not in folder.names():
                raise FileNotFoundError(path)
            yield folder, inside

    @contextmanager
    def _use(self, pack: str | None, path: str) -> Iterator[VirtualFolder]:
        """Give the folder that a pack restores, or all packs that were given."""
        if pack is None and self.packs is None:
            raise FileNotFoundError(path)
        packs: Any = self.packs if pack is None else pack
        several = [packs] if isinstance(packs, (str, Path)) else list(packs)
        stamps = [stamp_of(as_path("the pack", one).stat()) for one in several]  # a FileNotFoundError is what fsspec wants
        named = [stamps_of_named(as_path("the pack", one), stamp) for one, stamp in zip(several, stamps, strict=True)]
        key = (*map(str, several), *stamps, *named)
        with self._folders.use(key, packs, weights=self.weights) as folder:
            yield folder

    def _split(self, path: str) -> tuple[str | None, str]:
        """Return the pack that a path names, and what is inside of it."""
        if self.packs is not None:
            return None, path.lstrip("/")
        parts = path.split("/")
        end = next((number for number, part in enumerate(parts, 1) if part.endswith(_ENDS)), 0)
        return ("/".join(parts[:end]), "/".join(parts[end:])) if end else (None, "")


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is open; fsspec's own cache asks for ranges."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start, end)
        return data


def _rows(folder: VirtualFolder, before: str, inside: str, path: str) -> list[dict[str, Any]]:
    """Return what a folder of a virtual folder holds, or the file that it is."""
    sizes = folder.names()
    if inside in sizes:
        return [{"name": path, "size": sizes[inside], "type": "file"}]
    prefix = f"{inside}/" if inside else ""
    names = [name.removeprefix(prefix) for name in sizes if name.startswith(prefix)]
    if not names:
        raise FileNotFoundError(path)
    here = f"{before}{prefix}"
    folders = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
    files = [{"name": f"{here}{name}", "size": sizes[prefix + name], "type": "file"} for name in names if "/" not in name]
    return [*({"name": f"{here}{name}", "size": 0, "type": "directory"} for name in folders), *files]


def _packs_in(path: str) -> list[dict[str, Any]]:
    """Return the packs, recipes and folders in a folder of this machine."""
    names = sorted(one.name for one in Path(path or ".").iterdir() if one.is_dir() or one.name.endswith(_ENDS))
    return [{"name": f"{path}/{name}" if path else name, "size": 0, "type": "directory"} for name in names]
