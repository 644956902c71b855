"""Output heads of merges: whether the result has one of its own has to fit what its config.json says of tied embeddings.

A model of tied embeddings (`tie_word_embeddings`, also in a nested `text_config`) has no head of its own: loaders put the embeddings in
its place, whatever a file holds under its name. So where one pack ties and another does not, a result with the config of the one and the
tensors of the other would lose its head in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from deltapack.checkpoint import Checkpoint
from deltapack.composing.assets import read_side_file
from deltapack.composing.compose import Composition
from deltapack.errors import DeltapackError, MergeConflictError
from deltapack.format.folders import folder_of
from deltapack.format.reader import PackReader

__all__ = ["CONFIG", "fit_head"]

CONFIG = "config.json"
_KEY = "tie_word_embeddings"
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output|output_layer|proj_out|vocab_projector|(lm_head|predictions)\.decoder)\.weight")
_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|shared|(word|tok|token)_?embeddings?)\.weight")


@dataclass(frozen=True)
class _Source:
    """The base, or what one pack makes of it: whether it ties head and embeddings, and the names of heads of its own."""

    tied: bool
    heads: frozenset[str]


def fit_head(
    base: Checkpoint,
    readers: Sequence[PackReader],
    composition: Composition,
    preferred: int | None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> tuple[Composition, dict[str, bytes]]:
    """Make heads and configs of a merge fit each other, in each folder, as a sub-folder is a model with a config of its own.

    Args:
        base: The base.
        readers: The packs.
        composition: What the result is made of.
        preferred: The pack that decides where packs disagree.
        files: Side files of the result that are not those of the pack or base whose side files it has.

    Returns:
        The composition, without heads where the preferred pack ties them, with a note; and configs by name whose `tie_word_embeddings` is
        changed, where all packs agree on what it has to be.

    Raises:
        MergeConflictError: They do not fit, and packs disagree on what would.
    """
    changed = {}
    for folder in ("", *composition.folders):
        name = f"{folder}/{CONFIG}" if folder else CONFIG
        composition, config = _fit(base, readers, composition, preferred, folder, name, files.get(name))
        if config is not None:
            changed[name] = config
    return composition, changed


def _fit(
    base: Checkpoint,
    readers: Sequence[PackReader],
    composition: Composition,
    preferred: int | None,
    folder: str,
    name: str,
    config: bytes | None,
) -> tuple[Composition, bytes | None]:
    """Make head and config of one folder fit each other; `name` is that of its config."""
    heads, found = _heads(base, readers, composition, folder), config or _config_of(base, composition.assets, name)
    if (len(readers) == 1 and composition.assets is readers[0]) or found is None or not heads:
        return composition, None
    packs = [_source(_config_of(base, reader, name), _names_of(reader), heads) for reader in readers]
    own = _source(_config_of(base, None, name), base.tensors, heads)
    donor = own if composition.assets is None else packs[readers.index(composition.assets)]
    said = _ties(found)
    tied = donor.tied if said is None else said
    kept = heads & {job.name for job in composition.jobs}
    if not kept and not any(pack.tied for pack in packs):
        return composition, None  # as each of the packs has it
    if bool(kept) != tied or (kept and not any(source.heads and not source.tied for source in (own, *packs))):
        return _noted(composition, readers, packs, kept, tied), None
    if all(pack.tied != bool(kept) for pack in packs):
        text = f"{name} of the result says {_KEY}: {json.dumps(not kept)}, as the packs do"
        return replace(composition, notes=(*composition.notes, text)), _with_ties(found, not kept)
    if kept and preferred is not None and packs[preferred].tied and composition.assets is readers[preferred]:
        text = f"{', '.join(sorted(kept))} left out: {readers[preferred].path} ties it to the embeddings"
        jobs = tuple(job for job in composition.jobs if job.name not in kept)
        return replace(composition, jobs=jobs, notes=(*composition.notes, text)), None
    raise _conflict(composition, readers, packs, heads, tied, base, name)


def _conflict(
    composition: Composition,
    readers: Sequence[PackReader],
    packs: Sequence[_Source],
    heads: Collection[str],
    tied: bool,
    base: Checkpoint,
    name: str,
) -> MergeConflictError:
    where = base.path if composition.assets is None else composition.assets.path
    says = [f"{reader.path.name} {'ties it' if pack.tied else 'does not'}" for reader, pack in zip(readers, packs, strict=True)]
    what = "a head of its own" if tied else "no head"
    return MergeConflictError(
        "the packs do not agree whether the output head is tied to the embeddings",
        path=where,
        tensor=min(heads),
        expected=f"{_KEY}: {json.dumps(not tied)} in the result's {name}, as the result has {what}",
        found=f"{json.dumps(tied)}; {', '.join(says)}",
        hint="Say which pack decides with --prefer PACK: with one that ties, the head is left out; with one that does not, it stays.",
    )


def _noted(
    composition: Composition, readers: Sequence[PackReader], packs: Sequence[_Source], kept: Collection[str], tied: bool
) -> Composition:
    """Tell whose changes of a tied head are not in the head of the result."""
    names = [str(reader.path) for reader, pack in zip(readers, packs, strict=True) if pack.tied and not pack.heads]
    if not kept or tied or not names:
        return composition
    text = f"{', '.join(names)} ties the head to the embeddings: what it changes there is not in {', '.join(sorted(kept))} of the result"
    return replace(composition, notes=(*composition.notes, text))


def _heads(base: Checkpoint, readers: Sequence[PackReader], composition: Composition, folder: str) -> frozenset[str]:
    """Return the names of a folder's tensors that would be tied to its embeddings in the result: called like a head, and of their shape."""

    def is_called(pattern: re.Pattern[str], name: str) -> bool:
        here = folder_of(name, composition.folders) == folder
        return here and pattern.fullmatch(name[len(folder) + 1 :] if folder else name) is not None

    embeddings = {job.shape[1:] for job in composition.jobs if is_called(_EMBEDDING, job.name)}
    shapes = {name: info.shape for name, info in base.tensors.items()}
    shapes |= {entry.name: entry.shape for reader in readers for entry in reader.index.entries if entry.in_result}
    return frozenset(name for name, shape in shapes.items() if is_called(_HEAD, name) and len(shape) == 2 and shape[1:] in embeddings)


def _config_of(base: Checkpoint, reader: PackReader | None, name: str) -> bytes | None:
    with suppress(DeltapackError):  # what is missing or damaged is told where it is written
        return read_side_file(base, reader, name)
    return None


def _names_of(reader: PackReader) -> set[str]:
    return {entry.name for entry in reader.index.entries if entry.in_result}


def _source(config: bytes | None, names: Collection[str], heads: frozenset[str]) -> _Source:
    """Return what a checkpoint does; one whose config does not say ties where it has no head."""
    own = heads & set(names)
    said = _ties(config)
    return _Source(not own if said is None else said, own)


def _ties(config: bytes | None) -> bool | None:
    """Return what a config says of tied embeddings; none where it says nothing, or two things."""
    values = {part[_KEY] for part in _parts(_parsed(config)) if isinstance(part.get(_KEY), bool)}
    return values.pop() if len(values) == 1 else None


def _with_ties(config: bytes, tied: bool) -> bytes:
    """Return a config that says so wherever it said anything, or else where the model's own settings are."""
    document = _parsed(config)
    parts = _parts(document)
    for part in [part for part in parts if _KEY in part] or parts[:1]:
        part[_KEY] = tied
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # half a surrogate pair stays the escape that it was


def _parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a config and those that it holds of parts of the model."""
    return [document, *(part for part in document.values() if isinstance(part, dict))]


def _parsed(config: bytes | None) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        found = json.loads(config or b"{}")
        if isinstance(found, dict):
            return found
    return {}
