"""The files beside the weights that a model needs to load: configuration, tokenizer, templates, licence."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deltapack.checkpoint.files import ReadFile
from deltapack.errors import CheckpointError, FormatError, LimitError
from deltapack.limits import DEFAULT_LIMITS, Limits

__all__ = ["LeftOut", "SideFile", "check_side_name", "is_side_file", "is_weight_file", "list_side_files"]

_MAX_DEPTH = 4
_SIDE = re.compile(r"\.(jsonl?|txt|model|jinja|md|ya?ml|vocab|merges|tiktoken|bpe|spm|spiece)")
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([.\-_ ].*)?", re.IGNORECASE)
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|gguf|ggml|onnx|onnx_data|h5|msgpack|ot|ckpt|npz|npy|pkl|pickle|joblib|dpk|tflite|pb|nemo"
    r"|distcp|engine|mlmodel|llamafile)"
)
_TRAINING = re.compile(r"trainer_state\.json|.*optimizer.*|.*scheduler\.(pt|bin)|rng_state.*|training_args.*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class LeftOut(NamedTuple):
    """A file that does not travel, and why.

    Attributes:
        name: Relative path with `/`; a folder ends with `/`.
        reason: A clause for the user.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class SideFile:
    """A file beside the weights.

    Attributes:
        name: Relative path with `/`.
        size: Bytes.
        path: Where it is.
    """

    name: str
    size: int
    path: Path

    def read(self) -> bytes:
        """Return the content.

        Raises:
            CheckpointError: It changed its size since it was listed, or cannot be read.
        """
        file = ReadFile(self.path)
        try:
            if file.size != self.size:
                raise CheckpointError("the file changed", path=self.path, expected=self.size, found=file.size)
            return file.read(0, self.size)
        finally:
            file.close()


def is_weight_file(name: str) -> bool:
    """Whether `name` (a file name) says weights of any kind, their index, or a pickle."""
    lower = name.lower()
    if lower.endswith(".index.json"):
        lower = lower[: -len(".index.json")]
    return bool(_WEIGHTS.fullmatch(os.path.splitext(lower)[1]))


def is_side_file(name: str, include_code: bool = False) -> bool:
    """Whether a file of this name travels with the weights."""
    return _reason_to_leave(name, include_code) is None


def list_side_files(
    folder: Path,
    include_code: bool = False,
    *,
    limits: Limits = DEFAULT_LIMITS,
    weights: Collection[str] = (),
) -> tuple[list[SideFile], list[LeftOut]]:
    """List what travels beside the weights of `folder`, and everything that does not.

    Links to files are followed (the Hugging Face cache is made of them), links to folders are not.

    Args:
        folder: The checkpoint.
        include_code: Whether `.py` files travel.
        limits: Bounds on size and number.
        weights: Files of the checkpoint itself, which are not to be mentioned.

    Returns:
        The files and what was left out, each sorted by name.

    Raises:
        LimitError: The files together exceed `limits`.
    """
    files: list[SideFile] = []
    left: list[LeftOut] = []
    pending: list[tuple[Path, str]] = [(folder, "")]
    while pending:
        where, prefix = pending.pop()
        try:
            entries = sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError as error:
            left.append(LeftOut(prefix, f"cannot be listed: {error.strerror or error}"))
            continue
        for entry in entries:
            name = prefix + entry.name
            if name in weights:
                continue
            if entry.is_dir():
                reason = _reason_to_skip_folder(entry, name)
                if reason is None:
                    pending.append((Path(entry.path), name + "/"))
                else:
                    left.append(LeftOut(name + "/", reason))
                continue
            found = _look_at(entry, name, include_code, limits)
            (files if isinstance(found, SideFile) else left).append(found)  # type: ignore[arg-type]
    total = sum(file.size for file in files)
    if len(files) > limits.side_files or total > limits.side_files_bytes:
        raise LimitError(
            "too many side files",
            path=folder,
            expected=f"at most {limits.side_files} files and {limits.side_files_bytes:,} bytes",
            found=f"{len(files)} files and {total:,} bytes",
            hint="Move what the model does not need out of the folder.",
        )
    return sorted(files, key=lambda file: file.name.encode()), sorted(left, key=lambda item: item.name)


def check_side_name(name: str, *, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check the name of a side file that comes out of a pack (spec/03-index.md section 3.7).

    Besides the rules of the format, hidden files (`.git/hooks/...`) and weights or pickles are refused: no pack
    needs them, and they could run or replace something.

    Raises:
        FormatError: The name is not safe to create below a folder.
    """
    parts = name.split("/")
    problem = None
    if not name or any(part in ("", ".", "..") for part in parts):
        problem = "an empty, '.' or '..' part"
    elif "\\" in name or ":" in name or _CONTROL.search(name) or not _is_unicode(name):
        problem = "a backslash, colon or control character"
    elif any(part.startswith(".") for part in parts):
        problem = "a hidden part"
    elif len(parts) > _MAX_DEPTH + 1 or len(name.encode()) > limits.name_bytes:
        problem = "too many parts or bytes"
    elif is_weight_file(parts[-1]):
        problem = "an ending of weights or pickles"
    if problem is not None:
        raise FormatError(f"the side file name {name!r} has {problem}", hint="The pack may be hostile.")


def _reason_to_skip_folder(entry: os.DirEntry[str], name: str) -> str | None:
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_symlink():
        return "a link to a folder"
    if entry.name == "__pycache__" or re.fullmatch(r"checkpoint-\d+|global_step\d+|runs|wandb", entry.name):
        return "cache or training state"
    return "nested too deep" if name.count("/") >= _MAX_DEPTH else _name_problem(name)


def _look_at(entry: os.DirEntry[str], name: str, include_code: bool, limits: Limits) -> SideFile | LeftOut:
    reason = _reason_to_leave(entry.name, include_code) or _name_problem(name)
    if reason is None:
        try:
            if not entry.is_file():
                return LeftOut(name, "a broken link" if entry.is_symlink() else "not a regular file")
            size = entry.stat().st_size
        except OSError as error:
            return LeftOut(name, f"cannot be read: {error.strerror or error}")
        if size <= limits.side_file_bytes:
            return SideFile(name, size, Path(entry.path))
        reason = f"larger than {limits.side_file_bytes:,} bytes"
    shown = name if _is_unicode(name) else name.encode(errors="surrogateescape").decode(errors="replace")
    return LeftOut(shown, reason)


def _reason_to_leave(name: str, include_code: bool) -> str | None:
    """Return why a file of this name does not travel, or None where it does."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden"
    if _TRAINING.fullmatch(name):
        return "training state"
    if is_weight_file(name):
        return "weights that the checkpoint does not use"
    if suffix == ".py":
        return None if include_code else "Python code, which travels only with --include-code"
    if _SIDE.fullmatch(suffix) or _LICENCE.fullmatch(name):
        return None
    return "not a kind of file that a model needs"


def _name_problem(name: str) -> str | None:
    try:
        check_side_name(name)
    except FormatError:
        return "its name cannot travel"
    return None


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
