"""The weights of a folder's sub-folders, such as `2_Dense/` of sentence-transformers or `unet/` of diffusers: parts of one checkpoint.

A tensor of a sub-folder has the folder's path, a `/` and its own name as its name (spec/03-index.md section 3.9).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath

from deltapack.checkpoint.files import is_folder, refuse_fault
from deltapack.checkpoint.formats import FORMATS, WeightFormat
from deltapack.checkpoint.locate import Location, locate, location_of_index, nothing_found, one_of_two, search_folder
from deltapack.checkpoint.sidefiles import is_never_a_part, is_training_state, reason_to_skip_folder
from deltapack.checkpoint.tensors import ParsedFile, check_tensor
from deltapack.errors import CheckpointError, UnsupportedError
from deltapack.format.folders import folder_of
from deltapack.format.paths import is_weight_file
from deltapack.limits import Limits
from deltapack.sources.whole import read_small

__all__ = ["Located", "check_folders", "locate_all", "moved", "prefixed"]

_PARTS = ("model_index.json", "modules.json")
"""Files of diffusers and sentence-transformers that say of a folder without weights that its sub-folders are the parts of one model."""
_LARGEST_LIST = 1 << 20
_NUMBER = re.compile(r"-\d+-of-\d+")
_OTHER_TOOLS = re.compile(r"consolidated\..*|tokenizer.*")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Located:
    """All weights of a checkpoint.

    Attributes:
        places: Its weight files, folder by folder; those of the folder itself, if it has some, first.
        stems: From each sub-folder with weights to the name of its weight file without `.safetensors`, as it is written again.
        unread: Why weights of the folder are not read: variants beside others, files that nobody asked for by their name.
    """

    places: tuple[Location, ...]
    stems: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[UnsupportedError, ...] = ()


def locate_all(path: Path, limits: Limits, choice: str | None = None) -> Located:
    """Find the weights of a checkpoint, and of its sub-folders where it is a folder.

    Args:
        path: The folder or file.
        limits: Bounds on indices.
        choice: What counts where the folder has one file and an index of shards, too: `"single"` or `"index"`.

    Raises:
        CheckpointError: There are none, the choice is not unique at the top, or an index is malformed.
        LimitError: An index exceeds `limits`.
        RecipeError: There is no such choice.
    """
    if not path.is_dir():
        return Located((locate(path),))
    top, names = search_folder(path, limits, choice)
    inner: dict[str, Location] = {}
    unread = [] if top is None else list(_variants(top, names))
    parts = _declared(path, names)
    for folder, files, reason in _sub_folders(path):
        found = _in_sub_folder(path / folder, files, limits, choice) if reason is None else _behind(path, folder, reason)
        if found is None and reason is None and _is_part(folder, parts, inner):
            found = _in_another_format(path / folder, files)
        if isinstance(found, UnsupportedError):
            unread.append(found)
        elif found is not None:
            inner[folder] = moved(found, path, folder + "/")
    if top is None and not (inner and any(name in names for name in _PARTS)):
        if unread and any(name in names for name in _PARTS):
            raise unread[0]
        raise nothing_found(path, names, sorted(inner))
    places = [*([] if top is None else [top]), *inner.values()]
    return Located(tuple(places), {folder: _stem(found) for folder, found in inner.items()}, tuple(unread))


def _sub_folders(path: Path) -> Iterator[tuple[str, list[str], str | None]]:
    """Yield the sub-folders that may belong to a checkpoint, by name, each with the names of its files, or why it is not looked into."""
    pending = [""]
    while pending:
        prefix = pending.pop(0)
        try:
            entries = sorted((path / prefix).iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            refuse_fault(path / prefix, error)
            yield prefix[:-1], [], "it cannot be listed"
            continue
        for entry in entries:
            if not is_folder(entry) or is_never_a_part(entry.name):
                continue
            reason = reason_to_skip_folder(entry, prefix + entry.name)
            if reason is None:
                pending.append(f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, [], reason
        if prefix:
            yield prefix[:-1], [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()], None


def _behind(path: Path, folder: str, reason: str) -> UnsupportedError | None:
    """Return an error where a folder that is not read holds weights.

    A link to what the checkpoint itself is in, or to a state of training in it (`latest`), is of no use to the model.
    """
    root, target = path.resolve(), (path / folder).resolve()
    inside = target.relative_to(root).parts if target.is_relative_to(root) else ()
    if root.is_relative_to(target) or any(map(is_never_a_part, inside)):
        return None
    closed: list[OSError] = []
    pending = [folder]
    while pending:
        where = pending.pop(0)
        try:
            entries = sorted((path / where).iterdir(), key=lambda entry: entry.name)
            below = [entry.name for entry in entries if entry.is_dir()]
        except OSError as error:
            closed.append(error)
            continue
        # As for any walk, links to folders are not followed but for the first.
        pending += [f"{where}/{name}" for name in below if is_never_a_part(name) is None and not (path / where / name).is_symlink()]
        files = [entry.name for entry in entries if entry.name not in below]
        names = [name for name in files if not name.startswith(".") and not is_training_state(name)]
        held = [name for name in names if any(_is_of(name, row) for row in FORMATS) or _is_unknown_pickle(name, names)]
        if held:
            return _unread(path / folder, reason, f"{where}/{held[0]}")
    return _unread(path / folder, reason, f"{closed[0].strerror or closed[0]}") if closed else None


def _unread(folder: Path, reason: str, found: str) -> UnsupportedError:
    return UnsupportedError(
        f"weights may be in a folder that is not read: {reason}",
        path=folder,
        expected="folders that are no links, can be listed, and lie at most 4 below the top",
        found=found,
        hint="Put the folder itself where the model is loaded from, or move it out of the checkpoint if it is no part of the model.",
    )


def _declared(path: Path, names: Collection[str]) -> frozenset[str]:
    """Return the sub-folders that diffusers or sentence-transformers load as parts of a model, by its lists; of a malformed list none."""
    parts: set[str] = set()
    for name in _PARTS:
        try:
            text = read_small(path / name, _LARGEST_LIST) if name in names else b"null"
            found = json.loads(text)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            parts |= found.keys()
        for row in found if isinstance(found, list) else ():
            if isinstance(row, dict) and isinstance(row.get("path"), str):
                parts.add(row["path"].strip("/"))
    return frozenset(parts - {""})


def _is_part(folder: str, parts: Collection[str], inner: Collection[str]) -> bool:
    """Whether a folder is a part of a model, or in one, of which no weights are read so far: beside some, others are exports."""
    above = [folder, *(str(parent) for parent in PurePosixPath(folder).parents)]
    return any(name in parts for name in above) and not any(name in inner for name in above)


def _in_another_format(folder: Path, names: Sequence[str]) -> UnsupportedError | None:
    """Return an error where a part of a model has weights only in a format that is not read, such as ONNX."""
    others = [name for name in names if is_weight_file(name) and not is_training_state(name) and not _OTHER_TOOLS.fullmatch(name)]
    if not others:
        return None
    return UnsupportedError(
        "a part of the model has weights only in a format that is not read",
        path=folder / others[0],
        expected="one .safetensors file or pytorch_model.bin, or shards with their index",
        hint="Save them as safetensors, or take the part out of the list of parts.",
    )


def _in_sub_folder(folder: Path, names: Sequence[str], limits: Limits, choice: str | None) -> Location | UnsupportedError | None:
    """Find the weights of a sub-folder; an error where they are not one checkpoint, so that nobody loses some of them in silence."""
    names = [name for name in names if not is_training_state(name)]
    for row in FORMATS:
        weights = [name for name in names if _is_of(name, row)]
        indices = [name for name in names if name.endswith(".json") and ".index." in name and _is_of(name.partition(".index.")[0], row)]
        if not weights and not indices:
            continue
        found = None
        if len(indices) == 1 and indices[0].endswith(".index.json"):
            whole = indices[0].removesuffix(".index.json")
            if whole in weights:
                single = Location(folder, (whole,), row)
                found, known = one_of_two(single, indices[0], names, limits, choice)
                weights = [name for name in weights if name not in known]
            else:
                found = location_of_index(folder, indices[0], row, limits)
        elif len(weights) == 1 and not indices and not _NUMBER.search(weights[0]):
            found = Location(folder, tuple(weights), row)
        more = [*indices, *weights] if found is None else [name for name in weights if name not in found.files]
        return found if found is not None and not more else _several(folder, [*(found.files if found else ()), *more])
    others = [name for name in names if _is_unknown_pickle(name, names)]
    if others:
        return UnsupportedError(
            "weights in a sub-folder are in no file that is read there",
            path=folder / others[0],
            expected="one .safetensors file or pytorch_model.bin, or shards with their index",
            hint="Save them as safetensors, or move them out of the folder if they are no part of the model.",
        )
    return None


def _is_of(name: str, row: WeightFormat) -> bool:
    """Whether a file of a sub-folder is of a format: by its suffix where any name will do, else also by its stem."""
    stem = PurePath(row.whole).stem
    return name.endswith(row.suffixes[:1]) and (
        row.any_name or re.fullmatch(rf"{stem}([-.].*)?", name.removesuffix(row.suffixes[0])) is not None
    )


def _is_unknown_pickle(name: str, names: Sequence[str]) -> bool:
    """Whether a file looks like weights of torch; those of OpenVINO have a description beside them, Meta's are there a second time."""
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in _PICKLES and f"{stem}.xml" not in names and not _OTHER_TOOLS.fullmatch(name)


def _variants(top: Location, names: Sequence[str]) -> Iterator[UnsupportedError]:
    """Yield an error where the folder has the same weights in a second precision, as in `model.fp16.safetensors`."""
    stem, suffix = PurePath(top.format.whole).stem, top.format.suffixes[0]
    more = [name for name in names if re.fullmatch(rf"{stem}\.\w+(-\d+-of-\d+)?{re.escape(suffix)}", name) and name not in top.files]
    if more:
        yield _several(top.folder, [*top.files[:1], *more])


def _several(folder: Path, names: Sequence[str]) -> UnsupportedError:
    return UnsupportedError(
        "the folder holds weights in several variants, or more than one checkpoint",
        path=folder,
        expected="one file, or the shards of one index",
        found=", ".join(names[:4]),
        hint="Keep those that the model is loaded from, and move the others out of the folder.",
    )


def moved(found: Location, root: Path, prefix: str) -> Location:
    """Return a location as one of a part of `root`: names of files and tensors begin with the sub-folder."""
    weight_map = found.weight_map and {prefix + name: prefix + file for name, file in found.weight_map.items()}
    return replace(
        found,
        folder=root,
        files=tuple(prefix + name for name in found.files),
        weight_map=weight_map,
        index=found.index and prefix + found.index,
        notes=tuple(f"{prefix}: {note}" for note in found.notes),
        rival=found.rival and moved(found.rival, root, prefix),
        prefix=prefix,
    )


def _stem(found: Location) -> str:
    """Return the name of the weight file of a sub-folder, without shard numbers and suffix, as loaders look for it in safetensors."""
    name = (found.index or found.files[0]).removeprefix(found.prefix).removesuffix(".index.json")
    stem = _NUMBER.sub("", os.path.splitext(name)[0])
    return "model" if stem == "pytorch_model" else stem


def prefixed(file: ParsedFile, prefix: str, path: Path, limits: Limits) -> ParsedFile:
    """Return a file of a sub-folder with its tensors under the names that they have in the whole checkpoint.

    Raises:
        LimitError: Such a name is too long.
    """
    if not prefix:
        return file
    tensors = [(replace(info, name=prefix + info.name, shard=prefix + info.shard), source) for info, source in file.tensors]
    for info, _ in tensors:
        check_tensor(path, info.name, info.shape, limits)
    aliases = {prefix + name: prefix + kept for name, kept in file.aliases.items()}
    return replace(file, tensors=tensors, aliases=aliases, prefix=prefix)


def check_folders(path: Path, prefix: str, names: Collection[str], folders: Collection[str]) -> None:
    """Check that the names of the tensors of one folder do not say another.

    Raises:
        CheckpointError: One begins as the name of a sub-folder's tensor.
    """
    for name in names if folders else ():
        folder = folder_of(name, folders)
        if folder + "/" * bool(folder) != prefix:
            where = f"the folder {prefix}" if prefix else "the top folder"
            raise CheckpointError(
                "a tensor has the name of one in a sub-folder", path=path, tensor=name, expected=folder + "/", found=where
            )
