"""Valid vectors at the bounds of what is allowed, for make_vectors.py only."""

from __future__ import annotations

from collections.abc import Iterator

from vectors.assemble import Pack, Term
from vectors.scalar import CHUNK
from vectors.valid import floats, tensor, term


def bounds() -> Iterator[tuple[str, str, Pack]]:
    """Name, description and pack of each; one step further is an invalid vector."""
    yield "bounds-ndim", "8 dimensions", Pack().unchanged("w", tensor("u8", (1, 1, 1, 2, 1, 1, 1, 3), [1, 2, 3, 4, 5, 6]))
    pack = Pack().unchanged("n" * 512, tensor("u8", (1,), [1])).unchanged("\u00e9" * 256, tensor("u8", (1,), [2]))
    pack.unchanged(" ~\u00a0", tensor("u8", (1,), [3])).unchanged("a", tensor("u8", (1,), [4]), "b" * 512)
    yield "bounds-names", "512 bytes; space, U+007E and U+00A0 are no control characters", pack
    terms = [Term("all", "f32", [0, 1], [0x3F800000 + i, 0xBF800000 - i]) for i in range(64)]
    yield "bounds-terms", "64 terms", Pack().patched("w", floats("f32", (2,)), terms)
    pack = Pack().unchanged("w", tensor("u8", (1,), [1]))
    pack.extra = {"recipe": {"deep": [[[[[[1]]]]]], "empty": [[[[[[]]]]]], "least": -(2**53) + 1}}
    yield "bounds-json", "depth 8, the least integer", pack
    yield (
        "bounds-keep",
        "keep = 1: of 300 elements none",
        Pack().patched("w", floats("bf16", (300,)), [term("seeded", "bf16", [], keep=1, key="f" * 16)]),
    )
    full = Term("gaps", "sign", list(range(300)), [1, -1] * 150, [0x3A80, 0x3B80, 0x3C80], params={"shift": 0})
    yield "bounds-nnz", "gaps keep every element; groups of 128, 128 and 44", Pack().patched("w", floats("bf16", (300,)), [full])
    pack = Pack()
    for number in range(999):
        pack.file(f"{number:03}", b"")
    pack.file("n" * 254 + "/" + "n" * 255 + "/n", b"1")
    yield "bounds-files", "1000 files, a name of 512 bytes, a part of 255", pack
    pack = Pack().file("a-b", b"1").file("a", b"2").file("a.b/c", b"3").file("a.b/d/e..f", b"4").file("x.safetensors.md", b"5")
    yield "bounds-file-names", "no file is a folder of another; dots inside parts; an ending that only begins like weights", pack
    rows = floats("bf16", (4, 3))
    pack = Pack().patched("delta", rows, []).patched("shrunk", rows, [], shape=(3, 3), base_name="old")
    for entry in pack.entries:
        entry["stats"] = {"l1": "0", "max_abs": "12.5e+10"}
    yield "stats-delta-shrunk", "", pack
    pack = Pack().patched("w", rows, [])
    pack.entries[0]["stats"] = {"l1": "0." + "1" * 62, "max_abs": "7" * 64}
    yield "stats-64-characters", "the longest strings", pack
    yield "chunks-unchanged", "two chunks: no chunk digests", Pack().unchanged("w", tensor("u8", (CHUNK + 1,), 7))
    yield "chunks-exactly-one", "a chunk to the last element: no chunk digests", Pack().stored("w", tensor("u8", (CHUNK,), 1))
    yield "chunks-exactly-two", "two chunks to the last element", Pack().stored("w", tensor("u8", (2 * CHUNK,), 1))
    pack = Pack().removed("gone", rows).stored("w", tensor("u8", (1,), 1), replaces=("w", rows)).unchanged("stays", rows)
    for name in ("gone", "w"):
        pack.base[name] = floats("bf16", (4, 3), 5)
    yield "digests-not-compared", "the base has other elements in tensors that are removed or replaced", pack
