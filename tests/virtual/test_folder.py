"""A virtual folder has, byte for byte, the files that `apply` or `merge` writes, however they are read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from support.builders import (
    Model,
    Tensor,
    edited,
    mixed_model,
    moved,
    random_tensor,
    read_folder,
    small_model,
    tuned_model,
    write_file,
    write_folder,
)
from support.chains import State, chains, comes_back, make_steps
from support.laws import examples
from support.shelves import large_model

import deltapack
from deltapack import Recipe
from deltapack.composing.chunks import make_chunk
from deltapack.errors import (
    BaseMismatchError,
    ChecksumError,
    DeltapackError,
    FormatError,
    InputChangedError,
    NotAPackError,
    RecipeError,
    SourceError,
)
from deltapack.virtual.cache import ChunkCache
from deltapack.virtual.chunks import RestoredChunks
from deltapack.virtual.folder import VirtualFolder

DARE, EXACT = Recipe(drop_rate=0.5), Recipe(exact=True)
LEAST = 1 << 26


def pack(folder: Path, base: Path, tensors: Model, name: str, recipe: Recipe = DARE, **files: str) -> Path:
    write_folder(folder / name, tensors, {key.replace("_", "."): text for key, text in files.items()})
    deltapack.compress(base, folder / name, folder / f"{name}.dpk", recipe=recipe)
    return folder / f"{name}.dpk"


def all_of(folder: VirtualFolder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.names()}


def check_same(folder: VirtualFolder, written: Path) -> None:
    """All files, whole and in pieces of any length, are those that were written, and sizes are what was announced."""
    wanted = read_folder(written)
    assert all_of(folder) == wanted
    assert dict(folder.names()) == {name: len(data) for name, data in wanted.items()}
    rng = np.random.default_rng(1)
    for name, data in wanted.items():
        for _ in range(8):
            start, length = int(rng.integers(0, len(data) + 3)), int(rng.integers(0, 1 << 20))
            assert folder.read(name, start, length) == data[start : start + length]
        step = max(1, len(data) // 7 + 3)
        assert b"".join(folder.read(name, start, step) for start in range(0, len(data), step)) == data


@pytest.mark.parametrize("recipe", [DARE, EXACT, Recipe()], ids=["dare", "exact", "budget"])
@pytest.mark.parametrize("model", [small_model, mixed_model, large_model])
def test_the_files_that_apply_writes(model: Any, recipe: Recipe, tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", model(), {"tokenizer.json": "{}" * 400})
    tuned = tuned_model(model()) | {"new": random_tensor(5, (30, 20))}
    if "frozen.weight" in tuned:
        tuned["frozen.weight"] = model()["frozen.weight"]
    made = pack(tmp_path, base, tuned, "tuned", recipe, config_json='{"a": 1}\n')
    deltapack.apply(base, made, tmp_path / "out")
    with VirtualFolder(base, made, cache=LEAST) as folder:
        check_same(folder, tmp_path / "out")


def test_shards_ties_and_sub_folders(tmp_path: Path) -> None:
    tensors = small_model()
    (tmp_path / "base").mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [{name: tensors[name] for name in own} for own in (("embed.weight", "layer.bias"), ("layer.weight", "positions"))]
    for name, part in zip(names, parts, strict=True):
        write_file(tmp_path / "base" / name, part, {"lm_head.weight": "embed.weight"} if part is parts[0] else None)
    where = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "unet").mkdir()
    write_file(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors", {"w": random_tensor(3, (60, 50))})
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    write_file(tuned / "model.safetensors", tuned_model(tensors), {"lm_head.weight": "embed.weight"})
    (tuned / "unet").mkdir()
    write_file(tuned / "unet" / "diffusion_pytorch_model.safetensors", {"w": moved(random_tensor(3, (60, 50)), 4)})
    for name, recipe in (("dare", DARE), ("exact", EXACT)):
        deltapack.compress(tmp_path / "base", tuned, tmp_path / f"{name}.dpk", recipe=recipe)
        deltapack.apply(tmp_path / "base", tmp_path / f"{name}.dpk", tmp_path / name)
        with VirtualFolder(tmp_path / "base", tmp_path / f"{name}.dpk") as folder:
            check_same(folder, tmp_path / name)
            assert "unet/diffusion_pytorch_model.safetensors" in folder.names()


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base and packs of three fine-tunes."""
    base = write_folder(tmp_path / "base", large_model(), {"README.md": "---\nlicense: mit\n---\n"})
    return base, [pack(tmp_path, base, tuned_model(large_model(), 100 * number), f"tuned{number}") for number in (1, 2, 3)]


def test_several_packs_are_added(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = three
    deltapack.merge(base, packs, tmp_path / "sum", weights=[0.5, 0.25, -1])
    with VirtualFolder(base, packs, weights=[0.5, 0.25, -1]) as folder:
        check_same(folder, tmp_path / "sum")
    deltapack.apply(base, packs[0], tmp_path / "half", weight=0.5)
    with VirtualFolder(base, packs[0], weights=0.5) as folder:
        check_same(folder, tmp_path / "half")


RECIPES = {
    "linear": "merge_method: linear\nparameters: {weight: 0.5}\n",
    "ties": "merge_method: ties\nparameters: {density: 0.3, weight: 0.5}\ndtype: bfloat16\n",
    "sce": "merge_method: sce\nparameters: {select_topk: 0.4}\n",
    "model_stock": "merge_method: model_stock\n",
}


@pytest.mark.parametrize("name", RECIPES)
def test_merge_recipes(name: str, three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = three
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPES[name] + f"base_model: org/base\nmodels: [{', '.join('{model: org/' + path.stem + '}' for path in packs)}]\n")
    found = deltapack.read_merge_file(recipe)
    deltapack.merge(base, found.packs, tmp_path / "merged", recipe=found.recipe, dtype=found.dtype)
    with VirtualFolder(base, recipe) as folder:
        check_same(folder, tmp_path / "merged")


@pytest.mark.parametrize("recipe", [EXACT, DARE], ids=["exact", "dare"])
def test_chains_of_large_tensors(recipe: Recipe, tmp_path: Path) -> None:
    states = [State(large_model())]
    for number in (1, 2, 3):
        states.append(State(tuned_model(states[-1].tensors, 10 * number), files={"step": f"{number}\n"}))
    steps = make_steps(tmp_path, states, recipe=recipe)
    for order in (steps.packs, steps.packs[::-1]):
        with VirtualFolder(steps.base, order) as folder:
            check_same(folder, steps.folders[-1])


@given(states=chains())
@examples(12)
def test_any_chain(states: Sequence[State]) -> None:
    with tempfile.TemporaryDirectory() as where:
        steps = make_steps(Path(where), states, recipe=EXACT)
        if comes_back(steps):
            return
        with VirtualFolder(steps.base, steps.packs, workers=1) as folder:
            check_same(folder, steps.folders[-1])


def changed_base(base: Path, name: str, where: int) -> None:
    tensors = large_model()
    tensors[name] = edited(tensors[name], where, 7)
    write_file(base / "model.safetensors", tensors)


@pytest.mark.parametrize("recipe", [DARE, EXACT], ids=["dare", "exact"])
@pytest.mark.parametrize(("name", "where"), [("a.weight", 2_000_000), ("frozen.weight", 1_050_000), ("b.norm.weight", 3)])
def test_nothing_of_another_base_is_given_out(name: str, where: int, recipe: Recipe, tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", large_model())
    tuned = tuned_model(large_model()) | {"frozen.weight": large_model()["frozen.weight"]}
    made = pack(tmp_path, base, tuned, "tuned", recipe)
    deltapack.apply(base, made, tmp_path / "out")
    wanted = (tmp_path / "out" / "model.safetensors").read_bytes()
    changed_base(base, name, where)
    with VirtualFolder(base, made) as folder:
        for _ in range(2):
            with pytest.raises(BaseMismatchError, match=r"other content|not the one"):
                folder.read("model.safetensors")
        for start in range(0, len(wanted), 50_000):
            try:
                found = folder.read("model.safetensors", start, 1000)
            except BaseMismatchError as error:
                assert error.tensor == name
            else:
                assert found == wanted[start : start + 1000]


def test_another_base_is_told_by_its_headers_at_once(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_model())
    made = pack(tmp_path, base, tuned_model(small_model()), "tuned")
    other = write_folder(tmp_path / "other", small_model() | {"layer.bias": random_tensor(3, (699,))})
    with pytest.raises(BaseMismatchError, match="not the base"):
        VirtualFolder(other, made)


def test_a_pack_that_promises_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_folder(tmp_path / "base", large_model())
    made = pack(tmp_path, base, tuned_model(large_model()), "tuned")
    with VirtualFolder(base, made) as folder:
        chunks = folder._chunks
        tensor = chunks._tensors["a.weight"]
        chunks._ready("a.weight")
        tensor.of_result = [b"\0" * 16 for _ in tensor.of_result]
        with pytest.raises(ChecksumError, match="not what the pack promises"):
            folder.read("model.safetensors")


def test_only_errors_that_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network or a disk could not do once it may do the next time; a base that is another one stays so."""
    base = write_folder(tmp_path / "base", large_model())
    made = pack(tmp_path, base, tuned_model(large_model()), "tuned", EXACT)
    real, tries = RestoredChunks._make_whole, list[int]()

    def fails_once(self: RestoredChunks, *given: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise SourceError("the file cannot be read")
        real(self, *given)

    monkeypatch.setattr(RestoredChunks, "_make_whole", fails_once)
    with VirtualFolder(base, made, cache=LEAST, workers=1) as folder:
        with pytest.raises(SourceError):
            folder._chunks.chunk("a.weight", 0)
        assert len(folder._chunks.chunk("a.weight", 0)) and len(tries) == 2


def test_an_error_that_is_kept_does_not_grow(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", large_model())
    made = pack(tmp_path, base, tuned_model(large_model()), "tuned", EXACT)
    with open(base / "model.safetensors", "r+b") as file:
        file.seek(3_000_000)
        file.write(b"another")
    lengths = list[int]()
    with VirtualFolder(base, made, cache=LEAST, workers=1) as folder:
        for _ in range(4):
            with pytest.raises(BaseMismatchError) as caught:
                folder._chunks.chunk("a.weight", 0)
            lengths.append(len(caught.traceback))
    assert lengths[1] == lengths[-1]  # the first time it is raised farther down


def test_a_damaged_pack_is_told_where_it_is_read(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", large_model())
    made = pack(tmp_path, base, tuned_model(large_model()), "tuned")
    data = bytearray(made.read_bytes())
    data[300_000] ^= 1
    made.write_bytes(data)
    with VirtualFolder(base, made) as folder, pytest.raises(FormatError):
        folder.read("model.safetensors")


def test_what_no_folder_comes_of(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_model())
    made = pack(tmp_path, base, tuned_model(small_model()), "tuned")
    with VirtualFolder(base, made) as folder:
        for name, offset, length in (("no", 0, 1), ("../base/config.json", 0, 1), ("config.json", -1, 1), ("config.json", 0, -1)):
            with pytest.raises(RecipeError, match="no such"):
                folder.read(name, offset, length)
        assert folder.read("config.json", 100, 5) == b""
    with pytest.raises(RecipeError, match="closed"):
        folder.read("config.json")
    folder.close()
    for asked, what in (([], "no pack"), (base / "config.json", "pack")):
        with pytest.raises(DeltapackError, match=what):
            VirtualFolder(base, asked)
    with pytest.raises(RecipeError, match="too small"):
        VirtualFolder(base, made, cache="1MB")
    with pytest.raises(NotAPackError):
        VirtualFolder(base, tmp_path / "no.dpk")
    (tmp_path / "r.yaml").write_text("merge_method: linear\nmodels: [{model: org/tuned}]\n")
    with pytest.raises(RecipeError, match="recipe says the weights"):
        VirtualFolder(base, tmp_path / "r.yaml", weights=2)


def test_etags_follow_contents(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = three
    with VirtualFolder(base, packs[0]) as one, VirtualFolder(base, packs[0]) as again, VirtualFolder(base, packs[1]) as two:
        assert {name: one.etag(name) for name in one.names()} == {name: again.etag(name) for name in again.names()}
        assert one.etag("model.safetensors") != two.etag("model.safetensors")
        assert one.etag("config.json") == two.etag("config.json")
    tags = []
    for weights in ([1, 1], [1, 0.5]):
        with VirtualFolder(base, packs[:2], weights=weights) as folder:
            tags.append(folder.etag("model.safetensors"))
    assert len(set(tags)) == 2


def test_many_readers_at_once(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = three
    deltapack.apply(base, packs[0], tmp_path / "out")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    wrong: list[int] = []

    def read(folder: VirtualFolder, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            start, length = int(rng.integers(0, len(data))), int(rng.integers(0, 200_000))
            if folder.read("model.safetensors", start, length) != data[start : start + length]:
                wrong.append(start)

    with VirtualFolder(base, packs[0], cache=LEAST) as folder:
        threads = [threading.Thread(target=read, args=(folder, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def chunk(value: int, size: int = 10) -> np.ndarray[Any, Any]:
    return np.full(size, value, np.uint8)


def test_the_cache_keeps_within_its_bound_and_forgets_the_oldest() -> None:
    cache = ChunkCache(30)
    owner = cache.owner()
    for number in (0, 1, 2):
        cache.get((owner, "x", number), lambda number=number: chunk(number))  # type: ignore[misc]
    cache.get((owner, "x", 0), lambda: pytest.fail("it is kept"))
    cache.get((owner, "x", 3), lambda: chunk(3))
    assert cache.nbytes == 30
    assert [cache.knows((owner, "x", number)) for number in range(4)] == [True, False, True, True]
    cache.get((owner, "x", 4), lambda: chunk(4, 31))
    assert cache.nbytes == 30 and not cache.knows((owner, "x", 4))
    cache.forget(owner)
    cache.put((owner, "x", 5), chunk(5))
    assert cache.nbytes == 0


def test_a_chunk_is_made_once_and_failures_are_not_kept() -> None:
    cache, made, gate = ChunkCache(100), list[int](), threading.Event()
    key = (cache.owner(), "x", 0)

    def make() -> np.ndarray[Any, Any]:
        gate.wait(10)
        made.append(1)
        if len(made) == 1:
            raise ValueError("the first one fails")
        return chunk(1)

    results: list[object] = []

    def ask() -> None:
        try:
            results.append(cache.get(key, make)[0])
        except ValueError as error:
            results.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and sorted(map(str, results)) == ["1", "1", "1", "the first one fails"]


def test_a_base_of_another_kind(tmp_path: Path) -> None:
    import torch

    base = write_folder(tmp_path / "base", small_model())
    made = pack(tmp_path, base, tuned_model(small_model()), "tuned")
    arrays = {name: torch.from_numpy(tensor.bits.copy()) for name, tensor in small_model().items()}
    (base / "model.safetensors").unlink()
    torch.save(arrays, base / "pytorch_model.bin")
    deltapack.apply(base, made, tmp_path / "out")
    with VirtualFolder(base, made) as folder:
        check_same(folder, tmp_path / "out")


def test_large_side_files_of_the_base_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_model(), {"tokenizer.json": "x" * (3 << 20)})
    made = pack(tmp_path, base, tuned_model(small_model()), "tuned", tokenizer_json="x" * (3 << 20))
    with VirtualFolder(base, made) as folder:
        assert folder.read("tokenizer.json", 5, 3) == b"xxx"
    with VirtualFolder(base, made) as folder:
        (base / "tokenizer.json").write_text("x" * (3 << 20) + "y")
        with pytest.raises(InputChangedError, match="the file changed"):
            folder.read("tokenizer.json", 5, 3)
        (base / "tokenizer.json").write_text("y" * (3 << 20))
        with pytest.raises(InputChangedError, match="the file changed"):
            folder.read("tokenizer.json", 5, 3)


def test_new_rows_and_fewer_rows(tmp_path: Path) -> None:
    base = {"grown": random_tensor(1, (1000, 1100)), "shrunk": random_tensor(2, (1100, 1000)), "w": random_tensor(3, (64, 64))}
    tuned = tuned_model(base)
    tuned["grown"] = Tensor("f32", np.concatenate([tuned["grown"].bits, random_tensor(7, (9, 1100)).bits]))
    tuned["shrunk"] = Tensor("f32", tuned["shrunk"].bits[:900])
    folder_of_base = write_folder(tmp_path / "base", base)
    for name, recipe in (("dare", DARE), ("exact", EXACT)):
        made = pack(tmp_path, folder_of_base, tuned, name, recipe)
        deltapack.apply(folder_of_base, made, tmp_path / "out", force=True)
        with VirtualFolder(folder_of_base, made) as folder:
            check_same(folder, tmp_path / "out")


def test_closing_waits_for_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file may get the number of one that is closed while it is read."""
    base = write_folder(tmp_path / "base", large_model())
    made = pack(tmp_path, base, tuned_model(large_model(), 5), "tuned")
    deltapack.apply(base, made, tmp_path / "written")
    folder, closing = VirtualFolder(base, made), list[threading.Thread]()
    reader = threading.current_thread()

    def slowly(*args: Any) -> Any:
        if threading.current_thread() is reader and not closing:
            closing.append(threading.Thread(target=folder.close))
            closing[0].start()
            closing[0].join(0.5)
        return make_chunk(*args)

    monkeypatch.setattr("deltapack.virtual.chunks.make_chunk", slowly)
    assert folder.read("model.safetensors") == (tmp_path / "written" / "model.safetensors").read_bytes()
    closing[0].join()
    with pytest.raises(RecipeError, match="no such file"):
        folder.read("model.safetensors")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("recipe", [DARE, EXACT], ids=["dare", "exact"])
def test_a_process_that_is_forked_while_others_read(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for ever for a chunk that a thread made which was not forked with it."""
    base = write_folder(tmp_path / "base", large_model())
    made = pack(tmp_path, base, tuned_model(large_model(), 5), "tuned", recipe)
    deltapack.apply(base, made, tmp_path / "written")
    wanted = (tmp_path / "written" / "model.safetensors").read_bytes()
    parent, inside, go_on = os.getpid(), threading.Event(), threading.Event()

    def slowly(*args: Any) -> Any:
        if os.getpid() == parent:
            inside.set()
            go_on.wait(30)
        return make_chunk(*args)

    for module in ("virtual.chunks", "composing.chunks"):
        monkeypatch.setattr(f"deltapack.{module}.make_chunk", slowly)
    other = pack(tmp_path, base, tuned_model(large_model(), 7), "other")

    def status_of_child(expected: str) -> int:
        child = os.fork()
        if not child:
            signal.alarm(20)
            try:
                same = folder.read("model.safetensors") == wanted
                folder.close()
                os._exit(0 if same and not expected else 1)
            except RecipeError as error:
                os._exit(0 if expected and expected in str(error) else 2)
            finally:
                os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with VirtualFolder(base, made) as folder:
        reader = threading.Thread(target=folder.read, args=("model.safetensors",), daemon=True)
        reader.start()
        try:
            assert inside.wait(20) and status_of_child("") == 0
            os.replace(other, made)
            assert status_of_child("changed since the folder was opened") == 0
        finally:
            go_on.set()
            reader.join()


def test_etags_of_recipes_name_packs_by_content(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """Whatever their files are called: two may have one name, and one two."""
    base, packs = three
    for number, pack in enumerate(packs[:2]):
        (tmp_path / f"{number}").mkdir()
        shutil.copy(pack, tmp_path / f"{number}" / "same.dpk")

    def etag(files: Sequence[Path], decides: Path) -> str:
        recipe = tmp_path / "recipe.yaml"
        models = ", ".join(f"{{model: {file}}}" for file in files)
        recipe.write_text(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{models}]\nprefer: {decides}\n")
        with VirtualFolder(base, recipe) as folder:
            return folder.etag("model.safetensors")

    same = [tmp_path / "0" / "same.dpk", tmp_path / "1" / "same.dpk"]
    assert etag(same, same[0]) != etag(same, same[1])
    assert [etag(same, one) for one in same] == [etag(packs[:2], one) for one in packs[:2]]
