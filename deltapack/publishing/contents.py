"""What a repository of a pack holds: the pack, what transformers loads it with, and the card."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltapack.checking import as_pack, as_path, as_text
from deltapack.errors import BackendError, HubError, RecipeError, UnsupportedError
from deltapack.format.atomic import atomic_file
from deltapack.format.forms import form_with
from deltapack.format.reader import PackReader
from deltapack.merging.basecard import CARD, front_of, is_short
from deltapack.packs.inspecting import inspect_pack
from deltapack.packs.model_folder import ModelFiles, model_files
from deltapack.publishing.cards import CardFacts, card_text, completed_card, is_own, relation_of
from deltapack.publishing.hub import asking, check_repo, is_repo, without_bars
from deltapack.sources.hub import NamedBase, find_base, hub_library, split_revision
from deltapack.sources.inputs import forget_output, guarded
from deltapack.sources.whole import read_small

__all__ = ["Contents", "card_of_pack", "contents_of", "model_card", "others_file"]

CONFIG = "config.json"
NEW = Path("new")
"""In the place of a card: a new one, whatever else there is."""
_PLACEHOLDER = "ORG/NAME"
_LARGEST_CARD = 1 << 20
_LARGEST_OTHERS = 1 << 24
"""Bytes of a card or config.json of another repository: longer ones are no use, and are taken for none."""


@dataclass(frozen=True)
class Contents:
    """What goes to a repository beside the pack.

    Attributes:
        pack: The pack.
        base: Repository of the base.
        revision: Its commit.
        folder: Where the base is on this machine.
        files: Contents by name, without the card.
        facts: What the card says.
        carried: The card that the pack carries, if it does.
        notes: What was noticed.
    """

    pack: Path
    base: str
    revision: str | None
    folder: Path
    files: Mapping[str, bytes]
    facts: CardFacts
    carried: bytes | None
    notes: Sequence[str] = field(default_factory=list)


def contents_of(pack: Path, repo: str, base: str | None) -> Contents:
    """Return what a repository of a pack shall hold.

    Args:
        pack: The pack.
        repo: The repository that it is for.
        base: The base, as `ORG/NAME` or `ORG/NAME@REVISION`; what the card of the pack names unless given.

    Raises:
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base cannot be fetched, or is damaged.
        FormatError: The pack is damaged.
        RecipeError: No base is named, or it is no repository.
    """
    carried = carried_card(pack)
    front = {} if carried is None else _front_or_nothing(carried)
    found = _base_of(base or _named_in(front), pack)
    assert found.repo is not None
    made, notes = _model_files(pack, found)
    files = {name: data for name, data in made.files.items() if name != CARD} if made else {}
    readme = found.folder / CARD
    said = _front_or_nothing(others_file(readme) or b"")
    summary = inspect_pack(pack)
    architecture = _architecture(files[CONFIG]) if files else None
    facts = CardFacts(summary, repo, found.repo, found.revision, said, architecture, relation_of(summary.recipe, front))
    return Contents(pack, found.repo, found.revision, found.folder, files, facts, carried, notes)


def carried_card(pack: Path) -> bytes | None:
    """Return the card that a pack carries of its own; that of the base counts as none.

    Raises:
        FormatError: It is damaged.
    """
    with PackReader(pack) as reader:
        entry = next((entry for entry in reader.index.files or () if entry.name == CARD), None)
        return reader.side_file(entry) if entry is not None and entry.blob is not None and not entry.base else None


def card_of_pack(facts: CardFacts, given: Path | None, carried: bytes | None, theirs: bytes | None = None) -> tuple[str, list[str]]:
    """Return the card, and what was noticed: the one that is given, that of the repository, that of the pack, or a new one.

    Args:
        facts: What is known of the pack.
        given: A file of the user's, or `NEW`.
        carried: The card that the pack carries.
        theirs: The card that the repository has.

    Raises:
        RecipeError: The front matter of the card cannot be read, or the file.
    """
    if given == NEW:
        return card_text(facts), []
    if given is not None:
        return completed_card(_read(given), facts, given)
    for card in (theirs, carried):
        if card is not None and not is_own(card):
            return completed_card(card, facts, Path(CARD))
    return card_text(facts), []


def model_card(
    pack: str | Path,
    *,
    base: str | None = None,
    repo: str | None = None,
    card: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> str:
    """Return the model card that `push` would write for a pack.

    The base is not compared with the pack, and its weights are not fetched: of a repository its own card is read, where it can be.

    Args:
        pack: The pack.
        base: The base, as `ORG/NAME` or `ORG/NAME@REVISION`; what the card of the pack names unless given, and else none.
        repo: The repository that the card is for, as `ORG/NAME`; snippets say `ORG/NAME` unless given.
        card: A card whose text is kept and whose front matter is completed; `"new"` for a new one, also where the pack carries one.
        out: A file to write it to.
        force: Whether to replace that file.

    Raises:
        FormatError: The pack is damaged.
        OutputError: `out` exists, or cannot be written.
        RecipeError: The card cannot be read, or `repo` or `base` is no repository.
    """
    return card_and_notes(pack, base=base, repo=repo, card=card, out=out, force=force)[0]


@guarded
def card_and_notes(
    pack: str | Path, *, base: str | None, repo: str | None, card: str | Path | None, out: str | Path | None, force: bool
) -> tuple[str, list[str]]:
    """Return what `model_card` returns, and what the user should be told of it.

    Raises:
        DeltapackError: As `model_card`.
    """
    path, given = as_pack("pack", pack), None if card is None else as_path("card", card)
    carried = carried_card(path)
    front = {} if carried is None else _front_or_nothing(carried)
    named = as_text("base", base) if base is not None else _named_in(front)
    name, revision = (None, None) if named is None else split_revision(named)
    if name is not None:
        check_repo(name)
    readme, commit = _fetched(name, revision, CARD)
    summary = inspect_pack(path)
    facts = CardFacts(
        summary,
        check_repo(_PLACEHOLDER if repo is None else repo),
        name,
        commit or revision,
        _front_or_nothing(readme or b""),
        _told_architecture(path, name, commit or revision),
        relation_of(summary.recipe, front),
    )
    text, notes = card_of_pack(facts, given, carried)
    if name is None:
        notes.insert(0, "no base is named, so the Hub will not show the repository under one; --base ORG/NAME names it")
    elif readme is None:
        notes.insert(0, f"the card of {name} cannot be read, so licence, languages and tags are not taken from it: is the name right?")
    if out is not None:
        if given is not None and given == as_path("out", out):
            forget_output(given)  # a card is completed in place
        with atomic_file(as_path("out", out), force=force) as file:
            file.write(text.encode())
    return text, notes


def _fetched(repo: str | None, revision: str | None, name: str) -> tuple[bytes | None, str | None]:
    """Return a small file of a repository and the commit that it is from; nothing where it cannot be had."""
    if repo is None:
        return None, None
    with suppress(HubError, BackendError), asking(repo, f"{name} cannot be read"):
        hub = hub_library()
        with without_bars(True):
            path = Path(hub.hf_hub_download(repo, name, revision=revision))
        return others_file(path), path.parent.name
    return None, None


def others_file(path: Path) -> bytes | None:
    """Return a small file of another repository; none where it is not there, cannot be read, or is too long to be one."""
    try:
        return read_small(path, _LARGEST_OTHERS)
    except OSError:
        return None


def _told_architecture(pack: Path, base: str | None, revision: str | None) -> str | None:
    """Return the class of the model by the config that a pack carries, or leaves to its base; none where there is no config."""
    with PackReader(pack) as reader:
        entry = next((entry for entry in reader.index.files or () if entry.name == CONFIG), None)
        if entry is None:
            return None
        theirs = None if entry.blob is not None and not entry.base else _fetched(base, revision, CONFIG)[0]
        config = form_with(CONFIG, theirs, entry.base or entry.sha256) if theirs is not None else None
        if entry.blob is not None:
            config = reader.side_file(entry, config or b"") if config is not None or not entry.base else None
        return _architecture(config or b"")


def _base_of(name: str | None, pack: Path) -> NamedBase:
    """Return the base, which must be a repository.

    Raises:
        NotACheckpointError: It cannot be fetched.
        RecipeError: None is named, or it is a folder.
    """
    if name is None:
        hint = "Say --base ORG/NAME, the repository of the base."
        raise RecipeError("no base is named, and the pack carries no card that names one", path=pack, hint=hint)
    repo, revision = split_revision(name)
    if Path(repo).expanduser().exists():
        hint = "Name the repository of the base as ORG/NAME, where no folder has that name: others have no such folder."
        raise RecipeError("the base is a folder", path=repo, hint=hint)
    return find_base(check_repo(repo), revision, side_files=True)


def _model_files(pack: Path, base: NamedBase) -> tuple[ModelFiles | None, list[str]]:
    """Return what transformers loads a pack with; none, and why, where it is no model of transformers."""
    with PackReader(pack) as reader:
        files = reader.index.files
    there = (base.folder / CONFIG).is_file() if files is None else any(file.name == CONFIG for file in files)
    if not there:
        return None, ["the result has no config.json: the repository is for `deltapack apply`, and not for transformers"]
    try:
        made = model_files(pack, base.repo or str(base.folder), revision=base.revision)
    except UnsupportedError as error:
        return None, [f"{error.what}: the repository is for `deltapack apply`, and not for transformers"]
    return made, list(made.notes)


def _named_in(front: Mapping[str, Any]) -> str | None:
    """Return the one base that a card names as a repository."""
    named = front.get("base_model")
    listed = [named] if isinstance(named, str) else named
    if not isinstance(listed, list) or len(listed) != 1 or not is_repo(listed[0]):
        return None
    return None if Path(listed[0]).exists() else str(listed[0])


def _front_or_nothing(card: bytes) -> Mapping[str, Any]:
    """Return the front matter of a card of others'; a pack is not refused for it."""
    try:
        return front_of(card, Path(CARD))
    except RecipeError:
        return {}


def _architecture(config: bytes) -> str:
    """Return the class of the model; config.json may be anyone's."""
    try:
        named = json.loads(config)["architectures"][0]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "unknown"
    return named if is_short(named) else "unknown"


def _read(path: Path) -> bytes:
    try:
        return read_small(path, _LARGEST_CARD)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise RecipeError("the card is too long", path=path, expected=f"at most {_LARGEST_CARD:,} bytes") from error
        raise RecipeError(f"the card cannot be read: {error.strerror or error}", path=path) from error
