"""Use case: a pack in numbered parts, or one file of parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltapack.checking import as_pack, as_path
from deltapack.checkpoint import size_of
from deltapack.errors import OutputError
from deltapack.format.atomic import check_new_file
from deltapack.format.reader import PackReader
from deltapack.format.splitting import write_parts
from deltapack.kinds import PACK_FILE, check_output_name
from deltapack.reports import Report
from deltapack.sources.inputs import guarded
from deltapack.sources.remote_path import RemotePath

__all__ = ["SplitReport", "split"]


@dataclass(frozen=True)
class SplitReport(Report):
    """What `split` did.

    Attributes:
        pack: The name of the whole.
        pack_bytes: Bytes of all parts.
        parts: Names of the parts, in order.
        index: Name of their index.
    """

    pack: Path
    pack_bytes: int
    parts: list[str]
    index: str


@guarded
def split(pack: str | Path, out: str | Path | None = None, *, max_part_size: int | str, force: bool = False) -> SplitReport:
    """Write a pack in parts: `NAME-00001-of-00004.dpk` and so on, and `NAME.dpk.index.json`, which is there last.

    Every function that takes a pack takes the index, the first part, or `NAME.dpk` for all of them. `cat` joins parts to the pack again.

    Args:
        pack: The pack; one that comes in parts is cut anew, under another name, as no input is overwritten.
        out: The name of the whole, `NAME.dpk`; beside the pack, and called as it is, unless given.
        max_part_size: The most bytes of a part, or text such as `"5GB"`.
        force: Whether to replace parts that are there.

    Raises:
        FormatError: The pack is damaged.
        OutputError: Parts exist or cannot be written.
        RecipeError: An argument is out of range, or there would be more than 1,000 parts.
    """
    size = size_of("max_part_size", max_part_size)
    with PackReader(as_pack("the pack", pack)) as reader:
        target = reader.whole_path if out is None else as_path("out", out)
        check_output_name(target, PACK_FILE)
        if not isinstance(target, RemotePath):
            check_new_file(target, force=True)
        if out is not None and target != reader.path and target.exists():
            hint = "Its name would stand for that file, not for the parts: remove it, or choose another name."
            raise OutputError("a pack of this name exists", path=target, hint=hint)
        parts = write_parts(reader, target, size, force=force)
        names = [part.name for part in parts.parts]
        return SplitReport(target, parts.size, names, f"{target.name}.index.json")
