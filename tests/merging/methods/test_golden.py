"""Each merge method against its formula, dense and in plain numpy, on values where f32 is exact, bit for bit.

Bases and differences are small integers times 2^-10, masks are rescaled by 2, weights are powers of two. So every sum and product is
exact in any order, and the only rounding is that of a division, which both sides do once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import CHUNK, Model, Tensor, decode_by_spec, read_model, write_file
from support.fixtures import Merged, PackOf, as_weights

import deltapack
from deltapack import Recipe

Array = np.ndarray[Any, np.dtype[np.float64]]
F32 = np.float32
SHAPES = {"deep.layers.0.w": (257, 259), "bias": (700,), "long": (CHUNK + 77,), "one": (1,)}
WEIGHTS = (0.5, 0.25, 1.0)
UNIT = 2.0**-10


def grid(seed: int, shape: tuple[int, ...], size: int) -> Array:
    return np.multiply(np.random.default_rng(seed).integers(-size, size + 1, shape), UNIT, dtype=np.float64)


def added(parts: Sequence[Array]) -> Array:
    return np.asarray(np.sum(parts, axis=0))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A base and three packs, of which the last one leaves `bias` unchanged and keeps every element."""
    folder = tmp_path_factory.mktemp("family")
    base = {name: grid(number, shape, 1000) for number, (name, shape) in enumerate(SHAPES.items())}
    write_file(folder / "base.safetensors", {name: Tensor("f32", value.astype("<f4")) for name, value in base.items()})
    packs = []
    for number, drop_rate in enumerate((0.5, 0.5, 0.0)):
        tuned = {name: value + grid(10 * number + 10, value.shape, 4) for name, value in base.items()}
        if number == 2:
            tuned["bias"] = base["bias"]
        tensors = {name: Tensor("f32", value.astype("<f4")) for name, value in tuned.items()}
        write_file(folder / "tuned.safetensors", tensors)
        packs.append(folder / f"{number}.dpk")
        recipe = Recipe(drop_rate=drop_rate, values="f32", seed=number, overrides=as_weights(tensors))
        deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", packs[-1], recipe=recipe)
    return folder, packs


def deltas_of(packs: Sequence[Path], name: str) -> list[Array]:
    """The kept differences of each pack, dense, with zeros. Tiny tensors are stored whole: their difference is to the base."""
    base = read_model(packs[0].parent / "base.safetensors")[name].f64
    out = []
    for path in packs:
        with deltapack.open_pack(path) as pack:
            dense = pack[name].to_dense().astype(np.float64)
            out.append(dense - base if pack[name].kind == "stored" else dense)
    return out


def merged(folder: Path, packs: Sequence[Path], **options: Any) -> Model:
    """Merge into a file and into a pack, with one and with three workers; all, and the reference decoder, give one model."""
    base = folder / "base.safetensors"
    deltapack.merge(base, packs, folder / "merged.safetensors", force=True, workers=3, **options)
    deltapack.merge(base, packs, folder / "merged.dpk", force=True, workers=1, **options)
    deltapack.apply(base, folder / "merged.dpk", folder / "applied.safetensors", force=True)
    direct = read_model(folder / "merged.safetensors")
    assert read_model(folder / "applied.safetensors") == direct
    assert decode_by_spec(read_model(base), folder / "merged.dpk") == direct
    return direct


def check(
    family: tuple[Path, list[Path]], formula: Callable[[list[Array]], Array], numbers: Sequence[int] = (0, 1, 2), **options: Any
) -> None:
    folder, packs = family
    chosen = [packs[number] for number in numbers]
    result, base = merged(folder, chosen, **options), read_model(folder / "base.safetensors")
    for name, tensor in base.items():
        delta = formula(deltas_of(chosen, name))
        assert (delta.astype(F32) == delta).all(), "the fixture is not exact"
        wanted = tensor.bits + delta.astype(F32)
        assert np.array_equal(result[name].bits, wanted), name
    assert result != base


def test_a_merged_pack_has_the_same_bytes_whatever_the_workers(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    contents = set()
    for workers in (1, 2, 5):
        out = folder / f"{workers} workers.dpk"
        deltapack.merge(folder / "base.safetensors", packs, out, method="ties", workers=workers)
        contents.add(out.read_bytes())
    assert len(contents) == 1


def divided(total: Array, divisor: Array | float) -> Array:
    """One division, in f32."""
    return (total.astype(F32) / np.asarray(divisor, F32)).astype(np.float64)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"])
def test_linear(family: tuple[Path, list[Path]], method: str) -> None:
    def formula(deltas: list[Array]) -> Array:
        return sum((w * d for w, d in zip(WEIGHTS, deltas, strict=True)), np.zeros(()))

    check(family, formula, method=method, weights=WEIGHTS)
    check(family, lambda deltas: 0.5 * formula(deltas), method=method, weights=WEIGHTS, parameters={"lambda": 0.5})


def test_linear_normalized(family: tuple[Path, list[Path]]) -> None:
    parameters = {"normalize": True, "lambda": 2}
    check(family, lambda d: 2 * (0.5 * d[0] + 1.5 * d[1]) / 2, (0, 1), weights=[0.5, 1.5], parameters=parameters)


def test_average(family: tuple[Path, list[Path]]) -> None:
    check(family, lambda deltas: (deltas[0] + deltas[1]) / 2, (0, 1), method="average")
    check(family, lambda deltas: (deltas[0] + deltas[1]) / 2, (0, 2), method="average")  # an unchanged tensor counts as zero


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs_ties"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_ties(family: tuple[Path, list[Path]], method: str, normalize: bool, scale: float) -> None:
    def formula(deltas: list[Array]) -> Array:
        weighted = [w * d for w, d in zip(WEIGHTS, deltas, strict=True)]
        elected = np.where(sum(weighted) >= 0, 1, -1)
        agree = [np.sign(value) == elected for value in weighted]
        mixed: Array = sum(value * mask for value, mask in zip(weighted, agree, strict=True))
        if normalize:
            divisor = sum(w * mask for w, mask in zip(WEIGHTS, agree, strict=True))
            mixed = divided(mixed, np.where(divisor == 0, 1, divisor))
        return mixed * scale

    check(family, formula, method=method, weights=WEIGHTS, parameters={"normalize": normalize, "lambda": scale})


def test_ties_normalizes_unless_told_otherwise(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    assert merged(folder, packs, method="ties") == merged(folder, packs, method="ties", parameters={"normalize": True})
    assert merged(folder, packs, method="dare_ties") == merged(folder, packs, method="ties", parameters={"normalize": False})


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_ties_of_the_paper(family: tuple[Path, list[Path]], method: str) -> None:
    def formula(deltas: list[Array]) -> Array:
        sums = sum(deltas)
        signs = np.sign(sums)
        signs = np.where(signs == 0, np.sign(signs.sum()), signs)
        agree = [np.where(signs > 0, delta > 0, delta < 0) for delta in deltas]
        total = added([delta * mask for delta, mask in zip(deltas, agree, strict=True)])
        return 0.5 * divided(total, np.maximum(sum(mask.astype(int) for mask in agree), 1))

    check(family, formula, method=method, semantics="paper", parameters={"lambda": 0.5})
    check(family, formula, (1, 0), method=method, semantics="paper", parameters={"lambda": 0.5})


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_ties_of_peft(family: tuple[Path, list[Path]], method: str) -> None:
    def formula(deltas: list[Array]) -> Array:
        elected = np.where(sum(deltas) >= 0, 1, -1)
        agree = [np.sign(delta) == elected for delta in deltas]
        total = sum(w * delta * mask for w, delta, mask in zip(WEIGHTS, deltas, agree, strict=True))
        return divided(total, np.maximum(sum(mask.astype(int) for mask in agree), 1))

    check(family, formula, method=method, semantics="peft", weights=WEIGHTS)


def trimmed(delta: Array, density: float) -> Array:
    """The largest elements; of equal ones the first."""
    flat = delta.reshape(-1)
    largest = np.argsort(-np.abs(flat), kind="stable")[: max(1, int(density * flat.size))]
    out = np.zeros_like(flat)
    out[largest] = flat[largest]
    return out.reshape(delta.shape)


@pytest.mark.parametrize("density", [0.25, 0.1, 1e-6])
def test_density_of_ties(family: tuple[Path, list[Path]], density: float) -> None:
    def formula(deltas: list[Array]) -> Array:
        deltas = [trimmed(delta, density) for delta in deltas]
        elected = np.where(sum(deltas) >= 0, 1, -1)
        return added([delta * (np.sign(delta) == elected) for delta in deltas])

    check(family, formula, method="ties", density=density, parameters={"normalize": False})


def test_density_above_what_a_pack_keeps_changes_nothing(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    for method in ("ties", "dare_ties", "breadcrumbs_ties", "dare_linear"):
        thinned, whole = (merged(folder, packs[:2], method=method, density=density) for density in (0.9, None))
        assert thinned | {"one": whole["one"]} == whole  # "one" is stored whole, so it keeps more


@pytest.mark.parametrize(("density", "gamma"), [(0.25, 0.05), (0.1, 0.01), (0.3, 0.0), (0.2, 0.9)])
def test_density_of_breadcrumbs(family: tuple[Path, list[Path]], density: float, gamma: float) -> None:
    def without_outliers(delta: Array) -> Array:
        flat = delta.reshape(-1)
        count = max(1, int(density * flat.size))
        outliers = min(int(gamma * flat.size), flat.size - count)
        middle = np.argsort(-np.abs(flat), kind="stable")[outliers : outliers + count]
        out = np.zeros_like(flat)
        out[middle] = flat[middle]
        return out.reshape(delta.shape)

    def formula(deltas: list[Array]) -> Array:
        return added([w * without_outliers(delta) for w, delta in zip(WEIGHTS, deltas, strict=True)])

    check(family, formula, method="breadcrumbs", weights=WEIGHTS, density=density, parameters={"gamma": gamma})


def test_density_of_dare_drops_kept_elements_only(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    result = merged(folder, packs[:1], method="dare_linear", density=0.25)
    base = read_model(folder / "base.safetensors")
    for name in ("long", "deep.layers.0.w"):
        (delta,) = deltas_of(packs[:1], name)
        change = result[name].bits.astype(np.float64) - base[name].bits
        kept = delta != 0
        assert not change[~kept].any()
        assert set(np.unique(np.round(change[kept] / delta[kept], 1))) == {0.0, 2.0}  # half of the kept half, rescaled by about 2
        share = np.count_nonzero(change) / np.count_nonzero(delta)
        assert abs(share - 0.5) < 4 * (0.25 / np.count_nonzero(delta)) ** 0.5 + 0.002


def test_sce(family: tuple[Path, list[Path]]) -> None:
    def formula(deltas: list[Array]) -> Array:
        energy = np.array([(delta**2).sum() for delta in deltas])
        shares = (energy / energy.sum() if energy.sum() else np.full(len(deltas), 1 / len(deltas))).astype(F32)
        elected = np.where(sum(deltas) >= 0, 1, -1)
        agree = [np.sign(delta) == elected for delta in deltas]
        total = np.zeros(deltas[0].shape, F32)
        weight = np.zeros(deltas[0].shape, F32)
        for delta, share, mask in zip(deltas, shares, agree, strict=True):
            total = total + delta.astype(F32) * np.where(mask, share, F32(0))
            weight = weight + np.where(mask, share, F32(0))
        return (total / np.maximum(weight, F32(1e-6))).astype(np.float64)

    check(family, formula, method="sce")

    def selected(deltas: list[Array]) -> Array:
        variance = np.var(np.stack(deltas), axis=0).reshape(-1)
        count = int(np.count_nonzero(variance) * 0.25)
        chosen = np.zeros(variance.size, bool)
        chosen[np.argsort(-variance.astype(F32), kind="stable")[:count]] = True
        return formula([delta * chosen.reshape(delta.shape) for delta in deltas])

    check(family, selected, (0, 1), method="sce", parameters={"select_topk": 0.25})


def test_ram(family: tuple[Path, list[Path]]) -> None:
    def formula(deltas: list[Array]) -> Array:
        count = sum((np.abs(delta) > 1e-5).astype(int) for delta in deltas)
        parts = [delta.astype(F32) / np.maximum(count, 1).astype(F32) for delta in deltas]
        return sum(parts[1:], parts[0]).astype(np.float64)

    check(family, formula, method="ram")


def test_ramplus(family: tuple[Path, list[Path]]) -> None:
    def formula(deltas: list[Array]) -> Array:
        kept = [np.abs(delta) > UNIT for delta in deltas]
        count = sum(mask.astype(int) for mask in kept)
        total = np.zeros(deltas[0].shape, F32)
        for delta, mask in zip(deltas, kept, strict=True):
            shared, unique = np.count_nonzero(mask & (count > 1)), np.count_nonzero(mask & (count == 1))
            ratio = F32(shared) / max(F32(unique), F32(UNIT))
            alone = F32(1) + F32(0.25) * min(ratio, F32(0.5))
            part = np.where(count == 1, delta.astype(F32) * alone, delta.astype(F32) / np.maximum(count, 1).astype(F32))
            total = total + np.where(mask, part, F32(0))
        return total.astype(np.float64)

    parameters = {"epsilon": UNIT, "r": 0.25, "alpha": 0.5}
    check(family, formula, (0, 1), method="ramplus_tl", parameters=parameters)
    check(family, formula, (0, 1), method="ramplus", parameters=parameters)


def test_model_stock_without_dropping(pack_of: PackOf, merged: Merged) -> None:
    base = {"x": Tensor("f32", grid(1, (64,), 100).astype("<f4"))}
    signs = np.array([1.0] * 64), np.array([1.0] * 48 + [-1.0] * 16)  # a cosine of 1/2
    packs = [
        pack_of(base, {"x": Tensor("f32", base["x"].bits + (sign * UNIT).astype("<f4"))}, f"{number}", drop_rate=0, values="f32")
        for number, sign in enumerate(signs)
    ]
    t = F32(2 * 0.5 / (1 + 0.5))
    wanted = base["x"].bits + ((signs[0] + signs[1]) * UNIT / 2).astype(F32) * t
    assert np.array_equal(merged(packs, method="model_stock")["x"].bits, wanted)


def test_model_stock_corrects_for_dropping(pack_of: PackOf, merged: Merged) -> None:
    # The cosine of what is left of two differences is half of theirs at density 1/2; the correction undoes that.
    rng = np.random.default_rng(5)
    base = {"x": Tensor("f32", np.zeros(400_000, "<f4"))}
    common = rng.normal(size=400_000)
    tuned = [Tensor("f32", (common + rng.normal(size=400_000)).astype("<f4")) for _ in range(2)]
    steps = {}
    for drop_rate in (0.0, 0.5):
        packs = [
            pack_of(
                base,
                {"x": tensor},
                f"{number} {drop_rate}",
                drop_rate=drop_rate,
                values="f32",
                seed=number,
                index="gaps" if drop_rate and number else "auto",
            )
            for number, tensor in enumerate(tuned)
        ]
        result = merged(packs, method="model_stock")["x"].f64
        average = merged(packs, method="average")["x"].f64
        steps[drop_rate] = np.median((result / np.where(average == 0, 1, average))[average != 0])
    assert steps[0.0] == pytest.approx(2 / 3, abs=0.01)  # a statistical law: the cosine is 1/2 up to 0.002
    assert steps[0.5] == pytest.approx(2 / 3, abs=0.02)
