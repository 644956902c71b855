"""Several packs with masks, codes, scales and factors that have a feature of their own, for make_vectors.py only."""

from __future__ import annotations

from collections.abc import Sequence

from vectors.assemble import Added, Pack, Term
from vectors.factors import factors
from vectors.lossy import alike
from vectors.several import WEIGHTS, Case, Group, summed
from vectors.valid import floats, tensor, term

SHAPE = (4, 3)
OLD = floats("bf16", SHAPE)
ZEROS = tensor("f32", (3,), [0x80000000, 0x80000000, 0x7FA00001])
"""-0 and a NaN that is not the quiet one."""


def lossy_group() -> Group:
    """Pairs and triples; `w` has something from every pack, `z` zero trits, a level 0 or nothing."""

    def trits(codes: list[int]) -> Term:
        return Term("all", "ternary", [0, 1, 2], codes, alike="tensor")

    def pack(terms: Sequence[Added], of_zeros: Sequence[Added], **options: object) -> Pack:
        return Pack().patched("w", OLD, terms, **options).patched("z", ZEROS, of_zeros)

    level = Term("bitmap", "uniform", [1], [0], alike="tensor")
    spikes = factors(SHAPE, 2)
    rows = alike("seeded", "ternary", SHAPE, "rows", (1,), keep=3 << 30, factor=0x40A66666)
    outer = alike("all", "int4", SHAPE, "outer", (0, 3), factor=0x3F99999A)
    packs = {
        "rows": pack([rows], [trits([0, 0, 0])]),
        "factors": pack([spikes, alike("stratified", "ternary", SHAPE, keep=1 << 31)], [trits([0, 1, 0])]),
        "outer": pack([outer], [level]),
        "grown": pack([spikes], [], shape=(6, 3), tail=floats("bf16", (2, 3), 5).data),
        "plain": pack([term("gaps", "int4", [0, 5, 11], shift=0)], [Term("bitmap", "f32", [0], [0])]),
        "blend": Pack().stored("w", floats("bf16", SHAPE, 20), replaces=("w", OLD)).unchanged("z", ZEROS),
    }
    cases = {}
    for names in (
        *(("rows", "factors"), ("factors", "rows"), ("rows", "rows"), ("outer", "plain"), ("grown", "factors"), ("blend", "factors")),
        *(("rows", "outer", "factors"), ("grown", "rows", "blend"), ("factors",), ("rows",)),
    ):
        weights = (*WEIGHTS, "2")[: len(names)]
        like = next((packs[name].said["w"] for name in names if name == "grown"), None)
        parts = {key: [(packs[name].said[key], weight) for name, weight in zip(names, weights, strict=True)] for key in ("w", "z")}
        result = {"w": summed(OLD, parts["w"], like=like), "z": summed(ZEROS, parts["z"])}
        cases["-".join(names)] = Case(names, weights, result=result)
    return Group("masks, codes, scales and factors added up, in their order", {"w": OLD, "z": ZEROS}, packs, cases)
