"""Differences from, to and between f64 tensors, through every command, against plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.builders import Model, Tensor, cast, decode_by_spec

import deltapack
from deltapack.errors import NonFiniteError

PackOf = Callable[..., Path]
Restore = Callable[..., Model]
PAIRS = [("f64", "f64"), *(("f64", name) for name in ("f32", "bf16", "f16")), *((name, "f64") for name in ("f32", "bf16", "f16"))]
SHAPE = (90, 50)


def wide_values(seed: int) -> NDArray[np.float64]:
    """Around 1000 with all 52 bits in use: f32 tells them apart by 6e-5 only."""
    return np.random.default_rng(seed).normal(1000, 1, SHAPE)


def pair_of(source: str, target: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A base and a fine-tune; what separates them is lost where their difference is computed in f32."""
    base = cast(wide_values(seed), source)
    return base, cast(base.f64 + np.random.default_rng(seed + 1).normal(0, 1e-6 if source == target else 0.3, SHAPE), target)


def exact(tensor: Tensor) -> NDArray[np.float64]:
    """The values, exactly: numpy's and torch's conversions to f64 round nothing."""
    return tensor.f64


def difference(base: Tensor, tuned: Tensor) -> NDArray[np.float32]:
    """Fine-tune minus base, in f64, then rounded once."""
    return (exact(tuned) - exact(base)).astype(np.float32)


def added(base: Tensor, total: NDArray[np.float32], kept: NDArray[np.bool_], target: str) -> Tensor:
    """Section 6.2 where base or result is f64: the sum is in f64; it becomes f32 before it becomes anything narrower."""
    out = base.bits.copy() if base.dtype == target else cast(exact(base), target).bits
    sums = exact(base)[kept] + total[kept].astype(np.float64)
    out[kept] = cast(sums, target).bits
    return Tensor(target, out)


def kept_of(path: Path, shape: tuple[int, ...] = SHAPE) -> NDArray[np.bool_]:
    with deltapack.open_pack(path) as pack:
        positions, _ = pack["w"].to_sparse()
    kept = np.zeros(shape, np.bool_)
    kept.reshape(-1)[positions] = True
    return kept


OPTIONS: list[dict[str, Any]] = [{"drop_rate": 0.0}, {"drop_rate": 0.5, "rescale": 1}, {"drop_rate": 0.75, "index": "gaps"}]
CASES = [(*pair, options) for pair in PAIRS for options in OPTIONS if options["drop_rate"] or pair[1][-2:] != "16"]
"""Without those that are smaller when they are stored whole."""


@pytest.mark.parametrize(("source", "target", "options"), CASES)
def test_apply(source: str, target: str, options: dict[str, Any], pack_of: PackOf, applied: Restore) -> None:
    base, tuned = pair_of(source, target)
    pack = pack_of({"w": base}, {"w": tuned}, values="f32", **options)
    factor = np.float32(4 if options["drop_rate"] == 0.75 else 1)
    kept, total = kept_of(pack), difference(base, tuned) * factor
    with deltapack.open_pack(pack) as opened:
        assert opened["w"].to_dense().tobytes() == np.where(kept, total, np.float32(0)).tobytes()
    expected = {"w": added(base, total, kept, target)}
    assert applied(pack) == expected == decode_by_spec({"w": base}, pack)
    weighted = difference(base, tuned) * (factor * np.float32(0.3))
    assert applied(pack, weight=0.3) == {"w": added(base, weighted, kept, target)}
    if options["drop_rate"] == 0 and target == "f64":
        # What f32 holds of the difference is kept: 24 bits of it, where 24 bits of the values would keep nothing.
        assert np.abs(exact(expected["w"]) - exact(tuned)).max() <= np.abs(total).max() * 2.0**-23


@pytest.mark.parametrize("source", ["f64", "f32", "bf16"])
def test_merge(source: str, pack_of: PackOf, applied: Restore, merged: Restore, tmp_path: Path) -> None:
    """Values are added in f32, in order; to the base, in f64, once. Types that differ give the base's."""
    base = cast(wide_values(0), source)
    mixed = ("f64", "f32", "bf16") if source == "f64" else ("f64", source, "f64")
    for group in (("f64", "f64", "f64"), mixed):
        weights, packs, values, masks = [0.5, -2.0, 0.3], [], [], []
        for number, target in enumerate(group):
            # 20 is enough to change the bits of a bf16 near 1000.
            tuned = cast(exact(base) + np.random.default_rng(number).normal(0, 1e-3 if target == source == "f64" else 20, SHAPE), target)
            packs.append(pack_of({"w": base}, {"w": tuned}, f"{number}", drop_rate=0.5, values="f32", rescale=1, force=True))
            values.append(difference(base, tuned) * np.float32(weights[number]))
            masks.append(kept_of(packs[-1]))
        result = group[0] if len(set(group)) == 1 else source
        expected = {"w": added(base, in_order(values, masks), np.logical_or.reduce(masks), result)}
        assert merged(packs, weights=weights) == expected
        deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "merged.dpk", weights=weights, force=True)
        assert applied(tmp_path / "merged.dpk") == expected == decode_by_spec({"w": base}, tmp_path / "merged.dpk")


def in_order(values: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    total = np.zeros(SHAPE, np.float32)
    for value, mask in zip(values, masks, strict=True):
        total[mask] += value[mask]
    return total


@pytest.mark.parametrize("target", ["f64", "f32"])
def test_a_stored_tensor_with_a_weight(target: str, pack_of: PackOf, applied: Restore) -> None:
    """Section 9.2: both become f32 before they are subtracted, whatever their types, as no difference was stored."""
    base, tuned = pair_of("f64", target)
    pack = pack_of({"w": base}, {"w": tuned}, exclude="w")
    assert applied(pack) == {"w": tuned}
    delta = exact(tuned).astype(np.float32) - exact(base).astype(np.float32)
    everywhere = np.ones(SHAPE, np.bool_)
    assert applied(pack, weight=0.5) == {"w": added(base, delta * np.float32(0.5), everywhere, target)}


def test_two_roundings_on_the_way_to_bf16(pack_of: PackOf, applied: Restore) -> None:
    """1 + 2^-8 + 2^-40 is just above the middle of two bf16, but exactly there once it is an f32: to even."""
    values = np.full(SHAPE, 1 + 2.0**-8 + 2.0**-40)
    tuned = cast(values, "bf16")
    tuned.bits[:, 25:] = cast(np.full(1, 1.5), "bf16").bits  # so that it is no copy
    pack = pack_of({"w": cast(values, "f64")}, {"w": tuned}, drop_rate=0.5, values="f32", rescale=1)
    kept, found = kept_of(pack), applied(pack)["w"].bits
    assert set(found[:, :25].reshape(-1).tolist()) == {0x3F80} and kept[:, :25].any() and not kept[:, :25].all()
    assert set(found[:, 25:][kept[:, 25:]].tolist()) == {0x3FC0}


@pytest.mark.parametrize(("source", "target"), [("f64", "f64"), ("f64", "f32"), ("f32", "f64")])
def test_differences_that_f32_cannot_hold(source: str, target: str, pack_of: PackOf, applied: Restore) -> None:
    big = 1e300 if "f32" not in (source, target) else 3e38
    base, tuned = cast(np.full(SHAPE, -big), source), cast(np.full(SHAPE, big), target)
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
        pack_of({"w": base}, {"w": tuned}, allow_unrelated=True)
    assert applied(pack_of({"w": base}, {"w": tuned}, allow_unrelated=True, non_finite="store", force=True)) == {"w": tuned}


def test_values_beyond_f32_that_differ_by_what_it_holds(pack_of: PackOf, applied: Restore) -> None:
    """Numbers that f32 does not reach, or only as zero, have differences that it holds; zero differences make -0.0 into +0.0."""
    base, tuned = np.full(SHAPE, 1.0), np.full(SHAPE, 1 + 2.0**-52)
    base[0], tuned[0] = -0.0, 0.0
    base[1], tuned[1] = 1e300, 1e300
    base[2], tuned[2] = 2.0**-1070, 0.25
    base[3], tuned[3] = 2.0**60, 2.0**60 + 2.0**10
    one, other = cast(base, "f64"), cast(tuned, "f64")
    pack = pack_of({"w": one}, {"w": other}, drop_rate=0.0, values="f32")
    expected = added(one, difference(one, other), np.ones(SHAPE, np.bool_), "f64")
    assert applied(pack) == {"w": expected} == decode_by_spec({"w": one}, pack)
    rows = [0, 1, 3, 4]
    assert expected.bits[rows].tobytes() == other.bits[rows].tobytes()  # these come back exactly


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_in_memory(backend: str, pack_of: PackOf, merged: Restore) -> None:
    base, packs = cast(wide_values(0), "f64"), []
    for number in range(2):
        tuned = cast(exact(base) + np.random.default_rng(number).normal(0, 1e-6, SHAPE), "f64")
        packs.append(pack_of({"w": base}, {"w": tuned}, f"{number}", drop_rate=0.5, values="f32", rescale=1))
    state = {"w": torch.from_numpy(base.bits.copy())}
    live = deltapack.attach(state, backend=backend)
    live.activate(dict.fromkeys(packs, 0.5))
    assert state["w"].numpy().tobytes() == merged(packs, weights=[0.5, 0.5])["w"].raw
    live.close()
    assert state["w"].numpy().tobytes() == base.raw
    array = {"w": base.bits.copy()}
    with deltapack.open_pack(packs[0]) as pack:
        pack.add_to(array)
        positions, values = pack["w"].to_sparse()
    expected = base.bits.copy().reshape(-1)
    expected[positions] += values.astype(np.float64)
    assert array["w"].tobytes() == expected.tobytes()
