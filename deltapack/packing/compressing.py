"""Use case: base checkpoint + fine-tuned checkpoint -> pack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltapack._version import __version__
from deltapack.checking import as_path
from deltapack.checkpoint.layout import size_of
from deltapack.cluster.choosing import using_engine
from deltapack.engines import Engine
from deltapack.format.blobs import EXACT
from deltapack.format.digest import fingerprint
from deltapack.format.features import features_of
from deltapack.format.index import Entry, FileEntry, Index
from deltapack.format.metadata import optional_metadata
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.kinds import PACK_FILE, check_output_name
from deltapack.packing.containers import write_heads
from deltapack.packing.entries import EntryWriter
from deltapack.packing.fitting import fit
from deltapack.packing.inputs import Asked, Inputs, open_inputs
from deltapack.packing.metadata import carried_metadata
from deltapack.packing.passes import Passes
from deltapack.packing.planning import PackPlan
from deltapack.packing.recipe import Recipe
from deltapack.packing.report import compress_report, left_out_notes, with_loss
from deltapack.packing.running import BaseRow, Run
from deltapack.packing.sharing import planned
from deltapack.packing.sides import write_sides
from deltapack.parallel import resolve_workers
from deltapack.reports import CompressReport, Progress
from deltapack.sources.inputs import guarded

__all__ = ["compress", "write_pack"]


@guarded
def compress(
    base: str | Path,
    finetuned: str | Path,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    name_map: Sequence[tuple[str, str]] = (),
    include_code: bool = False,
    keep_base: str | None = None,
    allow_unrelated: bool = False,
    weight_files: str | None = None,
    max_side_file: int | str | None = None,
    leave_out: Sequence[str] = (),
    follow_links: bool = False,
    base_packs: Sequence[str | Path] = (),
    max_part_size: int | str | None = None,
    workers: int | None = None,
    force: bool = False,
    engine: str | Engine = "local",
    address: str | None = None,
    progress: Progress | None = None,
) -> CompressReport:
    """Pack the difference between a fine-tuned checkpoint and its base.

    Reads both checkpoints once, in chunks of 1,048,576 elements. To rank elements by magnitude takes two or three passes more, a budget a
    survey of a part, a pass for the directions of factors, and one for each pack that is written until the size fits: nine at most. Memory
    does not grow with the model, but for its directions: at most 64 columns + 32 rows bytes of each weight that a budget is for, less than
    150 MB of a model of 7B.
    The same inputs, recipe and zstd version give the same bytes, whatever the number of workers.

    Args:
        base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
        finetuned: Likewise, or the folder of a PEFT adapter, which counts as the base with it merged.
        out: The pack to write; it appears only when complete.
        recipe: How to compress; `Recipe()` has the budget of the quality `"balanced"`.
        name_map: Pairs of regular expression and replacement that turn names of the fine-tune into names of the base.
        include_code: Whether Python files of the fine-tune travel inside.
        keep_base: Regular expression (search); tensors that only the base has and that match are in the result, too.
        allow_unrelated: Whether to go on where most of the fine-tune has nothing to do with the base.
        weight_files: Which weights count where a folder has one file and an index of shards that differ: `"single"` or `"index"`.
        max_side_file: Bytes of the largest side file (tokenizer, config) to pack, or text such as `"200MB"`; 128 MiB unless given.
        leave_out: Shell patterns of side files that stay behind; without a `/` of files at the top, with `**/` before it of all.
        follow_links: Whether side files that are symbolic links to files outside of the fine-tune's folder travel. Else they stay behind
            with a note, and a config or tokenizer that is one is refused; snapshots in a cache of the Hugging Face Hub stay at home.
        base_packs: Packs of a chain that begins at `base`; the base of the new pack is what the last one restores, which is never written.
        max_part_size: The most bytes of a file, or text such as `"5GB"`: a larger pack comes in parts, `NAME-00001-of-00004.dpk` and so on,
            beside `NAME.dpk.index.json`; one file unless given.
        workers: Threads; every core unless given.
        force: Whether to replace an existing `out`.
        engine: `"local"`, or `"ray"`: tensors are encoded on a Ray cluster (docs/cluster.md). The pack is the same.
        address: Address of the cluster, such as `"auto"`.
        progress: Called with bytes of the fine-tune done so far and in all, those of each pass, of which a budget takes several. What is
            done never falls, and ends as what there is in all; that grows with each pack that has to be written once more.

    Returns:
        Sizes, counts and warnings.

    Raises:
        BackendError: The engine cannot be used here.
        BaseMismatchError: Most of the fine-tune has nothing to do with the base, or `base_packs` are no chain from it.
        CheckpointError: An input is damaged or not a checkpoint.
        FormatError: One of `base_packs` is damaged.
        LimitError: A side file is larger than `max_side_file`, or there are more than 1,000 packs in a chain.
        NonFiniteError: A changed tensor holds NaN or Inf.
        OutputError: `out` exists or cannot be written.
        RecipeError: A setting is out of range or of another type, or would do nothing; or no pack is as small as its budget.
        UnsupportedError: Quantised codes would be paired with weights, or the fine-tune's folder has weights that are not read, such as a
            variant in a second precision.
    """
    asked = Asked(
        Recipe() if recipe is None else recipe,
        name_map,
        include_code,
        keep_base,
        allow_unrelated,
        weight_files,
        max_side_file,
        leave_out,
        base_packs,
        follow_links,
    )
    out, count = as_path("out", out), resolve_workers(workers)
    check_output_name(out, PACK_FILE)
    part_bytes = None if max_part_size is None else size_of("max_part_size", max_part_size)
    with open_inputs(base, finetuned, asked) as inputs, using_engine(engine, address):
        return write_pack(inputs, out, workers=count, force=force, progress=progress, part_bytes=part_bytes)


def write_pack(
    inputs: Inputs,
    out: Path,
    *,
    workers: int,
    force: bool,
    progress: Progress | None = None,
    protect: Sequence[Path] = (),
    part_bytes: int | None = None,
) -> CompressReport:
    """Write the pack of two checkpoints that are open.

    Args:
        inputs: The checkpoints, and how they are packed.
        out: The pack.
        workers: Threads.
        force: Whether to replace an existing `out`.
        progress: Called as `compress` says.
        protect: Files that `out` must not be, besides those that the checkpoints are read from.
        part_bytes: The most bytes of a file: a larger pack comes in parts.

    Raises:
        BaseMismatchError: A tensor of a chain's result is not what its last pack promises.
        NonFiniteError: A changed tensor holds NaN or Inf.
        OutputError: `out` exists or cannot be written.
        RecipeError: No pack is as small as the budget.
    """
    weights = (*inputs.base.weight_paths(), *inputs.finetuned.weight_paths(), *protect)
    progress = progress or (lambda done, total: None)
    with open_pack_writer(out, force=force, inputs=weights, part_bytes=part_bytes) as writer:
        budget = inputs.asked.recipe.target
        if budget is None:
            written = _write(writer, inputs, *planned(inputs, workers), workers, progress)
            return _report(inputs, out, written)
        passes, size = Passes(progress), sum(tensor.nbytes for tensor in inputs.finetuned.tensors.values())
        fitting, start = fit(inputs, budget, workers, passes), writer.end
        attempt = fitting.first()
        while True:
            written = _write(writer, inputs, attempt.plans, (), workers, passes.begin(size))
            further = fitting.after(attempt, written.size)
            if further is None:
                break
            writer.rewind(start)
            attempt = further
    return _report(inputs, out, replace(written, notes=(*written.notes, *fitting.notes)), attempt.loss)


@dataclass(frozen=True)
class _Written:
    """A pack that was written: its index, its bytes, its stored bytes by use, and what is to be told."""

    index: Index
    size: int
    split: Mapping[str, int]
    notes: tuple[str, ...]


def _write(
    writer: PackWriter, inputs: Inputs, plans: Iterable[PackPlan], tables: tuple[bytes, ...], workers: int, progress: Progress
) -> _Written:
    """Write all of a pack by plans for its tensors."""
    recipe = inputs.asked.recipe
    split: dict[str, int] = {}
    run = Run(inputs, plans, workers, progress)
    entries, base_rows = run.write(EntryWriter(writer, inputs.base, inputs.finetuned, recipe, split))
    files = write_sides(writer, inputs.base, inputs.finetuned, inputs.files)
    heads, no_heads = _heads(writer, inputs)
    metadata, too_long = carried_metadata(inputs.finetuned.metadata)
    index = _index(entries, base_rows, files, inputs.finetuned.folders, recipe, heads)
    index = replace(index, tables=tuple(map(writer.plain_blob, tables)) if EXACT in index.required else ())
    size = writer.finish(replace(index, optional=optional_metadata(metadata)))
    return _Written(index, size, split, (*too_long, *no_heads))


def _report(inputs: Inputs, out: Path, written: _Written, loss: float | None = None) -> CompressReport:
    recipe = inputs.asked.recipe
    checkpoint_bytes = sum(tensor.nbytes for tensor in inputs.finetuned.tensors.values())
    notes = [*inputs.notes(), *left_out_notes(inputs.left_out, exact=recipe.exact is True), *written.notes]
    report = compress_report(out, written.index, written.size, checkpoint_bytes, written.split, inputs.survey, notes, recipe)
    return with_loss(report, loss)


def _heads(writer: PackWriter, inputs: Inputs) -> tuple[tuple[FileEntry, ...], list[str]]:
    """Write the heads of the weight files where all of them is to come back, and return what is to be told."""
    if inputs.asked.recipe.exact is not True:
        return (), []
    return write_heads(writer, inputs.base.files, inputs.finetuned, inputs.survey.kept)


def _index(
    entries: Sequence[Entry],
    base_rows: Sequence[BaseRow],
    files: tuple[FileEntry, ...] | None,
    folders: Mapping[str, str],
    recipe: Recipe,
    containers: tuple[FileEntry, ...],
) -> Index:
    result = [(entry.name, entry.dtype.name, entry.shape, entry.digest) for entry in entries if entry.in_result]
    return Index(
        base_fingerprint=fingerprint(base_rows),
        base_tensors=len(base_rows),
        result_fingerprint=fingerprint(result),
        result_tensors=len(result),
        result_bytes=sum(entry.nbytes for entry in entries),
        recipe=recipe.to_json(),
        entries=tuple(entries),
        files=files,
        created_by=f"deltapack {__version__}",
        required=features_of(entries, files, folders, containers),
        folders=folders,
        containers=containers,
    )
