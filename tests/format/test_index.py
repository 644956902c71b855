"""Rules R4 to R7 and R13 on generated indices."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import ROOT, reference_decoder
from support.laws import examples

from deltapack.dtypes import BY_NAME, DType
from deltapack.errors import DeltapackError, FormatError, LimitError, UnsupportedError
from deltapack.format.canonical import dump_canonical
from deltapack.format.codecs import FACTORS, INDEX_CODECS, SCALES, VALUE_CODECS, ScaleSearch, ValueCodec
from deltapack.format.digest import CHUNK, chunk_count, fingerprint
from deltapack.format.features import features_of
from deltapack.format.fields import CONTROL
from deltapack.format.index import (
    KINDS,
    BaseRef,
    BlobRef,
    Entry,
    ExactStep,
    FileEntry,
    Index,
    Stats,
    Term,
    bits_of_f32,
    f32_of_bits,
)
from deltapack.format.parsing import parse_index
from deltapack.format.paths import check_side_name
from deltapack.format.reader import PackReader
from deltapack.limits import DEFAULT_LIMITS, Limits

FLOATS = [dtype for dtype in BY_NAME.values() if dtype.is_delta]
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=6)
hexes = {digits: st.text("0123456789abcdef", min_size=digits, max_size=digits) for digits in (16, 32, 64)}
lengths = st.integers(0, 40)
trailing = st.lists(st.integers(0, 5), max_size=2).map(tuple)


class Blobs:
    """Hands out blob references that fill a file."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw, self.end = draw, 64

    def __call__(self, length: int | None = None) -> BlobRef:
        start = -(-self.end // 8) * 8
        size = self.draw(lengths) if length is None else length
        self.end = start + size
        return BlobRef(start, size, self.draw(hexes[16]))

    @property
    def index_offset(self) -> int:
        return -(-self.end // 8) * 8


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def draw_term(draw: Callable[[Any], Any], shape: tuple[int, ...], common: int, blobs: Blobs) -> Term:
    """Return a term of a tensor of this shape: a product of factors where there can be one, or a sparse one."""
    if common and len(shape) > 1 and draw(st.booleans()):
        rank = draw(st.integers(1, min(256, shape[-1], common // shape[-1])))
        return Term("all", FACTORS.name, draw(finite), common, blobs(), rank=rank, bits=draw(st.sampled_from([2, 4, 8])))
    index, values = INDEX_CODECS[draw(st.sampled_from(sorted(INDEX_CODECS)))], VALUE_CODECS[draw(st.sampled_from(sorted(VALUE_CODECS)))]
    ways = ([] if values.scaled and not values.grouped else [""]) + (
        list(SCALES) if common and len(shape) > 1 else [SCALES[0]]
    ) * values.scaled
    scales = draw(st.sampled_from(ways))
    dropped = scales in SCALES[1:]
    return Term(
        index.name,
        values.name,
        draw(finite),
        common if index.kept == "all" and not dropped else draw(st.integers(0, common)),
        blobs(),
        **{parameter.name: draw(st.integers(parameter.least, parameter.most)) for parameter in index.parameters},
        scales=scales,
        scale=draw(finite) if scales else 0.0,
        lines=blobs() if dropped else None,
    )


@pytest.mark.parametrize(
    "row",
    [
        {"bits": 3, "search": ScaleSearch(4, 3, 2)},
        {"bits": 4, "search": ScaleSearch(16, 3, 2)},
        {"bits": 8},
        {"bits": 16, "dtype": BY_NAME["f32"]},
        {"bits": 32, "dtype": BY_NAME["f32"], "search": ScaleSearch(4, 3, 2)},
        {"bits": 32, "dtype": BY_NAME["f32"]},
        {"bits": 2, "coding": "trits"},
    ],
)
def test_value_codecs_that_cannot_be(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ValueCodec("odd", **row)


@pytest.mark.parametrize("search", [(1, 3, 2), (129, 3, 2), (4, 0, 2), (4, 8, 2), (4, 3, 0)])
def test_searches_that_cannot_be(search: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        ScaleSearch(*search)


def test_every_parameter_of_an_index_codec_is_a_field_of_a_term() -> None:
    fields = {field.name for field in dataclasses.fields(Term)}
    assert {parameter.name for row in INDEX_CODECS.values() for parameter in row.parameters} <= fields
    assert all(name == row.name for table in (INDEX_CODECS, VALUE_CODECS) for name, row in table.items())


def draw_shapes(draw: Callable[[Any], Any], kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the result and of the base."""
    rest = draw(trailing)
    if kind in ("grown", "shrunk"):
        small = draw(st.integers(0, 3))
        large = small + draw(st.integers(1, 3) | st.just(CHUNK))
        return ((large, *rest), (small, *rest)) if kind == "grown" else ((small, *rest), (large, *rest))
    shape = draw(st.just(()) | st.just((CHUNK + 1, *rest)) | st.just((2, *rest)))
    return shape, shape


def draw_exact(draw: Callable[[Any], Any], name: str, blobs: Blobs) -> Entry:
    """Return an exact entry: with a base that it starts from or only replaces, or without one."""
    (shape, base_shape), pool = draw_shapes(draw, draw(st.sampled_from(["delta", "grown", "shrunk"]))), sorted(BY_NAME)
    dtype, base_dtype = (BY_NAME[draw(st.sampled_from(pool))] for _ in range(2))
    base = BaseRef(f"base of {name}", draw(st.sampled_from([dtype, base_dtype])), base_shape, draw(hexes[32]))
    steps = tuple(ExactStep(blobs(), draw(st.integers(0, 9))) for _ in range(draw(st.integers(1, 3))))
    entry = Entry(name, "exact", dtype, shape, draw(hexes[32]), draw(st.none() | st.just(base)), exact=steps)
    return dataclasses.replace(entry, digests=blobs(entry.digests_length)) if entry.needs_digests else entry


def draw_entry(draw: Callable[[Any], Any], name: str, kind: str, target: str, blobs: Blobs) -> Entry:
    if kind == "alias":
        return Entry(name, kind, of=target)
    if kind == "exact":
        return draw_exact(draw, name, blobs)
    shape, base_shape = draw_shapes(draw, kind)
    digest = draw(hexes[32])
    pool: list[DType] = FLOATS if kind in ("delta", "grown", "shrunk") else list(BY_NAME.values())
    dtype = draw(st.sampled_from(pool))
    base_dtype = dtype if kind == "unchanged" else draw(st.sampled_from(pool))
    base_digest = digest if kind == "unchanged" else draw(hexes[32])
    # The prefix keeps base names unique without another set to draw from.
    base_name = name if kind == "removed" or draw(st.booleans()) else f"base of {name}"
    base = None if kind == "stored" else BaseRef(base_name, base_dtype, base_shape, base_digest)
    if kind == "removed":
        return Entry(name, kind, base=base)
    common = 0 if base is None else min(math.prod(shape), math.prod(base_shape))
    terms: tuple[Term, ...] = ()
    if kind in ("delta", "grown", "shrunk"):
        terms = tuple(draw_term(draw, shape, common, blobs) for _ in range(draw(st.integers(0, 2))))
    stored = blobs() if kind in ("grown", "stored") else None
    sizes = [math.prod(shape)] + ([math.prod(base_shape)] if base is not None else [])
    wanted = kind != "unchanged" and max(sizes) > CHUNK
    digests = blobs(16 * sum(map(chunk_count, sizes))) if wanted else None
    stats = Stats("1.5", "2e-05") if kind == "delta" and draw(st.booleans()) else None
    return Entry(name, kind, dtype, shape, digest, base, terms, stored, digests, stats)


@st.composite
def indices(draw: Callable[[Any], Any]) -> tuple[Index, int]:
    """A valid index and where it stands in its file."""
    blobs = Blobs(draw)
    found = sorted(draw(st.lists(names, max_size=5, unique=True)), key=str.encode)
    kinds = [draw(st.sampled_from(sorted(KINDS))) for _ in found]
    held = [name for name, kind in zip(found, kinds, strict=True) if kind not in ("alias", "removed")]
    kinds = [kind if held or kind != "alias" else "removed" for kind in kinds]
    entries = tuple(draw_entry(draw, name, kind, held[0] if held else "", blobs) for name, kind in zip(found, kinds, strict=True))
    files = None
    if draw(st.booleans()):
        plain = st.text("abcdefgh_-é", min_size=1, max_size=5)
        chosen = sorted(draw(st.lists(plain, max_size=3, unique=True)), key=str.encode)
        files = tuple(FileEntry(name, draw(lengths), draw(hexes[64]), blobs() if draw(st.booleans()) else None) for name in chosen)
    required = features_of(entries)
    tables = tuple(blobs() for _ in range(draw(st.integers(0, 2)))) if "exact" in required else ()
    result = [entry for entry in entries if entry.in_result]
    index = Index(
        base_fingerprint=draw(hexes[64]),
        base_tensors=len(entries) + draw(st.integers(0, 3)),
        result_fingerprint=fingerprint((e.name, e.dtype.name, e.shape, e.digest) for e in result),
        result_tensors=len(result),
        result_bytes=sum(entry.nbytes for entry in result),
        recipe={"method": "dare", "seed": "0"},
        entries=entries,
        files=files,
        created_by=draw(names),
        required=required,
        optional={"note": [1, None, True]} if draw(st.booleans()) else {},
        tables=tables,
    )
    return index, blobs.index_offset


@examples(150)
@given(indices())
def test_round_trip(generated: tuple[Index, int]) -> None:
    index, offset = generated
    assert parse_index(dump_canonical(index.to_json()), offset, DEFAULT_LIMITS) == index


def nodes(document: Any) -> list[tuple[Any, Any]]:
    """Every place (container, key) of a document."""
    keys = document.keys() if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [place for key in list(keys) for place in [(document, key), *nodes(document[key])]]


junk: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, -1, 7, 2**32, 2**53 - 1, "", "a", "0" * 32, "f" * 8, "7fc00000", [], [0], [64, 0, "0" * 16], {}]
)


@examples(300)
@given(indices(), st.data())
def test_any_edit_is_refused_or_parsed_to_the_same_document(generated: tuple[Index, int], data: st.DataObject) -> None:
    index, offset = generated
    document = copy.deepcopy(index.to_json())
    container, key = data.draw(st.sampled_from(nodes(document)))
    action = data.draw(st.sampled_from(["replace", "delete", "add", "double"]))
    if action == "replace":
        container[key] = data.draw(junk)
    elif action == "delete":
        del container[key]
    elif isinstance(container, dict):
        container["surplus"] = data.draw(junk)
    elif action == "double":
        container.insert(key, copy.deepcopy(container[key]))
    else:
        container.append(data.draw(junk))
    try:
        parsed = parse_index(dump_canonical(document), offset, DEFAULT_LIMITS)
    except DeltapackError as error:
        assert error.rule in ("R4", "R5", "R6", "R7", "R13")
    else:
        # `terms` may be absent from no kind, so what was accepted must come out as it went in.
        assert dump_canonical(parsed.to_json() | {"optional": document.get("optional")}) == dump_canonical(
            document | {"optional": document.get("optional")}
        )


def small(*kinds: str) -> dict[str, Any]:
    """The document of a pack with tensors a, b, ... of these kinds, each of two f32."""
    rows, f32 = [], BY_NAME["f32"]
    end = 64
    for letter, kind in zip("abcdefgh", kinds, strict=False):
        base = BaseRef(letter, f32, (2,), "0" * 32)
        blob = BlobRef(end, 8, "0" * 16)
        if kind == "stored":
            rows.append(Entry(letter, kind, f32, (2,), "1" * 32, stored=blob))
        elif kind == "delta":
            rows.append(Entry(letter, kind, f32, (2,), "1" * 32, base, (Term("gaps", "f32", 1.0, 1, blob),)))
        elif kind == "removed":
            rows.append(Entry(letter, kind, base=base))
            continue
        elif kind == "unchanged":
            rows.append(Entry(letter, kind, f32, (2,), "0" * 32, base))
            continue
        else:
            rows.append(Entry(letter, kind, of="a"))
            continue
        end += 8
    held = [row for row in rows if row.in_result]
    digest = fingerprint((row.name, "f32", (2,), row.digest) for row in held)
    return Index("0" * 64, len(rows), digest, len(held), 8 * len(held), {}, tuple(rows), created_by="t").to_json()


def parse(document: Any, offset: int = 72, limits: Limits = DEFAULT_LIMITS) -> Index:
    return parse_index(dump_canonical(document), offset, limits)


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path such as `tensors/0/shape`."""

    def apply(document: dict[str, Any]) -> None:
        target: Any = document
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in parents:
            target = target[part]
        target[last] = value

    return apply


@pytest.mark.parametrize(
    ("change", "rule", "error"),
    [
        (edit("format", "zip"), "R4", FormatError),
        (edit("format", None), "R4", FormatError),
        (edit("required", ["b", "a"]), "R4", FormatError),
        (edit("required", ["a", "a"]), "R4", FormatError),
        (edit("required", [1]), "R4", FormatError),
        (edit("required", ["gears"]), "R5", UnsupportedError),
        (edit("base/tensors", True), "R4", FormatError),
        (edit("base/tensors", -1), "R6", FormatError),
        (edit("base/tensors", 0), "R6", FormatError),
        (edit("base/fingerprint", "0" * 63), "R4", FormatError),
        (edit("base/fingerprint", "A" * 64), "R4", FormatError),
        (edit("base/fingerprint", "0" * 63 + "\n"), "R4", FormatError),
        (edit("result/tensors", 2), "R6", FormatError),
        (edit("result/bytes", 9), "R6", FormatError),
        (edit("result/fingerprint", "0" * 64), "R6", FormatError),
        (edit("recipe", []), "R4", FormatError),
        (edit("created_by", 1), "R4", FormatError),
        (edit("optional", []), "R4", FormatError),
        (edit("surplus", 1), "R4", FormatError),
        (edit("tensors/0", 1), "R4", FormatError),
        (edit("tensors/0/kind", ["delta"]), "R4", FormatError),
        (edit("tensors/0/kind", "rotated"), "R5", UnsupportedError),
        (edit("tensors/0/dtype", "f4"), "R5", UnsupportedError),
        (edit("tensors/0/dtype", 4), "R4", FormatError),
        (edit("tensors/0/dtype", "i32"), "R6", FormatError),
        (edit("tensors/0/shape", [3]), "R6", FormatError),
        (edit("tensors/0/shape", [-2, -1]), "R6", FormatError),
        (edit("tensors/0/shape", [True, 2]), "R4", FormatError),
        (edit("tensors/0/shape", [1] * 9), "R6", LimitError),
        (edit("tensors/0/shape", [1 << 30, 1 << 30, 1 << 30, 1 << 30]), "R6", LimitError),
        (edit("tensors/0/digest", ""), "R4", FormatError),
        (edit("tensors/0/name", ""), "R6", FormatError),
        (edit("tensors/0/name", "a\n"), "R6", FormatError),
        (edit("tensors/0/name", "a\x85"), "R6", FormatError),
        (edit("tensors/0/name", "é" * 257), "R6", FormatError),
        (edit("tensors/0/base", {"digest": "0" * 32, "name": "a"}), "R6", FormatError),
        (edit("tensors/0/base", {"digest": "0" * 32, "dtype": "f32"}), "R6", FormatError),
        (edit("tensors/0/base", {"digest": "0" * 32, "shape": [2]}), "R6", FormatError),
        (edit("tensors/0/base", {"digest": "0" * 32, "shape": [3]}), "R6", FormatError),
        (edit("tensors/0/base", {"digest": "0" * 32, "dtype": "i8"}), "R6", FormatError),
        (edit("tensors/0/base", {}), "R4", FormatError),
        (edit("tensors/0/terms", [1]), "R4", FormatError),
        (edit("tensors/0/terms/0/index", "tree"), "R5", UnsupportedError),
        (edit("tensors/0/terms/0/values", "int0"), "R5", UnsupportedError),
        (edit("tensors/0/terms/0/values", ["f32"]), "R4", FormatError),
        (edit("tensors/0/terms/0/factor", "7f800000"), "R6", FormatError),
        (edit("tensors/0/terms/0/factor", "ffc00000"), "R6", FormatError),
        (edit("tensors/0/terms/0/nnz", 3), "R6", FormatError),
        (edit("tensors/0/terms/0/nnz", -1), "R6", FormatError),
        (edit("tensors/0/terms/0/shift", 16), "R6", FormatError),
        (edit("tensors/0/terms/0/shift", -1), "R6", FormatError),
        (edit("tensors/0/terms/0/keep", 1), "R4", FormatError),
        (edit("tensors/0/terms/0/blob", [64, 8]), "R4", FormatError),
        (edit("tensors/0/terms/0/blob", [64, True, "0" * 16]), "R4", FormatError),
        (edit("tensors/0/terms/0/blob", [-8, 8, "0" * 16]), "R4", FormatError),
        (edit("tensors/0/terms/0/blob", [72, 0, "0" * 16]), "R7", FormatError),
        (edit("tensors/0/terms/0/blob", [64, 9, "0" * 16]), "R7", FormatError),
        (edit("tensors/0/terms/0/blob", [64, 0, "0" * 16]), "R7", FormatError),
        (edit("tensors/0/terms/0/blob", [64, 2**53 - 1, "0" * 16]), "R7", FormatError),
        (edit("tensors/0/digests", [72, 32, "0" * 16]), "R6", FormatError),
        (edit("tensors/0/stats", {"l1": "1", "max_abs": "nan"}), "R6", FormatError),
        (edit("tensors/0/stats", {"l1": "1", "max_abs": 1}), "R4", FormatError),
        (edit("tensors/0/stored", [72, 8, "0" * 16]), "R4", FormatError),
        (edit("files", {}), "R4", FormatError),
        (edit("files", [{"name": "../x", "size": 1, "sha256": "0" * 64}]), "R13", FormatError),
        (edit("files", [{"name": "x", "size": 1 << 40, "sha256": "0" * 64}]), "R6", LimitError),
        (edit("files", [{"name": name, "size": 1, "sha256": "0" * 64} for name in ("a", "a/b")]), "R13", FormatError),
        (edit("files", [{"name": name, "size": 1, "sha256": "0" * 64} for name in ("b", "a")]), "R6", FormatError),
        (edit("files", [{"name": f"{i:04}", "size": 1, "sha256": "0" * 64} for i in range(1001)]), "R6", LimitError),
    ],
)
def test_broken_rules(change: Callable[[dict[str, Any]], None], rule: str, error: type[DeltapackError]) -> None:
    document = small("delta")
    assert parse(document).entries[0].kind == "delta"
    change(document)
    with pytest.raises(DeltapackError) as caught:
        parse(document)
    assert (caught.value.rule, type(caught.value)) == (rule, error)


@pytest.mark.parametrize(
    ("kinds", "change", "text"),
    [
        (("stored", "alias"), edit("tensors/1/of", "c"), "alias"),
        (("stored", "alias"), edit("tensors/1/of", "b"), "alias"),
        (("removed", "stored"), edit("tensors/0/base/name", "z"), "second name"),
        (("removed", "stored"), edit("tensors/0/base/name", "a"), "second name"),
        (("unchanged",), edit("tensors/0/digest", "2" * 32), "unchanged"),
        (("unchanged",), edit("tensors/0/base/dtype", "f16"), "unchanged"),
        (("unchanged", "delta"), edit("tensors/1/base/name", "a"), "same base tensor"),
        (("unchanged", "unchanged"), edit("tensors/1/name", "a"), "stands twice"),
        (("unchanged", "unchanged"), edit("tensors/0/name", "z"), "sorted"),
    ],
)
def test_entries_that_contradict(kinds: tuple[str, ...], change: Callable[[dict[str, Any]], None], text: str) -> None:
    document = small(*kinds)
    offset = 64 + 8 * sum(kind in ("delta", "stored") for kind in kinds)
    parse(document, offset)
    change(document)
    with pytest.raises(FormatError, match=text) as caught:
        parse(document, offset)
    assert caught.value.rule == "R6"


def test_error_names_the_tensor() -> None:
    document = small("unchanged", "delta")
    document["tensors"][1]["terms"][0]["nnz"] = 3
    with pytest.raises(FormatError) as caught:
        parse(document)
    assert caught.value.tensor == "b"


def test_required_features_come_before_unknown_keys() -> None:
    """A later version may have other keys; the message must be about the version, not about the keys."""
    document = small("delta") | {"required": ["gears"], "gears": 1}
    with pytest.raises(UnsupportedError, match="gears"):
        parse(document)


def test_limits_can_be_widened_and_narrowed() -> None:
    document = small("unchanged", "delta")
    parse(document)
    for limits in (Limits(tensors=1), Limits(numel=1), Limits(terms=0), Limits(ndim=0)):
        with pytest.raises(LimitError):
            parse(document, limits=limits)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/x", "x/", "a//b", "a/../b", "./a", "a\\b", "C:x", "a\0", "a\x7f", "a\x9f", ".git/config", "a/.b"),
        *("model.safetensors", "MODEL.SafeTensors", "x/model.safetensors.index.json", "é" * 257),
    ],
)
def test_side_file_names_that_are_refused(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        check_side_name(name)
    assert caught.value.rule == "R13"


@pytest.mark.parametrize("name", ["config.json", "a/b/c.txt", "a.b.c", "é/ü", "a b", "x..", "tokenizer.model"])
def test_side_file_names_that_are_taken(name: str) -> None:
    check_side_name(name)


def test_control_characters_are_those_of_unicode() -> None:
    found = {code for code in range(0x3000) if CONTROL.search(chr(code))}
    assert found == {*range(0x20), *range(0x7F, 0xA0)}


@given(st.floats(width=32, allow_nan=False))
def test_f32_bits_round_trip(value: float) -> None:
    assert bits_of_f32(f32_of_bits(bits_of_f32(value))) == bits_of_f32(value)


VECTORS = sorted(path for pattern in ("v1-ok-*.dpk", "v1-several-*.dpk") for path in (ROOT / "tests" / "vectors").glob(pattern))


def test_every_valid_vector_is_written_as_it_was_read() -> None:
    """Fields, their names and the features that a writer names, of an index that this package has not made."""
    for path in VECTORS:
        document = reference_decoder().read_pack(path)["index"]
        with PackReader(path) as reader:
            index = reader.index
        assert index.to_json() == document, path.name
        assert list(features_of(index.entries, index.files, index.folders, index.containers)) == document["required"], path.name
