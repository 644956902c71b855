"""Views in another order than the file's, read in slabs; and files that are cut while they are open."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.local_files import open_local

from deltapack.checkpoint import open_checkpoint, strided
from deltapack.checkpoint.arranging import Tiles
from deltapack.checkpoint.strided import StridedSource

ROOT = Path(__file__).parents[2]


def small_slabs(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(strided, "_SLAB", nbytes)
    monkeypatch.setattr(strided, "_SEGMENT", max(1, nbytes // 4))
    monkeypatch.setattr(strided, "_NEAR", 16)
    monkeypatch.setattr(strided, "SLABS", Tiles(2 * nbytes))


@pytest.mark.parametrize("slab", [1, 48, 1 << 10, 1 << 20])
def test_any_strides(slab: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_slabs(monkeypatch, slab)
    stored = np.arange(4096, dtype="<u2")
    (tmp_path / "x.bin").write_bytes(b"head" + stored.tobytes())
    file, random = open_local(tmp_path / "x.bin"), np.random.default_rng(slab)
    for _ in range(60):
        shape = tuple(map(int, random.integers(1, 7, random.integers(1, 5))))
        strides = tuple(map(int, random.choice([0, 1, 2, 3, 5, 7, 35, 100, 210], len(shape))))
        first = int(random.integers(0, 8))
        if first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) >= len(stored):
            continue
        view = np.lib.stride_tricks.as_strided(stored[first:], shape, [2 * stride for stride in strides]).reshape(-1)
        source = StridedSource(file, 4 + 2 * first, shape, strides)
        for start in {0, math.prod(shape) // 3, math.prod(shape) - 1}:
            for stop in {start, start + 1, math.prod(shape)}:
                out = np.full(stop - start, 0xFFFF, "<u2")
                source.read_into(start, out)
                assert np.array_equal(out, view[start:stop]), (shape, strides, first, start, stop)


def test_a_slab_is_read_once_and_not_much_more_than_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever reads a transposed tensor chunk by chunk reads the file about once, not once for each chunk."""
    small_slabs(monkeypatch, 1 << 14)
    matrix = np.arange(256 * 256, dtype="<u2").reshape(256, 256)
    (tmp_path / "x.bin").write_bytes(matrix.tobytes())
    file, read = open_local(tmp_path / "x.bin"), list[int]()
    real = file.read_into

    def counting(offset: int, view: memoryview) -> None:
        read.append(len(view))
        real(offset, view)

    monkeypatch.setattr(file, "read_into", counting)
    source, out = StridedSource(file, 0, (256, 256), (1, 256)), np.empty(1000, "<u2")
    for start in range(0, matrix.size - 1000, 1000):
        source.read_into(start, out)
        assert np.array_equal(out, matrix.T.reshape(-1)[start : start + 1000])
    assert sum(read) <= 2 * matrix.nbytes


CUT = """
import os, sys
import torch
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import CheckpointError
for path in sys.argv[1:]:
    opened = open_checkpoint(path)
    os.truncate(path, 4096)
    ended = 0
    for name in opened.tensors:
        try:
            opened.read(name)
        except CheckpointError as error:
            ended += "ended while it was read" in str(error)
    print(len(opened.tensors) - ended)
"""


def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    """It was a signal, SIGBUS, that ended the process, where a tensor was mapped."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {"a": torch.randn(400, 300), "b": torch.randn(300, 400)}
    paths = [tmp_path / "model.bin", tmp_path / "model.safetensors"]
    torch.save({"a": tensors["a"], "b": tensors["b"].t(), "c": torch.randn(64, 64, 8).permute(2, 0, 1)}, paths[0])
    save_file(tensors, paths[1])
    with open_checkpoint(paths[0]) as opened:
        assert [type(source).__name__ for source in opened._sources.values()] == ["FileSource", "StridedSource", "StridedSource"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CUT, *map(str, paths)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n0\n", "")


OF_THEIR_OWN = {"doctor/known.py", "exporting/restored_model.py"}
"""Map files that they have written themselves, in a folder that nobody knows of yet."""


def test_nothing_of_this_package_maps_a_file() -> None:
    """A file that is cut while it is mapped ends the process, and no code of Python can help it."""
    for path in sorted((ROOT / "deltapack").rglob("*.py")):
        text = path.read_text("utf-8")
        if path.relative_to(ROOT / "deltapack").as_posix() not in OF_THEIR_OWN:
            for word in ("mmap", "memmap", "safe_open(", "torch.from_file", "_new_shared"):
                assert word not in text, f"{path} has {word}"
