"""Names that differ: layouts of well-known models, wrappers, traps where nothing may be matched, bounds, random renamings."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.layouts import LAYOUTS, Shapes, clip_tower, gpt2, infos, llama, qwen_visual, renamed

from deltapack.checkpoint import NameMatch, TensorInfo, match_names, rewrites
from deltapack.checkpoint.keys import fits, joined, parts_of
from deltapack.checkpoint.renames import STEPS, match_renamed
from deltapack.checkpoint.rewrites import LONGEST

BARE = clip_tower("")
TEXT, VISION = clip_tower("text_model."), clip_tower("vision_model.")
Table = dict[str, tuple[int, ...]]


def match(base: Shapes, finetuned: Shapes) -> NameMatch:
    return match_names(infos(base), infos(finetuned))


def without(shapes: Shapes, *words: str) -> Table:
    return {name: shape for name, shape in shapes.items() if not any(word in name for word in words)}


def below(prefix: str, shapes: Shapes) -> Table:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize("way", ["older base", "newer base"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_real_models_match(name: str, way: str) -> None:
    build, rules = LAYOUTS[name]
    old = build()
    new, old_of = renamed(old, *rules)
    found = match(old, new) if way == "older base" else match(new, old)
    truth = old_of if way == "older base" else {old: new for new, old in old_of.items()}
    assert found.base_of == truth
    assert not any("--map" in note for note in found.notes)
    changed = sum(old != new for new, old in old_of.items())
    assert sum(int(note.split()[0]) for note in found.notes) == changed


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_match_beside_removed_and_new_tensors(name: str) -> None:
    build, rules = LAYOUTS[name]
    old = build()
    new, old_of = renamed(old, *rules)
    removed = next(name for name in old if name.endswith(("norm.weight", "bias", "beta", "norm1.weight")))
    finetuned = {name: shape for name, shape in new.items() if old_of[name] != removed}
    found = match(old, finetuned | {"classifier.dense.weight": (9, 7), "classifier.out.bias": (9,)})
    assert found.base_of == {new: old for new, old in old_of.items() if old != removed}
    assert found.only_base == (removed,)
    assert found.only_finetuned == ("classifier.dense.weight", "classifier.out.bias")


def test_each_rewrite_is_told_with_names_and_elements() -> None:
    base = {"model.layers.0.q.weight": (4, 4), "model.layers.1.q.weight": (4, 4), "visual.blocks.0.qkv.weight": (2, 3)}
    finetuned, _ = renamed(base, (r"^model\.", "model.language_model."), (r"^visual", "model.visual"))
    assert match(base, finetuned).notes == (
        "2 names (32 elements) were matched after reading 'model.' of the base as 'model.language_model.'",
        "1 name (6 elements) was matched after removing the prefix 'model.' from the fine-tune",
    )


def test_wrappers_on_both_sides_are_told_for_each() -> None:
    found = match({"module.a.weight": (2, 2)}, {"a._orig_mod.weight": (2, 2)})
    assert found.base_of == {"a._orig_mod.weight": "module.a.weight"}
    assert found.notes == (
        "1 name (4 elements) was matched after removing 'module' from the base and removing '_orig_mod' from the fine-tune",
    )


def test_a_wrapper_is_kept_where_two_names_would_become_one() -> None:
    found = match({"a.weight": (2, 2)}, {"_orig_mod.a.weight": (2, 2), "module.a.weight": (2, 2)})
    assert found.base_of == {}
    assert any("more than one partner" in note and "--map" in note for note in found.notes)


def test_a_name_that_is_only_a_wrapper_stays() -> None:
    assert match({"module": (2,)}, {"module.module": (2,)}).base_of == {"module.module": "module"}


AMBIGUOUS: dict[str, tuple[Table, Table]] = {
    "a bare tower of two": (TEXT | VISION, BARE),
    "a bare tower of two, one of them larger": (TEXT | clip_tower("vision_model.", layers=4), clip_tower("", layers=4)),
    "two towers of a bare one": (BARE, TEXT | VISION),
    "both towers renamed": (TEXT | VISION, clip_tower("a.") | clip_tower("b.")),
    "a tower removed, another added": (TEXT | VISION, VISION | clip_tower("audio_model.")),
    "a tower removed, one of no telling name added": (TEXT | VISION, VISION | clip_tower("x.")),
    "encoder and decoder": (clip_tower("encoder."), clip_tower("decoder.")),
    "one of two, renamed": (clip_tower("encoder.") | clip_tower("decoder."), clip_tower("decoder.") | clip_tower("x.")),
    "policy and reference": (clip_tower("policy."), clip_tower("ref.")),
    "actor and critic": (llama(), below("actor.", llama()) | below("critic.", llama())),
    "a copy beside the original's place": (without(BARE, "final"), without(below("a.", BARE) | below("b.", BARE), "final")),
    "a tensor that a module of both sides has now": (
        {"embed.weight": (4, 2), "decoder.a.weight": (2, 2)},
        {"decoder.a.weight": (2, 2), "decoder.embed.weight": (4, 2)},
    ),
    "one tensor of a large new module": (
        {"head.weight": (4, 2)},
        below("new.", {f"l{i}.weight": (4, 2) for i in range(9)} | {"head.weight": (4, 2)}),
    ),
}


@pytest.mark.parametrize("way", ["so", "the other way"])
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_where_two_readings_are_possible_nothing_is_matched_and_it_is_said(name: str, way: str) -> None:
    base, finetuned = AMBIGUOUS[name][:: 1 if way == "so" else -1]
    found = match(base, finetuned)
    assert {new: old for new, old in found.base_of.items() if new != old} == {}
    assert [note for note in found.notes if "use --map" in note]


DIFFERENT: dict[str, tuple[Table, Table]] = {
    "q and k": (without(llama(), "k_proj"), without(llama(), "q_proj")),
    "k and v": (without(llama(), "k_proj"), without(llama(), "v_proj")),
    "gate and up": (without(llama(), "gate_proj"), without(llama(), "up_proj")),
    "other layers": (without(llama(), "layers.2"), without(llama(), "layers.0")),
    "other numbers in words": (without(BARE, "layer_norm1"), without(BARE, "layer_norm2")),
    "one layer out of many": ({"layers.0.w": (2, 2)}, {"layers.0.0.w": (2, 2), "layers.1.0.w": (2, 2)}),
    "experts of one network": ({"mlp.up.weight": (4, 4)}, {f"mlp.experts.{i}.up.weight": (4, 4) for i in range(4)}),
    "all words differ": (
        {f"transformer.h.{i}.attn.weight": (8, 8) for i in range(4)},
        {f"gpt.blocks.{i}.mixer.weight": (8, 8) for i in range(4)},
    ),
    "other shapes": (TEXT, clip_tower("", width=14)),
}


@pytest.mark.parametrize("way", ["so", "the other way"])
@pytest.mark.parametrize("name", DIFFERENT)
def test_numbers_and_other_tensors_are_never_partners(name: str, way: str) -> None:
    base, finetuned = DIFFERENT[name][:: 1 if way == "so" else -1]
    assert {new: old for new, old in match(base, finetuned).base_of.items() if new != old} == {}


def test_floats_and_codes_are_no_partners() -> None:
    assert match_names(infos({"a.w": (2, 2)}, "i32"), infos({"m.a.w": (2, 2)}, "bf16")).base_of == {}


def test_a_removed_tower_leaves_the_other_its_partner() -> None:
    found = match(TEXT | VISION, below("model.", VISION))
    assert found.base_of == {f"model.{name}": name for name in VISION}
    assert found.only_base == tuple(sorted(TEXT))


def test_towers_of_different_width_are_told_apart() -> None:
    assert match(TEXT | clip_tower("vision_model.", width=14), BARE).base_of == {name: f"text_model.{name}" for name in BARE}


def test_a_rewrite_of_many_names_beats_a_chance() -> None:
    base = gpt2("")
    found = match(base, below("transformer.", base) | {"x.wte.weight": (40, 12)})
    assert found.base_of == {f"transformer.{name}": name for name in base}
    assert found.only_finetuned == ("x.wte.weight",)


def test_a_moved_module_takes_its_lone_tensors_along() -> None:
    base = gpt2() | {"transformer.scale": (3,)}
    assert (
        match(base, {name.replace("transformer.", "model."): shape for name, shape in base.items()}).base_of["model.scale"]
        == "transformer.scale"
    )


def test_a_map_comes_before_rewrites() -> None:
    base = {"w": (2, 2), "v": (2, 2)}
    found = match_names(infos(base), infos(below("m.", base)), [(r"m\.v", "w")])
    assert (found.base_of, found.only_finetuned, found.only_base) == ({"m.v": "w"}, ("m.w",), ("v",))
    assert found.notes == ("1 names were matched by --map",)


def test_what_a_map_leads_nowhere_gets_no_other_partner() -> None:
    base = {"w": (2, 2), "v": (2, 2)}
    found = match_names(infos(base), infos(below("m.", base)), [(r"m\.(?:(v)|w)", r"\1")])
    assert (found.base_of, found.only_base) == ({"m.v": "v"}, ("w",))


def test_the_search_is_bounded_by_counted_steps() -> None:
    """Twenty thousand names a side with nothing in common take a tenth of the steps, so two hundred thousand fit."""
    count = 20_000
    base = infos({f"a.b{i}.c.{i}.d{i}.weight": (4,) for i in range(count)})
    finetuned = infos({f"x.y{i}.{i}.z.q{i}.bias": (4,) for i in range(count)})
    assert match_renamed(base, finetuned, {}, steps=STEPS // 10).notes == ()
    assert any("too many names" in note for note in match_renamed(base, finetuned, {}, steps=STEPS // 1000).notes)


def test_work_grows_with_names_not_with_pairs_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def counted(one: TensorInfo, other: TensorInfo) -> bool:
        looked.append(one.name)
        return fits(one, other)

    monkeypatch.setattr(rewrites, "fits", counted)
    for count in (200, 2000):
        base = infos({f"a{i}.same.weight": (4,) for i in range(count)})
        finetuned = infos({f"b{i}.same.weight": (4,) for i in range(count)})
        looked.clear()
        assert match_renamed(base, finetuned, {}).base_of == {}
        assert len(looked) <= 4 * count


@pytest.mark.parametrize("parts", [LONGEST + 1, 5000])
def test_names_of_very_many_parts_match_when_equal_or_unwrapped_only(parts: int) -> None:
    name = ".".join(["a"] * parts)
    assert match({name: (2,)}, {f"module.{name}": (2,)}).base_of == {f"module.{name}": name}
    assert match({name: (2,)}, {f"x.{name}": (2,)}).base_of == {}


@pytest.mark.parametrize("alphabet", ["a", "ab", "01", ["a", ""], ["a", "0", "module"]])
def test_hostile_names_are_one_to_one(alphabet: list[str]) -> None:
    rng = random.Random(1)
    base, finetuned = ({".".join(rng.choices(alphabet, k=rng.randrange(1, 40))): (2,) for _ in range(500)} for _ in range(2))
    found = match(base, finetuned)
    assert len(set(found.base_of.values())) == len(found.base_of)


WORDS = (
    "model",
    "encoder",
    "decoder",
    "layers",
    "blocks",
    "attn",
    "mlp",
    "norm",
    "proj",
    "q_proj",
    "k_proj",
    "text_model",
    "vision_model",
    "fc1",
    "fc2",
)
NEW_WORDS = ("language_model", "wrapped", "inner", "trunk", "net2")


@st.composite
def trees(draw: st.DrawFn) -> Table:
    """Names of a model: paths of common words and numbers, with few shapes, so that much is alike."""
    part = st.sampled_from(WORDS) | st.integers(0, 2).map(str)
    paths = draw(st.lists(st.lists(part, min_size=1, max_size=4), min_size=1, max_size=20))
    names = {".".join((*path, "weight")) for path in paths}
    return {name: draw(st.sampled_from([(4, 4), (4,), (8, 4), (6, 6)])) for name in sorted(names)}


@given(data=st.data(), base=trees())
def test_random_renamings_are_found_or_nothing_is_matched(data: st.DataObject, base: Table) -> None:
    """Modules move below new words or change their word, some tensors are removed, some are new: no partner is ever wrong."""
    rules = []
    for number, word in enumerate(data.draw(st.lists(st.sampled_from(NEW_WORDS), max_size=3, unique=True))):
        stem = data.draw(st.sampled_from(sorted(base))).split(".")
        depth = data.draw(st.integers(0, len(stem) - 1))
        kind = data.draw(st.sampled_from(["below", "instead"] if depth and not stem[depth - 1].isdigit() else ["below"]))
        rules.append((tuple(stem[:depth]), (*stem[: depth - (kind == "instead")], f"{word}{'x' * number}")))
    truth = {}
    for name in base:
        parts = tuple(name.split("."))
        for stem_, new in rules:
            if parts[: len(stem_)] == stem_:
                parts = (*new, *parts[len(stem_) :])
                break
        truth[".".join(parts)] = name
    removed = data.draw(st.sets(st.sampled_from(sorted(truth)), max_size=3))
    added = {f"added{i}.{data.draw(st.sampled_from(WORDS))}.extra": (5, 5) for i in range(data.draw(st.integers(0, 3)))}
    finetuned = {new: base[old] for new, old in truth.items() if new not in removed} | added
    found = match(base, finetuned)
    assert len(set(found.base_of.values())) == len(found.base_of)
    wrong = {new: old for new, old in found.base_of.items() if truth.get(new) != old and new != old}
    assert wrong == {}


@given(st.permutations(["model.", "visual.", "head.", "norm."]), st.data())
def test_several_rewrites_at_once_are_all_found(order: list[str], data: st.DataObject) -> None:
    base = llama(layers=2, head="") | qwen_visual() | {"head.dense.weight": (5, 3), "head.dense.bias": (5,), "head.out.bias": (2,)}
    stems = [stem for stem in order if any(name.startswith(stem) for name in base)]
    words = data.draw(st.lists(st.sampled_from(["a", "b.c", "trunk", "model"]), min_size=len(stems), max_size=len(stems)))
    rules = [(rf"^{stem[:-1]}\.", f"{word}.{stem}") for stem, word in zip(stems, words, strict=True)]
    truth = {}
    for name in base:
        word = next(word for stem, word in zip(stems, words, strict=True) if name.startswith(stem))
        truth[f"{word}.{name}"] = name
    assert rules
    found = match(base, {new: base[old] for new, old in truth.items()})
    assert found.base_of == truth


@given(st.data())
def test_towers_of_equal_shapes_are_never_swapped(data: st.DataObject) -> None:
    """Towers stay, are removed, move below a word, lose a word in front, or get another name, all at once."""
    prefixes = data.draw(
        st.lists(st.sampled_from(["", "a.", "b.", "a.b.", "m.a.", "m.b.", "text_model.", "m."]), min_size=1, max_size=4, unique=True)
    )
    base: Table = {}
    truth: dict[str, str] = {}
    for number, prefix in enumerate(prefixes):
        build = data.draw(st.sampled_from([clip_tower, gpt2]))
        tower = build(prefix, data.draw(st.integers(1, 3)))
        kind = data.draw(st.sampled_from(["stays", "removed", "below", "shorter", "instead", "deeper"]))
        new = {
            "stays": prefix,
            "below": f"new{number}.{prefix}",
            "shorter": prefix.partition(".")[2],
            "instead": f"word{'x' * number}.",
            "deeper": f"{prefix}inner.",
        }.get(kind)
        fresh = {name: shape for name, shape in tower.items() if name not in base}
        base |= fresh
        moved = {} if new is None else {new + name[len(prefix) :]: name for name in fresh}
        if not truth.keys() & moved.keys():  # of two towers in one place no name could tell which layer is whose
            truth |= moved
    kept = {new: base[old] for new, old in truth.items()}
    found = match(base, kept)
    equal = {new for new in kept if new in base}
    wrong = {new: old for new, old in found.base_of.items() if truth[new] != old and new not in equal}
    # where a tower took the name of one that is gone, equal names are partners, and nothing is known of what is left
    assert wrong == {} or any(truth[new] != new for new in equal)
    assert len(set(found.base_of.values())) == len(found.base_of)


@given(st.text("a0./", max_size=12))
def test_parts_of_a_name_are_the_name(name: str) -> None:
    parts = parts_of(name)
    assert joined(parts) == name and len(parts) == 1 + name.count(".") + name.count("/")
