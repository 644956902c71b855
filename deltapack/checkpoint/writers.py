"""What writes the files of a checkpoint: headers first, then elements in any order from any thread, all or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from deltapack.checkpoint.coverage import Coverage
from deltapack.checkpoint.files import WriteFile
from deltapack.checkpoint.going_on import NEVER, GoesOn, Kept
from deltapack.checkpoint.heads import Head, new_head
from deltapack.checkpoint.layout import NewTensor, Shard
from deltapack.checkpoint.manifest import MANIFEST, manifest_of, same_bytes
from deltapack.checkpoint.metadata import Strings
from deltapack.checkpoint.places import PlacedWriter
from deltapack.checkpoint.replace import check_output, check_unlisted, swap_in
from deltapack.errors import OutputError
from deltapack.format.atomic import check_free_space, claimed, fsync_folder, raise_error, temporary_sibling, writing
from deltapack.format.paths import check_side_name
from deltapack.format.placing import place, seen_at
from deltapack.sources.remote_path import RemotePath

__all__ = ["FileWriter", "FolderWriter"]


class _Writer(PlacedWriter, ABC):
    """What both writers share; entering creates the headers, leaving without an exception commits.

    Attributes:
        out: The final name.
    """

    def __init__(
        self,
        out: Path,
        shards: Sequence[Shard],
        indices: Sequence[Head],
        aliases: Mapping[str, str],
        metadata: Strings,
        force: bool,
        extra_bytes: int,
        goes_on: GoesOn = NEVER,
    ) -> None:
        super().__init__(out, {})
        self._goes_on = goes_on
        self._shards = shards
        self._indices = indices
        self._aliases = aliases
        self._metadata = metadata
        self._force = force
        self._extra_bytes = extra_bytes
        self._before, self._temporary = seen_at(out), temporary_sibling(out)
        self._held = contextlib.ExitStack()
        self._files: list[WriteFile] = []
        self._covered: dict[str, Coverage] = {}
        self._heads: dict[str, int] = {}
        self._lock = threading.Lock()
        self._open = False

    def _cover(self, name: str, start: int, stop: int) -> None:
        with self._lock:
            if not self._covered[name].add(start, stop):
                raise OutputError("elements were written twice", path=self.out, tensor=name, found=f"[{start}, {stop})")

    def cover(self, name: str, start: int, stop: int) -> None:
        """Note elements that what `elsewhere` returned has written.

        Raises:
            OutputError: They are not part of the tensor, or were written before.
        """
        self._place(name, start, stop - start, "bytes", self._places[name][0].dtype.itemsize)
        self._cover(name, start, stop)

    def elsewhere(self) -> PlacedWriter:
        """Return what writes to the same files, in another process too; `cover` tells this one what was written."""
        return PlacedWriter(self.out, self._places)

    def write_side_file(self, name: str, data: bytes) -> None:
        """Write a file beside the weights; a single-file output has none and ignores it."""

    @property
    def there(self) -> frozenset[str]:
        """The tensors that a run that was stopped has left in finished files, and that are not to be written."""
        return frozenset()

    def finished(self, name: str, root: str) -> None:
        """Note that all of a tensor is written, and checked, with its root digest where that is known."""

    def __enter__(self) -> _Writer:
        try:
            self._claim()
            self._check_space()
            with writing(self.out):
                self._create()
        except BaseException:
            self._end()
            raise
        self._open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open = False
        self._places, places = {}, self._places
        try:
            if kind is None:
                self._check_complete(places)
                with writing(self.out):
                    self._seal()
                    for file in self._files:
                        file.sync()
                    self._close()
                    self._commit()
        finally:
            self._end()

    def _end(self) -> None:
        with self._held:  # let go last
            self._discard()

    def _claim(self) -> None:
        """See to it that no other run writes the same output."""
        self._held.enter_context(claimed(self.out))

    def _check_space(self) -> None:
        missing = sum(shard.nbytes for shard in self._shards if not self.there.issuperset(tensor.name for tensor in shard.tensors))
        check_free_space(self.out.parent, missing + self._extra_bytes, self.out)

    def _check_complete(self, places: Mapping[str, tuple[NewTensor, WriteFile, int]]) -> None:
        for name, (tensor, _, _) in places.items():
            if self._covered[name].count != tensor.numel:
                found = f"{self._covered[name].count} elements"
                raise OutputError("not completely written", path=self.out, tensor=name, expected=tensor.numel, found=found)

    def _create_shard(self, path: Path, shard: Shard) -> None:
        header = new_head(shard, self._aliases, self._metadata)
        file = WriteFile(path, len(header) + shard.nbytes)
        self._files.append(file)
        file.write(0, memoryview(header))
        position = self._heads[shard.file] = len(header)
        for tensor in shard.tensors:
            self._places[tensor.name] = (tensor, file, position)
            self._covered[tensor.name] = Coverage()
            position += tensor.nbytes

    def _close(self) -> None:
        for file in self._files:
            file.close()

    def _seal(self) -> None:
        """Write what comes last; a single file has nothing of the kind."""

    @abstractmethod
    def _create(self) -> None:
        """Make the files that are written to."""

    @abstractmethod
    def _commit(self) -> None:
        """Give what is complete its name."""

    @abstractmethod
    def _discard(self) -> None:
        """Let go of everything, and remove what is not complete."""


class FolderWriter(_Writer):
    """Writes a Hugging Face folder under a hidden name beside `out`, then renames it; made by `open_writer`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        heads = ((shard.file, new_head(shard, self._aliases, self._metadata)) for shard in self._shards)
        self._progress = Kept.of(self.out, self._shards, heads, self._goes_on)

    @property
    def there(self) -> frozenset[str]:
        """The tensors of files that are finished already."""
        return self._progress.there

    def finished(self, name: str, root: str) -> None:
        """Note that all of a tensor is written and checked: a file that has all of its tensors is kept for a run that goes on.

        Raises:
            OutputError: The system refuses to keep an earlier one.
        """
        with writing(self.out):
            self._progress.finished(name, root, self._opened)

    def _opened(self, name: str) -> WriteFile:
        return next(file for file in self._files if file.path == self._temporary / name)

    def _claim(self) -> None:
        claim = self._held.enter_context(claimed(self.out, sweep=False))
        with writing(self.out):
            self._temporary = self._progress.take_over(claim, self._temporary)
            claim.sweep(keep=self._temporary)

    def write_side_file(self, name: str, data: bytes) -> None:
        """Write a file beside the weights.

        Raises:
            FormatError: The name is not safe.
            OutputError: Two files have one name, or the system refuses to write.
        """
        check_side_name(name)
        if not self._open:
            raise OutputError("the output is closed", path=self.out)
        self._write_small(name, data)

    def copy_file(self, file: str, source: RemotePath) -> None:
        """Let the store copy a weight file; only a folder in one can.

        Raises:
            OutputError: This one is not in a store.
        """
        raise OutputError("no store copies files to a folder of this machine", path=self.out, found=str(source))

    def _write_small(self, name: str, data: bytes) -> None:
        path = self._temporary / name
        with writing(self.out / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = WriteFile(path, len(data))
            self._files.append(file)
            file.write(0, memoryview(data))

    def _create(self) -> None:
        self._make_files()
        check_unlisted(self.out, self._temporary, self._heads)  # before the work, as far as one can know

    def _make_files(self) -> None:
        self._temporary.mkdir(exist_ok=bool(self._progress.files))
        for shard in self._shards:
            path = self._temporary / shard.file
            if shard.file in self._progress.files:
                self._heads[shard.file] = path.stat().st_size - shard.nbytes
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            self._create_shard(path, shard)
        for head in self._indices:
            self._write_small(head.name, head.data)
        self._progress.begin(self._temporary)

    def _seal(self) -> None:
        self._progress.wait()
        self._write_small(MANIFEST, manifest_of(self._temporary, "checkpoint"))

    def _commit(self) -> None:
        check_output(self.out, folder=True, force=self._force, unlisted=True)  # hours may have passed: look again
        check_unlisted(self.out, self._temporary)
        for where, _, _ in os.walk(self._temporary, topdown=False, onerror=raise_error):
            fsync_folder(Path(where))
        self._progress.end()
        fsync_folder(self._temporary)  # else the list of what is finished could come back under the final name
        swap_in(self._temporary, self.out, self._before)

    def _discard(self) -> None:
        stays = self._progress.stop()
        self._close()
        if not stays:
            shutil.rmtree(self._temporary, ignore_errors=True)


class FileWriter(_Writer):
    """Writes one `.safetensors` file under a hidden name beside `out`, then renames it; made by `open_writer`."""

    def _create(self) -> None:
        self._create_shard(self._temporary, self._shards[0])

    def _commit(self) -> None:
        if not (self._shards[0].head and self._force and same_bytes(self.out, self._temporary)):  # else nothing is lost
            check_output(self.out, folder=False, force=self._force)
        place(self._temporary, self.out, self._before)
        fsync_folder(self.out.parent)

    def _discard(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)
