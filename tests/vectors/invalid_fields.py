"""Invalid vectors of the index, field by field: spec/03-index.md section 3.8 as data. For make_vectors.py only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vectors.arranged import valid_arranged
from vectors.assemble import Blob, Pack
from vectors.containers import valid_containers
from vectors.exact_entries import valid_exact
from vectors.faults import FORMAT, Case, drop, put
from vectors.lossy import lossy_packs
from vectors.valid import valid_packs

# A valid vector that has such an entry, and the number of the entry in it.
KINDS = {
    **{"delta": ("kind-delta", 0), "unchanged": ("kind-unchanged", 0), "grown": ("stats", 0), "shrunk": ("kind-shrunk", 0)},
    **{"stored": ("kind-stored-replaces", 0), "exact": ("kind-exact", 0), "removed": ("kind-removed", 0), "alias": ("kind-alias", 1)},
}
TENSOR = ("name", "kind", "dtype", "shape", "digest")
MUST = {
    "delta": (*TENSOR, "base", "terms"),
    "unchanged": (*TENSOR, "base"),
    "grown": (*TENSOR, "base", "terms", "stored"),
    "shrunk": (*TENSOR, "base", "terms"),
    "stored": (*TENSOR, "stored"),
    "exact": (*TENSOR, "exact"),
    "removed": ("name", "kind", "base"),
    "alias": ("name", "kind", "of"),
}
MAY = {
    **{"delta": ("digests", "stats"), "grown": ("digests", "stats"), "shrunk": ("digests", "stats")},
    **dict.fromkeys(("stored", "exact"), ("base", "digests")),
}
ENTRY_VALUES: dict[str, Any] = {
    **{"dtype": "bf16", "shape": [4, 3], "digest": "0" * 32, "terms": [], "stored": Blob(b""), "digests": Blob(b"")},
    **{"base": {"digest": "0" * 32}, "stats": {"l1": "0", "max_abs": "0"}, "of": "embed", "exact": []},
}
"""What a key would hold, where it may be."""

# Object, as the grammar names it: a valid vector and the path to such an object in it.
OBJECTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "index": ("optional", ()),
    "base": ("kind-delta", ("base",)),
    "result": ("kind-delta", ("result",)),
    "source": ("kind-stored-replaces", ("tensors", 0, "base")),
    "source-removed": ("kind-removed", ("tensors", 0, "base")),
    "arranged": ("arranged-experts", ("tensors", 4, "base")),
    "piece": ("arranged-experts", ("tensors", 4, "base", "pieces", 1)),
    "step": ("kind-exact", ("tensors", 0, "exact", 0)),
    "stats": ("stats", ("tensors", 0, "stats")),
    "term-all": ("kind-delta", ("tensors", 0, "terms", 0)),
    "term-bitmap": ("kind-shrunk", ("tensors", 0, "terms", 0)),
    "term-gaps": ("kind-grown", ("tensors", 0, "terms", 0)),
    "term-seeded": ("index-seeded", ("tensors", 0, "terms", 0)),
    "term-stratified": ("index-stratified", ("tensors", 0, "terms", 0)),
    "term-rows": ("scales-grown-shrunk", ("tensors", 1, "terms", 0)),
    "term-tensor": ("scales-grown-shrunk", ("tensors", 2, "terms", 0)),
    "term-factors": ("factors-shapes", ("tensors", 1, "terms", 0)),
    "file": ("files", ("files", 2)),
    "container": ("containers", ("containers", 0)),
}
TERM = ("index", "values", "factor", "nnz", "blob")
OBJECTS_MUST = {
    "index": ("format", "required", "created_by", "base", "result", "recipe", "tensors", "files"),
    "base": ("fingerprint", "tensors"),
    "result": ("fingerprint", "tensors", "bytes"),
    "source": ("digest",),
    "source-removed": ("digest", "dtype", "shape"),
    "arranged": ("digest", "grid", "pieces"),
    "piece": ("name", "from"),
    "step": ("blob",),
    "stats": ("l1", "max_abs"),
    **{"term-all": TERM, "term-bitmap": TERM, "term-gaps": (*TERM, "shift"), "term-seeded": (*TERM, "keep", "key")},
    **{"term-stratified": ("keep", "key"), "term-rows": ("scale", "lines"), "term-tensor": ("scales", "scale")},
    **{"term-factors": ("rank", "bits")},
    **dict.fromkeys(("file", "container"), ("name", "size", "sha256")),
}
PARAMETERS = {"shift": 0, "keep": 1, "key": "0" * 16}
OF_SCALES = {"scale": "0" * 8, "lines": Blob(b"")}
OF_FACTORS = {"rank": 1, "bits": 4}
NOT_THERE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("term-bitmap", "term-gaps", "term-seeded"), PARAMETERS),
    "term-all": PARAMETERS | OF_SCALES | OF_FACTORS,
    **{"term-stratified": {"shift": 0}, "term-tensor": {"lines": Blob(b"")} | OF_FACTORS, "term-factors": OF_SCALES},
}
"""Keys that such a term does not have, unless it must."""

# A value of another type for each type of the grammar.
WRONG: dict[str, list[tuple[str, Any]]] = {
    "string": [("type", 7)],
    "int": [("type", "7")],
    "object": [("type", [])],
    "list": [("type", {})],
    "ints": [("type", {}), ("item", ["3"])],
    "strings": [("type", {}), ("item", [7])],
    "grid": [("type", {}), ("item", [[1, 1], 8, [6]]), ("extent", [[1, 1], ["4", 4], [6]])],
    "true": [("type", 1), ("false", False)],
    "hex": [("type", 7), ("short", -1), ("long", 1)],
    "blob": [("type", {}), ("two-items", 2), ("four-items", 4), ("float-free", "length"), ("hash", "hash")],
}
# Every field once: object (an entry kind stands for `entry`), field, type.
TYPES = """
index format string|index created_by string|index required strings|index optional object|index base object
index result object|index recipe object|index tensors list|index files list|base fingerprint hex|base tensors int
result fingerprint hex|result tensors int|result bytes int|delta kind string|delta name string|delta dtype string
delta shape ints|delta digest hex|delta base object|delta terms list|grown stored blob|grown stats object|alias of string
source digest hex|source name string|source dtype string|source shape ints|stats l1 string|stats max_abs string
term-all index string|term-all values string|term-all factor hex|term-all nnz int|term-all blob blob|term-seeded keep int
term-seeded key hex|term-gaps shift int|file name string|file size int|file sha256 hex|file blob blob|referring base hex
container name string|container size int|container sha256 hex|container blob blob|head base hex
digests digests blob|arranged grid grid|arranged pieces list|piece name string|piece from ints|piece transposed true
exact exact list|step blob blob|step tables int|term-rows scales string|term-rows scale hex|term-rows lines blob
term-factors rank int|term-factors bits int
"""


def field_cases() -> Iterator[Case]:
    """R4: keys that are not there, that may not be there, and values of other types."""
    packs = {name: pack for name, _, pack in (*valid_packs(), *valid_arranged(), *valid_exact(), *valid_containers(), *lossy_packs())}
    yield from entry_cases(packs)
    yield from object_cases(packs)
    yield from type_cases(packs)


def entry_cases(packs: dict[str, Pack]) -> Iterator[Case]:
    """Keys of each kind of entry."""
    for kind, (vector, number) in KINDS.items():
        for key in MUST[kind]:
            yield "R4", f"lacks-{kind}-{key}", FORMAT, vector, packs[vector].build(drop("tensors", number, key))
        for key in (*ENTRY_VALUES, "extra"):
            if key not in MUST[kind] + MAY.get(kind, ()):
                edit = put("tensors", number, key, ENTRY_VALUES.get(key, 1))
                yield "R4", f"extra-{kind}-{key}", FORMAT, vector, packs[vector].build(edit)
    for what, value in (("int", 1), ("list", []), ("null", None), ("string", "w")):
        yield "R4", f"entry-is-{what}", FORMAT, "index-empty", Pack().build(put("tensors", [value]))


def object_cases(packs: dict[str, Pack]) -> Iterator[Case]:
    """Keys of the other objects."""
    for what, (vector, path) in OBJECTS.items():
        for key in OBJECTS_MUST[what]:
            yield "R4", f"lacks-{what}-{key}", FORMAT, vector, packs[vector].build(drop(*path, key))
        yield "R4", f"extra-{what}", FORMAT, vector, packs[vector].build(put(*path, "extra", 1))
        for key, value in NOT_THERE.get(what, {}).items():
            if key not in OBJECTS_MUST[what]:
                yield "R4", f"extra-{what}-{key}", FORMAT, vector, packs[vector].build(put(*path, key, value))


def type_cases(packs: dict[str, Pack]) -> Iterator[Case]:
    """Values of other types, and null where a key may be absent."""
    for line in TYPES.strip().replace("\n", "|").split("|"):
        what, key, kind = line.split()
        vector, path = _place(what)
        for how, value in WRONG[kind]:
            edit: Any = put(*path, key, value)
            late: Any = None
            if kind == "blob" and how != "type":
                edit, late = None, lambda index, key=key, path=path, how=how: _bad_reference(index, (*path, key), how)
            elif kind == "hex" and how != "type":
                edit, late = None, lambda index, key=key, path=path, by=value: _resize(index, (*path, key), by)
            data = packs[vector].build(edit, **({"late": late} if late else {}))
            yield "R4", f"type-{what}-{key}-{how}", FORMAT, vector, data
    nullable = (("stored", "base"), ("exact", "base"), ("digests", "digests"), ("file", "blob"), ("container", "blob"))
    for what, key in (("index", "optional"), ("grown", "stats"), *nullable):
        vector, path = _place(what)
        yield "R4", f"null-{what}-{key}", FORMAT, vector, packs[vector].build(put(*path, key, None))
    for what, value in (("int", 1), ("list", []), ("null", None)):
        edit = put(*OBJECTS["piece"][1], value)
        yield "R4", f"piece-is-{what}", FORMAT, "arranged-experts", packs["arranged-experts"].build(edit)
        yield "R4", f"term-is-{what}", FORMAT, "terms-none", packs["terms-none"].build(put("tensors", 0, "terms", [value]))
        yield "R4", f"container-is-{what}", FORMAT, "containers", packs["containers"].build(put("containers", [value]))
        yield "R4", f"file-is-{what}", FORMAT, "files-none", packs["files-none"].build(put("files", [value]))


def _place(what: str) -> tuple[str, tuple[Any, ...]]:
    """A valid vector and the path to the object in it."""
    if what == "referring":
        return "files-base", ("files", 1)
    if what == "head":
        return "containers-base", ("containers", 0)
    if what == "digests":
        return "chunks-stored", ("tensors", 0)
    if what in KINDS:
        return KINDS[what][0], ("tensors", KINDS[what][1])
    return OBJECTS[what]


def _at(index: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        index = index[key]
    return index


def _resize(index: Any, path: tuple[Any, ...], by: int) -> None:
    """Make a string of digits one digit shorter or longer."""
    digits = _at(index, path)
    _at(index, path[:-1])[path[-1]] = digits[:-1] if by < 0 else digits + "0"


def _bad_reference(index: Any, path: tuple[Any, ...], how: str) -> None:
    """Spoil a blob reference in its shape only: it still says where the blob is."""
    ref = _at(index, path)
    if how == "two-items":
        del ref[2]
    elif how == "four-items":
        ref.append(0)
    elif how == "float-free":
        ref[1] = str(ref[1])
    else:
        ref[2] = ref[2].upper() + ("" if ref[2].upper() != ref[2] else " ")
