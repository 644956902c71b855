"""Packs whose index says something else, with every checksum made to fit again, so that the change itself is what a reader meets."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from deltapack.checkpoint import Checkpoint
from deltapack.dtypes import BY_NAME
from deltapack.format.canonical import dump_canonical
from deltapack.format.digest import CHUNK, chunk_digest, fingerprint, root_digest
from deltapack.format.prologue import PROLOGUE_BYTES, Prologue
from deltapack.limits import DEFAULT_LIMITS
from support.small_packs import seal

__all__ = ["Json", "Roots", "index_of", "mutants", "roots_of", "with_index"]

Json = dict[str, Any]
Roots = Mapping[str, tuple[bytes, ...]]
"""The chunk digests that a root digest was made of, so that a tensor keeps its elements where its type, shape or name changes."""

NAMES = (
    *("__metadata__", "model.bin", "x.PKL", "a/b/c/d/e/f/g.txt", "config.json", "CONFIG.JSON", "model.safetensors", "notes.txt"),
    *(".hidden", "a", "w", "unet/__metadata__", "n" * 256, "n" * 512, "format", "config.json/x", "tokenizer.json", "README.md"),
)
"""What names become: hostile ones, ones that collide, and ones that a base has."""
NUMBERS = (0, 1, 2, 3, 7, 64, 255, 256, 1 << 20, 1 << 48, (1 << 53) - 1)
WORDS = ("f32", "bf16", "f16", "i64", "u8", "F4", "delta", "unchanged", "stored", "removed", "exact", "grown", "all", "gaps", "int8", "f32")


def index_of(data: bytes) -> Json:
    """Return the index of a pack, parsed."""
    prologue = Prologue.decode(data[:PROLOGUE_BYTES], len(data), Path("pack.dpk"), DEFAULT_LIMITS)
    raw = zstandard.ZstdDecompressor().decompress(data[prologue.index_offset :], max_output_size=prologue.index_raw_length)
    found: Json = json.loads(raw)
    return found


def with_index(data: bytes, index: Json) -> bytes:
    """Return a pack with another index; the blobs stay where they are."""
    prologue = Prologue.decode(data[:PROLOGUE_BYTES], len(data), Path("pack.dpk"), DEFAULT_LIMITS)
    raw = dump_canonical(index)
    return seal(data[PROLOGUE_BYTES : prologue.index_offset], zstandard.ZstdCompressor(9).compress(raw), len(raw))


def roots_of(*checkpoints: Checkpoint) -> Roots:
    """Return what the root digests of tensors of checkpoints are made of."""
    out = {}
    for held in checkpoints:
        for name, info in held.tensors.items():
            spans = [(start, min(start + CHUNK, info.numel)) for start in range(0, info.numel, CHUNK)]
            chunks = tuple(chunk_digest(held.read(name, *span)) for span in spans)
            out[root_digest(info.dtype.name, info.shape, chunks)] = chunks
    return out


def mutants(data: bytes, roots: Roots, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield what was changed, and the pack with that change, without end."""
    rng, valid = random.Random(seed), index_of(data)
    while True:
        index = copy.deepcopy(valid)
        try:
            told = [rng.choice(_CHANGES)(index, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
            _settle(index, roots)
            mutant = with_index(data, index)
        except (TypeError, LookupError, ValueError, AttributeError):  # so broken that nothing fits it: for the tests of the format
            continue
        if mutant != data:
            yield "; ".join(told), mutant


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value."""
    items: Iterable[tuple[Any, Any]] = node.items() if type(node) is dict else enumerate(node) if type(node) is list else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _change(index: Json, rng: random.Random) -> str:
    """Change one value, and say which."""
    path = rng.choice([path for path in _places(index) if path[0] not in ("result", "format")])
    holder: Any = index
    for key in path[:-1]:
        holder = holder[key]
    last, old = path[-1], holder[path[-1]]
    where = "/".join(map(str, path))
    what = rng.random()
    if what < 0.12:
        del holder[last]
        return f"{where} gone"
    if what < 0.22 and type(holder) is list:
        holder.append(copy.deepcopy(old))
        if type(old) is dict and "name" in old:
            holder[-1]["name"] = rng.choice(NAMES)
        return f"{where} twice"
    new: Any = old
    if type(old) is str:
        others = sorted({entry["name"] for entry in index.get("tensors", ()) if type(entry) is dict and "name" in entry})
        others += sorted({file["name"] for file in index.get("files") or () if type(file) is dict and "name" in file})
        new = rng.choice((rng.choice(NAMES), rng.choice(WORDS), rng.choice(others or NAMES), _other_digit(old, rng)))
    elif type(old) is int:
        new = rng.choice((rng.choice(NUMBERS), old + 1, max(0, old - 1)))
    elif type(old) is list:
        new = rng.choice(([], list(reversed(old)), [*old, 1], None))
    elif type(old) is dict:
        new = rng.choice(({}, {**old, rng.choice(NAMES): rng.choice(NAMES)}, None))
    holder[last] = new
    return f"{where} {json.dumps(new)[:60]}"


def _rename(index: Json, rng: random.Random) -> str:
    """Give a tensor of the result another name; it starts from what it did before."""
    entry = rng.choice([entry for entry in index["tensors"] if entry["kind"] != "removed"])
    old, new = entry["name"], rng.choice(NAMES)
    if type(entry.get("base")) is dict:
        entry["base"].setdefault("name", old)
        if entry["base"]["name"] == new:
            del entry["base"]["name"]
    for other in index["tensors"]:
        if other.get("of") == old:
            other["of"] = new
    entry["name"] = new
    return f"{old!r} becomes {new!r}"


def _add_alias(index: Json, rng: random.Random) -> str:
    """Add a second name of a tensor."""
    of = rng.choice([entry["name"] for entry in index["tensors"] if entry["kind"] not in ("removed", "alias")])
    index["tensors"].append({"kind": "alias", "name": rng.choice(NAMES), "of": of})
    return f"{index['tensors'][-1]['name']!r} is {of!r}"


def _add_file(index: Json, rng: random.Random) -> str:
    """Add a side file: one of the base, or with the content of another."""
    files = index["files"] or []
    index["files"] = files
    row = copy.deepcopy(rng.choice(files)) if files else {"sha256": hashlib.sha256().hexdigest(), "size": 0}
    files.append({**{key: value for key, value in row.items() if key not in ("blob", "base")}, "name": rng.choice(NAMES)})
    return f"file {files[-1]['name']!r} added"


def _say(index: Json, rng: random.Random) -> str:
    """Put strings of weight files into `optional`, some of which look like second names."""
    names = [entry["name"] for entry in index["tensors"]]
    key, text = rng.choice((*NAMES, "x.weight", "deltapack.tied", "format")), rng.choice((*names, *NAMES, '["x"]'))
    index["optional"] = {"dpk.metadata": {"": {key: text}}}
    return f"metadata {key!r}: {text!r}"


_CHANGES = (_change, _change, _rename, _add_alias, _add_file, _say)


def _other_digit(old: str, rng: random.Random) -> str:
    """Return a string with one character replaced."""
    place = rng.randrange(len(old)) if old else 0
    return old[:place] + rng.choice("0123456789abcdef") + old[place + 1 :]


def _settle(index: Json, roots: Roots) -> None:
    """Make the index sorted again, and make true what it says of itself as a whole; elements keep their digests in another shape."""
    for key in ("tensors", "files", "containers"):
        if type(index.get(key)) is list:
            index[key].sort(key=lambda row: row["name"].encode())
    rows, nbytes = [], 0
    for entry in index["tensors"]:
        base = entry.get("base")
        if type(base) is dict and base.get("digest") in roots:
            base["digest"] = root_digest(
                base.get("dtype", entry.get("dtype")), base.get("shape", entry.get("shape")), roots[base["digest"]]
            )
        if entry["kind"] in ("removed", "alias"):
            continue
        if entry["digest"] in roots:
            entry["digest"] = root_digest(entry["dtype"], entry["shape"], roots[entry["digest"]])
        dtype = BY_NAME.get(entry["dtype"])
        rows.append((entry["name"], entry["dtype"], entry["shape"], entry["digest"]))
        nbytes += dtype.count(entry["shape"]) * dtype.itemsize if dtype else 0
    index["result"] = {"bytes": nbytes, "fingerprint": fingerprint(rows), "tensors": len(rows)}
