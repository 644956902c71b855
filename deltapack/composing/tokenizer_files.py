"""Tokenizer files as Hugging Face writes them: which tokens they have, and the same files with more tokens.

Packs may come from anyone, so every field is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deltapack.checkpoint.safetensors import load_json
from deltapack.errors import CheckpointError, MergeConflictError

__all__ = ["TOKENIZER", "AddedToken", "Tokenizer", "files_with", "parse_tokenizer"]

T = TypeVar("T")
Document = dict[str, Any]

TOKENIZER = "tokenizer.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Where transformers lists special tokens without a role: before version 5 and since."""


@dataclass(frozen=True)
class AddedToken:
    """A token beside the words of the model, and how text is searched for it."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool

    def to_json(self) -> Document:
        """Return the token as files have it, without its id."""
        return dict(vars(self))


@dataclass(frozen=True)
class Tokenizer:
    """What a `tokenizer.json` says of tokens.

    Attributes:
        where: The file, for messages.
        words: From the words of the model to their ids.
        added: From ids to added tokens; some are words of the model, too.
    """

    where: Path
    words: Mapping[str, int]
    added: Mapping[int, AddedToken]

    def ids(self) -> dict[str, int]:
        """Return all tokens with their ids."""
        return {**self.words, **{token.content: number for number, token in self.added.items()}}


def parse_tokenizer(data: bytes, where: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        CheckpointError: It is not one, or says two things of a token.
    """
    document = load_json(data, where)
    words, added = _words(document.get("model"), where), dict[int, AddedToken]()
    contents = set[str]()
    for number, row in enumerate(_typed(document.get("added_tokens", []), list, where, "added_tokens")):
        what = f"added_tokens[{number}]"
        fields = _typed(row, dict, where, what)
        key, token = _id(fields.get("id"), where, f"{what}.id"), _added_token(fields, where, what)
        if key in added or token.content in contents or words.get(token.content, key) != key:
            raise CheckpointError(f"{what}: a token has two ids, or an id two tokens", path=where, found=f"{token.content!r}, id {key}")
        added[key] = token
        contents.add(token.content)
    return Tokenizer(where, words, added)


def _words(model: object, where: Path) -> dict[str, int]:
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return {word: _id(number, where, "an id in model.vocab") for word, number in vocab.items()}
    if isinstance(vocab, list) and all(isinstance(row, list) and row and isinstance(row[0], str) for row in vocab):
        return {row[0]: number for number, row in enumerate(vocab)}  # unigram: words with scores, in the order of their ids
    raise CheckpointError("the tokenizer has no words", path=where, expected="words with ids in model.vocab")


def _added_token(row: Document, where: Path, what: str) -> AddedToken:
    content = _typed(row.get("content"), str, where, f"{what}.content")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{what}.content is not Unicode", path=where, found=ascii(content)) from error
    if not content:
        raise CheckpointError(f"{what}.content is empty", path=where)
    return AddedToken(content, **{flag: _typed(row.get(flag), bool, where, f"{what}.{flag}") for flag in _FLAGS})


def _id(value: object, where: Path, what: str) -> int:
    number = _typed(value, int, where, what)
    if not 0 <= number < 1 << 32:
        raise CheckpointError(f"{what} is not an id", path=where, expected="an integer of 32 bits", found=number)
    return number


def _typed(value: object, kind: type[T], where: Path, what: str) -> T:
    if type(value) is not kind:
        raise CheckpointError(f"{what} has the wrong type", path=where, expected=kind.__name__, found=type(value).__name__)
    return value


def files_with(
    added: Mapping[int, AddedToken],
    changed: Mapping[int, AddedToken],
    rows: int | None,
    read: Callable[[str], bytes | None],
    where: Path,
) -> dict[str, bytes]:
    """Return the side files that must change so that a model has these tokens.

    Args:
        added: All added tokens of the result, by their ids.
        changed: Those of them that the base lacks or has otherwise.
        rows: Rows of the result's embeddings; `None`: as many as before.
        read: Returns a side file of the model that is changed, or `None` where it has none of that name.
        where: That model, for messages.

    Raises:
        CheckpointError: A file is not what it should be.
        MergeConflictError: There is no `tokenizer.json`.
    """
    data = read(TOKENIZER)
    if data is None and changed:
        hint = "Take the files of another pack, or of the base, with --assets."
        raise MergeConflictError("the result's files would have no tokenizer.json, which names tokens", path=where, hint=hint)
    held = {token.content for token in parse_tokenizer(data, where / TOKENIZER).added.values()} if data is not None else set()
    special = [token.content for _, token in sorted(changed.items()) if token.special and token.content not in held]
    changes: dict[str, Callable[[Document, Path], Document]] = {
        TOKENIZER: lambda document, path: document | {"added_tokens": _rows(added)},
        "tokenizer_config.json": lambda document, path: _with_special(_with_decoder(document, changed, path), special, path),
        "special_tokens_map.json": lambda document, path: _with_special(document, special, path),
        "added_tokens.json": lambda document, path: _with_ids(document, changed),
        "config.json": lambda document, path: document if rows is None else _with_size(document, rows),
    }
    out = {}
    for name, change in changes.items():
        data = read(name)
        if data is not None:
            document = load_json(data, where / name)
            now = change(document, where / name)
            if now != document:
                out[name] = _dump(now, where / name)
    return out


def _rows(added: Mapping[int, AddedToken]) -> list[Document]:
    return [{"id": key} | token.to_json() for key, token in sorted(added.items())]


def _with_ids(document: Document, changed: Mapping[int, AddedToken]) -> Document:
    """Return `added_tokens.json`, ids by token, with more tokens and without those whose ids they take."""
    kept = {content: key for content, key in document.items() if type(key) is not int or key not in changed}
    return kept | {token.content: key for key, token in sorted(changed.items())}


def _with_decoder(document: Document, changed: Mapping[int, AddedToken], where: Path) -> Document:
    """Return `tokenizer_config.json` with more tokens in its own list of them, if it has one."""
    name = "added_tokens_decoder"
    if name not in document:
        return document
    listed = _typed(document[name], dict, where, name) | {str(key): token.to_json() for key, token in changed.items()}
    return document | {name: dict(sorted(listed.items(), key=lambda row: (len(row[0]), row[0])))}


def _with_special(document: Document, special: list[str], where: Path) -> Document:
    """Return a file with more special tokens in its list of those without a role, if it has one."""
    for name in _LISTS:
        listed = document.get(name)
        if isinstance(listed, list):
            known = [item.get("content") if isinstance(item, dict) else item for item in listed]
            document = document | {name: listed + [content for content in special if content not in known]}
    return document


def _with_size(document: Document, rows: int) -> Document:
    """Return `config.json` with another size of the vocabulary where it names one: at the top, for its text part, or both.

    One that names none has the usual size of its kind of model, which is not that of the result.
    """
    text = document.get("text_config")
    if isinstance(text, dict) and ("vocab_size" in text or "vocab_size" not in document):
        document = document | {"text_config": text | {"vocab_size": rows}}
    return document | {"vocab_size": rows} if "vocab_size" in document or not isinstance(text, dict) else document


def _dump(document: Document, where: Path) -> bytes:
    try:
        return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (ValueError, RecursionError) as error:  # text that is not Unicode, numbers without end
        raise CheckpointError(f"the file cannot be written again: {error}", path=where) from error
