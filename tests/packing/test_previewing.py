"""What `compress --dry-run` foresees, against what `compress` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.builders import CHUNK, Tensor, moved, random_tensor, read_model, tuned_model, whole, write_file, write_folder
from support.commands import Run

import deltapack
from deltapack import Override, Recipe
from deltapack.errors import NonFiniteError, RecipeError
from deltapack.format.reader import PackReader

BASE = {
    "embed.weight": random_tensor(1, (300, 64)),
    "fc.weight": random_tensor(2, (256, 259)),
    "fc.bias": random_tensor(3, (400,)),
    "bn.running_var": random_tensor(4, (40,)),
    "big.weight": random_tensor(5, (3, CHUNK)),
    "same.weight": random_tensor(6, (64, 64)),
    "gone.weight": random_tensor(7, (30, 30)),
    "ids": whole("i64", np.arange(40)),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    tuned = tuned_model({name: tensor for name, tensor in BASE.items() if name != "gone.weight"}, 10, scale=1e-3)
    tuned |= {"same.weight": BASE["same.weight"], "new.weight": random_tensor(8, (64, 64))}
    tuned["embed.weight"] = Tensor("f32", np.concatenate([tuned["embed.weight"].bits, random_tensor(9, (20, 64)).bits]))
    return write_folder(folder / "base", BASE), write_folder(folder / "tuned", tuned, {"config.json": '{"a": 1}', "tokenizer.json": "{}"})


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(drop_rate=0.9),
        Recipe(drop_rate=0.0, values="f32"),
        Recipe(sparsify="magnitude"),
        Recipe(exclude="fc", overrides=(Override("bn.*", role="vector"),)),
    ],
)
def test_it_foresees_what_happens(recipe: Recipe, pair: tuple[Path, Path], tmp_path: Path) -> None:
    foreseen = deltapack.preview_compress(*pair, recipe=recipe)
    done = deltapack.compress(*pair, tmp_path / "x.dpk", recipe=recipe)
    assert foreseen.kinds == done.kinds
    with deltapack.open_pack(tmp_path / "x.dpk") as pack:
        assert {row.name: row.kind for row in foreseen.tensors} == {name: pack[name].kind for name in pack}
    assert foreseen.pack_bytes == pytest.approx(done.pack_bytes, rel=0.1)
    assert foreseen.checkpoint_bytes == done.checkpoint_bytes
    assert set(foreseen.warnings) <= set(done.warnings) and not (pair[1] / "x.dpk").exists()


def test_it_foresees_budgets(tmp_path: Path) -> None:
    """Terms of low rank are shown and counted, and what no pack can reach is told."""
    base, noise = random_tensor(1, (256, 192)), random_tensor(2, (256, 192)).f64
    delta = 0.01 * (noise + 5 * noise[:, :1] * noise[:1] / noise.std())
    write_file(tmp_path / "base.safetensors", {"w": base, "v": random_tensor(3, (3000,))})
    write_file(tmp_path / "tuned.safetensors", {"w": Tensor("f32", (base.f64 + delta).astype("<f4")), "v": random_tensor(4, (3000,))})
    two = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"

    def foreseen(bits: float) -> deltapack.CompressPreview:
        return deltapack.preview_compress(*two, recipe=Recipe(budget=deltapack.Budget(bits=bits)))

    half = foreseen(1.0)
    done = deltapack.compress(*two, tmp_path / "x.dpk", recipe=Recipe(budget=deltapack.Budget(bits=1.0)))
    with PackReader(tmp_path / "x.dpk") as reader:
        (entry,) = (entry for entry in reader.index.entries if entry.name == "w")
    (row,) = (row for row in half.tensors if row.name == "w")
    assert (row.index, row.values) == tuple("+".join(getattr(term, key) for term in entry.terms) for key in ("index", "values"))
    assert len(entry.terms) == 2 and half.pack_bytes == pytest.approx(done.pack_bytes, rel=0.05)
    assert not any("would refuse" in warning for warning in half.warnings)
    assert "the budget allows 65 bytes" in foreseen(0.01).warnings[-1] and "would refuse it" in foreseen(0.01).warnings[-1]
    with pytest.raises(RecipeError, match="no pack of these models is so small"):
        deltapack.compress(*two, tmp_path / "y.dpk", recipe=Recipe(budget=deltapack.Budget(bits=0.01)))


def test_it_foresees_the_metadata_that_travel(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """They take place in the index, and what is too long is told."""
    letters = np.random.default_rng(0).integers(33, 93, 700_000).astype(np.uint8).tobytes().decode()
    tuned = tmp_path / "tuned.safetensors"
    write_file(tuned, read_model(pair[1]), {"ss_big": "x" * 1_200_000, "ss_mid": letters})
    foreseen, done = deltapack.preview_compress(pair[0], tuned), deltapack.compress(pair[0], tuned, tmp_path / "x.dpk")
    plain = deltapack.preview_compress(*pair)
    assert foreseen.pack_bytes - plain.pack_bytes == pytest.approx(done.pack_bytes - plain.pack_bytes, rel=0.1) and done.pack_bytes > 5e5
    assert foreseen.side_file_bytes == 0
    told = [note for note in foreseen.notes if "left out of the metadata: 'ss_big'" in note]
    assert told and told == [note for note in done.notes if "metadata" in note]


def test_roles_are_those_of_the_recipe(pair: tuple[Path, Path]) -> None:
    rows = {row.name: row for row in deltapack.preview_compress(*pair, recipe=Recipe(drop_rate=0.9, exclude="^fc.weight")).tensors}
    roles = {name: row.role for name, row in rows.items() if row.role}
    assert roles == {
        "big.weight": "weight",
        "bn.running_var": "statistic",
        "embed.weight": "weight",
        "fc.bias": "vector",
        "fc.weight": "exact",
        "ids": "integer",
        "new.weight": "weight",
        "same.weight": "weight",
    }
    assert (rows["fc.bias"].index, rows["fc.bias"].values, rows["fc.weight"].kind) == ("all", "int8", "exact")


def test_it_refuses_what_compress_refuses(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="matches no tensor"):
        deltapack.preview_compress(*pair, recipe=Recipe(include="nothing of that name"))
    broken = write_folder(tmp_path / "broken", {"fc.weight": Tensor("f32", np.full((256, 259), np.inf, "<f4"))})
    with pytest.raises(NonFiniteError):
        deltapack.preview_compress(pair[0], broken, allow_unrelated=True)
    stored = deltapack.preview_compress(pair[0], broken, recipe=Recipe(non_finite="store"), allow_unrelated=True)
    assert stored.kinds["stored"] == 1


def test_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run = Run()
    shown = run("compress", *pair, "--dry-run")
    assert shown.exit_code == 0 and not list(tmp_path.iterdir())
    assert "bn.running_var  statistic  stored" in shown.stdout and "would write" in shown.stdout
    document = json.loads(run("compress", *pair, "--dry-run", "--json").stdout)
    assert {"role", "kind", "bytes"} < set(document["tensors"][0]) and document["pack_bytes"] > 0 and document["ratio"] > 1
    (tmp_path / "there.dpk").write_bytes(b"mine")
    assert run("compress", *pair, "-o", tmp_path / "there.dpk", "--dry-run").exit_code == 0
    assert (tmp_path / "there.dpk").read_bytes() == b"mine"
    assert run("compress", *pair).exit_code == 2


def test_aliases_are_listed(tmp_path: Path) -> None:
    import torch

    embed = torch.randn(64, 32)
    torch.save({"embed": embed, "head": embed}, tmp_path / "tuned.bin")
    torch.save({"embed": embed + 0.001 * moved(random_tensor(1, (64, 32)), 2).f64.std(), "head": embed.clone()}, tmp_path / "base.bin")
    rows = {row.name: row for row in deltapack.preview_compress(tmp_path / "base.bin", tmp_path / "tuned.bin").tensors}
    assert (rows["head"].kind, rows["head"].base_name, rows["embed"].kind) == ("alias", "embed", "delta")
