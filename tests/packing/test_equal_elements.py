"""Equal is equal: elements with the same bits on both sides are no difference, NaN and infinities too, and come back as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import CHUNK, Tensor, cast, moved, random_tensor, read_model
from support.fixtures import Applied, PackOf

import deltapack
from deltapack.errors import NonFiniteError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.sparsify.table import SPARSIFIERS

ODD = {
    "f64": [0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001, 0x7FF0000000000000, 0xFFF0000000000000],
    "f32": [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0x7F800000, 0xFF800000],
    "f16": [0x7E00, 0xFE00, 0x7C01, 0x7C00, 0xFC00],
    "bf16": [0x7FC0, 0xFFFF, 0x7F81, 0x7F80, 0xFF80],
    "f8_e4m3fn": [0x7F, 0xFF],
    "f8_e5m2": [0x7E, 0xFD, 0x7C, 0xFC],
}
"""Bits of NaN, the quiet one of arithmetic first, and of infinities."""


def bits(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.bits).view(f"<u{tensor.bits.dtype.itemsize}")


def values(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return tensor.f64


def odd_rows(dtype: str, rows: int = 40, width: int = 100) -> tuple[Tensor, Tensor, np.ndarray[Any, Any]]:
    """A base and a fine-tune that differ but for some rows, which are not finite and equal; and which elements these are."""
    base = random_tensor(1, (rows, width), dtype)
    tuned = moved(base, 2, 0.1)
    odd = np.zeros((rows, width), bool)
    odd[rows // 2 : rows // 2 + 8] = True
    for tensor in (base, tuned):
        bits(tensor)[odd] = np.resize(np.array(ODD[dtype], f"<u{tensor.bits.dtype.itemsize}"), odd.sum())
    return base, tuned, odd


@pytest.mark.parametrize("settings", [{"drop_rate": rate, "sparsify": how} for how in SPARSIFIERS for rate in (0.0, 0.5, 0.9)])
@pytest.mark.parametrize("dtype", ODD)
def test_equal_elements_come_back_with_their_bits(pack_of: PackOf, applied: Applied, dtype: str, settings: dict[str, Any]) -> None:
    base, tuned, odd = odd_rows(dtype)
    pack = pack_of({"w": base}, {"w": tuned}, **settings)
    restored = applied(pack)["w"]
    assert (bits(restored)[odd] == bits(base)[odd]).all()
    assert (bits(restored)[~odd] != bits(base)[~odd]).any()
    assert np.isfinite(values(restored)[~odd]).all()
    with deltapack.open_pack(pack) as opened:
        assert opened["w"].kind == "delta"
        stats = opened["w"].entry.stats
        assert stats is not None and float(stats.max_abs) < 100
        wanted = np.abs(values(tuned)[~odd] - values(base)[~odd])
        assert float(stats.l1) == pytest.approx(wanted.sum(), rel=1e-5) and float(stats.max_abs) == pytest.approx(wanted.max(), rel=1e-5)


@pytest.mark.parametrize("values", VALUE_CODECS)
def test_every_value_codec_keeps_equal_elements(pack_of: PackOf, applied: Applied, values: str) -> None:
    base, tuned, odd = odd_rows("f32")
    restored = applied(pack_of({"w": base}, {"w": tuned}, values=values, drop_rate=0.0))["w"]
    assert (bits(restored)[odd] == bits(base)[odd]).all()


@pytest.mark.parametrize("value", [0x7FC00000, 0x7F800000, 0xFF800000])
def test_what_arithmetic_gives_back_needs_no_positions(pack_of: PackOf, value: int) -> None:
    """The quiet NaN and infinities plus 0 are themselves, so that a seeded mask may draw them."""
    base = random_tensor(1, (1000,))
    tuned = moved(base, 2)
    bits(base)[:500] = bits(tuned)[:500] = value
    with deltapack.open_pack(pack_of({"w": base}, {"w": tuned})) as pack:
        assert [term.index for term in pack["w"].entry.terms] == ["seeded"]


def test_other_nans_are_left_out_of_a_seeded_mask(pack_of: PackOf, applied: Applied) -> None:
    base = random_tensor(1, (CHUNK + 1000,), "bf16")
    tuned = moved(base, 2)
    plain = pack_of({"w": base}, {"w": tuned})
    with deltapack.open_pack(plain) as pack:
        drawn = pack["w"].to_sparse()[0]
    bits(base)[CHUNK:] = bits(tuned)[CHUNK:] = 0xFFFF
    odd = pack_of({"w": base}, {"w": tuned}, force=True, workers=2)
    with deltapack.open_pack(odd) as pack:
        kept = pack["w"].to_sparse()[0]
        assert [term.index for term in pack["w"].entry.terms] == ["gaps"]
    assert len(kept) > CHUNK // 11 and kept.max() < CHUNK
    assert len(drawn[drawn >= CHUNK])
    assert (bits(applied(odd)["w"])[CHUNK:] == 0xFFFF).all()


@pytest.mark.parametrize(
    ("mine", "theirs"), [(0x7FC00000, 0x3F800000), (0x3F800000, 0xFF800000), (0x7F800000, 0xFF800000), (0x7FC00000, 0x7FC00001)]
)
def test_what_differs_is_refused_still(pack_of: PackOf, applied: Applied, mine: int, theirs: int) -> None:
    base, tuned, _ = odd_rows("f32")
    bits(base)[0, 3], bits(tuned)[0, 3] = mine, theirs
    with pytest.raises(NonFiniteError, match="holds NaN or infinity") as error:
        pack_of({"w": base}, {"w": tuned})
    assert error.value.tensor == "w"
    assert applied(pack_of({"w": base}, {"w": tuned}, non_finite="store"))["w"] == tuned


@pytest.mark.parametrize("target", ["f32", "bf16", "f16", "f64", "f8_e5m2"])
@pytest.mark.parametrize("source", ["f32", "bf16", "f16", "f64", "f8_e5m2"])
def test_nan_and_infinity_of_two_types(pack_of: PackOf, applied: Applied, source: str, target: str) -> None:
    base = random_tensor(1, (500,)).f64
    tuned = base + random_tensor(2, (500,), scale=0.05).f64
    for elements in (base, tuned):
        elements[100:300] = np.resize([np.nan, np.inf, -np.inf], 200)
    narrow = target == "f8_e5m2"  # what is rounded to it is never infinite
    for elements in (base, tuned) if narrow else ():
        elements[100:300] = np.nan
    restored = applied(pack_of({"w": cast(base, source)}, {"w": cast(tuned, target)}, drop_rate=0.5))["w"]
    assert restored.dtype == target
    assert np.array_equal(restored.f64[100:300], base[100:300], equal_nan=True)
    assert np.isfinite(restored.f64[:100]).all() and np.isfinite(restored.f64[300:]).all()


def test_an_infinity_that_cannot_come_back_is_refused(pack_of: PackOf) -> None:
    base = random_tensor(1, (500,)).f64
    tuned = cast(base * 1.1, "f8_e5m2")
    base[7], bits(tuned)[7] = np.inf, 0x7C
    with pytest.raises(NonFiniteError):
        pack_of({"w": cast(base, "f32")}, {"w": tuned})


def test_a_rescale_that_overflows_beside_equal_infinities_is_refused(pack_of: PackOf) -> None:
    base, tuned = cast(np.full(2000, 20000.0), "f16"), cast(np.full(2000, 30000.0), "f16")
    bits(base)[:1000] = bits(tuned)[:1000] = 0x7C00
    with pytest.raises(NonFiniteError, match="overflows when rescaled"):
        pack_of({"w": base}, {"w": tuned}, drop_rate=0.9)


def test_nan_rows_of_an_embedding_that_grows(pack_of: PackOf, applied: Applied) -> None:
    base, tuned, odd = odd_rows("bf16")
    longer = Tensor("bf16", np.concatenate([tuned.bits, random_tensor(3, (5, 100), "bf16").bits]))
    restored = applied(pack_of({"w": base}, {"w": longer}))["w"]
    assert (bits(restored)[:40][odd] == bits(base)[odd]).all() and (bits(restored)[40:] == bits(longer)[40:]).all()


def test_verify_and_a_file_of_nan_rows(pack_of: PackOf, tmp_path: Path) -> None:
    base, tuned, _ = odd_rows("f32")
    pack = pack_of({"w": base}, {"w": tuned})
    assert deltapack.verify(pack, tmp_path / "base.safetensors").result_digests
    deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "again.safetensors")
    assert read_model(tmp_path / "again.safetensors")["w"].shape == (40, 100)
