"""A text that models are measured on, as windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.checking import as_path
from deltapack.errors import BackendError, RecipeError
from deltapack.sources.whole import read_small

__all__ = ["LEAST_TOKENS", "config_number", "import_transformers", "read_text", "tokenize", "windows_of"]

LEAST_TOKENS = 32
"""Of fewer, a loss says nothing."""

_LARGEST_TEXT, _LARGEST_CONFIG = 1 << 30, 1 << 24
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def import_transformers(what: str) -> Any:
    """Import transformers, which only models of texts need.

    Args:
        what: What needs it, such as `"evaluate"`.

    Raises:
        BackendError: It is not there.
    """
    try:
        import transformers
    except ImportError as error:
        hint = "pip install 'transformers>=4.56', or measure with --eval (score=), which takes any program."
        raise BackendError(f"{what} needs transformers to measure on a text", found=str(error), hint=hint) from error
    return transformers


def read_text(path: str | Path) -> str:
    """Return the content of a text file.

    Raises:
        RecipeError: It is not there, cannot be read, or is no UTF-8.
    """
    path = as_path("text", path)
    try:
        return read_small(path, _LARGEST_TEXT).decode("utf-8")
    except OSError as error:
        raise RecipeError(f"the text cannot be read: {error.strerror}", path=path, hint="--text takes a file of plain text.") from error
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start:,}"
        raise RecipeError("the text is not UTF-8", path=path, found=found, hint="--text takes a file of plain text.") from error


def tokenize(text: str, folders: Sequence[Path], vocabulary: int) -> NDArray[np.int64]:
    """Return the tokens of a text, by the tokenizer of the first folder that has one.

    Args:
        text: The text.
        folders: Checkpoints, the one that decides first.
        vocabulary: Number of tokens that every model to be measured knows.

    Raises:
        BackendError: transformers is not installed.
        RecipeError: There is no tokenizer, it cannot be loaded, or the text has tokens beyond `vocabulary`.
    """
    found = next((folder for folder in folders if any((folder / name).is_file() for name in _TOKENIZER)), None)
    if found is None:
        hint = "Copy the tokenizer's files there, or measure with --eval (score=), which takes any program."
        raise RecipeError("there is no tokenizer", path=folders[0], expected=" or ".join(_TOKENIZER[:2]), hint=hint)
    transformers = import_transformers("evaluate")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(found, local_files_only=True, trust_remote_code=False)
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    except Exception as error:  # transformers and tokenizers have many of their own
        hint = "Measure with --eval (score=), which takes any program."
        raise RecipeError(f"the tokenizer cannot be loaded: {_first_line(error)}", path=found, hint=hint) from error
    if len(ids) and int(ids.max()) >= vocabulary:
        hint = "Take a text without the new tokens of the fine-tune, which the base cannot read."
        what = "the text has tokens that not every model knows"
        raise RecipeError(what, path=found, expected=f"tokens below {vocabulary:,}", found=int(ids.max()), hint=hint)
    return ids


def windows_of(ids: NDArray[np.int64], window: int, most: int, path: Path) -> NDArray[np.int64]:
    """Cut tokens into windows of one length.

    Args:
        ids: `[tokens]`, all of a text.
        window: Tokens of a window, at least 2; a shorter text is one window.
        most: Tokens that the windows may have together; of a longer text they are spread evenly.
        path: The text, for errors.

    Returns:
        `[windows, window]`, at least one window.

    Raises:
        RecipeError: The text is too short.
    """
    if len(ids) < LEAST_TOKENS:
        hint = "A few thousand tokens that no model was trained on tell more."
        raise RecipeError("the text is too short", path=path, expected=f"at least {LEAST_TOKENS} tokens", found=len(ids), hint=hint)
    window = min(window, len(ids))
    there, wanted = len(ids) // window, max(1, most // window)
    chosen = np.arange(there) if there <= wanted else np.arange(wanted) * there // wanted
    return ids[: there * window].reshape(there, window)[chosen]


def config_number(folder: Path, *names: str) -> int | None:
    """Return the first of these numbers that the config.json of a folder states."""
    try:
        config = json.loads(read_small(folder / "config.json", _LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return None
    inner = config.get("text_config") if isinstance(config, dict) else None
    for own in (config, inner):
        for name in names:
            value = own.get(name) if isinstance(own, dict) else None
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
