"""Packs whose base tensors are made of others: every consumer gives the bits of the reference decoder, or says by name why it cannot."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.builders import (
    CHUNK,
    Model,
    Tensor,
    decode_by_spec,
    moved,
    random_tensor,
    read_folder,
    read_model,
    reference_decoder,
    write_file,
)
from support.laws import examples
from vectors.arranged import arrange, few, piece
from vectors.assemble import Json, Pack
from vectors.valid import floats

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.dtypes import BY_NAME
from deltapack.errors import BaseMismatchError, MergeConflictError
from deltapack.format.reader import PackReader

EXPERTS, INNER, WIDTH = 3, 24, 40


def separate(seed: int = 0) -> Model:
    """Experts one by one, and something beside them."""
    made = itertools.product(range(EXPERTS), ("gate", "up"))
    base = {f"mlp.experts.{e}.{n}_proj.weight": random_tensor(seed + i, (INNER, WIDTH), "bf16") for i, (e, n) in enumerate(made)}
    return base | {
        "mlp.experts.qkv.weight": random_tensor(90, (WIDTH, 2 * WIDTH), "bf16"),
        "norm.weight": random_tensor(91, (WIDTH,), "bf16"),
    }


def together(model: Mapping[str, Tensor], seed: int) -> Model:
    """A fine-tune with the experts fused, and a matrix that lies the other way round."""
    tuned = {name: moved(tensor, seed + i, 0.01) for i, (name, tensor) in enumerate(model.items())}
    rows = [tuned[f"mlp.experts.{e}.{n}_proj.weight"].bits for e in range(EXPERTS) for n in ("gate", "up")]
    fused = np.concatenate(rows).reshape(EXPERTS, 2 * INNER, WIDTH)
    turned = np.ascontiguousarray(tuned["mlp.experts.qkv.weight"].bits.T)
    return {
        "mlp.experts.gate_up_proj": Tensor("bf16", fused),
        "mlp.experts.qkv.weight": Tensor("bf16", turned),
        "norm.weight": tuned["norm.weight"],
    }


@pytest.fixture
def packs(tmp_path: Path) -> list[Path]:
    """Two packs of one base."""
    write_file(tmp_path / "base.safetensors", separate())
    out = []
    for seed, values in ((100, "int4"), (200, "int8")):
        tuned = write_file(tmp_path / f"{seed}.safetensors", together(separate(), seed))
        recipe = deltapack.Recipe(values=values, drop_rate=0.5)
        deltapack.compress(tmp_path / "base.safetensors", tuned, tmp_path / f"{seed}.dpk", recipe=recipe)
        out.append(tmp_path / f"{seed}.dpk")
        with PackReader(out[-1]) as reader:
            assert reader.index.pieces == {name for name in separate() if name != "norm.weight"}
    return out


@st.composite
def cases(draw: st.DrawFn) -> Pack:
    """A pack of one tensor that is made of random boxes."""
    rank = draw(st.integers(1, 3))
    grid = [draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)) for _ in range(rank)]
    dtype = draw(st.sampled_from(["bf16", "f32", "f8_e5m2"]))
    pack, pieces = Pack(), list[Json]()
    for number, cell in enumerate(itertools.product(*grid)):
        turned = rank >= 2 and draw(st.booleans())
        dims = [*cell[:-2], *cell[:-3:-1]] if turned else list(cell)
        while len(dims) > 1 + turned and dims[0] == 1 and draw(st.booleans()):
            del dims[0]
        room = [draw(st.integers(0, 2)) for _ in dims]
        start = [draw(st.integers(0, free)) for free in room]
        name = f"t{number}" if number or draw(st.booleans()) else "w"  # which the result may have as well
        held = floats(dtype, tuple(size + free for size, free in zip(dims, room, strict=True)), number)
        pack.base[name] = held
        if name != "w":
            pack.removed(name, held)
        pieces.append(piece(name, *start, turned=turned))
    tensors = dict(pack.base)
    made = arrange(grid, pieces, tensors)
    return pack.patched("w", made, few(made.numel)).made_of(grid, pieces, hidden=tensors.get("w"))


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_package_and_reference_decoder_agree(tmp_path: Path, pack: Pack) -> None:
    """On what the maker of the vectors works out by itself, element by element."""
    path, header, data = tmp_path / "w.dpk", dict[str, Any](), b""
    path.write_bytes(pack.build())
    for name, tensor in pack.base.items():
        offsets = [len(data), len(data) + len(tensor.data)]
        header[name] = {"dtype": BY_NAME[tensor.dtype].safetensors, "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.data
    text = str(header).replace("'", '"').encode()
    (tmp_path / "base.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    deltapack.apply(tmp_path / "base.safetensors", path, tmp_path / "out.safetensors", force=True)
    wanted = {name: (tensor.dtype, tensor.shape, tensor.data) for name, tensor in pack.result.items()}
    given_base = {name: (tensor.dtype, tensor.shape, tensor.data) for name, tensor in pack.base.items()}
    assert {n: (t.dtype, t.shape, t.raw) for n, t in read_model(tmp_path / "out.safetensors").items()} == wanted
    assert reference_decoder().restore(path, given_base) == wanted


@pytest.mark.parametrize("options", [{}, {"device": "cpu", "backend": "torch"}, {"workers": 3}])
def test_apply(tmp_path: Path, packs: list[Path], options: dict[str, Any]) -> None:
    """On the host and by the engine of a device."""
    deltapack.apply(tmp_path / "base.safetensors", packs[0], tmp_path / "out.safetensors", **options)
    found = read_model(tmp_path / "out.safetensors")
    assert found == decode_by_spec(separate(), packs[0])
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in together(separate(), 0).items()}
    assert deltapack.verify(packs[0], tmp_path / "base.safetensors").base_tensors == 3


def test_weights_and_dtypes(tmp_path: Path, packs: list[Path]) -> None:
    """With weight 0 the result is the base in the fine-tune's layout."""
    deltapack.apply(tmp_path / "base.safetensors", packs[0], tmp_path / "out.safetensors", weight=0.0, dtype="f32")
    found, base = read_model(tmp_path / "out.safetensors"), separate()
    assert (found["mlp.experts.gate_up_proj"].f64[1, INNER:] == base["mlp.experts.1.up_proj.weight"].f64).all()
    assert (found["mlp.experts.qkv.weight"].f64 == base["mlp.experts.qkv.weight"].f64.T).all()


def test_unchanged_tensors_are_copied_in_their_new_layout(tmp_path: Path) -> None:
    """No byte range of the base is the tensor's, though nothing is added to it."""
    base = separate()
    tuned = together(base, 1) | {
        "mlp.experts.qkv.weight": Tensor("bf16", np.ascontiguousarray(base["mlp.experts.qkv.weight"].bits.T)),
    }
    one, two = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    report = deltapack.compress(one, two, tmp_path / "out.dpk")
    assert report.kinds["unchanged"] == 1
    for verify in (True, False):
        deltapack.apply(one, tmp_path / "out.dpk", tmp_path / "out.safetensors", verify=verify, force=True)
        assert read_model(tmp_path / "out.safetensors")["mlp.experts.qkv.weight"] == tuned["mlp.experts.qkv.weight"]


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_merges(tmp_path: Path, packs: list[Path], method: str) -> None:
    """Into a checkpoint, and into a pack that restores the same; sums as the reference decoder adds them up."""
    base, weights = tmp_path / "base.safetensors", [0.5, -0.25]
    deltapack.merge(base, packs, tmp_path / "merged.safetensors", weights=weights, method=method)
    deltapack.merge(base, packs, tmp_path / "merged.dpk", weights=weights, method=method)
    deltapack.verify(tmp_path / "merged.dpk", base)
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "again.safetensors")
    merged = read_model(tmp_path / "merged.safetensors")
    assert read_model(tmp_path / "again.safetensors") == merged
    with PackReader(tmp_path / "merged.dpk") as reader, PackReader(packs[0]) as first:
        assert reader.index.required == ("arranged",) and reader.index.base_fingerprint == first.index.base_fingerprint
    if method == "linear":
        given_base = {name: (tensor.dtype, tensor.shape, tensor.raw) for name, tensor in separate().items()}
        wanted = reference_decoder().restore_several(packs, given_base, weights=weights)
        assert {name: (t.dtype, t.shape, t.raw) for name, t in merged.items()} == wanted


def test_packs_of_two_layouts_are_not_merged(tmp_path: Path, packs: list[Path]) -> None:
    """One has the experts fused, the other has not: a sum would hold both."""
    base = separate()
    tuned = write_file(tmp_path / "apart.safetensors", {name: moved(tensor, 7) for name, tensor in base.items()})
    deltapack.compress(tmp_path / "base.safetensors", tuned, tmp_path / "apart.dpk")
    for order in ([packs[0], tmp_path / "apart.dpk"], [tmp_path / "apart.dpk", packs[0]]):
        with pytest.raises(MergeConflictError, match="another pack does not, or otherwise") as caught:
            deltapack.merge(tmp_path / "base.safetensors", order, tmp_path / "out.safetensors")
        assert caught.value.tensor == "mlp.experts.gate_up_proj"
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("mlp.experts.1.up_proj.weight", None, "R11"),
        ("mlp.experts.1.up_proj.weight", random_tensor(1, (INNER, WIDTH), "f16"), "R11"),
        ("mlp.experts.1.up_proj.weight", random_tensor(1, (INNER, WIDTH - 1), "bf16"), "R11"),
        ("mlp.experts.1.up_proj.weight", random_tensor(1, (INNER, WIDTH, 1), "bf16"), "R11"),
        ("mlp.experts.1.up_proj.weight", random_tensor(1, (INNER, WIDTH), "bf16"), "R12"),
        ("mlp.experts.qkv.weight", random_tensor(1, (WIDTH, 2 * WIDTH), "bf16"), "R12"),
    ],
)
def test_another_base_is_refused(tmp_path: Path, packs: list[Path], name: str, change: Tensor | None, rule: str) -> None:
    model = separate() | ({name: change} if change is not None else {})
    if change is None:
        del model[name]
    other = write_file(tmp_path / "other.safetensors", model)
    for check in (lambda: deltapack.verify(packs[0], other), lambda: deltapack.apply(other, packs[0], tmp_path / "o.safetensors")):
        with pytest.raises(BaseMismatchError) as caught:
            check()
        assert caught.value.rule == rule
    assert not (tmp_path / "o.safetensors").exists()


def test_shards_stay_where_the_first_piece_is(tmp_path: Path, packs: list[Path]) -> None:
    """A fused tensor goes into the shard of its first part."""
    base, folder = separate(), tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = sorted(base)
    for number, part in enumerate((names[:4], names[4:]), 1):
        write_file(folder / f"model-0000{number}-of-00002.safetensors", {name: base[name] for name in part})
    entries = ", ".join(f'"{n}": "model-0000{1 + (n not in names[:4])}-of-00002.safetensors"' for n in names)
    (folder / "model.safetensors.index.json").write_text(f'{{"metadata": {{}}, "weight_map": {{{entries}}}}}')
    deltapack.apply(folder, packs[0], tmp_path / "out")
    assert "model-00001-of-00002.safetensors" in read_folder(tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as restored:
        shards = {name: info.shard[:11] for name, info in restored.tensors.items()}
    assert shards == {"mlp.experts.gate_up_proj": "model-00001", "mlp.experts.qkv.weight": "model-00002", "norm.weight": "model-00002"}


def states(model: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """Tensors in memory."""
    return {name: torch.from_numpy(tensor.bits.view(np.int16).copy()).view(torch.bfloat16) for name, tensor in model.items()}


def in_layout_of_the_fine_tune() -> Model:
    """The base as a model of the fine-tune's layout holds it."""
    base = separate()
    rows = np.concatenate([base[f"mlp.experts.{e}.{n}_proj.weight"].bits for e in range(EXPERTS) for n in ("gate", "up")])
    turned = np.ascontiguousarray(base["mlp.experts.qkv.weight"].bits.T)
    return {
        "mlp.experts.gate_up_proj": Tensor("bf16", rows.reshape(EXPERTS, 2 * INNER, WIDTH)),
        "mlp.experts.qkv.weight": Tensor("bf16", turned),
        "norm.weight": base["norm.weight"],
    }


def test_tensors_in_memory(packs: list[Path]) -> None:
    """A state of the fine-tune's layout takes the pack; one of the base's layout is told what it lacks, and stays as it was."""
    state = states(in_layout_of_the_fine_tune())
    with deltapack.open_pack(packs[0]) as pack:
        pack.add_to(state)
        found = {name: (tuple(tensor.shape), tensor.view(torch.int16).numpy().tobytes()) for name, tensor in state.items()}
        assert found == {name: (tensor.shape, tensor.raw) for name, tensor in decode_by_spec(separate(), packs[0]).items()}
        other = states(separate())
        with pytest.raises(BaseMismatchError, match="is made of"):
            pack.add_to(other)
    assert all(torch.equal(other[name].view(torch.int16), tensor.view(torch.int16)) for name, tensor in states(separate()).items())


def test_a_square_matrix_that_lies_the_other_way_round_is_told_by_its_digest(tmp_path: Path) -> None:
    """Also by those who check nothing else: shapes cannot tell."""
    base = {"c.weight": random_tensor(1, (WIDTH, WIDTH), "bf16"), "d.weight": random_tensor(2, (WIDTH, 2 * WIDTH), "bf16")}
    tuned = {name: Tensor("bf16", np.ascontiguousarray(moved(tensor, 3).bits.T)) for name, tensor in base.items()}
    one, two = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(one, two, tmp_path / "out.dpk")
    state = states({"c.weight": base["c.weight"], "d.weight": Tensor("bf16", np.ascontiguousarray(base["d.weight"].bits.T))})
    with deltapack.open_pack(tmp_path / "out.dpk") as pack, pytest.raises(BaseMismatchError, match="R12"):
        pack.add_to(state, verify=False)


def test_more_than_a_chunk(tmp_path: Path) -> None:
    """Digests of chunks of the arranged tensor, whose borders are inside of pieces."""
    base = {f"a.{n}_proj.weight": random_tensor(i, (700, 900), "bf16") for i, n in enumerate("qkv")}
    tuned = np.concatenate([moved(base[f"a.{n}_proj.weight"], 5).bits for n in "vqk"])
    one = write_file(tmp_path / "base.safetensors", base)
    two = write_file(tmp_path / "tuned.safetensors", {"a.qkv.weight": Tensor("bf16", np.ascontiguousarray(tuned.T))})
    assert tuned.size > CHUNK
    deltapack.compress(one, two, tmp_path / "out.dpk")
    deltapack.apply(one, tmp_path / "out.dpk", tmp_path / "out.safetensors")
    assert read_model(tmp_path / "out.safetensors") == decode_by_spec(base, tmp_path / "out.dpk")
