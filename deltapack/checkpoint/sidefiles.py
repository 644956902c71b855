"""The files beside the weights that a model needs to load: configuration, tokenizer, templates, licence."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from deltapack.checkpoint.files import is_folder, refuse_fault
from deltapack.checkpoint.links import LEADS_OUT, homes_of, leads_out
from deltapack.checkpoint.listed import LeftOut, SideFile
from deltapack.errors import FormatError, LimitError, RecipeError
from deltapack.format.paths import MOST_PARTS, check_side_name, fold, is_weight_file
from deltapack.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "AS_ASKED",
    "LeftOut",
    "SideFile",
    "fits",
    "is_config_or_tokenizer",
    "is_never_a_part",
    "is_side_file",
    "is_training_state",
    "list_side_files",
    "reason_to_skip_folder",
]

AS_ASKED = "as asked for"
"""Why a file does not travel that the user does not want to."""
_SIDE = re.compile(r"\.(jsonl?|txt|model|jinja|md|ya?ml|vocab|merges|tiktoken|bpe|spm|spiece|codes)")
_TOKENIZER = re.compile(r"(?i).*(tokenizer|tokeniser|tekken|spiece|sentencepiece|vocab|merges).*")
"""Vendors give their tokenizers names such as `tokenizer.model.v3`, `mistral_instruct_tokenizer_240216.model.v2`, `vocab.src`."""
_TRAINING_FOLDER = re.compile(r"(tmp-)?checkpoint-\d+|global_step\d+|(epoch|step)[-_]?\d+|runs|wandb|optim(izer)?s?([-_].*)?|.*_fsdp_\d+")
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([.\-_ ].*)?", re.IGNORECASE)
_TRAINING = re.compile(r"trainer_state\.json|.*optimizer.*|.*scheduler\.(pt|bin)|rng_state.*|training_args.*")
_SCRAP = re.compile(r"\.(lock|tmp|bak|swp|part|log|zip|gz|bz2|xz|zst|tar|tgz|png|jpe?g|svg|pdf|ipynb|sh|html?|so|dll|exe|pyc)|.*~")


def is_side_file(name: str, include_code: bool = False) -> bool:
    """Whether a file of this name travels with the weights."""
    return _reason_to_leave(name, include_code) is None


def list_side_files(
    folder: Path,
    include_code: bool = False,
    *,
    limits: Limits = DEFAULT_LIMITS,
    weights: Collection[str] = (),
    leave_out: Sequence[str] = (),
    follow_links: bool = False,
) -> tuple[list[SideFile], list[LeftOut]]:
    """List what travels beside the weights of `folder`, and everything that does not.

    Links to files are followed where they stay in the folder, or in the cache of the Hugging Face Hub that it is part of; links to folders
    are not.

    Args:
        folder: The checkpoint.
        include_code: Whether `.py` files travel.
        limits: Bounds on size and number.
        weights: Files of the checkpoint itself, which are not to be mentioned.
        leave_out: Shell patterns of names that stay behind, as the user wants it; one without `/` is for the files of the folder itself,
            `**/` at its begin for those of all folders.
        follow_links: Whether links to files elsewhere are followed, too.

    Returns:
        The files and what was left out, each sorted by name.

    Raises:
        LimitError: A file, or the files together, exceed `limits`.
        RecipeError: A pattern fits none of the files that would travel.
    """
    files, left = list[SideFile](), list[LeftOut]()
    pending: list[tuple[Path, str]] = [(folder, "")]
    unused, homes = dict.fromkeys(leave_out), homes_of(folder)
    while pending:
        where, prefix = pending.pop()
        try:
            entries = sorted(where.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            left.append(LeftOut(prefix, f"cannot be listed: {refuse_fault(where, error)}"))
            continue
        for entry in entries:
            name = prefix + entry.name
            if name in weights:
                continue
            if is_folder(entry):
                reason = reason_to_skip_folder(entry, name)
                if reason is None:
                    pending.append((entry, name + "/"))
                else:
                    left.append(LeftOut(name + "/", reason))
                continue
            found = _look_at(entry, name, include_code)
            if isinstance(found, LeftOut):
                left.append(found)
                continue
            wanted = [pattern for pattern in leave_out if fits(name, pattern)]
            if wanted:
                left.append(LeftOut(name, AS_ASKED))
            elif not follow_links and leads_out(entry, homes):
                left.append(LeftOut(name, LEADS_OUT))
            else:
                files.append(found)
            for pattern in wanted:
                unused.pop(pattern, None)
    if unused:
        deeper = [f"'**/{pattern}'" for pattern in unused if any(fits(file.name, f"**/{pattern}") for file in files)]
        hint = f"In sub-folders there are some: {', '.join(deeper)} fits them." if deeper else None
        raise RecipeError("a pattern of side files to leave out fits none", path=folder, found=", ".join(unused), hint=hint)
    files, alike = _apart(files)
    left += alike
    _check_sizes(folder, files, limits)
    return sorted(files, key=lambda file: file.name.encode()), sorted(left, key=lambda item: item.name)


def fits(name: str, pattern: str) -> bool:
    """Whether a shell pattern is for a file; `config.json` is for the one at the top, and not for `1_Pooling/config.json`."""
    if pattern.startswith("**/"):
        parts = name.split("/")
        return any(fits("/".join(parts[start:]), pattern[3:]) for start in range(len(parts)))
    return ("/" in pattern or "/" not in name) and fnmatchcase(name, pattern)


def is_config_or_tokenizer(name: str) -> bool:
    """Whether loaders look for a file of this name, or path, before they look at weights."""
    last = name.rpartition("/")[2]
    return last in ("config.json", "params.json", "model_index.json", "modules.json") or bool(_TOKENIZER.fullmatch(last))


def _apart(files: Sequence[SideFile]) -> tuple[list[SideFile], list[LeftOut]]:
    """Return the files whose names no file system takes for one, those in lower case before others, and what else there was."""
    kept: dict[str, SideFile] = {}
    left = list[LeftOut]()
    for file in sorted(files, key=lambda file: file.name.encode(), reverse=True):
        other = kept.setdefault(fold(file.name), file)
        if other is not file:
            left.append(LeftOut(file.name, f"some systems take it for {other.name}, which travels"))
    return [file for file in files if kept[fold(file.name)] is file], left


def _check_sizes(folder: Path, files: Sequence[SideFile], limits: Limits) -> None:
    """Refuse files that are too large for a pack: none is left out in silence.

    Raises:
        LimitError: A file, or all together, exceed `limits`.
    """
    limit, most = min(limits.packed_file_bytes, limits.side_file_bytes), DEFAULT_LIMITS.side_file_bytes
    for file in files:
        if file.size > limit:
            more = f"--max-side-file SIZE packs it (at most {most >> 20} MiB, as readers take no more), " if file.size <= most else ""
            raise LimitError(
                f"the side file {file.name!r} is too large",
                path=folder,
                expected=f"at most {limit:,} bytes",
                found=f"{file.size:,} bytes",
                hint=f"{more}--leave-out '{file.name}' leaves it behind.",
            )
    total = sum(file.size for file in files)
    if len(files) > limits.side_files or total > limits.side_files_bytes:
        raise LimitError(
            "too many side files",
            path=folder,
            expected=f"at most {limits.side_files} files and {limits.side_files_bytes:,} bytes",
            found=f"{len(files)} files and {total:,} bytes",
            hint="--leave-out GLOB leaves behind what the model does not need.",
        )


def is_training_state(name: str) -> bool:
    """Whether a file of this name is of use to a trainer alone."""
    return bool(_TRAINING.fullmatch(name))


def is_never_a_part(name: str) -> str | None:
    """Return why a folder of this name is of no use to the model whatever it holds, or None where it may be."""
    if name.startswith("."):
        return "hidden"
    return "cache or training state" if name == "__pycache__" or _TRAINING_FOLDER.fullmatch(name) else None


def reason_to_skip_folder(entry: Path, name: str) -> str | None:
    """Return why nothing in a sub-folder is part of the model, or None where it may be; `name` is its path in the checkpoint."""
    reason = is_never_a_part(entry.name) or ("a link to a folder" if entry.is_symlink() else None)
    return reason or ("nested too deep" if name.count("/") >= MOST_PARTS - 1 else _name_problem(name))


def _look_at(entry: Path, name: str, include_code: bool) -> SideFile | LeftOut:
    reason = _reason_to_leave(entry.name, include_code) or _name_problem(name)
    if reason is None:
        try:
            if not entry.is_file():
                return LeftOut(name, "a broken link" if entry.is_symlink() and not entry.exists() else "not a regular file")
            return SideFile.at(name, entry)
        except OSError as error:
            return LeftOut(name, f"cannot be read: {refuse_fault(entry, error)}")
    shown = name if _is_unicode(name) else name.encode(errors="surrogateescape").decode(errors="replace")
    return LeftOut(shown, reason)


def _reason_to_leave(name: str, include_code: bool) -> str | None:
    """Return why a file of this name does not travel, or None where it does."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden"
    if is_training_state(name):
        return "training state"
    if is_weight_file(name):
        return "weights that the checkpoint does not use"
    if suffix == ".py":
        return None if include_code else "Python code, which travels only with --include-code"
    if _SIDE.fullmatch(suffix) or _LICENCE.fullmatch(name) or (_TOKENIZER.fullmatch(name) and not _SCRAP.fullmatch(suffix)):
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
