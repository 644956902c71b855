"""Vectors of exact tensors (section 3.12), for make_vectors.py only: valid ones, invalid ones, several packs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vectors import exact
from vectors.arranged import EXPERTS, IN_ORDER, STACKED, arrange, piece
from vectors.assemble import FLOATS, Blob, Json, Pack, Tensor, zstd
from vectors.faults import CHECKSUM, FORMAT, LIMIT, MISMATCH, Case, drop, put
from vectors.scalar import CHUNK, ITEMSIZE
from vectors.valid import floats, special, tensor
from vectors.weighted import numbers, rolled, with_weight


def near(old: Tensor, seed: int) -> Tensor:
    """Other elements, most of which differ by little."""
    size = ITEMSIZE[old.dtype]
    moved = ((old.bits(i) + z % 5) % (1 << 8 * size) for i, z in enumerate(exact.noise(old.numel, seed)))
    return Tensor(old.dtype, old.shape, b"".join(bits.to_bytes(size, "little") for bits in moved))


OLD = floats("bf16", (4, 3))
NEW = near(OLD, 80)


def noise(dtype: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bits."""
    count, size = shape[0] * shape[1], ITEMSIZE[dtype]
    data = b"".join(z.to_bytes(8, "little")[:size] for z in exact.noise(count, seed))
    return Tensor(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "bool" else data)


def one(new: Tensor = NEW, **options: object) -> Pack:
    """A tensor that starts from one of its name, type and shape: twin of most invalid vectors."""
    return Pack().exact("w", new, ("w", OLD), **options)  # type: ignore[arg-type]


def types() -> Iterator[tuple[str, str, Pack]]:
    """Element types."""
    pack = Pack()
    for number, dtype in enumerate(ITEMSIZE):
        old, new = noise(dtype, (3, 4), number), noise(dtype, (3, 4), number + 50)
        new = new if dtype == "bool" else near(old, number)
        pack.exact(f"{dtype}.partner", new, (f"{dtype}.partner", old)).exact(f"{dtype}.alone", new)
    yield "exact-types", "every type, with and without a partner", pack
    pack = Pack()
    for old_type in FLOATS:
        for dtype in FLOATS:
            name = f"{old_type}.{dtype}"
            pack.exact(name, rolled(special(dtype)), (name, special(old_type)))
    yield "exact-convert", "a partner of another float type is converted, one of the same keeps its NaNs", pack
    pack = Pack().exact("same", Tensor("raw4:F4", (3, 4), b"abcdef"), ("same", Tensor("raw4:F4", (3, 4), b"fbcdea")))
    pack.exact("rows", Tensor("raw6:F6_E3M2", (6, 4), bytes(range(18))), ("rows", Tensor("raw6:F6_E3M2", (2, 4), bytes(range(6)))))
    pack.exact("other", Tensor("raw8:X", (3,), b"\1\2\3"), ("other", Tensor("raw8:Y", (3,), b"\1\2\4")))
    yield (
        "exact-raw-types",
        "bytes; two raw types are no partners",
        pack.exact("new", Tensor("raw16:Z", (2,), b"abcd")).requires("raw-types"),
    )


def shapes() -> Iterator[tuple[str, str, Pack]]:
    """Rows, and what is no partner."""
    more, less, none = floats("bf16", (6, 3), 81), floats("bf16", (3, 3), 82), tensor("bf16", (0, 3), [])
    pack = Pack().exact("grown", more, ("grown", OLD)).exact("shrunk", less, ("shrunk", OLD)).exact("renamed", NEW, ("old.w", OLD))
    pack.exact("grown.f32", floats("f32", (6, 3), 81), ("grown.f32", OLD)).exact("shrunk.f64", less, ("shrunk.f64", floats("f64", (4, 3))))
    pack.exact("vector", tensor("i32", (7,), [9, 8, 7, 0, 0, 1, 0]), ("vector", tensor("i32", (4,), [9, 8, 6, 0])))
    pack.exact("to-none", none, ("to-none", OLD)).exact("from-none", less, ("from-none", none)).exact("none", none, ("none", none))
    yield "exact-rows", "rows that the partner has not are coded after zeros", pack.exact("none.alone", none)
    pack = Pack().exact("rank", NEW, ("rank", floats("bf16", (4, 3, 1)))).exact("flat", NEW, ("flat", floats("bf16", (12,))))
    pack.exact("turned", NEW, ("turned", floats("bf16", (3, 4)))).exact("wider", NEW, ("wider", floats("bf16", (4, 4))))
    pack.exact("signed", tensor("i16", (3,), [1, 2, 65535]), ("signed", tensor("u16", (3,), [1, 2, 65535])))
    pack.exact("of-float", tensor("i16", (3,), [1, 2, 3]), ("of-float", floats("bf16", (3,))))
    pack.exact("of-complex", floats("f32", (2,)), ("of-complex", tensor("c64", (2,), 7))).exact("unsaid", NEW, over=OLD)
    pack.exact("scalar", floats("f32", ()), ("scalar", floats("f32", (1,), 3))).exact("old-name", NEW, ("another", floats("f16", (7,))))
    pack.base["flat"] = floats("bf16", (12,), 7)  # what is merely replaced is not compared
    yield "exact-replaces", "tensors of the base that are no partners", pack
    pack = Pack().exact("partner", floats("f32", (), 2), ("partner", floats("f32", ()))).exact("alone", tensor("u8", (), 7))
    yield "exact-scalar", "shape []", pack.exact("converted", floats("f64", (), 2), ("converted", floats("f16", ())))


def steps() -> Iterator[tuple[str, str, Pack]]:
    """Several steps, and tables that chunks share."""
    states = [near(OLD, seed) for seed in (83, 84)]
    pack = one(through=states).exact("alone", NEW, through=states).exact("back", OLD, ("back", OLD), through=[NEW, NEW])
    pack.exact("rows", floats("bf16", (6, 3), 81), ("rows", OLD), through=[floats("bf16", (6, 3), 85)])
    yield "exact-steps", "each step starts from the result of the one before", pack.exact("64", NEW, ("64", OLD), through=[NEW] * 63)
    pack, kind = Pack(), exact.KINDS["bf16"]
    chunks: list[bytes] = []
    for lanes, seed in ((4, 1), (1, 86)):
        old, new = (exact.numbers(t.data, kind) for t in (OLD, near(OLD, seed)))
        chunk, table = exact.shared(exact.dense(old, new, kind, lanes=lanes), len(chunks), lanes)
        chunks.append(exact.spell(chunk))
        pack.shares(table)
    last, own = near(OLD, 86), chunks[1]
    pack.exact("a", near(OLD, 1), ("a", OLD), chunks=chunks[:1]).exact("b", last, ("b", OLD), chunks=[own])
    shifted = bytes([own[0], own[1] - 4]) + own[2:]
    pack.exact("c", last, ("c", OLD), chunks=[shifted], tables=[1]).exact("d", NEW, ("d", OLD), through=[last], chunks=[own], tables=[0, 9])
    yield "exact-tables", "chunks that share tables; numbers of tables from that of a step on", pack.file("x", b"1")
    pack = one().shares(bytes(32_774))
    for _ in range(4095):
        pack.shares(b"")
    yield "exact-4096-tables", "tables that no chunk refers to, of any bytes", pack


def chunks() -> Iterator[tuple[str, str, Pack]]:
    """More than one chunk."""

    def row(count: int, *last: int) -> Tensor:
        return Tensor("u8", (count,), bytes(count - len(last)) + bytes(last))

    pack = Pack().exact("across", row(CHUNK + 5, 1, 2, 3, 4), ("across", row(CHUNK + 2, 1)))
    pack.exact("beyond", row(CHUNK + 5, 1), ("beyond", row(7))).exact("at-end", row(CHUNK + 1, 1), ("at-end", row(CHUNK)))
    pack.exact("alone", row(CHUNK + 5, 1, 2)).exact("shrunk", row(3, 1, 2), ("shrunk", row(CHUNK + 2, 1)))
    replaced = Tensor("i8", (CHUNK + 1,), bytes(CHUNK + 1))
    pack.exact("replaces", row(3, 1), ("replaces", replaced))
    pack.exact("replaces.2", row(CHUNK + 2, 9), ("replaces.2", Tensor("u8", (0, 3), b"")))
    pack.exact("steps", row(CHUNK + 5, 1), ("steps", row(7)), through=[row(CHUNK + 5, 8, 9)])
    yield "exact-chunks", "partners that end before, in and at the end of a chunk; chunk digests only where there is no partner", pack


def arranged() -> Iterator[tuple[str, str, Pack]]:
    """Exact tensors and arranged ones."""
    pack, made = Pack(), arrange(STACKED, IN_ORDER, EXPERTS)
    for name, held in EXPERTS.items():
        pack.removed(name, held)
    pack.exact("w", floats("bf16", made.shape, 88), ("w", made)).made_of(STACKED, IN_ORDER)
    yield "exact-arranged", "a partner that is made of others", pack
    held = floats("bf16", (4, 6), 71)
    pack = Pack().exact("t", tensor("u8", (1,), 1), over=held).unchanged("w", held).made_of([[4], [6]], [piece("t", 0, 0)])
    pack.base = {"t": held}
    yield "exact-of-a-piece", "a tensor of the name of a piece", pack


def weights() -> Iterator[tuple[str, str, Pack]]:
    """What a weight does."""
    pack, wide = with_weight("-2.5"), floats("f32", (4, 3), 7)
    pack.exact("bf16", NEW, ("bf16", OLD)).exact("renamed", NEW, ("old", OLD)).exact("unsaid", NEW, over=OLD)
    pack.exact("wider", wide, ("wider", OLD)).exact("narrower", NEW, ("narrower", floats("f32", (4, 3)))).exact("new", NEW)
    pack.exact("grown", floats("bf16", (6, 3), 81), ("grown", OLD)).exact("shrunk", floats("bf16", (3, 3), 82), ("shrunk", OLD))
    pack.exact("integer", tensor("i32", (2,), [1, 2]), ("integer", tensor("i32", (2,), [3, 2])))
    pack.exact("shape", floats("bf16", (12,), 7), ("shape", OLD)).exact("special", rolled(special("f16")), ("special", special("f16")))
    far = numbers("f64", [1e300, 1.0 + 2.0**-40, 3.0])
    pack.exact("far", far, ("far", numbers("f64", [2e300, 1.0, 1.0 + 2.0**-40]))).exact("steps", NEW, ("steps", OLD), through=[rolled(OLD)])
    yield "weight-exact", "a tensor of the base's shape, both float, is blended; any other is as it is", pack


def valid_exact() -> Iterator[tuple[str, str, Pack]]:
    """Name, description and pack of each valid vector."""
    yield "kind-exact", "a tensor that starts from the base's", one()
    for group in (types, shapes, steps, chunks, arranged, weights):
        yield from group()


STEP = ("tensors", 0, "exact", 0)
TABLES: Json = {"type": {}, "item": ["0"], "two-items": [[64, 0]], "negative": [[64, -1, "0" * 16]]}
"""What is no list of blobs."""


def exact_cases() -> Iterator[Case]:
    """R4 to R12."""
    yield from index_cases()
    yield from blob_cases()
    yield from chunk_cases()
    base = "kind-exact"
    yield "R11", "exact-missing", MISMATCH, "index-empty", one().build()
    halves = {"digest": OLD.digest, "dtype": "f16"}
    yield "R11", "exact-dtype", MISMATCH, base, one().build(put("tensors", 0, "base", halves))
    yield "R11", "exact-replaced-shape", MISMATCH, base, Pack().exact("w", NEW, ("w", floats("bf16", (12,)))).build()
    yield "R12", "exact-partner", MISMATCH, base, one().build(put("tensors", 0, "base", "digest", "0" * 32))
    yield "R12", "result-exact", CHECKSUM, base, one(coded=rolled(NEW)).build()
    yield "R12", "result-exact-step", CHECKSUM, base, one(through=[OLD], coded=rolled(NEW)).build()
    yield "R12", "exact-alone", CHECKSUM, None, Pack().exact("w", NEW, coded=rolled(NEW)).build()
    replaced = Pack().exact("w", NEW, ("w", tensor("i16", (4, 3), 7)), through=[OLD], coded=rolled(NEW))
    yield "R12", "exact-alone-step", CHECKSUM, None, replaced.build()
    empty = Pack().exact("w", tensor("bf16", (0, 3), []), ("w", OLD))
    empty.entries[0]["digest"] = OLD.root  # of another number of chunks
    yield "R12", "exact-alone-no-elements", CHECKSUM, None, empty.build()


def index_cases() -> Iterator[Case]:
    """R4 and R6."""
    base, same = "kind-exact", one(OLD)
    yield "R4", "lacks-index-tables", FORMAT, base, one().build(drop("tables"))
    yield "R4", "extra-index-tables", FORMAT, "kind-delta", Pack().build(put("tables", []))
    for what, tables in TABLES.items():
        yield "R4", f"type-index-tables-{what}", FORMAT, base if what in ("type", "item") else None, one().build(put("tables", tables))
    for what, item in (("int", 1), ("list", []), ("null", None)):
        yield "R4", f"step-is-{what}", FORMAT, base, one().build(put(*STEP, item))
    yield "R4", "null-step-tables", FORMAT, base, one().build(put(*STEP, "tables", None))
    yield "R6", "exact-feature", FORMAT, base, one().build(lambda index: put("required", [])(index) or drop("tables")(index))
    yield "R6", "exact-no-steps", FORMAT, base, same.build(put("tensors", 0, "exact", []))
    yield "R6", "exact-65-steps", FORMAT, base, one(OLD, through=[OLD] * 64).build()
    yield "R6", "exact-tables-0", FORMAT, base, one().build(put(*STEP, "tables", 0))
    yield "R6", "exact-tables-negative", FORMAT, base, one().build(put(*STEP, "tables", -1))
    many = one()
    for _ in range(4097):
        many.shares(b"")
    yield "R6", "tables-4097", LIMIT, base, many.build()
    yield "R6", "tables-too-long", FORMAT, base, one().shares(bytes(32_775)).build()
    row = Tensor("u8", (CHUNK + 2,), bytes(CHUNK + 1) + b"\1")
    based = Pack().exact("across", row, ("across", row))
    based.entries[0]["digests"] = Blob(b"".join(2 * row.chunk_digests))
    yield "R6", "digests-exact-partner", FORMAT, "exact-chunks", based.build()
    alone = Pack().exact("w", row)
    del alone.entries[0]["digests"]
    yield "R6", "digests-exact-missing", FORMAT, "index-empty", alone.build()


def blob_cases() -> Iterator[Case]:
    """R8. A step's blob has 8 bytes of hash, two lengths and the chunk."""
    base = "kind-exact"

    def edited(edit: Callable[[Blob], None]) -> bytes:
        pack = one()
        edit(pack.entries[0]["exact"][0]["blob"])
        return pack.build()

    def flip(blob: Blob) -> None:
        blob.flip = 1

    def short(blob: Blob) -> None:
        blob.data, blob.hashed = blob.data[:15], None

    def cut(blob: Blob) -> None:
        blob.data = blob.data[:-1]

    def more(blob: Blob) -> None:
        blob.data += b"\0"

    def stored(spoil: Callable[[Json], None]) -> bytes:
        return one(spoil=spoil).build()

    yield "R8", "exact-table-hash", CHECKSUM, base, edited(flip)
    yield "R8", "exact-payload-hash", CHECKSUM, base, stored(lambda chunk: chunk.update(flip=1))
    yield "R8", "exact-under-table", FORMAT, base, edited(short)
    yield "R8", "exact-payload-past-blob", FORMAT, base, edited(cut)
    yield "R8", "exact-payload-then-more", FORMAT, base, edited(more)
    yield "R8", "exact-stored-over-raw", FORMAT, base, stored(lambda chunk: chunk.update(streams=[(chunk["streams"][0][0], 1)]))
    kind = exact.KINDS["bf16"]
    flat = tensor("bf16", (400,), 0x3F80)
    as_it_is = exact.spell(exact.planes(exact.numbers(flat.data, kind), kind, ["stored", "stored"]))
    frame = Pack().exact("w", flat, chunks=[as_it_is], spoil=lambda chunk: chunk.update(streams=[(zstd(as_it_is), len(as_it_is))]))
    yield "R8", "exact-frame", FORMAT, "index-empty", frame.build()
    yield "R8", "exact-raw-zero", FORMAT, base, stored(lambda chunk: chunk.update(streams=[(b"", 0)]))
    # A table of more symbols than there are elements: of 24 bytes more than 112.
    x, y = (exact.numbers(t.data, kind) for t in (OLD, NEW))
    long = exact.spell(exact.dense(x, y, kind, precision=12, besides=dict.fromkeys(range(90), 1)))
    assert len(long) > 64 + 2 * len(NEW.data)
    yield "R8", "exact-raw-long", FORMAT, base, one(chunks=[long]).build()
    table = one().shares(b"any bytes")
    table.extra["tables"][0].flip = 1
    yield "R8", "tables-hash", CHECKSUM, base, table.build()


def chunk_cases() -> Iterator[Case]:
    """R9 and R10."""
    base, kind = "kind-exact", exact.KINDS["bf16"]

    def flip_last(chunk: Json) -> None:
        data = chunk["streams"][0][0]
        chunk["streams"] = [(data[:-1] + bytes([data[-1] ^ 1]), len(data))]

    turn = iter((0, 1))
    yield "R9", "exact-damaged", FORMAT, base, one(spoil=flip_last).build()
    second = one(through=[near(OLD, 83)], spoil=lambda chunk: flip_last(chunk) if next(turn) else None)
    yield "R9", "exact-damaged-step", FORMAT, base, second.build()
    replaced = Pack().exact("signed", tensor("i16", (3,), 1), ("signed", tensor("u16", (3,), [1, 2, 65535])), chunks=[b"\0"])
    yield "R9", "exact-no-partner", FORMAT, "exact-replaces", replaced.build()
    row = Tensor("u8", (CHUNK + 1,), bytes(CHUNK + 1))
    past = Pack().exact("at-end", row, ("at-end", Tensor("u8", (CHUNK,), bytes(CHUNK))), chunks=[b"\0", b"\0"])
    yield "R9", "exact-past-end", FORMAT, "exact-chunks", past.build()
    chunk, table = exact.shared(exact.dense(exact.numbers(OLD.data, kind), exact.numbers(NEW.data, kind), kind))
    yield "R9", "exact-table-number", FORMAT, base, one(chunks=[exact.spell(chunk)], tables=[1]).shares(table).build()
    planes = exact.planes(exact.numbers(NEW.data, kind), kind, ["zstd", "stored"])
    planes["planes"][0]["bytes"] = planes["planes"][0]["bytes"][:-1]
    yield "R10", "exact-plane-cut", FORMAT, "index-empty", Pack().exact("w", NEW, chunks=[exact.spell(planes)]).build()
