"""The side files of a result: carried by a pack, or the base's own, each checked by its SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from deltapack.checkpoint import Checkpoint, SideFile
from deltapack.dtypes import DType
from deltapack.errors import BaseMismatchError
from deltapack.format.index import FileEntry, Index
from deltapack.format.reader import PackReader

__all__ = ["check_base_files", "choose_donor", "copy_side_files", "read_side_file", "side_files_bytes", "with_dtype"]


def side_files_bytes(base: Checkpoint, pack: PackReader | None) -> int:
    """Return the size of the side files of the result."""
    if pack is not None and pack.index.files is not None:
        return sum(file.size for file in pack.index.files)
    return sum(file.size for file in base.list_side_files(include_code=True)[0]) if base.is_folder else 0


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
        return shaping[0], (f"config and tokenizer files are from {shaping[0].path}, which changes the tensors' shapes",)
    every = {name for content in contents for name in content or {}}
    names = sorted(name for name in every if len({(content or {}).get(name) for content in contents}) > 1)
    which = f" ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})" if names else ""
    return None, (f"the packs carry different config or tokenizer files{which}; the base's are used, --prefer PACK changes that",)


_NAMED = 4
"""Files that a note names."""
_FOR_PEOPLE = re.compile(r"(.*/)?([^/]*\.md|(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([.\-_ ][^/]*)?)", re.IGNORECASE)
"""Cards, licences and other texts: they may differ where the models are of one kind."""


def _matters(reader: PackReader) -> dict[str, str] | None:
    """Return the digests of the side files of a pack that a model works with, by name; `None` where it was made from a bare file."""
    files = reader.index.files
    return None if files is None else {file.name: file.sha256 for file in files if not _FOR_PEOPLE.fullmatch(file.name)}


def _changes_shapes(index: Index) -> bool:
    """Whether a pack does more than add; what it makes others of is not gone."""
    kinds, pieces = ("grown", "shrunk", "stored", "removed"), index.pieces
    return any(entry.kind in kinds and not (entry.kind == "removed" and entry.name in pieces) for entry in index.entries)


def check_base_files(base: Checkpoint, pack: PackReader | None) -> None:
    """Require that the base has each file that the pack leaves to it; their contents are checked where they are read.

    Raises:
        BaseMismatchError: It lacks one (rule R11).
    """
    at_base = _files_of(base)
    for entry in (pack.index.files or ()) if pack is not None else ():
        if entry.blob is None and entry.name not in at_base:
            raise _other_file(base, entry, "no such file", "R11")


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
        BaseMismatchError: The base lacks a file or has another one of that name.
        FormatError: A file in the pack is damaged.
    """
    check_base_files(base, pack)
    at_base = _files_of(base)
    if pack is None or pack.index.files is None:
        for file in at_base.values():
            write(file.name, with_dtype(file.name, file.read(), dtype))
        return []
    code = []
    for entry in pack.index.files:
        code += [entry.name] if entry.blob is not None and entry.name.endswith(".py") else []
        write(entry.name, with_dtype(entry.name, _content(base, at_base.get(entry.name), pack, entry, verify), dtype))
    if code:
        return [f"the pack brought Python code, read it before you run it: {', '.join(code)}"]
    return []


def read_side_file(base: Checkpoint, pack: PackReader | None, name: str) -> bytes | None:
    """Return one of the files that `copy_side_files` would write, or `None` where there is none of that name.

    Raises:
        BaseMismatchError: The base lacks it.
        FormatError: It is damaged in the pack.
    """
    at_base = _files_of(base).get(name)
    if pack is None or pack.index.files is None:
        return None if at_base is None else at_base.read()
    entry = next((entry for entry in pack.index.files if entry.name == name), None)
    return None if entry is None else _content(base, at_base, pack, entry, False)


def _files_of(base: Checkpoint) -> dict[str, SideFile]:
    return {file.name: file for file in base.list_side_files(include_code=True)[0]} if base.is_folder else {}


def _content(base: Checkpoint, at_base: SideFile | None, pack: PackReader, entry: FileEntry, verify: bool) -> bytes:
    """Return a file that a pack carries, or that it leaves to the base."""
    if entry.blob is not None:
        return pack.side_file(entry)
    if at_base is None:
        raise _other_file(base, entry, "no such file", "R11")
    data = at_base.read()
    if verify and (len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256):
        raise _other_file(base, entry, "another content", "R12")
    return data


def _other_file(base: Checkpoint, entry: FileEntry, found: str, rule: str) -> BaseMismatchError:
    return BaseMismatchError(
        f"side file {entry.name!r} is not the one that the pack was made with",
        path=base.path,
        expected=f"{entry.size} bytes, sha256 {entry.sha256}",
        found=found,
        rule=rule,
        hint="Give the whole base folder, unmodified" + (", or use --no-verify." if rule == "R12" else "."),
    )


def with_dtype(name: str, data: bytes, dtype: DType | None) -> bytes:
    """Make config.json name the type that the weights were cast to; transformers would cast them back."""
    if name != "config.json" or dtype is None:
        return data
    with suppress(ValueError):
        config = json.loads(data)
        if isinstance(config, dict):
            named = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
            return (json.dumps(config | dict.fromkeys(named, dtype.torch), indent=2) + "\n").encode()
    return data
