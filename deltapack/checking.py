"""What Python callers pass: a number, a path, a list of paths; anything else is one of our own errors, before work begins."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from deltapack.errors import RecipeError
from deltapack.sources.parts import parts_index_of
from deltapack.sources.places import checkpoint_at, pack_at, path_of
from deltapack.sources.urls import is_url

__all__ = [
    "as_checkpoint",
    "as_count",
    "as_items",
    "as_number",
    "as_one_file",
    "as_pack",
    "as_pair",
    "as_path",
    "as_paths",
    "as_text",
    "pack_exists",
]

_LONGEST = 60


def as_number(what: str, value: object, *, path: Path | None = None) -> float:
    """Return a number as a float: a Python, numpy or torch scalar, but no text, as `"0.9"` may be a number that was not read.

    >>> as_number("weight", 1)
    1.0

    Raises:
        RecipeError: It is none, or beyond f64.
    """
    if not isinstance(value, (bool, str, bytes)) and hasattr(value, "__float__"):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise RecipeError(f"{what} is not a number that a float can hold", path=path, found=_shown(value)) from error
    raise RecipeError(f"{what} is not a number", path=path, expected="a number", found=_shown(value))


def as_count(what: str, value: object, expected: str = "a whole number") -> int:
    """Return a whole number.

    Raises:
        RecipeError: It is none.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise RecipeError(f"{what} is not a whole number", expected=expected, found=_shown(value))


def as_text(what: str, value: object) -> str:
    """Return a text.

    Raises:
        RecipeError: It is none.
    """
    if isinstance(value, str):
        return value
    raise RecipeError(f"{what} is not a text", expected="a text", found=_shown(value))


def as_items(what: str, value: object, expected: str) -> tuple[object, ...]:
    """Return what is in a list.

    Raises:
        RecipeError: It is no list; a text, whose characters nobody means, or a mapping.
    """
    if isinstance(value, (str, bytes, os.PathLike, Mapping)) or not isinstance(value, Iterable):
        raise RecipeError(f"{what} is not a list", expected=f"a list of {expected}", found=_shown(value))
    return tuple(value)


def as_pair(what: str, value: object) -> tuple[str, str]:
    """Return two texts.

    Raises:
        RecipeError: They are not.
    """
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(text, str) for text in value):
        return value[0], value[1]
    raise RecipeError(f"{what} is not a pair of texts", expected="two texts", found=_shown(value))


def as_path(what: str, value: object) -> Path:
    """Return one path; of an address (`https://`, `s3://`) that of what is there.

    Raises:
        RecipeError: It is none, or an address that is not read; of a list, the message says so.
    """
    return path_of(_path_like(what, value))


def as_checkpoint(what: str, value: object) -> Path:
    """Return where a checkpoint is: as `as_path`, or the folder that a repository of the Hugging Face Hub was fetched into.

    Raises:
        BackendError: `hf://` needs huggingface_hub, which is not installed.
        NotACheckpointError: The repository cannot be fetched, or has no weights that are read.
        RecipeError: As `as_path`.
    """
    return checkpoint_at(_path_like(what, value))


def as_pack(what: str, value: object) -> Path:
    """Return where a pack is: as `as_path`, or the one of a repository of the Hugging Face Hub.

    Raises:
        BackendError: `hf://` needs huggingface_hub, which is not installed.
        NotAPackError: It cannot be fetched; or the repository has none, or several.
        RecipeError: As `as_path`.
    """
    return pack_at(_path_like(what, value))


def as_one_file(what: str, value: object) -> Path:
    """Return where a pack is, as `as_pack`, for uses that take the file as it is.

    Raises:
        RecipeError: It comes in parts.
    """
    path = as_pack(what, value)
    if parts_index_of(path) is not None:
        raise RecipeError(f"{what} comes in parts, and is needed as one file", path=path, hint="`cat` joins its parts, in their order.")
    return path


def pack_exists(path: Path) -> bool:
    """Whether a pack is there, as one file or in parts.

    Raises:
        NotAPackError: It is a part, and not the first.
    """
    return parts_index_of(path) is not None or path.exists()


def _path_like(what: str, value: object) -> str | Path:
    if isinstance(value, (str, os.PathLike)) and "\0" in str(value):
        raise RecipeError(
            f"{what} is not a path", expected="a path", found=_shown(value), hint="No file has the character NUL in its name."
        )
    if isinstance(value, (str, os.PathLike)) and not _can_be_a_name(str(value)):
        hint = "No file of this system has such characters in its name."
        raise RecipeError(f"{what} is not a path", expected="a path", found=_shown(value), hint=hint)
    if isinstance(value, (str, Path)):
        _refuse_long_names(what, value)
        return value
    if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return Path(value)
    one = "one path, not several" if isinstance(value, Iterable) and not isinstance(value, bytes) else "a path"
    raise RecipeError(f"{what} is not a path", expected=one, found=_shown(value))


def _refuse_long_names(what: str, path: str | Path) -> None:
    """Refuse what no file of this machine can be called: whether one is there could not even be asked.

    Raises:
        RecipeError: The path, or a name in it, is too long.
    """
    if is_url(str(path)):
        return
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RecipeError(f"{what} is not a path: a name in it is too long", found=_shown(str(path))) from error
    except ValueError:  # characters that no name has, which opening it tells
        return


def _can_be_a_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeError:
        return False
    return True


def as_paths(what: str, value: object) -> tuple[Path, ...]:
    """Return several paths: of packs, as all lists are.

    Raises:
        BackendError: As `as_pack`.
        NotAPackError: As `as_pack`.
        RecipeError: It is a single one, whose characters nobody means, a mapping, or no list.
    """
    if isinstance(value, (str, os.PathLike)):
        listed = f"sorted(Path({str(value)!r}).glob('*.dpk'))" if not is_url(str(value)) and Path(value).is_dir() else [str(value)]
        hint = f"Write {listed}."
        raise RecipeError(f"{what} is one path, where a list is meant", found=_shown(value), hint=hint)
    if isinstance(value, Mapping):
        hint = "Give a list of paths, and what belongs to each with `weights`."
        raise RecipeError(f"{what} is a mapping, where a list is meant", found=_shown(value), hint=hint)
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise RecipeError(f"{what} is not a list of paths", found=_shown(value))
    return tuple(as_pack(f"{what}[{number}]", item) for number, item in enumerate(value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
