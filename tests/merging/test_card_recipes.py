"""The recipe on a card makes the very merge again, used as the card says, whatever the merge was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from support.builders import Model, random_tensor, read_folder, small_model, tuned_model, write_file, write_folder
from support.recipes import DARE
from support.vocabularies import Tuned, family

import deltapack
from deltapack.cli.main import cli
from deltapack.merging.arguments import recipe_from_texts
from deltapack.merging.basecard import HubName, name_of_base
from deltapack.merging.methods.table import METHODS
from deltapack.merging.recipe import MergeRecipe

BASE: Model = small_model() | {f"h.{number}.weight": random_tensor(number, (30, 40)) for number in range(3)}
VARIANTS = [(name, semantics) for name, variants in METHODS.items() for semantics in variants]


@pytest.fixture
def packs(tmp_path: Path) -> list[Path]:
    """Two packs over `base/`, in a folder of packs."""
    return make_packs(tmp_path)


def make_packs(folder: Path, **recipe: Any) -> list[Path]:
    write_folder(folder / "base", BASE, {"tokenizer.json": "0", "config.json": "{}", "README.md": "the base's card"})
    (folder / "packs").mkdir()
    for number, name in enumerate(("math", "code")):
        write_folder(folder / name, tuned_model(BASE, 10 * number), {"tokenizer.json": name, "config.json": "{}"})
        deltapack.compress(
            folder / "base", folder / name, folder / "packs" / f"{name}.dpk", recipe=deltapack.Recipe(**({"drop_rate": 0.9} | recipe))
        )
    return [folder / "packs" / "math.dpk", folder / "packs" / "code.dpk"]


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8")


def run(*words: object) -> None:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr


def again(base: Path, card: str, packs: Path, out: Path) -> None:
    """Do what the card says: `deltapack merge BASE --recipe FILE --packs DIR`."""
    recipe = out.parent / "card" / "again.yml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(card.split("```yaml\n")[1].split("```")[0], "utf-8")
    run("merge", base, "--recipe", recipe, "--packs", packs, "-o", out)


def check_again(tmp_path: Path, chosen: Sequence[Path], **options: Any) -> str:
    """Merge, do it again by the card, and compare every file; return the card."""
    base = options.pop("base", tmp_path / "base")
    deltapack.merge(base, chosen, tmp_path / "out", **options)
    again(base, card_of(tmp_path / "out"), tmp_path / "packs", tmp_path / "again")
    assert read_folder(tmp_path / "again") == read_folder(tmp_path / "out")
    return card_of(tmp_path / "out")


@pytest.mark.parametrize(("method", "semantics"), VARIANTS, ids=lambda value: value)
def test_every_method(method: str, semantics: str, tmp_path: Path) -> None:
    row = METHODS[method][semantics]
    packs = make_packs(tmp_path, drop_rate=0.5, sparsify=row.made_by or "dare")
    weights = ["math=0.75", ".*weight:code=0.25,0.5"] if row.weighted else []
    parameters = {name: value / 2 if name != "normalize" else 1 - value for name, value in row.defaults.items()}
    recipe = recipe_from_texts(
        packs,
        method=method,
        semantics=semantics,
        weights=weights,
        densities=["code=0.25", ".*bias:*=0.4"] if row.trim else [],
        parameters=parameters,
    )
    text = check_again(tmp_path, packs, recipe=recipe)
    assert row.text in text


@pytest.mark.parametrize(
    "weights",
    [["math=0.5"], [".*weight:code=0.25"], ["0.5", "1e-05"], ["*=0.2,0.8"], ["0.5", r"h\.[12]\..*:*=-1", "embed.*:math=0"]],
    ids=" ".join,
)
def test_every_kind_of_weight(weights: list[str], packs: list[Path], tmp_path: Path) -> None:
    recipe = recipe_from_texts(packs, method="linear", semantics=None, weights=weights, densities=(), parameters={})
    text = check_again(tmp_path, packs, recipe=recipe)
    assert "[]" not in text


@pytest.mark.parametrize("dtype", ["bf16", "f64", "f8_e4m3fn"])
def test_a_type(dtype: str, packs: list[Path], tmp_path: Path) -> None:
    check_again(tmp_path, packs, weights=[0.5], dtype=dtype)


OWNERS = [
    {"prefer": 0},
    {"prefer": 1, "assets": "base"},
    {"assets": 1, "vocab": 0},
    {"vocab": "base"},
    {"vocab": "union"},
    {"vocab": "union", "assets": 1},
    {"vocab": "union", "prefer": 1},
    {"vocab": 1},
]


@pytest.mark.parametrize("owners", OWNERS, ids=str)
@pytest.mark.parametrize("as_pack", [False, True])
def test_who_decides(owners: Mapping[str, Any], as_pack: bool, tmp_path: Path) -> None:
    made = family(tmp_path / "family", Tuned({40: "<x>", 41: "<y>"}), Tuned({40: "<z>"}))
    (tmp_path / "packs").mkdir()
    packs = [Path(shutil.copy(pack, tmp_path / "packs" / pack.name)) for pack in made.packs]
    options: dict[str, Any] = {key: packs[value] if isinstance(value, int) else value for key, value in owners.items()}
    if not as_pack:
        check_again(tmp_path, packs, base=made.base, weights=[0.5], **options)
        return
    deltapack.merge(made.base, packs, tmp_path / "out.dpk", weights=[0.5], **options)
    deltapack.apply(made.base, tmp_path / "out.dpk", tmp_path / "out")
    again(made.base, card_of(tmp_path / "out"), tmp_path / "packs", tmp_path / "again.dpk")
    assert (tmp_path / "again.dpk").read_bytes() == (tmp_path / "out.dpk").read_bytes()


def test_packs_of_one_name(tmp_path: Path) -> None:
    """A card names later ones by number; under these names they make the merge again."""
    one, two = make_packs(tmp_path)
    (tmp_path / "apart").mkdir()
    other = two.rename(tmp_path / "apart" / "math.dpk")
    deltapack.merge(tmp_path / "base", [one, other, one], tmp_path / "out", weights=[0.5, 0.25, 0.125], assets=other)
    text = card_of(tmp_path / "out")
    assert "| `math-2.dpk` |" in text and "| `math-3.dpk` |" in text
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == ["base", "math", "math-2", "math-3"]
    shutil.copy(other, tmp_path / "packs" / "math-2.dpk")
    shutil.copy(one, tmp_path / "packs" / "math-3.dpk")
    again(tmp_path / "base", text, tmp_path / "packs", tmp_path / "again")
    assert read_folder(tmp_path / "again") == read_folder(tmp_path / "out")


def test_a_pack_that_is_called_like_the_base(packs: list[Path], tmp_path: Path) -> None:
    like = packs[0].rename(packs[0].with_name("base"))
    deltapack.merge(tmp_path / "base", [like, packs[1]], tmp_path / "out", weights=[0.5], prefer=like)
    shutil.copy(like, like.with_name("base-2"))
    again(tmp_path / "base", card_of(tmp_path / "out"), tmp_path / "packs", tmp_path / "again")
    assert read_folder(tmp_path / "again") == read_folder(tmp_path / "out")


@pytest.mark.parametrize("name", ["a+b.dpk", "v1@main.dpk", "math.pack", "math", "a: b'{.dpk"])
def test_a_pack_of_any_name(name: str, packs: list[Path], tmp_path: Path) -> None:
    check_again(tmp_path, [packs[0].rename(packs[0].with_name(name)), packs[1]], weights=[0.5], prefer=packs[0].with_name(name))


def test_a_base_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    write_file(tmp_path / "base.safetensors", BASE)
    packs = []
    for seed in (1, 2):
        write_file(tmp_path / "tuned.safetensors", tuned_model(BASE, seed))
        packs.append(tmp_path / "packs" / f"{seed}.dpk")
        deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", packs[-1], recipe=DARE)
    text = check_again(tmp_path, packs, base=tmp_path / "base.safetensors", weights=[0.5])
    assert sorted(read_folder(tmp_path / "out")) == ["README.md", "model.safetensors"]
    assert "over the base `base.safetensors` (" in text and "Config, tokenizer" not in text and "library_name" not in text
    # A merged pack of bare files leaves side files to the base, so that it fits a folder, too; it carries no card.
    deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "out.dpk", weights=[0.5])
    with deltapack.open_pack(tmp_path / "out.dpk") as pack:
        assert pack.index.files is None


def test_a_base_in_the_cache_of_the_hub(packs: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--org--base-7b"
    (cache / "blobs").mkdir(parents=True)
    base = cache / "snapshots" / "0a1b2c"
    base.mkdir(parents=True)
    for file in (tmp_path / "base").iterdir():
        blob = shutil.move(file, cache / "blobs" / f"sha-{file.name}")
        (base / file.name).symlink_to(blob)
    (tmp_path / "latest").symlink_to(base)
    for place in (base, tmp_path / "latest", base / "model.safetensors"):
        assert name_of_base(place) == HubName("org/base-7b", "0a1b2c")
    text = check_again(tmp_path, packs, base=base, weights=[0.5])
    assert "over the base `org/base-7b`, revision `0a1b2c` (fingerprint" in text
    assert "base_model: org/base-7b\n" in text and "- org/base-7b\n" in text


def test_a_merge_of_merges(packs: list[Path], tmp_path: Path) -> None:
    deltapack.merge(tmp_path / "base", packs, tmp_path / "packs" / "merged.dpk", weights=[0.5])
    text = check_again(tmp_path, [tmp_path / "packs" / "merged.dpk", packs[0]], recipe=MergeRecipe("average"))
    assert "| `merged.dpk` | merge by linear |" in text
