"""Use case: a repository of the Hugging Face Hub -> its pack and small files, checked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltapack.checking import as_path, as_text
from deltapack.checkpoint.sidefiles import is_side_file
from deltapack.errors import ChecksumError, HubError, LimitError, NotAPackError, RecipeError, did_you_mean
from deltapack.format.atomic import check_absent, check_free_space, claimed, place_durably, temporary_sibling, writing
from deltapack.format.paths import check_side_name
from deltapack.limits import DEFAULT_LIMITS
from deltapack.packs.model_folder import METHOD
from deltapack.publishing.contents import others_file
from deltapack.publishing.hub import SIGNATURE, asking, check_repo, without_bars
from deltapack.restoring.verifying import verify
from deltapack.sources.hub import hub_library, split_revision

__all__ = ["PullReport", "pull"]

CONFIG = "config.json"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PullReport:
    """What `pull` fetched.

    Attributes:
        repo: The repository.
        commit: Its commit.
        pack: The pack.
        files: Names and sizes in bytes of all that was fetched.
        base: The base that config.json names, if it does.
        base_revision: Its revision.
        notes: What was noticed.
    """

    repo: str
    commit: str
    pack: Path
    files: Mapping[str, int]
    base: str | None = None
    base_revision: str | None = None
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"pack": str(self.pack)}


@dataclass(frozen=True)
class _Listed:
    """A file of a repository: its size, and the digest that the Hub gives for it, SHA-256 or that of a blob of git."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


def pull(
    repo: str,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    pack: str | None = None,
    quiet: bool = False,
    workers: int | None = None,
) -> PullReport:
    """Fetch a pack from the Hugging Face Hub, with the small files beside it, and check it.

    Every file is compared with the digest that the Hub lists, and the pack with all of its own. Weights, programs and other packs stay; the
    signature of the pack, of its name and `.sig`, comes along and is not checked.

    Args:
        repo: The repository, as `ORG/NAME` or `ORG/NAME@REVISION`.
        out: The folder to write, which appears only when complete, or a file for the pack alone if it ends in .dpk; a folder of the
            repository's name unless given.
        revision: Branch, tag or commit.
        pack: The name of the pack, where config.json names none and there are several.
        quiet: Whether to draw no progress bars.
        workers: Threads; every core unless given.

    Raises:
        BackendError: huggingface_hub is not installed.
        ChecksumError: What came is not what the Hub lists.
        FormatError: The pack is damaged.
        HubError: The Hub refused, or cannot be reached.
        LimitError: There is more beside the pack than a pack may hold.
        NotAPackError: The repository has no pack.
        OutputError: `out` exists, or cannot be written.
        RecipeError: An argument is wrong, or there are several packs.
    """
    name, given = split_revision(as_text("the repository", repo))
    if given is not None and revision is not None:
        raise RecipeError("the revision is given twice", found=f"{given} and {revision}")
    name = check_repo(name)
    target = as_path("out", out if out is not None else name.rpartition("/")[2])
    check_absent(target)
    alone = target.suffix == ".dpk"
    hub = hub_library()
    with asking(name, "the repository cannot be read"):
        info = hub.HfApi(library_name="deltapack").model_info(name, revision=revision or given, files_metadata=True)
    listed = {file.name: file for file in (_listed(file, name) for file in info.siblings or ())}
    part = temporary_sibling(target)
    with ExitStack() as stack:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claimed(target))
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            part.mkdir()
        with without_bars(quiet):
            return _pulled(_Source(hub, name, str(info.sha), part), listed, target, wanted=pack, alone=alone, workers=workers)


@dataclass(frozen=True)
class _Source:
    """A commit of a repository, and the folder that its files are fetched to."""

    hub: Any
    repo: str
    commit: str
    part: Path

    def fetch(self, file: _Listed) -> Path:
        """Fetch a file and compare it with its digest.

        Raises:
            ChecksumError: It is another one.
            FormatError: Its name is none that a file should have.
            HubError: It cannot be fetched.
        """
        check_side_name(file.name.removesuffix(SIGNATURE).removesuffix(".dpk"))
        with writing(self.part):
            check_free_space(self.part, file.size, self.part)
        with asking(self.repo, f"{file.name} cannot be fetched"):
            path = Path(self.hub.hf_hub_download(self.repo, file.name, revision=self.commit, local_dir=self.part))
        _check(path, file, self.repo)
        return path


def _pulled(
    source: _Source, listed: Mapping[str, _Listed], target: Path, *, wanted: str | None, alone: bool, workers: int | None
) -> PullReport:
    """Fetch what is wanted, check it, and give it its name."""
    # Whoever owns the repository says how large its files are: as much as a pack could hold is fetched beside it, and no more.
    config = listed.get(CONFIG)
    has_config = config is not None and config.size <= DEFAULT_LIMITS.side_file_bytes
    settings = _settings(source.fetch(config)) if config is not None and has_config else {}
    pack = _choose(listed, settings, wanted, source.repo)
    wished = [name for name in listed if (is_side_file(name) or name == pack + SIGNATURE) and name != pack]
    beside = [listed[name] for name in wished if not (name == CONFIG and has_config)]
    beside = [] if alone else beside
    small = [file for file in beside if file.size <= DEFAULT_LIMITS.side_file_bytes]
    _check_sizes(small, source.repo)
    got = {pack: source.fetch(listed[pack])}
    verify(got[pack], workers=workers)
    for file in small:
        source.fetch(file)
    left = [file.name for file in beside if file not in small]
    with writing(target):
        if alone:
            place_durably(got[pack], target)
        else:
            shutil.rmtree(source.part / ".cache", ignore_errors=True)
            place_durably(source.part, target)
    names = [pack] if alone else sorted({pack, *(file.name for file in small), *([CONFIG] if has_config else [])})
    base, revision = settings.get("base"), settings.get("revision")
    return PullReport(
        repo=source.repo,
        commit=source.commit,
        pack=target if alone else target / pack,
        files={name: listed[name].size for name in names},
        base=base if isinstance(base, str) else None,
        base_revision=revision if isinstance(base, str) and isinstance(revision, str) else None,
        notes=[f"left on the Hub, as too large: {', '.join(left)}"] if left else [],
    )


def _listed(file: Any, repo: str) -> _Listed:
    """Return what the Hub says of a file.

    Raises:
        HubError: It is nonsense.
    """
    lfs = file.lfs
    sha256 = None if lfs is None else lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
    size = file.size or 0
    if not isinstance(file.rfilename, str) or not isinstance(size, int) or size < 0:
        raise HubError("the repository cannot be read", path=repo, found=f"a file that is none: {file!r:.120}", hint="Run it again.")
    return _Listed(file.rfilename, size, sha256, file.blob_id)


def _check_sizes(files: Sequence[_Listed], repo: str) -> None:
    """Refuse more files, or bytes, than a pack may have beside its tensors.

    Raises:
        LimitError: There are more.
    """
    total = sum(file.size for file in files)
    if len(files) > DEFAULT_LIMITS.side_files or total > DEFAULT_LIMITS.side_files_bytes:
        expected = f"at most {DEFAULT_LIMITS.side_files} files and {DEFAULT_LIMITS.side_files_bytes:,} bytes"
        found, hint = f"{len(files)} files and {total:,} bytes", "-o NAME.dpk fetches the pack alone."
        raise LimitError("the repository has too many files beside the pack", path=repo, expected=expected, found=found, hint=hint)


def _choose(listed: Mapping[str, _Listed], settings: Mapping[str, Any], wanted: str | None, repo: str) -> str:
    """Return the name of the pack.

    Raises:
        NotAPackError: There is none, or not the one that is named.
        RecipeError: There are several.
    """
    packs = [name for name in listed if name.endswith(".dpk")]
    named = wanted if wanted is not None else settings.get("pack")
    if named is not None:
        if not isinstance(named, str) or named not in packs:
            hint = did_you_mean(named, packs) or f"It has {', '.join(packs[:10]) or 'no packs'}."
            raise NotAPackError("the repository has no such pack", path=repo, found=repr(named)[:120], hint=hint)
        return named
    if not packs:
        raise NotAPackError("the repository has no pack", path=repo, expected="a .dpk file", hint=f"A model: hf download {repo}.")
    if len(packs) > 1:
        raise RecipeError("the repository has several packs", path=repo, found=", ".join(packs[:10]), hint="Name one with --pack.")
    return packs[0]


def _settings(path: Path) -> Mapping[str, Any]:
    """Return what config.json says of the pack; it may be anyone's."""
    try:
        said = json.loads(others_file(path) or b"")["quantization_config"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return said if isinstance(said, dict) and said.get("quant_method") == METHOD else {}


def _check(path: Path, file: _Listed, repo: str) -> None:
    """Compare a file with what the Hub lists.

    Raises:
        ChecksumError: It has another size or digest.
        HubError: The Hub lists no digest.
    """
    wanted = file.sha256 or file.blob
    if wanted is None:
        raise HubError(f"the Hub lists no digest of {file.name}", path=repo, hint="Run it again.")
    with writing(path), path.open("rb") as opened:
        size = path.stat().st_size
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while block := opened.read(_BLOCK):
            digest.update(block)
    if size != file.size or digest.hexdigest() != wanted:
        hint = "Run it again; if it stays so, the repository is damaged."
        what = f"{file.name} is not what the Hub lists"
        raise ChecksumError(what, path=repo, expected=f"{file.size:,} bytes, {wanted}", found=f"{size:,}, {digest.hexdigest()}", hint=hint)
