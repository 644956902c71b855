"""A tensor that packs change one after the other, as a source of elements.

What each pack does to a chunk is taken in a loop over one buffer, so that neither memory nor the depth of calls grows with the number of
packs, and each chunk of the base is read once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.composing.basecheck import base_at_fault, wrong_base
from deltapack.composing.chunks import make_chunk
from deltapack.composing.tensor_job import TensorJob
from deltapack.errors import BaseMismatchError, FormatError
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.format.index import Entry
from deltapack.format.reader import PackReader
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.sources.local import LocalFile

__all__ = ["Kept", "Said", "SteppedSource"]

_KEPT = 2
"""Chunks that a thread keeps for those who read a few elements at a time."""


class Kept(threading.local):
    """What a thread keeps: buffers of terms, and the chunks that it made last."""

    def __init__(self) -> None:
        self.buffers = Buffers()
        self.chunks: OrderedDict[tuple[str, int], Elements] = OrderedDict()


@dataclass(frozen=True)
class Said:
    """What the first pack that changes a tensor says of the base."""

    pack: PackReader
    entry: Entry

    @cached_property
    def digests(self) -> list[bytes]:
        """Chunk digests of the base tensor; none where the pack says the root alone."""
        return self.pack.chunk_digests(self.entry)[0]

    def check(self, base: Checkpoint, held: TensorInfo, chunk: int, elements: Elements) -> None:
        """Compare a chunk of the base, if there is something to compare it with.

        Raises:
            BaseMismatchError: It is another one.
        """
        if not self.digests and held.numel > CHUNK:
            return
        expected, found = self.root, chunk_digest(elements)
        if self.digests:
            expected, seen = self.digests[chunk].hex(), found.hex()
        else:
            seen = root_digest(held.dtype.name, held.shape, [found])
        if expected != seen:
            raise wrong_base(base.path, held.name, expected, f"digest {seen}, chunk {chunk}", pack=self.pack.path)

    @property
    def root(self) -> str:
        """Root digest of the base tensor."""
        return self.entry.base.digest if self.entry.base is not None else ""


@dataclass(frozen=True)
class SteppedSource:
    """A tensor as a source of elements.

    Attributes:
        info: The tensor.
        kept: What threads keep.
        verify: Whether chunks of the base are compared with their digests.
        base: The checkpoint that holds the tensor it begins with; none where a pack does.
        held: That tensor.
        said: What is known of it.
        steps: What packs do to it, in order.
    """

    info: TensorInfo
    kept: Kept
    verify: bool
    base: Checkpoint | None = None
    held: TensorInfo | None = None
    said: Said | None = None
    steps: tuple[TensorJob, ...] = field(default=(), repr=False)

    def file_range(self, start: int) -> tuple[LocalFile, int] | None:
        """Return where the elements lie in the files of the base, if they do."""
        return None if self.steps or self.base is None or self.held is None else self.base.file_range(self.held.name, start)

    def read_into(self, start: int, out: Elements) -> None:
        """Fill `out` with the elements from `start`."""
        out = out.view(self.info.dtype.storage)
        if not self.steps and self.base is not None and self.held is not None:
            self.base.read_into(self.held.name, start, out)
            return
        done = 0
        while done < len(out):
            chunk, inside = divmod(start + done, CHUNK)
            length = min(CHUNK, self.info.numel - chunk * CHUNK)
            part = out[done : done + min(length - inside, len(out) - done)]
            if len(part) == length:
                self._fill(chunk, part)
            else:
                part[:] = self._chunk(chunk, length)[inside : inside + len(part)]
            done += len(part)

    def _chunk(self, chunk: int, length: int) -> Elements:
        """Return a chunk, which the thread keeps for the next call."""
        chunks, key = self.kept.chunks, (self.info.name, chunk)
        found = chunks.pop(key, None)
        if found is None:
            found = np.empty(length, self.info.dtype.storage)
            self._fill(chunk, found)
        chunks[key] = found
        while len(chunks) > _KEPT:
            chunks.popitem(last=False)
        return found

    def _fill(self, chunk: int, out: Elements) -> None:
        """Fill `out` with a whole chunk; it serves as the buffer of each step where types and lengths are the same."""
        elements, buffers = self._of_base(chunk, out), self.kept.buffers
        for step in self.steps:
            if not elements.flags.writeable:
                elements = elements.copy()
            try:
                elements = make_chunk(step, chunk, elements, buffers)
            except FormatError as error:
                raise self._base_at_fault() or error from error
        if not np.may_share_memory(elements, out):
            out[:] = elements

    def _base_at_fault(self) -> BaseMismatchError | None:
        """Return the error for a base that is another one, if it is."""
        if self.base is None or self.held is None or self.said is None:
            return None
        return base_at_fault(self.base, self.held, self.said.root, self.said.pack.path)

    def _of_base(self, chunk: int, out: Elements) -> Elements:
        """Return the elements of the base's chunk, checked, in `out` if they fit there."""
        held = self.held
        if self.base is None or held is None or chunk * CHUNK >= held.numel:
            return out[:0]
        count = min(CHUNK, held.numel - chunk * CHUNK)
        fits = held.dtype.storage == self.info.dtype.storage and count == len(out)
        elements = out if fits else np.empty(count, held.dtype.storage)
        self.base.read_into(held.name, chunk * CHUNK, elements)
        if self.verify and self.said is not None:
            self.said.check(self.base, held, chunk, elements)
        return elements
