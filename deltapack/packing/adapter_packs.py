"""An adapter of PEFT as a pack: that of the fine-tune that it makes of its base, exactly, where a pack is wanted."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from deltapack.adapters import adapter_folder
from deltapack.format.atomic import writing
from deltapack.packing.compressing import compress
from deltapack.packing.recipe import Recipe
from deltapack.sources.locks import scratch

__all__ = ["pack_of_adapter", "packs_of_adapters"]

_READ = "fine-tune: "
"""How `compress` begins what was noticed as the fine-tune, here the adapter, was read."""


def pack_of_adapter(base: Path, adapter: Path, out: Path, *, weight_files: str | None = None, workers: int | None = None) -> list[str]:
    """Pack the fine-tune that an adapter makes of its base, bit for bit; return what was noticed. Raises as `compress`.

    What `compress` says of the pack and of side files is left out: nobody sees this pack.
    """
    report = compress(base, adapter, out, recipe=Recipe(exact=True), weight_files=weight_files, workers=workers)
    read = [note.removeprefix(_READ) for note in report.notes if note.startswith(_READ)]
    told = [note if note.startswith(adapter.name) else f"{adapter.name}: {note}" for note in read]
    return [*told, *(f"{adapter.name}: {warning}" for warning in report.warnings)]


def packs_of_adapters(
    stack: ExitStack, base: Path, paths: list[Path], beside: Path | None, *, weight_files: str | None = None, workers: int | None = None
) -> tuple[list[Path], list[str]]:
    """Return paths with a pack in the place of each adapter, and what was noticed; the packs are removed when the stack is closed.

    Args:
        stack: Removes packs that are made.
        base: The base of them all.
        paths: Packs, folders of adapters, or their files.
        beside: A folder that is there, for packs that are made; the system's one for temporary files unless given.
        weight_files: Which weights of the base count.
        workers: Threads.

    Raises:
        NotACheckpointError: A file of an adapter has no config beside it.
        OutputError: A pack cannot be written. Others as of `compress`.
    """
    packs, notes = [], list[str]()
    for path in paths:
        folder = adapter_folder(path)
        if folder is None:
            packs.append(path)
            continue
        with writing(beside or Path(tempfile.gettempdir())):
            place = stack.enter_context(scratch(".deltapack-", beside))
        packs.append(place / f"{folder.resolve().name}.dpk")
        notes += pack_of_adapter(base, path, packs[-1], weight_files=weight_files, workers=workers)
    return packs, notes
