"""Exact packs: whatever the bits are, they come back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.builders import (
    CHUNK,
    FLOATS,
    Model,
    Tensor,
    cast,
    edited,
    moved,
    random_tensor,
    read_file,
    read_model,
    small_model,
    tuned_model,
    whole,
    write_file,
    write_folder,
)
from support.laws import examples

import deltapack
from deltapack import Recipe
from deltapack.errors import DeltapackError, RecipeError
from deltapack.packs.inspecting import inspect_pack

EXACT = Recipe(exact=True)
BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "C128": 128, "BOOL": 8},
    **{f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8},
}
"""All element types, by the name that a header has for them, and their bits."""
DELTAS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7F80, 0xFF80, 0x7FC1, 0x7C00, 0x7E55, 0x8000, 0xFFFF, 0x7F800001, 0xFFC00000, 0x80000001, 0x7FF << 52)
"""Zeros of both signs, subnormals, infinities, NaNs that are quiet or not, of one type or another."""


@dataclass(frozen=True)
class Raw:
    """A tensor as a header has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def write_raw(path: Path, tensors: Mapping[str, Raw]) -> Path:
    header, end = dict[str, Any](), 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + len(tensor.data)]}
        end += len(tensor.data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values()))
    return path


def read_raw(path: Path) -> dict[str, Raw]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: Raw(row["dtype"], tuple(row["shape"]), data[start + row["data_offsets"][0] : start + row["data_offsets"][1]])
        for name, row in header.items()
    }


def size(dtype: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * BITS[dtype] // 8


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Raw | None, Raw | None]:
    """A tensor of the base and one of the fine-tune, of any types and bits, that have to do with each other, or not."""
    dtype = draw(st.sampled_from(sorted(BITS)))
    source = draw(st.sampled_from(DELTAS)) if dtype in DELTAS and draw(st.booleans()) else dtype
    shapes = [(8,), (3, 8), (40, 24), (2, 5, 8), (300, 16), (0, 8)] + ([()] if BITS[dtype] >= 8 else [])
    shape = draw(st.sampled_from(shapes))
    of_base = draw(st.sampled_from([shape, shape, (shape[0] + 8, *shape[1:]), (shape[0] // 2, *shape[1:]), (4, 8)])) if shape else ()
    of_base = shape if 0 in shape else of_base  # one without elements in the place of one with some is a lost shard, and refused
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = _bits(draw, rng, size(source, of_base))
    tuned = _bits(draw, rng, size(dtype, shape))
    if source == dtype:
        common = min(len(base), len(tuned))
        changed = rng.random(common) < draw(st.sampled_from([0, 0.01, 0.3, 1]))
        tuned[:common] = np.where(changed, tuned[:common], base[:common])
    sides = draw(st.sampled_from(["both", "both", "both", "base", "tuned"]))
    return (
        Raw(source, of_base, base.tobytes()) if sides != "tuned" else None,
        Raw(dtype, shape, tuned.tobytes()) if sides != "base" else None,
    )


def _bits(draw: st.DrawFn, rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    words = rng.choice(np.array(ODD, "<u8"), count + 1).view(np.uint8)
    width = draw(st.sampled_from([1, 2, 4, 8]))
    words = words.reshape(-1, 8)[:, :width].reshape(-1)
    return words[:count].copy() if draw(st.booleans()) and len(words) >= count else rng.integers(0, 256, count, np.uint8)


@examples(120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(pairs(), min_size=1, max_size=4), st.booleans())
def test_whatever_the_bits_are_they_come_back(tensors: list[tuple[Raw | None, Raw | None]], swapped: bool) -> None:
    anchor = Raw("F32", (2,), bytes(8))
    base = {"anchor": anchor} | {f"t{number}": one for number, (one, _) in enumerate(tensors) if one is not None}
    tuned = {f"t{number}": other for number, (_, other) in enumerate(tensors) if other is not None} | {"anchor": anchor}
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.safetensors" for name in ("base", "tuned", "out")]
        write_raw(paths[0], base)
        write_raw(paths[1], dict(reversed(tuned.items())) if swapped else tuned)
        pack = Path(folder) / "x.dpk"
        report = deltapack.compress(paths[0], paths[1], pack, recipe=EXACT, allow_unrelated=True)
        assert set(report.kinds) <= {"exact", "removed", "unchanged"}
        assert deltapack.apply(paths[0], pack, paths[2]).verified
        assert read_raw(paths[2]) == tuned
        deltapack.verify(pack)
        deltapack.verify(pack, paths[0])


def every_kind() -> tuple[Model, Model]:
    """A base and a fine-tune with every way that a tensor can change."""
    base = small_model() | {
        "bf16": random_tensor(5, (90, 40), "bf16"),
        "f64": random_tensor(6, (500,), "f64"),
        "rows": random_tensor(7, (30, 9), "f16"),
        "fewer": random_tensor(8, (30, 9), "f16"),
        "narrower": random_tensor(9, (60, 60)),
        "wider": random_tensor(10, (60, 60), "bf16"),
        "columns": random_tensor(11, (40, 50)),
        "codes": whole("i8", np.arange(3000) % 90, (60, 50)),
        "flags": whole("bool", np.arange(300) % 2),
        "scalar": cast(np.array(2.0), "f32"),
        "gone": random_tensor(12, (6, 6)),
    }
    tuned = tuned_model({name: tensor for name, tensor in base.items() if name != "gone"}) | {
        "rows": random_tensor(20, (33, 9), "f16"),
        "fewer": Tensor("f16", moved(base["fewer"], 3).bits[:20].copy()),
        "narrower": moved(base["narrower"], 4, 0.01, "bf16"),
        "wider": moved(base["wider"], 5, 0.01, "f32"),
        "columns": random_tensor(13, (40, 51)),
        "codes": edited(base["codes"], 7, 55),
        "flags": edited(base["flags"], 9, 0),
        "new": random_tensor(14, (50, 50)),
    }
    tuned["rows"].bits[:30] = moved(base["rows"], 6).bits
    return base, tuned


@dataclass(frozen=True)
class Files:
    """Base, fine-tune and the exact pack of them."""

    base: Path
    tuned: Path
    pack: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    base, tuned = every_kind()
    found = Files(write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned), tmp_path / "x.dpk")
    deltapack.compress(found.base, found.tuned, found.pack, recipe=EXACT)
    return found


def kinds_of(pack: Path) -> dict[str, str]:
    with deltapack.open_pack(pack) as opened:
        return {name: entry.kind for name, entry in opened.items()}


def test_every_way_to_change(files: Files, tmp_path: Path) -> None:
    _, tuned = every_kind()
    assert kinds_of(files.pack) == {name: "unchanged" if name == "positions" else "exact" for name in tuned} | {"gone": "removed"}
    assert deltapack.apply(files.base, files.pack, tmp_path / "out.safetensors").verified
    assert read_file(tmp_path / "out.safetensors") == tuned
    assert deltapack.verify(files.pack).chunks == deltapack.verify(files.pack, files.base).chunks > 0
    with deltapack.open_pack(files.pack) as pack:
        assert (pack["new"].to_dense() == tuned["new"].bits).all() and (pack["columns"].to_dense() == tuned["columns"].bits).all()
        for name in ("bf16", "rows"):  # coded after the base's, which is not at hand
            with pytest.raises(RecipeError, match=r"deltapack\.apply"):
                pack[name].to_dense()
    assert (tmp_path / "out.safetensors").read_bytes() == files.tuned.read_bytes()
    deltapack.apply(files.base, files.pack, tmp_path / "out", max_shard_size="1GB")
    assert b'"deltapack.fidelity":"exact"' in (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["f8_e4m3fn", "bf16", "i16"])
def test_more_than_one_chunk(dtype: str, tmp_path: Path) -> None:
    """Rows are added in the second chunk, so that it starts within the base and ends after it; a third one has no base."""
    rng = np.random.default_rng(3)
    kind = {"f8_e4m3fn": np.uint8, "bf16": np.uint16, "i16": np.int16}[dtype]
    bits = rng.integers(0, 120, (1100, 1024)).astype(kind)
    base = {"w": Tensor(dtype, bits), "cut": Tensor(dtype, bits)}
    more = np.concatenate([bits, rng.integers(0, 120, (1000, 1024)).astype(kind)])
    more[::7] += 1
    tuned = {"w": Tensor(dtype, more), "cut": Tensor(dtype, more[:1027].copy())}
    paths = [write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("base", base), ("tuned", tuned))]
    packs = [tmp_path / "1.dpk", tmp_path / "4.dpk"]
    for pack, workers in zip(packs, (1, 4), strict=True):
        deltapack.compress(paths[0], paths[1], pack, recipe=EXACT, workers=workers)
    assert packs[0].read_bytes() == packs[1].read_bytes() and kinds_of(packs[0]) == {"cut": "exact", "w": "exact"}
    for workers in (1, 3):
        deltapack.apply(paths[0], packs[0], tmp_path / "out.safetensors", workers=workers, force=True)
        assert read_file(tmp_path / "out.safetensors") == tuned
    assert deltapack.verify(packs[0], paths[0]).chunks == deltapack.verify(packs[0]).chunks == 5
    assert (2100 * 1024) // CHUNK == 2


def test_the_same_bytes_whatever_the_workers(files: Files, tmp_path: Path) -> None:
    deltapack.compress(files.base, files.tuned, tmp_path / "4.dpk", recipe=EXACT, workers=4)
    assert (tmp_path / "4.dpk").read_bytes() == files.pack.read_bytes()


def test_other_names_and_layouts(tmp_path: Path) -> None:
    parts = {f"m.l.{layer}.{n}_proj.weight": random_tensor(10 * layer + i, (16, 16)) for layer in range(3) for i, n in enumerate("qkv")}
    changed = {name: moved(tensor, number, 1e-3) for number, (name, tensor) in enumerate(parts.items())}
    fused = {
        f"l.{layer}.qkv.weight": Tensor("f32", np.concatenate([changed[f"m.l.{layer}.{n}_proj.weight"].bits for n in "qkv"]))
        for layer in range(3)
    }
    for number, (base, tuned) in enumerate(((parts, fused), (fused, tuned_model(changed)))):
        paths = [write_file(tmp_path / f"{number} {name}.safetensors", model) for name, model in (("base", base), ("tuned", tuned))]
        pack, out = tmp_path / f"{number}.dpk", tmp_path / f"{number} out.safetensors"
        report = deltapack.compress(paths[0], paths[1], pack, recipe=EXACT)
        assert report.kinds == {"exact": len(tuned)}
        with deltapack.open_pack(pack) as opened:
            partners = [opened[name].entry.partner for name in tuned]
        assert all(partner is not None and partner.arranged is not None for partner in partners)
        deltapack.apply(paths[0], pack, out)
        assert read_file(out) == tuned
        deltapack.verify(pack, paths[0])


def test_ties_and_side_files(tmp_path: Path) -> None:
    """A folder whose head is tied comes back with its tie, and with all that lies beside it."""
    base = {"model.embed.weight": random_tensor(1, (40, 8), "bf16"), "model.norm.weight": random_tensor(2, (8,), "bf16")}
    write_folder(tmp_path / "base", base, {"tokenizer.json": '{"a": 1}'})
    tuned = {name.removeprefix("model."): moved(tensor, 7) for name, tensor in base.items()}
    write_folder(tmp_path / "tuned", tuned, {"tokenizer.json": '{"a": 2}', "generation_config.json": "{}"})
    write_file(tmp_path / "tuned" / "model.safetensors", tuned, {"lm_head.weight": "embed.weight"})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=EXACT)
    assert kinds_of(tmp_path / "x.dpk") == {"embed.weight": "exact", "norm.weight": "exact", "lm_head.weight": "alias"}
    deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out")
    assert read_model(tmp_path / "out") == tuned
    for name in ("tokenizer.json", "generation_config.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "tuned" / name).read_bytes()


def weighted(base: Tensor, tuned: Tensor, weight: float) -> Tensor:
    """base + weight * (tuned - base), in f32 and rounded once; what spec/06-arithmetic.md says of tensors that are known whole."""
    with np.errstate(all="ignore"):
        delta = (tuned.f64.astype(np.float32) - base.f64.astype(np.float32)) * np.float32(weight)
        if "f64" in (base.dtype, tuned.dtype):
            return cast(base.f64 + delta.astype(np.float64), tuned.dtype)
        return cast(base.f64.astype(np.float32) + delta, tuned.dtype)


def test_a_weight_scales_what_can_be_added(files: Files, tmp_path: Path) -> None:
    base, tuned = every_kind()
    assert not deltapack.apply(files.base, files.pack, tmp_path / "out.safetensors", weight=0.5).verified
    added = {n for n, t in tuned.items() if n in base and t.dtype in FLOATS and base[n].shape == t.shape}
    assert {"bf16", "f64", "narrower", "wider", "scalar"} <= added and not {"rows", "fewer", "columns", "codes", "new"} & added
    expected = {name: weighted(base[name], tensor, 0.5) if name in added else tensor for name, tensor in tuned.items()}
    assert read_file(tmp_path / "out.safetensors") == expected


def test_there_is_nothing_to_rescale(files: Files, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="an exact pack drops nothing"):
        deltapack.apply(files.base, files.pack, tmp_path / "out.safetensors", rescale=2)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_another_type_is_rounded_from_the_exact_one(files: Files, tmp_path: Path, dtype: str) -> None:
    _, tuned = every_kind()
    deltapack.apply(files.base, files.pack, tmp_path / "out.safetensors", dtype=dtype)
    expected = {name: cast(tensor.f64, dtype) if tensor.dtype in FLOATS else tensor for name, tensor in tuned.items()}
    assert read_file(tmp_path / "out.safetensors") == expected


def test_some_tensors_are_exact_and_others_lossy(tmp_path: Path) -> None:
    base, tuned = every_kind()
    paths = [write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("base", base), ("tuned", tuned))]
    pack = tmp_path / "x.dpk"
    deltapack.compress(paths[0], paths[1], pack, recipe=Recipe(exact="^(bf16|embed)"))
    found = kinds_of(pack)
    assert (found["bf16"], found["embed.weight"], found["codes"]) == ("exact",) * 3
    assert (found["layer.weight"], found["rows"], found["fewer"]) == ("delta", "grown", "shrunk")
    deltapack.apply(paths[0], pack, tmp_path / "out.safetensors")
    result = read_file(tmp_path / "out.safetensors")
    assert [name for name in ("bf16", "embed.weight", "codes", "flags", "new") if result[name] != tuned[name]] == []
    assert result["layer.weight"] != tuned["layer.weight"]
    shown = inspect_pack(pack)
    assert shown.recipe["exact"] == "^(bf16|embed)"
    roles = {tensor.name: tensor.role for tensor in shown.tensors}
    assert (roles["embed.weight"], roles["layer.weight"], roles["codes"]) == ("exact", "weight", "integer")


def test_what_must_not_change_is_coded_only_where_that_is_smaller(tmp_path: Path) -> None:
    """Noise without a partner is as large either way, and more readers know stored tensors."""
    noise = whole("i64", np.random.default_rng(1).integers(-(2**62), 2**62, 500))
    base = {"w": random_tensor(1, (30, 30)), "codes": whole("i16", np.arange(5000))}
    tuned = {"w": moved(base["w"], 1), "codes": edited(base["codes"], 3, -1), "noise": noise}
    paths = [write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("base", base), ("tuned", tuned))]
    pack = tmp_path / "x.dpk"
    deltapack.compress(paths[0], paths[1], pack, allow_unrelated=True)
    assert kinds_of(pack) == {"w": "delta", "codes": "exact", "noise": "stored"}
    deltapack.compress(paths[0], paths[1], pack, recipe=EXACT, allow_unrelated=True, force=True)
    assert set(kinds_of(pack).values()) == {"exact"}


def test_the_report_the_preview_and_the_summary_agree(files: Files, tmp_path: Path) -> None:
    report = deltapack.compress(files.base, files.tuned, tmp_path / "again.dpk", recipe=EXACT)
    foreseen = deltapack.preview_compress(files.base, files.tuned, recipe=EXACT)
    shown = inspect_pack(files.pack)
    assert report.kinds == foreseen.kinds == shown.kinds == {"exact": len(every_kind()[1]) - 1, "removed": 1, "unchanged": 1}
    assert report.split["exact"] == shown.split["exact"] > 0.9 * report.pack_bytes - report.split["header"]
    assert (report.delta_elements, report.delta_bits_per_weight, report.worst) == (0, 0, [])
    assert shown.recipe == {"method": "exact"} and shown.checkpoint_bytes == report.checkpoint_bytes
    assert shown.weight_files == report.weight_files == foreseen.weight_files == 1 and shown.heads == ("model.safetensors",)
    coded = [tensor for tensor in shown.tensors if tensor.kind == "exact"]
    assert shown.exact_elements == sum(math.prod(tensor.shape) for tensor in coded) > 0
    assert shown.exact_bits_per_element == 8 * shown.split["exact"] / shown.exact_elements
    rows = {row.name: row for row in foreseen.tensors}
    with deltapack.open_pack(files.pack) as pack:
        exact = {name: entry.entry for name, entry in pack.items() if entry.kind == "exact"}
    for name, entry in exact.items():
        assert abs(rows[name].bytes - entry.exact[0].blob.length) <= 16
        assert rows[name].base_name == ("" if entry.partner is None else name)
    assert {rows[name].index for name in exact} == {""} and rows["columns"].base_name == ""
    assert abs(foreseen.pack_bytes - report.pack_bytes) < 0.1 * report.pack_bytes


@pytest.mark.parametrize(
    "asked",
    [
        {"drop_rate": 0.5},
        {"values": "int8"},
        {"sparsify": "magnitude"},
        {"seed": 3},
        {"include": "a"},
        {"exclude": "a"},
        {"rescale": 1.0},
        {"fidelity": 0.1},
        {"non_finite": "store"},
        {"overrides": (deltapack.Override("a", drop_rate=0.1),)},
    ],
)
def test_nothing_else_means_anything_where_all_is_exact(asked: dict[str, Any]) -> None:
    name = next(iter(asked))
    with pytest.raises(RecipeError, match=rf"{name} does nothing where all is exact.*Recipe\(exact='lm_head'\)"):
        Recipe(exact=True, **asked)
    assert Recipe(exact="lm_head", **asked).exact == "lm_head"
    nothing: Any = []
    assert Recipe(exact=True, overrides=nothing).exact is True


@pytest.mark.parametrize("exact", ["", 1, None, "(", ["a"]])
def test_what_exact_is_not(exact: Any) -> None:
    with pytest.raises(RecipeError):
        Recipe(exact=exact)


def test_the_difference_of_an_exact_tensor(files: Files) -> None:
    """There is none in the pack: whoever asks is told what to do, for what starts from the base and what does not."""
    with deltapack.open_pack(files.pack) as pack:
        for name, told in (
            ("bf16", r"decoded from the elements of the base.*Pack\.add_to"),
            ("columns", r"to_dense\(\) gives its elements"),
        ):
            entry = pack[name]
            assert (entry.kind, entry.nnz) == ("exact", 0) and (entry.entry.partner is None) is (name == "columns")
            for view in (entry.to_sparse, entry.to_scipy):
                with pytest.raises(RecipeError, match=rf"x\.dpk: tensor '{name}'.*{told}"):
                    view()
        with pytest.raises(RecipeError, match="decoded from the elements of the base"):
            pack["bf16"].to_dense()
        assert pack["columns"].to_dense().shape == pack["columns"].shape


def test_an_expression_that_matches_nothing_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="matches no tensor"):
        deltapack.compress(files.base, files.tuned, tmp_path / "y.dpk", recipe=Recipe(exact="no such tensor"))
    assert not (tmp_path / "y.dpk").exists()


@pytest.mark.parametrize("exact", [False, True])
def test_what_stays_behind_is_told(exact: bool, tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_model())
    tuned = write_folder(tmp_path / "tuned", tuned_model(small_model()), {".gitattributes": "x\n", ".DS_Store": "y"})
    report = deltapack.compress(base, tuned, tmp_path / "x.dpk", recipe=Recipe(exact=exact))
    preview = deltapack.preview_compress(base, tuned, recipe=Recipe(exact=exact))
    assert report.notes == (["left out .gitattributes: hidden"] if exact else [])
    assert preview.notes == (["would leave out .gitattributes: hidden"] if exact else [])


def test_damaged_bytes_are_found(tmp_path: Path) -> None:
    """Wherever a byte is damaged, reading says so by an error of ours, and leaves nothing."""
    base = {"a": random_tensor(1, (64, 9), "bf16"), "b": whole("i8", np.arange(300) % 50)}
    tuned = {"a": moved(base["a"], 2), "b": edited(base["b"], 5, 99), "c": random_tensor(3, (20,), "f16")}
    paths = [write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("base", base), ("tuned", tuned))]
    pack, broken, out = tmp_path / "x.dpk", tmp_path / "broken.dpk", tmp_path / "out"
    deltapack.compress(paths[0], paths[1], pack, recipe=EXACT)
    data = pack.read_bytes()
    for place in range(0, len(data), 5):
        shutil.copy(pack, broken)
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        broken.write_bytes(damaged)
        with pytest.raises(DeltapackError):
            deltapack.apply(paths[0], broken, out)
        with pytest.raises(DeltapackError):
            deltapack.verify(broken)
        assert not out.exists()
    for length in range(0, len(data), 41):
        broken.write_bytes(data[:length])
        with pytest.raises(DeltapackError):
            deltapack.apply(paths[0], broken, out)
