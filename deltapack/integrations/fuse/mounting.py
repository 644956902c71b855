"""Mounting a shelf where the system has FUSE."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltapack.checking import as_path
from deltapack.errors import BackendError, RecipeError
from deltapack.integrations.fuse.operations import ShelfOperations
from deltapack.virtual.shelf import Shelf

__all__ = ["mount"]

_DEVICE = Path("/dev/fuse")
_SIGNAL = 8
"""What libfuse 3 returns where a signal ended what was mounted; libfuse 2 returns 0."""


def _unheard() -> None:
    return


def mount(shelf: Shelf, mountpoint: str | Path, log: Callable[[str], None] = print, ready: Callable[[], None] = _unheard) -> None:
    """Mount a shelf, read-only, and answer until it is unmounted (`fusermount -u MOUNTPOINT`, or Ctrl-C).

    Args:
        shelf: What is mounted; whoever opened it closes it.
        mountpoint: An empty folder.
        log: Told why something cannot be read.
        ready: Called when nothing is missing, right before the system is asked to mount.

    Raises:
        BackendError: mfusepy, libfuse or the device is missing, or the system refuses to mount.
        RecipeError: The mount point is no empty folder.
    """
    where = as_path("the mount point", mountpoint)
    try:
        empty = where.is_dir() and not any(where.iterdir())
    except OSError:
        empty = False
    if not empty:
        raise RecipeError("the mount point is no empty folder", path=where, hint="Make one with mkdir.")
    library = _library()
    operations = _operations(library, shelf, log)
    ready()
    try:
        # One read of the system is 128 KiB; nothing changes while it is mounted but for new packs, so the system may keep what it has read.
        library.FUSE(operations, str(where), foreground=True, nothreads=False, ro=True, fsname="deltapack", subtype="deltapack")
    except RuntimeError as error:
        if error.args == (_SIGNAL,):
            return
        hint = "Its own message stands above. `deltapack serve-files` needs no FUSE."
        raise BackendError("the system did not mount it", path=where, found=f"code {error}", hint=hint) from error


def _library() -> Any:
    """Import mfusepy, which loads libfuse.

    Raises:
        BackendError: One of them, or the device, is missing.
    """
    other = "`deltapack serve-files` needs none of it."
    try:
        import mfusepy
    except ImportError as error:
        raise BackendError("mounting needs mfusepy", found=str(error), hint=f"pip install 'deltapack[mount]'; {other}") from error
    except (OSError, AttributeError) as error:
        hint = f"Install libfuse, such as by `apt install fuse3`; {other}"
        raise BackendError("mounting needs libfuse", found=str(error), hint=hint) from error
    if os.name == "posix" and os.uname().sysname == "Linux" and not _DEVICE.exists():
        hint = f"A container needs this device and the capability SYS_ADMIN; {other}"
        raise BackendError("mounting needs the device /dev/fuse", found="no such device", hint=hint)
    return mfusepy


def _operations(library: Any, shelf: Shelf, log: Callable[[str], None]) -> Any:
    """Return the operations as a class of the library, whose own ones answer that there is no such thing."""

    class Mounted(ShelfOperations, library.Operations):  # type: ignore[misc]
        """A mounted shelf."""

    return Mounted(shelf, log)
