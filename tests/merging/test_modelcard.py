"""The model card of a merge: true, reproducible, harmless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.builders import random_tensor, read_folder, read_model, small_model, tuned_model, write_folder
from support.recipes import DARE

import deltapack
from deltapack.errors import RecipeError
from deltapack.merging.modelcard import recipe_yaml
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule, constant

RECIPES = (
    MergeRecipe("linear", (constant(0.5),)),
    MergeRecipe("ties", (Schedule((Rule((1.0,)), Rule((0.25, 0.75), ".*weight"))), constant(-1)), None, (constant(0.25),), {"lambda": 0.5}),
    MergeRecipe("dare_ties", (), "peft", (Schedule((Rule((0.5, 0.25)),)), constant(1))),
    MergeRecipe("sce", parameters={"select_topk": 0.5}),
    MergeRecipe("ties", parameters={"normalize": False}),
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, list[Path]]:
    base = small_model() | {f"h.{number}.weight": random_tensor(number, (30, 40)) for number in range(3)}
    write_folder(tmp_path / "base", base, {"tokenizer.json": "0", "README.md": "the base's card"})
    for number, name in enumerate(("math", "code")):
        files = {"tokenizer.json": name, "chat_template.jinja": name, "README.md": f"{name}'s card"}
        write_folder(tmp_path / name, tuned_model(base, 10 * number), files)
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.dpk", recipe=DARE)
    return tmp_path / "base", [tmp_path / "math.dpk", tmp_path / "code.dpk"]


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def recipe_of(text: str, tmp_path: Path) -> deltapack.MergeFile:
    (tmp_path / "again.yml").write_text(text.split("```yaml\n")[1].split("```")[0])
    return deltapack.read_merge_file(tmp_path / "again.yml", tmp_path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.method)
def test_the_card_makes_the_merge_again(folders: tuple[Path, list[Path]], tmp_path: Path, recipe: MergeRecipe) -> None:
    base, packs = folders
    deltapack.merge(base, packs, tmp_path / "out", recipe=recipe)
    front, text = card(tmp_path / "out")
    assert front["base_model"] == ["base", "math", "code"]
    assert front["base_model_relation"] == "merge" and "merge" in front["tags"]
    assert recipe.formula.text in text and "dare, drop rate 0.9" in text
    for path in packs:
        with deltapack.open_pack(path) as pack:
            assert f"| `{path.name}` | dare, drop rate 0.9 | `{pack.id[:16]}` |" in text
    found = recipe_of(text, tmp_path)
    assert found.packs == tuple(packs)
    deltapack.merge(base, found.packs, tmp_path / "again", recipe=found.recipe)
    assert read_model(tmp_path / "again") == read_model(tmp_path / "out")
    assert found.recipe.for_packs(2).to_json("ab") == recipe.for_packs(2).to_json("ab")


@pytest.mark.parametrize("assets", [None, "base", "math", "code"])
def test_side_files_and_card_travel_in_a_merged_pack(folders: tuple[Path, list[Path]], tmp_path: Path, assets: str | None) -> None:
    base, packs = folders
    chosen: Path | str | None = tmp_path / f"{assets}.dpk" if assets in ("math", "code") else assets
    deltapack.merge(base, packs, tmp_path / "direct", weights=[0.5], assets=chosen)
    deltapack.merge(base, packs, tmp_path / "merged.dpk", weights=[0.5], assets=chosen)
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "applied")
    files = read_folder(tmp_path / "direct")
    assert files == read_folder(tmp_path / "applied")
    wanted = {None: "0", "base": "0"}.get(assets, assets)
    assert files["tokenizer.json"].decode() == wanted
    assert files.get("chat_template.jinja", b"").decode() == (assets if assets in ("math", "code") else "")
    donor = f"`{assets}.dpk`" if assets in ("math", "code") else "the base"
    assert f"chat template are from {donor}." in card(tmp_path / "direct")[1]


def test_assets_must_be_one_of_the_packs(folders: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = folders
    with pytest.raises(RecipeError, match="assets"):
        deltapack.merge(base, packs[:1], tmp_path / "out", assets=packs[1])


def test_prefer_decides_on_assets_unless_they_are_named(folders: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = folders
    deltapack.merge(base, packs, tmp_path / "one", weights=[0.5], prefer=packs[0])
    deltapack.merge(base, packs, tmp_path / "two", weights=[0.5], prefer=packs[0], assets=packs[1])
    assert [(tmp_path / name / "tokenizer.json").read_text() for name in ("one", "two")] == ["math", "code"]


def test_the_card_does_not_depend_on_where_things_are(
    folders: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packs = folders
    deltapack.merge(base, packs, tmp_path / "absolute", weights=[0.5])
    monkeypatch.chdir(base)
    deltapack.merge(".", [Path("..") / path.name for path in packs], tmp_path / "relative", weights=[0.5])
    assert read_folder(tmp_path / "absolute") == read_folder(tmp_path / "relative")


def test_bare_files_get_no_card(folders: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = folders
    deltapack.merge(base, packs, tmp_path / "out.safetensors", weights=[0.5])
    assert not (tmp_path / "README.md").exists()


FRONT = """---
license: other
license_name: some-licence
license_link: https://example.org/licence
language: [en, no, en]
pipeline_tag: text-generation
library_name: peculiar
tags: [theirs]
base_model: somebody/else
widget: [{text: hello}]
---
# The base
"""
KEPT = {
    "license": "other",
    "license_name": "some-licence",
    "license_link": "https://example.org/licence",
    "pipeline_tag": "text-generation",
    "library_name": "peculiar",
    "language": ["en", "no"],
}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (FRONT, KEPT),
        ("\ufeff" + FRONT.replace("\n", "\r\n"), KEPT),
        ("---\nlanguage: de\nlicense: mit\n---", {"language": ["de"], "license": "mit"}),
        ("---\nlanguage: no\n---\n", {"language": ["no"]}),
        ("---\nlicense: [a, b]\npipeline_tag: 3\nlanguage: {en: 1}\nlibrary_name: ''\n---\n", {}),
        (f'---\nlicense: {"x" * 201}\nlicense_name: "a\\nb"\n---\n', {}),
        ("---\nlicense: mit\nlicense: other\n---\n", {}),
        ("---\na: &a [mit]\nlicense: *a\n---\n", {}),
        ("---\n- license\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("no front matter\n---\nlicense: mit\n---\n", {}),
    ],
)
def test_what_is_still_true_of_the_base_is_kept(
    written: str, kept: dict[str, Any], folders: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    base, packs = folders
    (base / "README.md").write_bytes(written.encode())
    deltapack.merge(base, packs, tmp_path / "out", weights=[0.5])
    front, text = card(tmp_path / "out")
    own = {"base_model": ["base", "math", "code"], "base_model_relation": "merge", "tags": ["merge", "deltapack"]}
    assert front == own | {"library_name": "transformers"} | kept
    assert "somebody" not in text


def test_names_cannot_break_the_card(folders: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = folders
    name = "a`|<b>\n---\n[x](y): '{\".dpk"
    evil = packs[0].rename(tmp_path / name)
    deltapack.merge(base, [evil, packs[1]], tmp_path / "out", weights=[0.5])
    front, text = card(tmp_path / "out")
    assert front["base_model"] == ["base", name[:-4], "code"]
    assert "\n---" not in text.split("```yaml")[0] and "<b>" not in text.split("```yaml")[0]
    assert recipe_of(text, tmp_path).packs == (evil, packs[1])


def test_a_recipe_may_be_written_for_any_packs() -> None:
    packs: Sequence[str] = ("é.dpk", "b.dpk")
    document = yaml.safe_load(recipe_yaml("base", list(packs), MergeRecipe()))
    assert document == {"merge_method": "linear", "base_model": "base", "models": [{"model": "é.dpk"}, {"model": "b.dpk"}]}
