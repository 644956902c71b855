from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import (
    CHUNK,
    FLOATS,
    STORAGE,
    Model,
    Tensor,
    add_by_hand,
    cast,
    decode_by_spec,
    edited,
    leftovers,
    moved,
    random_tensor,
    read_file,
    read_folder,
    read_model,
    small_model,
    tuned_model,
    whole,
    write_file,
    write_folder,
)
from support.fixtures import Applied, PackOf

import deltapack
from deltapack import Recipe
from deltapack.errors import BaseMismatchError, CheckpointError, RecipeError


def kinds(pack: Path) -> dict[str, str]:
    with deltapack.open_pack(pack) as opened:
        return {name: entry.kind for name, entry in opened.items()}


def restored(base: Model, tuned: Model, pack: Path, applied: Applied) -> Model:
    """The result, checked for names, shapes, types and against the reference decoder and `verify`."""
    result = applied(pack)
    assert {name: (t.dtype, t.shape) for name, t in result.items()} == {name: (t.dtype, t.shape) for name, t in tuned.items()}
    assert result == decode_by_spec(base, pack)
    deltapack.verify(pack, pack.with_name("base.safetensors"))
    return result


@pytest.mark.parametrize("dtypes", [("f32", "f32"), ("bf16", "f16"), ("f64", "bf16")])
@pytest.mark.parametrize("rows", [90, 91, 700])
def test_grown_vocabulary(rows: int, dtypes: tuple[str, str], pack_of: PackOf, applied: Applied) -> None:
    base = {"embed": random_tensor(1, (90, 64), dtypes[0])}
    tuned = {"embed": random_tensor(9, (rows, 64), dtypes[1])}
    tuned["embed"].bits[:90] = moved(base["embed"], 2, 0.01, dtypes[1]).bits
    pack = pack_of(base, tuned)
    assert kinds(pack) == {"embed": "grown" if rows > 90 else "delta"}
    result = restored(base, tuned, pack, applied)["embed"]
    assert np.array_equal(result.bits[90:], tuned["embed"].bits[90:])
    with deltapack.open_pack(pack) as opened:
        common = add_by_hand(base["embed"], *opened["embed"].to_sparse(), dtypes[1])
        assert opened["embed"].to_dense().shape == (rows, 64)
        assert np.array_equal(opened["embed"].to_dense()[90:], tuned["embed"].f64[90:])
    assert np.array_equal(result.bits[:90], common.bits)


@pytest.mark.parametrize("rows", [(4097, 8200), (4096, 4097), (4097, 4098), (8200, 4097), (4097, 4096), (8193, 1)])
def test_rows_across_chunks(rows: tuple[int, int], pack_of: PackOf, applied: Applied) -> None:
    base = {"embed": random_tensor(1, (rows[0], 256), "bf16")}
    tuned = {"embed": random_tensor(9, (rows[1], 256), "bf16")}
    least = min(rows)
    tuned["embed"].bits[:least] = moved(Tensor("bf16", base["embed"].bits[:least]), 2).bits
    pack = pack_of(base, tuned)
    assert kinds(pack) == {"embed": "grown" if rows[1] > rows[0] else "shrunk"}
    result = restored(base, tuned, pack, applied)["embed"]
    assert np.array_equal(result.bits[least:], tuned["embed"].bits[least:])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_added_or_removed_and_nothing_else(dtype: str, pack_of: PackOf, applied: Applied) -> None:
    more, less = random_tensor(1, (900, 8), dtype), Tensor(dtype, random_tensor(1, (900, 8), dtype).bits[:700])
    assert restored({"e": less}, {"e": more}, pack_of({"e": less}, {"e": more}), applied)["e"] == more
    assert restored({"e": more}, {"e": less}, pack_of({"e": more}, {"e": less}, force=True), applied)["e"] == less
    with deltapack.open_pack(pack_of({"e": more}, {"e": less}, force=True)) as pack:
        assert pack["e"].kind == "shrunk"
        assert pack["e"].nnz == 0 and pack["e"].entry.terms == ()


def test_heads_added_and_removed(pack_of: PackOf, applied: Applied) -> None:
    base = small_model() | {"mlm.weight": random_tensor(8, (30, 30)), "mlm.steps": whole("i64", 3)}
    tuned = tuned_model(small_model()) | {"classifier.weight": random_tensor(7, (5, 32), "f16")}
    pack = pack_of(base, tuned)
    assert kinds(pack) == {
        "classifier.weight": "stored",
        "embed.weight": "delta",
        "layer.bias": "delta",
        "layer.weight": "delta",
        "mlm.steps": "removed",
        "mlm.weight": "removed",
        "positions": "unchanged",
    }
    assert restored(base, tuned, pack, applied)["classifier.weight"] == tuned["classifier.weight"]


def test_integers_booleans_scalars_and_empty_tensors(pack_of: PackOf, applied: Applied) -> None:
    base: Model = {
        **{f"same {dtype}": whole(dtype, np.arange(8) % 2) for dtype in STORAGE if dtype not in FLOATS},
        **{f"new {dtype}": whole(dtype, np.arange(8) % 2) for dtype in STORAGE if dtype not in FLOATS},
        **{f"scalar {dtype}": cast(np.array(0.5), dtype) for dtype in FLOATS},
        **{f"same scalar {dtype}": cast(np.array(0.5), dtype) for dtype in FLOATS},
        "scalar steps": whole("i64", 5),
        "empty": random_tensor(0, (0,)),
        "empty rows": random_tensor(0, (0, 4)),
        "empty columns": random_tensor(0, (4, 0)),
        "filled": random_tensor(0, (0, 4)),
        "retyped": random_tensor(0, (0, 4), "bf16"),
        "empty int": whole("i32", np.zeros((0, 2))),
    }
    tuned = dict(base) | {
        **{f"new {dtype}": whole(dtype, 1 - np.arange(8) % 2) for dtype in STORAGE if dtype not in FLOATS},
        **{f"scalar {dtype}": cast(np.array(-1.0), dtype) for dtype in FLOATS},
        "scalar steps": whole("i64", 6),
        "filled": random_tensor(0, (3, 4)),
        "retyped": random_tensor(0, (0, 4), "f32"),
        "new empty": random_tensor(0, (7, 0, 2), "f16"),
    }
    pack = pack_of(base, tuned, drop_rate=0.5, allow_unrelated=True)
    assert restored(base, tuned, pack, applied) == tuned  # too small to be worth a difference: all stored


def test_a_tensor_that_lost_its_elements(pack_of: PackOf) -> None:
    """What ZeRO-3 saves unless it is told to gather the weights is no fine-tune, whatever else is in it."""
    base = {"emptied": random_tensor(0, (3, 4)), "w": random_tensor(1, (300, 4))}
    with pytest.raises(CheckpointError, match="'emptied': the tensor has no elements where the base has some"):
        pack_of(base, tuned_model(base) | {"emptied": random_tensor(0, (0, 4))}, allow_unrelated=True)


def test_other_shapes_and_types(pack_of: PackOf, applied: Applied) -> None:
    base: Model = {
        "reshaped": random_tensor(1, (40, 50)),
        "columns": random_tensor(2, (40, 50)),
        "flat": random_tensor(3, (40, 50)),
        "quantised": random_tensor(4, (40, 50)),
        "dequantised": whole("i8", np.arange(2000) % 100, (40, 50)),
        "wider int": whole("i32", np.arange(50)),
        "rank 0": cast(np.array(2.0), "f32"),
    }
    tuned: Model = {
        "reshaped": random_tensor(1, (50, 40)),
        "columns": random_tensor(2, (40, 51)),
        "flat": random_tensor(3, (2000,)),
        "quantised": whole("i8", np.arange(2000) % 100, (40, 50)),
        "dequantised": random_tensor(4, (40, 50)),
        "wider int": whole("i64", np.arange(50)),
        "rank 0": cast(np.array([2.0]), "f32"),
    }
    with pytest.raises(BaseMismatchError, match="100 % of the fine-tune's float bytes have no partner"):
        pack_of(base, tuned)
    pack = pack_of(base, tuned, allow_unrelated=True)
    alike = ("quantised", "rank 0", "wider int")  # of few elements, or with what zstd finds: coding them saves nothing
    assert kinds(pack) == {name: "stored" if name in alike else "exact" for name in tuned}
    assert restored(base, tuned, pack, applied) == tuned


def test_stored_tensors_across_chunks(pack_of: PackOf, applied: Applied) -> None:
    base = {"old": whole("u8", np.arange(CHUNK + 5)), "x": random_tensor(1, (CHUNK + 1,), "f16")}
    tuned = {"old": whole("u8", np.arange(CHUNK + 5) + 1), "x": moved(base["x"], 3), "y": random_tensor(2, (CHUNK + 3,), "f16")}
    pack = pack_of(base, tuned, exclude="x", allow_unrelated=True)
    assert kinds(pack) == {"old": "exact", "x": "exact", "y": "stored"}
    assert restored(base, tuned, pack, applied) == tuned


def test_unchanged_in_another_type(pack_of: PackOf, applied: Applied) -> None:
    base = {"w": random_tensor(1, (3000,), "bf16"), "rows": random_tensor(1, (30, 9), "bf16")}
    tuned = {"w": cast(base["w"].f64, "f32"), "rows": cast(base["rows"].f64[:20], "f32")}
    pack = pack_of(base, tuned)
    assert kinds(pack) == {"w": "delta", "rows": "shrunk"} and pack.stat().st_size < 1000
    assert restored(base, tuned, pack, applied) == tuned


# ------------------------------------------------------------------------------------------------------------ tied


def write_torch(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    path.mkdir()
    torch.save(dict(tensors), path / "pytorch_model.bin")
    (path / "config.json").write_text("{}\n")
    return path


def tied_pair(noise: float = 0.0) -> dict[str, torch.Tensor]:
    weight = torch.from_numpy(moved(random_tensor(1, (90, 20)), 2, noise).bits)
    return {"embed": weight, "lm_head": weight}


def untied(tied: Mapping[str, torch.Tensor], noise: float = 0.0) -> dict[str, torch.Tensor]:
    return {name: tensor + noise * number for number, (name, tensor) in enumerate(tied.items())}


def test_tied_fine_tune_of_a_tied_base(tmp_path: Path) -> None:
    base, tuned = write_torch(tmp_path / "base", tied_pair()), write_torch(tmp_path / "tuned", tied_pair(0.01))
    deltapack.compress(base, tuned, tmp_path / "pack.dpk")
    assert kinds(tmp_path / "pack.dpk") == {"embed": "delta", "lm_head": "alias"}
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    deltapack.verify(tmp_path / "pack.dpk", base)
    assert read_model(tmp_path / "out").keys() == {"embed"}
    header = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert b'"lm_head":"embed"' in header.replace(b" ", b"")
    with deltapack.open_pack(tmp_path / "pack.dpk") as pack:
        with pytest.raises(RecipeError):
            pack["lm_head"].to_sparse()
        with pytest.raises(RecipeError):
            pack["lm_head"].to_dense()


def test_untied_fine_tune_of_a_tied_base(tmp_path: Path) -> None:
    base = write_torch(tmp_path / "base", tied_pair())
    tuned = write_torch(tmp_path / "tuned", untied(tied_pair(), 0.1))
    deltapack.compress(base, tuned, tmp_path / "pack.dpk")
    assert kinds(tmp_path / "pack.dpk") == {"embed": "unchanged", "lm_head": "exact"}
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    result = read_model(tmp_path / "out")
    wanted = untied(tied_pair(), 0.1)
    assert {name: tensor.raw for name, tensor in result.items()} == {name: tensor.numpy().tobytes() for name, tensor in wanted.items()}


def test_tied_fine_tune_of_an_untied_base(tmp_path: Path) -> None:
    base = write_torch(tmp_path / "base", untied(tied_pair(), 0.1))
    tuned = write_torch(tmp_path / "tuned", tied_pair(0.01))
    deltapack.compress(base, tuned, tmp_path / "pack.dpk")
    assert kinds(tmp_path / "pack.dpk")["lm_head"] == "alias"
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    deltapack.verify(tmp_path / "pack.dpk", base)
    assert read_model(tmp_path / "out").keys() == {"embed"}
    head = {name: Tensor("f32", tensor.numpy()) for name, tensor in untied(tied_pair(), 0.1).items()}
    assert decode_by_spec(head, tmp_path / "pack.dpk") == read_model(tmp_path / "out")


def test_safetensors_with_a_declared_tie(tmp_path: Path) -> None:
    embed = random_tensor(1, (90, 20))
    write_file(tmp_path / "base.safetensors", {"embed.weight": embed}, {"lm_head.weight": "embed.weight"})
    write_file(tmp_path / "tuned.safetensors", {"lm_head.weight": moved(embed, 3)}, {"embed.weight": "lm_head.weight"})
    pack = tmp_path / "pack.dpk"
    deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", pack)
    assert kinds(pack) == {"embed.weight": "alias", "lm_head.weight": "delta"}
    deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors")
    assert read_file(tmp_path / "out.safetensors").keys() == {"lm_head.weight"}
    assert decode_by_spec({"embed.weight": embed}, pack) == read_file(tmp_path / "out.safetensors")


# ----------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_prefix_on_one_side(side: str, pack_of: PackOf, applied: Applied) -> None:
    plain = small_model()
    prefixed = {f"bert.{name}": tensor for name, tensor in plain.items()}
    base = prefixed if side == "base" else plain
    tuned = tuned_model(plain if side == "base" else prefixed) | {"head": random_tensor(4, (4, 4))}
    pack = pack_of(base, tuned)
    assert sorted(kinds(pack).values()) == ["delta", "delta", "delta", "stored", "unchanged"]
    restored(base, tuned, pack, applied)


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_tensors_stored_under_another_name_than_the_bases(side: str, pack_of: PackOf, applied: Applied) -> None:
    # Whatever is stored whole must not leave the base's tensor of the other name in the result.
    plain = small_model() | {"scale": random_tensor(4, (3,)), "table": whole("i32", np.arange(9))}
    prefixed = {f"bert.{name}": tensor for name, tensor in plain.items()}
    base = prefixed if side == "base" else plain
    tuned = tuned_model(plain if side == "base" else prefixed)
    name = "table" if side == "base" else "bert.table"
    tuned[name] = edited(tuned[name], 0, 7)
    pack = pack_of(base, tuned, exclude="bias")
    assert restored(base, tuned, pack, applied)[name] == tuned[name]
    assert "removed" not in kinds(pack).values()  # the stored entries say what they replace


def test_a_map(pack_of: PackOf, applied: Applied) -> None:
    base = small_model()
    tuned = {name.replace("layer.", "h.0.").replace("embed", "wte"): t for name, t in tuned_model(base).items()}
    maps = ((r"h\.0\.(.*)", r"layer.\1"), (r"wte\.weight", "embed.weight"))
    pack = pack_of(base, tuned, name_map=maps)
    assert kinds(pack) == {"h.0.bias": "delta", "h.0.weight": "delta", "positions": "unchanged", "wte.weight": "delta"}
    restored(base, tuned, pack, applied)
    assert sorted(kinds(pack_of(base, tuned, "plain", allow_unrelated=True)).values()).count("exact") == 3
    with pytest.raises(RecipeError):
        pack_of(base, tuned, "no match", name_map=(("nothing", "embed.weight"),))


def test_names_that_swap(pack_of: PackOf, applied: Applied) -> None:
    base = {"a": random_tensor(1, (900,)), "b": random_tensor(2, (900,)), "c": random_tensor(3, (900,))}
    tuned = {"a": moved(base["b"], 5), "b": moved(base["a"], 6), "c": moved(base["c"], 7)}
    pack = pack_of(base, tuned, name_map=(("a", "b"), ("b", "a")))
    assert set(kinds(pack).values()) == {"delta"}
    restored(base, tuned, pack, applied)
    stored = pack_of(base, tuned, "stored", name_map=(("a", "b"), ("b", "a")), exclude="b")
    assert kinds(stored) == {"a": "delta", "b": "exact", "c": "delta"}
    assert restored(base, tuned, stored, applied)["b"] == tuned["b"]
    # Base tensor `a` is not used, and its name is taken by a tensor that is matched with `b`: the match is given up.
    taken = pack_of({"a": base["a"], "b": base["b"]}, {"a": tuned["a"]}, "taken", name_map=(("a", "b"),))
    assert kinds(taken) == {"a": "exact", "b": "removed"}


def test_odd_names(pack_of: PackOf, applied: Applied) -> None:
    names = ("ä.weight", "日本", "a b", "x/../y", "..", "\u2028", "😀", "\ue000", "__metadata", "format", '"quoted"', "back\\slash")
    base = {name: random_tensor(len(name), (200,)) for name in names}
    restored(base, tuned := tuned_model(base), pack_of(base, tuned), applied)


# ------------------------------------------------------------------------------------------------------ side files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base and a fine-tuned folder with side files of every sort, and where a pack may go."""
    base = small_model()
    common = {"tokenizer.json": '{"vocab": 1}', "1_Pooling/config.json": "{}", "LICENSE": "free", "vocab.txt": "a\nb\n"}
    code = {"modeling_x.py": "print(1)"}
    write_folder(tmp_path / "base", base, common | {"config.json": '{"v": 10}', "gone.json": "{}"} | code)
    tuned = common | {"config.json": '{"v": 11}', "chat_template.jinja": "{{ x }}", "optimizer.pt": "junk", ".secret": "s"}
    write_folder(tmp_path / "tuned", tuned_model(base), tuned | {"modeling_y.py": "print(2)"})
    return tmp_path / "base", tmp_path / "tuned", tmp_path / "pack.dpk"


def test_side_files(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, tuned, pack = folders
    report = deltapack.compress(base, tuned, pack)
    deltapack.apply(base, pack, tmp_path / "out")
    wanted = {name: data for name, data in read_folder(tuned).items() if name not in ("optimizer.pt", ".secret", "modeling_y.py")}
    result = read_folder(tmp_path / "out")
    assert result.keys() == wanted.keys()
    assert {n: d for n, d in result.items() if n != "model.safetensors"} == {n: d for n, d in wanted.items() if n != "model.safetensors"}
    with deltapack.open_pack(pack) as opened:
        assert opened.index.files is not None
        assert {f.name for f in opened.index.files if f.blob is not None} == {"config.json", "chat_template.jinja"}
    for name in ("modeling_y.py", "optimizer.pt", ".secret"):
        assert any(name in note for note in report.notes)
    assert report.split["files"] > 0


def test_code_travels_when_asked_for_and_is_announced(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, tuned, pack = folders
    report = deltapack.compress(base, tuned, pack, include_code=True)
    assert any("modeling_y.py" in warning for warning in report.warnings)
    applied = deltapack.apply(base, pack, tmp_path / "out")
    assert (tmp_path / "out" / "modeling_y.py").read_text() == "print(2)"
    assert not (tmp_path / "out" / "modeling_x.py").exists()
    assert any("modeling_y.py" in note for note in applied.notes)


@pytest.mark.parametrize("change", ["other", "missing"])
def test_a_changed_side_file_of_the_base(folders: tuple[Path, Path, Path], tmp_path: Path, change: str) -> None:
    base, tuned, pack = folders
    deltapack.compress(base, tuned, pack)
    if change == "other":
        (base / "vocab.txt").write_text("a\nc\n")
    else:
        (base / "vocab.txt").unlink()
    for act in (deltapack.apply, lambda base, pack, out: deltapack.merge(base, [pack], out)):
        with pytest.raises(BaseMismatchError, match=r"vocab\.txt"):
            act(base, pack, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not leftovers(tmp_path)
    if change == "other":
        deltapack.apply(base, pack, tmp_path / "out", verify=False)
        assert (tmp_path / "out" / "vocab.txt").read_text() == "a\nc\n"


def test_config_names_the_type_of_a_cast_model(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_model())
    tuned = write_folder(tmp_path / "tuned", tuned_model(small_model()), {"config.json": '{"torch_dtype": "float32"}'})
    deltapack.compress(base, tuned, tmp_path / "pack.dpk", recipe=Recipe())
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out", dtype="bf16")
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "out" / "config.json").read_text()
