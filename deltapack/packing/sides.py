"""The side files of a compression: which travel, and how a pack holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deltapack.checkpoint import Checkpoint, LeftOut, SideFile, parse_size
from deltapack.checkpoint.links import LEADS_OUT
from deltapack.checkpoint.sidefiles import AS_ASKED, is_config_or_tokenizer
from deltapack.errors import RecipeError
from deltapack.format.index import FileEntry
from deltapack.format.writer import PackWriter
from deltapack.limits import DEFAULT_LIMITS

__all__ = ["list_sides", "missed", "sides_with_base", "write_sides"]


def list_sides(
    finetuned: Checkpoint, include_code: bool, max_side_file: int | str | None, leave_out: Sequence[str], follow_links: bool = False
) -> tuple[list[SideFile], list[LeftOut]]:
    """List what travels beside the weights of a fine-tune, and what does not.

    Raises:
        LimitError: A file is larger than `max_side_file`, or all together are too large.
        RecipeError: The size is none, or a pattern fits no file; or what the model is loaded with is a link out of the folder, and links
            are not followed.
        UnsupportedError: The folder has weights that are not read, such as a variant in a second precision.
    """
    for error in finetuned.unread:  # weights never stay behind in silence
        raise error
    limits = DEFAULT_LIMITS
    if max_side_file is not None:
        size = parse_size(max_side_file) if isinstance(max_side_file, str) else max_side_file
        if size < 0:
            raise RecipeError("max_side_file is out of range", expected="at least 0 bytes", found=size)
        limits = replace(limits, packed_file_bytes=size)
    files, left = finetuned.list_side_files(include_code, limits=limits, leave_out=leave_out, follow_links=follow_links)
    for name in [item.name for item in left if item.reason == LEADS_OUT and is_config_or_tokenizer(item.name)]:
        what = "what the model is loaded with is a link that leads out of the folder"
        hint = f"--follow-links packs what it points to, --leave-out '{name}' leaves it behind."
        raise RecipeError(what, path=finetuned.path, found=name, hint=hint)
    return files, left


def missed(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a warning where the user leaves behind what the model is loaded with."""
    names = [name for name, reason in left_out if reason == AS_ASKED and is_config_or_tokenizer(name)]
    if not names:
        return []
    return [f"{', '.join(names)} left out as asked for: what is restored lacks {'them' if len(names) > 1 else 'it'} and may not load"]


def sides_with_base(base: Checkpoint, files: Sequence[SideFile]) -> Iterator[tuple[str, bytes, bytes | None]]:
    """Yield name and content of each file in the order of a pack, and the base's of that name, if it has one of a size that can be read."""
    for file in sorted(files, key=lambda file: file.name.encode()):
        twin = base.side_file(file.name)
        at_hand = twin is not None and twin.size <= DEFAULT_LIMITS.side_file_bytes
        yield file.name, file.read(), twin.read() if twin is not None and at_hand else None


def write_sides(writer: PackWriter, base: Checkpoint, finetuned: Checkpoint, files: Sequence[SideFile]) -> tuple[FileEntry, ...] | None:
    """Write the side files that differ from the base's; return all of them, or none for a bare file."""
    if not finetuned.is_folder:
        return None
    return tuple(writer.side_file(name, data, carry=before != data, before=before) for name, data, before in sides_with_base(base, files))
