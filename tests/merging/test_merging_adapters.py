"""Adapters among the packs of a merge count as the exact packs that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.adapters import COLUMNS, ROWS, base_model, lora, write_adapter
from support.builders import leftovers, read_folder, read_model, tuned_model, write_folder

import deltapack
from deltapack import Recipe
from deltapack.errors import BaseMismatchError, NotACheckpointError, RecipeError


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base, two adapters of it, and a pack; and the adapters as exact packs, in a folder of their own."""
    base = base_model("bf16")
    write_folder(tmp_path / "base", base, {"config.json": "{}"})
    write_folder(tmp_path / "tuned", tuned_model(base), {"config.json": "{}"})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "tuned.dpk", recipe=Recipe(drop_rate=0.5), workers=1)
    write_adapter(tmp_path / "math", lora("layer.down", ROWS, COLUMNS))
    write_adapter(tmp_path / "code", {**lora("layer.square", ROWS, ROWS), **lora("layer.down", ROWS, COLUMNS)}, {"tokenizer.json": "{}"})
    (tmp_path / "packs").mkdir()
    for name in ("math", "code"):
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / "packs" / f"{name}.dpk", recipe=Recipe(exact=True), workers=1)
    return tmp_path


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear"])
def test_adapters_and_packs(method: str, models: Path) -> None:
    options: dict[str, Any] = {"method": method, "weights": [0.5, 0.25, 1.0]}
    names = {"math", "code", "tuned.dpk"}
    before = {path.name for path in models.iterdir()}
    deltapack.merge(models / "base", [models / "math", models / "code", models / "tuned.dpk"], models / "one", **options)
    packs = [models / "packs" / "math.dpk", models / "packs" / "code.dpk", models / "tuned.dpk"]
    deltapack.merge(models / "base", packs, models / "two", **options)
    assert names <= before and {path.name for path in models.iterdir()} == before | {"one", "two"} and not list(leftovers(models))
    assert read_folder(models / "one")["model.safetensors"] == read_folder(models / "two")["model.safetensors"]
    assert read_model(models / "one")["layer.down.weight"] != read_model(models / "base")["layer.down.weight"]


def test_adapters_alone_become_a_merged_pack(models: Path) -> None:
    report = deltapack.merge(models / "base", [models / "math", models / "code"], models / "both.dpk", weights={"math": 0.5, "code": 1.0})
    assert [(Path(name).name, weight) for name, weight in report.weights] == [("math", 0.5), ("code", 1.0)]
    assert [note for note in report.notes if "math" in note] == [
        "math is an adapter (LoRA of 1 module), merged into the base as it is read"
    ]
    deltapack.merge(models / "base", [models / "math", models / "code"], models / "both", weights=[0.5, 1.0])
    deltapack.apply(models / "base", models / "both.dpk", models / "again")
    assert read_model(models / "again") == read_model(models / "both")


def test_a_base_that_is_reached_by_a_link_has_the_name_that_adapters_call_it(models: Path) -> None:
    (models / "linked").symlink_to(models / "base")
    settings = models / "math" / "adapter_config.json"
    named = {name: {**json.loads(settings.read_text()), "base_model_name_or_path": f"org/{name}"} for name in ("linked", "base", "other")}
    for name, told in (("linked", False), ("base", False), ("other", True)):
        settings.write_text(json.dumps(named[name]))
        report = deltapack.compress(models / "linked", models / "math", models / f"{name}.dpk")
        assert any("which is called" in note for note in report.notes) == told


def test_a_file_of_an_adapter_counts_as_its_folder(models: Path) -> None:
    deltapack.merge(models / "base", [models / "math" / "adapter_model.safetensors", models / "tuned.dpk"], models / "one")
    deltapack.merge(models / "base", [models / "math", models / "tuned.dpk"], models / "two")
    assert read_model(models / "one") == read_model(models / "two")


def test_what_looks_at_a_merge_takes_adapters(models: Path) -> None:
    packs = [models / "math", models / "tuned.dpk"]
    assert deltapack.preview_merge(models / "base", packs, models / "out").notes
    assert deltapack.survey_merge(models / "base", packs).packs
    assert deltapack.explain_merge(models / "base", packs, "layer.down.weight").to_json()["tensor"] == "layer.down.weight"


def test_a_recipe_names_adapters(models: Path) -> None:
    recipe = models / "merge.yml"
    text = "merge_method: ties\nbase_model: org/base\nmodels: [{model: org/math}, {model: ./tuned.dpk}]\nparameters: {weight: 0.5}\n"
    recipe.write_text(text)
    found = deltapack.read_merge_file(recipe)
    assert found.packs == (models / "math", models / "tuned.dpk")
    deltapack.merge(models / "base", found.packs, models / "out", recipe=found.recipe)
    recipe.write_text(text.replace("weight: 0.5", "weight: 0.5, density: 0.5").replace("ties", "della"))
    with pytest.raises(RecipeError, match="an adapter, which dropped nothing"):
        deltapack.read_merge_file(recipe)
    recipe.write_text(text.replace("org/math", "org/base+org/math"))
    with pytest.raises(RecipeError, match="Name the folder of the adapter"):
        deltapack.read_merge_file(recipe)


def test_what_is_refused(models: Path) -> None:
    other = write_adapter(models / "other", lora("layer.nothing", ROWS, COLUMNS))
    with pytest.raises(BaseMismatchError, match="lacks"):
        deltapack.merge(models / "base", [other, models / "math"], models / "out")
    (models / "math" / "adapter_config.json").unlink()
    with pytest.raises(NotACheckpointError, match="no config beside it"):
        deltapack.merge(models / "base", [models / "math" / "adapter_model.safetensors"], models / "out")
    assert not (models / "out").exists() and not [path for path in models.iterdir() if path.name.startswith(".")]
