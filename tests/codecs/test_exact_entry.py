"""What a pack says of an exact tensor, element by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builders import Tensor, write_folder

import deltapack
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.format.digest import CHUNK
from deltapack.format.reader import PackReader

NUMEL = CHUNK + 9


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exact tensor of two chunks that the base lacks."""
    folder = tmp_path_factory.mktemp("exact")
    old = {"kept": Tensor("i16", np.zeros(3, np.int16))}
    base = write_folder(folder / "base", old)
    tuned = write_folder(folder / "tuned", {**old, "new": Tensor("i16", np.arange(NUMEL).astype(np.int16))})
    deltapack.compress(base, tuned, folder / "x.dpk", recipe=deltapack.Recipe(exact=True))
    return folder / "x.dpk"


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (5, 5), (CHUNK, CHUNK), (NUMEL, NUMEL), (0, NUMEL), (7, 8), (CHUNK - 1, CHUNK + 1), (CHUNK, NUMEL)]
)
def test_any_range_is_read(start: int, stop: int, pack: Path) -> None:
    with PackReader(pack) as reader:
        (entry,) = (entry for entry in reader.index.entries if entry.name == "new")
        found = ExactTensor.of(reader, entry).read(start, stop)
    assert found.dtype == np.dtype("<i2")
    assert found.tolist() == np.arange(start, stop).astype(np.int16).tolist()
