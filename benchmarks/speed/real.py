"""Compress, apply and verify on the real pairs, which are small and of other types: f32, .bin files, renamed tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.checkpoints import cache_folder
from benchmarks.pairs import Pair, real_pairs
from benchmarks.results import Cell, Table, progress
from benchmarks.speed.checks import decoder, wrong_in_folder
from benchmarks.speed.floors import cp_floor, read_floor
from benchmarks.speed.inputs import DEFAULT
from benchmarks.speed.rows import Group, floor_headers
from benchmarks.speed.verbs import Verb
from benchmarks.timing import Rounds, interleave
from deltapack.checkpoint import open_checkpoint

__all__ = ["measure_real"]


def measure_real(rounds: Rounds) -> tuple[Table, list[str]]:
    """Return the table of the pairs that could be had, and a sentence for each that could not."""
    pairs, missing = real_pairs()
    rows = tuple(row for pair in pairs for row in _rows(pair, rounds))
    return Table(f"Real pairs, {DEFAULT}", floor_headers("pair", "MB", "what"), rows), missing


def _rows(pair: Pair, rounds: Rounds) -> Iterator[tuple[Cell, ...]]:
    progress(f"timing pair {pair.name}")
    with open_checkpoint(pair.finetuned) as tuned:
        tensors = tuned.tensors.values()
        nbytes, numel = sum(tensor.nbytes for tensor in tensors), sum(tensor.numel for tensor in tensors)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_folder(), prefix=".run-") as scratch:
        base, pack, out = str(pair.base), str(Path(scratch) / "pair.dpk"), str(Path(scratch) / "applied")
        arguments = {"base": base, "finetuned": str(pair.finetuned), "recipe": DEFAULT.recipe(), "workers": 2, "out": pack}
        verbs = [
            Verb("compress, 2 workers", "compress", arguments),
            Verb("apply to folder, 2 workers", "apply", {"base": base, "pack": pack, "workers": 2, "out": out}),
            Verb("verify with base, 2 workers", "verify", {"base": base, "pack": pack, "workers": 2}),
        ]
        floors = [cp_floor(pair.base, Path(scratch), sync=sync) for sync in (False, True)]
        samples = interleave([*floors, read_floor([pair.base, pair.finetuned]), *(verb.candidate() for verb in verbs)], rounds)
        wrong = _wrong(pair, Path(pack), Path(out))
        peaks = {verb.name: verb.peak_mb() for verb in verbs}
    group = Group(nbytes, samples, peaks, {verb.name: wrong for verb in verbs}, numel)
    yield from group.rows(pair.name, nbytes / 1e6, names=[verb.name for verb in verbs])


def _wrong(pair: Pair, pack: Path, out: Path) -> str:
    """Return which restored tensor is not the reference decoder's, which checks every digest in the pack, too."""
    with open_checkpoint(pair.base) as base:
        tensors = {name: (info.dtype.name, info.shape, base.read(name).tobytes()) for name, info in base.tensors.items()}
    return wrong_in_folder(out, {name: tensor[2] for name, tensor in decoder().restore(pack, tensors).items()})
