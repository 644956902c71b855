"""What exact packs are measured on: real pairs, pairs and steps that were trained for it, as elements and as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.exact.training import RUNS, Run, trained
from benchmarks.pairs import Pair, real_pairs
from deltapack.checkpoint import open_checkpoint, open_writer, plan_shards
from deltapack.dtypes import BY_NAME, DType
from deltapack.format.digest import CHUNK
from deltapack.kernels.rounding import from_f32

__all__ = ["Case", "Tensor", "chunks_of", "joined", "real_cases", "step_case", "step_runs", "trained_cases", "write_files"]

Array = NDArray[Any]
LARGEST_F8 = 448.0


@dataclass(frozen=True)
class Tensor:
    """Elements of base (none without a partner) and fine-tune, `[n]` in the storage type of a dtype."""

    base: Array | None
    tuned: Array


@dataclass(frozen=True)
class Case:
    """The tensors of one type of a pair.

    Attributes:
        name: Of the pair.
        dtype: Of the elements.
        tensors: In the order of the fine-tune.
    """

    name: str
    dtype: DType
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the fine-tune's elements."""
        return sum(tensor.tuned.nbytes for tensor in self.tensors)

    @property
    def changed(self) -> float:
        """The share of elements with a partner that differ from it in a bit, in percent."""
        same = [(np.count_nonzero(_bits(own.base) != _bits(own.tuned)), len(own.tuned)) for own in self.tensors if own.base is not None]
        differ, whole = map(sum, zip(*same, strict=True))
        return 100 * float(differ / whole)


def _bits(elements: Array) -> Array:
    return elements.view(f"<u{elements.itemsize}")


def real_cases(quick: bool) -> tuple[list[Case], list[str]]:
    """Return the real pairs in f32 and rounded, and a sentence for each that could not be had; where it is quick, a part of one."""
    pairs, missing = real_pairs()
    cases = []
    for pair in pairs[:1] if quick else pairs:
        cases += [_case(pair, kind) for kind in ("f32", "bf16", *(["f8_e4m3fn"] if pair.name == "A" else []))]
    return ([Case(own.name, own.dtype, own.tensors[: len(own.tensors) // 8]) for own in cases] if quick else cases), missing


def trained_cases() -> list[Case]:
    """Return the pairs that were trained for this study, which the codec was not tuned on."""
    cases = []
    for run in RUNS:
        if not run.keep_steps:
            folder = trained(run)
            pair = Pair(run.name, folder / "base", folder / "tuned")
            kinds = ("f32", "f16") if run.kind == "cnn" else ("f32", "bf16", "f8_e4m3fn") if run.decay else ("f32", "bf16")
            cases += [_case(pair, kind) for kind in kinds]
    return cases


def step_runs() -> Iterator[tuple[Run, Path]]:
    """Yield the runs that are saved at each step, with their folders."""
    for run in RUNS:
        if run.keep_steps:
            yield run, trained(run)


def step_case(run: Run, folder: Path, step: int) -> Case:
    """Return a step, the first being 1, as a fine-tune of the one before."""
    return _case(Pair(f"{run.name}, {step}", *(folder / (f"{at:04}" if at else "base") for at in (step - 1, step))), "bf16")


def _case(pair: Pair, kind: str) -> Case:
    """Read the floats of a pair as elements of a type; names in the base may have something in front."""
    dtype, tensors = BY_NAME[kind], []
    with open_checkpoint(pair.base) as base, open_checkpoint(pair.finetuned) as tuned:
        for name, entry in tuned.tensors.items():
            if entry.dtype.name not in ("f32", "bf16"):
                continue
            partners = [key for key in base.tensors if key == name or key.endswith(f".{name}")]
            partners = [key for key in partners if base.tensors[key].dtype == entry.dtype and base.tensors[key].shape == entry.shape]
            sides: list[Array] = [base.read(partners[0]).reshape(-1)] if partners else []
            sides.append(tuned.read(name).reshape(-1))
            if entry.dtype != dtype:
                scale = _scale(sides[0]) if dtype.itemsize == 1 else np.float32(1)
                sides = [from_f32(side * scale, dtype) for side in sides]
            tensors.append(Tensor(np.ascontiguousarray(sides[0]) if partners else None, np.ascontiguousarray(sides[-1])))
    return Case(pair.name, dtype, tuple(tensors))


def _scale(elements: Array) -> np.float32:
    """Return the power of two that brings a tensor just into the range of e4m3; both sides of a pair are scaled as the base asks."""
    largest = float(np.abs(elements).max())
    return np.float32(2.0 ** np.floor(np.log2(LARGEST_F8 / largest))) if largest else np.float32(1)


def chunks_of(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the chunks of tensors."""
    for tensor in tensors:
        for start in range(0, len(tensor.tuned), CHUNK):
            inside = slice(start, start + CHUNK)
            yield Tensor(None if tensor.base is None else tensor.base[inside], tensor.tuned[inside])


def joined(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return all tensors with a partner end to end, cut to full chunks."""
    whole = [(tensor.base, tensor.tuned) for tensor in tensors if tensor.base is not None]
    base, tuned = (np.concatenate(side) for side in zip(*whole, strict=True))
    length = max(CHUNK, len(base) // CHUNK * CHUNK)
    return [Tensor(base[:length], tuned[:length])]


def write_files(case: Case, folder: Path) -> None:
    """Write what tools work on.

    That is all elements end to end, `base.bin` and `tuned.bin`, where the base has zeros instead of a partner that is missing; and
    checkpoints: `base`, `tuned`, and `common` with those tensors of the fine-tune that have a partner.
    """
    with (folder / "base.bin").open("wb") as base, (folder / "tuned.bin").open("wb") as tuned:
        for tensor in case.tensors:
            base.write(bytes(tensor.tuned.nbytes) if tensor.base is None else tensor.base.tobytes())
            tuned.write(tensor.tuned.tobytes())
    named = [(f"t{place}", tensor) for place, tensor in enumerate(case.tensors)]
    partners = [(name, tensor.base) for name, tensor in named if tensor.base is not None]
    _write_checkpoint(folder / "base", case.dtype, partners)
    _write_checkpoint(folder / "tuned", case.dtype, [(name, tensor.tuned) for name, tensor in named])
    _write_checkpoint(folder / "common", case.dtype, [(name, tensor.tuned) for name, tensor in named if tensor.base is not None])


def _write_checkpoint(out: Path, dtype: DType, tensors: Sequence[tuple[str, Array]]) -> None:
    shards = plan_shards([(name, dtype, (len(elements),)) for name, elements in tensors], max_shard_size=1 << 40)
    with open_writer(out, shards) as writer:
        for name, elements in tensors:
            for start in range(0, len(elements), CHUNK):
                writer.write(name, start, elements[start : start + CHUNK])
