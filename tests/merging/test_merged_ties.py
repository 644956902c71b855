"""Tied tensors in merges: a merged pack names them as the merged checkpoint does, and restores the same file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.builders import Model, decode_by_spec, moved, random_tensor, read_file, write_file

import deltapack
from deltapack.errors import MergeConflictError

BASE = {"body.weight": random_tensor(2, (30, 20)), "embed.weight": random_tensor(1, (90, 20))}
HEAD = {"head.weight": random_tensor(3, (90, 20))}
TIES = {"lm_head.weight": "embed.weight"}


def write_base(folder: Path, tensors: Model, ties: Mapping[str, str] | None = None) -> Path:
    return write_file(folder / "base.safetensors", tensors, dict(ties or {}))


def pack_of(folder: Path, name: str, seed: int, tensors: Model, ties: Mapping[str, str] | None = None, **recipe: Any) -> Path:
    """A pack of the tensors moved, with ties as the metadata of safetensors declare them."""
    tuned = {key: moved(tensor, seed + number) for number, (key, tensor) in enumerate(tensors.items())}
    write_file(folder / f"{name}.safetensors", tuned, dict(ties or {}))
    pack = folder / f"{name}.dpk"
    deltapack.compress(folder / "base.safetensors", folder / f"{name}.safetensors", pack, recipe=deltapack.Recipe(drop_rate=0.5, **recipe))
    return pack


def header_ties(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return {name: of for name, of in metadata.items() if name != "format" and not name.startswith("deltapack.")}


def kinds(pack: Path) -> dict[str, str]:
    with deltapack.open_pack(pack) as opened:
        return {name: entry.kind for name, entry in opened.items()}


def check(folder: Path, packs: list[Path], base: Model, ties: Mapping[str, str], **options: Any) -> dict[str, str]:
    """Merge to a file and to a pack: the same result, names and ties; return the kinds of the pack's entries."""
    start, pack = folder / "base.safetensors", folder / "merged.dpk"
    deltapack.merge(start, packs, folder / "direct.safetensors", force=True, **options)
    deltapack.merge(start, packs, pack, force=True, **options)
    deltapack.apply(start, pack, folder / "restored.safetensors", force=True)
    deltapack.verify(pack, start)
    assert (folder / "restored.safetensors").read_bytes() == (folder / "direct.safetensors").read_bytes()
    assert header_ties(folder / "direct.safetensors") == ties
    assert decode_by_spec(base, pack) == read_file(folder / "direct.safetensors")
    with deltapack.open_pack(pack) as opened:
        assert {name: entry.entry.of for name, entry in opened.items() if entry.kind == "alias"} == ties
    return kinds(pack)


@pytest.mark.parametrize("options", [{}, {"weights": [0.5, 2.0]}, {"method": "ties"}, {"method": "dare_linear", "density": 0.2}])
def test_tied_packs_of_a_tied_base(options: dict[str, Any], tmp_path: Path) -> None:
    write_base(tmp_path, BASE, TIES)
    packs = [pack_of(tmp_path, name, seed, BASE, TIES) for name, seed in (("one", 10), ("two", 20))]
    assert check(tmp_path, packs, BASE, TIES, **options) == {"body.weight": "delta", "embed.weight": "delta", "lm_head.weight": "alias"}
    # A merged pack is one more pack: its ties go on into the next merge.
    again = [tmp_path / "merged.dpk", pack_of(tmp_path, "three", 30, BASE, TIES)]
    assert check(tmp_path, [again[1], again[0].rename(tmp_path / "first.dpk")], BASE, TIES)["lm_head.weight"] == "alias"


def test_ties_of_the_first_or_the_second_pack_alone(tmp_path: Path) -> None:
    """Where one pack ties a name and the other adds nothing of that name, the result has the tie, whoever comes first."""
    write_base(tmp_path, BASE)
    tied, plain = pack_of(tmp_path, "tied", 10, BASE, TIES), pack_of(tmp_path, "plain", 20, BASE)
    for packs in ([tied, plain], [plain, tied]):
        assert check(tmp_path, packs, BASE, TIES) == {"body.weight": "delta", "embed.weight": "delta", "lm_head.weight": "alias"}


def test_all_packs_tie_what_the_base_holds_apart(tmp_path: Path) -> None:
    base = BASE | HEAD
    write_base(tmp_path, base)
    packs = [pack_of(tmp_path, name, seed, BASE, {"head.weight": "embed.weight"}) for name, seed in (("one", 10), ("two", 20))]
    assert kinds(packs[0])["head.weight"] == "alias"
    assert check(tmp_path, packs, base, {"head.weight": "embed.weight"}) == {
        "body.weight": "delta",
        "embed.weight": "delta",
        "head.weight": "alias",
    }


def test_a_pack_that_keeps_the_tensor_unties_it(tmp_path: Path) -> None:
    base = BASE | HEAD
    write_base(tmp_path, base)
    tied, apart = pack_of(tmp_path, "tied", 10, BASE, {"head.weight": "embed.weight"}), pack_of(tmp_path, "apart", 20, base)
    for packs in ([tied, apart], [apart, tied]):
        for options in ({}, {"prefer": tied}):
            assert check(tmp_path, packs, base, {}, **options) == {"body.weight": "delta", "embed.weight": "delta", "head.weight": "delta"}


def test_removed_by_one_and_tied_by_the_other(tmp_path: Path) -> None:
    base = BASE | HEAD
    write_base(tmp_path, base)
    tied, without = pack_of(tmp_path, "tied", 10, BASE, {"head.weight": "embed.weight"}), pack_of(tmp_path, "without", 20, BASE)
    assert kinds(without)["head.weight"] == "removed"
    for packs in ([tied, without], [without, tied]):
        assert check(tmp_path, packs, base, {"head.weight": "embed.weight"}) == {
            "body.weight": "delta",
            "embed.weight": "delta",
            "head.weight": "alias",
        }


def test_packs_that_tie_one_name_to_different_tensors(tmp_path: Path) -> None:
    base = BASE | HEAD
    write_base(tmp_path, base)
    packs = [pack_of(tmp_path, of, seed, base, {"lm_head.weight": of}) for of, seed in (("embed.weight", 10), ("head.weight", 20))]
    for order in (packs, packs[::-1]):
        with pytest.raises(MergeConflictError, match="tie this name") as caught:
            deltapack.merge(tmp_path / "base.safetensors", order, tmp_path / "x.dpk")
        assert caught.value.tensor == "lm_head.weight" and not (tmp_path / "x.dpk").exists()
        for pack in packs:
            assert check(tmp_path, order, base, {"lm_head.weight": pack.stem}, prefer=pack)["lm_head.weight"] == "alias"


def test_a_merged_pack_on_a_live_model_with_ties(tmp_path: Path) -> None:
    write_base(tmp_path, BASE, TIES)
    packs = [pack_of(tmp_path, name, seed, BASE, TIES) for name, seed in (("one", 10), ("two", 20))]
    check(tmp_path, packs, BASE, TIES)
    expected = {name: tensor.raw for name, tensor in read_file(tmp_path / "direct.safetensors").items()}
    state = {name: torch.from_numpy(tensor.bits.copy()) for name, tensor in BASE.items()}
    state["lm_head.weight"] = state["embed.weight"]
    live = deltapack.attach(state, tmp_path / "base.safetensors", backend="cpu")
    live.activate(tmp_path / "merged.dpk")
    assert {name: state[name].numpy().tobytes() for name in BASE} == expected and state["lm_head.weight"] is state["embed.weight"]
    arrays = {name: tensor.bits.copy() for name, tensor in BASE.items()}
    with deltapack.open_pack(tmp_path / "merged.dpk") as pack:
        pack.add_to(arrays)
    assert {name: array.tobytes() for name, array in arrays.items()} == expected
