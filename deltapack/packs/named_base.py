"""A base by its name: a folder, or a repository of the Hugging Face Hub at a revision, through its cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltapack.errors import BackendError, NotACheckpointError, RecipeError

__all__ = ["NamedBase", "find_base", "split_revision"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TEXTS = ("*.json",)
_WEIGHTS = ("*.safetensors",), ("*.bin",)
"""Patterns of weight files, the better ones first: where there are some, the others are not fetched."""
_NO_PARTS = ["*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.ot", "*/*"]
"""What no model of transformers needs beside its weights, or is among these."""


@dataclass(frozen=True)
class NamedBase:
    """Where a base is.

    Attributes:
        folder: The folder, or file.
        repo: The repository that it is from, if it is from one.
        revision: The commit there, or the branch or tag where the commit is not known.
    """

    folder: Path
    repo: str | None = None
    revision: str | None = None


def split_revision(name: str) -> tuple[str, str | None]:
    """Return name and revision of `ORG/NAME@REVISION`; a path that exists is taken as it is.

    >>> split_revision("org/name@v1"), split_revision("org/name")
    (('org/name', 'v1'), ('org/name', None))
    """
    repo, at, revision = name.partition("@")
    return (repo, revision) if at and revision and _REPO.fullmatch(repo) and not Path(name).exists() else (name, None)


def find_base(name: str, revision: str | None = None, *, beside: Path | None = None, side_files: bool = False) -> NamedBase:
    """Return where a base is; what is missing of a repository is fetched into the cache of huggingface_hub.

    What the cache has of a commit is taken from there without asking the Hub; of a branch or tag the Hub is asked, where it can be reached.
    `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and the token are those of huggingface_hub.

    Args:
        name: A path, or `ORG/NAME`; a folder of that name comes before a repository, as for transformers.
        revision: Branch, tag or commit of the repository; its main branch unless given.
        beside: Where relative paths that begin with a dot start from; the working directory unless given.
        side_files: Whether tokenizer and other small files are wanted, too.

    Raises:
        BackendError: huggingface_hub is not installed.
        NotACheckpointError: There is no such folder, or the repository cannot be fetched, or has no weights that are read.
        RecipeError: A path has a revision.
    """
    path = Path(name).expanduser()
    if name.startswith(".") and beside is not None:
        path = beside / path
    if path.exists():
        if revision is not None:
            hint = "Leave the revision out, or name a repository."
            raise RecipeError("a folder has no revisions", path=path, found=f"revision {revision}", hint=hint)
        return NamedBase(path)
    if not _REPO.fullmatch(name):
        hint = "Name a folder, or a repository of the Hugging Face Hub as ORG/NAME."
        raise NotACheckpointError("the base is not there", path=path, hint=hint)
    folder = _of_hub(name, revision, side_files)
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision
    return NamedBase(folder, name, commit)


def _of_hub(repo: str, revision: str | None, side_files: bool) -> Path:
    """Return the snapshot of a repository that has the weights."""
    hub = _hub()
    if revision is not None and _COMMIT.fullmatch(revision):
        cached = _snapshot(hub, repo, revision, local_files_only=True)
        # All side files of a commit are not told from some of them: with these the Hub is asked.
        if cached is not None and not side_files and _is_whole(cached):
            return cached
    for weights in _WEIGHTS:
        folder = _snapshot(hub, repo, revision, allow_patterns=[*_TEXTS, *weights])
        if folder is not None and any(folder.glob(weights[0])):
            if side_files:
                _snapshot(hub, repo, folder.name if _COMMIT.fullmatch(folder.name) else revision, ignore_patterns=_NO_PARTS)
            return folder
    hint = "The restored checkpoint and `load_model` take a base of any kind from a folder."
    raise NotACheckpointError("the repository has no weights that are read", path=repo, expected="*.safetensors or *.bin", hint=hint)


def _snapshot(hub: Any, repo: str, revision: str | None, **options: Any) -> Path | None:
    """Return a folder of the cache with what was asked for; none where the cache alone was asked and has nothing.

    Raises:
        NotACheckpointError: It cannot be fetched.
    """
    try:
        return Path(hub.snapshot_download(repo, revision=revision, **options))
    except Exception as error:  # huggingface_hub has many of its own, and those of whatever carries its requests
        if options.get("local_files_only"):
            return None
        at = "" if revision is None else f" at {revision}"
        hint = f"Is its name right, is there a network, and a token where it wants one (`hf auth login`)? Or: hf download {repo}."
        found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise NotACheckpointError(f"the base{at} cannot be fetched, and is not in the cache", path=repo, found=found, hint=hint) from error


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has one file of weights, or every shard that its index names."""
    import json

    for index, single in (("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin")):
        if (folder / single).exists():
            return True
        try:
            shards = json.loads((folder / index).read_bytes())["weight_map"].values()
            if all((folder / shard).exists() for shard in shards):
                return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return False


def _hub() -> Any:
    """Import huggingface_hub, which only names of repositories need.

    Raises:
        BackendError: It is not there.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        hint = "pip install 'deltapack[hub]', or name a folder."
        raise BackendError("a base on the Hugging Face Hub needs huggingface_hub", found=str(error), hint=hint) from error
    return huggingface_hub
