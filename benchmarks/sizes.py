"""How small: bits per weight and ratio of packs, beside naive COO and zstd, and stored gaps against the mask's entropy."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import deltapack
from benchmarks.pairs import Pair, real_pairs, synthetic_pair
from benchmarks.peers import run_zstd, weight_bytes
from benchmarks.results import Cell, Section, Table, main, progress
from benchmarks.synthetic import write_family

RECIPES = (
    (0.5, "auto", "seeded"),
    (0.5, "int4", "seeded"),
    (0.5, "int4", "gaps"),
    (0.5, "int4", "bitmap"),
    (0.9, "auto", "seeded"),
    (0.9, "int4", "seeded"),
    (0.9, "int4", "gaps"),
    (0.9, "int4", "bitmap"),
    (0.9, "int8", "seeded"),
    (0.9, "bf16", "seeded"),
    (0.9, "bf16", "gaps"),
    (0.99, "auto", "seeded"),
    (0.99, "int4", "seeded"),
    (0.99, "int4", "gaps"),
    (0.99, "bf16", "gaps"),
)
PACK_HEADERS = (
    "pair", "drop", "values", "index", "bits/weight", "index b/w", "codes b/w", "scales b/w", "tables b/w", "header b/w",
    "pack bytes", "ratio", "naive COO b/w", "COO / pack",
)  # fmt: skip
BOUNDS = {(0.9, "int4", "seeded"): 0.46, (0.99, "int4", "seeded"): 0.05}
"""Bits per weight over the delta tensors, everything but stored tensors and side files counted."""
GAPS_LIMIT = 2.0
"""Percent over the entropy."""
GAPS_HEADERS = (
    "density", "entropy b/w", "gaps b/w", "gaps over %", "bitmap b/w", "bitmap over %",
    "at most %", "gaps", "smaller of both", "seeded b/w",
)  # fmt: skip
DENSITIES = (0.5, 0.1, 0.05, 0.01, 0.001)
COO_BITS = 32 + 16


def measure(quick: bool) -> Section:
    pairs, missing = real_pairs()
    packs: list[tuple[Cell, ...]] = []
    bounds: list[tuple[Cell, ...]] = []
    peers: list[tuple[Cell, ...]] = []
    with synthetic_pair(quick) as made:
        for pair in (made, *pairs):
            _measure_pair(pair, packs, bounds, peers, (3,) if quick else (3, 19))
    gaps_numel = 1 << (21 if quick else 24)
    tables = (
        Table("Packs", PACK_HEADERS, tuple(packs)),
        Table("Bounds at values int4, index seeded", ("pair", "drop", "bits/weight", "at most", "result"), tuple(bounds)),
        Table(
            f"Index of a random mask over {gaps_numel:,} elements against the mask's entropy",
            GAPS_HEADERS,
            tuple(_gaps_rows(gaps_numel)),
        ),
        Table("zstd on the weight files", ("pair", "peer", "bytes", "ratio", "bits/weight", "seconds"), tuple(peers)),
    )
    notes = (
        "bits/weight: all bytes of the pack but stored tensors and side files, over the elements of the delta tensors. "
        "Ratio: the fine-tune's tensors over the whole pack, side files counted.",
        "Naive COO: the same kept elements as int32 position and bf16 value, nothing else counted.",
        "Entropy: H(d) per weight, with d the density that the mask has; gaps, bitmap: the index stream alone. "
        "Over: percent above the entropy. "
        "Tables (sizes, checksums, counts of each tile) come with every index and are counted in bits/weight above.",
        "A tensor costs about 85 bytes in the index and 28 to 88 per chunk in tables, whatever its size: "
        "that is what keeps B1 and B2 (199 tensors of 34 thousand elements on average) above 0.05 at a drop rate of 0.99, "
        "where entropy coding also finds too few codes in a stream to gain anything.",
        "zstd rows are lossless, packs at these drop rates are not; bits/weight there: over all elements of the fine-tune.",
        *missing,
    )
    return Section("Sizes", "python -m benchmarks.sizes", tables, notes)


def _measure_pair(
    pair: Pair, packs: list[tuple[Cell, ...]], bounds: list[tuple[Cell, ...]], peers: list[tuple[Cell, ...]], levels: tuple[int, ...]
) -> None:
    for recipe in RECIPES:
        progress(f"{pair.name} drop {recipe[0]} {recipe[1]} {recipe[2]}")
        row, bits = _pack_row(pair, *recipe)
        packs.append(row)
        if recipe in BOUNDS:
            bounds.append((pair.name, recipe[0], bits, BOUNDS[recipe], _result(bits, BOUNDS[recipe])))
    tensor_bytes, elements = _extent(pair.finetuned)
    for peer in run_zstd(pair.base, pair.finetuned, levels):
        progress(f"{pair.name} {peer.peer}")
        ratio = tensor_bytes / peer.nbytes if peer.nbytes else None
        bits_all = 8 * peer.nbytes / elements if peer.nbytes else None
        peers.append((pair.name, peer.peer, peer.nbytes or peer.reason, ratio, bits_all, peer.seconds))


def _pack_row(pair: Pair, drop: float, values: str, index: str) -> tuple[tuple[Cell, ...], float]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out.dpk"
        report = deltapack.compress(pair.base, pair.finetuned, out, recipe=deltapack.Recipe(drop, values, index))
        with deltapack.open_pack(out) as pack:
            nnz = sum(entry.nnz for entry in pack.values())
    per_weight = [8 * report.split[part] / report.delta_elements for part in ("index", "codes", "scales", "tables", "header")]
    coo, bits = COO_BITS * nnz / report.delta_elements, report.delta_bits_per_weight
    return (pair.name, drop, values, index, bits, *per_weight, report.pack_bytes, report.ratio, coo, coo / bits), bits


def _gaps_rows(numel: int) -> Iterator[tuple[Cell, ...]]:
    with TemporaryDirectory() as folder:
        base, (tuned,) = write_family(Path(folder), {"weight": (numel // 1024, 1024)})
        for density in DENSITIES:
            progress(f"gaps at density {density}")
            bits = {}
            for index in ("gaps", "bitmap", "seeded"):
                out = Path(folder) / "out.dpk"
                recipe = deltapack.Recipe(1 - density, "sign", index)
                report = deltapack.compress(base, tuned, out, recipe=recipe, force=True)
                with deltapack.open_pack(out) as pack:
                    kept = pack["weight"].nnz / numel
                bits[index] = 8 * report.split["index"] / numel
            entropy = -kept * math.log2(kept) - (1 - kept) * math.log2(1 - kept)
            over = {index: 100 * (bits[index] / entropy - 1) for index in ("gaps", "bitmap")}
            results = [_result(value, GAPS_LIMIT) for value in (over["gaps"], min(over.values()))]
            yield density, entropy, bits["gaps"], over["gaps"], bits["bitmap"], over["bitmap"], GAPS_LIMIT, *results, bits["seeded"]


def _result(value: float, limit: float) -> str:
    return "pass" if value <= limit else "FAIL"


def _extent(checkpoint: Path) -> tuple[int, int]:
    """Return the weight bytes of a checkpoint and its elements."""
    from deltapack.checkpoint import open_checkpoint

    with open_checkpoint(checkpoint) as opened:
        return weight_bytes(checkpoint), sum(tensor.numel for tensor in opened.tensors.values())


if __name__ == "__main__":
    sys.exit(main(measure))
