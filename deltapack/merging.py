"""Use case: base + several packs -> checkpoint, or one merged pack."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from deltapack._version import __version__
from deltapack.applying import WriteOptions, write_checkpoint
from deltapack.assets import copy_side_files, file_entry
from deltapack.buffers import Buffers
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.codecs.chunk import encode_stored_chunk, stored_layout
from deltapack.composing import Composition, WeightedPack, compose
from deltapack.entries import digests_blob
from deltapack.errors import LimitError, RecipeError
from deltapack.format.digest import fingerprint
from deltapack.format.index import BaseRef, Entry, FileEntry, Index
from deltapack.format.reader import PackReader
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.jobs import PackTerm, TensorJob
from deltapack.limits import DEFAULT_LIMITS
from deltapack.merge_methods import METHODS
from deltapack.reports import MergeReport, Progress
from deltapack.restoring import Nowhere, RestoredTensor, restore_chunk, restore_tensors

__all__ = ["merge"]

LARGEST_SUM_OF_WEIGHTS = 1.2
"""Above this sum merges are known to degrade (advice of mergekit's maintainers: 0 to 1.2)."""


def merge(
    base: str | Path,
    packs: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    method: str = "linear",
    prefer: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    verify: bool = True,
    force: bool = False,
    workers: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> MergeReport:
    """Merge packs onto their common base, reading the base once.

    `linear` is task arithmetic: base + sum of weight * delta, summed in f32 in the order given and rounded once. Where `out` ends in
    `.dpk` the result is a merged pack: applying it gives the same bits as merging into a folder.

    Args:
        base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
        packs: The packs, all made from this base.
        out: Folder, `.safetensors` file or `.dpk` pack to write.
        weights: One weight per pack, or one for all; 1 unless given.
        method: Name of a merge method; see `deltapack.merge_methods`.
        prefer: The pack (one of `packs`) that decides on tensors that cannot be added, and on side files.
        dtype: Type of all float tensors of the result; their own unless given. Not for a merged pack.
        max_shard_size: Bytes of a shard, or text such as `"5GB"`. Not for a merged pack.
        verify: Whether digests of the base are compared.
        force: Whether to replace an existing `out`.
        workers: Threads; every core unless given.
        device: Where packs are decoded and added, such as `"cuda"`; the CPU unless given. Not for a merged pack.
        backend: `auto`, `cpu`, `torch` or `triton`. Not for a merged pack.
        progress: Called with bytes of the result done so far and in all.

    Raises:
        BackendError: The device or backend cannot be used here.
        BaseMismatchError: A pack was made from another base.
        FormatError: A pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range.
    """
    out, options = Path(out), WriteOptions.of(dtype, max_shard_size, verify, force, workers, progress, device, backend)
    if method not in METHODS:
        raise RecipeError("merge method is unknown", expected="one of " + ", ".join(METHODS), found=method)
    if not packs:
        raise RecipeError("nothing to merge", expected="at least one pack")
    chosen = _weights(weights, len(packs))
    preferred = _position(prefer, packs)
    as_pack = out.suffix == ".dpk"
    if as_pack and (dtype is not None or max_shard_size is not None):
        raise RecipeError("dtype and max_shard_size are for checkpoints, not for a merged pack", path=out)
    if as_pack and (device is not None or backend != "auto"):
        raise RecipeError("device and backend are for checkpoints: a merged pack copies what the packs hold", path=out)
    with ExitStack() as stack:
        base_ckpt = stack.enter_context(open_checkpoint(base))
        readers = [stack.enter_context(PackReader(path)) for path in packs]
        weighted = [WeightedPack(reader, weight) for reader, weight in zip(readers, chosen, strict=True)]
        composition = compose(base_ckpt, weighted, prefer=preferred, dtype=options.dtype)
        notes, inputs = [*base_ckpt.notes, *composition.notes], [reader.path for reader in readers]
        if as_pack:
            with open_pack_writer(out, force=force, inputs=inputs) as writer:
                writer.finish(_MergedPack(base_ckpt, weighted, composition, writer, method, options).index())
        else:
            notes += write_checkpoint(base_ckpt, composition, METHODS[method], out, inputs, options)
        nbytes = sum(job.numel * job.dtype.itemsize for job in composition.jobs)
        rows = [(str(path), weight) for path, weight in zip(packs, chosen, strict=True)]
        return MergeReport(out, len(composition.jobs), nbytes, rows, _warnings(readers, chosen), notes)


@dataclass(frozen=True)
class _MergedPack:
    """Writes the terms of all packs, weighted, into one pack; only digests need the base."""

    base: Checkpoint
    packs: Sequence[WeightedPack]
    composition: Composition
    writer: PackWriter
    method: str
    options: WriteOptions

    def index(self) -> Index:
        """Write all blobs and return the index."""
        restored = restore_tensors(
            self.base,
            self.composition.jobs,
            METHODS[self.method],
            Nowhere(),
            verify=self.options.verify,
            digests=True,
            workers=self.options.workers,
            progress=self.options.progress,
        )
        with closing(restored):
            entries = [self._entry(tensor) for tensor in restored]
        entries += [Entry(name, "alias", of=of) for name, of in self.composition.aliases.items()]
        used = {entry.base.name for entry in entries if entry.base is not None} | {entry.name for entry in entries}
        for entry in self.packs[0].reader.index.entries:
            if entry.kind == "removed" and entry.base is not None and entry.base.name not in used:
                entries.append(entry)
        entries.sort(key=lambda entry: entry.name.encode())
        first = self.packs[0].reader.index
        result = [(entry.name, entry.dtype.name, entry.shape, entry.digest) for entry in entries if entry.in_result]
        recipe = [{"id": pack.reader.pack_id, "weight": repr(pack.weight)} for pack in self.packs]
        return Index(
            base_fingerprint=first.base_fingerprint,
            base_tensors=first.base_tensors,
            result_fingerprint=fingerprint(result),
            result_tensors=len(result),
            result_bytes=sum(entry.nbytes for entry in entries),
            recipe={"method": self.method, "packs": recipe},
            entries=tuple(entries),
            files=self._files(),
            created_by=f"deltapack {__version__}",
        )

    def _entry(self, restored: RestoredTensor) -> Entry:
        job, base = restored.job, restored.job.base
        entry = Entry(job.name, "stored", job.dtype, job.shape, restored.root)
        if base is not None:
            entry = replace(entry, base=BaseRef(base.name, base.dtype, base.shape, restored.base_root))
            same = base.shape == job.shape
            if same and base.dtype == job.dtype and not job.terms:
                return replace(entry, kind="unchanged")
            terms = [term for term in job.terms if isinstance(term, PackTerm)]
            if len(terms) == len(job.terms):
                kind = "delta" if same else "grown" if job.numel > base.numel else "shrunk"
                return self._with_terms(replace(entry, kind=kind), job, terms, restored)
        if job.whole is not None and job.rows is not None:
            entry = replace(entry, base=job.whole.base, stored=self.writer.copy_blob(job.rows.reader, job.rows.ref))
            return digests_blob(self.writer, entry, job.rows.reader.chunk_digests(job.whole)[0], list(restored.digests))
        # A tensor that some pack stores whole and that others change: its sum is stored whole.
        layout = stored_layout(job.numel)
        chunked, buffers = self.writer.chunked_blob(layout), Buffers()
        for chunk in range(layout.chunks):
            elements, _ = restore_chunk(self.base, job, chunk, METHODS[self.method], buffers)
            if elements is not None:
                chunked.append(encode_stored_chunk(elements))
        entry = replace(entry, stored=chunked.close())
        return digests_blob(self.writer, entry, list(restored.base_digests), list(restored.digests))

    def _with_terms(self, entry: Entry, job: TensorJob, terms: Sequence[PackTerm], restored: RestoredTensor) -> Entry:
        if len(terms) > DEFAULT_LIMITS.terms:
            raise LimitError(
                "too many packs to merge into one pack",
                tensor=job.name,
                expected=f"at most {DEFAULT_LIMITS.terms} terms",
                found=len(terms),
                hint="Merge into a folder.",
            )
        copied = tuple(
            replace(term.term, factor=float(term.factor), blob=self.writer.copy_blob(term.reader, term.term.blob))
            for term in terms
        )
        stored = self.writer.copy_blob(job.rows.reader, job.rows.ref) if job.rows is not None else None
        entry = replace(entry, terms=copied, stored=stored)
        return digests_blob(self.writer, entry, list(restored.base_digests), list(restored.digests))

    def _files(self) -> tuple[FileEntry, ...] | None:
        """Copy the side files of the pack that decides; of the base's own, only the digests."""
        assets, entries = self.composition.assets, []
        if assets is not None and assets.index.files is None:
            return None
        carried = {file.name for file in assets.index.files or () if file.blob is not None} if assets else set()
        contents: dict[str, bytes] = {}
        copy_side_files(self.base, assets, contents.__setitem__, verify=self.options.verify, dtype=None)
        for name in sorted(contents, key=str.encode):
            entries.append(file_entry(self.writer, name, contents[name], carry=name in carried))
        return tuple(entries)


def _weights(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] if weights is None else [float(weight) for weight in weights]
    if len(given) == 1:
        return given * count
    if len(given) != count:
        raise RecipeError("the number of weights is wrong", expected=f"1 or {count}", found=len(given))
    return given


def _position(prefer: str | Path | None, packs: Sequence[str | Path]) -> int | None:
    if prefer is None:
        return None
    for position, pack in enumerate(packs):
        if Path(pack).resolve() == Path(prefer).resolve():
            return position
    raise RecipeError("the preferred pack is not among the packs", found=prefer)


def _warnings(readers: Sequence[PackReader], weights: Sequence[float]) -> list[str]:
    out = []
    if len(readers) > 1 and sum(weights) > LARGEST_SUM_OF_WEIGHTS:
        advice = "merges above 1.2 often lose quality; try --weight with less"
        out.append(f"the weights add up to {sum(weights):g}: {advice}")
    for one, other in combinations(readers, 2):
        keys = [
            {(entry.name, term.key, term.keep) for entry in reader.index.entries for term in entry.terms if term.keep}
            for reader in (one, other)
        ]
        if keys[0] & keys[1]:
            out.append(
                f"{one.path} and {other.path} keep the same positions (same seed and fine-tune): "
                "independent masks are what makes merging after dropping work"
            )
    return out
