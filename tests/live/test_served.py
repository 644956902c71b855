"""Packs on models of serving engines: memory holds what their own loaders make of the applied checkpoint, and then the base again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.builders import Model, bytes_of, edited, moved, random_tensor, write_file
from support.fixtures import PackOf
from support.served import HEAD, HEADS, Block, Rank, ServedLlama, llama_checkpoint, loaded
from torch import nn

import deltapack
from deltapack.errors import BackendError, BaseMismatchError, UnsupportedError
from deltapack.live.loader_layout import find_served_tensors
from deltapack.live.served import ServedModel

LAYOUTS = [
    pytest.param(of, {"experts": experts, "parallel": parallel}, fused, id=f"tp{of}{'-moe' * experts}{'-ep' * parallel}{'-fused' * fused}")
    for of in (1, 2, 4)
    for experts, parallel, fused in ((False, False, False), (False, False, True), (True, False, False), (True, True, False))
]


def checkpoint(seed: int = 0, **options: Any) -> Model:
    return {name: random_tensor(seed + number, *form) for number, (name, form) in enumerate(llama_checkpoint(**options).items())}


def tuned(base: Model, seed: int = 500) -> Model:
    return {name: moved(tensor, seed + number) for number, (name, tensor) in enumerate(base.items())}


def snapshot(model: nn.Module) -> dict[str, bytes]:
    return {name: bytes_of(tensor) for name, tensor in model.state_dict().items()}


def applied(base: Path, packs: list[Path], **weights: Any) -> dict[str, torch.Tensor]:
    out = packs[0].parent / "applied.safetensors"
    deltapack.merge(base, packs, out, force=True, **weights)
    return load_file(out)


def exact_pack(base: Path, file: Path, before: list[Path] | None = None) -> Path:
    out = file.with_suffix(".dpk")
    deltapack.compress(base, file, out, base_packs=before or [], recipe=deltapack.Recipe(exact=True), workers=1)
    return out


@pytest.fixture
def base_of(pack_of: PackOf) -> Path:
    return pack_of.folder / "base.safetensors"


@pytest.mark.parametrize(("of", "options", "fused"), LAYOUTS)
def test_every_rank_holds_its_slices_of_the_applied_checkpoint(
    pack_of: PackOf, base_of: Path, of: int, options: dict[str, bool], fused: bool
) -> None:
    base = checkpoint(experts=options["experts"], fused=fused)
    packs = [pack_of(base, tuned(base, seed), f"pack{seed}", drop_rate=0.5) for seed in (500, 700)]
    wanted, start = applied(base_of, packs, weights=[1.0, 0.5]), load_file(base_of)
    for number in range(of):
        rank = Rank(number, of)
        model = loaded(ServedLlama(rank, **options), start)
        before = snapshot(model)
        served = ServedModel(model, lambda: base_of, model.load_weights, workers=1)
        assert snapshot(model) == before and served.status()["refused"] == {}
        served.activate({packs[0]: 1.0, packs[1]: 0.5})
        assert snapshot(model) == snapshot(loaded(ServedLlama(rank, **options), wanted)) != before
        served.deactivate()
        assert snapshot(model) == before


@pytest.mark.parametrize("rank", [Rank(), Rank(0, 2), Rank(3, 4)], ids=str)
def test_exact_packs_and_chains(rank: Rank, pack_of: PackOf, base_of: Path) -> None:
    states = [checkpoint(fused=True)]
    states += [tuned(states[0], 500), tuned(states[0], 700)]
    files = [write_file(base_of.parent / f"{number}.safetensors", state) for number, state in enumerate(states[1:])]
    write_file(base_of, states[0])
    first, second = exact_pack(base_of, files[0]), exact_pack(base_of, files[1], [base_of.parent / "0.dpk"])
    model = loaded(ServedLlama(rank), load_file(base_of))
    before = snapshot(model)
    served = ServedModel(model, lambda: base_of, model.load_weights, workers=1)
    after = [snapshot(loaded(ServedLlama(rank), load_file(file))) for file in files]
    assert served.follow([first])["steps"] == [str(first)] and snapshot(model) == after[0]
    for _ in range(2):  # what is there already is not done again
        assert served.follow([second, first])["steps"] == [str(first), str(second)] and snapshot(model) == after[1]
    other = write_file(base_of.parent / "other.safetensors", tuned(states[0], 900))
    with pytest.raises(BaseMismatchError):
        served.follow([exact_pack(other, write_file(base_of.parent / "wrong.safetensors", tuned(states[0], 950)))])
    assert snapshot(model) == after[1]
    served.deactivate()
    assert snapshot(model) == before
    with pytest.raises(BaseMismatchError):
        served.follow([second])
    assert snapshot(model) == before
    served.activate([first])
    assert snapshot(model) == after[0]


def in_threads(of: int, run: Callable[[int, Callable[[Any], list[Any]]], Any]) -> list[Any]:
    """Run one function for each rank, with an exchange between them."""
    barrier, said, results = threading.Barrier(of, timeout=60), [None] * of, [None] * of

    def work(number: int) -> None:
        def exchange(text: Any) -> list[Any]:
            said[number] = text
            barrier.wait()
            everything = list(said)
            barrier.wait()
            return everything

        try:
            results[number] = run(number, exchange)
        except Exception as error:
            results[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(of)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_all_ranks_or_none(pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    packs = [pack_of(base, tuned(base, seed), f"pack{seed}", drop_rate=0.5) for seed in (500, 700)]
    start = load_file(base_of)
    models = [loaded(ServedLlama(Rank(number, 2)), start) for number in range(2)]

    def serve(number: int, exchange: Any) -> tuple[Any, ...]:
        served = ServedModel(models[number], lambda: base_of, models[number].load_weights, exchange=exchange, workers=1)
        served.activate([packs[0]])
        before = snapshot(models[number])
        missing = packs[1] if number else packs[1].with_name("nowhere.dpk")
        with pytest.raises(Exception) as caught:
            served.activate([missing])
        return caught.value, snapshot(models[number]) == before, served.status()["packs"]

    one, two = in_threads(2, serve)
    assert isinstance(two[0], BackendError) and "process 0" in str(two[0]) and "nowhere.dpk" in str(two[0])
    assert "nowhere.dpk" in str(one[0]) and one[1] and two[1]
    assert list(one[2]) == list(two[2]) == [str(packs[0])]


def test_where_others_hold_the_rest_the_base_on_the_disk_is_compared(pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    write_file(base_of, base)
    pack = exact_pack(base_of, write_file(base_of.parent / "tuned.safetensors", tuned(base)))
    name = "blocks.1.o_proj.weight"
    other = write_file(base_of.parent / "other.safetensors", base | {name: edited(base[name], HEADS * HEAD - 1, 5)})
    model = loaded(ServedLlama(Rank(0, 2)), load_file(base_of))
    before = snapshot(model)
    with pytest.raises(BaseMismatchError, match="another content") as caught:
        ServedModel(model, lambda: other, model.load_weights, workers=1).activate([pack])
    assert caught.value.tensor == name and snapshot(model) == before


class Odd(ServedLlama):
    """Loaders that do more to a tensor than to write it."""

    def load_weights(self, weights: Any) -> set[str]:
        def changed() -> Any:
            for name, tensor in weights:
                if name == "blocks.0.o_proj.weight":
                    yield name, self.odd(tensor)
                else:
                    yield name, tensor

        names = super().load_weights(changed())
        self.after()
        return names

    def odd(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def after(self) -> None:
        pass


class Scaled(Odd):
    def odd(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2


class After(Odd):
    def after(self) -> None:
        weight = self.get_submodule("blocks.0.o_proj").weight
        assert isinstance(weight, torch.Tensor)
        weight.data.copy_(-torch.exp(weight.float()))


class Stacked(Odd):
    def odd(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:16], tensor[16:]])


class Moved(Odd):
    def odd(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.t().contiguous().to("cpu").t().view(4, 8, -1).flatten(0, 1)


class Looks(Odd):
    def odd(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.abs().max().item() < 100
        return tensor


@pytest.mark.parametrize("kind", [Scaled, After, Stacked])
def test_what_a_loader_computes_is_refused_by_name_and_the_rest_works(kind: type[Odd], pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    name = "blocks.0.o_proj.weight"
    pack, other = pack_of(base, tuned(base), "pack"), pack_of(base, tuned(base) | {name: base[name]}, "other")
    model = loaded(kind(), load_file(base_of))
    before = snapshot(model)
    served = ServedModel(model, lambda: base_of, model.load_weights, workers=1)
    assert list(served.status()["refused"]) == [name] and snapshot(model) == before
    with pytest.raises(UnsupportedError, match="computes") as caught:
        served.activate([pack])
    assert caught.value.tensor == name and snapshot(model) == before
    served.activate([other])
    assert snapshot(model) == snapshot(loaded(kind(), applied(base_of, [other])))


def test_views_and_copies_of_a_tensor_are_followed(pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    pack = pack_of(base, tuned(base))
    model = loaded(Moved(), load_file(base_of))
    ServedModel(model, lambda: base_of, model.load_weights, workers=1).activate([pack])
    assert snapshot(model) == snapshot(loaded(ServedLlama(), applied(base_of, [pack])))


def test_a_loader_that_looks_at_elements_cannot_be_followed(pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    pack_of(base, tuned(base))
    model = loaded(Looks(), load_file(base_of))
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match="cannot be followed") as caught:
        ServedModel(model, lambda: base_of, model.load_weights)
    assert caught.value.tensor == "blocks.0.o_proj.weight" and snapshot(model) == before


def test_repacked_and_cast_layers_are_refused_by_name(pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    pack = pack_of(base, tuned(base))
    model = loaded(ServedLlama(), load_file(base_of))
    first, second = (model.blocks[number] for number in range(2))
    assert isinstance(first, Block) and isinstance(second, Block)
    first.o_proj.weight.data = first.o_proj.weight.data.flip(0)
    first.down_proj.weight.data = first.down_proj.weight.data.half()
    second.W_UV = second.qkv_proj.weight.data[:8].clone()
    served = ServedModel(model, lambda: base_of, model.load_weights, workers=1)
    refused = served.status()["refused"]
    assert "repacked" in refused["blocks.0.o_proj.weight"]
    assert refused["blocks.0.down_proj.weight"] == "the model holds it as float16, the checkpoint as bfloat16"
    assert refused["blocks.1.q_proj.weight"] == "'blocks.1.W_UV' was made of it after loading"
    assert "blocks.0.q_proj.weight" not in refused
    with pytest.raises(UnsupportedError, match="in place"):
        served.activate([pack])


def test_another_base_is_refused(pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    pack_of(base, tuned(base))
    model = loaded(ServedLlama(), load_file(base_of.parent / "pack.safetensors"))
    with pytest.raises(BaseMismatchError, match="nothing of the base"):
        ServedModel(model, lambda: base_of, model.load_weights)


def test_of_tensors_that_the_model_ties_the_last_one_counts(pack_of: PackOf, base_of: Path) -> None:
    base = checkpoint()
    base["lm_head.weight"] = base["embed.weight"]
    changed = tuned(base)
    changed["lm_head.weight"] = changed["embed.weight"]
    pack = pack_of(base, changed)
    model = loaded(ServedLlama(tied=True), load_file(base_of))
    with deltapack.checkpoint.open_checkpoint(base_of) as opened:
        found = find_served_tensors(model, opened, model.load_weights)
    assert "lm_head.weight" in found.regions and "embed.weight" not in found.regions
    ServedModel(model, lambda: base_of, model.load_weights, workers=1).activate([pack])
    assert snapshot(model) == snapshot(loaded(ServedLlama(tied=True), applied(base_of, [pack])))
