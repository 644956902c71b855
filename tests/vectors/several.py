"""What several packs on one base give, for make_vectors.py only: packs, and cases that name some of them with weights.

What becomes of each pair of kinds stands in a table as the specification has it (section 9.3), not in an algorithm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vectors.arranged import EXPERTS, IN_ORDER, STACKED, arrange, experts, pack_of
from vectors.assemble import BASE_FILES, Addend, Blob, Pack, Said, Tensor, Term, add_up, blends
from vectors.scalar import CHUNK
from vectors.valid import every, floats, tensor, term

Json = dict[str, Any]
CONFLICT, WRONG_BASE, FORMAT = "MergeConflictError", "BaseMismatchError", "FormatError"
KINDS = ("unchanged", "delta", "blend", "grown", "shrunk", "whole", "removed", "alias")
TABLE = """
              unchanged delta    blend    grown    shrunk   whole    removed  alias
    unchanged base      second   second   second   second   second   base     base
    delta     first     sum      sum      sum      conflict conflict first    first
    blend     first     sum      sum      sum      conflict conflict first    first
    grown     first     sum      sum      rows     conflict conflict first    first
    shrunk    first     conflict conflict conflict conflict conflict first    first
    whole     first     conflict conflict conflict conflict conflict first    first
    removed   base      second   second   second   second   second   gone     gone
    alias     base      second   second   second   second   second   gone     gone
"""
"""What becomes of a tensor of which the first pack (rows) and the second (columns) say different things. `sum` has the new rows
of the only pack that grew it; of two, one decides (`rows`). A conflict leaves the preferred pack's part alone."""
WHOLE = ("stored", "exact")
"""Kinds that say what all elements are."""
WEIGHTS = ("0.5", "-1.25")


@dataclass
class Case:
    """Packs by name, their weights, and what they give: an error, or tensors (None where only the rest counts), names, files."""

    packs: tuple[str, ...]
    weights: tuple[str, ...]
    prefer: int | None = None
    error: str | None = None
    result: dict[str, Tensor] | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] | None = None


@dataclass
class Group:
    """Packs on one base and cases; `edits` change the index of a pack before it is written."""

    about: str
    base: dict[str, Tensor]
    packs: dict[str, Pack]
    cases: dict[str, Case]
    edits: dict[str, Callable[[Json], None]] = field(default_factory=dict)


def addend(old: Tensor, said: Said, weight: str) -> Addend:
    """What a pack adds to a tensor."""
    stored = said.result if said.kind in WHOLE and blends(old, said.result) else None
    return Addend(said.terms, stored, float(weight))


def summed(old: Tensor, parts: Sequence[tuple[Said, str]], dtype: str | None = None, like: Said | None = None) -> Tensor:
    """The sum of what packs add, with the rows of one of them."""
    shape, tail = (old.shape, b"") if like is None else (like.result.shape, like.tail)
    return add_up(old, [addend(old, said, weight) for said, weight in parts], dtype or old.dtype, shape, tail)


def alone(old: Tensor, said: Said, weight: str) -> Tensor:
    """What one pack makes of a tensor."""
    can_blend = said.kind in WHOLE and blends(old, said.result) and float(weight) != 1
    if said.kind == "unchanged" or (said.kind in WHOLE and not can_blend):
        return said.result
    return summed(old, [(said, weight)], said.result.dtype, said)


OLD, OTHER = floats("bf16", (4, 3)), floats("bf16", (4, 3), 6)


def pair_pack(kind: str, second: bool, exactly: bool = False) -> Pack:
    """A pack that says something of `w`, and that `x` is unchanged; not the same things for the first and the second of a pair.

    `exactly`: what is stored is an exact tensor instead.
    """
    pack, rows = Pack().unchanged("x", OTHER), 5 if second else 6
    some = term("bitmap", "f32", [0, 4, 5]) if second else term("gaps", "int4", [0, 5, 11], shift=0)
    few = term("all", "int8", [0, 1, 2, 3, 4, 5]) if second else term("bitmap", "int4", [0, 8])
    if kind == "unchanged":
        return pack.unchanged("w", OLD)
    if kind == "delta":
        return pack.patched("w", OLD, [some])
    if kind == "blend" and exactly:
        return pack.exact("w", floats("bf16", (4, 3), 20 + second), ("w", OLD))
    if kind == "blend":
        return pack.stored("w", floats("bf16", (4, 3), 20 + second), replaces=("w", OLD))
    if kind == "grown":
        return pack.patched("w", OLD, [some], shape=(rows, 3), tail=floats("bf16", (rows - 4, 3), 30 + second).data)
    if kind == "shrunk":
        return pack.patched("w", OLD, [few], shape=(2 if second else 3, 3))
    if kind == "whole" and exactly:  # one that starts from the base, and one that only replaces it
        return pack.exact("w", floats("bf16", (5, 3), 9) if second else tensor("i32", (2,), [1, 2]), ("w", OLD))
    if kind == "whole":
        return pack.stored("w", floats("bf16", (12,), 9) if second else tensor("i32", (2,), [1, 2]), replaces=("w", OLD))
    return pack.removed("w", OLD) if kind == "removed" else pack.alias("w", "x", over=OLD)


def pair_case(packs: dict[str, Pack], kinds: tuple[str, str], becomes: str, weights: tuple[str, str], prefer: int | None) -> Case:
    """What a pair gives."""
    names = (f"a-{kinds[0]}", f"b-{kinds[1]}")
    said, case = [packs[name].said["w"] for name in names], Case(names, weights, prefer)
    if becomes in ("conflict", "rows") and prefer is None:
        case.error = CONFLICT
        return case
    case.result = {"x": OTHER}
    if becomes == "gone":
        case.aliases = {"w": "x"} if "alias" in kinds else {}
    elif becomes == "base":
        case.result["w"] = OLD
    elif becomes in ("sum", "rows"):
        grown = [part for part in said if part.kind == "grown"]
        like = said[prefer] if becomes == "rows" and prefer is not None else grown[0] if grown else None
        case.result["w"] = summed(OLD, list(zip(said, weights, strict=True)), like=like)
    else:
        number = prefer if becomes == "conflict" and prefer is not None else int(becomes == "second")
        case.result["w"] = alone(OLD, said[number], weights[number])
    return case


def pairs() -> Group:
    """Every pair of kinds."""
    packs = {f"{side}-{kind}": pair_pack(kind, side == "b") for side in "ab" for kind in KINDS}
    cases = pair_cases(packs)
    return Group("each pair of kinds: first-second", {"w": OLD, "x": OTHER}, packs, cases | triples(packs))


def exact() -> Group:
    """Pairs with exact tensors."""
    packs = {f"{side}-{kind}": pair_pack(kind, side == "b", exactly=True) for side in "ab" for kind in KINDS}
    cases = {name: case for name, case in pair_cases(packs).items() if {"blend", "whole"} & set(name.split("-"))}
    packs |= {"c-stored": pair_pack("blend", second=False)}
    mixed, alone = ("c-stored", "b-blend"), ("b-whole", "b-whole")
    parts = [(packs[name].said["w"], weight) for name, weight in zip(mixed, WEIGHTS, strict=True)]
    cases["stored-exact"] = Case(mixed, WEIGHTS, result={"x": OTHER, "w": summed(OLD, parts)})
    cases["twice-whole"] = Case(alone, WEIGHTS, result={"x": OTHER, "w": packs["b-whole"].result["w"]})
    cases["one-blend"] = Case(("a-blend",), ("1",), result={"x": OTHER, "w": packs["a-blend"].result["w"]})
    new, newer = floats("f16", (2,), 4), tensor("i64", (1,), [5])
    for name, of in (("new", new), ("new-too", new), ("new-else", newer)):
        packs[name] = Pack().unchanged("x", OTHER).unchanged("w", OLD).exact("n", of)
    both = {"x": OTHER, "w": OLD}
    cases["new-the-same"] = Case(("new", "new-too"), WEIGHTS, result=both | {"n": new})
    cases["new-conflict"] = Case(("new", "new-else"), WEIGHTS, error=CONFLICT)
    cases["new-preferred"] = Case(("new", "new-else"), WEIGHTS, 1, result=both | {"n": newer})
    packs["unsaid"] = Pack().unchanged("x", OTHER).exact("w", floats("bf16", (4, 3), 22), over=OLD)
    parts = [(packs["unsaid"].said["w"], "0.5"), (packs["b-delta"].said["w"], "-1.25")]
    cases["unsaid-delta"] = Case(("unsaid", "b-delta"), WEIGHTS, result={"x": OTHER, "w": summed(OLD, parts)})
    used = {pack for case in cases.values() for pack in case.packs}
    return Group("exact tensors: first-second", {"w": OLD, "x": OTHER}, {name: pack for name, pack in packs.items() if name in used}, cases)


def pair_cases(packs: dict[str, Pack]) -> dict[str, Case]:
    """What pairs give."""
    rows = [line.split() for line in TABLE.strip().splitlines()]
    table = {(row[0], column): what for row in rows[1:] for column, what in zip(rows[0], row[1:], strict=True)}
    cases: dict[str, Case] = {}
    for kinds, becomes in table.items():
        name = "-".join(kinds)
        cases[name] = pair_case(packs, kinds, becomes, WEIGHTS, None)
        if becomes in ("conflict", "rows"):
            for prefer in (0, 1):
                cases[f"{name}-prefer-{prefer}"] = pair_case(packs, kinds, becomes, WEIGHTS, prefer)
        if "blend" in kinds and becomes != "conflict":
            cases[f"{name}-weight-1"] = pair_case(packs, kinds, becomes, ("1", "1"), None)
    return cases


def triples(packs: dict[str, Pack]) -> dict[str, Case]:
    """Three packs, and packs that come twice."""
    third = ("0.5", "-1.25", "2")

    def case(names: Sequence[str], prefer: int | None = None, **options: Any) -> Case:
        return Case(tuple(names), third[: len(names)], prefer, **options)

    def sums(names: Sequence[str], like: str | None = None, leave: Sequence[str] = ()) -> dict[str, Tensor]:
        parts = [(packs[name].said["w"], weight) for name, weight in zip(names, third, strict=False) if name not in leave]
        return {"x": OTHER, "w": summed(OLD, parts, like=None if like is None else packs[like].said["w"])}

    def single(name: str, weight: str) -> dict[str, Tensor]:
        return {"x": OTHER, "w": alone(OLD, packs[name].said["w"], weight)}

    cut, mixed, twice = ("a-grown", "b-shrunk", "a-delta"), ("a-delta", "b-blend", "a-grown"), ("a-grown", "b-delta", "a-grown")
    big = ("b-grown", "a-whole", "b-blend")
    return {
        "three-sum": case(mixed, result=sums(mixed, "a-grown")),
        "three-grown-twice": case(twice, result=sums(twice, "a-grown")),
        "three-prefer-grown": case(cut, 0, result=sums(cut, "a-grown", ["b-shrunk"])),
        "three-prefer-shrunk": case(cut, 1, result=single("b-shrunk", "-1.25")),
        "three-prefer-delta": case(cut, 2, error=CONFLICT),
        "three-whole-prefer-grown": case(big, 0, result=sums(big, "b-grown", ["a-whole"])),
        "three-whole-prefer-whole": case(big, 1, result=single("a-whole", "-1.25")),
        "three-prefer-unchanged": case(("a-whole", "b-whole", "a-unchanged"), 2, error=CONFLICT),
        "three-prefer-removed": case(("a-whole", "b-whole", "a-removed"), 2, error=CONFLICT),
        "three-removed": case(("a-removed", "b-delta", "a-alias"), result=single("b-delta", "-1.25")),
        "twice-delta": case(("a-delta", "a-delta"), result=sums(("a-delta", "a-delta"))),
        "twice-shrunk": case(("a-shrunk", "a-shrunk"), result=single("a-shrunk", "0.5")),
        "twice-shrunk-prefer-second": case(("a-shrunk", "b-unchanged", "a-shrunk"), 2, result=single("a-shrunk", "0.5")),
        "twice-whole": case(("b-whole", "b-whole"), result=single("b-whole", "1")),
        "twice-whole-delta": case(("b-whole", "b-whole", "a-delta"), error=CONFLICT),
        "twice-whole-delta-prefer-delta": case(("b-whole", "b-whole", "a-delta"), 2, result=single("a-delta", "2")),
        "one-delta": case(("a-delta",), result=single("a-delta", "0.5")),
    }


def names() -> Group:
    """Names, new tensors, second names."""
    p, q, r = floats("bf16", (2, 2)), floats("bf16", (2, 2), 2), floats("f32", (3,), 3)
    some, more = [term("all", "int8", [0, 1, 2, 3])], [term("bitmap", "f16", [0, 3])]
    new, newer = floats("f16", (2,), 4), tensor("i64", (1,), [5])

    def rest(pack: Pack, *left: tuple[str, Tensor]) -> Pack:
        for name, old in left:
            pack.unchanged(name, old)
        return pack

    packs = {
        "plain": rest(Pack(), ("p", p), ("q", q), ("r", r)),
        "renames": rest(Pack(), ("q", q), ("r", r)).patched("m.p", p, some, base_name="p").alias("head", "m.p"),
        "renames-too": rest(Pack(), ("q", q), ("r", r)).patched("m.p", p, more, base_name="p"),
        "renames-else": rest(Pack(), ("q", q), ("r", r)).unchanged("n", p, "p"),
        "new": rest(Pack(), ("p", p), ("q", q), ("r", r)).stored("n", new).alias("head", "p"),
        "new-too": rest(Pack(), ("p", p), ("q", q), ("r", r)).stored("n", new).alias("head", "q"),
        "new-else": rest(Pack(), ("p", p), ("q", q), ("r", r)).stored("n", newer).stored("head", new),
        "unsaid": rest(Pack(), ("p", p), ("q", q)).stored("r", floats("f32", (3,), 8), over=r),
        "delta": rest(Pack(), ("p", p), ("q", q)).patched("r", r, [term("all", "f32", [0, 1, 2])]),
    }
    half = {"p": add_up(p, [Addend(some, weight=0.5)], "bf16", p.shape)}
    both = add_up(p, [Addend(some, weight=0.5), Addend(more, weight=-1.25)], "bf16", p.shape)
    base, head = {"p": p, "q": q, "r": r}, {"head": "p"}
    pair = [(packs["unsaid"].said["r"], "0.5"), (packs["delta"].said["r"], "-1.25")]
    cases = {
        "name-of-base": Case(("renames", "plain"), WEIGHTS, result=base | half),
        "name-preferred": Case(("renames", "plain"), WEIGHTS, 0, result={"q": q, "r": r, "m.p": half["p"]}, aliases={"head": "m.p"}),
        "name-preferred-base": Case(("renames", "plain"), WEIGHTS, 1, result=base | half),
        "name-agreed": Case(("renames", "renames-too"), WEIGHTS, result={"q": q, "r": r, "m.p": both}, aliases={"head": "m.p"}),
        "name-taken": Case(("renames-else", "new"), WEIGHTS, 0, error=CONFLICT),
        "name-free": Case(("renames-else", "new"), WEIGHTS, result=base | {"n": new}, aliases=head),
        "new-of-one": Case(("plain", "new"), WEIGHTS, result=base | {"n": new}, aliases=head),
        "new-the-same-and-ties-preferred": Case(("new", "new-too"), WEIGHTS, 1, result=base | {"n": new}, aliases={"head": "q"}),
        "new-conflict": Case(("new", "new-else"), WEIGHTS, error=CONFLICT),
        "new-preferred": Case(("new", "new-else"), WEIGHTS, 1, result=base | {"n": newer, "head": new}),
        "new-preferred-first": Case(("new", "new-else"), WEIGHTS, 0, result=base | {"n": new, "head": new}),
        "ties-conflict": Case(("new", "new-too"), WEIGHTS, error=CONFLICT),
        "ties-conflict-prefer-plain": Case(("plain", "new", "new-too"), ("1", "1", "1"), 0, error=CONFLICT),
        "ties-of-one-left": Case(("renames", "new"), WEIGHTS, result=base | half | {"n": new}, aliases=head),
        "unsaid-blends": Case(("unsaid", "delta"), WEIGHTS, result=base | {"r": summed(r, pair)}),
    }
    return Group("names, new tensors, ties", base, packs, cases)


def sums() -> Group:
    """Order and element types."""
    ones = tensor("f32", (2,), [0x3F800000, 0xBF800000])
    narrow, wide = floats("bf16", (3,)), tensor("f64", (3,), [0x3FB999999999999A, 0x4341C37937E08001, 0x8000000000000000])
    packs = {
        name: Pack().patched("o", ones, [Term("all", "f32", [0, 1], [bits, bits])]).unchanged("t", narrow).unchanged("d", wide)
        for name, bits in (("up", 0x4B800000), ("one", 0x3F800000), ("down", 0xCB800000))
    }
    some, more = [term("all", "int8", [0, 1, 2])], [Term("bitmap", "f32", [0, 2], [0x3A83126F, 0x80000000])]
    rest = {"o": ones, "t": narrow, "d": wide}
    packs["to-f32"] = Pack().unchanged("o", ones).patched("t", narrow, some, dtype="f32").patched("d", wide, more)
    packs["to-f32-too"] = Pack().unchanged("o", ones).patched("t", narrow, more, dtype="f32").patched("d", wide, some, dtype="bf16")
    packs["to-f16"] = Pack().unchanged("o", ones).patched("t", narrow, more, dtype="f16")
    packs["to-f16"].stored("d", tensor("f64", (3,), [0x3FF0000000000001, 0x4341C37937E08003, 1]), replaces=("d", wide))
    cases = {}
    for order in itertools.permutations(("up", "one", "down")):
        parts = [(packs[name].said["o"], "1") for name in order]
        cases["order-" + "-".join(order)] = Case(order, ("1", "1", "1"), result=rest | {"o": summed(ones, parts)})
    for chosen, of_t, of_d in (
        (("to-f32", "to-f32-too"), "f32", "f64"),
        (("to-f32", "up", "to-f32-too"), "f32", "f64"),
        (("to-f16", "to-f32"), "bf16", "f64"),
        (("to-f32-too", "to-f16"), "bf16", "f64"),
        (("to-f32-too", "one"), "f32", "bf16"),
    ):
        weights = ("0.5", "1", "-3")[: len(chosen)]

        def of(name: str, dtype: str, chosen: Sequence[str] = chosen, weights: Sequence[str] = weights) -> Tensor:
            return summed(rest[name], [(packs[pack].said[name], weight) for pack, weight in zip(chosen, weights, strict=True)], dtype)

        result = {"o": of("o", "f32"), "t": of("t", of_t), "d": of("d", of_d)}
        cases["types-" + "-and-".join(chosen)] = Case(chosen, weights, result=result)
    return Group("order of packs, element types of sums", rest, packs, cases)


def example() -> Group:
    """Section 9.8."""
    old = tensor("bf16", (2,), [0x3F80, 0x3F80])
    code = Term("gaps", "int4", [0], [3], [0x3C00], factor=0x41200000, params={"shift": 0})
    whole = tensor("bf16", (2,), [0x3FC0, 0x3F81])
    packs = {"delta": Pack().patched("w", old, [code]), "stored": Pack().stored("w", whole, replaces=("w", old))}
    parts = [(packs["delta"].said["w"], "0.3"), (packs["stored"].said["w"], "-0.5")]
    case = Case(("delta", "stored"), ("0.3", "-0.5"), result={"w": summed(old, parts)})
    return Group("spec/09-weights-and-several-packs.md section 9.8", {"w": old}, packs, {"example": case})


def bases() -> Group:
    """Packs of different bases."""
    old, other = floats("f32", (3,)), floats("f32", (3,), 2)
    one, two = [term("all", "int4", [0, 1, 2])], [term("bitmap", "f32", [1])]
    packs = {name: Pack().patched("w", was, what) for name, was, what in (("one", old, one), ("two", old, two), ("other", other, two))}
    packs |= {"says-other": Pack().patched("w", old, two), "says-the-same": Pack().patched("w", other, two)}
    packs |= {"counts-more": Pack().patched("w", old, two)}
    new = floats("f32", (3,), 5)
    packs |= {"unchanged": Pack().unchanged("w", old), "unsaid": Pack().stored("w", new, over=old)}
    packs |= {"removed": Pack().removed("w", old), "removed-other": Pack().removed("w", other)}
    packs |= {"stored": Pack().stored("w", new, replaces=("w", old)), "stored-other": Pack().stored("w", new, replaces=("w", other))}
    packs |= {"exact": Pack().exact("w", new, ("w", old)), "exact-other": Pack().exact("w", new, ("w", other))}

    def says_other(index: Json) -> None:
        index["base"]["fingerprint"] = "0" * 64

    def counts_more(index: Json) -> None:
        index["base"]["tensors"] = 7

    def says_the_same(index: Json) -> None:
        index["base"]["fingerprint"] = packs["one"].index_base()["fingerprint"]

    two_parts = [(packs["one"].said["w"], "1"), (packs["two"].said["w"], "1")]
    cases = {"same": Case(("one", "two"), ("1", "1"), result={"w": summed(old, two_parts)})}
    cases |= {"counts-more": Case(("one", "counts-more"), ("1", "1"), result={"w": summed(old, two_parts)})}
    cases |= {name: Case(("one", name), ("1", "1"), error=WRONG_BASE) for name in ("other", "says-other", "says-the-same")}
    half = {"w": summed(old, [(packs["unsaid"].said["w"], "0.5")])}
    for first, second, result in (
        ("one", "removed", {"w": packs["one"].result["w"]}),
        ("removed", "removed", {}),
        ("unchanged", "stored", {"w": new}),
        ("unchanged", "exact", {"w": new}),
        ("unsaid", "removed", half),
    ):
        # Also what drops or replaces the tensor has to name the digest that the others name, or that the base has.
        weights = ("0.5", "1") if first == "unsaid" else ("1", "1")
        cases[f"{first}-{second}"] = Case((first, second), weights, result=result)
        cases[f"{first}-{second}-other"] = Case((first, f"{second}-other"), weights, error=WRONG_BASE)
        cases[f"{second}-other-{first}"] = Case((f"{second}-other", first), weights[::-1], error=WRONG_BASE)
    edits: dict[str, Callable[[Json], None]] = {"says-other": says_other, "counts-more": counts_more}
    edits |= dict.fromkeys(("says-the-same", "removed-other", "stored-other", "exact-other"), says_the_same)
    return Group("the packs must have one base", {"w": old}, packs, cases, edits)


def digests() -> Group:
    """Chunk digests of packs that are not the first."""
    old = tensor("f16", (CHUNK + 1,), 0x3C00)
    first, last = (
        [Term("gaps", "f32", [0], [0x3F800000], params={"shift": 8})],
        [Term("gaps", "f32", [CHUNK], [0x3F800000], params={"shift": 8})],
    )
    packs = {"one": Pack().patched("w", old, first)}
    packs |= {name: Pack().patched("w", old, last) for name in ("two", "base-root", "result-root")}
    for name, at in (("base-root", 0), ("result-root", 32)):
        blob = bytearray(packs[name].entries[0]["digests"].data)
        blob[at] ^= 1
        packs[name].entries[0]["digests"] = Blob(bytes(blob))
    parts = [(packs[name].said["w"], "1") for name in ("one", "two")]
    cases = {"both": Case(("one", "two"), ("1", "1"), result={"w": summed(old, parts)})}
    for name in ("base-root", "result-root"):
        cases |= {
            f"{name}-{place}": Case(chosen, ("1", "1"), error=FORMAT)
            for place, chosen in (("first", (name, "one")), ("last", ("one", name)))
        }
    return Group("chunk digests that do not have their root (R9), whichever pack holds them", {"w": old}, packs, cases)


def files() -> Group:
    """Whose side files the result has; the base has some of its own."""
    old, names = floats("bf16", (2, 2)), ("config.json", "LICENSE")

    def pack(config: str | None, *, shapes: bool = False) -> Pack:
        out = Pack().stored("new", tensor("i8", (1,), [1])) if shapes else Pack()
        out.patched("w", old, [term("all", "int4", [0, 1, 2, 3])])
        if config is None:
            return out
        return out.file("config.json", config.encode()).file("LICENSE", b"from the base", inside=False)

    packs = {"a": pack('{"a":1}'), "a-too": pack('{"a":1}'), "b": pack('{"b":1}'), "none": pack(None), "empty": pack(None)}
    packs |= {"c-shapes": pack('{"c":1}', shapes=True), "d-shapes": pack('{"d":1}', shapes=True), "none-shapes": pack(None, shapes=True)}
    packs["empty"].files = []
    for name, tuned in (("e-exact", "w"), ("f-new", "new")):
        packs[name] = Pack() if tuned == "w" else Pack().unchanged("w", old)
        packs[name].exact(tuned, floats("bf16", (2, 2), 5), ("w", old) if tuned == "w" else None)
        packs[name].file("config.json", b'{"e":1}').file("LICENSE", b"from the base", inside=False)
    packs["a-texts"] = Pack().patched("w", old, [term("all", "int4", [0, 1, 2, 3])])
    for name, text in (("config.json", '{"a":1}'), ("LICENSE", "another"), ("changelog.txt", "news")):
        packs["a-texts"].file(name, text.encode())
    of_base, license_of_base = {name: text.decode() for name, text in BASE_FILES.items()}, {"LICENSE": "from the base"}
    cases = {}
    for chosen, prefer, config in (
        (("a", "a-too"), None, '{"a":1}'),
        (("a", "b"), None, None),
        (("a", "b"), 1, '{"b":1}'),
        (("a", "c-shapes"), None, '{"c":1}'),
        (("c-shapes", "a"), 1, '{"a":1}'),
        (("c-shapes", "d-shapes"), None, None),
        (("a", "e-exact"), None, None),
        (("a", "f-new"), None, '{"e":1}'),
        (("a", "none"), None, None),
        (("a", "none"), 0, '{"a":1}'),
        (("none", "a"), 0, None),
        (("none", "none"), None, None),
        (("a", "none-shapes"), None, None),
        (("a", "b", "c-shapes"), None, '{"c":1}'),
    ):
        case = Case(chosen, ("1",) * len(chosen), prefer, files=license_of_base | {"config.json": config} if config else of_base)
        cases["-".join(chosen) + (f"-prefer-{prefer}" if prefer is not None else "")] = case
    cases["empty-a-prefer-0"] = Case(("empty", "a"), ("1", "1"), 0, files={})
    texts = {"config.json": '{"a":1}', "LICENSE": "another", "changelog.txt": "news"}
    cases |= {"a-texts-a": Case(("a-texts", "a"), ("1", "1"), files=texts)}  # what people read does not make them differ
    cases |= {"a-a-texts": Case(("a", "a-texts"), ("1", "1"), files=license_of_base | {"config.json": '{"a":1}'})}
    assert all(set(case.files or {}) <= {*names, "changelog.txt", *BASE_FILES} for case in cases.values())
    return Group("side files", {"w": old}, packs, cases)


def arranged() -> Group:
    """Packs that make the same tensor of others are added up; else their results would hold different tensors."""
    made = arrange(STACKED, IN_ORDER, EXPERTS)

    def gone() -> Pack:
        pack = Pack()
        for name, held in EXPERTS.items():
            pack.removed(name, held)
        return pack

    packs = {"a": experts(), "other": pack_of(STACKED, IN_ORDER[::-1], **EXPERTS), "plain": Pack()}
    packs["b"] = gone().patched("w", made, [term("all", "int8", every(1, made.numel))]).made_of(STACKED, IN_ORDER)
    packs["whole"] = gone().stored("w", floats("bf16", made.shape, 60), replaces=("w", made)).made_of(STACKED, IN_ORDER)
    for name, held in EXPERTS.items():
        packs["plain"].unchanged(name, held)
    for name in ("a", "b", "whole"):
        packs[name].file("config.json", b'{"a":1}' if name == "a" else b'{"b":1}')
    packs["grown"] = experts().stored("new", tensor("i8", (1,), [1])).file("config.json", b'{"c":1}')
    cases = {}
    for pair in (("a", "b"), ("b", "whole"), ("whole", "a")):
        parts = [(packs[name].said["w"], weight) for name, weight in zip(pair, WEIGHTS, strict=True)]
        cases["-".join(pair)] = Case(pair, WEIGHTS, result={"w": summed(made, parts)})
    for pair, prefer in ((("a", "other"), None), (("a", "other"), 0), (("a", "plain"), None), (("plain", "a"), 1)):
        cases["-".join(pair) + (f"-prefer-{prefer}" if prefer is not None else "")] = Case(pair, WEIGHTS, prefer, CONFLICT)
    cases["a-grown"] = Case(("a", "grown"), ("1", "1"), files={"config.json": '{"c":1}'})
    return Group("arranged tensors", dict(EXPERTS), packs, cases)


def several_packs() -> Iterator[tuple[str, Group]]:
    """Name and group."""
    for make in (pairs, exact, names, sums, example, bases, digests, files, arranged):
        yield make.__name__, make()
