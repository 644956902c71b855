from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import cast, random_tensor, read_file, tuned_model, write_file
from support.recipes import DARE

import deltapack
from deltapack.dtypes import BY_NAME
from deltapack.kernels import rounding

TOLD = "elements became NaN or infinite where base and differences are finite, in 'w'"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a lossy pack of it."""
    model = {"w": random_tensor(1, (64, 32), "f32")}
    base, tuned = write_file(tmp_path / "base.safetensors", model), write_file(tmp_path / "tuned.safetensors", tuned_model(model))
    deltapack.compress(base, tuned, tmp_path / "p.dpk", recipe=DARE)
    return base, tmp_path / "p.dpk"


def told(notes: object) -> bool:
    return TOLD in "\n".join(notes)  # type: ignore[arg-type]


def count(path: Path) -> int:
    return int(np.count_nonzero(~np.isfinite(read_file(path)["w"].f64)))


def test_a_weight_that_is_too_large_is_told_by_all_who_take_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """apply, rescale, merges into a folder, a file and a pack, and live models say the same; a weight that fits says nothing."""
    base, pack = pair
    out = tmp_path / "out.safetensors"
    for options in ({"weight": 2e38}, {"weight": -2e38}, {"rescale": 2e38}):
        report = deltapack.apply(base, pack, out, force=True, **options)  # type: ignore[arg-type]
        lost = count(out)
        if lost:
            assert any(note.startswith(f"{lost:,} {TOLD}") for note in report.warnings)
        assert told(report.warnings) == bool(lost)
    assert not told(deltapack.apply(base, pack, out, force=True, weight=2.5).warnings)
    for method, parameters in (("linear", None), ("ties", {"lambda": 1.0})):
        packs, weights = [pack, pack], [2e38, 2e38]
        report = deltapack.merge(base, packs, out, weights=weights, method=method, parameters=parameters, force=True)  # type: ignore[assignment]
        assert told(report.warnings) == bool(count(out))


def test_a_merged_pack_tells_what_its_result_lost(tmp_path: Path) -> None:
    model = {"w": random_tensor(1, (64, 32), "f16")}
    base, tuned = write_file(tmp_path / "base.safetensors", model), write_file(tmp_path / "tuned.safetensors", tuned_model(model))
    deltapack.compress(base, tuned, tmp_path / "p.dpk", recipe=DARE)
    merged = deltapack.merge(base, [tmp_path / "p.dpk"], tmp_path / "m.dpk", weights=[1e8])
    deltapack.apply(base, tmp_path / "m.dpk", tmp_path / "out.safetensors")
    assert any(note.startswith(f"{count(tmp_path / 'out.safetensors'):,} {TOLD}") for note in merged.warnings)


def test_a_type_that_is_too_small_is_told(tmp_path: Path) -> None:
    """bf16 has numbers that f16 has not; what is infinite before is no news."""
    values = np.array([1.0, 1e5, np.inf, -2e5, np.nan, 3.0])
    base = write_file(tmp_path / "base.safetensors", {"w": cast(values, "bf16"), "v": cast(values[:1], "bf16")})
    tuned = write_file(tmp_path / "tuned.safetensors", {"w": cast(values, "bf16"), "v": cast(values[:1] + 1, "bf16")})
    deltapack.compress(base, tuned, tmp_path / "p.dpk", allow_unrelated=True)
    report = deltapack.apply(base, tmp_path / "p.dpk", tmp_path / "out.safetensors", dtype="f16")
    assert any(note.startswith(f"2 {TOLD}") for note in report.warnings)
    assert not told(deltapack.apply(base, tmp_path / "p.dpk", tmp_path / "same.safetensors", dtype="f32").warnings)


def test_a_result_that_the_pack_promises_is_no_news(tmp_path: Path) -> None:
    """An exact fine-tune with infinities comes back without a word, also halfway where the base has none."""
    base = write_file(tmp_path / "base.safetensors", {"w": cast(np.array([1.0, 2.0, 3.0]), "f32")})
    tuned = write_file(tmp_path / "tuned.safetensors", {"w": cast(np.array([1.0, np.inf, np.nan]), "f32")})
    deltapack.compress(base, tuned, tmp_path / "p.dpk", recipe=deltapack.Recipe(exact=True), allow_unrelated=True)
    for weight in (1.0, 0.5):
        assert not told(deltapack.apply(base, tmp_path / "p.dpk", tmp_path / f"{weight}.safetensors", weight=weight).warnings)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_live_model_tells_and_holds_what_apply_gives(backend: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, pack = pair
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.from_numpy(read_file(base)["w"].f64.astype(np.float32)), requires_grad=False)
    before = model.w.clone()
    live = deltapack.attach(model, backend=backend)
    with pytest.warns(RuntimeWarning, match="became NaN or infinite"):
        live.activate({pack: 3e37 * 9})
    assert told(live.notes) and not torch.isfinite(model.w).all()
    deltapack.apply(base, pack, tmp_path / "out.safetensors", weight=3e37 * 9)
    assert np.array_equal(model.w.numpy(), read_file(tmp_path / "out.safetensors")["w"].f64.astype(np.float32), equal_nan=True)
    live.deactivate()
    assert torch.equal(model.w, before)
    live.activate({pack: 0.5})
    assert len(live.notes) == 1
    live.close()


@pytest.mark.parametrize("name", ["f64", "f32", "f16", "bf16", "f8_e5m2", "f8_e4m3fn"])
def test_what_is_finite(name: str) -> None:
    dtype = BY_NAME[name]
    bits = np.arange(1 << min(16, 8 * dtype.itemsize), dtype=np.uint32) << max(0, 8 * dtype.itemsize - 16) if dtype.itemsize < 8 else None
    elements = cast(np.array([0.0, -1.0, np.inf, -np.inf, np.nan, 57344.0 if name != "f8_e4m3fn" else 448.0]), name).bits.reshape(-1)
    if bits is not None:
        elements = bits.astype(f"<u{dtype.itemsize}").view(dtype.storage)
    found = rounding.is_finite(elements, dtype)
    assert np.array_equal(found, np.isfinite(rounding.to_f64(elements, dtype)))
    assert rounding.all_finite(elements[found], dtype) and not rounding.all_finite(elements, dtype)
    assert rounding.all_finite(elements[:0], dtype)
