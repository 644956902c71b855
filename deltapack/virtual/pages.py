"""What a server of virtual folders lists: as JSON for programs, as HTML for people, and as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deltapack.errors import DeltapackError
from deltapack.virtual.folder import VirtualFolder
from deltapack.virtual.planning import is_recipe
from deltapack.virtual.shelf import Title

__all__ = ["Rows", "commit_of", "folder_json", "hub_json", "page", "rows_of_folder", "rows_of_shelf", "shelf_json", "told", "tree_json"]

Rows = Sequence[tuple[str, str]]
"""Names, those of folders with `/`, and what to say of them."""


def told(error: DeltapackError) -> str:
    """Return an error for whoever asks from elsewhere: files without their folders, and of a recipe nothing that stands in it.

    A recipe may be a link to any file that the server can read.
    """
    path = error.path if error.path is None else Path(error.path)
    if path is not None and is_recipe(path):
        return f"{path.name}: this recipe cannot be used; the server's own messages say why"
    said = copy(error)
    said.path = path if path is None else path.name
    return str(said)


def shelf_json(titles: Mapping[str, Title], damaged: Mapping[str, str]) -> dict[str, Any]:
    """Return what can be read."""
    rows = [{"name": title.name, "kind": title.kind, "made_of": [path.name for path in title.paths]} for title in titles.values()]
    return {"models": rows, "damaged": dict(damaged)}


def folder_json(name: str, folder: VirtualFolder, prefix: str) -> dict[str, Any]:
    """Return the files of a folder, of a sub-folder if `prefix` is one with `/`."""
    files = [{"name": file, "size": size, "etag": folder.etag(file)} for file, size in folder.names().items() if file.startswith(prefix)]
    return {"name": name, "files": files, "notes": list(folder.notes)}


def rows_of_shelf(titles: Mapping[str, Title], damaged: Mapping[str, str]) -> Rows:
    """Return rows for a page."""
    good = [(f"{title.name}/", f"{title.kind}: {', '.join(path.name for path in title.paths)}") for title in titles.values()]
    return [*good, *((name, f"cannot be read: {error}") for name, error in damaged.items())]


def rows_of_folder(folder: VirtualFolder, prefix: str) -> Rows:
    """Return rows for a page: sub-folders first."""
    inside = {name.removeprefix(prefix): size for name, size in folder.names().items() if name.startswith(prefix)}
    folders = dict.fromkeys(name.partition("/")[0] for name in inside if "/" in name)
    return [*((f"{name}/", "") for name in folders), *((name, f"{size:,} bytes") for name, size in inside.items() if "/" not in name)]


def page(title: str, rows: Rows, notes: Sequence[str] = ()) -> bytes:
    """Return a page of HTML; names become links where they are not of something damaged."""
    lines = []
    for name, text in rows:
        shown = html.escape(name)
        link = shown if text.startswith("cannot be read") else f'<a href="./{quote(name)}">{shown}</a>'
        lines.append(f"<tr><td>{link}</td><td>{html.escape(text)}</td></tr>")
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    style = "<style>body{font:15px sans-serif;margin:2em}td{padding:.1em 1.5em .1em 0}</style></head>"
    body = f"<body><h1>{html.escape(title)}</h1><table>{''.join(lines)}</table>{said}</body></html>\n"
    return (head + style + body).encode()


def commit_of(folder: VirtualFolder) -> str:
    """Return what stands for the commit of a repository: 40 hexadecimal digits that follow from its files."""
    text = "\n".join(f"{name} {folder.etag(name)}" for name in folder.names())
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def hub_json(repo: str, folder: VirtualFolder) -> dict[str, Any]:
    """Return what the Hub says of a model, as far as huggingface_hub asks for it to download one."""
    siblings = [{"rfilename": name, "size": size} for name, size in folder.names().items()]
    commit = commit_of(folder)
    return {"_id": commit[:24], "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}


def tree_json(folder: VirtualFolder) -> list[dict[str, Any]]:
    """Return what the Hub says of the files of a model."""
    return [{"type": "file", "path": name, "size": size, "oid": folder.etag(name)[:40]} for name, size in folder.names().items()]
