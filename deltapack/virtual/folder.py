"""Use case: base + packs -> a folder that exists nowhere and is read as if it did."""

from __future__ import annotations

import hashlib
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from deltapack.checking import as_count, as_pack, as_paths
from deltapack.checkpoint import Shard, parse_size
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK
from deltapack.merging.arguments import Numbers
from deltapack.parallel import resolve_workers
from deltapack.virtual.ahead import ReadAhead, Streams
from deltapack.virtual.cache import ChunkCache
from deltapack.virtual.chunks import RestoredChunks
from deltapack.virtual.planning import SmallFile, is_recipe, plan_folder

__all__ = ["DEFAULT_CACHE", "VirtualFolder", "cache_of"]

DEFAULT_CACHE = "512MB"
_LEAST_CACHE = 1 << 26
_AHEAD_BYTES, _AHEAD_CHUNKS = 1 << 25, 256
"""What is made before a reader who reads on asks for it."""
_forking = [threading.Lock()]
"""Whoever opens a folder anew after a fork holds it; a process begins with one that nobody holds."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forking.__setitem__(0, threading.Lock()))


@dataclass(frozen=True)
class _Piece:
    """A chunk of a tensor in a file, or the head.

    Attributes:
        start: Offset in the file.
        stop: Offset behind it.
        tensor: The tensor; empty: the head.
        number: Number of the chunk.
    """

    start: int
    stop: int
    tensor: str = ""
    number: int = 0


class _WeightFile:
    """Where the pieces of a weight file lie.

    Attributes:
        head: What stands before the elements.
        size: Bytes.
        sha256: Digest of the head.
    """

    def __init__(self, shard: Shard, head: bytes) -> None:
        self.head, self.sha256 = head, hashlib.sha256(head).hexdigest()
        self._starts, self._tensors = list[int](), list[tuple[str, int, int]]()
        position = len(head)
        for tensor in shard.tensors:
            if tensor.nbytes:
                self._starts.append(position)
                self._tensors.append((tensor.name, position + tensor.nbytes, CHUNK * tensor.dtype.itemsize))
                position += tensor.nbytes
        self.size = position

    def pieces(self, start: int, stop: int) -> Iterator[_Piece]:
        """Yield the pieces that overlap with a part of the file, in order."""
        if start < min(stop, len(self.head)):
            yield _Piece(0, len(self.head))
            start = len(self.head)
        place = max(0, bisect_right(self._starts, start) - 1)
        while start < stop and place < len(self._starts):
            (name, end, step), begin = self._tensors[place], self._starts[place]
            number = (start - begin) // step
            piece = _Piece(begin + number * step, min(end, begin + (number + 1) * step), name, number)
            yield piece
            start = piece.stop
            place += start >= end


class VirtualFolder:
    """The folder that `deltapack apply`, or `merge`, would write, byte for byte, of which nothing is written.

    Only headers are read when it is opened; tensors are made as they are read. What is read of a base is compared with the digests that
    packs know before anything made of it is given out. Reads may come from any number of threads, and from processes that are forked,
    which open it anew. Use it as a context manager. The list that `apply` hides in a folder for itself, `.deltapack.json`, is not in it.

    Attributes:
        notes: What the user should be told.
    """

    def __init__(
        self,
        base: str | Path,
        packs: str | Path | Sequence[str | Path],
        *,
        weights: Numbers | None = None,
        cache: int | str | ChunkCache = DEFAULT_CACHE,
        verify: bool = True,
        workers: int | None = None,
    ) -> None:
        """Compare a base with packs by their headers, and plan the files.

        Args:
            base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
            packs: A pack; or a list of them: packs that follow one another are a chain, packs of one base are added; or a merge recipe
                (`.yaml`, `.yml`).
            weights: Weight of the pack, or one for each of several that are added.
            cache: Bytes of restored tensors that are kept, or text such as `"512MB"`, at least 64 MiB; or what several folders share.
            verify: Whether digests are compared.
            workers: Threads that make what a reader will want next; every core unless given.

        Raises:
            BaseMismatchError: This is not the base of the packs, or they are no chain.
            CheckpointError: The base is damaged, or none.
            FormatError: A pack is damaged, or none.
            MergeConflictError: Packs disagree on what cannot be added.
            RecipeError: An argument is out of range, or a recipe cannot be read.
        """
        threads, kept = resolve_workers(workers), cache if isinstance(cache, ChunkCache) else ChunkCache(cache_of(cache))
        paths, recipe = _asked(packs, weights)
        self._process = os.getpid()
        self._forked: VirtualFolder | None = None
        self._readers, self._idle = 0, threading.Condition()
        asked = (_from_anywhere(base), _from_anywhere(recipe) if recipe else [_from_anywhere(path) for path in paths])
        self._anew = partial(VirtualFolder, *asked, weights=weights, cache=kept.limit, verify=verify, workers=workers)
        with ExitStack() as stack:
            plan = plan_folder(stack, base, paths, weights=weights, recipe=recipe, verify=verify, workers=threads)
            self._cache, self._owner = kept, kept.owner()
            self._chunks = RestoredChunks(plan, kept, self._owner, verify=verify, workers=threads)
            self._stack = stack.pop_all()
        self.notes: Sequence[str] = tuple(plan.notes)
        self._weights = {shard.file: _WeightFile(shard, head) for shard, head in plan.weight_files}
        self._files: Mapping[str, SmallFile] = plan.files
        self._identity, self._window = plan.identity, min(_AHEAD_BYTES, kept.limit // 4)
        self._ahead, self._streams = ReadAhead(threads), Streams()
        sizes = {name: file.size for name, file in self._weights.items()} | {name: file.size for name, file in self._files.items()}
        self._sizes = MappingProxyType(dict(sorted(sizes.items())))

    def names(self) -> Mapping[str, int]:
        """Return the size in bytes of each file by its name, with `/` for those of sub-folders."""
        return self._sizes

    def etag(self, name: str) -> str:
        """Return what changes when the content of a file does: 64 hexadecimal digits, without reading any tensor.

        Raises:
            RecipeError: There is no such file.
        """
        self._check(name)
        if name in self._files:
            return self._files[name].sha256
        return hashlib.sha256(f"{self._identity}\0{name}\0{self._weights[name].sha256}".encode()).hexdigest()

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file, from `offset` on, as many as there are up to `length`; all that follow unless given.

        Raises:
            BaseMismatchError: The base is another one.
            CheckpointError: The base cannot be read.
            FormatError: A pack is damaged.
            RecipeError: There is no such file or range, or the folder was closed.
        """
        if self._process != os.getpid():
            return self._after_fork(name).read(name, offset, length)
        with self._reading():
            return self._read(name, offset, length)

    def _read(self, name: str, offset: int, length: int | None) -> bytes:
        size = self._check(name)
        if offset < 0 or (length is not None and length < 0):
            raise RecipeError("no such range", path=name, expected="numbers from 0 on", found=f"{offset}, {length}")
        stop = size if length is None else min(size, offset + length)
        if offset >= stop:
            return b""
        if name in self._files:
            return bytes(self._content(name, self._files[name])[offset:stop])
        file, parts, planned = self._weights[name], list[memoryview](), self._streams.take(name, offset)
        goal = size if planned is not None else stop
        planned = offset if planned is None else planned
        for piece in file.pieces(offset, stop):
            if piece.stop < goal and piece.stop + self._window // 2 > planned:
                planned = self._look_ahead(file, max(planned, piece.stop), min(goal, piece.stop + self._window))
            data = memoryview(file.head) if not piece.tensor else self._chunks.chunk(piece.tensor, piece.number).view("u1").data
            parts.append(data[max(0, offset - piece.start) : stop - piece.start])
        self._streams.put(name, stop, planned)
        return b"".join(parts)

    def close(self) -> None:
        """Close base and packs, once the reads that are under way have ended; others fail from now on. Closing twice is fine."""
        self._sizes = MappingProxyType({})
        if self._process == os.getpid():  # else others may have held these locks when the process was forked, for good
            with self._idle:
                self._idle.wait_for(lambda: not self._readers)
            self._ahead.close()
            self._cache.forget(self._owner)
        elif self._forked is not None:
            self._forked.close()
        self._stack.close()

    def __enter__(self) -> VirtualFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep files from being closed, whose numbers others may get."""
        with self._idle:
            self._readers += 1
        try:
            yield
        finally:
            with self._idle:
                self._readers -= 1
                self._idle.notify_all()

    def _after_fork(self, name: str) -> VirtualFolder:
        """Return the same folder, opened in this process.

        A thread that was not forked with the others may hold any lock of the one that was opened before.

        Raises:
            RecipeError: It is not the same any more.
        """
        self._check(name)
        with _forking[0]:
            if self._forked is None or self._forked._process != os.getpid():
                opened = self._anew()
                if {file: opened.etag(file) for file in opened.names()} != {file: self.etag(file) for file in self.names()}:
                    opened.close()
                    hint = "Open it in the process that reads it."
                    raise RecipeError("base or packs changed since the folder was opened, before a fork", path=name, hint=hint)
                self._forked = opened
            return self._forked

    def _check(self, name: str) -> int:
        if name not in self._sizes:
            found = ", ".join(self._sizes) or "a folder that was closed"
            raise RecipeError("no such file", path=name, expected="a file of the folder", found=found)
        return self._sizes[name]

    def _content(self, name: str, file: SmallFile) -> memoryview | bytes:
        """Return a file beside the weights; what is large is kept as chunks are."""
        if file.data is not None:
            return file.data
        return self._cache.get((self._owner, f"\0{name}", 0), lambda: np.frombuffer(file.read(), np.uint8)).data

    def _look_ahead(self, file: _WeightFile, start: int, stop: int) -> int:
        """Have made what a reader will ask for next; return up to where."""
        pieces = list(islice(file.pieces(start, stop), _AHEAD_CHUNKS))
        wanted = [piece for piece in pieces if piece.tensor and not self._chunks.knows(piece.tensor, piece.number)]
        self._ahead.ask([partial(self._chunks.chunk, piece.tensor, piece.number) for piece in wanted])
        return pieces[-1].stop if pieces else stop


def _from_anywhere(path: str | Path) -> str | Path:
    """Return a path that means the same from another working directory; names of what is elsewhere do."""
    return path.absolute() if isinstance(path, Path) else os.path.abspath(path) if os.path.lexists(path) else path


def cache_of(size: int | str) -> int:
    """Return the bytes of a cache.

    Raises:
        RecipeError: It is no size, or too small to hold a few chunks.
    """
    limit: int = parse_size(size) if isinstance(size, str) else as_count("cache", size, 'a whole number of bytes, or text such as "512MB"')
    if limit < _LEAST_CACHE:
        raise RecipeError("the cache is too small", expected=f"at least {_LEAST_CACHE} bytes", found=size)
    return limit


def _asked(packs: str | Path | Sequence[str | Path], weights: Numbers | None) -> tuple[list[Path], Path | None]:
    """Return paths of packs, or that of a recipe."""
    if isinstance(packs, (str, PathLike)) or not isinstance(packs, Iterable):
        path = as_pack("the pack", packs)
        if not is_recipe(path):
            return [path], None
        if weights is not None:
            raise RecipeError("a recipe says the weights", path=path, found="weights, too")
        return [], path
    return list(as_paths("packs", packs)), None
