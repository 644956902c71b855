"""Checkpoints written to an object store: each file is made here, sent when all of its tensors are in it, and removed here."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltapack.checkpoint.begun import begin, check_remote_output, end, take_back
from deltapack.checkpoint.manifest import entry_of, manifest_text
from deltapack.checkpoint.places import PlacedWriter
from deltapack.checkpoint.writers import FileWriter, FolderWriter
from deltapack.errors import RecipeError
from deltapack.format.atomic import check_free_space
from deltapack.sources.inputs import check_inputs
from deltapack.sources.local import LocalFile
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.sending import copy_there, drop_begun, send_file, staging

__all__ = ["RemoteFileWriter", "RemoteFolderWriter"]

_IN_FLIGHT = 2
"""Files that are complete and still here: whoever completes another waits."""


class _Staged:
    """What both writers share: the place where files are made."""

    out: Path
    _temporary: Path

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._stack = ExitStack()

    def elsewhere(self) -> PlacedWriter:
        """Refuse what other machines would write.

        Raises:
            RecipeError: Always: they have not the files that are made here.
        """
        hint = "Leave out --engine, or write to a folder that all machines share."
        raise RecipeError("an output in a store is written by one machine", path=self.out, hint=hint)

    def _claim(self) -> None:
        """Claim nothing: stores have no locks, and a file appears there as a whole; of a folder, what has begun says so."""

    def _stage(self) -> None:
        self._temporary = self._stack.enter_context(staging()) / self.out.name


class RemoteFileWriter(_Staged, FileWriter):
    """Writes one `.safetensors` file here, then sends it; made by `open_writer`."""

    out: RemotePath

    def _check_space(self) -> None:
        self._stage()
        check_free_space(self._temporary.parent, sum(shard.nbytes for shard in self._shards), self._temporary)
        drop_begun(self.out.url)

    def _commit(self) -> None:
        check_remote_output(self.out, folder=False, force=self._force)  # hours may have passed: look again
        send_file(self._temporary, self.out.url)

    def _discard(self) -> None:
        self._close()
        self._stack.close()


class RemoteFolderWriter(_Staged, FolderWriter):
    """Writes a Hugging Face folder file by file; made by `open_writer`.

    No more of it is on the disk than the files that have some, not all of their tensors, and `_IN_FLIGHT` that are being sent.
    """

    out: RemotePath

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._left = {shard.file: sum(tensor.numel for tensor in shard.tensors) for shard in self._shards}
        self._file_of = {tensor.name: shard.file for shard in self._shards for tensor in shard.tensors}
        self._list: dict[str, dict[str, object]] = {}
        self._beginning, self._all_names = threading.Lock(), frozenset[str]()
        self._slots, self._stopped = threading.Semaphore(_IN_FLIGHT), threading.Event()
        self._finished = False
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, "deltapack-send")
        self._sending: list[Future[None]] = []

    def write(self, name: str, start: int, array: npt.NDArray[np.generic]) -> None:
        """Write elements as `PlacedWriter` does, and send the file if they are the last of it.

        Raises:
            SourceError: The store refuses this file or an earlier one, or does not answer.
        """
        super().write(name, start, array)
        self._written(name, array.size)

    def copy(self, name: str, start: int, count: int, source: LocalFile, at: int) -> None:
        """Copy elements as `PlacedWriter` does; raises also as `write`."""
        super().copy(name, start, count, source, at)
        self._written(name, count)

    def _written(self, name: str, count: int) -> None:
        file = self._file_of[name]
        with self._lock:
            self._left[file] -= count
            is_last = count > 0 and self._left[file] == 0
        if is_last:
            self._send(file)

    def _send(self, file: str) -> None:
        """Send a complete file in the background; waits while others are on their way."""
        self._slots.acquire()
        try:
            for future in self._sending:
                if future.done():
                    future.result()
            self._sending.append(self._pool.submit(self._send_now, file))
        except BaseException:
            self._slots.release()
            raise

    def _send_now(self, file: str) -> None:
        try:
            path, said = self._temporary / file, entry_of(self._temporary / file)
            self._note(file, said)
            send_file(path, self.out.joinpath(*file.split("/")).url, self._stopped)
            self._close_file(path)
            path.unlink()
        finally:
            self._slots.release()

    def copy_file(self, file: str, source: RemotePath) -> None:
        """Let the store copy a weight file that is there, with its head and all of its tensors.

        Raises:
            CheckpointError: It cannot be read.
            OutputError: What is there now is not ours to replace.
            SourceError: The store refuses, or does not answer.
        """
        self._note(file, entry_of(source))
        copy_there(source.url, self.out.joinpath(*file.split("/")).url)
        self._close_file(self._temporary / file)
        (self._temporary / file).unlink()
        for shard in self._shards:
            for tensor in shard.tensors if shard.file == file else ():
                self.cover(tensor.name, 0, tensor.numel)

    def _note(self, file: str, said: dict[str, object]) -> None:
        """Note what the list says of a file, before it is sent; the first takes the place of what is there."""
        with self._beginning:
            if not self._list:  # what is there stays until there is something to take its place
                check_remote_output(self.out, folder=True, force=self._force)  # hours may have passed: look again
                begin(self.out, self._all_names)
            self._list[file] = said

    def _close_file(self, path: Path) -> None:
        with self._lock:
            done = [file for file in self._files if file.path == path]
            self._files = [file for file in self._files if file.path != path]
        for file in done:
            file.close()

    def _check_space(self) -> None:
        self._stage()
        largest = sorted((shard.nbytes for shard in self._shards), reverse=True)[: _IN_FLIGHT + 1]
        check_free_space(self._temporary.parent, sum(largest) + self._extra_bytes, self._temporary)

    def _create(self) -> None:
        self._make_files()
        self._all_names = frozenset(self._names())

    def _names(self) -> list[str]:
        return [path.relative_to(self._temporary).as_posix() for path in self._temporary.rglob("*") if path.is_file()]

    def _seal(self) -> None:
        """Send what is still here: files without elements, indices, side files."""
        for future in self._sending:
            future.result()
        for name in sorted(self._names()):
            self._send(name)
        for future in self._sending:
            future.result()

    def _commit(self) -> None:
        check_inputs()
        end(self.out, manifest_text(self._list, "checkpoint"))
        self._finished = True

    def _discard(self) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._close()
        self._stack.close()
        if self._list and not self._finished:
            take_back(self.out, self._list)
