"""Use case: pack + name of its base -> a folder that transformers loads: config.json, pack, tokenizer, and no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltapack.checking import as_one_file, as_path, as_text
from deltapack.checkpoint import open_checkpoint
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import copy_side_files
from deltapack.composing.compose import Composition, compose
from deltapack.composing.heads import CONFIG
from deltapack.composing.weighted import WeightedPack
from deltapack.errors import RecipeError, UnsupportedError
from deltapack.format.atomic import check_absent, claimed, place_durably, temporary_sibling, writing
from deltapack.format.reader import PackReader
from deltapack.kinds import FOLDER, check_output_name
from deltapack.sources.hub import NamedBase, find_base, split_revision
from deltapack.sources.inputs import check_protected, guarded

__all__ = ["METHOD", "FolderReport", "ModelFiles", "model_files", "write_model_folder"]

METHOD = "deltapack"
"""`quant_method` in config.json."""


@dataclass(frozen=True)
class FolderReport:
    """What `write_model_folder` did. Sizes in bytes.

    Attributes:
        out: The folder.
        pack: The pack in it.
        base: What config.json names as the base.
        revision: The commit of its repository, if it is in one.
        bytes: Size of the folder.
        notes: What was noticed.
    """

    out: Path
    pack: Path
    base: str
    revision: str | None
    bytes: int
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"out": str(self.out), "pack": str(self.pack)}


@dataclass(frozen=True)
class ModelFiles:
    """What a folder of a pack holds beside it.

    Attributes:
        files: Contents by name.
        base: What config.json names as the base.
        revision: The commit of its repository, if it is in one.
        notes: What was noticed.
    """

    files: Mapping[str, bytes]
    base: str
    revision: str | None
    notes: Sequence[str]


@guarded
def write_model_folder(pack: str | Path, base: str | Path, out: str | Path, *, revision: str | None = None) -> FolderReport:
    """Write a folder that `from_pretrained` loads where deltapack is registered: config, tokenizer and other side files, and the pack.

    The base is compared with the pack by its headers, and its side files by their digests; the weights of a repository are fetched for
    that, if they are not in the cache.

    Args:
        pack: The pack.
        base: What config.json shall name: a repository, as `ORG/NAME` or `ORG/NAME@REVISION`, or a folder, which must then be there where
            the model is loaded.
        out: The folder to write; it appears only when complete.
        revision: Branch, tag or commit of the repository. The commit that it stands for is what config.json names.

    Raises:
        BackendError: The base is a repository, and huggingface_hub is not installed.
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base is not there, or damaged.
        FormatError: The pack is damaged.
        OutputError: `out` exists, or cannot be written.
        RecipeError: An argument is out of range, or there is no config.json.
        UnsupportedError: The result is no single model, or quantised itself.
    """
    pack, out = as_one_file("the pack", pack), as_path("out", out)
    check_output_name(out, FOLDER)
    check_absent(out)
    check_protected(out, [pack])
    made = model_files(pack, base, revision=revision)  # before the folder is there: what is wrong leaves nothing behind
    check_protected(out, [] if made.revision is not None else [Path(made.base)])
    return FolderReport(out, out / pack.name, made.base, made.revision, _write(out, made.files, pack), made.notes)


def model_files(pack: Path, base: str | Path, *, revision: str | None = None) -> ModelFiles:
    """Return what such a folder holds beside the pack; arguments and errors are those of `write_model_folder`."""
    name, given = split_revision(str(base) if isinstance(base, Path) else as_text("base", base))
    if given is not None and revision is not None:
        raise RecipeError("the revision is given twice", found=f"{given} and {revision}")
    found = find_base(name, revision or given, side_files=True)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(found.folder))
        reader = stack.enter_context(PackReader(pack))
        composition = compose(arranged_base(checkpoint, [reader]), [WeightedPack(reader)])
        if composition.folders:
            hint = "Restore a folder with `deltapack apply`."
            parts = ", ".join(composition.folders)
            raise UnsupportedError("the pack restores several folders, not one model", path=pack, found=parts, hint=hint)
        files: dict[str, bytes] = {}
        notes = copy_side_files(checkpoint, composition.assets, files.__setitem__, verify=True, dtype=None)
    if pack.name in files:
        raise RecipeError("a side file has the name of the pack", path=pack, hint="Rename the pack.")
    named = found.repo or str(found.folder.resolve())
    settings = {"quant_method": METHOD, "base": named, "revision": found.revision, "pack": pack.name}
    config = _config(files.get(CONFIG), composition, pack)
    notes = [*notes, *_notes(found, config)]
    config["quantization_config"] = {key: value for key, value in settings.items() if value is not None}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    files[CONFIG] = text.encode(errors="backslashreplace")  # half a surrogate pair stays the escape that it was
    return ModelFiles(files, named, found.revision, notes)


def _notes(base: NamedBase, config: Mapping[str, Any]) -> list[str]:
    notes = []
    if config.get("quantization_config"):
        notes.append("config.json said that the model was loaded from a GGUF file, and does no more: the weights are whole")
    if base.repo is None:
        notes.append(f"the base is named by its path: the folder loads where {base.folder.resolve()} is there, and nowhere else")
    return notes


def _config(data: bytes | None, composition: Composition, pack: Path) -> dict[str, Any]:
    """Return the result's config, with the type of the weights, which transformers must know beforehand.

    Raises:
        RecipeError: There is none.
        UnsupportedError: It is that of a quantised model.
    """
    try:
        config = json.loads(data) if data is not None else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        hint = "A model of transformers has one; load others with load_state_dict, or restore them."
        what = "the result has no config.json" if data is None else "the result's config.json is no object of JSON"
        raise RecipeError(what, path=pack, hint=hint)
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    # What was loaded from a GGUF file says so for ever; it is saved as whole weights.
    if method not in (None, "gguf"):
        what, hint = "the result is quantised, and transformers knows one quantizer for a model", "Restore it with `deltapack apply`."
        raise UnsupportedError(what, path=pack, found=method, hint=hint)
    if config.get("dtype") is None and config.get("torch_dtype") is None:
        floats = [job.dtype.torch for job in composition.jobs if job.dtype.torch in ("float64", "float32", "float16", "bfloat16")]
        config["dtype"] = floats[0] if floats else "float32"
    return config


def _write(out: Path, files: Mapping[str, bytes], pack: Path) -> int:
    """Write the folder under another name, then give it its own; return its size."""
    part = temporary_sibling(out)
    with ExitStack() as stack, writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(claimed(out))
        stack.callback(shutil.rmtree, part, ignore_errors=True)
        part.mkdir()
        for name, data in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(data)
        with pack.open("rb") as source, (part / pack.name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        place_durably(part, out)
    return sum(map(len, files.values())) + (out / pack.name).stat().st_size
