"""Repositories of the Hugging Face Hub at a revision, through the cache of huggingface_hub: models by their folder, packs by their file."""

from __future__ import annotations

import glob
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltapack.errors import BackendError, DeltapackError, NotACheckpointError, NotAPackError, RecipeError
from deltapack.sources.parts import PARTS_INDEX, parts_index_of, whole_packs
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.urls import is_url
from deltapack.sources.whole import read_small

__all__ = ["HubFile", "NamedBase", "fetch_model", "fetch_pack", "find_base", "has_hub", "hub_library", "parse_hub", "split_revision"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_INDEX = 100_000_000
_TEXTS = ("*.json",)
_WEIGHTS = ("*.safetensors",), ("*.bin",)
"""Patterns of weight files, the better ones first: where there are some, the others are not fetched."""
_NO_PARTS = ["*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.ot", "*/*"]
"""What no model of transformers needs beside its weights, or is among these."""


_ADDRESS = re.compile(
    r"hf:/{1,2}(?:models/)?(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?:/(?P<file>[^@]+))?/?"
)
_PAGE = re.compile(
    r"https:/{1,2}(?:www\.)?huggingface\.co/(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)"
    r"(?:/(?:tree|blob)/(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@?]+)(?:/(?P<file>[^@?]+))?)?/?"
)
"""The page of a repository, as a browser shows its address; `resolve/` is a file like any other."""
_SECONDS = 10.0
_FILE = re.compile(r".*\.(dpk|safetensors|bin|pt|pth|ckpt|gguf|json|ya?ml|md|txt|html?|zip)", re.IGNORECASE)


@dataclass(frozen=True)
class HubFile:
    """What an address of the Hub names.

    Attributes:
        repo: `ORG/NAME`.
        revision: Branch, tag or commit, if it says one.
        file: A file of the repository, if it says one.
    """

    repo: str
    revision: str | None = None
    file: str | None = None


def parse_hub(text: str) -> HubFile | None:
    """Return what `hf://ORG/NAME[@REVISION][/FILE]` names, or `ORG/NAME[@REVISION]` where nothing of that name is here; else none.

    >>> parse_hub("hf://org/name@v1/math.dpk")
    HubFile(repo='org/name', revision='v1', file='math.dpk')

    Raises:
        RecipeError: It begins with `hf:` and names no repository.
    """
    page = _PAGE.fullmatch(text)
    if text.startswith("hf:/") or page is not None:
        found = page or _ADDRESS.fullmatch(text)
        file = found["file"].rstrip("/") if found and found["file"] else None
        if found is None or (file is not None and any(part in ("", ".", "..") for part in file.split("/"))):
            raise RecipeError("no address of the Hugging Face Hub", expected="hf://ORG/NAME[@REVISION][/FILE]", found=text[:200])
        return HubFile(found["repo"], found["revision"], file)
    repo, at, revision = text.partition("@")
    if not _REPO.fullmatch(repo) or _FILE.fullmatch(text) or (at and not re.fullmatch(r"[\w./-]+", revision)):
        return None
    # A folder that is here, and nothing of that name in it, is a path with a slip rather than an organisation.
    here = Path(text).exists() or Path(text).is_symlink() or Path(repo.partition("/")[0]).exists()
    return None if here else HubFile(repo, revision or None)


def hub_library() -> Any:
    """Import huggingface_hub, which only what is on the Hub needs.

    Raises:
        BackendError: It is not there.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        hint = "pip install 'deltapack[hub]', or name what is here."
        raise BackendError("the Hugging Face Hub needs huggingface_hub", found=str(error), hint=hint) from error
    return huggingface_hub


def has_hub() -> bool:
    """Whether huggingface_hub is installed."""
    return importlib.util.find_spec("huggingface_hub") is not None


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

    Raises:
        RecipeError: It is an address of the Hub, and that of no repository.
    """
    named = parse_hub(name) if name.startswith("hf:/") else None
    if named is not None and named.file is not None:
        raise RecipeError("a repository is named here, and no file of it", expected="ORG/NAME or ORG/NAME@REVISION", found=name[:200])
    if named is not None:
        return named.repo, named.revision
    repo, at, revision = name.partition("@")
    return (repo, revision) if at and revision and _REPO.fullmatch(repo) and not Path(name).exists() else (name, None)


def find_base(name: str, revision: str | None = None, *, beside: Path | None = None, side_files: bool = False) -> NamedBase:
    """Return where a base is; what is missing of a repository is fetched into the cache of huggingface_hub.

    What the cache has of a commit is taken from there without asking the Hub; of a branch or tag the Hub is asked, where it can be reached.
    `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and the token are those of huggingface_hub.

    Args:
        name: A path, an address, or `ORG/NAME`; a folder of that name comes before a repository, as for transformers.
        revision: Branch, tag or commit of the repository; its main branch unless given.
        beside: Where relative paths that begin with a dot start from; the working directory unless given.
        side_files: Whether tokenizer and other small files are wanted, too.

    Raises:
        BackendError: huggingface_hub is not installed.
        NotACheckpointError: There is no such folder, or the repository cannot be fetched, or has no weights that are read.
        RecipeError: A path has a revision.
    """
    if is_url(name) and revision is None:
        return NamedBase(RemotePath.of(name))
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


def fetch_model(named: HubFile) -> Path:
    """Return the folder of a model in the cache, whole but for weights in other formats; or its one file, where a file was named.

    Raises:
        BackendError: huggingface_hub is not installed.
        NotACheckpointError: It cannot be fetched, or has no weights that are read.
    """
    if named.file is None:
        return _of_hub(named.repo, named.revision, True, _NO_PARTS[:-1])
    return _file_of(named, NotACheckpointError)


def fetch_pack(named: HubFile) -> Path:
    """Return a pack of a repository in the cache: the one that was named, or the only one.

    Raises:
        BackendError: huggingface_hub is not installed.
        NotAPackError: It cannot be fetched; or there is none, or several and none was named.
    """
    if named.file is not None:
        return _file_of(named, NotAPackError)
    names = _names_of(named)
    packs = whole_packs(names)
    if len(packs) != 1:
        shown = f"{', '.join(packs[:8])}{' and more' * (len(packs) > 8)}" if packs else "none"
        at = f"@{named.revision}" if named.revision else ""
        hint = f"Name one: hf://{named.repo}{at}/{packs[0]}." if packs else "A pack is a .dpk file that `deltapack compress` has written."
        raise NotAPackError("the repository does not have one pack", path=named.repo, expected="one .dpk file", found=shown, hint=hint)
    return _file_of(replace(named, file=packs[0]), NotAPackError)


def _names_of(named: HubFile) -> list[str]:
    """Return the names of the files of a repository; of those in the cache where the Hub cannot be asked.

    Raises:
        NotAPackError: Neither says.
    """
    hub = hub_library()
    try:
        info = hub.HfApi().repo_info(named.repo, revision=named.revision, timeout=_SECONDS)
        return [sibling.rfilename for sibling in info.siblings or ()]
    except Exception as error:  # huggingface_hub has many of its own, and those of whatever carries its requests
        cached = _snapshot(hub, named.repo, named.revision, local_files_only=True)
        if cached is None:
            raise _unfetched(NotAPackError, named.repo, named.revision, error) from error
        return [path.relative_to(cached).as_posix() for path in cached.rglob("*.dpk*")]


def _file_of(named: HubFile, kind: type[DeltapackError]) -> Path:
    """Return one file of a repository in the cache.

    Raises:
        DeltapackError: Of that kind: it cannot be fetched, or the repository has none of that name.
    """
    hub, file = hub_library(), str(named.file)
    try:  # unlike `hf_hub_download` it gives up at once where there is no network
        folder = Path(hub.snapshot_download(named.repo, revision=named.revision, allow_patterns=_with_parts(file)))
    except Exception as error:  # as above
        raise _unfetched(kind, named.repo, named.revision, error) from error
    if parts_index_of(folder / file) is None and not (folder / file).exists():
        raise kind("the repository has no such file", path=named.repo, found=file)
    return folder / file


def _with_parts(file: str) -> list[str]:
    """Return patterns of a file, and of the parts and their index where it is a pack that comes in some."""
    whole = file.removesuffix(".index.json")
    if not whole.endswith(".dpk"):
        return [glob.escape(file)]
    stem, digits = glob.escape(re.sub(r"-\d{5}-of-\d{5}$", "", whole.removesuffix(".dpk"))), "[0-9]" * 5
    return [glob.escape(file), f"{stem}{PARTS_INDEX}", f"{stem}-{digits}-of-{digits}.dpk"]


def _unfetched(kind: type[DeltapackError], name: str, revision: str | None, error: Exception) -> DeltapackError:
    at = "" if revision is None else f" at {revision}"
    hint = f"Is its name right, is there a network, and a token where it wants one (`hf auth login`)? Or: hf download {name}."
    found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    what = f"no such file or folder here; of the Hugging Face Hub{at} it cannot be fetched, and is not in the cache"
    return kind(what, path=name, found=found, hint=hint)


def _of_hub(repo: str, revision: str | None, side_files: bool, left: Sequence[str] = _NO_PARTS) -> Path:
    """Return the snapshot of a repository that has the weights; of its side files all but those of the patterns `left`."""
    hub = hub_library()
    if revision is not None and _COMMIT.fullmatch(revision):
        cached = _snapshot(hub, repo, revision, local_files_only=True)
        # All side files of a commit are not told from some of them: with these the Hub is asked.
        if cached is not None and not side_files and _is_whole(cached):
            return cached
    for weights in _WEIGHTS:
        folder = _snapshot(hub, repo, revision, allow_patterns=[*_TEXTS, *weights])
        if folder is not None and any(folder.glob(weights[0])):
            if side_files:
                _snapshot(hub, repo, folder.name if _COMMIT.fullmatch(folder.name) else revision, ignore_patterns=list(left))
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
        raise _unfetched(NotACheckpointError, repo, revision, error) from error


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has one file of weights, or every shard that its index names."""
    import json

    for index, single in (("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin")):
        if (folder / single).exists():
            return True
        try:
            shards = json.loads(read_small(folder / index, _MOST_INDEX))["weight_map"].values()
            if all((folder / shard).exists() for shard in shards):
                return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return False
