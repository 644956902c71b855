"""From canonical JSON to `Index`, trusting nothing. Implements rules R4 to R7 and R13 of spec/04-reader-rules.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from deltapack.errors import FormatError, LimitError, UnsupportedError
from deltapack.format.arrangement import FEATURE
from deltapack.format.base_fields import parse_base
from deltapack.format.blobs import EXACT, MOST_STEPS, MOST_TABLE, ExactStep
from deltapack.format.canonical import load_index
from deltapack.format.codecs import FILE_BASE, FOLDERS, known_features
from deltapack.format.containers import CONTAINERS, check_containers, parse_containers
from deltapack.format.digest import fingerprint
from deltapack.format.fields import (
    blob_ref,
    check_bytes,
    check_keys,
    count,
    dtype_of,
    hexadecimal,
    shape_of,
    sorted_unique,
    strings,
    tensor_name,
    typed,
)
from deltapack.format.fileparsing import check_files, check_in_folders, check_own_names, parse_file, parse_folders
from deltapack.format.index import KINDS, BlobRef, Entry, Index, Stats
from deltapack.format.metadata import check_metadata
from deltapack.format.prologue import ALIGNMENT, PROLOGUE_BYTES
from deltapack.format.termparsing import fault_of_term, parse_term
from deltapack.limits import Limits

__all__ = ["parse_index"]

T = TypeVar("T")
_FLOAT, _FLOAT_CHARS = re.compile(r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?"), 64


def parse_index(data: bytes, index_offset: int, limits: Limits) -> Index:
    """Parse and validate an index whose blobs must fill the file from 64 to `index_offset`.

    Raises:
        FormatError: R13 or a rule from R4 to R7 is broken.
        UnsupportedError: A required feature, codec, dtype or kind is unknown.
        LimitError: More values, tensors, dimensions or elements than `limits` allow.
    """
    top, rows = load_index(data, limits)
    if type(top) is not dict or top.get("format") != "dpk":
        raise FormatError("the index is not that of a pack", rule="R4", expected='"format":"dpk"')
    # Before the other keys: a later version may have other ones, and says so here.
    required = strings(top, "required")
    unknown = sorted(set(required) - known_features() - {FEATURE, EXACT, CONTAINERS})
    if unknown:
        raise UnsupportedError("the pack needs an unknown feature", rule="R5", found=unknown[0], hint="Update deltapack.")
    of_features = {key for key, feature in (("folders", FOLDERS), ("tables", EXACT), (CONTAINERS, CONTAINERS)) if feature in required}
    check_keys(top, "the index", required=_TOP | of_features, optional={"optional"})
    base, result = typed(top, "base", dict), typed(top, "result", dict)
    check_keys(base, "base", required={"fingerprint", "tensors"})
    check_keys(result, "result", required={"fingerprint", "tensors", "bytes"})
    files, folders = top["files"], parse_folders(top, limits) if "folders" in top else {}
    index = Index(
        base_fingerprint=hexadecimal(base, "fingerprint", 64),
        base_tensors=count(base, "tensors"),
        result_fingerprint=hexadecimal(result, "fingerprint", 64),
        result_tensors=count(result, "tensors"),
        result_bytes=count(result, "bytes"),
        recipe=typed(top, "recipe", dict),
        entries=tuple(_entries(rows, limits)),
        files=None if files is None else tuple(parse_file(row, limits, FILE_BASE in required) for row in typed(top, "files", list)),
        created_by=typed(top, "created_by", str),
        required=tuple(required),
        optional=typed(top, "optional", dict) if "optional" in top else {},
        folders=folders,
        tables=_tables(top, limits) if "tables" in top else (),
        containers=parse_containers(top, limits) if CONTAINERS in top else (),
    )
    check_metadata(index.optional)
    _check_entries(index)
    check_in_folders(index.entries, folders)
    check_own_names(index.entries, folders)
    check_files(index.files or (), folders, limits)
    if CONTAINERS in top:
        check_containers(index.containers, folders, limits)
    _check_blobs(index.blobs, index_offset)
    return index


_TOP = {"format", "required", "created_by", "base", "result", "recipe", "tensors", "files"}
_ALL = {"name", "kind"}
_TENSOR = _ALL | {"dtype", "shape", "digest"}
_KEYS: Mapping[str, tuple[set[str], set[str]]] = {
    "alias": (_ALL | {"of"}, set()),
    "removed": (_ALL | {"base"}, set()),
    "unchanged": (_TENSOR | {"base"}, set()),
    "stored": (_TENSOR | {"stored"}, {"base", "digests"}),
    "delta": (_TENSOR | {"base", "terms"}, {"digests", "stats"}),
    "shrunk": (_TENSOR | {"base", "terms"}, {"digests", "stats"}),
    "grown": (_TENSOR | {"base", "terms", "stored"}, {"digests", "stats"}),
    EXACT: (_TENSOR | {"exact"}, {"base", "digests"}),
}


def _entries(rows: Iterable[Any], limits: Limits) -> Iterator[Entry]:
    for number, row in enumerate(rows):
        if number >= limits.tensors:
            raise LimitError("too many tensors", rule="R6", expected=f"at most {limits.tensors}")
        yield _located(row, lambda row: _entry(row, limits))


def _located(row: Any, parse: Callable[[Any], T]) -> T:
    """Add the tensor's name to an error raised while its entry is parsed."""
    try:
        return parse(row)
    except (FormatError, LimitError, UnsupportedError) as error:
        if isinstance(row, dict) and type(row.get("name")) is str:
            error.tensor = row["name"]
        raise


def _entry(row: Any, limits: Limits) -> Entry:
    if type(row) is not dict or type(row.get("kind")) is not str:
        raise FormatError("a tensor entry has no kind", rule="R4")
    kind = row["kind"]
    if kind not in KINDS:
        raise UnsupportedError("unknown kind of tensor entry", rule="R5", found=kind, hint="Update deltapack.")
    required, optional = _KEYS[kind]
    check_keys(row, "the entry", required=required, optional=optional)
    name = tensor_name(row, limits)
    if kind == "alias":
        return Entry(name, kind, of=typed(row, "of", str))
    if kind == "removed":
        return Entry(name, kind, base=parse_base(row, name, None, None, limits))
    dtype, shape = dtype_of(row), shape_of(row, limits)
    check_bytes(dtype, shape, limits)
    terms = typed(row, "terms", list) if "terms" in row else []
    if len(terms) > limits.terms:
        raise LimitError("too many terms", rule="R6", expected=f"at most {limits.terms}", found=len(terms))
    entry = Entry(
        name,
        kind,
        dtype,
        shape,
        hexadecimal(row, "digest", 32),
        base=parse_base(row, name, dtype, shape, limits) if "base" in row else None,
        terms=tuple(map(parse_term, terms)),
        stored=blob_ref(row, "stored") if "stored" in row else None,
        digests=blob_ref(row, "digests") if "digests" in row else None,
        stats=_stats(row) if "stats" in row else None,
        exact=tuple(map(_step, _some_of(row, "exact", MOST_STEPS))) if "exact" in row else (),
    )
    _check_kind(entry)
    return entry


def _some_of(row: Any, key: str, most: int) -> list[Any]:
    """Return a list that is not empty and not too long."""
    found = typed(row, key, list)
    if not 1 <= len(found) <= most:
        raise FormatError(f"no such number of {key!r}", rule="R6", expected=f"1 to {most}", found=len(found))
    return found


def _step(row: Any) -> ExactStep:
    check_keys(row, "a step", required={"blob"}, optional={"tables"})
    tables = count(row, "tables") if "tables" in row else 0
    if "tables" in row and not tables:
        raise FormatError("a step says that its tables begin at 0", rule="R6")
    return ExactStep(blob_ref(row, "blob"), tables)


def _tables(top: Any, limits: Limits) -> tuple[BlobRef, ...]:
    rows = typed(top, "tables", list)
    if len(rows) > limits.tables:
        raise LimitError("too many tables", rule="R6", expected=f"at most {limits.tables}", found=len(rows))
    tables = tuple(blob_ref({"table": row}, "table") for row in rows)
    longest = max((table.length for table in tables), default=0)
    if longest > MOST_TABLE:
        raise FormatError("a table is too long", rule="R6", expected=f"at most {MOST_TABLE} bytes", found=longest)
    return tables


def _check_kind(entry: Entry) -> None:
    base, what = entry.base, None
    if base is not None:
        same = base.shape == entry.shape
        rows = len(base.shape) == len(entry.shape) >= 1 and base.shape[1:] == entry.shape[1:]
        if entry.kind in ("delta", "unchanged") and not same:
            what = "has another shape than its base"
        elif entry.kind == "grown" and not (rows and entry.shape[0] > base.shape[0]):
            what = "does not grow its base by rows"
        elif entry.kind == "shrunk" and not (rows and entry.shape[0] < base.shape[0]):
            what = "does not shrink its base by rows"
        elif entry.kind == "unchanged" and (base.dtype != entry.dtype or base.digest != entry.digest):
            what = "is said unchanged but differs from its base"
        elif entry.kind in ("delta", "grown", "shrunk") and not (base.dtype.is_delta and entry.dtype.is_delta):
            what = "has a dtype that cannot be subtracted"
    what = next(filter(None, (fault_of_term(term, entry) for term in entry.terms)), what)
    if what is None and (entry.digests is not None) != entry.needs_digests:
        what = "has chunk digests where it must not, or none where it must"
    if what is None and entry.digests is not None and entry.digests.length != entry.digests_length:
        what = "has chunk digests of the wrong length"
    if what is not None:
        raise FormatError(f"the entry {what}", rule="R6")


def _stats(row: Any) -> Stats:
    stats = typed(row, "stats", dict)
    check_keys(stats, "stats", required={"l1", "max_abs"})
    values = [typed(stats, key, str) for key in ("l1", "max_abs")]
    for value in values:
        if len(value) > _FLOAT_CHARS or not _FLOAT.fullmatch(value):
            expected = f"at most {_FLOAT_CHARS} characters, such as 1.5e-3"
            raise FormatError("stats are not decimal numbers", rule="R6", expected=expected, found=value[: _FLOAT_CHARS + 1])
    return Stats(*values)


def _check_entries(index: Index) -> None:
    names = [entry.name for entry in index.entries]
    sorted_unique(names, "tensors")
    held = {entry.name for entry in index.entries if entry.in_result}
    bases = [entry.base.name for entry in index.entries if entry.base is not None]
    for entry in index.entries:
        if entry.kind == EXACT and EXACT not in index.required:
            raise FormatError("an exact tensor without the feature", tensor=entry.name, rule="R6", expected=EXACT)
        missing = frozenset().union(*(term.features for term in entry.terms)) - frozenset(index.required)
        if missing:
            raise FormatError("a term without its feature", tensor=entry.name, rule="R6", expected=min(missing))
        if entry.kind == "alias" and entry.of not in held:
            raise FormatError("an alias of no tensor", tensor=entry.name, rule="R6", found=entry.of)
    held_by_base = {name for entry in index.entries if entry.base is not None for name in entry.base.held}
    lost = held_by_base - {*bases, *(entry.name for entry in index.entries if entry.kind in ("stored", EXACT, "alias"))}
    if lost:
        raise FormatError("a piece is of a tensor that no entry speaks of", rule="R6", found=min(lost))
    if len(set(bases)) != len(bases):
        raise FormatError("two entries use the same base tensor", rule="R6")
    if len(held_by_base) > index.base_tensors or len(held) != index.result_tensors:
        raise FormatError("the tensor counts do not match the entries", rule="R6")
    nbytes = sum(entry.nbytes for entry in index.entries)
    if nbytes != index.result_bytes:
        raise FormatError("the result has another size", rule="R6", expected=nbytes, found=index.result_bytes)
    found = fingerprint((entry.name, entry.dtype.name, entry.shape, entry.digest) for entry in index.entries if entry.in_result)
    if found != index.result_fingerprint:
        raise FormatError("the result has another fingerprint", rule="R6", expected=found, found=index.result_fingerprint)


def _check_blobs(blobs: Iterable[BlobRef], index_offset: int) -> None:
    end = PROLOGUE_BYTES
    for blob in blobs:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        if blob.offset != start or blob.end > index_offset:
            raise FormatError("blobs overlap or leave a hole", rule="R7", expected=start, found=blob.offset)
        end = blob.end
    if -(-end // ALIGNMENT) * ALIGNMENT != index_offset:
        raise FormatError("blobs do not end at the index", rule="R7", expected=index_offset, found=end)
