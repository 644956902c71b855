"""Differences that are read in pieces: the sample that is kept in passing is the one that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builders import CHUNK, Tensor, cast, random_tensor, write_file

from deltapack.checkpoint import open_checkpoint
from deltapack.packing.deltas import Delta, Passing, moved_rows, runs_of, sampled, squares_of_rows, squares_of_some_rows


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize(
    ("rows", "columns", "step"), [(900, 700, 33), (3, 41_000, 1), (70, 9, 16), (2 * CHUNK // 512, 512, 512), (130, 600, 7)]
)
def test_the_sample_that_is_kept_in_passing(rows: int, columns: int, step: int, dtype: str, tmp_path: Path) -> None:
    base = {"w": random_tensor(1, (rows, columns), dtype)}
    tuned = {"w": cast(base["w"].f64 + 1e-2 * random_tensor(2, (rows, columns)).f64, dtype)}
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    with open_checkpoint(paths[0]) as one, open_checkpoint(paths[1]) as other:
        delta = Delta(one, other, other.tensors["w"], one.tensors["w"])
        right, size = np.ones((2, columns), np.float32), np.float32(1)
        passing = Passing(delta)
        for first in range(0, rows, step):
            place = first * columns, min(first + step, rows) * columns
            assert passing.times(*place, right, size).tobytes() == delta.times(*place, right, size).tobytes()
        expected = sampled(delta)
        assert len(expected) == sum(stop - start for start, stop in runs_of(rows * columns))
        assert passing.sample().tobytes() == sampled(delta, raw=passing.sample()).tobytes() == expected.tobytes()


def test_some_rows_tell_of_all(tmp_path: Path) -> None:
    base = {"w": random_tensor(1, (1000, 64))}
    tuned = {"w": Tensor("f32", base["w"].bits + np.float32(0.5))}
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    with open_checkpoint(paths[0]) as one, open_checkpoint(paths[1]) as other:
        delta = Delta(one, other, other.tensors["w"], one.tensors["w"])
        every, some = squares_of_rows(delta, workers=2), squares_of_some_rows(delta, 8)
    assert some.tolist() == [value for first in range(0, 1000, 128) for value in every[first : first + 16].tolist()]
    assert moved_rows(every, 0.1).all()


@pytest.mark.parametrize("largest", [np.inf, 1e308, 1e-300, 0.0])
def test_which_rows_have_moved_whatever_their_size(largest: float) -> None:
    squares = np.array([1.0, 0.5, 1e-9, 0.0]) * largest if np.isfinite(largest) else np.array([1.0, np.inf])
    expected = [True, True, False, False] if 0 < largest < np.inf else [False] * len(squares)
    assert moved_rows(squares, 0.1).tolist() == expected
