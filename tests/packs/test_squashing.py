"""One pack of a chain gives what the chain gives, bit for bit, with the base and without it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from support.builders import (
    Model,
    Tensor,
    cast,
    edited,
    leftovers,
    moved,
    random_tensor,
    read_folder,
    read_model,
    small_model,
    tuned_model,
    whole,
)
from support.chains import State, Steps, chains, comes_back, make_steps
from support.laws import examples

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import BaseMismatchError, FormatError, OutputError, RecipeError
from deltapack.format.reader import PackReader

EXACT = deltapack.Recipe(exact=True)
BASE = small_model()


def same_result(one: Path, other: Path) -> None:
    """Compare two folders: tensors, ties, and files but for the weights."""
    assert read_model(one) == read_model(other)
    rest = [{name: data for name, data in read_folder(folder).items() if not name.endswith(".safetensors")} for folder in (one, other)]
    assert rest[0] == rest[1]
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        assert (ours.aliases, ours.metadata, ours.folders) == (theirs.aliases, theirs.metadata, theirs.folders)


def check(steps: Steps, folder: Path, base: bool) -> deltapack.SquashReport:
    """Squash all packs and compare what the new one gives with what they give, and fingerprints with theirs."""
    report = deltapack.squash(steps.packs, folder / "all.dpk", base=steps.base if base else None, force=True, workers=1)
    assert report.coded_anew is base and report.links == steps.packs
    deltapack.verify(folder / "all.dpk", steps.base, workers=1)
    deltapack.apply(steps.base, folder / "all.dpk", folder / "squashed", force=True, workers=1)
    same_result(folder / "squashed", steps.folders[-1])
    with PackReader(folder / "all.dpk") as new, PackReader(steps.packs[0]) as first, PackReader(steps.packs[-1]) as last:
        if last.index.containers:  # weight files are the fine-tune's own, byte for byte
            assert read_folder(folder / "squashed") == read_folder(steps.folders[-1])
            assert [(head.name, head.sha256) for head in new.index.containers] == [
                (head.name, head.sha256) for head in last.index.containers
            ]
        assert new.index.base_fingerprint == first.index.base_fingerprint
        assert new.index.result_fingerprint == last.index.result_fingerprint
        assert not any(entry.terms for entry in new.index.entries)
    return report


@examples(20, suppress_health_check=list(HealthCheck))
@given(chains(), st.sampled_from((deltapack.Recipe(), EXACT)))
def test_random_chains(states: list[State], recipe: deltapack.Recipe) -> None:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        steps = make_steps(folder, states, recipe=recipe, include_code=True)
        assume(not comes_back(steps))
        check(steps, folder, base=True)
        if recipe.exact:
            try:
                check(steps, folder, base=False)
            except RecipeError as error:
                assert "--base BASE" in str(error) and len(steps.packs) > 1


def steps_of(folder: Path, *models: Model, **options: object) -> Steps:
    return make_steps(folder, [State(model) for model in models], recipe=EXACT, **options)


def test_steps_are_put_behind_one_another(tmp_path: Path) -> None:
    """A tensor that all packs change, one that one changes, one that none does, and an integer."""
    models = [BASE]
    for number in range(5):
        models.append(models[-1] | {"layer.weight": moved(models[-1]["layer.weight"], number)})
    models[3] = models[3] | {"positions": edited(BASE["positions"], 3, 99)}
    models[4], models[5] = (model | {"positions": models[3]["positions"]} for model in models[4:])
    steps = steps_of(tmp_path, *models)
    report = check(steps, tmp_path, base=False)
    assert report.pack_bytes < report.links_bytes
    with PackReader(tmp_path / "all.dpk") as pack:
        found = {entry.name: (entry.kind, len(entry.exact)) for entry in pack.index.entries}
    assert found == {
        "embed.weight": ("unchanged", 0),
        "layer.bias": ("unchanged", 0),
        "layer.weight": ("exact", 5),
        "positions": ("exact", 1),
    }
    again = deltapack.squash([tmp_path / "all.dpk"], tmp_path / "again.dpk")
    assert again.pack_bytes


def test_squashed_packs_are_links(tmp_path: Path) -> None:
    models = [BASE]
    for number in range(4):
        models.append(tuned_model(models[-1], 10 * number))
    steps = steps_of(tmp_path, *models)
    deltapack.squash(steps.packs[:2], tmp_path / "a.dpk")
    deltapack.squash(steps.packs[3:1:-1], tmp_path / "b.dpk")
    deltapack.apply(steps.base, [tmp_path / "a.dpk", tmp_path / "b.dpk"], tmp_path / "out")
    same_result(tmp_path / "out", steps.folders[-1])
    deltapack.squash([tmp_path / "a.dpk", tmp_path / "b.dpk"], tmp_path / "ab.dpk")
    deltapack.apply(steps.base, tmp_path / "ab.dpk", tmp_path / "squashed")
    same_result(tmp_path / "squashed", steps.folders[-1])


def test_tensors_that_are_new_and_change(tmp_path: Path) -> None:
    """Their chunk digests are made by decoding them; the base is not needed."""
    new = random_tensor(5, (1100, 1000), "bf16")
    steps = steps_of(tmp_path, BASE, BASE | {"new": new}, BASE | {"new": moved(new, 6)}, BASE | {"new": moved(new, 7)})
    check(steps, tmp_path, base=False)


def test_names(tmp_path: Path) -> None:
    """Renamed, swapped, removed, removed and made anew."""
    a, b, c = (random_tensor(number, (40, 30)) for number in range(3))
    first: Model = {"a.weight": a, "b.weight": b, "c.weight": c, "ids": whole("i64", np.arange(4))}
    second = {"a.weight": moved(a, 1), "b.weight": b, "ids": first["ids"]}
    third = {"x.a.weight": moved(a, 2), "x.b.weight": b, "ids": first["ids"], "c.weight": random_tensor(8, (3, 3))}
    steps = steps_of(tmp_path, first, second, third)
    check(steps, tmp_path, base=False)


def lossy(folder: Path) -> list[Path]:
    return make_steps(folder, [State(BASE), State(tuned_model(BASE)), State(tuned_model(BASE, 5))]).packs


def other_type(folder: Path) -> list[Path]:
    tuned = tuned_model(BASE)
    return steps_of(folder, BASE, tuned, tuned | {"layer.weight": cast(tuned["layer.weight"].f64, "bf16")}).packs


def other_shape(folder: Path) -> list[Path]:
    tuned = tuned_model(BASE)
    grown = Tensor("f32", np.concatenate([tuned["embed.weight"].bits, tuned["embed.weight"].bits[:3]]))
    return steps_of(folder, BASE, tuned, tuned | {"embed.weight": grown}).packs


def too_many_steps(folder: Path) -> list[Path]:
    models = [{"w": random_tensor(number, (30,)), "ids": whole("i64", [1])} for number in range(66)]
    return steps_of(folder, *models).packs


REFUSED: dict[str, tuple[Callable[[Path], list[Path]], str]] = {
    "lossy": (lossy, r"0000\.dpk: tensor 'embed.weight': a pack of the chain is lossy: found delta"),
    "another type": (other_type, r"0001\.dpk: tensor 'layer.weight': .*another type or shape"),
    "another shape": (other_shape, r"0001\.dpk: tensor 'embed.weight': .*another type or shape"),
    "too many steps": (too_many_steps, r"tensor 'w': too many steps of a tensor: expected at most 64, found 65"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_the_base(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    packs = make(tmp_path)
    with pytest.raises(RecipeError, match=message + r".*--base BASE packs what the chain restores anew"):
        deltapack.squash(packs, tmp_path / "all.dpk")
    assert not (tmp_path / "all.dpk").exists() and not leftovers(tmp_path)
    deltapack.squash(packs, tmp_path / "all.dpk", base=tmp_path / "base")
    deltapack.apply(tmp_path / "base", tmp_path / "all.dpk", tmp_path / "squashed")
    same_result(tmp_path / "squashed", tmp_path / f"restored{len(packs) - 1}")


def test_side_files(tmp_path: Path) -> None:
    """Carried, unchanged, after the base's, after an earlier pack's; the base's is asked for where it must be known."""
    text = "{\n" + "".join(f'  "word {7 * number % 301}": {number},\n' for number in range(300)) + '  "end": 300\n}\n'
    one, two = text.replace("end", "ende"), text.replace("end", "endings")
    plain = tuned_model(BASE)
    for name, files in {
        "carried": ({"a.txt": "x"}, {"a.txt": "y"}, {"a.txt": "y"}, {"a.txt": "z"}),
        "of the base": ({"tokenizer.json": text}, {"tokenizer.json": one}, {"tokenizer.json": one}),
        "later": ({"tokenizer.json": text}, {"tokenizer.json": text}, {"tokenizer.json": two}),
        "after a pack's": ({}, {"tokenizer.json": text}, {"tokenizer.json": two}),
        "gone": ({"a.txt": "x", "b.txt": "y"}, {"a.txt": "x"}, {}),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        steps = make_steps(folder, [State(BASE if not number else plain, files=own) for number, own in enumerate(files)], recipe=EXACT)
        check(steps, folder, base=False)
    folder = tmp_path / "twice"
    folder.mkdir()
    states = [State(BASE, files={"tokenizer.json": content}) for content in (text, one, two)]
    steps = make_steps(folder, states, recipe=EXACT)
    with pytest.raises(RecipeError, match=r"the file 'tokenizer.json' cannot be known without the base's\. Give the base"):
        deltapack.squash(steps.packs, folder / "all.dpk")
    check(steps, folder, base=True)


def test_damage_is_found(tmp_path: Path) -> None:
    steps = steps_of(tmp_path, BASE, tuned_model(BASE), tuned_model(BASE, 5))
    with PackReader(steps.packs[1]) as pack:
        at = pack.index.entries[0].exact[0].blob.end - 1
    data = bytearray(steps.packs[1].read_bytes())
    data[at] ^= 1
    steps.packs[1].write_bytes(data)
    for base in (None, steps.base):
        with pytest.raises(FormatError, match=r"0001\.dpk: tensor 'embed.weight'"):
            deltapack.squash(steps.packs, tmp_path / "all.dpk", base=base)
        assert not (tmp_path / "all.dpk").exists()


@pytest.mark.parametrize("name", ["layer.weight", "positions"])
def test_another_base(name: str, tmp_path: Path) -> None:
    steps = steps_of(tmp_path, BASE, tuned_model(BASE), tuned_model(BASE, 5))
    other = State(BASE | {name: edited(BASE[name], 3, 7)}).write(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match=f"other: tensor '{name}'"):
        deltapack.squash(steps.packs, tmp_path / "all.dpk", base=other)
    assert not (tmp_path / "all.dpk").exists()


def test_why_a_chain_has_no_weight_files(tmp_path: Path) -> None:
    """All are safetensors files; but a lossy pack has no headers of those that it restores."""
    steps = steps_of(tmp_path, BASE, tuned_model(BASE))
    State(tuned_model(BASE, 5)).write(tmp_path / "last")
    lossy = tmp_path / "lossy.dpk"
    deltapack.compress(steps.base, tmp_path / "last", lossy, base_packs=steps.packs)
    report = deltapack.squash([*steps.packs, lossy], tmp_path / "all.dpk", base=steps.base)
    (note,) = (note for note in report.notes if "not byte for byte" in note)
    assert note.endswith(f"the last pack of the chain, {lossy}, has no headers of them")


def test_gaps_and_outputs(tmp_path: Path) -> None:
    steps = steps_of(tmp_path, BASE, *(tuned_model(BASE, seed) for seed in (1, 2, 3)))
    with pytest.raises(BaseMismatchError, match="missing: a pack"):
        deltapack.squash([steps.packs[0], steps.packs[2]], tmp_path / "all.dpk")
    with pytest.raises(RecipeError, match="no pack to squash"):
        deltapack.squash([], tmp_path / "all.dpk")
    for base in (None, steps.base):
        before = steps.packs[1].read_bytes()
        with pytest.raises(OutputError, match="one of the inputs"):
            deltapack.squash(steps.packs, steps.packs[1], base=base, force=True)
        assert steps.packs[1].read_bytes() == before
