"""Vectors of the heads of weight files (section 3.13), for make_vectors.py only: valid ones and invalid ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vectors.assemble import Blob, Json, Pack, Tensor, zstd, zstd_after
from vectors.faults import CHECKSUM, FORMAT, LIMIT, MISMATCH, Case, drop, put
from vectors.valid import floats, tensor

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
W, V = floats("bf16", (4, 3)), tensor("i16", (3,), [1, 2, 3])


def framed(header: Json | bytes) -> bytes:
    """A header with its length in front."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def rows(tensors: Mapping[str, Tensor]) -> Json:
    """What a header says of tensors whose elements follow in this order."""
    out, end = {}, 0
    for name, held in tensors.items():
        dtype = held.dtype.partition(":")[2] or held.dtype.upper()
        out[name] = {"dtype": dtype, "shape": list(held.shape), "data_offsets": [end, end + len(held.data)]}
        end += len(held.data)
    return out


def base_heads(base: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The heads of a base: one file, tensors by name, as the module json spells them."""
    return {FILE: framed(rows(dict(sorted(base.items()))))}


def weight_files(pack: Pack) -> dict[str, bytes]:
    """The restored weight files and indices of a pack."""
    out = {}
    for file, head in pack.heads.items():
        inside = {} if file.endswith(".json") else json.loads(head[8:])
        inside.pop("__metadata__", None)
        folder = file[: file.rfind("/") + 1]
        order = sorted(inside, key=lambda name: inside[name]["data_offsets"])
        out[file] = head + b"".join(pack.result[folder + name].data for name in order)
    return out


def two() -> Pack:
    """Two tensors that the base has, too."""
    return Pack().unchanged("w", W).unchanged("v", V)


def index_of(weight_map: Any) -> bytes:
    """An index of shards."""
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


def sharded(first: bytes, second: bytes, index: bytes | None) -> Pack:
    """A pack of two shards."""
    pack = two().container(SHARDS[0], first).container(SHARDS[1], second)
    return pack if index is None else pack.container(INDEX, index)


FIRST, SECOND, MAP = framed(rows({"w": W})), framed(rows({"v": V})), {"w": SHARDS[0], "v": SHARDS[1]}
TURNED = {"w": rows({"v": V, "w": W})["w"], "v": rows({"v": V})["v"]}
"""A header whose names stand in another order than their elements."""


def valid_containers() -> Iterator[tuple[str, str, Pack]]:
    """Packs whose weight files are restored byte for byte."""
    spelt = json.dumps({"__metadata__": {"format": "pt", "\u00fc": "\U0001f600"}} | TURNED, indent=1, ensure_ascii=False)
    pack = two().container(FILE, framed(spelt.encode() + b"  \n\t"))
    yield "containers", "another order, metadata, spaces behind", pack
    base = base_heads({"v": V, "w": W})[FILE]
    yield "containers-of-base", "the base's head", two().container(FILE, base, inside=False)
    head = framed(json.dumps(rows({"v": V, "w": W})).encode() + b" " * 9)
    yield "containers-base", "a head that refers to the base's", two().container(FILE, head, before=base)
    pack = sharded(FIRST, SECOND, index_of(MAP | {"tied": SHARDS[0]}) + b"\r\n").alias("tied", "w")
    yield "containers-shards", "two shards and their index, which lists a second name", pack
    f4, none, one = Tensor("raw4:F4", (2, 3), b"abc"), tensor("f64", (0, 7), []), tensor("f32", (), [0x3F800000])
    pack = Pack().stored("odd", tensor("bool", (3,), [0, 1, 1])).stored("one", one).stored("none", none).stored("f4", f4)
    pack.stored("unet/deep/w", V).stored("unet/w", W).stored("unet/v", V)
    pack.extra = {"required": ["folders", "raw-types"], "folders": {"unet": "diffusion", "unet/deep": "other"}}
    held = {name: pack.result[name] for name in ("odd", "one", "none", "f4")}
    pack.container("any name.safetensors", framed({"__metadata__": None} | rows(held)))
    pack.container("any name.safetensors.index.json", index_of(dict.fromkeys(held, "any name.safetensors")))
    pack.container("unet/deep/x.safetensors", framed(rows({"w": V})))
    pack.container(f"unet/{SHARDS[0]}", FIRST).container(f"unet/{SHARDS[1]}", SECOND).container(f"unet/{INDEX}", index_of(MAP))
    yield "containers-folders", "several folders; an index of one file; types of any width, not aligned; no elements", pack
    pack = Pack()
    pack.files = []
    yield "containers-no-tensors", "a header of nothing", pack.container(FILE, framed(b"{}      "))


def container_cases() -> Iterator[Case]:
    """Heads that are not there, not safe, not whole, or do not fit."""
    yield from _of_the_index()
    yield from _names()
    yield from _contents()
    yield from _of_the_base()
    yield from _headers()
    yield from _indices()


def _of_the_index() -> Iterator[Case]:
    """R4 and R6."""
    base, good = "containers", two().container(FILE, framed(TURNED))
    yield "R4", "lacks-index-containers", FORMAT, base, good.build(drop("containers"))
    yield "R4", "extra-index-containers", FORMAT, base, good.build(put("required", []))
    yield "R4", "type-index-containers-type", FORMAT, base, good.build(put("containers", {}))
    yield "R4", "lacks-container-blob", FORMAT, base, _refers().build(drop("containers", 0, "blob"))
    yield "R6", "containers-none", FORMAT, base, two().build(lambda index: index.update(containers=[], required=["containers"]))
    shards = sharded(FIRST, SECOND, index_of(MAP))
    yield "R6", "containers-unsorted", FORMAT, base, shards.build(lambda index: index["containers"].reverse())
    yield "R6", "containers-twice", FORMAT, base, sharded(FIRST, SECOND, index_of(MAP)).container(SHARDS[1], SECOND).build()
    for what, size, error in (("negative", -1, FORMAT), ("limit", 100_000_009, LIMIT)):
        edit: Callable[[Json], None] = put("containers", 0, "size", size)
        yield "R6", f"container-size-{what}", error, None, two().container(FILE, b"", inside=False).build(edit)
    for what, count, size in (("containers-2049", 2048, 0), ("containers-bytes", 11, 100_000_000)):
        many = two().container(INDEX, index_of(MAP))
        empty = [{"name": f"{number:04}.safetensors", "size": size, "sha256": "0" * 64} for number in range(count)]
        many.containers = [*(many.containers or []), *empty]
        yield "R6", what, LIMIT, None, many.build()
    yield "R6", "containers-no-index", FORMAT, base, sharded(FIRST, SECOND, None).build()
    two_indices = sharded(FIRST, SECOND, index_of(MAP)).container("other.safetensors.index.json", index_of(MAP))
    yield "R6", "containers-two-indices", FORMAT, base, two_indices.build()
    yield "R6", "containers-only-index", FORMAT, base, two().container(INDEX, index_of(MAP)).build()
    inner = Pack().stored("a/w", W).container("a/x.safetensors", FIRST)
    yield "R6", "containers-no-folder", FORMAT, "index-empty", inner.build()


def _names() -> Iterator[Case]:
    """R13."""
    one, other = "a.safetensors", "A.safetensors"
    alike = two().container(one, FIRST).container(other, SECOND).container(INDEX, index_of({"w": one, "v": other}))
    yield "R13", "case-containers", FORMAT, "containers", alike.build()
    names = {
        **{"parent": "../x.safetensors", "absolute": "/x.safetensors", "hidden": ".x.safetensors", "only-suffix": ".safetensors"},
        **{
            "backslash": "a\\x.safetensors",
            "drive": "c:x.safetensors",
            "control": "a\n.safetensors",
            "part-256": "n" * 244 + ".safetensors",
        },
        **{"other": "x.txt", "upper": "x.SAFETENSORS", "in-weights": "x.safetensors/x.safetensors", "pickle": "pytorch_model.bin"},
        **{"path-513": "/".join(["n" * 99] * 5) + "/.safetensors".replace("/.", "/n.")},
    }
    for what, name in names.items():
        folder, folders = name.rpartition("/")[0], {}
        if what == "path-513":
            folders = {folder: "model"}
        pack = Pack().stored(f"{folder}/w" if folders else "w", W)
        pack.extra = {"required": ["folders"], "folders": folders} if folders else {}
        yield "R13", f"container-{what}", FORMAT, "index-empty" if not folders else None, pack.container(name, FIRST).build()


def _contents() -> Iterator[Case]:
    """R8 and R10."""
    base, head = "containers", framed(TURNED)
    yield "R8", "container-hash", CHECKSUM, base, two().container(FILE, head).build(_flip)
    yield "R8", "container-sha256", CHECKSUM, base, two().container(FILE, head).build(put("containers", 0, "sha256", "0" * 64))
    empty = framed(b"{}")
    yield "R8", "container-blob-longer", FORMAT, "index-empty", Pack().container(FILE, empty, blob=Blob(zstd(empty))).build()
    yield "R8", "container-base-as-it-is", FORMAT, base, _refers(Blob(_referring_head())).build()
    yield "R10", "container-cut", FORMAT, base, two().container(FILE, head, blob=Blob(zstd(head)[:-1])).build()
    cut = zstd_after(base_heads(two().base)[FILE], _referring_head())[:-1]
    yield "R10", "container-base-cut", FORMAT, base, _refers(Blob(cut)).build()


def _referring_head() -> bytes:
    return framed(json.dumps(TURNED).encode() + b" " * 9)


def _refers(blob: Blob | None = None, to: bytes = b"") -> Pack:
    before = to or base_heads(two().base)[FILE]
    return two().container(FILE, _referring_head(), blob=blob, before=before)


def _flip(index: Json) -> None:
    index["containers"][0]["blob"].flip = 1


def _of_the_base() -> Iterator[Case]:
    """R11 and R12."""
    base, head = "containers", base_heads(two().base)[FILE]
    yield "R11", "container-missing", MISMATCH, base, two().container("other.safetensors", head, inside=False).build()
    missing = two().container("other.safetensors", _referring_head(), before=head)
    yield "R11", "container-base-missing", MISMATCH, base, missing.build()
    yield "R12", "container-differs", MISMATCH, base, two().container(FILE, head.replace(b" ", b"\n"), inside=False).build()
    same = two().container(FILE, head, inside=False)
    yield "R12", "container-size", MISMATCH, base, same.build(put("containers", 0, "size", len(head) + 1))
    yield "R12", "container-base-differs", MISMATCH, base, _refers(to=head.replace(b" ", b"\n")).build()


def _headers() -> Iterator[Case]:
    """R9 on the head of a safetensors file."""
    base, good = "containers", json.dumps(TURNED)
    text = good.encode()
    heads: dict[str, bytes] = {
        **{
            "empty": b"",
            "seven-bytes": b"\2\0\0\0\0\0\0",
            "length-more": (len(text) + 1).to_bytes(8, "little") + text,
            "length-less": framed(text) + b" ",
        },
        **{"space-first": framed(b" " + text), "list": framed(b"[" + text + b"]"), "no-json": framed(text[:-1])},
        **{
            "more-behind": framed(text + b"{}"),
            "utf-8": framed(text.replace(b"dtype", b"dtyp\xff", 1)),
        },
        **{
            "name-twice": framed(text[:-1] + b', "v": ' + json.dumps(TURNED["v"]).encode() + b"}"),
            "nan": framed(text[:-1] + b', "x": NaN}'),
        },
        "deep": framed(text[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    }
    for what, metadata in {"list": [], "number": {"a": 1}, "null": {"a": None}, "text": "", "surrogate": {"a": "\ud800"}}.items():
        heads[f"metadata-{what}"] = framed({"__metadata__": metadata} | TURNED)
    edits: dict[str, Callable[[Json], Any]] = {
        "row-list": lambda header: header.update(v=[]),
        "row-lacks": lambda header: header["v"].pop("shape"),
        "row-extra": lambda header: header["v"].update(x=1),
        "shape-number": lambda header: header["v"].update(shape=3),
        "shape-float": lambda header: header["v"].update(shape=[3.0]),
        "shape-negative": lambda header: header["v"].update(shape=[-3]),
        "shape-true": lambda header: header["v"].update(shape=[3, True]),
        "offsets-object": lambda header: header["v"].update(data_offsets={}),
        "offsets-one": lambda header: header["v"].update(data_offsets=[0]),
        "offsets-three": lambda header: header["v"].update(data_offsets=[0, 6, 6]),
        "offsets-turned": lambda header: header["v"].update(data_offsets=[6, 0]),
        "other-type": lambda header: header["v"].update(dtype="U16"),
        "type-lower-case": lambda header: header["v"].update(dtype="i16"),
        "type-number": lambda header: header["v"].update(dtype=16),
        "other-shape": lambda header: header["v"].update(shape=[3, 1]),
        "size": lambda header: header["v"].update(data_offsets=[0, 5]) or header["w"].update(data_offsets=[5, 29]),
        "hole": lambda header: header["w"].update(data_offsets=[7, 31]),
        "overlap": lambda header: header["w"].update(data_offsets=[5, 29]),
        "hole-first": lambda header: header["v"].update(data_offsets=[1, 7]) or header["w"].update(data_offsets=[7, 31]),
        "lacks-tensor": lambda header: header.pop("w"),
        "other-tensor": lambda header: header.update(x={"dtype": "U8", "shape": [0], "data_offsets": [30, 30]}),
    }
    for what, edit in edits.items():
        header = json.loads(good)
        edit(header)
        heads[what] = framed(header)
    for what, head in heads.items():
        yield "R9", f"container-{what}", FORMAT, base, two().container(FILE, head).build()
    alias = two().alias("u", "v").container(FILE, framed(rows({"v": V, "w": W, "u": tensor("u8", (0,), [])})))
    yield "R9", "container-second-name", FORMAT, base, alias.build()
    outer = Pack().stored("a/b/w", W).stored("a/v", V).container("a/x.safetensors", framed(rows({"v": V, "b/w": W})))
    outer.extra = {"required": ["folders"], "folders": {"a": "m", "a/b": "m"}}
    yield "R9", "container-other-folder", FORMAT, "index-empty", outer.build()
    above = Pack().stored("a/w", W).container(FILE, framed(rows({"a/w": W})))
    above.extra = {"required": ["folders"], "folders": {"a": "m"}}
    yield "R9", "container-folder-above", FORMAT, "index-empty", above.build()


def _indices() -> Iterator[Case]:
    """R9 on shards and their index."""
    base = "containers"
    both = sharded(framed(rows({"w": W, "v": V})), SECOND, index_of(MAP))
    yield "R9", "container-tensor-twice", FORMAT, base, both.build()
    one, other = SHARDS
    indices: dict[str, bytes] = {
        **{"not-json": b"{", "is-list": b"[]", "no-map": b"{}", "map-list": index_of([]), "map-empty": index_of({})},
        **{"twice": index_of(MAP)[:-1] + b', "metadata": {}}', "infinity": index_of(MAP)[:-1] + b', "x": -Infinity}'},
        **{
            "file-number": index_of(MAP | {"v": 2}),
            "file-lacks": index_of({"w": one}),
            "file-else": index_of(MAP | {"u": "x.safetensors"}),
        },
        **{"file-above": index_of(MAP | {"u": "../" + other}), "swapped": index_of({"w": other, "v": one})},
        "no-tensor": index_of(MAP | {"x": one}),
    }
    for what, index in indices.items():
        yield "R9", f"container-index-{what}", FORMAT, base, sharded(FIRST, SECOND, index).alias("u", "v").build()
