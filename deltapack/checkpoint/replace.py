"""May this output be written, and how does it take its place: all at once, and only over what this program wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from deltapack.checkpoint.begun import check_remote_output
from deltapack.checkpoint.manifest import check_own, first_other, listed
from deltapack.checkpoint.safetensors import OWN_METADATA, says_ours
from deltapack.errors import OutputError
from deltapack.format.atomic import fsync_folder, sweep, writing
from deltapack.format.placing import place
from deltapack.limits import DEFAULT_LIMITS
from deltapack.sources.identity import Identity
from deltapack.sources.inputs import refuse_input
from deltapack.sources.remote_path import RemotePath

__all__ = ["check_output", "check_unlisted", "swap_in"]


def check_output(out: Path, *, folder: bool, force: bool, unlisted: bool = False, head: bytes = b"") -> None:
    """Refuse an output that cannot be created, or that `force` must not replace.

    An existing folder is replaced as a whole, so everything in it must be what this program wrote (`manifest.py`). A folder
    without a list, of an older version, is refused, or with `unlisted` left to `check_unlisted`, which knows what is written. An existing
    file must say that this program wrote it, or begin with `head`, with which the new one begins: whether it is the same is for the caller
    to see before it is replaced.

    Raises:
        OutputError: It exists and is not ours to replace, or its parent folder is missing.
    """
    if isinstance(out, RemotePath):
        check_remote_output(out, folder=folder, force=force)
        return
    with writing(out):
        _check_here(out, folder=folder, force=force, unlisted=unlisted, head=head)


def _check_here(out: Path, *, folder: bool, force: bool, unlisted: bool, head: bytes) -> None:
    refuse_input(out)
    if not out.name or out.name == "..":
        raise OutputError("the output has no name", path=out)
    if not out.parent.is_dir():
        raise OutputError("the folder of the output does not exist", path=out.parent, hint="Create it first.")
    if not os.path.lexists(out):
        return
    if out.is_symlink():
        raise OutputError("the output is a symbolic link", path=out, hint="Name what it points to, or remove it.")
    if out.is_dir() != folder:
        kind = "a folder" if out.is_dir() else "a file"
        raise OutputError(f"the output exists and is {kind}", path=out, hint="Choose another name.")
    if folder and not any(out.iterdir()):
        return
    if not force:
        sweep(out)
        raise OutputError("the output exists", path=out, hint="Remove it, choose another name, or use --force.")
    if folder and (listed(out) or not unlisted):
        check_own(out, "checkpoint")
    elif not folder:
        _check_file(out, head)


def _check_file(out: Path, like: bytes) -> None:
    """Refuse to replace a file that neither says that it was restored or merged nor begins with `like`; an empty one is nothing to lose."""
    if not out.is_file():
        raise OutputError("the output is not a regular file", path=out)
    hint = "Move or remove it yourself, or choose another name."
    with writing(out), open(out, "rb") as file:
        head = file.read(9)
        if not head:
            return
        if head[8:] != b"{":
            raise OutputError("the output exists and is no safetensors file", path=out, hint=hint)
        length = int.from_bytes(head[:8], "little")
        header = b"{" + file.read(length - 1) if length <= DEFAULT_LIMITS.header_bytes else b""
    if not says_ours(header) and head[:8] + header != like:
        # What an exact pack restores is the fine-tune's own file, byte for byte: it cannot say who wrote it.
        what = "the output is a file that deltapack did not write, or restored byte for byte, so that nothing in it says so"
        expected = f"{OWN_METADATA}version or the like in its metadata"
        raise OutputError(what, path=out, expected=expected, found="none", hint=hint)


def check_unlisted(out: Path, new: Path, heads: Mapping[str, int] | None = None) -> None:
    """Refuse to replace a folder without a list by `new`, unless everything in it is there again, byte for byte.

    Raises:
        OutputError: Something in it is not; it is named.
    """
    if not out.is_dir() or listed(out):
        return
    other = first_other(out, new, heads)
    if other is not None:
        raise OutputError(
            "the output folder may hold files of others: it has no list of what deltapack wrote, and not all in it would be written again",
            path=out,
            found=other,
            hint="Move or remove the folder yourself, or choose another output.",
        )


def swap_in(temporary: Path, out: Path, before: Identity | None) -> None:
    """Give the finished folder `temporary` the name `out`, durably; a folder of that name is swapped out, then removed.

    At every moment `out` is the old or the new folder, where the system can exchange names (Linux); elsewhere there
    is a moment without either, and the old one is put back when the step fails.

    Args:
        temporary: The new folder, beside `out`.
        out: The final name.
        before: What was there when the work began, of `seen_at`; anything else stays.

    Raises:
        InputChangedError: What was read for it changed meanwhile.
        OSError: As the system says.
        OutputError: Something came there meanwhile; or the new folder is in place, but the old one could not be removed.
    """
    if os.name == "nt" and before is not None and out.is_dir() and not any(out.iterdir()):
        out.rmdir()
        before = None
    place(temporary, out, before)
    fsync_folder(out.parent)  # else a power cut could bring back the old name, over a folder whose files are gone
    try:
        if os.path.lexists(temporary):
            shutil.rmtree(temporary)
    except OSError as error:
        what = "the new checkpoint is in place, but the old one could not be removed"
        raise OutputError(what, path=out, found=str(temporary), hint=f"Remove it by hand ({error.strerror}).") from error
