"""The side files of a result: carried by a pack, or the base's own, each checked by its SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress

from deltapack.checkpoint import Checkpoint
from deltapack.dtypes import DType
from deltapack.errors import BaseMismatchError
from deltapack.format.frames import pack_stream
from deltapack.format.index import FileEntry
from deltapack.format.reader import PackReader
from deltapack.format.writer import PackWriter

__all__ = ["copy_side_files", "file_entry", "side_files_bytes"]

_LEVEL = 19
"""zstd level of side files: they are small and written once."""


def file_entry(writer: PackWriter, name: str, data: bytes, *, carry: bool) -> FileEntry:
    """Describe a side file and, where the pack has to `carry` it, write its blob."""
    blob = writer.plain_blob(pack_stream(data, _LEVEL)) if carry else None
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest(), blob)


def side_files_bytes(base: Checkpoint, pack: PackReader | None) -> int:
    """Return the size of the side files of the result."""
    if pack is not None and pack.index.files is not None:
        return sum(file.size for file in pack.index.files)
    return sum(file.size for file in base.list_side_files(include_code=True)[0]) if base.is_folder else 0


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
    at_base = {file.name: file for file in base.list_side_files(include_code=True)[0]} if base.is_folder else {}
    if pack is None or pack.index.files is None:
        for file in at_base.values():
            write(file.name, _with_dtype(file.name, file.read(), dtype))
        return []
    code = []
    for entry in pack.index.files:
        if entry.blob is not None:
            data = pack.side_file(entry)
            code += [entry.name] if entry.name.endswith(".py") else []
        else:
            data = at_base[entry.name].read() if entry.name in at_base else b""
            known = entry.name in at_base and hashlib.sha256(data).hexdigest() == entry.sha256
            if not known and (verify or entry.name not in at_base):
                raise BaseMismatchError(
                    f"side file {entry.name!r} is not the one that the pack was made with",
                    path=base.path,
                    expected=f"sha256 {entry.sha256}",
                    found="another content" if entry.name in at_base else "no such file",
                    hint="Give the whole base folder, unmodified, or use --no-verify.",
                )
        write(entry.name, _with_dtype(entry.name, data, dtype))
    if code:
        return [f"the pack brought Python code, read it before you run it: {', '.join(code)}"]
    return []


def _with_dtype(name: str, data: bytes, dtype: DType | None) -> bytes:
    """Make config.json name the type that the weights were cast to; transformers would cast them back."""
    if name != "config.json" or dtype is None:
        return data
    with suppress(ValueError):
        config = json.loads(data)
        if isinstance(config, dict):
            named = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
            return (json.dumps(config | dict.fromkeys(named, dtype.torch), indent=2) + "\n").encode()
    return data
