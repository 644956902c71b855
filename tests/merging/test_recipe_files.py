"""Recipes in YAML: what is read, and that everything else is refused by file and key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.builders import random_tensor, read_model, tuned_model, write_file
from support.laws import examples

import deltapack
from deltapack import Recipe
from deltapack.errors import RecipeError
from deltapack.merging.recipe import Rule

MERGEKIT = """
models:
  - model: org/base-7b
  - model: org/math-7b@main
    parameters:
      weight: 0.5
      density: [0.5, 0.75]
  - model: org/code-7b
    parameters:
      weight:
        - filter: self_attn
          value: [0, 1e-1]
        - value: 0.25
merge_method: dare_ties
base_model: org/base-7b
parameters:
  density: 0.9
  normalize: true
  int8_mask: true
  lambda: 1e-1
dtype: bfloat16
tokenizer_source: org/code-7b
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and the packs math-7b.dpk, code-7b.dpk (dare), della.dpk."""
    path = tmp_path_factory.mktemp("recipes")
    base = {f"layers.{layer}.{part}.w": random_tensor(layer, (40, 40)) for layer in range(3) for part in ("mlp", "self_attn")}
    write_file(path / "base.safetensors", base)
    for number, (name, recipe) in enumerate(
        {
            "math-7b": Recipe(drop_rate=0.5),
            "code-7b": Recipe(drop_rate=0.5),
            "della": Recipe(drop_rate=0.5, sparsify="della", epsilon=0.125),
        }.items()
    ):
        write_file(path / "tuned.safetensors", tuned_model(base, 10 * number + 10))
        deltapack.compress(path / "base.safetensors", path / "tuned.safetensors", path / f"{name}.dpk", recipe=recipe)
    return path


def read(folder: Path, text: str) -> deltapack.MergeFile:
    (folder / "merge.yml").write_text(text)
    return deltapack.read_merge_file(folder / "merge.yml", folder)


def test_a_file_of_mergekit(folder: Path) -> None:
    found = read(folder, MERGEKIT)
    assert found.packs == (folder / "math-7b.dpk", folder / "code-7b.dpk")
    assert (found.dtype, found.assets) == ("bf16", folder / "code-7b.dpk")
    assert found.recipe.method == "dare_ties"
    assert found.recipe.parameters == {"normalize": 1.0, "lambda": 0.1}
    assert found.recipe.weights[0].single == 0.5
    assert found.recipe.densities[0].rules == (Rule((0.5, 0.75)),)
    assert found.recipe.densities[1].single == 0.9
    weight = found.recipe.weights[1]
    assert [weight.at(name, 0.5) for name in ("layers.1.self_attn.w", "layers.1.mlp.w")] == [0.05, 0.25]
    assert any("int8_mask" in note for note in found.notes)


def test_it_merges(folder: Path) -> None:
    found = read(folder, MERGEKIT)
    out = folder / "out.safetensors"
    deltapack.merge(folder / "base.safetensors", found.packs, out, recipe=found.recipe, dtype=found.dtype, force=True)
    assert {tensor.dtype for tensor in read_model(out).values()} == {"bf16"}


def test_paths_of_packs(folder: Path) -> None:
    text = "merge_method: linear\nmodels:\n- {model: ./math-7b.dpk, parameters: {weight: 0.5}}\n- model: code-7b.dpk\n"
    found = read(folder, text + "tokenizer_source: base\n")
    assert [path.name for path in found.packs] == ["math-7b.dpk", "code-7b.dpk"]
    assert [schedule.single for schedule in found.recipe.weights] == [0.5, 1]
    assert found.assets == "base" and found.dtype is None


@pytest.mark.parametrize(
    ("text", "vocab", "assets"),
    [
        ("tokenizer_source: union\n", "union", None),
        ("tokenizer: {source: union}\n", "union", None),
        ("tokenizer: {source: base}\n", None, "base"),
        ("tokenizer: {source: math-7b}\n", None, "math-7b.dpk"),
        ("", None, None),
        ("assets: math-7b\n", None, "math-7b.dpk"),
        ("assets: org/the-base\n", None, "base"),
        ("vocab: math-7b\nassets: base\n", "math-7b.dpk", "base"),
        ("vocab: org/the-base\n", "base", None),
        ("vocab: union\nassets: math-7b\n", "union", "math-7b.dpk"),
        ("tokenizer_source: union\nassets: base\n", "union", "base"),
        ("tokenizer_source: math-7b\nvocab: base\n", "base", "math-7b.dpk"),
    ],
)
def test_whose_tokens(folder: Path, text: str, vocab: str | None, assets: str | None) -> None:
    found = read(folder, "merge_method: linear\nbase_model: org/the-base\nmodels: [{model: math-7b}]\n" + text)
    wanted = tuple(folder / name if name == "math-7b.dpk" else name for name in (vocab, assets))
    assert (found.vocab, found.assets, found.prefer) == (*wanted, None)


def test_what_each_model_has_of_its_own_is_not_shared(folder: Path) -> None:
    shared = "merge_method: linear\nparameters: {weight: 2}\nmodels: [{model: math-7b, parameters: {weight: 1}}, {model: code-7b"
    assert read(folder, shared + ", parameters: {weight: 3}}]\n").notes == ("parameters.weight has no effect: each model has its own",)
    assert read(folder, shared + "}]\n").notes == ()


def test_who_decides(folder: Path) -> None:
    assert read(folder, "merge_method: linear\nprefer: math-7b\nmodels: [{model: math-7b}]\n").prefer == folder / "math-7b.dpk"


def test_gradients_by_layer(folder: Path) -> None:
    text = "merge_method: linear\nmodels:\n- {model: math-7b, parameters: {weight: [0, 1]}}\n"
    found = read(folder, text)
    base, out = folder / "base.safetensors", folder / "out.safetensors"
    deltapack.merge(base, found.packs, out, recipe=found.recipe, force=True)
    result = read_model(out)
    for layer in range(3):
        deltapack.apply(base, found.packs[0], folder / "applied.safetensors", weight=layer / 2, force=True)
        applied = read_model(folder / "applied.safetensors")
        name = f"layers.{layer}.mlp.w"
        assert result[name] == applied[name]
    deltapack.merge(base, found.packs, folder / "merged.dpk", recipe=found.recipe, force=True)
    deltapack.apply(base, folder / "merged.dpk", folder / "applied.safetensors", force=True)
    assert read_model(folder / "applied.safetensors") == result


def test_patterns(folder: Path) -> None:
    rules = "[{pattern: '.*mlp.*', value: 0.5}, {value: 0.25}]"
    found = read(folder, f"merge_method: linear\nmodels:\n- {{model: math-7b, parameters: {{weight: {rules}}}}}\n")
    assert [found.recipe.weights[0].at(name, 0) for name in ("layers.0.mlp.w", "x")] == [0.5, 0.25]


def test_what_a_sparsifier_did_must_be_what_the_file_says(folder: Path) -> None:
    text = "merge_method: della\nmodels:\n- model: della\nparameters: {weight: 1, density: %s, epsilon: %s}\n"
    assert read(folder, text % (0.5, 0.125)).recipe.densities == ()
    with pytest.raises(RecipeError, match=r"parameters\.density.*expected 0\.5"):
        read(folder, text % (0.4, 0.125))
    with pytest.raises(RecipeError, match=r"parameters\.epsilon"):
        read(folder, text % (0.5, 0.1))


def filtered(items: str) -> str:
    return "merge_method: linear\nmodels: [{model: math-7b, parameters: {weight: [" + items + "]}}]\n"


ONE = "models: [{model: math-7b}]\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "merge_method is missing"),
        ("- 1\n", "not a mapping"),
        ("merge_method: linear\n", "models is missing"),
        ("merge_method: slerp\n" + ONE, "curve"),
        ("merge_method: magic\n" + ONE, "unknown"),
        ("merge_method: [linear]\n" + ONE, "merge_method: is not a text"),
        ("merge_method: linear\nmodels: 3\n", "models: is not a list"),
        ("merge_method: linear\nmodels: []\n", "no model"),
        ("merge_method: linear\nmodels: [3]\n", r"models\[0\]: is not a mapping"),
        ("merge_method: linear\nmodels: [{parameters: {}}]\n", r"models\[0\]: has no model"),
        ("merge_method: linear\nmodels: [{model: math-7b}, {model: math-7b}]\n", r"models\[1\]\.model: is there twice"),
        ("merge_method: linear\nmodels: [{model: nobody}]\n", r"models\[0\]\.model: this model has no pack"),
        ("merge_method: linear\nmodels: [{model: math-7b+adapter}]\n", "adapters"),
        ("merge_method: linear\nmodels: [{model: math-7b, weight: 1}]\n", r"models\[0\]\.weight is unknown"),
        ("merge_method: linear\nmodels: [{model: math-7b, parameters: {weight: true}}]\n", r"parameters\.weight: is not a number"),
        ("merge_method: linear\nmodels: [{model: math-7b, parameters: {weight: {}}}]\n", "has no value"),
        ("merge_method: linear\nmodels: [{model: math-7b, parameters: {weight: []}}]\n", "is empty"),
        ("merge_method: linear\nmodels: [{model: math-7b, parameters: {weight: [1, x]}}]\n", r"weight\[1\]: is not a number"),
        ("merge_method: linear\nmodels: [{model: math-7b, parameters: {weight: .nan}}]\n", "finite"),
        ("merge_method: linear\nmodels: [{model: math-7b, parameters: {density: 0.5}}]\n", "density"),
        (filtered("{value: 1}, {filter: a, value: 2}"), r"weight\[1\]: has no effect: one before it applies to all"),
        (filtered("{filter: a, value: 1}, {filter: a, value: 2}"), r"weight\[1\]: has no effect"),
        (filtered("{filter: '*', value: 1}, {value: 2}"), r"weight\[1\]: has no effect"),
        ("merge_method: ram\nmodels: [{model: math-7b, parameters: {weight: 0.5}}]\n", "no weight"),
        ("merge_method: linear\nslices: []\n" + ONE, "slices is not supported"),
        ("merge_method: linear\nmodules: {}\n" + ONE, "modules is not supported"),
        ("merge_method: linear\ntokenizer: {source: union, tokens: {}}\n" + ONE, r"tokenizer\.tokens is not supported"),
        ("merge_method: linear\ntokenizer: {source: union, pad_to_multiple_of: 8}\n" + ONE, r"pad_to_multiple_of is not supported"),
        ("merge_method: linear\ntokenizer: {source: union, x: 8}\n" + ONE, r"tokenizer\.x is unknown"),
        ("merge_method: linear\ntokenizer: {source: other}\n" + ONE, r"tokenizer\.source: it is not one of the models"),
        ("merge_method: linear\ntokenizer: union\n" + ONE, "tokenizer: is not a mapping"),
        ("merge_method: linear\ntokenizer: {}\n" + ONE, "tokenizer: has no source"),
        ("merge_method: linear\ntokenizer_source: 3\n" + ONE, "tokenizer_source: is not a text"),
        ("merge_method: linear\ntokenizer_source: union\ntokenizer: {source: union}\n" + ONE, "tokenizer: is there beside"),
        ("merge_method: linear\ntokenizer_source: other\n" + ONE, "tokenizer_source"),
        ("merge_method: linear\ntokenizer_source: base\nassets: math-7b\n" + ONE, "assets: is there beside tokenizer_source"),
        ("merge_method: linear\ntokenizer: {source: union}\nvocab: base\n" + ONE, r"vocab: is there beside tokenizer\.source"),
        ("merge_method: linear\nprefer: base\n" + ONE, "prefer: it is not one of the models: expected one of the models"),
        ("merge_method: linear\nassets: union\n" + ONE, "assets: it is not one of the models: expected base, or one of the models"),
        ("merge_method: linear\nvocab: 3\n" + ONE, "vocab: is not a text"),
        ("merge_method: linear\nchat_template: auto\n" + ONE, "chat_template is not supported"),
        ("merge_method: linear\ndtype: int8\n" + ONE, "dtype"),
        ("merge_method: linear\nnonsense: 1\n" + ONE, "nonsense is unknown"),
        ("merge_method: linear\nparameters: {nonsense: 1}\n" + ONE, r"parameters\.nonsense is unknown"),
        ("merge_method: linear\nparameters: {normalize: maybe}\n" + ONE, r"normalize: is not a yes or no"),
        ("merge_method: linear\nparameters: {select_topk: 1}\n" + ONE, "select_topk"),
        ("merge_method: dare_ties\nparameters: {rescale: false}\n" + ONE, "rescale"),
        ("merge_method: linear\nmerge_method: ties\n" + ONE, "twice"),
        ("merge_method: linear\nmodels: &x [*x]\n", "aliases|alias"),
        ("merge_method: linear\n1: 2\n" + ONE, "key is not a text"),
        ("merge_method: !!python/object:os.system {}\n" + ONE, "not YAML"),
        ("merge_method: 'linear\n", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_what_is_refused(folder: Path, text: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as error:
        read(folder, text)
    assert error.value.path == folder / "merge.yml"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        deltapack.read_merge_file(tmp_path / "no.yml")
    (tmp_path / "large.yml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(RecipeError, match="too large"):
        deltapack.read_merge_file(tmp_path / "large.yml")
    (tmp_path / "raw.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not YAML"):
        deltapack.read_merge_file(tmp_path / "raw.yml")


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5) | st.sampled_from(["linear", "math-7b", "("]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "models", "parameters", "weight", "merge_method", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def places_in(document: Any) -> list[tuple[Any, Any]]:
    """Every place (container, key) of a document."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [place for key in keys for place in [(document, key), *places_in(document[key])]]


@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_anything_in_one_place_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    """What is read says what can be merged; what is refused names the file."""
    import yaml

    class Plain(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
        def ignore_aliases(self, data: Any) -> bool:
            return True

    top = yaml.safe_load(MERGEKIT)
    container, key = data.draw(st.sampled_from(places_in(top)))
    container[key] = data.draw(VALUES)
    try:
        found = read(folder, yaml.dump(top, Dumper=Plain, allow_unicode=True))
    except RecipeError as error:
        assert error.path == folder / "merge.yml" and str(error).startswith(f"{error.path}: ")
    else:
        assert all(path.is_file() for path in found.packs) and len(found.packs) >= 1
        numbers = [schedule.at("layers.1.mlp.w", 0.5) for schedule in (*found.recipe.weights, *found.recipe.densities)]
        assert all(math.isfinite(number) for number in numbers if number is not None)
