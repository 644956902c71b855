"""spec/reference_decoder.py against the package, on packs that the package wrote; other tests compare the two in passing."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.builders import (
    CHUNK,
    FLOATS,
    ROOT,
    Model,
    cast,
    decode_by_spec,
    edited,
    moved,
    random_tensor,
    read_file,
    reference_decoder,
    small_model,
    tuned_model,
    whole,
    write_file,
    write_folder,
)
from support.codecs import SCALED
from support.fixtures import Applied, PackOf
from support.laws import examples

import deltapack
from deltapack import Override, Recipe
from deltapack.errors import MergeConflictError, RecipeError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.packing.recipe import INDEX_CHOICES
from deltapack.packing.roles import SETTABLE


def everything() -> tuple[Model, Model, tuple[Override, ...]]:
    """A base, a fine-tune and overrides: every dtype, codec and entry kind in one pack."""
    base: Model = {}
    tuned: Model = {}
    overrides = []
    indexes = [index for index in INDEX_CHOICES if index != "auto"]
    for number, dtype in enumerate(FLOATS):
        for place, values in enumerate(VALUE_CODECS):
            name = f"{dtype}.{values}"
            base[name] = random_tensor(number, (50, 41), dtype)
            tuned[name] = moved(base[name], number + 50, 0.05)
            index = indexes[(number + place) % len(indexes)]
            overrides.append(Override(name.replace(".", r"\."), values=values, index=index))
    base |= {"grown": random_tensor(1, (50, 40), "bf16"), "shrunk": random_tensor(2, (50, 40)), "gone": random_tensor(3, (9,))}
    tuned |= {"grown": random_tensor(1, (60, 40), "bf16"), "shrunk": random_tensor(9, (40, 40)), "new": whole("bool", [1, 0])}
    base |= {"long": random_tensor(4, (CHUNK + 5,), "f16"), "steps": whole("u8", 1), "empty": whole("i32", np.zeros((3, 0)))}
    tuned |= {"long": moved(base["long"], 5), "steps": whole("u8", 2), "empty": base["empty"]}
    return base, tuned, tuple(overrides)


def test_everything(pack_of: PackOf, applied: Applied, tmp_path: Path) -> None:
    base, tuned, overrides = everything()
    pack = pack_of(base, tuned, drop_rate=0.75, overrides=overrides)
    with deltapack.open_pack(pack) as opened:
        assert {entry.kind for entry in opened.values()} == {"delta", "unchanged", "grown", "shrunk", "stored", "removed"}
    assert decode_by_spec(base, pack) == applied(pack)
    for weight in (0.5, -2.5, 1e30):
        assert decode_by_spec(base, pack, weight=weight) == applied(pack, weight=weight, verify=False)
    assert decode_by_spec(base, pack, factor=7.25) == applied(pack, rescale=7.25)
    merged = tmp_path / "merged.dpk"
    deltapack.merge(tmp_path / "base.safetensors", [pack, pack], merged, weights=[0.3, 0.4])
    assert decode_by_spec(base, merged) == applied(merged)


def test_its_command_line(pack_of: PackOf, applied: Applied, tmp_path: Path) -> None:
    base = small_model(dtype="bf16")
    pack = pack_of(base, tuned_model(base))
    out = tmp_path / "by spec.safetensors"
    command = [sys.executable, str(ROOT / "spec" / "reference_decoder.py")]
    subprocess.run([*command, tmp_path / "base.safetensors", pack, out, "--weight", "0.5"], check=True)
    assert read_file(out) == applied(pack, weight=0.5)
    write_file(tmp_path / "base.safetensors", base | {"layer.bias": edited(base["layer.bias"], 0, 0)})
    done = subprocess.run([*command, tmp_path / "base.safetensors", pack, out], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "R12" in done.stderr


def test_its_command_line_on_several_packs(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model(dtype="bf16")
    packs = [pack_of(base, tuned_model(base), "one"), pack_of(base, tuned_model(base, 2), "two")]
    out, direct = tmp_path / "by spec.safetensors", tmp_path / "direct.safetensors"
    command = [sys.executable, str(ROOT / "spec" / "reference_decoder.py"), str(tmp_path / "base.safetensors"), *map(str, packs), str(out)]
    subprocess.run([*command, "--weight=0.3", "--weight=-0.7"], check=True)
    deltapack.merge(tmp_path / "base.safetensors", packs, direct, weights=[0.3, -0.7])
    assert read_file(out) == read_file(direct) != base
    for wrong in (["--weight=1", "--weight=1", "--weight=1"], ["--prefer=3"], ["--weight=nan"], ["--weight=3e38"], ["--factor=-inf"]):
        assert subprocess.run([*command, *wrong], capture_output=True, check=False).returncode == 2


def test_its_command_line_on_packs_that_conflict(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model(dtype="bf16")
    heads = [random_tensor(seed, (5,)) for seed in (1, 2)]
    packs = [pack_of(base, base | {"head": head}, name) for name, head in zip("ab", heads, strict=True)]
    out = tmp_path / "out.safetensors"
    command = [sys.executable, str(ROOT / "spec" / "reference_decoder.py"), str(tmp_path / "base.safetensors"), *map(str, packs), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "'head'" in done.stderr and not out.exists()
    subprocess.run([*command, "--prefer=2"], check=True)
    assert read_file(out) == base | {"head": heads[1]}


def relatives() -> tuple[Model, dict[str, Model]]:
    """A base and fine-tunes that agree on what is added, and not on the rest."""
    base = small_model(dtype="bf16") | {"embed": random_tensor(1, (50, 40), "bf16"), "long": random_tensor(2, (CHUNK + 5,), "f16")}
    base |= {"wide": random_tensor(3, (300,), "f64"), "steps": whole("u8", 1)}
    plain = tuned_model(base)
    grown = tuned_model(base, 1) | {"embed": random_tensor(5, (60, 40), "bf16"), "head": random_tensor(6, (9,))}
    other = tuned_model(base, 2) | {"embed": random_tensor(7, (64, 40)), "head": random_tensor(8, (9,)), "steps": whole("u8", 2)}
    grown["long"] = edited(base["long"], CHUNK + 2, 7)  # it is coded exactly, which the reference decoder reads number by number
    less = {name: tensor for name, tensor in tuned_model(base, 3, "f32").items() if name != "layer.bias"}
    return base, {"plain": plain, "grown": grown, "other": other, "less": less | {"embed": random_tensor(9, (40, 40), "bf16")}}


def test_several_packs_of_the_package(pack_of: PackOf, tmp_path: Path) -> None:
    """In any order, with any weights and whoever decides: the same bits, or a conflict for both."""
    base, tuned = relatives()
    given = {name: (tensor.dtype, tensor.shape, tensor.raw) for name, tensor in base.items()}
    reference, packs, out = reference_decoder(), {}, tmp_path / "out.safetensors"
    for number, (name, model) in enumerate(tuned.items()):
        exclude = {"grown": "wide|long", "less": "wide"}.get(name)
        packs[name] = pack_of(base, model, name, drop_rate=0.5, seed=number, exclude=exclude)
    found = {"conflict": 0, "bits": 0}
    for order in itertools.permutations(packs.values(), 2):
        for prefer in (None, 0, 1):
            weights = [0.3 + 0.1 * len(order[0].name), -1.7 if prefer else 1.0]
            decider = None if prefer is None else order[prefer]
            try:
                expected = reference.restore_several(order, given, weights=weights, prefer=prefer)
            except reference.Conflict:
                found["conflict"] += 1
                with pytest.raises(MergeConflictError):
                    deltapack.merge(tmp_path / "base.safetensors", order, out, weights=weights, prefer=decider, force=True)
                continue
            deltapack.merge(tmp_path / "base.safetensors", order, out, weights=weights, prefer=decider, force=True)
            assert {name: (tensor.dtype, tensor.shape, tensor.raw) for name, tensor in read_file(out).items()} == expected
            found["bits"] += 1
    assert found == {"conflict": 8, "bits": 28}


def test_exact_packs(tmp_path: Path, applied: Applied) -> None:
    """Every type, with and without a partner, rows, two chunks; alone, under a weight, and added to another."""
    base = {dtype: random_tensor(number, (50, 41), dtype) for number, dtype in enumerate(FLOATS)}
    base |= {"i16": whole("i16", np.arange(900) % 37), "i64": whole("i64", np.arange(90)), "long": random_tensor(4, (CHUNK + 5,), "f16")}
    base |= {"grown": random_tensor(1, (50, 40), "bf16"), "shrunk": random_tensor(2, (50, 40)), "wider": random_tensor(3, (30, 30), "bf16")}
    tuned = tuned_model(base, scale=1e-3) | {"i16": whole("i16", np.arange(900) % 38), "new": whole("bool", np.arange(70) % 2)}
    tuned |= {"grown": random_tensor(1, (60, 40), "bf16"), "shrunk": moved(random_tensor(2, (40, 40)), 6)}
    tuned |= {"wider": moved(base["wider"], 7, dtype="f32"), "long": edited(base["long"], CHUNK + 2, 7)}
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    pack, merged = tmp_path / "exact.dpk", tmp_path / "merged.dpk"
    deltapack.compress(*paths, pack, recipe=Recipe(exact=True), allow_unrelated=True)
    with deltapack.open_pack(pack) as opened:
        assert {entry.kind for entry in opened.values()} == {"exact", "unchanged"}
    assert decode_by_spec(base, pack) == applied(pack) == tuned
    assert decode_by_spec(base, pack, weight=0.3) == applied(pack, weight=0.3, verify=False)
    deltapack.merge(paths[0], [pack, pack], merged, weights=[0.3, 0.4])
    assert decode_by_spec(base, merged) == applied(merged)


@pytest.mark.parametrize("bits", [0.1, 0.5, 2.0])
def test_budget_packs(pack_of: PackOf, applied: Applied, tmp_path: Path, bits: float) -> None:
    """Factors, trits on stratified masks, rows that are dropped, levels: alone, under a weight, rescaled, merged."""
    base = {"w": random_tensor(1, (256, 192), "bf16"), "grown": random_tensor(2, (200, 96)), "embed": random_tensor(3, (900, 64), "f16")}
    common = np.outer(np.linspace(-1, 1, 256), np.linspace(1, 2, 192)) * 0.05
    tuned = {"w": cast(base["w"].f64 + common + moved(base["w"], 4, 0.01).f64 - base["w"].f64, "bf16")}
    tuned["grown"] = cast(np.concatenate([moved(base["grown"], 5).f64, np.ones((7, 96))]), "f32")
    touched = base["embed"].f64
    touched[::17] += np.random.default_rng(6).normal(0, 0.05, touched[::17].shape)
    tuned["embed"] = cast(touched, "f16")
    pack = pack_of(base, tuned, budget=deltapack.Budget(bits=bits))
    assert decode_by_spec(base, pack) == applied(pack)
    assert decode_by_spec(base, pack, weight=-0.7) == applied(pack, weight=-0.7, verify=False)
    assert decode_by_spec(base, pack, factor=7.25) == applied(pack, rescale=7.25)
    merged = tmp_path / "merged.dpk"
    deltapack.merge(tmp_path / "base.safetensors", [pack, pack], merged, weights=[0.3, 0.4])
    assert decode_by_spec(base, merged) == applied(merged)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 3e38, -3e38])
def test_weights_that_are_no_f32(pack_of: PackOf, applied: Applied, weight: float) -> None:
    base = small_model()
    pack = pack_of(base, tuned_model(base))
    with pytest.raises(ValueError, match="not a finite f32"):
        decode_by_spec(base, pack, weight=weight)
    with pytest.raises(RecipeError, match="not a finite f32"):
        applied(pack, weight=weight)
    almost = math.copysign(math.nextafter(3e38, 0), weight)
    assert decode_by_spec(base, pack, weight=almost) == applied(pack, weight=almost)


def test_side_files(tmp_path: Path) -> None:
    base = small_model()
    write_folder(tmp_path / "base", base, {"same.json": "{}"})
    write_folder(tmp_path / "tuned", tuned_model(base), {"same.json": "{}", "new.json": "[1]" * 900, "empty.txt": ""})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "pack.dpk")
    assert reference_decoder().side_files(tmp_path / "pack.dpk") == {
        "config.json": None,
        "empty.txt": b"",
        "new.json": b"[1]" * 900,
        "same.json": None,
    }


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bits(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any bits in base and fine-tune, NaN and infinities included, any recipe: same bits, or an error that says so."""
    folder = tmp_path_factory.mktemp("bits")
    dtypes = st.sampled_from(FLOATS)
    base, tuned = {}, {}
    for name in ("x", "y"):
        source, target, numel = data.draw(dtypes), data.draw(dtypes), data.draw(st.integers(1, 400))
        random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        size = data.draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e38]))
        with np.errstate(all="ignore"):
            base[name] = cast(random.normal(0, size, numel), source)
            tuned[name] = cast(base[name].f64 + random.normal(0, size, numel), target)
        for model in (base, tuned):
            wild = data.draw(st.booleans())
            if wild:
                place, bits = data.draw(st.integers(0, numel - 1)), data.draw(st.binary(min_size=8, max_size=8))
                tensor = model[name]
                model[name] = edited(tensor, place, np.frombuffer(bits, tensor.bits.dtype)[0])
    rate = data.draw(st.sampled_from([0.0, 0.1, 0.9, 0.99]))
    recipe = Recipe(
        drop_rate=rate,
        values=data.draw(st.sampled_from(["auto", "f32", *SCALED])),  # the numbers are too large for the other floats
        index=data.draw(st.sampled_from([name for name in INDEX_CHOICES if rate or name not in ("seeded", "stratified")])),
        seed=data.draw(st.integers(-9, 9)),
        non_finite="store",
        overrides=tuple(Override(name, role=data.draw(st.sampled_from(SETTABLE))) for name in base),
    )
    paths = write_file(folder / "base.safetensors", base), write_file(folder / "tuned.safetensors", tuned)
    for name, own in (("pack.dpk", recipe), ("exact.dpk", Recipe(exact=True))):
        deltapack.compress(*paths, folder / name, recipe=own, allow_unrelated=True)
        deltapack.apply(paths[0], folder / name, folder / "out.safetensors", force=True)
        assert read_file(folder / "out.safetensors") == decode_by_spec(base, folder / name)
    assert read_file(folder / "out.safetensors") == tuned


def test_packs_in_parts(tmp_path: Path) -> None:
    whole_pack = tmp_path / "whole.dpk"
    base, tuned = write_folder(tmp_path / "base", small_model()), write_folder(tmp_path / "tuned", tuned_model(small_model()))
    deltapack.compress(base, tuned, whole_pack)
    report = deltapack.split(whole_pack, tmp_path / "x.dpk", max_part_size=1000)
    reference = reference_decoder()
    assert reference.read_pack(tmp_path / report.index) == reference.read_pack(whole_pack)
    part, other = (tmp_path / name for name in report.parts[1:3])
    kept = part.read_bytes()
    part.write_bytes(other.read_bytes())
    with pytest.raises(reference.Invalid, match="part 2 is another"):
        reference.read_pack(tmp_path / report.index)
    part.write_bytes(kept)
    text = (tmp_path / report.index).read_text()
    for old, new in ((report.parts[0], f"../{report.parts[0]}"), ('"version": 1', '"version": 2'), ('"pack_id": "', '"pack_id": "0')):
        (tmp_path / report.index).write_text(text.replace(old, new))
        with pytest.raises(reference.Invalid, match="parts"):
            reference.read_pack(tmp_path / report.index)
