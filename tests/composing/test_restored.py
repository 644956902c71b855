"""What packs restore one after the other, unwritten, is the checkpoint that they restore when each is applied and written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import strategies as st
from support.builders import (
    CHUNK,
    Model,
    Tensor,
    edited,
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
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing.chain import restored_from
from deltapack.composing.restored import RestoredCheckpoint
from deltapack.errors import BaseMismatchError, CheckpointError, FormatError, LimitError
from deltapack.format.arrangement import Arrangement
from deltapack.format.reader import PackReader

MODEL = small_model()
RECIPES = (deltapack.Recipe(), deltapack.Recipe(exact=True), deltapack.Recipe(drop_rate=0.5, exact="^b|^ids$"))


def same_checkpoint(view: Checkpoint, written: Path) -> None:
    """Compare all that a checkpoint says."""
    with open_checkpoint(written) as there:
        assert dict(view.tensors) == dict(there.tensors)
        assert list(view.tensors) == list(there.tensors)
        for name, info in there.tensors.items():
            assert view.read(name).tobytes() == there.read(name).tobytes(), name
            for start, stop in ((0, min(3, info.numel)), (info.numel // 2, info.numel), (info.numel, info.numel)):
                assert view.read(name, start, stop).tobytes() == there.read(name, start, stop).tobytes()
        for what in ("aliases", "metadata", "folders", "is_folder"):
            assert getattr(view, what) == getattr(there, what), what
        assert view.weight_shards() == there.weight_shards()
        assert [view.home_of(name) for name in view.tensors] == list(there.tensors)
        for include_code in (False, True):
            ours, theirs = (checkpoint.list_side_files(include_code)[0] for checkpoint in (view, there))
            assert [(file.name, file.size, file.read()) for file in ours] == [(file.name, file.size, file.read()) for file in theirs]
        for file in there.side_files():
            found = view.side_file(file.name)
            assert found is not None and found.read() == file.read()
        assert view.side_file("no such file") is None


def check_steps(steps: Steps) -> None:
    """Compare the view after each pack with what was written."""
    with ExitStack() as stack:
        view: Checkpoint = stack.enter_context(open_checkpoint(steps.base))
        for pack, folder in zip(steps.packs, steps.folders, strict=True):
            view = RestoredCheckpoint(view, stack.enter_context(PackReader(pack)))
            same_checkpoint(view, folder)


@pytest.mark.parametrize(("recipe", "count"), list(zip(RECIPES, (20, 100, 20), strict=True)), ids=["lossy", "exact", "both"])
def test_a_long_chain_restores_every_step(recipe: deltapack.Recipe, count: int, tmp_path: Path) -> None:
    model = {"a": random_tensor(1, (50, 20)), "b": random_tensor(2, (300,), "bf16"), "c": whole("i64", np.arange(9))}
    states = [State(model)]
    for number in range(count):
        changed = dict(states[-1].tensors)
        name = "ab"[number % 2]
        changed[name] = moved(changed[name], number)
        if number % 7 == 0:
            changed["c"] = edited(changed["c"], number % 9, number)
        states.append(State(changed))
    steps = make_steps(tmp_path, states, recipe=recipe)
    check_steps(steps)
    deltapack.apply(steps.base, steps.packs, tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(steps.folders[-1])
    if recipe.exact is True:
        assert read_model(tmp_path / "out") == states[-1].tensors


@examples(40, phases=[Phase.explicit, Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck))
@given(chains(), st.booleans(), st.sampled_from(RECIPES))
def test_random_chains(states: list[State], code: bool, recipe: deltapack.Recipe) -> None:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        # An expression that finds no tensor is refused.
        assume(recipe.exact in (True, False) or all(any(name[0] == "b" or name == "ids" for name in state.tensors) for state in states[1:]))
        steps = make_steps(folder, states, include_code=code, recipe=recipe)
        assume(not comes_back(steps))
        check_steps(steps)
        deltapack.apply(steps.base, steps.packs, folder / "out", workers=1)
        assert read_folder(folder / "out") == read_folder(steps.folders[-1])


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=["lossy", "exact"])
def test_tensors_of_several_chunks(recipe: deltapack.Recipe, tmp_path: Path) -> None:
    """In place where lengths are the same; grown, cut and converted over chunks where they are not; ranges across chunks."""
    base = random_tensor(1, (CHUNK // 512 + 3, 512), "bf16")
    grown = Tensor("bf16", np.concatenate([base.bits, base.bits[: CHUNK // 512]]))
    models: list[Model] = [{"w": base}, {"w": moved(base, 2)}, {"w": moved(grown, 3)}, {"w": moved(grown, 4, dtype="f32")}]
    models.append({"w": Tensor("f32", models[-1]["w"].bits[: CHUNK // 512 + 1])})
    steps = make_steps(tmp_path, [State(model) for model in models], recipe=recipe)
    check_steps(steps)
    with open_checkpoint(steps.base) as files, PackReader(steps.packs[0]) as one, PackReader(steps.packs[1]) as two:
        view = restored_from(files, [one, two])
        with open_checkpoint(steps.folders[1]) as there:
            for start, stop in ((CHUNK - 3, CHUNK + 3), (5, 2 * CHUNK - 5), (CHUNK, 2 * CHUNK), (1, 2)):
                assert view.read("w", start, stop).tobytes() == there.read("w", start, stop).tobytes()


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=["lossy", "exact"])
def test_arranged_tensors_in_the_middle(recipe: deltapack.Recipe, tmp_path: Path) -> None:
    """A fine-tune in another layout, whose fused tensors the next packs change."""
    q, k = random_tensor(1, (64, 64)), random_tensor(2, (64, 64))
    fused = Tensor("f32", np.concatenate([q.bits, k.bits]))
    split: Model = {f"layers.{layer}.{part}_proj.weight": tensor for layer in range(3) for part, tensor in (("gate", q), ("up", k))}
    split = {name: moved(tensor, number, 0.5) for number, (name, tensor) in enumerate(split.items())}
    fused_model: Model = {
        f"layers.{layer}.gate_up_proj.weight": Tensor(
            "f32", np.concatenate([split[f"layers.{layer}.{part}_proj.weight"].bits for part in ("gate", "up")])
        )
        for layer in range(3)
    }
    assert fused.shape == (128, 64)
    states = [State(split), State(tuned_model(split, 50)), State(tuned_model(fused_model, 60)), State(tuned_model(fused_model, 70))]
    steps = make_steps(tmp_path, states, recipe=recipe)
    with PackReader(steps.packs[1]) as pack:
        assert "arranged" in pack.index.required
    check_steps(steps)


def test_layouts_do_not_nest_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = make_steps(tmp_path, [State(MODEL), State(tuned_model(MODEL))])
    some = {"x": Arrangement(((1,),), ())}
    monkeypatch.setattr("deltapack.composing.restored.arrangements_of", lambda index: some)
    monkeypatch.setattr("deltapack.composing.restored._check_link", lambda former, pack: None)
    with open_checkpoint(steps.base) as base, PackReader(steps.packs[0]) as pack:
        view: Checkpoint = base
        for _ in range(16):
            view = RestoredCheckpoint(view, pack)
        with pytest.raises(LimitError, match="squash --base"):
            RestoredCheckpoint(view, pack)


def test_untouched_tensors_are_ranges_of_the_files(tmp_path: Path) -> None:
    states = [State(MODEL), State(MODEL | {"layer.bias": moved(MODEL["layer.bias"], 3)}), State(MODEL)]
    steps = make_steps(tmp_path, states)
    with open_checkpoint(steps.base) as base, PackReader(steps.packs[0]) as one, PackReader(steps.packs[1]) as two:
        view = restored_from(base, [one, two])
        place, same = view.file_range("embed.weight", 5), base.file_range("embed.weight", 5)
        assert place is not None and same is not None and place == same
        assert view.file_range("layer.bias", 0) is None
        assert view.weight_paths() == [*base.weight_paths(), *steps.packs]


def test_another_base_is_found_at_the_first_chunk(tmp_path: Path) -> None:
    steps = make_steps(tmp_path, [State(MODEL), State(tuned_model(MODEL, 5)), State(tuned_model(MODEL, 9))])
    other = State(MODEL | {"layer.weight": edited(MODEL["layer.weight"], 7, 0)}).write(tmp_path / "other")
    with open_checkpoint(other) as base, PackReader(steps.packs[0]) as one, PackReader(steps.packs[1]) as two:
        view = restored_from(base, [one, two])
        assert view.read("embed.weight").size
        with pytest.raises(BaseMismatchError, match=r"other: tensor 'layer.weight': .* chunk 0"):
            view.read("layer.weight", 3, 4)
        assert restored_from(base, [one, two], verify=False).read("layer.weight", 3, 4).size


def test_a_pack_that_says_another_digest_than_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints of a base are what a pack says; digests of tensors are compared, too."""
    steps = make_steps(tmp_path, [State(MODEL), State(tuned_model(MODEL, 5)), State(tuned_model(MODEL, 9))])
    with open_checkpoint(steps.base) as base, PackReader(steps.packs[1]) as pack:
        first = RestoredCheckpoint(base, PackReader(steps.packs[0]))
        first.promised["embed.weight"] = "0" * 32
        with pytest.raises(BaseMismatchError, match=r"0001\.dpk: tensor 'embed.weight': .* found digest 0{32}"):
            RestoredCheckpoint(first, pack)
        first.packs[0].close()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [lambda reader: reader.index.entries[0].terms[0].blob.end - 1, lambda reader: 3], ids=["payload", "prologue"]
)
def test_a_damaged_link_is_named(damage: Callable[[PackReader], int], tmp_path: Path) -> None:
    steps = make_steps(tmp_path, [State(MODEL), *(State(tuned_model(MODEL, seed)) for seed in (5, 6, 7))])
    with PackReader(steps.packs[1]) as reader:
        at = damage(reader)
    flip(steps.packs[1], at)
    for out in (tmp_path / "out", tmp_path / "out.safetensors"):
        with pytest.raises(FormatError, match=r"0001\.dpk"):
            deltapack.apply(steps.base, steps.packs, out)
        assert not out.exists()


def test_it_is_closed_with_its_base(tmp_path: Path) -> None:
    steps = make_steps(tmp_path, [State(MODEL), State(tuned_model(MODEL, 5))])
    with PackReader(steps.packs[0]) as pack:
        with open_checkpoint(steps.base) as base:
            view = RestoredCheckpoint(base, pack)
            assert view.read("layer.bias").size
        with pytest.raises(CheckpointError, match="closed"):
            view.read("layer.bias")
