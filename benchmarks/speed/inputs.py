"""A family of checkpoints, the packs made of it, and the calls that a benchmark makes on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import deltapack
from benchmarks.checkpoints import Family, Llama, build, cache_folder, llama_of_size
from benchmarks.results import progress
from benchmarks.speed.candidates import Verb, read_files, weight_files

__all__ = ["DEFAULT", "Bench", "Setting", "open_bench"]


@dataclass(frozen=True)
class Setting:
    """What a pack is made with."""

    drop_rate: float
    values: str
    index: str

    def recipe(self, seed: int = 0) -> dict[str, Any]:
        return {"drop_rate": self.drop_rate, "values": self.values, "index": self.index, "seed": seed}

    def __str__(self) -> str:
        return f"{self.drop_rate} {self.values} {self.index}"


DEFAULT = Setting(0.9, "int4", "seeded")


@dataclass(frozen=True)
class Bench:
    """A family and a folder on the same disk for what is made of it."""

    family: Family
    scratch: Path

    @property
    def base(self) -> Path:
        return self.family.base

    def pack(self, setting: Setting, number: int = 0) -> Path:
        """Return the pack of a fine-tune, made when it is asked for first.

        Numbers beyond the fine-tunes go round again with another seed: other positions, the same work.
        """
        out = self.scratch / f"{number}-{setting.drop_rate}-{setting.values}-{setting.index}.dpk"
        if not out.exists():
            progress(f"packing {out.name}")
            seed, tuned = divmod(number, len(self.family.tuned))
            deltapack.compress(self.base, self.family.tuned[tuned], out, recipe=deltapack.Recipe(**setting.recipe(seed)))
        return out

    def packs(self, count: int, setting: Setting = DEFAULT) -> list[Path]:
        return [self.pack(setting, number) for number in range(count)]

    def compress(self, setting: Setting, workers: int) -> Verb:
        arguments = {"base": str(self.base), "finetuned": str(self.family.tuned[0]), "recipe": setting.recipe(), "workers": workers}
        return Verb(f"compress, {_workers(workers)}", "compress", arguments | {"out": str(self.scratch / "out.dpk")})

    def compress_by_budget(self, workers: int) -> Verb:
        arguments = {"base": str(self.base), "finetuned": str(self.family.tuned[0]), "recipe": {}, "workers": workers}
        return Verb(
            f"compress by the default budget, {_workers(workers)}", "compress", arguments | {"out": str(self.scratch / "budget.dpk")}
        )

    def apply(self, setting: Setting, workers: int) -> Verb:
        arguments = {"base": str(self.base), "pack": str(self.pack(setting)), "workers": workers}
        return Verb(f"apply to folder, {_workers(workers)}", "apply", arguments | {"out": str(self.scratch / "applied")})

    def merge(self, count: int, workers: int, setting: Setting = DEFAULT) -> Verb:
        packs = list(map(str, self.packs(count, setting)))
        arguments = {"base": str(self.base), "packs": packs, "weights": weights(count), "workers": workers}
        return Verb(f"merge of {count} to folder, {_workers(workers)}", "merge", arguments | {"out": str(self.scratch / "merged")})

    def verify(self, workers: int, *, base: bool, setting: Setting = DEFAULT) -> Verb:
        arguments = {"pack": str(self.pack(setting)), "workers": workers} | ({"base": str(self.base)} if base else {})
        return Verb(f"verify{' with base' if base else ''}, {_workers(workers)}", "verify", arguments)

    def inspect(self, setting: Setting = DEFAULT) -> Verb:
        return Verb("inspect", "inspect", {"pack": str(self.pack(setting))})


def weights(count: int) -> list[float]:
    """Weights of a merge: different ones, so that mixing them up shows in the bits."""
    return [round(0.5 / (number + 1), 3) for number in range(count)]


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


@contextmanager
def open_bench(size: float | Llama, finetunes: int) -> Iterator[Bench]:
    """Make a family, bring its files into the page cache, and remove what the benchmark made of it in the end.

    Args:
        size: GB of one checkpoint, or its shapes.
        finetunes: How many fine-tunes.
    """
    family = build(size if isinstance(size, Llama) else llama_of_size(size), finetunes)
    read_files([path for folder in (family.base, *family.tuned) for path in weight_files(folder)])
    with TemporaryDirectory(dir=cache_folder(), prefix=".run-") as scratch:
        yield Bench(family, Path(scratch))
