"""What a text or path names: a file of this machine, one of another, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from deltapack.errors import RecipeError
from deltapack.sources.hub import HubFile, fetch_model, fetch_pack, has_hub, parse_hub
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.urls import SCHEMES, is_url

__all__ = ["checkpoint_at", "pack_at", "path_of"]

_SQUEEZED = re.compile(rf"({'|'.join(SCHEMES)}):/(?=[^/])")
"""How a `Path` holds an address: it makes one slash of two."""


def path_of(value: str | Path) -> Path:
    """Return a path of this machine, or a `RemotePath` of an address.

    Raises:
        RecipeError: It is an address that is not read.
    """
    if isinstance(value, RemotePath):
        return value
    text = str(value)
    if not isinstance(value, str):
        squeezed = _SQUEEZED.match(text)
        text = f"{squeezed[1]}://{text[squeezed.end() :]}" if squeezed and not value.exists() else text
    if text.lower().startswith("file://"):
        return Path(unquote(text[7:].removeprefix("localhost")))
    if text.startswith("hf:/"):
        hint = "A base, a fine-tune and a pack may be there; `deltapack push` sends a pack."
        raise RecipeError("a repository of the Hugging Face Hub is no place for this", found=text[:200], hint=hint)
    if is_url(text):
        return RemotePath.of(text)
    return Path(value)


def checkpoint_at(value: str | Path) -> Path:
    """Return where a checkpoint is: as `path_of`, and a repository of the Hub is the folder of the cache that it is fetched into.

    Raises:
        BackendError: `hf://` needs huggingface_hub, which is not installed.
        NotACheckpointError: The repository cannot be fetched, or has no weights that are read.
        RecipeError: It is an address that is not read.
    """
    named = _on_the_hub(value)
    return path_of(value) if named is None else fetch_model(named)


def pack_at(value: str | Path) -> Path:
    """Return where a pack is: as `checkpoint_at`, of a repository the file.

    Raises:
        BackendError: `hf://` needs huggingface_hub, which is not installed.
        NotAPackError: It cannot be fetched; or the repository has none, or several.
        RecipeError: It is an address that is not read.
    """
    named = _on_the_hub(value)
    return path_of(value) if named is None else fetch_pack(named)


def _on_the_hub(value: str | Path) -> HubFile | None:
    """Return what is meant of the Hub; a name that is no address needs huggingface_hub to mean anything."""
    named = None if isinstance(value, RemotePath) else parse_hub(str(value))
    return named if named is not None and (":/" in str(value) or has_hub()) else None
