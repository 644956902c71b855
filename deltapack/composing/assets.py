"""The side files of a result: carried by a pack, or the base's own, each checked by its SHA-256."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from deltapack.checkpoint import Checkpoint, SideFile
from deltapack.dtypes import DType
from deltapack.errors import BaseMismatchError
from deltapack.format.forms import form_with, is_descriptive
from deltapack.format.index import FileEntry, Index
from deltapack.format.reader import PackReader
from deltapack.limits import DEFAULT_LIMITS

__all__ = [
    "BaseFiles",
    "check_base_files",
    "check_intact",
    "choose_donor",
    "copy_side_files",
    "read_side_file",
    "side_file_of",
    "side_files_bytes",
    "with_dtype",
]


class BaseFiles(Protocol):
    """The side files of a base: a checkpoint's, or those that packs make of them."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""

    def side_file(self, name: str) -> SideFile | None:
        """Return the file of this name, if there is one."""


def side_files_bytes(base: Checkpoint, pack: PackReader | None) -> int:
    """Return the size of the side files of the result."""
    if pack is not None and pack.index.files is not None:
        return sum(file.size for file in pack.index.files)
    return sum(file.size for file in base.side_files())


def choose_donor(readers: Sequence[PackReader], prefer: int | Literal["base"] | None) -> tuple[PackReader | None, tuple[str, ...]]:
    """Return the pack whose side files the result takes (none: the base's) and a sentence about the choice."""
    if prefer == "base":
        return None, ()
    if prefer is not None or len(readers) == 1:
        return readers[prefer or 0], ()
    contents = [_matters(reader) for reader in readers]
    if all(content == contents[0] for content in contents):
        return readers[0], ()
    shaping = [reader for reader in readers if _changes_shapes(reader.index)]
    if len(shaping) == 1:
        return shaping[0], (f"config and tokenizer files are from {shaping[0].path}, which changes names or shapes of tensors",)
    every = {name for content in contents for name in content or {}}
    names = sorted(name for name in every if len({(content or {}).get(name) for content in contents}) > 1)
    which = f" ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})" if names else ""
    return None, (f"the packs carry different config or tokenizer files{which}; the base's are used, --prefer PACK changes that",)


_NAMED = 4
"""Files that a note names."""


def _matters(reader: PackReader) -> dict[str, str] | None:
    """Return the digests of the side files of a pack that a model works with, by name; `None` where it was made from a bare file."""
    files = reader.index.files
    return None if files is None else {file.name: file.sha256 for file in files if not is_descriptive(file.name)}


def _changes_shapes(index: Index) -> bool:
    """Whether a pack does more than add; what it makes others of is not gone."""
    reshaping = ("grown", "shrunk", "stored", "removed")
    made_anew = (entry for entry in index.telling if entry.kind == "exact" and (entry.base is None or entry.base.shape != entry.shape))
    return any(entry.kind in reshaping for entry in index.telling) or any(made_anew)


def check_base_files(base: Checkpoint, pack: PackReader | None, *, verify: bool) -> list[str]:
    """Require that the base has what the pack leaves to it, or refers to, and return what the user should be told of it.

    Restoring and verifying both ask this, so that they agree. What the pack carries whole is checked where it is read.

    Args:
        base: The base.
        pack: The pack that tells which files there are; none: the base's own.
        verify: Whether files that are taken as they are must be the ones that the pack knew.

    Raises:
        BaseMismatchError: The base lacks a file (rule R11) or has another one (R12).
    """
    files = (pack.index.files or ()) if pack is not None else ()
    for entry in files:
        if (entry.blob is None or entry.base) and not is_descriptive(entry.name) and base.side_file(entry.name) is None:
            raise _other_file(base, entry, "no such file", "R11")
    return [note for entry in files if entry.blob is None or entry.base for note in _of_base(base, entry, verify)[1]]


def copy_side_files(
    base: Checkpoint,
    pack: PackReader | None,
    write: Callable[[str, bytes], None],
    *,
    verify: bool,
    dtype: DType | None,
) -> list[str]:
    """Write the side files of the result and return what the user should be told.

    Args:
        base: The base.
        pack: The pack that tells which files there are; none, or one made from a bare file: the base's files.
        write: Called with name and content of each file.
        verify: Whether files of the base must be the ones that the pack knew.
        dtype: Type that the weights were cast to, which config.json must then name.

    Raises:
        BaseMismatchError: The base lacks a file that the result needs, or has another one of that name.
        FormatError: A file in the pack is damaged.
    """
    notes = check_base_files(base, pack, verify=verify)
    if pack is None or pack.index.files is None:
        for file in base.side_files():
            write(file.name, with_dtype(file.name, file.read(), dtype))
        return []
    code = []
    for entry in pack.index.files:
        code += [entry.name] if entry.blob is not None and entry.name.endswith(".py") else []
        data = side_file_of(base, pack, entry, verify=verify)
        if data is not None:
            write(entry.name, with_dtype(entry.name, data, dtype))
    if code:
        notes.append(f"the pack brought Python code, read it before you run it: {', '.join(code)}")
    return notes


def read_side_file(base: Checkpoint, pack: PackReader | None, name: str) -> bytes | None:
    """Return one of the files that `copy_side_files` would write, or `None` where there is none of that name.

    Raises:
        BaseMismatchError: The base lacks it.
        FormatError: It is damaged in the pack.
    """
    if pack is None or pack.index.files is None:
        at_base = base.side_file(name)
        return None if at_base is None else at_base.read()
    entry = next((entry for entry in pack.index.files if entry.name == name), None)
    return None if entry is None else side_file_of(base, pack, entry, verify=False)


def check_intact(base: Checkpoint, pack: PackReader | None) -> None:
    """Read what a pack carries for a result that has no side files: what is damaged is refused, what the base lacks is not missed.

    Raises:
        FormatError: A file is damaged.
    """
    for entry in (pack.index.files or ()) if pack is not None else ():
        with suppress(BaseMismatchError):
            if pack is not None and entry.blob is not None:
                side_file_of(base, pack, entry, verify=True)


def side_file_of(base: BaseFiles, pack: PackReader, entry: FileEntry, *, verify: bool) -> bytes | None:
    """Return a file that a pack carries, or that it leaves to the base; none for a text that the base has no more.

    Raises:
        BaseMismatchError: The base lacks it, or has another one.
        FormatError: It is damaged in the pack.
    """
    if entry.blob is not None and not entry.base:
        return pack.side_file(entry)
    data, _ = _of_base(base, entry, verify)
    return pack.side_file(entry, data or b"") if entry.blob is not None else data


def _of_base(base: BaseFiles, entry: FileEntry, verify: bool) -> tuple[bytes | None, list[str]]:
    """Return the base's file that an entry stands for or refers to, in the form that has the digest, and what to tell of it."""
    at_base, wanted = base.side_file(entry.name), entry.base or entry.sha256
    may_differ = not entry.base and is_descriptive(entry.name)
    if at_base is None:
        if may_differ:
            return None, [f"the base has no {entry.name} any more, so the result has none"]
        raise _other_file(base, entry, "no such file", "R11")
    data = at_base.read() if may_differ or at_base.size <= DEFAULT_LIMITS.side_file_bytes else b""
    form = form_with(entry.name, data, wanted)
    if form is not None and (entry.base or len(form) == entry.size):
        return form, []
    if may_differ:
        return data, [f"the base's {entry.name} is not the one of packing; the result has the base's of today"]
    if verify or entry.base:
        raise _other_file(base, entry, f"{at_base.size:,} bytes of another content", "R12")
    return data, []


def _other_file(base: BaseFiles, entry: FileEntry, found: str, rule: str) -> BaseMismatchError:
    referred = bool(entry.base)
    fetch = f"Fetch {entry.name} of the base as it was at packing: the result needs it"
    what = f"the base has no side file {entry.name!r}" if rule == "R11" else f"side file {entry.name!r} is not the one"
    if not base.is_folder:
        fetch = f"Name the base's folder, with {entry.name} in it, or a .safetensors file as output, which has none beside it"
    return BaseMismatchError(
        f"{what} that the pack was made with" + (" and that its own refers to" if referred else ""),
        path=base.path,
        expected=f"sha256 {entry.base}" if referred else f"{entry.size:,} bytes, sha256 {entry.sha256}",
        found=found,
        rule=rule,
        hint=fetch + (" (--no-verify takes the one that is there)." if rule == "R12" and not referred else "."),
    )


def with_dtype(name: str, data: bytes, dtype: DType | None) -> bytes:
    """Make config.json name the type that the weights were cast to; transformers would cast them back."""
    if name.rpartition("/")[2] != "config.json" or dtype is None:
        return data
    with suppress(ValueError):
        config = json.loads(data)
        if isinstance(config, dict):
            named = [key for key in ("dtype", "torch_dtype") if key in config]
            if not named and "/" in name:  # not every part of a pipeline is a model of transformers
                return data
            named = named or ["torch_dtype"]
            return (json.dumps(config | dict.fromkeys(named, dtype.torch), indent=2) + "\n").encode()
    return data
