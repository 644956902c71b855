"""Fine-tunes that hold tensors fused, split, stacked or transposed start from the base's; what the values do not bear out does not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import Model, Tensor, cast, moved, random_tensor, read_model, whole, write_file

import deltapack
from deltapack.checkpoint import match_names, open_checkpoint
from deltapack.checkpoint.families import find_families, siblings_of, without_numbers
from deltapack.checkpoint.names import NameMatch
from deltapack.checkpoint.tensors import TensorInfo
from deltapack.dtypes import BY_NAME
from deltapack.format.reader import PackReader
from deltapack.packing.proposing import propose_arrangements
from deltapack.packs.inspecting import inspect_pack

EXPERTS, INNER, WIDTH = 3, 8, 16


def joined(*parts: Tensor, axis: int = 0) -> Tensor:
    """Tensors joined."""
    return Tensor(parts[0].dtype, np.concatenate([part.bits for part in parts], axis))


def stacked(*parts: Tensor) -> Tensor:
    """Tensors stacked."""
    return Tensor(parts[0].dtype, np.stack([part.bits for part in parts]))


def turned(tensor: Tensor) -> Tensor:
    """The last two dimensions exchanged."""
    return Tensor(tensor.dtype, np.ascontiguousarray(tensor.bits.swapaxes(-1, -2)))


def tuned(model: Mapping[str, Tensor]) -> Model:
    """A fine-tune in the same layout."""
    return {name: moved(tensor, 100 + number, 0.01) for number, (name, tensor) in enumerate(model.items())}


def matched(tmp_path: Path, base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]) -> NameMatch:
    """What compress matches."""
    paths = [write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("base", base), ("tuned", finetuned))]
    with open_checkpoint(paths[0]) as one, open_checkpoint(paths[1]) as other:
        return propose_arrangements(one, other, match_names(one.tensors, other.tensors))[1]


def check_both_ways(tmp_path: Path, base: Model, layout: Model) -> None:
    """Each of two layouts of one model is packed against the other: every tensor has a partner, and comes back in its own layout."""
    one, two = (write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("one", base), ("two", layout)))
    for base_path, tuned_path, wanted in ((one, two, layout), (two, one, base)):
        out = tmp_path / f"{tuned_path.stem}.dpk"
        recipe = deltapack.Recipe(drop_rate=0.0, values="int8")
        report = deltapack.compress(base_path, tuned_path, out, recipe=recipe, force=True)
        assert report.warnings == []
        deltapack.verify(out, base_path)
        deltapack.apply(base_path, out, tmp_path / "out.safetensors", force=True)
        restored = read_model(tmp_path / "out.safetensors")
        assert restored.keys() == wanted.keys()
        assert all(restored[name].shape == wanted[name].shape for name in wanted)
        assert max(float(np.abs(restored[name].f64 - wanted[name].f64).max()) for name in wanted) < 0.004
        with PackReader(out) as reader:
            assert reader.index.required == ("arranged",)
            assert all(entry.base is not None for entry in reader.index.entries)


def experts(names: tuple[str, str, str], prefix: str = "model.layers.0.mlp") -> Model:
    """Separate experts."""
    shapes = ((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER))
    made = itertools.product(range(EXPERTS), zip(names, shapes, strict=True))
    return {f"{prefix}.experts.{e}.{n}.weight": random_tensor(7 * e + i, shape, "f32") for i, (e, (n, shape)) in enumerate(made)}


def fused(separate: Model, names: tuple[str, str, str], prefix: str, *, lying: bool = False) -> Model:
    """The same experts as transformers 5 holds them, or the other way round."""
    gates, ups, downs = ([separate[f"{prefix}.experts.{e}.{n}.weight"] for e in range(EXPERTS)] for n in names)
    both = stacked(*(joined(gate, up) for gate, up in zip(gates, ups, strict=True)))
    down = stacked(*downs)
    return {"gate_up_proj": turned(both) if lying else both, "down_proj": turned(down) if lying else down}


QWEN, MIXTRAL = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("names", [QWEN, MIXTRAL])
def test_experts(tmp_path: Path, names: tuple[str, str, str], lying: bool) -> None:
    """Stacked, joined, transposed, under the names of Qwen and of Mixtral."""
    base, prefix = experts(names), "model.layers.0.mlp"
    layout = fused(tuned(base), names, prefix, lying=lying)
    check_both_ways(tmp_path, base, {f"{prefix}.experts.{name}": tensor for name, tensor in layout.items()})


def test_experts_of_a_module_with_another_name(tmp_path: Path) -> None:
    """Mixtral's block_sparse_moe, which transformers 5 calls mlp, with the router beside the experts."""
    base: Model = {}
    layout: Model = {}
    for layer in range(2):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        own = experts(MIXTRAL, old) | {f"{old}.gate.weight": random_tensor(90 + layer, (EXPERTS, WIDTH))}
        base |= own
        changed = tuned(own)
        layout |= {f"{new}.experts.{name}": tensor for name, tensor in fused(changed, MIXTRAL, old).items()}
        layout[f"{new}.gate.weight"] = changed[f"{old}.gate.weight"]
    check_both_ways(tmp_path, base, layout)


@pytest.mark.parametrize("order", list(itertools.permutations("qkv")))
def test_order_of_q_k_v_is_read_off_the_values(tmp_path: Path, order: tuple[str, ...]) -> None:
    """All are square; with biases, which are in the same order though they are nothing in the base."""
    base = {f"h.0.attn.{n}_proj.weight": random_tensor(i, (WIDTH, WIDTH)) for i, n in enumerate("qkv")}
    base |= {f"h.0.attn.{n}_proj.bias": cast(np.zeros(WIDTH), "f32") for n in "qkv"}
    changed = tuned(base)
    layout = {f"h.0.attn.qkv.{kind}": joined(*(changed[f"h.0.attn.{n}_proj.{kind}"] for n in order)) for kind in ("weight", "bias")}
    check_both_ways(tmp_path, base, layout)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("order", ["qkv", "kvq"])
def test_heads_that_take_turns(tmp_path: Path, groups: int, order: str) -> None:
    """Each head, or group of heads, with its q, k and v, as GPT-NeoX and InternLM2 hold them; of other sizes for q than for k and v."""
    rows = {"q": 16 * groups, "k": 8 * groups, "v": 8 * groups}
    base = {f"attn.{n}_proj.weight": random_tensor(i, (count, WIDTH)) for i, (n, count) in enumerate(rows.items())}
    base |= {f"attn.{n}_proj.bias": cast(np.zeros(count), "f32") for n, count in rows.items()}
    changed = tuned(base)

    def woven(kind: str) -> Tensor:
        parts = [changed[f"attn.{n}_proj.{kind}"].bits for n in order]
        blocks = [np.split(part, groups) for part in parts]
        return Tensor("f32", np.concatenate([block[group] for group in range(groups) for block in blocks]))

    check_both_ways(tmp_path, base, {f"attn.query_key_value.{kind}": woven(kind) for kind in ("weight", "bias")})


def test_in_proj_of_multihead_attention(tmp_path: Path) -> None:
    base = {
        f"attn.{n}_proj.{kind}": random_tensor(i, (WIDTH, WIDTH) if kind == "weight" else (WIDTH,)) for i, (n, kind) in enumerate(_qkv())
    }
    changed = tuned(base)
    check_both_ways(
        tmp_path, base, {f"attn.in_proj_{k}": joined(*(changed[f"attn.{n}_proj.{k}"] for n in "qkv")) for k in ("weight", "bias")}
    )


def _qkv() -> list[tuple[str, str]]:
    return [(name, kind) for name in "qkv" for kind in ("weight", "bias")]


def test_gate_and_up_of_a_dense_layer_joined_along_columns(tmp_path: Path) -> None:
    """Phi-3's gate_up_proj; and as a Conv1D would hold it."""
    base = {f"mlp.{n}_proj.weight": random_tensor(i, (INNER, WIDTH)) for i, n in enumerate(("gate", "up"))}
    both = joined(*tuned(base).values())
    check_both_ways(tmp_path, base, {"mlp.gate_up_proj.weight": both})
    check_both_ways(tmp_path, base, {"mlp.gate_up_proj.weight": turned(both)})


def test_matrices_of_the_same_name_that_lie_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's Conv1D; a square one is told by its values, and one that lies as in the base stays."""
    base = {
        "c_attn.weight": random_tensor(1, (WIDTH, 3 * WIDTH)),
        "c_proj.weight": random_tensor(2, (WIDTH, WIDTH)),
        "same.weight": random_tensor(3, (WIDTH, WIDTH)),
    }
    changed = tuned(base)
    layout = changed | {name: turned(changed[name]) for name in ("c_attn.weight", "c_proj.weight")}
    check_both_ways(tmp_path, base, layout)
    found = matched(tmp_path, base, layout)
    assert [note.split("'")[1] for note in found.notes] == ["c_attn.weight", "c_proj.weight"]


def test_other_types_are_converted(tmp_path: Path) -> None:
    """The base's bf16 parts become a fused f32 tensor."""
    base = {f"a.{n}_proj.weight": random_tensor(i, (WIDTH, WIDTH), "bf16") for i, n in enumerate("qkv")}
    layout = {"a.qkv.weight": joined(*(moved(tensor, 9, 0.01, "f32") for tensor in base.values()))}
    check_both_ways(tmp_path, base, layout)


def test_values_that_do_not_fit_are_not_matched(tmp_path: Path) -> None:
    """Names and shapes alone match nothing, and it is said."""
    base = {f"a.{n}_proj.weight": random_tensor(i, (WIDTH, WIDTH)) for i, n in enumerate("qkv")}
    found = matched(tmp_path, base, {"a.qkv.weight": random_tensor(50, (3 * WIDTH, WIDTH))})
    assert found.base_of == {} and found.only_finetuned == ("a.qkv.weight",) and len(found.only_base) == 3
    assert any("fit in no way" in note for note in found.notes)


def test_two_orders_that_fit_alike_are_not_guessed(tmp_path: Path) -> None:
    """Of equal parts nobody knows the order."""
    same = random_tensor(1, (WIDTH, WIDTH))
    base = {"a.gate_proj.weight": same, "a.up_proj.weight": same}
    found = matched(tmp_path, base, {"a.gate_up_proj.weight": joined(moved(same, 2), moved(same, 3))})
    assert found.base_of == {} and any("fit in no way" in note for note in found.notes)


@pytest.mark.parametrize("anew", [0, 5])
def test_a_layer_made_anew_has_the_layout_of_the_others(tmp_path: Path, anew: int) -> None:
    """It is kept whole and named, whether or not it is one of the layers by which the layout is chosen."""
    base = {f"l.{layer}.{n}_proj.weight": random_tensor(10 * layer + i, (WIDTH, WIDTH)) for layer in range(8) for i, n in enumerate("qkv")}
    changed = tuned(base)
    layout = {f"l.{layer}.qkv.weight": joined(*(changed[f"l.{layer}.{n}_proj.weight"] for n in "qkv")) for layer in range(8)}
    name = f"l.{anew}.qkv.weight"
    layout[name] = random_tensor(99, (3 * WIDTH, WIDTH))
    found = matched(tmp_path, base, layout)
    assert sorted(found.base_of) == [f"l.{layer}.qkv.weight" for layer in range(8)] and found.only_base == ()
    assert found.unlike == (name,) and sum(f"{name!r} is kept whole" in note for note in found.notes) == 1
    report = deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "out.dpk")
    assert report.kinds == {"delta": 7, "exact": 1}
    deltapack.apply(tmp_path / "base.safetensors", tmp_path / "out.dpk", tmp_path / "out.safetensors")
    assert np.array_equal(read_model(tmp_path / "out.safetensors")[name].bits, layout[name].bits)


def test_packs_of_one_layout_merge_though_one_has_a_layer_made_anew(tmp_path: Path) -> None:
    """In both directions; of a split one, only what was made anew is kept whole."""
    parts = {f"l.{layer}.{n}_proj.weight": random_tensor(10 * layer + i, (WIDTH, WIDTH)) for layer in range(4) for i, n in enumerate("qkv")}

    def fuse(model: Mapping[str, Tensor]) -> Model:
        return {f"l.{layer}.qkv.weight": joined(*(model[f"l.{layer}.{n}_proj.weight"] for n in "qkv")) for layer in range(4)}

    anew = tuned(parts) | {"l.3.v_proj.weight": random_tensor(99, (WIDTH, WIDTH))}
    whole_anew = anew | {f"l.3.{n}_proj.weight": random_tensor(200 + i, (WIDTH, WIDTH)) for i, n in enumerate("qkv")}
    for base, one, two, exact in ((parts, fuse(tuned(parts)), fuse(whole_anew), 1), (fuse(parts), tuned(parts), anew, 1)):
        paths = [write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("base", base), ("one", one), ("two", two))]
        packs = [tmp_path / f"{path.stem}.dpk" for path in paths[1:]]
        reports = [deltapack.compress(paths[0], path, pack, force=True) for path, pack in zip(paths[1:], packs, strict=True)]
        assert [report.kinds.get("exact", 0) for report in reports] == [0, exact]
        deltapack.merge(paths[0], packs, tmp_path / "merged.safetensors", force=True)
        assert read_model(tmp_path / "merged.safetensors").keys() == one.keys()


@pytest.mark.parametrize("rows", [WIDTH, 2 * WIDTH])
def test_a_matrix_made_anew_lies_as_others_of_its_kind(tmp_path: Path, rows: int) -> None:
    """Turned round in all layers but for a tensor of another kind, of which nothing is known."""
    base = {f"l.{layer}.{n}.weight": random_tensor(10 * layer + i, (rows, WIDTH)) for layer in range(3) for i, n in enumerate("ab")}
    layout = {name: turned(tensor) for name, tensor in tuned(base).items()}
    layout["l.1.a.weight"] = random_tensor(99, (WIDTH, rows))
    layout |= {f"l.{layer}.b.weight": random_tensor(200 + layer, (WIDTH, rows)) for layer in range(3)}
    paths = [write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("base", base), ("tuned", layout))]
    with open_checkpoint(paths[0]) as one, open_checkpoint(paths[1]) as other:
        seen, found = propose_arrangements(one, other, match_names(one.tensors, other.tensors))
        arranged = {name for name in seen.tensors if seen.tensors[name].arranged is not None}
    assert arranged == {f"l.{layer}.a.weight" for layer in range(3)} and found.unlike == ("l.1.a.weight",)


def test_rows_of_nan_do_not_hide_the_layout(tmp_path: Path) -> None:
    """Such as unused rows that both have; what is not finite says nothing."""
    base = {f"a.{n}_proj.weight": random_tensor(i, (WIDTH, WIDTH)) for i, n in enumerate("qkv")}
    changed = tuned(base)
    for name in base:
        for model in (base, changed):
            model[name] = cast(np.where(np.arange(WIDTH)[:, None] >= WIDTH - 2, np.nan, model[name].f64), "f32")
    found = matched(tmp_path, base, {"a.qkv.weight": joined(*changed.values())})
    assert found.base_of == {"a.qkv.weight": "a.qkv.weight"} and found.only_base == () and found.unlike == ()


@pytest.mark.parametrize("size", [1e100, 1e200, 1e-100, 1e-200])
def test_square_matrices_of_very_large_or_small_values(size: float, tmp_path: Path) -> None:
    """The product of their lengths is beyond f64."""
    base, tuned = (np.random.default_rng(seed).random((8, 8)) * size for seed in (1, 2))
    for name, values in (("base", base), ("tuned", tuned)):
        write_file(tmp_path / f"{name}.safetensors", {"w": Tensor("f64", values.view(np.uint64))})
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "x.dpk"
    deltapack.compress(*paths, recipe=deltapack.Recipe(exact=True), allow_unrelated=True)
    deltapack.apply(paths[0], paths[2], tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == paths[1].read_bytes()


def test_a_tensor_of_the_base_is_not_hidden(tmp_path: Path) -> None:
    """Where the base has another tensor of the fused one's name, nothing is arranged: nobody would say what became of that."""
    base = {f"a.{n}_proj.weight": random_tensor(i, (WIDTH, WIDTH)) for i, n in enumerate("qkv")} | {
        "a.qkv.weight": random_tensor(8, (5, 2))
    }
    layout = {"a.qkv.weight": joined(*tuned({name: base[name] for name in sorted(base) if "_proj" in name}).values())}
    found = matched(tmp_path, base, layout)
    assert any("the base has another tensor of that name" in note for note in found.notes)


@pytest.mark.parametrize("dtype", ["f8_e4m3fn", "i32"])
def test_codes_are_left_alone(tmp_path: Path, dtype: str) -> None:
    """8-bit floats may have scales elsewhere, and integers are no weights."""

    def codes(seed: int) -> Tensor:
        return (
            random_tensor(seed, (WIDTH, WIDTH), dtype)
            if dtype[0] == "f"
            else whole("i32", np.arange(seed, seed + WIDTH * WIDTH).reshape(WIDTH, WIDTH))
        )

    base = {f"a.{n}_proj.weight": codes(i) for i, n in enumerate("qkv")}
    assert matched(tmp_path, base, {"a.qkv.weight": joined(*base.values())}).base_of == {}


def infos(names: str, shape: tuple[int, ...] = (2, 2)) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, BY_NAME["f32"], shape, "") for name in names.split()}


@pytest.mark.parametrize(
    ("fused_names", "parts", "expected"),
    [
        ("a.qkv.weight", "a.q_proj.weight a.k_proj.weight a.v_proj.weight", [("a.qkv.weight", 3, False)]),
        ("a.qkv.weight", "a.q_proj.weight a.k_proj.weight", []),
        ("a.qkv.bias", "a.q_proj.weight a.k_proj.weight a.v_proj.weight", []),
        ("a.qkv.weight", "b.q_proj.weight b.k_proj.weight b.v_proj.weight", [("a.qkv.weight", 3, False)]),
        ("a.qkv.weight", "b.q.weight b.k.weight b.v.weight c.q.weight c.k.weight c.v.weight", []),
        (
            "x.0.down_proj x.1.down_proj",
            "x.0.0.w2.weight x.0.1.w2.weight x.1.0.w2.weight",
            [("x.0.down_proj", 2, True), ("x.1.down_proj", 1, True)],
        ),
        ("x.down_proj", "x.1.w2.weight x.2.w2.weight", []),
        ("x.down_proj", "x.w2.weight", []),
        ("x.².down_proj", "x.².0.w2.weight x.².².w2.weight", [("x.².down_proj", 1, True)]),
    ],
)
def test_families(fused_names: str, parts: str, expected: list[tuple[str, int, bool]]) -> None:
    """By names alone: all parts there, of one kind, experts counted from 0, and one module only that may be meant."""
    found = find_families(infos(fused_names), infos(parts))
    assert [(family.fused, sum(map(len, family.parts)), family.stacked) for family in found] == expected


def test_siblings() -> None:
    """Tensors beside the experts have the new name of the module, if the other side has one of this name."""
    parts = infos("m.0.old.experts.0.w2.weight m.0.old.gate.weight m.0.old.other m.1.old.gate.weight")
    names = infos("m.0.mlp.experts.down_proj m.0.mlp.gate.weight m.1.mlp.gate.weight")
    assert siblings_of(find_families(names, parts), names, parts) == {"m.0.old.gate.weight": "m.0.mlp.gate.weight"}
    assert without_numbers("m.0.x.12") == ("m.#.x.#", (0, 12))
    assert without_numbers("m.².x.٣") == ("m.².x.٣", ())  # digits, but no numbers


def test_equal_models_in_two_layouts_are_equal(tmp_path: Path) -> None:
    """It is said, in both directions, and nothing is called removed."""
    base = {f"a.{n}_proj.weight": random_tensor(i, (WIDTH, WIDTH)) for i, n in enumerate("qkv")} | {"o.weight": random_tensor(9, (8, 8))}
    layout = {"a.qkv.weight": joined(*(base[f"a.{n}_proj.weight"] for n in "qkv")), "o.weight": base["o.weight"]}
    one, two = (write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("one", base), ("two", layout)))
    for number, (of, tuned_path) in enumerate(((one, two), (two, one))):
        report = deltapack.compress(of, tuned_path, tmp_path / f"{number}.dpk")
        assert report.kinds == {"unchanged": 2 if number == 0 else 4} == inspect_pack(report.pack).kinds
        assert len(report.warnings) == 1 and "are equal: every tensor has the same bits, in another layout" in report.warnings[0]
    lacking = write_file(tmp_path / "lacking.safetensors", {"a.qkv.weight": layout["a.qkv.weight"]})
    assert not any("are equal" in warning for warning in deltapack.compress(one, lacking, tmp_path / "lacking.dpk").warnings)


def test_the_report_says_what_was_matched(tmp_path: Path) -> None:
    """Once for all layers; the preview says it tensor by tensor."""
    base = experts(QWEN) | {"norm.weight": cast(np.ones(WIDTH), "f32")}
    prefix = "model.layers.0.mlp"
    layout: Any = {f"{prefix}.experts.{n}": t for n, t in fused(tuned(base), QWEN, prefix).items()} | {"norm.weight": base["norm.weight"]}
    one, two = (write_file(tmp_path / f"{name}.safetensors", model) for name, model in (("one", base), ("two", layout)))
    report = deltapack.compress(one, two, tmp_path / "out.dpk")
    assert report.kinds == deltapack.preview_compress(one, two).kinds == {"delta": 2, "unchanged": 1}
    assert sum("was matched with the base's" in note for note in report.notes) == 2
    assert not any("removed" in note for note in report.notes)
    rows = {row.name: row for row in deltapack.preview_compress(one, two).tensors}
    assert rows[f"{prefix}.experts.gate_up_proj"].base_name == "6 tensors"
    shown = {tensor.name: tensor for tensor in inspect_pack(tmp_path / "out.dpk").tensors}
    assert len(shown[f"{prefix}.experts.gate_up_proj"].base_parts) == 6 and shown["norm.weight"].base_parts == ()


def test_one_piece_in_the_place_of_another_is_not_lost_in_the_mean(tmp_path: Path) -> None:
    """Two of eight experts are exchanged: the tensor has their layout, but is kept whole, and comes back."""
    base = {f"mlp.experts.{e}.{n}_proj.weight": random_tensor(10 * e + len(n), (32, 48), "f32") for e in range(8) for n in ("gate", "up")}

    def fused(order: Sequence[int]) -> Tensor:
        rows = [np.concatenate([moved(base[f"mlp.experts.{e}.{n}_proj.weight"], e, 1e-3).bits for n in ("gate", "up")]) for e in order]
        return Tensor("f32", np.stack(rows))

    right, wrong = fused(range(8)), fused([0, 1, 5, 3, 4, 2, 6, 7])
    name = "mlp.experts.gate_up_proj"
    path = write_file(tmp_path / "base.safetensors", base)
    for what, tuned, kind in (("right", right, "delta"), ("wrong", wrong, "exact")):
        out = tmp_path / f"{what}.dpk"
        report = deltapack.compress(path, write_file(tmp_path / f"{what}.safetensors", {name: tuned}), out, allow_unrelated=True)
        assert report.kinds[kind] == 1 and any("kept whole" in note for note in report.notes) is (kind == "exact")
        if kind == "exact":
            deltapack.apply(path, out, tmp_path / "out.safetensors")
            assert read_model(tmp_path / "out.safetensors")[name] == wrong
