from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import checkpoints
from benchmarks.checkpoints import Llama, build, equal_share, llama_of_size
from deltapack.checkpoint import open_checkpoint

TINY = Llama(hidden=256, layers=1, vocabulary=512)


@pytest.mark.parametrize("gigabytes", [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0])
def test_sizes_are_near_what_was_asked_for(gigabytes: float) -> None:
    llama = llama_of_size(gigabytes)
    assert abs(2 * llama.numel / 1e9 / gigabytes - 1) < 0.07
    assert llama.hidden % checkpoints.HEAD_DIM == 0
    assert llama.hidden // 4 == json.loads(llama.config())["num_key_value_heads"] * checkpoints.HEAD_DIM


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DELTAPACK_BENCH", str(tmp_path))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_in_the_cache_is_not_made_again_and_more_fine_tunes_fit_to_it(cache: Path) -> None:
    first = build(TINY, 1)
    before = {folder: contents(folder) for folder in (first.base, *first.tuned)}
    stamps = [path.stat().st_mtime_ns for path in sorted(first.base.iterdir())]
    second = build(TINY, 2)
    assert second.base == first.base and second.tuned[0] == first.tuned[0]
    assert [path.stat().st_mtime_ns for path in sorted(first.base.iterdir())] == stamps
    (cache / TINY.key).rename(cache / "aside")
    again = build(TINY, 2)
    assert {folder: contents(folder) for folder in (again.base, again.tuned[0])} == before
    assert contents(again.tuned[1]) == contents(cache / "aside" / "tuned2") != contents(again.tuned[0])


def test_other_parameters_have_another_place(cache: Path) -> None:
    keys = {Llama(256, 1, 512, **change).key for change in ({}, {"seed": 1}, {"weight_std": 0.03}, {"delta_high": 0.004})}
    assert len(keys) == 4


def test_differences_are_small_and_half_of_the_elements_stay(cache: Path) -> None:
    family, name = build(TINY, 1), "model.layers.0.mlp.up_proj.weight"
    assert 0.4 < equal_share(family, name) < 0.7
    with open_checkpoint(family.base) as base, open_checkpoint(family.tuned[0]) as tuned:
        old, new = ((ckpt.read(name).astype(np.uint32) << 16).view(np.float32) for ckpt in (base, tuned))
    share = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert 0.001 < share < 0.005  # rounding adds to the 0.001 to 0.003 of the difference
    assert 0.01 < old.std() < 0.035


def test_transformers_loads_it(cache: Path) -> None:
    transformers = pytest.importorskip("transformers")
    family = build(TINY, 0)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(family.base, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == family.llama.numel


def test_a_full_disk_is_said_before_anything_is_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(SystemExit, match="DELTAPACK_BENCH"):
        build(TINY, 1)
    assert not list((cache / TINY.key).iterdir())
