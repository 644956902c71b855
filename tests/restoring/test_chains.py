"""`apply` of a chain: one command, nothing in between, and nothing to do where the result is there already."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builders import edited, leftovers, moved, random_tensor, read_file, read_folder, small_model, tuned_model, write_file
from support.chains import State, Steps, make_steps
from support.mutants import index_of, with_index

import deltapack
from deltapack.errors import BaseMismatchError, CheckpointError, DeltapackError, FormatError, OutputError, RecipeError

MODEL = tuned_model(small_model(), 0)
FILES = {"tokenizer.json": "{}\n" * 50, "README.md": "a model\n"}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    files = [FILES, FILES | {"tokenizer.json": "{}\n" * 51}, FILES | {"tokenizer.json": "{}\n" * 51, "LICENSE": "free\n"}]
    states = [State(tuned_model(MODEL, 10 * number) if number else MODEL, files=files[min(number, 2)]) for number in range(4)]
    return make_steps(tmp_path_factory.mktemp("steps"), states)


@pytest.mark.parametrize("workers", [1, 3])
def test_it_is_what_packs_give_one_by_one(steps: Steps, workers: int, tmp_path: Path) -> None:
    report = deltapack.apply(steps.base, steps.packs, tmp_path / "out", workers=workers)
    assert read_folder(tmp_path / "out") == read_folder(steps.folders[-1])
    assert report.verified and report.written and report.tensors == len(MODEL)
    deltapack.apply(steps.base, (str(steps.packs[0]),), tmp_path / "one", workers=workers)
    assert read_folder(tmp_path / "one") == read_folder(steps.folders[0])


def test_any_order_gives_the_same(steps: Steps, tmp_path: Path) -> None:
    deltapack.apply(steps.base, [steps.packs[number] for number in (2, 0, 1)], tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(steps.folders[-1])


def test_one_file(steps: Steps, tmp_path: Path) -> None:
    """A bare file as base lacks the files that packs refer to, and a bare file as output does not miss them."""
    base = shutil.copy(steps.base / "model.safetensors", tmp_path / "base.safetensors")
    deltapack.apply(base, steps.packs, tmp_path / "out.safetensors")
    assert read_file(tmp_path / "out.safetensors") == read_file(steps.folders[-1] / "model.safetensors")
    with pytest.raises(BaseMismatchError, match=r"Name the base's folder"):
        deltapack.apply(base, steps.packs, tmp_path / "out")
    assert not leftovers(tmp_path)


def test_other_types_and_shards(steps: Steps, tmp_path: Path) -> None:
    deltapack.apply(steps.base, steps.packs, tmp_path / "out", dtype="bf16", max_shard_size=100_000)
    deltapack.apply(steps.folders[-2], steps.packs[-1], tmp_path / "one", dtype="bf16", max_shard_size=100_000)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "one")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_a_result_that_is_there_is_a_success(steps: Steps, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = deltapack.apply(steps.base, steps.packs, out)
    (out / "notes.txt").write_text("mine\n")
    (out / "README.md").write_text("a better text\n")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = deltapack.apply(steps.base, steps.packs, out)
    assert (again.written, again.verified, again.tensors, again.tensor_bytes) == (False, True, first.tensors, first.tensor_bytes)
    assert "nothing was written" in again.notes[-1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    file = tmp_path / "out.safetensors"
    assert deltapack.apply(steps.base, steps.packs, file).written and not deltapack.apply(steps.base, steps.packs, file).written


def change_tensor(out: Path) -> None:
    tensors = read_file(out / "model.safetensors")
    tensors["layer.weight"] = edited(tensors["layer.weight"], -1, 5)
    write_file(out / "model.safetensors", tensors)


def add_tensor(out: Path) -> None:
    write_file(out / "model.safetensors", {**read_file(out / "model.safetensors"), "x": MODEL["layer.bias"]})


def cut(out: Path) -> None:
    data = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(data[:-1])


OTHERS: dict[str, Callable[[Path], object]] = {
    "an element": change_tensor,
    "a tensor more": add_tensor,
    "a tokenizer": lambda out: (out / "tokenizer.json").write_text("{}"),
    "no tokenizer": lambda out: (out / "tokenizer.json").unlink(),
    "a cut file": cut,
    "no weights": lambda out: (out / "model.safetensors").unlink(),
    "an adapter": lambda out: [(out / f"adapter_{name}").write_text("{}") for name in ("config.json", "model.safetensors")],
    "weights of another format": lambda out: (out / "pytorch_model.bin").write_bytes(b"x"),
    "a chat template": lambda out: (out / "chat_template.jinja").write_text("x"),
    "code": lambda out: (out / "modeling.py").write_text("x"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_anything_else_that_is_there_is_not_replaced(other: str, steps: Steps, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deltapack.apply(steps.base, steps.packs, out)
    OTHERS[other](out)
    before = read_folder(out)
    with pytest.raises(OutputError, match="the output exists"):
        deltapack.apply(steps.base, steps.packs, out)
    assert read_folder(out) == before


def test_the_result_of_one_exact_pack_is_a_success_too(tmp_path: Path) -> None:
    """So a job that is started again fails neither at the first step of a chain nor at an anchor."""
    states = [State(MODEL, files=FILES), State(tuned_model(MODEL, 1), files=FILES)]
    steps, out = make_steps(tmp_path, states, recipe=deltapack.Recipe(exact=True)), tmp_path / "out"
    assert deltapack.apply(steps.base, steps.packs[0], out).written
    again = deltapack.apply(steps.base, steps.packs[0], out)
    assert not again.written and "holds what the pack gives already" in again.notes[-1]
    for options in ({"weight": 0.5}, {"dtype": "bf16"}, {"max_shard_size": 100_000}):
        with pytest.raises(OutputError, match="the output exists"):
            deltapack.apply(steps.base, steps.packs[0], out, **options)
    assert deltapack.apply(steps.base, steps.packs[0], out, force=True).written
    change_tensor(out)
    with pytest.raises(OutputError, match="the output exists"):
        deltapack.apply(steps.base, steps.packs[0], out)


def test_a_single_lossy_pack_still_wants_force(steps: Steps, tmp_path: Path) -> None:
    deltapack.apply(steps.base, steps.packs[0], tmp_path / "out")
    for pack in (steps.packs[0], steps.packs[:1]):
        with pytest.raises(OutputError, match="the output exists"):
            deltapack.apply(steps.base, pack, tmp_path / "out")


REFUSED: dict[str, tuple[Callable[[Steps], list[Path]], type[DeltapackError], str]] = {
    "no first": (lambda steps: steps.packs[1:], BaseMismatchError, "base: side file 'tokenizer.json' is not the one"),
    "no middle": (lambda steps: [steps.packs[0], steps.packs[2]], BaseMismatchError, r"0002\.dpk follows .* 0000\.dpk gives"),
    "twice": (lambda steps: [*steps.packs, steps.packs[1]], RecipeError, "given twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_chains_with_gaps_are_refused_before_anything_is_written(case: str, steps: Steps, tmp_path: Path) -> None:
    choose, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        deltapack.apply(steps.base, choose(steps), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["embed.weight", "positions"])
def test_another_base_is_refused(name: str, steps: Steps, tmp_path: Path) -> None:
    """Also where it differs in a tensor that no pack changes."""
    other = State(MODEL | {name: edited(MODEL[name], 3, 7)}, files=FILES).write(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match=f"other: tensor '{name}'"):
        deltapack.apply(other, steps.packs, tmp_path / "out")
    assert not leftovers(tmp_path) and not (tmp_path / "out").exists()
    with pytest.raises(BaseMismatchError):
        deltapack.apply(tmp_path / "other", steps.packs, steps.folders[0], force=True)


def test_siblings_are_for_merge(steps: Steps, tmp_path: Path) -> None:
    tuned = State(tuned_model(MODEL, 77), files=FILES).write(tmp_path / "tuned")
    deltapack.compress(steps.base, tuned, tmp_path / "b.dpk")
    with pytest.raises(BaseMismatchError, match="`deltapack merge` adds them"):
        deltapack.apply(steps.base, [steps.packs[0], tmp_path / "b.dpk"], tmp_path / "out")


def test_every_pack_of_a_chain_names_the_base_whose_digests_it_holds(steps: Steps, tmp_path: Path) -> None:
    """As for a pack alone; `verify` refuses what `apply` does."""
    first = tmp_path / "first.dpk"
    data = steps.packs[0].read_bytes()
    index = index_of(data)
    first.write_bytes(with_index(data, {**index, "base": {**index["base"], "fingerprint": "0" * 64}}))
    for packs in ([first], [first, *steps.packs[1:]]):
        for act in (
            lambda packs=packs: deltapack.verify(packs),
            lambda packs=packs: deltapack.verify(packs, steps.base),
            lambda packs=packs: deltapack.apply(steps.base, packs, tmp_path / "out"),
        ):
            with pytest.raises(FormatError, match=r"first\.dpk.*holds the digests of another"):
                act()
    assert [path.name for path in tmp_path.iterdir()] == ["first.dpk"]


def test_packs_are_protected(steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    packs = [Path(shutil.copy(pack, tmp_path / "packs")) for pack in steps.packs]
    with pytest.raises(OutputError, match="holds one of the inputs"):
        deltapack.apply(steps.base, packs, tmp_path / "packs", force=True)
    assert all(pack.exists() for pack in packs)


def test_no_weights(steps: Steps, tmp_path: Path) -> None:
    for options in ({"weight": 0.5}, {"rescale": 2.0}):
        with pytest.raises(RecipeError, match="is for one pack: found a chain of 3"):
            deltapack.apply(steps.base, steps.packs, tmp_path / "out", **options)  # type: ignore[arg-type]


def test_without_verification(steps: Steps, tmp_path: Path) -> None:
    """A base that differs in a tensor is taken as it is, in every step."""
    other = State(MODEL | {"layer.bias": moved(MODEL["layer.bias"], 3)}, files=FILES).write(tmp_path / "other")
    report = deltapack.apply(other, steps.packs, tmp_path / "out", verify=False)
    before = other
    for number, pack in enumerate(steps.packs):
        deltapack.apply(before, pack, tmp_path / f"{number}", verify=False)
        before = tmp_path / f"{number}"
    assert not report.verified and read_folder(tmp_path / "out") == read_folder(before)


def test_a_base_that_cannot_be_read(steps: Steps, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        deltapack.apply(tmp_path, steps.packs, tmp_path / "out")


@pytest.mark.parametrize("rows", [300, 2100], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("count", [1, 2], ids=["a pack", "a chain"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_base_of_exact_packs_is_no_damaged_pack(rows: int, count: int, workers: int, tmp_path: Path) -> None:
    """What is coded after the elements of the base cannot be decoded after others, and says so with the words for a damaged pack."""
    base = {"w": random_tensor(1, (rows, 1024), "bf16")}
    states = [State(base), State({"w": moved(base["w"], 2)}), State({"w": moved(base["w"], 3)})]
    steps = make_steps(tmp_path, states[: count + 1], recipe=deltapack.Recipe(exact=True))
    other = State({"w": random_tensor(9, (rows, 1024), "bf16")}).write(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match="other: tensor 'w': the base tensor has other content"):
        deltapack.apply(other, steps.packs, tmp_path / "out", workers=workers)
    with pytest.raises(BaseMismatchError):
        deltapack.verify(steps.packs[0], other)
