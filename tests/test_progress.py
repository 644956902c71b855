"""Progress of every use case rises, in the unit that it names, to a total that is the work itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builders import Model, random_tensor, tuned_model

import deltapack

PackOf = Callable[..., Path]
BASE: Model = {"a": random_tensor(1, (700, 300), "bf16"), "b": random_tensor(2, (1_100_000,), "bf16"), "c": random_tensor(3, ())}
SURVEYED = 2 * (700 * 300 + 1_100_000)
"""Bytes of the weights that a budget, which is the usual recipe, looks at in a pass before the pack."""
BYTES = SURVEYED + BASE["c"].raw.__len__()


class Seen:
    """A callback that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))

    def check(self, total: int) -> None:
        """Every step goes on, and the last one is the total."""
        assert len(self.calls) > 1
        assert {asked for _, asked in self.calls} == {total}
        steps = [done for done, _ in self.calls]
        assert steps == sorted(steps) and 0 <= steps[0] < steps[-1] == total


@pytest.fixture
def packs(pack_of: PackOf) -> list[Path]:
    return [pack_of(BASE, tuned_model(BASE, number), f"{number}") for number in (1, 2)]


@pytest.mark.parametrize("workers", [1, 3])
def test_progress(packs: list[Path], tmp_path: Path, workers: int) -> None:
    base = tmp_path / "base.safetensors"
    uses: list[tuple[Callable[..., Any], tuple[object, ...]]] = [
        (deltapack.compress, (base, tmp_path / "1.safetensors", tmp_path / "again.dpk")),
        (deltapack.apply, (base, packs[0], tmp_path / "out.safetensors")),
        (deltapack.merge, (base, packs, tmp_path / "merged.safetensors")),
        (deltapack.merge, (base, packs, tmp_path / "merged.dpk")),
        (deltapack.verify, (packs[0], base)),
    ]
    for use, arguments in uses:
        seen = Seen()
        use(*arguments, workers=workers, progress=seen)
        seen.check(BYTES + (SURVEYED if use is deltapack.compress else 0))


def test_without_a_base_chunks_are_counted(packs: list[Path]) -> None:
    seen = Seen()
    report = deltapack.verify(packs[0], progress=seen)
    seen.check(report.chunks)
    assert report.chunks == 4  # of the tensors' 210,000, 1,100,000 and 1 elements
