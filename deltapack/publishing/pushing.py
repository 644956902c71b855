"""Use case: pack -> a repository of the Hugging Face Hub, in one commit, which shows up under its base."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltapack.checking import as_one_file, as_path, as_text
from deltapack.errors import HubError, OutputError, RecipeError
from deltapack.format.paths import is_weight_file
from deltapack.merging.basecard import CARD
from deltapack.publishing.contents import Contents, card_of_pack, contents_of, others_file
from deltapack.publishing.hub import SIGNATURE, asking, check_repo, without_bars
from deltapack.reports import Progress
from deltapack.restoring.verifying import verify
from deltapack.sources.hub import hub_library
from deltapack.sources.inputs import check_inputs, guarded

__all__ = ["PushReport", "push"]


@dataclass(frozen=True)
class PushReport:
    """What `push` did, or would do.

    Attributes:
        repo: The repository.
        url: Its page.
        commit: The commit; `None` of a dry run.
        commit_url: Its page.
        pull_request: The page of the pull request, if one was asked for.
        base: Repository of the base.
        base_revision: Its commit, which config.json and card name.
        files: Names and sizes in bytes of what was uploaded.
        card: The whole card.
        dry_run: Whether nothing was uploaded.
        notes: What was noticed.
    """

    repo: str
    url: str
    commit: str | None
    commit_url: str | None
    pull_request: str | None
    base: str
    base_revision: str | None
    files: Mapping[str, int]
    card: str
    dry_run: bool = False
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class _There:
    """A repository as it is: its newest commit, names of its files, its card; of a branch that is not there yet, what it starts with."""

    commit: str
    private: bool
    files: Sequence[str]
    card: bytes | None
    has_branch: bool = True


@dataclass(frozen=True)
class _Plan:
    """What is to be uploaded, and how; the fields are those of `push`."""

    repo: str
    there: _There | None
    files: Mapping[str, bytes | Path]
    private: bool
    revision: str | None
    message: str
    create_pr: bool


@guarded
def push(
    pack: str | Path,
    repo: str,
    *,
    base: str | None = None,
    card: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PushReport:
    """Upload a pack to the Hugging Face Hub, with config and tokenizer for transformers and a model card, in one commit.

    Everything is checked first: each byte of the pack, and each of its tensors with the base, which is fetched if it is not in the cache.
    What the repository has beside stays as it is; a card of someone's keeps its text. A signature beside the pack, of its name and `.sig`,
    goes along.

    Args:
        pack: The pack.
        repo: The repository, as `ORG/NAME`; it is made if it is not there.
        base: The base, as `ORG/NAME` or `ORG/NAME@REVISION`; what the card of the pack names unless given. The commit is what is named.
        card: The card; else that of the repository, or that of the pack, is completed, or one is written,
            as `"new"` asks for.
        private: Whether a new repository is private; one that is there must be.
        revision: The branch to commit to; it is made if it is not there.
        message: The message of the commit.
        create_pr: Whether to open a pull request in place of the commit.
        dry_run: Whether to check everything and upload nothing.
        quiet: Whether to draw no progress bars of uploads.
        workers: Threads; every core unless given.
        progress: Called with bytes checked so far and in all.

    Raises:
        BackendError: huggingface_hub is not installed.
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base cannot be fetched, or is damaged.
        FormatError: The pack is damaged.
        HubError: The Hub refused, or cannot be reached.
        OutputError: The repository holds weights.
        RecipeError: An argument is wrong, no base is named, or the pack is on another machine.
    """
    path, repo = Path(os.fspath(as_one_file("the pack", pack))), check_repo(repo)  # huggingface_hub uploads files of this machine
    given = None if card is None else as_path("card", card)
    text = f"Upload {path.name} with deltapack" if message is None else as_text("message", message)
    if not text.strip():
        raise RecipeError("the message is empty")
    hub = hub_library()
    if not dry_run and hub.get_token() is None:
        raise HubError("uploading needs a token", path=repo, hint="`hf auth login` stores one; HF_TOKEN in the environment is one, too.")
    verify(path, workers=workers)  # a damaged pack is told before the base is fetched
    with without_bars(quiet):
        contents = contents_of(path, repo, base)
        checked = verify(path, contents.folder, workers=workers, progress=progress)
        api = hub.HfApi(library_name="deltapack")
        there, notes = _looked(hub, api, repo, revision, lenient=dry_run)
        _check_place(there, contents, repo, private)
        made, noted = card_of_pack(contents.facts, given, contents.carried, None if there is None else there.card)
        files: dict[str, bytes | Path] = {CARD: made.encode(), **contents.files, path.name: path, **_signature_beside(path)}
        plan = _Plan(repo, there, files, private, revision, text, create_pr)
        done = None if dry_run else _upload(hub, api, plan)
    return PushReport(
        repo=repo,
        url=f"{api.endpoint}/{repo}",
        commit=None if done is None else str(done.oid),
        commit_url=None if done is None else str(done.commit_url),
        pull_request=None if done is None or done.pr_url is None else str(done.pr_url),
        base=contents.base,
        base_revision=contents.revision,
        files={name: data.stat().st_size if isinstance(data, Path) else len(data) for name, data in files.items()},
        card=made,
        dry_run=dry_run,
        notes=list(dict.fromkeys([*contents.notes, *checked.notes, *notes, *noted])),
    )


def _signature_beside(pack: Path) -> dict[str, bytes | Path]:
    """Return the signature of a pack by its name, where there is one: whether it is good is for those to say who have the key."""
    signature = pack.with_name(pack.name + SIGNATURE)
    return {signature.name: signature} if signature.is_file() else {}


def _looked(hub: Any, api: Any, repo: str, revision: str | None, *, lenient: bool) -> tuple[_There | None, list[str]]:
    """Look at a repository; if `lenient`, what keeps from it is a note.

    Raises:
        HubError: The Hub refused, or cannot be reached.
    """
    try:
        return _look(hub, api, repo, revision), []
    except HubError as error:
        if not lenient:
            raise
        return None, [f"{error.what} ({error.found}): a card that it has would keep its text"]


def _look(hub: Any, api: Any, repo: str, revision: str | None) -> _There | None:
    """Return what a repository has; nothing where it is not there, or is not shown.

    Raises:
        HubError: The Hub refused, or cannot be reached.
    """
    from huggingface_hub import errors

    with asking(repo, "the repository cannot be looked at"):
        has_branch = True
        try:
            info = api.model_info(repo, revision=revision)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return None
        except errors.RevisionNotFoundError:
            info, has_branch = api.model_info(repo), False
        names = [file.rfilename for file in info.siblings or ()]
        card = others_file(Path(hub.hf_hub_download(repo, CARD, revision=info.sha))) if CARD in names else None
    if card is None and CARD in names:
        raise OutputError("the card of the repository is too long to be completed, and would be lost", path=repo, hint="Shorten it.")
    return _There(info.sha, bool(info.private), names, card, has_branch)


def _check_place(there: _There | None, contents: Contents, repo: str, private: bool) -> None:
    """Refuse a repository that others would be hurt by.

    Raises:
        OutputError: It holds weights, which the new config.json would hide.
        RecipeError: It is public, and a private one is asked for.
    """
    if there is None:
        return
    if private and not there.private:
        hint = "Leave --private out, or make it private in its settings first."
        raise RecipeError("the repository is there, and public", path=repo, hint=hint)
    weights = [name for name in there.files if "/" not in name and is_weight_file(name) and not name.endswith(".dpk")]
    if weights and contents.files:
        what, hint = "the repository holds weights, which the config.json of a pack would hide", "Choose a repository of its own."
        raise OutputError(what, path=repo, found=", ".join(weights[:3]), hint=hint)


def _upload(hub: Any, api: Any, plan: _Plan) -> Any:
    """Make the repository if need be, and commit; return what huggingface_hub says of the commit.

    Raises:
        HubError: The Hub refused, or cannot be reached.
    """
    repo, there = plan.repo, plan.there
    operations = [hub.CommitOperationAdd(name, data if isinstance(data, bytes) else str(data)) for name, data in plan.files.items()]
    with asking(repo, "the repository cannot be made"):
        if there is None:
            api.create_repo(repo, private=plan.private, exist_ok=True)
        if plan.revision is not None and (there is None or not there.has_branch):
            api.create_branch(repo, branch=plan.revision, exist_ok=True)
    check_inputs()
    with asking(repo, "the pack cannot be uploaded"):
        return api.create_commit(
            repo,
            operations,
            commit_message=plan.message,
            revision=plan.revision,
            create_pr=plan.create_pr,
            # What was changed since it was looked at is not overwritten.
            parent_commit=None if there is None or plan.create_pr else there.commit,
        )
