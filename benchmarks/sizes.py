"""How small: bits per weight and ratio of packs, beside naive COO and zstd, and stored gaps against the mask's entropy."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import zstandard

import deltapack
from benchmarks.command import main
from benchmarks.pairs import Pair, real_pairs, synthetic_pair, write_family
from benchmarks.results import Cell, Section, Table, progress
from deltapack.checkpoint import open_checkpoint
from deltapack.format.writer import stored_side_file
from deltapack.packing.roles import roles_of
from deltapack.packing.sides import sides_with_base

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
VECTOR_HEADERS = (
    "pair",
    "drop",
    "vectors",
    "share of the elements %",
    "bytes if dropped from",
    "bytes if kept whole",
    "grows by %",
    "at most %",
    "result",
)
VECTORS_RATE, VECTORS_LIMIT = 0.9, 2.0
"""Percent that keeping the difference of vectors whole may cost at the drop rate."""
DENSITIES = (0.5, 0.1, 0.05, 0.01, 0.001)
COO_BITS = 32 + 16
LEVEL_19_LIMIT = 128 << 20
"""Bytes of a weight file above which zstd -19 takes too long to be part of a benchmark."""


def measure(quick: bool) -> Section:
    pairs, missing = real_pairs()
    packs: list[tuple[Cell, ...]] = []
    bounds: list[tuple[Cell, ...]] = []
    peers: list[tuple[Cell, ...]] = []
    vectors: list[tuple[Cell, ...]] = []
    with synthetic_pair(quick) as made:
        for pair in (made, *pairs):
            _measure_pair(pair, packs, bounds, peers, (3,) if quick else (3, 19))
            vectors.append(_vectors_row(pair))
    gaps_numel = 1 << (21 if quick else 24)
    tables = (
        Table("packs", "Packs", PACK_HEADERS, tuple(packs)),
        Table("bounds", "Bounds at values int4, index seeded", ("pair", "drop", "bits/weight", "at most", "result"), tuple(bounds)),
        Table("vectors", "What it costs to keep the difference of vectors whole", VECTOR_HEADERS, tuple(vectors)),
        Table(
            "masks",
            f"Index of a random mask over {gaps_numel:,} elements against the mask's entropy",
            GAPS_HEADERS,
            tuple(_gaps_rows(gaps_numel)),
        ),
        Table(
            "files",
            "Side files that differ from the base's",
            ("pair", "file", "bytes", "in the pack", "without the base's", "in the pack, %"),
            tuple(row for pair in pairs for row in _file_rows(pair)),
        ),
        Table("zstd", "zstd on the weight files", ("pair", "peer", "bytes", "ratio", "bits/weight", "seconds"), tuple(peers)),
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
        "Side files: beside those that are new, which no base has, and those that the base has, which cost nothing. "
        "Texts for people (README) stay whole, so that the base may change its own.",
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
    for peer in _run_zstd(pair.base, pair.finetuned, levels):
        progress(f"{pair.name} {peer.name}")
        ratio = tensor_bytes / peer.nbytes if peer.nbytes else None
        bits_all = 8 * peer.nbytes / elements if peer.nbytes else None
        peers.append((pair.name, peer.name, peer.nbytes or peer.reason, ratio, bits_all, peer.seconds))


def _pack_row(pair: Pair, drop: float, values: str, index: str) -> tuple[tuple[Cell, ...], float]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out.dpk"
        report = deltapack.compress(pair.base, pair.finetuned, out, recipe=deltapack.Recipe(drop, values, index))
        with deltapack.open_pack(out) as pack:
            nnz = sum(entry.nnz for entry in pack.values())
    per_weight = [8 * report.split[part] / report.delta_elements for part in ("index", "codes", "scales", "tables", "header")]
    coo, bits = COO_BITS * nnz / report.delta_elements, report.delta_bits_per_weight
    return (pair.name, drop, values, index, bits, *per_weight, report.pack_bytes, report.ratio, coo, coo / bits), bits


def _vectors_row(pair: Pair) -> tuple[Cell, ...]:
    """Pack at a drop rate, with vectors kept whole and with vectors treated as weights."""
    progress(f"{pair.name} vectors")
    with open_checkpoint(pair.finetuned) as opened:
        names = [name for name, role in roles_of(opened.tensors).items() if role == "vector"]
        share = 100 * sum(opened.tensors[name].numel for name in names) / sum(tensor.numel for tensor in opened.tensors.values())
    plain = deltapack.Recipe(drop_rate=VECTORS_RATE)
    dropped = replace(plain, overrides=tuple(deltapack.Override(re.escape(name), role="weight") for name in names))
    with TemporaryDirectory() as folder:
        before, after = (
            deltapack.compress(pair.base, pair.finetuned, Path(folder) / "out.dpk", recipe=recipe, force=True).pack_bytes
            for recipe in (dropped, plain)
        )
    grows = 100 * (after / before - 1)
    return pair.name, VECTORS_RATE, len(names), share, before, after, grows, VECTORS_LIMIT, _result(grows, VECTORS_LIMIT)


def _file_rows(pair: Pair) -> Iterator[tuple[Cell, ...]]:
    """Each side file that a pack carries, as it holds it and as it would if it could not refer to the base's."""
    with open_checkpoint(pair.base) as base, open_checkpoint(pair.finetuned) as tuned:
        for name, data, before in sides_with_base(base, tuned.list_side_files()[0]):
            if before is not None and data != before:
                found, alone = (len(stored_side_file(name, data, other)[0]) for other in (before, None))
                yield pair.name, name, len(data), found, alone, 100 * found / alone


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
    with open_checkpoint(checkpoint) as opened:
        return sum(path.stat().st_size for path in opened.weight_paths()), sum(tensor.numel for tensor in opened.tensors.values())


@dataclass(frozen=True)
class ZstdResult:
    """Name of the setting, compressed bytes (none where it did not run), seconds, and why if not."""

    name: str
    nbytes: int | None
    seconds: float | None
    reason: str = ""


def _run_zstd(base: Path, tuned: Path, levels: Sequence[int] = (3, 19)) -> Iterator[ZstdResult]:
    """Compress the weight files of `tuned`, all as one stream, plain and as a patch from those of `base`.

    Args:
        base: Base checkpoint.
        tuned: Fine-tuned checkpoint.
        levels: Of zstd.
    """
    with TemporaryDirectory() as folder:
        files = [_joined(checkpoint, Path(folder) / name) for name, checkpoint in (("base", base), ("tuned", tuned))]
        for level in levels:
            for patch in (False, True):
                name = f"zstd -{level}" + (f" --long={_window(files)} --patch-from=BASE" if patch else "")
                if level == 19 and max(file.stat().st_size for file in files) > LEVEL_19_LIMIT:
                    yield ZstdResult(name, None, None, "not run: over 5 minutes of work at this size, see the smaller pairs")
                    continue
                start = time.perf_counter()
                nbytes = _zstd(files[0] if patch else None, files[1], level, _window(files))
                yield ZstdResult(f"{name} ({_tool()})", nbytes, time.perf_counter() - start)


def _joined(checkpoint: Path, out: Path) -> Path:
    with open_checkpoint(checkpoint) as opened, out.open("wb") as target:
        for path in opened.weight_paths():
            with path.open("rb") as source:
                shutil.copyfileobj(source, target)
    return out


def _window(files: list[Path]) -> int:
    """A window that covers the larger file; --patch-from needs it."""
    return max(27, max(file.stat().st_size for file in files).bit_length())


def _tool() -> str:
    if shutil.which("zstd") is None:
        return f"python-zstandard {zstandard.__version__}; no zstd command"
    text = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True).stdout
    return "zstd " + next((word.strip(",") for word in text.split() if word.startswith("v")), "command")


def _zstd(base: Path | None, tuned: Path, level: int, window: int) -> int:
    if shutil.which("zstd") is None:
        return _zstandard(base, tuned, level, window)
    patch = [f"--long={window}", f"--patch-from={base}"] if base is not None else []
    out = tuned.with_suffix(".zst")
    subprocess.run(["zstd", "-qq", "-f", f"-{level}", *patch, str(tuned), "-o", str(out)], check=True)
    nbytes = out.stat().st_size
    out.unlink()
    return nbytes


def _zstandard(base: Path | None, tuned: Path, level: int, window: int) -> int:
    """The same through the library, for machines without the command; whole files in memory."""
    data = tuned.read_bytes()
    if base is None:
        return len(zstandard.ZstdCompressor(level=level).compress(data))
    params = zstandard.ZstdCompressionParameters.from_level(level, window_log=window, enable_ldm=True)
    reference = zstandard.ZstdCompressionDict(base.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(compression_params=params, dict_data=reference).compress(data))


if __name__ == "__main__":
    sys.exit(main(measure))
