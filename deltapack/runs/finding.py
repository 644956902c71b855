"""Checkpoints of a training run as trainers lay them out: a folder or file for each step, told by its name."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from deltapack.checkpoint.formats import format_of
from deltapack.checkpoint.sidefiles import is_training_state
from deltapack.errors import NotACheckpointError
from deltapack.format.atomic import raise_error

__all__ = ["Found", "Signature", "changed_since", "checkpoints_in", "others_in", "signature_of", "step_of"]

Signature = tuple[tuple[str, int, int], ...]
"""Name, size and time of change of each file: what is being written has another one soon."""
_STEP = re.compile(r"(?:.*[^a-z0-9])?(?:checkpoint|ckpt|global_?step|step|iter(?:ation)?)[-_=]?(\d{1,15})(?:\.[a-z]+)?", re.IGNORECASE)
_UNFINISHED = re.compile(r"[._]?(tmp|temp|partial)([^a-z0-9].*)?|.*[^a-z0-9](tmp|temp|partial|incomplete)", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A checkpoint of a run.

    Attributes:
        step: Its step.
        path: Its folder or file.
    """

    step: int
    path: Path


def step_of(path: Path) -> int | None:
    """Return the step of what may be a checkpoint, by its name; none where the name says no step, or something unfinished.

    >>> [step_of(Path(name)) for name in ("checkpoint-500", "step_7", "global_step20", "epoch=1-step=40.ckpt", "tmp-checkpoint-5", "runs")]
    [500, 7, 20, 40, None, None]
    """
    match = _STEP.fullmatch(path.name)
    if match is None or path.name.startswith(".") or _UNFINISHED.fullmatch(path.name) or is_training_state(path.name):
        return None
    return int(match[1])


def checkpoints_in(folder: Path) -> list[Found]:
    """Return the checkpoints in a folder, by step; of several of one step, by name.

    Raises:
        NotACheckpointError: The folder cannot be listed.
    """
    found = ((step_of(path), path) for path in _listed(folder))
    return sorted((Found(step, path) for step, path in found if step is not None), key=lambda one: (one.step, one.path.name))


def others_in(folder: Path) -> list[Path]:
    """Return what a folder holds besides, and might be checkpoints under other names: folders and files of weights, none of them hidden.

    Raises:
        NotACheckpointError: The folder cannot be listed.
    """
    return [path for path in _listed(folder) if step_of(path) is None and not path.name.startswith(".")]


def _listed(folder: Path) -> list[Path]:
    """Return folders, and files that may be weights, by name.

    Raises:
        NotACheckpointError: The folder cannot be listed.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise NotACheckpointError(f"cannot list the folder: {error.strerror or error}", path=folder) from error
    return [Path(entry.path) for entry in entries if format_of(entry.name) is not None or _may_be_folder(entry)]


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or cannot be looked at, as a link that leads to itself: whoever opens it says what is wrong."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def signature_of(path: Path) -> Signature | None:
    """Return what changes as long as somebody writes to a checkpoint; of a link that leads to itself, its own; none where it is gone."""
    rows: list[tuple[str, int, int]] = []
    try:
        if _leads_nowhere(path):
            status = path.lstat()
            return ((path.name, status.st_size, status.st_mtime_ns),)
        if path.is_file():
            status = path.stat()
            return ((path.name, status.st_size, status.st_mtime_ns),)
        for where, folders, files in os.walk(path, onerror=raise_error):
            folders.sort()
            for name in sorted(files):
                status = os.stat(os.path.join(where, name))
                rows.append((os.path.relpath(os.path.join(where, name), path), status.st_size, status.st_mtime_ns))
    except OSError:
        return None
    return tuple(rows) if path.is_dir() else None


def _leads_nowhere(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def changed_since(path: Path, then: int) -> bool:
    """Whether a file of a checkpoint may have changed since some time, in nanoseconds: cheap, and yes where only its inode has.

    A copy that keeps the times of its files is found as well. Of what is gone nothing has changed.
    """
    try:
        files = (
            [path] if path.is_file() else [Path(where, name) for where, _, names in os.walk(path, onerror=raise_error) for name in names]
        )
        return any(max(status.st_mtime_ns, status.st_ctime_ns) >= then for status in map(os.stat, files))
    except OSError:
        return False
