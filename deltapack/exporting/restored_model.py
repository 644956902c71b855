"""Use cases: pack + base -> the restored model, in files of safetensors or, for `torch.load(weights_only=True)`, of PyTorch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltapack.checking import as_pack, as_path
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.checkpoint.manifest import MANIFEST
from deltapack.errors import UnsupportedError
from deltapack.exporting.opening import base_of
from deltapack.format.atomic import check_absent, claimed, place_durably, temporary_sibling, writing
from deltapack.kinds import FOLDER, check_output_name
from deltapack.reports import ApplyReport, Progress
from deltapack.restoring.applying import apply
from deltapack.sources.inputs import check_protected, guarded

__all__ = ["TorchReport", "export_full", "export_torch"]

_ENDING = ".safetensors"
_INDEX = ".index.json"


@dataclass(frozen=True)
class TorchReport:
    """What `export_torch` did. Sizes in bytes.

    Attributes:
        out: The folder.
        files: Names of its files of weights.
        bytes: Size of these files.
        tensors: Number of tensors, tied ones once.
        notes: What was noticed.
        warnings: What needs attention.
    """

    out: Path
    files: Sequence[str]
    bytes: int
    tensors: int
    notes: Sequence[str] = field(default_factory=list)
    warnings: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"out": str(self.out)}


@guarded
def export_full(
    pack: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ApplyReport:
    """Restore the model, as `deltapack.apply` does, from a base that may be named by its repository on the Hub.

    Args:
        pack: The pack.
        base: Its base: a folder or file, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.
        out: Folder to write, or a file if it ends in `.safetensors`; it appears only when complete.
        dtype: Type of all float tensors of the result; their own unless given.
        max_shard_size: Bytes of a file, or text such as `"5GB"`; the base's layout unless given.
        workers: Threads; every core unless given.
        progress: Called with bytes of the result done so far and in all.

    Raises:
        BackendError: The base is on the Hub, and huggingface_hub is not installed.
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base is damaged.
        FormatError: The pack is damaged.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range.
    """
    check_absent(as_path("out", out))
    folder = base_of(base).folder
    return apply(folder, pack, out, dtype=dtype, max_shard_size=max_shard_size, workers=workers, progress=progress)


@guarded
def export_torch(
    pack: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> TorchReport:
    """Write the restored model as state dicts of PyTorch, the same bits as `deltapack.apply` writes, and the side files beside them.

    The model is restored beside `out` first, and takes its size on the disk once more while each file is turned into one of PyTorch. Second
    names of tied tensors are there and share their memory where both are in one file.

    Args:
        pack: The pack.
        base: Its base: a folder or file, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.
        out: The folder to write; it appears only when complete.
        dtype: Type of all float tensors of the result; their own unless given.
        max_shard_size: Bytes of a file, or text such as `"5GB"`; the base's layout unless given.
        workers: Threads; every core unless given.
        progress: Called with bytes of the result done so far and in all.

    Raises:
        BackendError: The base is on the Hub, and huggingface_hub is not installed.
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base is damaged.
        FormatError: The pack is damaged.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range.
        UnsupportedError: The result has weights in sub-folders, or a type that PyTorch has not.
    """
    out = as_path("out", out)
    check_output_name(out, FOLDER)
    check_absent(out)
    folder, unfinished = base_of(base).folder, temporary_sibling(out)
    check_protected(out, [folder, as_pack("pack", pack)])
    part = unfinished / "model"
    with ExitStack() as stack:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claimed(out))
            stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
            unfinished.mkdir()
        report = apply(folder, pack, part, dtype=dtype, max_shard_size=max_shard_size, workers=workers, progress=progress)
        with open_checkpoint(part) as restored:
            if restored.folders:
                hint, parts = "Restore a folder with `deltapack apply`.", ", ".join(restored.folders)
                raise UnsupportedError(
                    "the pack restores several folders, not one model", path=as_pack("pack", pack), found=parts, hint=hint
                )
            shards, aliases = restored.weight_shards(), dict(restored.aliases)
            _refuse_types(restored)
            notes = list(report.notes)
        with writing(out):
            (part / MANIFEST).unlink(missing_ok=True)  # it lists other files
            files = tuple(_converted(part, [name for name, _ in shards], dict(_names(shards, aliases))))
            size = sum((part / name).stat().st_size for name in files)
            place_durably(part, out)
        return TorchReport(out, files, size, report.tensors, notes, report.warnings)


def _refuse_types(restored: Checkpoint) -> None:
    """Refuse what PyTorch cannot hold, by its type.

    Raises:
        UnsupportedError: There is a tensor of such a type.
    """
    for name, info in restored.tensors.items():
        if not info.dtype.torch:
            hint = "`--to full` writes it as safetensors."
            raise UnsupportedError("PyTorch has no such type", path=restored.path, tensor=name, found=info.dtype, hint=hint)


def _names(shards: list[tuple[str, list[str]]], aliases: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the names that a file of PyTorch has for the tensors of one of safetensors: from each name to the tensor."""
    for file, own in shards:
        held = set(own)
        yield file, {**{name: name for name in own}, **{alias: kept for alias, kept in aliases.items() if kept in held}}


def _converted(folder: Path, shards: list[str], names: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Turn files of safetensors into files of PyTorch, one after the other; yield their names, and write their index."""
    import torch
    from safetensors import safe_open

    weight_map, total = dict[str, str](), 0
    for file in shards:
        new, state = _renamed(file), dict[str, Any]()
        with safe_open(folder / file, "pt") as tensors:
            held = {name: tensors.get_tensor(name) for name in set(names[file].values())}
            for name, kept in names[file].items():
                state[name] = held[kept]
            total += sum(tensor.nbytes for tensor in held.values())
            with open(folder / new, "xb") as opened:  # torch's own files tell of a full disk as a RuntimeError
                torch.save(state, opened)
        del state, held
        (folder / file).unlink()
        weight_map |= dict.fromkeys(names[file], new)
        yield new
    indices = sorted(folder.glob(f"*{_ENDING}{_INDEX}"))
    for index in indices:
        index.unlink()
    if len(shards) > 1:
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        name = indices[0].name.removesuffix(_INDEX) if indices else "model.safetensors"
        (folder / (_renamed(name) + _INDEX)).write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _renamed(file: str) -> str:
    """Return the name for PyTorch of a file of safetensors; only `model` has one of its own, others change their ending.

    >>> _renamed("model-00001-of-00002.safetensors"), _renamed("diffusion_pytorch_model.safetensors")
    ('pytorch_model-00001-of-00002.bin', 'diffusion_pytorch_model.bin')
    """
    stem = file.removesuffix(_ENDING)
    return f"{'pytorch_' if stem.partition('-')[0] == 'model' else ''}{stem}.bin"
