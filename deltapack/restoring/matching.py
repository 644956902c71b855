"""Use case: is a checkpoint what a pack restores? Needs no base."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltapack.checkpoint import Checkpoint, SideFile, open_checkpoint
from deltapack.checkpoint.sidefiles import is_training_state
from deltapack.errors import ModelMismatchError
from deltapack.format.forms import is_descriptive
from deltapack.format.identity import content_id, content_of
from deltapack.format.index import Entry, Index
from deltapack.format.paths import is_weight_file
from deltapack.format.reader import PackReader
from deltapack.limits import OF_THE_USER
from deltapack.parallel import resolve_workers
from deltapack.reports import ModelReport, Progress
from deltapack.restoring.identifying import digests_of, fingerprint_of

__all__ = ["verify_model"]

_SHOWN = 3


def verify_model(
    pack: str | Path,
    model: str | Path,
    *,
    weight_files: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ModelReport:
    """Check that a checkpoint, such as a model that was downloaded whole, is what a pack restores: no base is needed.

    Its tensors, ties, folders and side files are compared with what the index of the pack promises. Texts for people (README, licence) do
    not count; how tensors lie in files does not either, but is told. Of the pack only the index is looked at: `verify` checks the rest.

    Args:
        pack: The pack.
        model: The checkpoint: a folder, or one file, which has tensors alone.
        weight_files: Which weights count where the folder has one file and an index of shards that differ: `"single"` or `"index"`.
        workers: Threads; every core unless given.
        progress: Called with bytes done so far and in all.

    Raises:
        CheckpointError: The checkpoint is damaged or none.
        FormatError: The pack is damaged or none.
        ModelMismatchError: The checkpoint is another than the pack restores.
        RecipeError: An argument is out of range.
    """
    count = resolve_workers(workers)
    with PackReader(pack) as reader, open_checkpoint(model, weights=weight_files) as opened:
        index = reader.index
        for error in opened.unread:  # weights of which nothing is known are no part of what the pack restores
            raise error
        _check_tensors(opened, index, reader.path)
        digests = digests_of(opened, count, progress)
        _check_digests(opened, index, digests)
        files, notes, warnings = _files(opened, index, reader.path)
        found = content_id(fingerprint_of(opened, digests), opened.aliases, opened.folders, files)
        if index.files is None or opened.is_folder:
            _same("the content is another", content_of(index), found, opened)  # what is compared above comes to the same
        same_heads = _same_heads(opened, index)
        if index.containers and not same_heads:
            notes.append("the tensors lie in the weight files otherwise than in those of the fine-tune: same content, other bytes")
        return ModelReport(
            pack=reader.path,
            model=opened.path,
            pack_id=reader.pack_id,
            content_id=found,
            base_fingerprint=index.base_fingerprint,
            tensors=len(digests),
            tensor_bytes=index.result_bytes,
            side_files=len(files or ()),
            weight_files_match=same_heads,
            notes=notes,
            warnings=warnings,
        )


def _check_tensors(model: Checkpoint, index: Index, pack: Path) -> None:
    """Compare what is told without reading elements: names, types, shapes, ties, folders."""
    wanted = {entry.name: entry for entry in index.entries if entry.in_result}
    _same_names("tensors", wanted, model.tensors, model, pack)
    for name, entry in wanted.items():
        info = model.tensors[name]
        _same("the type is another", entry.dtype.name, info.dtype.name, model, name)
        _same("the shape is another", list(entry.shape), list(info.shape), model, name)
    ties = {entry.name: entry.of for entry in index.entries if entry.kind == "alias"}
    _same_names("second names of tied tensors", ties, model.aliases, model, pack)
    for name, kept in ties.items():
        _same("the tensor is tied to another", kept, model.aliases[name], model, name)
    _same_names("folders with weights", index.folders, model.folders, model, pack)


def _check_digests(model: Checkpoint, index: Index, digests: Mapping[str, str]) -> None:
    entries: list[Entry] = [entry for entry in index.entries if entry.in_result and digests[entry.name] != entry.digest]
    if entries:
        what = "the tensor has other elements than the pack restores"
        what += f", as do {len(entries) - 1} more of {len(digests)}" if len(entries) > 1 else ""
        raise _mismatch(what, model, entries[0].name, entries[0].digest, digests[entries[0].name])


def _files(model: Checkpoint, index: Index, pack: Path) -> tuple[dict[str, str] | None, list[str], list[str]]:
    """Compare the side files; return the digests of the model's that count, none where either says nothing of files; notes; warnings."""
    if not model.is_folder:
        return None, ["one file has no side files: tensors alone were compared"] if index.files is not None else [], []
    notes, warnings = _left_out(model)
    if index.files is None:
        return None, ["the pack says nothing of side files: those of the model were not compared"], warnings
    wanted = {file.name: file.sha256 for file in index.files if not is_descriptive(file.name)}
    there = {file.name: file for file in model.side_files() if not is_descriptive(file.name)}
    there |= {name: file for name in wanted if (file := model.side_file(name)) is not None}
    _same_names("side files", wanted, there, model, pack)
    found = {name: _sha256(file) for name, file in there.items()}
    for name, sha256 in wanted.items():
        _same(f"the side file {name} is another", sha256, found[name], model)
    return found, notes, warnings


def _left_out(model: Checkpoint) -> tuple[list[str], list[str]]:
    """Name what lies in the folder and was not compared, as no pack would hold it: whoever loads the model may read it all the same.

    Returns:
        A note, and a warning of weights, which a program may take instead of those that were compared.
    """
    left = [item.name for item in model.list_side_files(include_code=True, limits=OF_THE_USER, follow_links=True)[1]]
    weights = [name for name in left if is_weight_file(name) and not is_training_state(os.path.basename(name))]
    others = [name for name in left if name not in weights]
    notes = [f"not compared, as packs hold no such files: {_few(others)}"] if others else []
    what = "weights beside those that were compared, which a program that loads the folder may take instead"
    return notes, [f"{what}: {_few(weights)}"] if weights else []


def _same_heads(model: Checkpoint, index: Index) -> bool:
    """Whether the weight files are laid out as the fine-tune's; then they are the same, byte for byte."""
    heads = {container.name: model.head(container.name) for container in index.containers}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in heads.items() if data is not None}
    return bool(heads) and found == {container.name: container.sha256 for container in index.containers}


def _sha256(file: SideFile) -> str:
    return hashlib.sha256(file.read()).hexdigest()


def _same_names(what: str, wanted: Mapping[str, object], there: Mapping[str, object], model: Checkpoint, pack: Path) -> None:
    lacks, more = sorted(wanted.keys() - there.keys()), sorted(there.keys() - wanted.keys())
    if lacks or more:
        said = [f"{_few(lacks)} lacking"] * bool(lacks) + [f"{_few(more)} too many"] * bool(more)
        raise _mismatch(f"the {what} are others than {pack} restores", model, None, None, ", ".join(said))


def _same(what: str, expected: object, found: object, model: Checkpoint, tensor: str | None = None) -> None:
    if expected != found:
        raise _mismatch(what, model, tensor, expected, found)


def _mismatch(what: str, model: Checkpoint, tensor: str | None, expected: object, found: object) -> ModelMismatchError:
    hint = "It is not what the pack restores with weight 1, in its own types."
    return ModelMismatchError(what, path=model.path, tensor=tensor, expected=expected, found=found, hint=hint)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
