"""Two tensors of a result never get one name: a merge says so, and an encoder does not make such a pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import Model, Tensor, decode_by_spec, leftovers, moved, random_tensor, read_file, write_file

import deltapack
from deltapack.errors import MergeConflictError, RecipeError

PackOf = Callable[..., Path]
P, Q = random_tensor(1, (30, 20)), random_tensor(2, (30, 20))
BASE = {"p": P, "q": Q}


def pack_of_names(folder: Path, name: str, tensors: Model, maps: Sequence[tuple[str, str]] = ()) -> Path:
    """A pack of tensors, some of which have other names in the base."""
    write_file(folder / "base.safetensors", BASE)
    write_file(folder / f"{name}.safetensors", tensors)
    out = folder / f"{name}.dpk"
    recipe = deltapack.Recipe(drop_rate=0.5)
    deltapack.compress(folder / "base.safetensors", folder / f"{name}.safetensors", out, recipe=recipe, name_map=maps)
    return out


def sources(pack: Path) -> dict[str, tuple[str, str | None]]:
    """Kind of each entry, and the base tensor that it is made from."""
    with deltapack.open_pack(pack) as opened:
        return {name: (entry.kind, entry.entry.base.name if entry.entry.base else None) for name, entry in opened.items()}


def refused(folder: Path, packs: Sequence[Path], name: str, **options: object) -> None:
    """Every kind of merge refuses, names the tensor, and leaves nothing."""
    before = sorted(path.name for path in folder.iterdir())
    start = folder / "base.safetensors"
    for out in ("x", "x.safetensors", "x.dpk"):
        with pytest.raises(MergeConflictError, match="two tensors of the result would have this name") as caught:
            deltapack.merge(start, packs, folder / out, **options)  # type: ignore[arg-type]
        assert caught.value.tensor == name
    assert sorted(path.name for path in folder.iterdir()) == before and not leftovers(folder)


def test_a_renamed_tensor_and_one_that_has_its_name(tmp_path: Path) -> None:
    """One pack calls the base's p `n`, another has a new tensor of that name."""
    renames = pack_of_names(tmp_path, "renames", {"n": moved(P, 3), "q": Q}, [("n", "p")])
    new = pack_of_names(tmp_path, "new", {"p": P, "q": moved(Q, 4), "n": random_tensor(5, (7,))})
    assert sources(renames)["n"] == ("delta", "p") and sources(new)["n"] == ("stored", None)
    # Both say what p is called, and disagree: the base's name holds unless the renaming pack is preferred.
    start, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    for packs in permutations([renames, new]):
        deltapack.merge(start, list(packs), out, force=True)
        assert read_file(out).keys() == {"n", "p", "q"}
        refused(tmp_path, packs, "n", prefer=renames)
        refused(tmp_path, packs, "n", prefer=renames, method="ties")


def test_two_tensors_renamed_to_one(tmp_path: Path) -> None:
    """Each pack renames another tensor, and drops or keeps the rest."""
    one = pack_of_names(tmp_path, "one", {"n": moved(P, 3)}, [("n", "p")])
    two = pack_of_names(tmp_path, "two", {"n": moved(Q, 4)}, [("n", "q")])
    for packs in permutations([one, two]):
        refused(tmp_path, packs, "n")
        refused(tmp_path, packs, "n", prefer=one)


def test_a_name_of_the_base_given_to_another_tensor(tmp_path: Path) -> None:
    """A pack calls p `q` and has no q; where another pack keeps q, there would be two."""
    swaps = pack_of_names(tmp_path, "swaps", {"q": moved(P, 3), "p": moved(Q, 4)}, [("q", "p"), ("p", "q")])
    assert sources(swaps) == {"p": ("delta", "q"), "q": ("delta", "p")}
    plain = pack_of_names(tmp_path, "plain", {"p": moved(P, 5), "q": moved(Q, 6)})
    start, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    for packs in permutations([swaps, plain]):
        names = []
        for prefer in (None, swaps, plain):
            deltapack.merge(start, list(packs), out, prefer=prefer, force=True)
            found = read_file(out)
            assert found.keys() == {"p", "q"}  # both names change or none does: never two of one
            names.append(np.abs(found["p"].f64 - P.f64).sum() < np.abs(found["p"].f64 - Q.f64).sum())
        assert names == [True, False, True]


def test_a_live_model_refuses_too(tmp_path: Path) -> None:
    one = pack_of_names(tmp_path, "one", {"n": moved(P, 3)}, [("n", "p")])
    two = pack_of_names(tmp_path, "two", {"n": moved(Q, 4)}, [("n", "q")])
    state = {name: torch.from_numpy(tensor.bits.copy()) for name, tensor in BASE.items()}
    live = deltapack.attach(state, backend="cpu")
    with pytest.raises(MergeConflictError, match="this name"):
        live.activate({one: 1.0, two: 1.0})
    assert all(state[name].numpy().tobytes() == tensor.raw for name, tensor in BASE.items()) and live.current == {}


def check_pack(folder: Path, pack: Path, tuned: Model, kinds: dict[str, tuple[str, str | None]]) -> None:
    """The pack has these entries, all readers take it, and it gives tensors of these names, shapes and types."""
    assert sources(pack) == kinds
    deltapack.verify(pack, folder / "base.safetensors")
    deltapack.apply(folder / "base.safetensors", pack, folder / "out.safetensors", force=True)
    found = read_file(folder / "out.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {name: (t.dtype, t.shape) for name, t in tuned.items()}
    assert found == decode_by_spec(BASE, pack)
    assert all(found[name] == tuned[name] for name, (kind, _) in kinds.items() if kind == "exact")


def test_the_encoder_gives_a_match_up_where_the_base_has_the_name_left_over(tmp_path: Path) -> None:
    """The fine-tune's q is the base's p by the map, and nothing uses the base's q: `removed q` beside `q` cannot be said."""
    tuned: Model = {"q": moved(P, 3)}
    pack = pack_of_names(tmp_path, "pack", tuned, [("q", "p")])
    check_pack(tmp_path, pack, tuned, {"p": ("removed", "p"), "q": ("exact", None)})


def test_giving_one_match_up_frees_the_next(tmp_path: Path) -> None:
    """A chain: r is q, q is p, and the base's r is left; giving that up leaves q without a user, and so on."""
    base: Model = {name: random_tensor(seed, (30, 20)) for seed, name in enumerate("pqr")}
    tuned: Model = {"q": moved(base["p"], 8), "r": moved(base["q"], 9)}
    write_file(tmp_path / "base.safetensors", base)
    write_file(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(
        tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "pack.dpk", name_map=[("q", "p"), ("r", "q")]
    )
    assert sources(tmp_path / "pack.dpk") == {"p": ("removed", "p"), "q": ("exact", None), "r": ("exact", None)}
    deltapack.apply(tmp_path / "base.safetensors", tmp_path / "pack.dpk", tmp_path / "out.safetensors")
    assert read_file(tmp_path / "out.safetensors") == tuned == decode_by_spec(base, tmp_path / "pack.dpk")


def test_a_map_of_two_tensors_to_one_is_refused(tmp_path: Path) -> None:
    tuned: dict[str, Tensor] = {"a": moved(P, 3), "b": moved(P, 4)}
    with pytest.raises(RecipeError, match="two tensors of the fine-tune are mapped to the base's 'p'"):
        pack_of_names(tmp_path, "pack", tuned, [("[ab]", "p")])
    assert not (tmp_path / "pack.dpk").exists()
