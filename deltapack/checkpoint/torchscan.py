"""What torch's unpickler is kept from: pickles that are small and take for ever.

It is safe in what it calls, and builds what a pickle says: a tuple of a tuple twice, sixty times over, takes 600 bytes and 2^60 steps
where it is the key of a dict, or part of a message. So a pickle is read as data first, where such tuples, and storages that are called
by anything but plain values, are refused.
"""

from __future__ import annotations

from deltapack.checkpoint.pickled import scan_pickle
from deltapack.errors import CheckpointError
from deltapack.limits import Limits
from deltapack.sources.reading import Readable

__all__ = ["check_pickle", "check_stream"]

_PICKLES = 5
"""Pickles at the begin of an old file: a number, a version, the system, the document, the keys of its storages."""


def check_pickle(file: Readable, data: bytes) -> None:
    """Require that a pickle takes no more time and memory than its length says.

    Raises:
        CheckpointError: It is cut or damaged, or no pickler writes such a one.
        LimitError: It has too many instructions, or makes too many lists and dicts.
    """
    scan_pickle(data, 0, file.path)


def check_stream(file: Readable, limits: Limits) -> None:
    """Require the same of all pickles of a file that is no archive, and that it has what its tensors are made of. Raises as `check_pickle`.

    torch fills the storages that the last pickle lists; one that it does not list would stay memory that nobody wrote.
    """
    data, at = file.read(0, min(file.size, limits.header_bytes)), 0
    if not data.startswith(b"\x80"):
        hint = "It is cut or damaged, or torch.save did not write it."
        raise CheckpointError("cannot be read as a PyTorch file", path=file.path, hint=hint)
    used, listed = set[object](), object()
    for _ in range(_PICKLES):
        listed, references, at = scan_pickle(data, at, file.path)
        # What refers to a module is refused by torch, with a better word.
        used |= {one[2] for one in references if isinstance(one, tuple) and len(one) > 2 and one[0] != "module"}
    missing = used - {key for key in listed if isinstance(key, str)} if isinstance(listed, list) else used
    if missing:
        raise CheckpointError("the file does not have what its tensors are made of", path=file.path, found=f"{len(missing)} missing")
