"""Recipes that drop at random and code by trits or levels: one scale a tensor, a mask that is drawn, and what cannot be asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.builders import Model, Tensor, cast

import deltapack
from deltapack.errors import RecipeError
from deltapack.format.index import Term
from deltapack.format.reader import PackReader

PackOf = Callable[..., Path]
Restore = Callable[..., Model]
SHAPE = (300, 256)
NEW = ("ternary", "uniform")


def pair(name: str, seed: int = 0, size: float = 0.01) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    base = cast(rng.normal(0, 1, SHAPE), name)
    return base, cast(base.f64 + rng.normal(0, size, SHAPE), name)


def term_of(path: Path) -> tuple[Term, tuple[str, ...]]:
    with PackReader(path) as reader:
        (entry,) = reader.index.entries
        (term,) = entry.terms
        return term, reader.index.required


@pytest.mark.parametrize("values", NEW)
def test_a_mask_is_drawn_by_strata_and_one_scale_is_said(pack_of: PackOf, values: str) -> None:
    base, tuned = pair("bf16")
    term, required = term_of(pack_of({"w": base}, {"w": tuned}, values=values, drop_rate=0.75))
    assert (term.index, term.values, term.scales, term.lines) == ("stratified", values, "tensor", None)
    assert term.factor == 4.0 and term.scale > 0
    assert required == tuple(sorted(("scales", "stratified", values)))


@pytest.mark.parametrize("values", NEW)
@pytest.mark.parametrize(("index", "found"), [("seeded", "seeded"), ("gaps", "bitmap"), ("bitmap", "bitmap"), ("stratified", "stratified")])
def test_the_index_codec_may_be_named(pack_of: PackOf, applied: Restore, values: str, index: str, found: str) -> None:
    base, tuned = pair("bf16")
    path = pack_of({"w": base}, {"w": tuned}, values=values, drop_rate=0.5, index=index)
    assert term_of(path)[0].index == found
    changed = applied(path)["w"].f64 - base.f64
    assert 0.05 < (changed != 0).mean() < 0.45


def test_other_codecs_keep_the_mask_that_readers_know(pack_of: PackOf) -> None:
    base, tuned = pair("bf16")
    assert term_of(pack_of({"w": base}, {"w": tuned}, values="int4", drop_rate=0.75))[0].index == "seeded"


def test_integers_on_a_stratified_mask(pack_of: PackOf, applied: Restore) -> None:
    base, tuned = pair("f32")
    path = pack_of({"w": base}, {"w": tuned}, values="int8", drop_rate=0.5, index="stratified")
    term, required = term_of(path)
    assert (term.index, term.scales, required) == ("stratified", "", ("stratified",))
    restored, delta = applied(path)["w"].f64 - base.f64, tuned.f64 - base.f64
    kept = restored != 0
    assert abs(kept.mean() - 0.5) < 0.01
    assert np.abs(restored[kept] - 2 * delta[kept]).max() < 0.001


@pytest.mark.parametrize("values", NEW)
def test_differences_of_one_magnitude_and_none(pack_of: PackOf, applied: Restore, values: str) -> None:
    """A scale is that of what there is; a tensor of equal elements has none and is unchanged."""
    base = cast(np.round(64 * pair("f32")[0].f64) / 64, "f32")
    signs = np.random.default_rng(1).choice([-1.0, 1.0], SHAPE)
    tuned = {"w": cast(base.f64 + 0.25 * signs, "f32"), "same": base}
    restored = applied(pack_of({"w": base, "same": base}, tuned, values=values, drop_rate=0.0))
    assert np.abs(restored["w"].f64 - tuned["w"].f64).max() < (0.001 if values == "ternary" else 0.05)
    assert restored["same"].f64.tobytes() == base.f64.tobytes()


@pytest.mark.parametrize("sparsify", ["magnitude", "della", "breadcrumbs"])
@pytest.mark.parametrize("values", NEW)
def test_sparsifiers_that_store_positions(pack_of: PackOf, applied: Restore, values: str, sparsify: str) -> None:
    """Of what was kept for its magnitude no trit is 0."""
    base, tuned = pair("f32")
    path = pack_of({"w": base}, {"w": tuned}, values=values, drop_rate=0.9, sparsify=sparsify)
    assert term_of(path)[0].index == "gaps"
    changed = (applied(path)["w"].f64 != base.f64).mean()
    share = 1.0 if sparsify != "della" else 0.22 if values == "ternary" else 0.8
    assert changed == pytest.approx(0.1 * share, rel=0.15)


@pytest.mark.parametrize("values", NEW)
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_elements_that_are_not_finite_in_both(pack_of: PackOf, applied: Restore, values: str, odd: float) -> None:
    base, tuned = pair("f32")
    for tensor in (base.f64, tuned.f64):
        tensor[::7, ::5] = odd
    one, other = cast(base.f64, "f32"), cast(tuned.f64, "f32")
    restored = applied(pack_of({"w": one}, {"w": other}, values=values, drop_rate=0.5))["w"].f64
    assert np.array_equal(np.isfinite(restored), np.isfinite(one.f64))


def test_what_a_stratified_mask_cannot_be(pack_of: PackOf) -> None:
    base, tuned = pair("f32")
    for wrong in ({"drop_rate": 0.0}, {"drop_rate": 0.99999}, {"drop_rate": 0.9, "sparsify": "magnitude"}):
        with pytest.raises(RecipeError, match="index=stratified"):
            pack_of({"w": base}, {"w": tuned}, index="stratified", **wrong)


@pytest.mark.parametrize("values", NEW)
def test_the_same_pack_whatever_the_workers(pack_of: PackOf, values: str) -> None:
    base, tuned = pair("bf16")
    packs = [
        pack_of({"w": base}, {"w": tuned}, values=values, drop_rate=0.5, workers=workers, force=True).read_bytes() for workers in (1, 2)
    ]
    assert packs[0] == packs[1]


@pytest.mark.parametrize("values", NEW)
def test_merged_with_another(pack_of: PackOf, applied: Restore, tmp_path: Path, values: str) -> None:
    """A merged pack adds the values of both and nothing else."""
    base, tuned = pair("f32")
    other = cast(base.f64 + np.random.default_rng(9).normal(0, 0.01, SHAPE), "f32")
    one = pack_of({"w": base}, {"w": tuned}, "one", values=values, drop_rate=0.5)
    two = pack_of({"w": base}, {"w": other}, "two", values="int4", drop_rate=0.5)
    deltas = [applied(path)["w"].f64 - base.f64 for path in (one, two)]
    merged = tmp_path / "merged.dpk"
    deltapack.merge(
        tmp_path / "base.safetensors" if (tmp_path / "base.safetensors").exists() else one.parent / "base.safetensors", [one, two], merged
    )
    both = applied(merged)["w"].f64 - base.f64
    assert np.abs(both - deltas[0] - deltas[1]).max() < 1e-6
