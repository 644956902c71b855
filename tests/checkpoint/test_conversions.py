"""The renamings that transformers knows: a source of rules where it is installed, and never a reason to fail."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.layouts import infos, llama

from deltapack.checkpoint import match_names, model_names
from deltapack.checkpoint.conversions import rename_as_transformers

OLD = {
    "language_model.model.layers.0.mlp.up_proj.weight": (8, 4),
    "language_model.lm_head.weight": (8, 4),
    "vision_tower.encoder.q.weight": (4, 4),
    "multi_modal_projector.linear_1.weight": (4, 4),
}
RENAMED = {
    "language_model.model.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.encoder.q.weight": "model.vision_tower.encoder.q.weight",
    "multi_modal_projector.linear_1.weight": "model.multi_modal_projector.linear_1.weight",
}


@pytest.fixture
def newest() -> Any:
    return pytest.importorskip("transformers.conversion_mapping", reason="the table of transformers 5 is not there")


def fake(monkeypatch: pytest.MonkeyPatch, **classes: object) -> None:
    """Put a transformers 4 in the place of the installed one, with these classes."""
    module = types.ModuleType("transformers")
    for name, value in classes.items():
        setattr(module, name, value)
    for name in [name for name in sys.modules if name.startswith("transformers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", module)


def test_renames_as_the_newest_transformers(newest: Any) -> None:
    assert rename_as_transformers(("LlavaForConditionalGeneration", "llava"), OLD) == RENAMED
    assert rename_as_transformers(("llava",), RENAMED.values()) == {}


def test_renames_by_the_attribute_of_older_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = {r"^language_model\.model": "model.language_model", r"^vision_tower": "model.vision_tower", r"vision": "never"}
    fake(monkeypatch, OldForGeneration=type("OldForGeneration", (), {"_checkpoint_conversion_mapping": mapping}))
    found = rename_as_transformers(("OldForGeneration", "old"), ["language_model.model.w", "vision_tower.w", "lm_head.w"])
    assert found == {"language_model.model.w": "model.language_model.w", "vision_tower.w": "model.vision_tower.w"}


def test_words_that_nothing_in_the_names_connects_match_by_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = {rf"attn\.w{name}\.": f"self_attn.{name}_proj." for name in "qkv"}
    fake(monkeypatch, Renamed=type("Renamed", (), {"_checkpoint_conversion_mapping": mapping}))
    base = infos({f"layers.{layer}.attn.w{name}.weight": (4, 4) for layer in range(2) for name in "qkv"})
    finetuned = infos({f"layers.{layer}.self_attn.{name}_proj.weight": (4, 4) for layer in range(2) for name in "qkv"})
    truth = {f"layers.{layer}.self_attn.{name}_proj.weight": f"layers.{layer}.attn.w{name}.weight" for layer in range(2) for name in "qkv"}
    assert match_names(base, finetuned).base_of == {}
    found = match_names(base, finetuned, models=("Renamed",))
    assert found.base_of == truth
    assert found.notes == ("6 names (96 elements) were matched after renaming as transformers does",)
    assert match_names(finetuned, base, models=("Renamed",)).base_of == {old: new for new, old in truth.items()}


def test_a_rule_that_makes_two_names_one_matches_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, Both=type("Both", (), {"_checkpoint_conversion_mapping": {r"^(old_a|old_b)\.": "fresh."}}))
    base, finetuned = infos({"old_a.w": (4, 4), "old_b.w": (4, 4)}), infos({"fresh.w": (4, 4)})
    assert match_names(base, finetuned, models=("Both",)).base_of == {}


@pytest.mark.parametrize("mapping", [{"(": "x"}, {r"^old": r"\9"}, {1: 2}, [("a", "b")]])
def test_rules_that_fail_match_nothing(monkeypatch: pytest.MonkeyPatch, mapping: object) -> None:
    fake(monkeypatch, Broken=type("Broken", (), {"_checkpoint_conversion_mapping": mapping}))
    assert rename_as_transformers(("Broken",), ["old.w"]) == {}


@pytest.mark.parametrize("installed", [False, True])
def test_without_a_transformers_that_knows_rules_nothing_fails(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    fake(monkeypatch)
    if not installed:
        monkeypatch.setitem(sys.modules, "transformers", None)
    assert rename_as_transformers(("llava",), OLD) == {}


def test_it_is_not_imported_where_all_names_match() -> None:
    code = (
        "import sys\nfrom deltapack.checkpoint import match_names\nfrom support.layouts import infos, llama\n"
        "base = infos(llama())\nmatch_names(base, base, models=('llama',))\n"
        "match_names(base, infos(llama('m.model.', head='')), models=('llama',))\n"
        "match_names(infos({'a.b.w': (2, 2)}), infos({'c.d.w': (2, 2)}))\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_models_are_named_by_the_config() -> None:
    config: dict[str, object] = {
        "architectures": ["LlavaForConditionalGeneration", 3],
        "model_type": "llava",
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "not a name"},
    }
    assert model_names(config) == ("LlavaForConditionalGeneration", "llava", "llama")


@pytest.mark.parametrize("config", [{}, {"architectures": 3, "model_type": ["x"]}, {"model_type": "not a name", "text_config": {"x": 1}}])
def test_a_config_that_says_nothing_names_nothing(config: dict[str, object]) -> None:
    assert model_names(config) == ()


def test_names_that_match_without_rules_are_left_alone(newest: Any) -> None:
    base, finetuned = llama(), llama("language_model.model.", head="language_model.lm_head.weight")
    found = match_names(infos(base), infos(finetuned), models=("LlavaForConditionalGeneration", "llava"))
    assert found.base_of == {f"language_model.{name}": name for name in base}
