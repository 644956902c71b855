"""Names of files and folders that a pack may bring: rule R13 of spec/04-reader-rules.md, the one table for readers and writers."""

from __future__ import annotations

from collections.abc import Iterable

from deltapack.errors import FormatError
from deltapack.format.fields import CONTROL
from deltapack.limits import DEFAULT_LIMITS, Limits

__all__ = ["MOST_PARTS", "PART_BYTES", "check_apart", "check_path", "check_side_name", "fold", "is_weight_file"]

PART_BYTES = 255
"""No file system takes a longer name."""
MOST_PARTS = 5
"""Parts of the name of a side file: nothing that a model needs lies deeper."""
_SHARDS = (".safetensors", ".safetensors.index.json")
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".ckpt", ".npz", ".npy"),
    *(".pkl", ".pickle", ".joblib", ".dpk", ".tflite", ".pb", ".nemo", ".distcp", ".engine", ".mlmodel", ".llamafile"),
)
_HINT = "Do not trust this pack."


def is_weight_file(name: str) -> bool:
    """Whether `name` (a file name) says weights of any kind, their index, or a pickle.

    >>> [is_weight_file(name) for name in ("model.bin", "X.PKL", "pytorch_model.bin.index.json", "tokenizer.model", "bin")]
    [True, True, True, False, False]
    """
    return name.lower().removesuffix(".index.json").endswith(_WEIGHTS)


def fold(name: str) -> str:
    """Return what file systems may make of a name that do not tell a to z from A to Z."""
    return name.translate(_FOLDED)


_FOLDED = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def check_apart(names: Iterable[str], what: str) -> None:
    """Refuse names that are one to a file system that does not tell upper case from lower case.

    Raises:
        FormatError: Rule R13 is broken.
    """
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(fold(name), name)
        if other != name:
            raise FormatError(f"two names of {what} differ in case alone", rule="R13", found=f"{other!r} and {name!r}", hint=_HINT)


def check_path(name: str, what: str, limits: Limits, *, most: int = PART_BYTES, plain: bool = False, is_weights: bool = False) -> None:
    """Refuse a name that could leave the output folder, hide in it, confuse a file system or replace the tensors.

    Args:
        name: The name.
        what: Whose it is, for the message.
        limits: Bounds on its length.
        most: Bytes of one part.
        plain: Whether it must have one part only.
        is_weights: Whether its last part must end as one of weights does, in lower case, instead of must not.

    Raises:
        FormatError: Rule R13 is broken.
    """
    parts = name.split("/")
    problem = None
    if not _is_unicode(name) or set("\\:") & set(name) or CONTROL.search(name):
        problem = "a backslash, colon or control character"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "an empty, '.' or '..' part"
    elif any(part.startswith(".") for part in parts):
        problem = "a hidden part"
    elif len(name.encode()) > limits.name_bytes or any(len(part.encode()) > most for part in parts) or (plain and len(parts) > 1):
        problem = "too many parts or bytes"
    elif any(part.lower().endswith(_SHARDS) for part in parts[: -1 if is_weights else None]):
        problem = "an ending of weights"
    elif is_weights and not parts[-1].endswith(_SHARDS):
        problem = "an ending that is not one of weight files"
    if problem is not None:
        raise FormatError(f"{what} has a name that is not a plain path: it has {problem}", rule="R13", found=name, hint=_HINT)


def check_side_name(name: str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check the name of a side file (spec/03-index.md section 3.7): what no output would get, no pack may have.

    Besides the rules of paths, weights and pickles are refused: no pack needs them, and they could run, or be loaded for the tensors.

    Raises:
        FormatError: Rule R13 is broken.
    """
    check_path(name, "a side file", limits)
    parts = name.split("/")
    if len(parts) > MOST_PARTS:
        what = f"a side file lies deeper than {MOST_PARTS - 1} folders"
        raise FormatError(what, rule="R13", expected=f"at most {MOST_PARTS} parts", found=name, hint=_HINT)
    if is_weight_file(parts[-1]):
        raise FormatError("a side file has an ending of weights or pickles", rule="R13", found=name, hint=_HINT)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
