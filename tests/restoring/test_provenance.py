"""Restored and merged files say where they are from: neither paths nor times, and nothing that a reader takes for tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from support.builders import Model, Tensor, read_model, small_model, tuned_model, write_folder
from support.fixtures import PackOf

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.restoring.provenance import _merged_from

SAID = {f"deltapack.{key}" for key in ("version", "base", "packs", "fidelity")}


def said(file: Path) -> dict[str, str]:
    with safe_open(file, "np") as opened:
        return dict(opened.metadata())


def ids(*packs: Path) -> str:
    out = []
    for path in packs:
        with deltapack.open_pack(path) as pack:
            out.append(pack.id)
    return ",".join(out)


@pytest.fixture
def packs(pack_of: PackOf) -> list[Path]:
    base = small_model()
    return [pack_of(base, tuned_model(base, number), str(number), drop_rate=0.5) for number in (1, 2)]


def test_a_restored_file(packs: list[Path], tmp_path: Path) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    deltapack.apply(base, packs[0], out)
    with deltapack.open_pack(packs[0]) as pack:
        fingerprint = pack.index.base_fingerprint
    expected = {"version": deltapack.__version__, "base": fingerprint, "packs": ids(packs[0]), "fidelity": "lossy"}
    assert said(out) == {"format": "pt"} | {f"deltapack.{key}": value for key, value in expected.items()}


EXACT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "stored whole": ({"exclude": ".*"}, {}, "exact"),
    "a weight": ({"exclude": ".*"}, {"weight": 0.5}, "lossy"),
    "a type": ({"exclude": ".*"}, {"dtype": "bf16"}, "lossy"),
    "its own type": ({"exclude": ".*"}, {"dtype": "f32"}, "exact"),
    "unchecked": ({"exclude": ".*"}, {"verify": False}, "lossy"),
    "in part": ({"exclude": "embed"}, {}, "lossy"),
    "nothing dropped": ({"drop_rate": 0.0, "values": "f32"}, {}, "lossy"),
}


@pytest.mark.parametrize(("recipe", "options", "fidelity"), EXACT.values(), ids=EXACT.keys())
def test_exact_or_lossy(recipe: dict[str, Any], options: dict[str, Any], fidelity: str, pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    tuned = tuned_model(base)
    pack = pack_of(base, tuned, **recipe)
    deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors", **options)
    assert said(tmp_path / "out.safetensors")["deltapack.fidelity"] == fidelity
    if fidelity == "exact":
        assert read_model(tmp_path / "out.safetensors") == tuned


def test_a_merged_file_and_the_merged_pack_say_the_same(packs: list[Path], tmp_path: Path) -> None:
    base, direct, through = tmp_path / "base.safetensors", tmp_path / "direct.safetensors", tmp_path / "through.safetensors"
    deltapack.merge(base, packs, direct, weights=[0.5])
    deltapack.merge(base, packs, tmp_path / "merged.dpk", weights=[0.5])
    deltapack.apply(base, tmp_path / "merged.dpk", through)
    assert direct.read_bytes() == through.read_bytes()
    found = said(direct)
    assert (found["deltapack.packs"], found["deltapack.fidelity"]) == (ids(*packs), "merged")
    # A merge of merges names what it was made of.
    deltapack.merge(base, [tmp_path / "merged.dpk", packs[0]], tmp_path / "more.dpk", weights=[0.5])
    deltapack.apply(base, tmp_path / "more.dpk", through, force=True)
    assert said(through)["deltapack.packs"] == ids(tmp_path / "merged.dpk", packs[0])


@pytest.mark.parametrize("rows", [None, 3, "x", [3], [{}], [{"id": 3}], [{"id": "/a/path"}], [{"id": "a" * 64}, {"id": "b" * 63}]])
def test_what_a_recipe_says_of_packs_is_taken_for_ids_only(rows: object) -> None:
    assert _merged_from({"packs": rows}) == []
    assert _merged_from({"packs": [{"id": "a" * 64}]}) == ["a" * 64]


def test_it_depends_on_nothing_else(packs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deltapack.apply(tmp_path / "base.safetensors", packs[0], tmp_path / "one.safetensors", workers=1)
    (tmp_path / "else").mkdir()
    packs[0].rename(tmp_path / "else" / "x.dpk")
    monkeypatch.chdir(tmp_path / "else")
    deltapack.apply("../base.safetensors", "x.dpk", "two.safetensors", workers=2)
    assert (tmp_path / "one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    assert str(tmp_path).encode() not in Path("two.safetensors").read_bytes()


def test_every_shard_says_it(tmp_path: Path) -> None:
    base = small_model()
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned_model(base))
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk")
    deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out", max_shard_size="100KB")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1 and all(said(shard).keys() == SAID | {"format"} for shard in shards)


def test_none_of_it_is_a_tied_name(pack_of: PackOf, tmp_path: Path) -> None:
    """Though there are tensors that are called like what the keys say."""
    base: Model = {name: Tensor("f32", np.full((40, 30), number, "<f4")) for number, name in enumerate(("lossy", "exact", "merged"))}
    base[deltapack.__version__] = base["lossy"]
    tuned = {name: Tensor("f32", tensor.bits + np.float32(0.01)) for name, tensor in base.items()}
    pack = pack_of(base, tuned, drop_rate=0.5)
    out = tmp_path / "out.safetensors"
    deltapack.apply(tmp_path / "base.safetensors", pack, out)
    assert said(out)["deltapack.fidelity"] == "lossy"
    with open_checkpoint(out) as opened:
        assert not opened.aliases and opened.tensors.keys() == base.keys()


def test_a_restored_folder_is_a_checkpoint_like_any(tmp_path: Path) -> None:
    """As a base, as a fine-tune, and for verify; the pack of it is the one of files that say nothing."""
    base = small_model()
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned_model(base))
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk")
    deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "restored")
    write_folder(tmp_path / "plain", read_model(tmp_path / "restored"))
    for name in ("restored", "plain"):
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / f"{name}-tuned.dpk")
        deltapack.compress(tmp_path / name, tmp_path / "tuned", tmp_path / f"{name}-base.dpk")
        deltapack.verify(tmp_path / "restored-base.dpk", tmp_path / name)
    for kind in ("tuned", "base"):
        assert (tmp_path / f"restored-{kind}.dpk").read_bytes() == (tmp_path / f"plain-{kind}.dpk").read_bytes()
