"""A folder that is written file by file, and gone on with where another run was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltapack.checkpoint.files import WriteFile
from deltapack.checkpoint.journal import Journal, identity_of, journaled, whole
from deltapack.checkpoint.layout import Shard
from deltapack.checkpoint.reader import Checkpoint
from deltapack.format.atomic import Claim
from deltapack.sources.locks import tell
from deltapack.sources.remote_path import RemotePath

__all__ = ["NEVER", "GoesOn", "Kept", "state_of"]


@dataclass(frozen=True)
class GoesOn:
    """Whether an output is gone on with.

    Attributes:
        said: Base, packs and options, as values of JSON: another run that says the same writes the same. None where nobody says.
        resume: Whether what another run has finished is taken, and what this one has finished stays when it is stopped.
    """

    said: object = None
    resume: bool = False


NEVER = GoesOn()


def state_of(base: Checkpoint) -> list[list[object]]:
    """Return what tells the weight files of a base from others, without reading them: where they are, sizes, times.

    Not their numbers, nor those of their disk: these may be others after a machine was started again, which is what one goes on after.

    Raises:
        OSError: As the system says.
    """
    rows: list[list[object]] = []
    for path in base.weight_paths():
        place, status = path if isinstance(path, RemotePath) else path.resolve(), path.stat()
        rows.append([str(place), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return rows


class Kept:
    """The finished weight files of a folder that is written.

    Each is synced and listed in the background when its last tensor is there, the last one excepted: nothing is left to do after it.
    Whether or not a run is to be gone on with, since nobody knows that it will be killed.

    Attributes:
        files: Those that were there when the run began, and their digests.
        there: Their tensors.
    """

    def __init__(self, out: Path, shards: Sequence[Shard], heads: Mapping[str, int], identity: str, *, resume: bool) -> None:
        self.files: dict[str, str] = {}
        self.there: frozenset[str] = frozenset()
        self._out, self._shards, self._heads, self._identity, self._resume = out, shards, heads, identity, resume
        self._file_of = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
        self._shard_of, self._roots = {shard.file: shard for shard in shards}, dict[str, str]()
        self._missing = {shard.file: {tensor.name for tensor in shard.tensors} for shard in shards}
        self._journal: Journal | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._listing: list[Future[None]] = []

    @classmethod
    def of(cls, out: Path, shards: Sequence[Shard], heads: Iterable[tuple[str, bytes]], goes_on: GoesOn) -> Kept:
        """Return what keeps the files of a folder; nothing where there is one, or nobody says what is written."""
        if goes_on.said is None or len(shards) < 2:
            return cls(out, shards, {}, "", resume=False)
        rows = list(heads)
        identity = identity_of(goes_on.said, rows)
        return cls(out, shards, {file: len(head) for file, head in rows}, identity, resume=goes_on.resume)

    def take_over(self, claim: Claim, fresh: Path) -> Path:
        """Return the unfinished folder of a run that was stopped and wrote the same, emptied of all but its finished files, or `fresh`.

        Raises:
            OSError: As the system says.
        """
        if not self._resume:
            return fresh
        found = [(folder, *journaled(folder)) for folder in claim.unfinished() if not folder.is_symlink()]  # else files elsewhere would go
        fitting = [(sum(size for size, _ in files.values()), folder, files) for folder, said, files in found if said == self._identity]
        if not fitting:
            if any(files for _, _, files in found):
                tell(f"{self._out} is begun anew: what is left of it is of another base, pack, option or version")
            return fresh
        _, folder, files = max(fitting, key=lambda one: one[:2])
        for shard in self._shards:
            if shard.file in files and whole(folder / shard.file, shard, self._heads[shard.file] + shard.nbytes, files[shard.file]):
                self.files[shard.file] = files[shard.file][1]
            elif shard.file in files:
                tell(f"{shard.file} of the unfinished {self._out} is damaged, and is written again")
        if not self.files:
            return fresh
        self.there = frozenset(name for name, file in self._file_of.items() if file in self.files)
        for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds before it
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # one that holds finished files
                    path.rmdir()
            elif path.is_symlink() or path.relative_to(folder).as_posix() not in self.files:
                path.unlink()
        return folder

    def begin(self, folder: Path) -> None:
        """Begin the list; raises as `take_over`."""
        if self._identity:
            self._journal = Journal(folder, self._identity)
            self._journal.begin(self.files)

    def finished(self, name: str, root: str, opened: Callable[[str], WriteFile]) -> None:
        """Note that a tensor is written, its root digest where it is known, and where files are open; raises as `take_over`."""
        if self._journal is None:
            return
        file, self._roots[name] = self._file_of[name], root
        self._missing[file].discard(name)
        if self._missing[file] or not any(names for other, names in self._missing.items() if other not in self.files):
            return
        for future in self._listing:
            if future.done():
                future.result()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "deltapack-keep")
        self._listing.append(self._pool.submit(_keep, self._journal, self._shard_of[file], opened(file), self._roots))

    def wait(self) -> None:
        """Wait for what is listed; raises as `take_over`."""
        for future in self._listing:
            future.result()

    def end(self) -> None:
        """Drop the list: the folder is complete."""
        self._resume = False
        if self._journal is not None:
            self._journal.remove()

    def stop(self) -> bool:
        """Stop listing; return whether the unfinished folder stays, and say so."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        done = len(self.files) + sum(future.done() and not future.cancelled() and not future.exception() for future in self._listing)
        if not self._resume or not done or self._journal is None:
            return bool(self.files) and self._resume
        tell(f"{done} of {len(self._shards)} weight files of {self._out} are finished and kept: resume goes on from there")
        return True


def _keep(journal: Journal, shard: Shard, opened: WriteFile, roots: Mapping[str, str]) -> None:
    opened.sync()
    journal.add(shard, roots)
