"""Merges of exact packs, with each other and with lossy ones: tensors that are known whole add as differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import (
    CHUNK,
    Model,
    Tensor,
    add_by_hand,
    cast,
    decode_by_spec,
    edited,
    moved,
    random_tensor,
    read_file,
    small_model,
    tuned_model,
    whole,
    write_file,
)

import deltapack
from deltapack import MergeRecipe, Recipe
from deltapack.errors import MergeConflictError
from deltapack.merging.recipe import constant

BASE: Model = small_model() | {"half": random_tensor(8, (40, 30), "bf16"), "rows": random_tensor(9, (20, 6), "f16")}
ONE = tuned_model(BASE, 10) | {"positions": edited(BASE["positions"], 3, 77)}
OTHER = tuned_model(BASE, 20)


def packed(folder: Path, name: str, tuned: Model, recipe: Recipe | None = None) -> Path:
    base = write_file(folder / "base.safetensors", BASE)
    out = folder / f"{name}.dpk"
    deltapack.compress(base, write_file(folder / f"{name}.safetensors", tuned), out, recipe=recipe or Recipe(exact=True))
    return out


def added(base: Tensor, *steps: tuple[float, Tensor]) -> Tensor:
    """base + the sum of weight * (tuned - base), in f32, in this order, rounded once."""
    start, total = base.f64.astype(np.float32), np.zeros(base.shape, np.float32)
    for weight, tuned in steps:
        total += (tuned.f64.astype(np.float32) - start) * np.float32(weight)
    return cast(start + total, base.dtype)


def checked(folder: Path, packs: Sequence[Path], **options: Any) -> Model:
    """Merge into a checkpoint, and into a pack that gives the same bits, by the reference decoder, too."""
    base, out = folder / "base.safetensors", folder / "merged.safetensors"
    deltapack.merge(base, packs, out, force=True, **options)
    deltapack.merge(base, packs, folder / "merged.dpk", force=True, **options)
    result = read_file(out)
    deltapack.apply(base, folder / "merged.dpk", folder / "again.safetensors", force=True)
    assert read_file(folder / "again.safetensors") == result == decode_by_spec(read_file(base), folder / "merged.dpk")
    deltapack.verify(folder / "merged.dpk", base)
    return result


def kinds_of(pack: Path) -> dict[str, str]:
    with deltapack.open_pack(pack) as opened:
        return {name: entry.kind for name, entry in opened.items()}


def test_one_exact_pack_alone_is_the_fine_tune(tmp_path: Path) -> None:
    one = packed(tmp_path, "one", ONE)
    assert checked(tmp_path, [one]) == ONE
    assert kinds_of(tmp_path / "merged.dpk") == kinds_of(one)


def test_two_exact_packs(tmp_path: Path) -> None:
    packs = [packed(tmp_path, "one", ONE), packed(tmp_path, "other", OTHER)]
    result = checked(tmp_path, packs, weights=[0.75, 0.5])
    assert result.pop("positions") == ONE["positions"]  # it is no float, and the other pack leaves it alone
    assert result == {name: added(BASE[name], (0.75, ONE[name]), (0.5, OTHER[name])) for name in result}
    found = kinds_of(tmp_path / "merged.dpk")
    small = ("rows",)  # not worth it
    assert found == {name: "stored" if name in small else "exact" for name in BASE}  # known whole, and smaller than stored as it is
    assert (tmp_path / "merged.dpk").stat().st_size < 0.95 * sum(len(tensor.raw) for tensor in BASE.values())
    recipe = MergeRecipe(weights=(constant(0.75), constant(0.5)))
    plan = deltapack.preview_merge(tmp_path / "base.safetensors", packs, tmp_path / "new.dpk", recipe=recipe)
    assert plan.tensors == {"from one pack": 1, "merged": len(found) - 1}


def test_an_exact_and_a_lossy_pack(tmp_path: Path) -> None:
    """Of the lossy one, only what it kept is added."""
    exact = packed(tmp_path, "one", ONE)
    lossy = packed(tmp_path, "other", OTHER, Recipe(drop_rate=0.5, values="f32", rescale=1.0))
    dropped = dict(BASE)
    with deltapack.open_pack(lossy) as pack:
        for name, entry in pack.items():
            if entry.kind == "delta":
                dropped[name] = add_by_hand(BASE[name], *entry.to_sparse(), entry.dtype)
    result = checked(tmp_path, [exact, lossy], weights=[0.5, 0.25])
    name = "half"
    with deltapack.open_pack(lossy) as pack:
        positions, values = pack[name].to_sparse()
    total = (ONE[name].f64.astype(np.float32) - BASE[name].f64.astype(np.float32)) * np.float32(0.5)
    total.reshape(-1)[positions] += values * np.float32(0.25)
    assert result[name] == cast(BASE[name].f64.astype(np.float32) + total, "bf16")
    assert result["positions"] == ONE["positions"]
    assert {name for name in result if result[name] not in (ONE[name], BASE[name], dropped[name])} >= {"half", "embed.weight", "rows"}


@pytest.mark.parametrize("method", ["ties", "sce"])
def test_other_methods_take_differences(tmp_path: Path, method: str) -> None:
    """A method sees the same as of packs that keep all of the difference as f32: nothing of these models is lost by that."""
    near = {n: Tensor(t.dtype, (t.f64 + (np.arange(t.f64.size).reshape(t.shape) % 3 - 1) / 1024).astype("<f4")) for n, t in F32.items()}
    far = {n: Tensor(t.dtype, (t.f64 + (np.arange(t.f64.size).reshape(t.shape) % 5 - 2) / 512).astype("<f4")) for n, t in F32.items()}
    base, results = write_file(tmp_path / "base.safetensors", F32), []
    for kind, recipe in (("exact", Recipe(exact=True)), ("all", Recipe(drop_rate=0, values="f32"))):
        packs = [tmp_path / f"{kind} {name}.dpk" for name in ("near", "far")]
        for pack, model in zip(packs, (near, far), strict=True):
            deltapack.compress(base, write_file(tmp_path / "tuned.safetensors", model), pack, recipe=recipe)
        out = tmp_path / f"{kind}.safetensors"
        deltapack.merge(base, packs, out, recipe=MergeRecipe(method=method, densities=(constant(0.5),) if method == "ties" else ()))
        results.append(read_file(out))
    assert results[0] == results[1] != F32


F32: Model = {"w": cast(np.arange(1, 901).reshape(30, 30) / 1024, "f32"), "v": cast(np.arange(1, 41).reshape(8, 5) / 256, "f32")}


def test_more_rows_are_the_packs_that_has_them(tmp_path: Path) -> None:
    rows = random_tensor(30, (24, 6), "f16")
    rows.bits[:20] = moved(BASE["rows"], 31).bits
    grown = packed(tmp_path, "grown", ONE | {"rows": rows})
    same = packed(tmp_path, "same", OTHER | {"rows": BASE["rows"]})
    assert checked(tmp_path, [grown, same], weights=[0.5, 0.5])["rows"] == rows
    other = packed(tmp_path, "other", OTHER)
    with pytest.raises(MergeConflictError) as caught:
        deltapack.merge(tmp_path / "base.safetensors", [grown, other], tmp_path / "x.safetensors")
    assert caught.value.tensor == "rows"
    assert checked(tmp_path, [grown, other], prefer=grown)["rows"] == rows
    assert checked(tmp_path, [grown, other], prefer=other)["rows"] == OTHER["rows"]


def test_more_than_one_chunk_whatever_the_workers(tmp_path: Path) -> None:
    base = {"w": cast(np.linspace(-1, 1, CHUNK + 900), "bf16")}
    one, other = ({"w": Tensor("bf16", base["w"].bits + (np.arange(CHUNK + 900) % k == 0).astype("<u2"))} for k in (7, 11))
    start = write_file(tmp_path / "base.safetensors", base)
    packs = [tmp_path / "one.dpk", tmp_path / "other.dpk"]
    for pack, tuned in zip(packs, (one, other), strict=True):
        deltapack.compress(start, write_file(tmp_path / "tuned.safetensors", tuned), pack, recipe=Recipe(exact=True))
    made = []
    for workers in (1, 4):
        out = tmp_path / f"{workers}.dpk"
        deltapack.merge(start, packs, out, weights=[0.5, 2], workers=workers)
        made.append(out.read_bytes())
    assert made[0] == made[1]
    deltapack.apply(start, tmp_path / "1.dpk", tmp_path / "out.safetensors")
    assert read_file(tmp_path / "out.safetensors")["w"] == added(base["w"], (0.5, one["w"]), (2, other["w"]))


def test_an_explanation_of_a_tensor_that_is_coded_exactly(tmp_path: Path) -> None:
    packs = [packed(tmp_path, "one", ONE), packed(tmp_path, "other", OTHER)]
    recipe = MergeRecipe(weights=(constant(0.5), constant(1.0)))
    told = deltapack.explain_merge(tmp_path / "base.safetensors", packs, "half", recipe=recipe)
    of = {name: float(model["half"].f64.reshape(-1)[told.element]) for name, model in (("base", BASE), ("one", ONE), ("other", OTHER))}
    assert [row.delta for row in told.rows] == [float(np.float32(of[name]) - np.float32(of["base"])) for name in ("one", "other")]
    expected = added(BASE["half"], (0.5, ONE["half"]), (1, OTHER["half"]))
    assert (told.base, told.result) == (of["base"], float(expected.f64.reshape(-1)[told.element]))
    survey = deltapack.survey_merge(tmp_path / "base.safetensors", packs)
    assert survey.total.changed > 0


def test_what_is_new_in_one_of_them_is_in_the_result(tmp_path: Path) -> None:
    new = {"head": random_tensor(3, (30, 30)), "table": whole("i32", np.arange(600))}
    packs = [packed(tmp_path, "one", ONE | new), packed(tmp_path, "other", OTHER)]
    result = checked(tmp_path, packs)
    assert {name: result[name] for name in new} == new
    assert {kinds_of(tmp_path / "merged.dpk")[name] for name in new} == {"exact"}
