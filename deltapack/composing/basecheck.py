"""Is this the base of these packs? Headers tell, before anything is allocated (rules R11 and R12 of spec/04-reader-rules.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.errors import BaseMismatchError, ChecksumError, FormatError
from deltapack.format.digest import CHUNK, chunk_digest, fingerprint, root_digest
from deltapack.format.reader import PackReader

__all__ = ["BaseTensors", "base_at_fault", "check_base", "check_fingerprint", "look_for_another_base", "wrong_base", "wrong_result"]

_LOOKED_AT = 1 << 28
"""Bytes of a base that are compared, where something else does not fit, to tell whether it is another base altogether."""
_MERGED = "Packs can be merged only if they were compressed against the same base."
_CHAIN = (
    "They are a chain, each made from what the one before gives: `deltapack apply` takes them so, a live model one after the other "
    "(`live.step`), and `deltapack squash` makes one pack of them."
)


class BaseTensors(Protocol):
    """The headers of a base: a checkpoint, or a model in memory."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """From name to tensor; of tied tensors only the first."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """From the second name of a tied tensor to the name in `tensors`."""


def check_base(base: BaseTensors, packs: Sequence[PackReader]) -> dict[str, str]:
    """Compare the headers of a base with what packs say of it, and what they say with each other.

    Returns:
        The root digests that packs state of base tensors, by name. A tensor of which no pack states one is not among them.

    Raises:
        BaseMismatchError: The base lacks a tensor, or has one of another shape or dtype, or the packs have different bases.
        FormatError: The chunk digests of a pack are damaged.
    """
    first = packs[0]
    for pack in packs:
        index, path = pack.index, pack.path
        if index.base_fingerprint != first.index.base_fingerprint:
            hint = _CHAIN if _follow(packs) else _MERGED
            raise BaseMismatchError(
                "the packs have different bases",
                path=path,
                expected=f"{first.index.base_fingerprint} ({first.path})",
                found=index.base_fingerprint,
                hint=hint,
            )
    for pack in packs:
        index, pieces = pack.index, pack.index.pieces
        used: dict[str, str] = {}
        for entry in index.entries:
            wanted = entry.base
            if wanted is None:
                continue
            name = base.aliases.get(wanted.name, wanted.name)
            found = base.tensors.get(name)
            if used.setdefault(name, wanted.name) != wanted.name:  # the differences of both would be added to the one
                raise BaseMismatchError(
                    "the base ties tensors that were two when the pack was made",
                    path=base.path,
                    tensor=wanted.name,
                    expected="a tensor of its own",
                    found=f"a second name of what is also {used[name]!r}",
                    rule="R11",
                )
            if found is None and wanted.name in pieces:
                continue  # a model in memory may hold what is made of it instead
            if found is None or (found.shape, found.dtype, found.arranged) != (wanted.shape, wanted.dtype, wanted.arranged):
                raise BaseMismatchError(
                    "this is not the base that the pack was made from",
                    path=base.path,
                    tensor=wanted.name,
                    expected=f"{wanted.dtype} {list(wanted.shape)}",
                    found="no such tensor" if found is None else f"{found.dtype} {list(found.shape)}",
                    rule="R11",
                    hint="`deltapack inspect` tells which base a pack needs.",
                )
    digests = _agreed_digests(base, packs)
    for pack in packs:  # after R11: a wrong base is said to be one before any blob is read
        for entry in pack.index.entries:
            pack.chunk_digests(entry)
    return digests


def check_fingerprint(pack: PackReader) -> None:
    """Compare the fingerprint that a pack states of its base with the digests of that base's tensors, where it states all of them.

    How a base is split into files, or which format these have, does not count, nor do tensors that it got since: the pack states them not.

    Raises:
        FormatError: They are those of two checkpoints (rule R12).
    """
    index = pack.index
    stated = {entry.base.name: entry.base for entry in index.entries if entry.base is not None and entry.base.arranged is None}
    found = fingerprint((base.name, base.dtype.name, base.shape, base.digest) for base in stated.values())
    if stated and len(stated) == index.base_tensors and found != index.base_fingerprint:
        raise FormatError(
            "the pack names one base and holds the digests of another",
            path=pack.path,
            expected=f"fingerprint {found}, of the {len(stated):,} tensors whose digests it states",
            found=f"{index.base_fingerprint}",
            rule="R12",
            hint="The pack was made by a faulty writer or altered; do not use it.",
        )


def _follow(packs: Sequence[PackReader]) -> bool:
    """Whether one of the packs was made from what another one restores."""
    restored = {pack.index.result_fingerprint for pack in packs}
    return any(pack.index.base_fingerprint in restored and pack.index.base_fingerprint != pack.index.result_fingerprint for pack in packs)


def _agreed_digests(base: BaseTensors, packs: Sequence[PackReader]) -> dict[str, str]:
    """Return the digest that packs state of each base tensor, also of one that they remove or replace.

    Raises:
        BaseMismatchError: Packs state different ones, so that no base is that of all.
    """
    digests: dict[str, str] = {}
    for pack in packs:
        for said in (entry.base for entry in pack.index.entries if entry.base is not None):
            name = base.aliases.get(said.name, said.name)
            known = digests.setdefault(name, said.digest)
            if known != said.digest:
                raise wrong_base(pack.path, name, known, f"digest {said.digest}", _MERGED)
    return digests


def wrong_base(path: Path, tensor: str, expected: str, found: str, hint: str = "", *, pack: Path | None = None) -> BaseMismatchError:
    """Return the error for a base tensor whose root digest is not the one that a pack, at a path if that is known, knows (rule R12)."""
    usual = (
        "Use the very base checkpoint (same revision, same dtype) that the fine-tune was compressed against; "
        f"where {pack or 'the pack'} follows another pack (`deltapack log`), give that one, too."
    )
    return BaseMismatchError(
        "the base tensor has other content than the one the pack was made from",
        path=path,
        tensor=tensor,
        expected=f"digest {expected}",
        found=found,
        rule="R12",
        hint=hint or usual,
    )


def base_at_fault(base: Checkpoint, tensor: TensorInfo, digest: str, pack: Path | None = None) -> BaseMismatchError | None:
    """Return the error for a base tensor where what starts from it cannot be decoded, if it is another than the one of packing.

    What is coded exactly is decoded after the elements of the base: with others it may look like a damaged pack.

    Args:
        base: The base.
        tensor: Its tensor, which is read whole.
        digest: The root digest that the pack knows; empty where nobody says.
        pack: Where the pack is, for the message.
    """
    spans = ((start, min(start + CHUNK, tensor.numel)) for start in range(0, tensor.numel, CHUNK))
    found = root_digest(tensor.dtype.name, tensor.shape, (chunk_digest(base.read(tensor.name, *span)) for span in spans))
    return wrong_base(base.path, tensor.name, digest, found, pack=pack) if digest and found != digest else None


def look_for_another_base(base: Checkpoint, pack: PackReader) -> None:
    """Compare some tensors of a base with what a pack says of them, the smallest first: of the wrong base nothing else is worth telling.

    Raises:
        BaseMismatchError: One has another digest.
    """
    left = _LOOKED_AT
    said = [entry.base for entry in pack.index.entries if entry.base is not None and entry.base.arranged is None]
    for wanted in sorted(said, key=lambda ref: (math.prod(ref.shape) * ref.dtype.itemsize, ref.name)):
        held = base.tensors.get(base.aliases.get(wanted.name, wanted.name))
        if held is None:
            continue
        left -= held.nbytes
        if left < 0:
            return
        error = base_at_fault(base, held, wanted.digest, pack.path)
        if error is not None:
            raise error


def wrong_result(path: Path | None, tensor: str, expected: str, found: str, hint: str = "") -> ChecksumError:
    """Return the error for a restored tensor whose root digest is not the one that its pack promises (rule R12)."""
    return ChecksumError(
        "the restored tensor is not what the pack promises",
        path=path,
        tensor=tensor,
        expected=f"digest {expected}",
        found=found,
        rule="R12",
        hint=hint or "The pack was made by a faulty writer or altered; do not use it.",
    )
