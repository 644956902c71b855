"""The side files, and the heads of weight files, of a pack that is made of several ones that follow one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deltapack.errors import RecipeError
from deltapack.format.forms import form_with
from deltapack.format.index import FileEntry
from deltapack.format.reader import PackReader
from deltapack.format.writer import PackWriter

__all__ = ["join_files", "join_heads"]


@dataclass(frozen=True)
class _File:
    """A side file so far.

    Attributes:
        entry: What the new pack says of it: it refers to the base of the first pack, if to any.
        pack: The pack that holds its blob.
        data: Its content, where a pack holds it after the content of an earlier one.
    """

    entry: FileEntry
    pack: PackReader
    data: bytes | None = None


def join_files(writer: PackWriter, links: Sequence[PackReader]) -> tuple[FileEntry, ...] | None:
    """Write the side files that the last pack leaves; none where no pack speaks of any.

    Raises:
        FormatError: A file is damaged in a pack.
        RecipeError: The base's file is needed to know one.
    """
    files: dict[str, _File] | None = None
    for link in (link for link in links if link.index.files is not None):
        files = _after(link, link.index.files or (), files)
    return None if files is None else tuple(_written(writer, file) for file in files.values())


def join_heads(writer: PackWriter, links: Sequence[PackReader]) -> tuple[FileEntry, ...]:
    """Write the heads of the weight files that the last pack gives; none where it says nothing of them. Raises as `join_files`."""
    heads: dict[str, _File] | None = None
    for link in links:
        heads = _after(link, link.index.containers, heads)
    return tuple(_written(writer, head) for head in (heads or {}).values())


def _after(link: PackReader, entries: Sequence[FileEntry], before: Mapping[str, _File] | None) -> dict[str, _File]:
    """Return files after one more pack, in the order of a pack."""
    return {entry.name: _next(link, entry, before) for entry in sorted(entries, key=lambda entry: entry.name.encode())}


def _next(link: PackReader, entry: FileEntry, before: Mapping[str, _File] | None) -> _File:
    """Return a file after one more pack; `before` are those of the packs before it, none where they leave the base's.

    Raises:
        FormatError: It is damaged in the pack.
        RecipeError: The base's file is needed to know it.
    """
    if (entry.blob is not None and not entry.base) or before is None:
        return _File(entry, link)
    found = before.get(entry.name)
    if entry.blob is None and found is not None and found.entry.sha256 == entry.sha256:
        return found
    if entry.blob is not None and found is not None and found.entry.blob is None:
        return _File(entry, link)  # refers to the base's file, which no pack has changed
    if entry.blob is not None and found is not None and not found.entry.base:
        content = found.data if found.data is not None else found.pack.side_file(found.entry)
        form = form_with(entry.name, content, entry.base)
        if form is not None:
            data = link.side_file(entry, form)
            return _File(replace(entry, base=""), link, data)
    hint = "Give the base: --base BASE packs what the chain restores anew."
    raise RecipeError(f"the file {entry.name!r} cannot be known without the base's", path=link.path, hint=hint)


def _written(writer: PackWriter, file: _File) -> FileEntry:
    """Copy or write a file and return its entry."""
    if file.entry.blob is None:
        return file.entry
    if file.data is not None:
        return writer.side_file(file.entry.name, file.data, carry=True)
    file.pack.check_side_file(file.entry)
    return replace(file.entry, blob=writer.copy_blob(file.pack, file.entry.blob))
