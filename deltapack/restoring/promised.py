"""Is what was restored what the index promises? Asked once all is there, before an output gets its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from deltapack.composing.tensor_job import TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import DType
from deltapack.errors import ChecksumError
from deltapack.format.digest import fingerprint
from deltapack.format.forms import is_descriptive

__all__ = ["Promise"]

_HINT = "This is a fault of deltapack, or of the pack: nothing was written. Please report it with the pack."


@dataclass(frozen=True)
class Promise:
    """What a pack says of its result.

    Attributes:
        pack: The pack and how it is applied.
        dtype: Type that float tensors are cast to, if one is asked for.
        verify: Whether digests were compared, so that the fingerprint is known.
    """

    pack: WeightedPack
    dtype: DType | None = None
    verify: bool = True

    def check_tensors(self, jobs: Sequence[TensorJob], aliases: Mapping[str, str]) -> None:
        """Compare names, types, shapes and, of a plain result, the fingerprint; and second names.

        Raises:
            ChecksumError: They are not those of the index.
        """
        index = self.pack.reader.index
        entries = [entry for entry in index.entries if entry.in_result]
        dtypes = {entry.name: self.dtype if self.dtype is not None and entry.dtype.is_delta else entry.dtype for entry in entries}
        expected = {entry.name: (dtypes[entry.name].name, tuple(entry.shape)) for entry in entries}
        found = {job.name: (job.dtype.name, tuple(job.shape)) for job in jobs}
        self._same("the restored tensors are not those of the index", expected, found)
        ties = {entry.name: entry.of for entry in index.entries if entry.kind == "alias"}
        self._same("the second names of tensors are not those of the index", ties, dict(aliases))
        if self.verify and self.pack.is_plain and self.dtype is None:
            root = fingerprint((job.name, job.dtype.name, job.shape, job.digest) for job in jobs)
            if root != index.result_fingerprint:
                what = "the result has another fingerprint than the index promises"
                raise ChecksumError(what, path=self.pack.reader.path, expected=index.result_fingerprint, found=root, rule="R12", hint=_HINT)

    def check_files(self, written: Collection[str]) -> None:
        """Compare names of side files; a text for people may be missing with the base's, and a pack of a bare file says nothing of them.

        Raises:
            ChecksumError: They are not those of the index.
        """
        files = self.pack.reader.index.files
        if files is not None:
            left = {file.name for file in files if file.blob is None and is_descriptive(file.name)} - set(written)
            names = {file.name for file in files} - left
            self._same("the restored side files are not those of the index", dict.fromkeys(names), dict.fromkeys(written))

    def _same(self, what: str, expected: Mapping[str, object], found: Mapping[str, object]) -> None:
        if expected == found:
            return
        name = min(name for name in expected.keys() | found.keys() if expected.get(name, self) != found.get(name, self))
        said, got = (repr(side[name]) if name in side else "nothing" for side in (expected, found))
        raise ChecksumError(
            f"{what}: {name!r}", path=self.pack.reader.path, expected=f"{len(expected)}, there {said}", found=f"{len(found)}, there {got}",
            rule="R12", hint=_HINT,
        )  # fmt: skip
