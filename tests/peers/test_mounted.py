"""mergekit and transformers take models that are nowhere written: bit for bit what they make of the restored folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.builders import read_model
from support.mergekits import merged_by_mergekit
from support.mounting import has_fuse, mounted

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not has_fuse(), reason="there is no FUSE here: pip install -c constraints.txt '.[mount]', and Debian's fuse3"),
]
pytest.importorskip("mergekit", reason="mergekit is not installed: pip install -c constraints.txt '.[peers]'")


@pytest.fixture(scope="module")
def virtual(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ...]]:
    """A folder for each pack of the family."""
    folder = tmp_path_factory.mktemp("mounted")
    (folder / "packs").mkdir()
    for pack in family.packs:
        shutil.copy(pack, folder / "packs")
    with mounted(family.base, folder / "packs", folder / "mnt") as where:
        yield tuple(where / pack.stem for pack in family.packs)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_mergekit_merges_them(method: str, family: Any, virtual: tuple[Path, ...], tmp_path: Path) -> None:
    each = [{"weight": weight} | ({"density": 0.5} if method == "ties" else {}) for weight in (0.5, 0.25, 1.0)]
    results = []
    for name, folders in (("virtual", virtual), ("restored", family.restored)):
        (tmp_path / name).mkdir()
        results.append(merged_by_mergekit(replace(family, folder=tmp_path / name), folders, method, {"normalize": False}, each))
    found, wanted = results
    base = read_model(family.base)
    assert found.keys() == wanted.keys() and any((wanted[name].bits != base[name].bits).any() for name in base)
    for name, tensor in wanted.items():
        assert (found[name].bits == tensor.bits).all(), name


def test_transformers_loads_them(family: Any, virtual: tuple[Path, ...]) -> None:
    transformers = pytest.importorskip("transformers")
    for folder, restored in zip(virtual, family.restored, strict=True):
        found, wanted = (transformers.AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, restored))
        assert found.keys() == wanted.keys() and len(wanted) > 10
        for name, tensor in wanted.items():
            assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name
