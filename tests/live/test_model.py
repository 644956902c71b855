"""Packs on a live model: the bits of the merged checkpoint, and the base's bits again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import builders
from support.builders import CHUNK, TORCH, Model, Tensor, bytes_of, cast, moved, random_tensor, tuned_model, whole
from support.fixtures import Merged, PackOf
from support.interpreting import DEVICE

import deltapack
from deltapack.analysis.retuning import retuned_entries, write_retuned
from deltapack.device.model_tensors import Slice
from deltapack.errors import BackendError, BaseMismatchError, ChecksumError, FormatError, RecipeError, UnsupportedError
from deltapack.format.reader import PackReader

pytestmark = pytest.mark.slow

BACKENDS = ["torch", "triton"] if torch.cuda.is_available() else ["cpu", "torch", "triton"]


def to_torch(tensor: Tensor, device: str = DEVICE) -> torch.Tensor:
    if tensor.dtype not in TORCH:
        raw = torch.from_numpy(tensor.bits.copy()).to(device)
        return raw.view(torch.bool) if tensor.dtype == "bool" else raw
    integer = {1: "u1", 2: "i2", 4: "i4", 8: "i8"}[tensor.bits.dtype.itemsize]
    return torch.from_numpy(tensor.bits.reshape(-1).view(integer).copy()).view(TORCH[tensor.dtype]).reshape(tensor.shape).to(device)


def state_of(model: Mapping[str, Tensor], device: str = DEVICE) -> dict[str, torch.Tensor]:
    return {name: to_torch(tensor, device) for name, tensor in model.items()}


def holds(state: Mapping[str, torch.Tensor], model: Mapping[str, Tensor]) -> bool:
    return all(bytes_of(state[name]) == tensor.raw for name, tensor in model.items())


def some_base() -> Model:
    dtypes = ("bf16", "f16", "f32", "f64", "f8_e4m3fn")
    base = {f"{dtype}.weight": random_tensor(seed, (70, 41), dtype) for seed, dtype in enumerate(dtypes)}
    return base | {"long": random_tensor(9, (66_000,), "bf16"), "scalar": cast(np.array(1.5), "f32"), "ids": whole("i64", np.arange(9))}


@pytest.fixture
def family(pack_of: PackOf) -> tuple[Model, list[Path]]:
    """A base and three packs of other codecs, one of which leaves half of the tensors alone."""
    base = some_base()
    third = {name: moved(tensor, 5) if name in ("long", "f32.weight") else tensor for name, tensor in base.items()}
    one = pack_of(base, tuned_model(base, 1), "one", drop_rate=0.9, values="int4")
    two = pack_of(base, tuned_model(base, 2), "two", drop_rate=0.5, values="int8", index="gaps")
    return base, [one, two, pack_of(base, third, "three", drop_rate=0, values="bf16")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("undo", ["auto", "copy", "log"])
def test_activate_mix_switch_undo(family: tuple[Model, list[Path]], merged: Merged, backend: str, undo: Any) -> None:
    base, (one, two, three) = family
    state = state_of(base)
    addresses = [tensor.data_ptr() for tensor in state.values()]
    live = deltapack.attach(state, backend=backend, undo=undo)
    assert (live.current, live.undo_bytes) == ({}, 0)
    for packs in ({one: 1.0}, {two: 0.5, one: 0.25}, {three: 1.0}, {three: -2.0, two: 1.0, one: 3.0}, {one: 1.0}):
        live.activate(packs)
        assert holds(state, merged(list(packs), weights=list(packs.values())))
        assert list(live.current.items()) == [(str(path), weight) for path, weight in packs.items()]
        assert live.undo_bytes > 0
    assert (live.resident_bytes > 0) is (backend != "cpu")
    live.deactivate()
    assert holds(state, base) and (live.current, live.undo_bytes) == ({}, 0)
    assert addresses == [tensor.data_ptr() for tensor in state.values()]
    assert all(name.startswith(backend) for name in live.backends.values())


METHODS: list[dict[str, Any]] = [
    {"method": "ties"},
    {"method": "ties", "semantics": "paper", "density": 0.3},
    {"method": "dare_linear", "density": [0.05, 0.2], "parameters": {"normalize": 1}},
    {"method": "sce", "parameters": {"select_topk": 0.5}},
    {"method": "ram"},
    {"method": "model_stock"},
    {"method": "linear", "parameters": {"lambda": 0.5}},
]


# Others than sums are made on the CPU, whatever the backend, so the interpreter, which is slow, sees one of those.
INTERPRETED = ("ties", "dare_linear", "linear")
CASES = [
    pytest.param(backend, options, id=f"{options['method']}{options.get('semantics', '')}-{backend}")
    for options in METHODS
    for backend in BACKENDS
    if backend != "triton" or DEVICE == "cuda" or (options["method"] in INTERPRETED and "semantics" not in options)
]


@pytest.mark.parametrize(("backend", "options"), CASES)
def test_every_kind_of_merge_method(pack_of: PackOf, merged: Merged, backend: str, options: dict[str, Any]) -> None:
    base = {name: tensor for name, tensor in some_base().items() if name not in ("scalar", "ids")}  # those are stored whole
    one, two = (pack_of(base, tuned_model(base, seed), str(seed), drop_rate=0.9) for seed in (1, 2))
    weights = [0.5, 0.7] if options["method"] in ("linear", "dare_linear") or options == METHODS[0] else [1.0, 1.0]
    state = state_of(base)
    live = deltapack.attach(state, backend=backend)
    live.activate({two: 1.0})
    live.activate(dict(zip((one, two), weights, strict=True)), **options)
    assert holds(state, merged([one, two], **options | ({"weights": weights} if weights != [1.0, 1.0] else {})))
    live.activate({one: 1.0, two: 1.0})
    assert holds(state, merged([one, two]))
    live.deactivate()
    assert holds(state, base)


def test_what_a_method_cannot_do_live(pack_of: PackOf) -> None:
    base = {"w": random_tensor(1, (30, 20)), "v": random_tensor(2, (30, 20))}
    tuned = {name: moved(tensor, 5) for name, tensor in base.items()}
    one, two = pack_of(base, tuned, "one"), pack_of(base, tuned_model(base, 7), "two", exclude="w")
    state = state_of(base)
    live = deltapack.attach(state)
    live.activate(one)
    before = {name: bytes_of(tensor) for name, tensor in state.items()}
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"method": "sce"}, UnsupportedError, "stores the tensor whole"),
        ({"method": "slerp"}, RecipeError, "slerp"),
        ({"method": "ram", "density": 0.5}, RecipeError, "density"),
    ]
    for options, kind, match in cases:
        with pytest.raises(kind, match=match):
            live.activate({one: 1.0, two: 1.0}, **options)
        assert before == {name: bytes_of(tensor) for name, tensor in state.items()}
    with pytest.raises(RecipeError, match="weight"):
        live.activate({one: 1.0, two: 0.5}, method="ram")


@pytest.mark.parametrize(("backend", "steps"), [("torch", 120)] if DEVICE == "cuda" else [("cpu", 1000), ("torch", 120), ("triton", 12)])
def test_random_steps_end_with_the_bits_of_the_base(pack_of: PackOf, merged: Merged, backend: str, steps: int) -> None:
    base = {"a": random_tensor(0, (40, 30), "bf16"), "b": random_tensor(1, (300,)), "c": whole("i32", np.arange(7))}
    packs = []
    for seed in range(3):
        tuned = tuned_model(base, 10 * seed) | ({"c": whole("i32", np.arange(7) + seed)} if seed == 2 else {})
        packs.append(pack_of(base, tuned, f"{seed}", drop_rate=0.5))
    state, dice = state_of(base), random.Random(7)
    live = deltapack.attach(state, backend=backend, undo=dice.choice(["auto", "log", "copy"]))
    for step in range(steps):
        chosen = dice.sample(packs, dice.randint(0, 3))
        weights = {path: dice.choice([1.0, 0.5, -1.0, 1e-3, 300.0]) for path in chosen}
        if dice.random() < 0.2:
            live.deactivate()
            assert holds(state, base)
        elif dice.random() < 0.1:
            with live.activate(weights):
                pass
        else:
            live.activate(weights)
            if step % 50 == 0 and chosen:
                assert holds(state, merged(chosen, weights=list(weights.values())))
    live.close()
    assert holds(state, base)


def test_a_draft_is_activated_without_its_digests(family: tuple[Model, list[Path]], tmp_path: Path) -> None:
    """As `tune` measures packs whose factors it tries, and whose digests are those of other factors."""
    base, (one, two, _) = family
    draft = tmp_path / "draft.dpk"
    with PackReader(one) as reader:
        write_retuned(reader, retuned_entries(reader.index, lambda entry: 0.5, factors=False), draft)
    state = state_of(base)
    live = deltapack.attach(state)
    with pytest.raises(ChecksumError):
        live.activate(draft)
    assert holds(state, base) and live.current == {}
    live.activate(draft, verify=False)
    changed = {name: tensor.clone() for name, tensor in state.items()}
    assert not holds(state, base)
    with live.activate(two):
        pass
    assert live.current == {str(draft): 1.0} and all(torch.equal(state[name], tensor) for name, tensor in changed.items())
    live.deactivate()
    assert holds(state, base)


def test_a_scope_brings_back_what_was_active(family: tuple[Model, list[Path]], merged: Merged) -> None:
    base, (one, two, _) = family
    state = state_of(base)
    live = deltapack.attach(state)
    live.activate({two: 0.5})
    with live.activate(one) as inside:
        assert inside is live and live.current == {str(one): 1.0} and holds(state, merged([one]))
        with live.activate({one: 1.0, two: 1.0}):
            assert holds(state, merged([one, two]))
        assert holds(state, merged([one]))
    assert live.current == {str(two): 0.5} and holds(state, merged([two], weights=[0.5]))
    with pytest.raises(ZeroDivisionError), live.activate({}):
        assert holds(state, base)
        raise ZeroDivisionError
    assert holds(state, merged([two], weights=[0.5]))
    with live.activate(one):
        live.unload(two)
    assert live.current == {str(two): 0.5} and holds(state, merged([two], weights=[0.5]))


class Tied(torch.nn.Module):
    """Two names of one parameter, a transposed one, a buffer that is not saved, and parts of a larger storage."""

    def __init__(self, base: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.embed = torch.nn.Parameter(base["embed"].clone())
        self.head = self.embed
        self.turned = torch.nn.Parameter(base["turned"].T.contiguous().T)
        self.register_buffer("scale", torch.stack([base["scale"], base["scale"]])[1])
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.spread = torch.nn.Parameter(torch.zeros(33, 22, dtype=base["spread"].dtype, device=base["spread"].device)[1:31:2, 2:])
        with torch.no_grad():
            self.spread.copy_(base["spread"])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.scale, torch.Tensor)
        return ((self.embed[ids] @ self.turned) * self.scale) @ self.spread


@pytest.mark.parametrize("backend", BACKENDS)
def test_modules_with_ties_views_and_strides(pack_of: PackOf, merged: Merged, backend: str) -> None:
    base = {
        "embed": random_tensor(1, (50, 24)),
        "turned": random_tensor(2, (24, 15)),
        "scale": random_tensor(3, (15,)),
        "spread": random_tensor(4, (15, 20)),
    }
    packs = [pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0.3) for seed in (1, 2)]
    module = Tied(state_of(base)).to(DEVICE)
    assert not module.turned.is_contiguous() and not module.spread.is_contiguous()
    ids = torch.arange(50, device=DEVICE)
    plain = module(ids)
    compiled = torch.compile(module, backend="eager")
    assert torch.equal(compiled(ids), plain)
    live = deltapack.attach(module, backend=backend)
    for chosen in (packs[:1], packs, packs[1:]):
        live.activate(dict.fromkeys(chosen, 0.75))
        wanted = merged(chosen, weights=[0.75] * len(chosen))
        assert holds(dict(module.state_dict()), wanted)
        expected = Tied(state_of(wanted)).to(DEVICE)(ids)
        assert torch.equal(module(ids), expected) and torch.equal(compiled(ids), expected) and not torch.equal(expected, plain)
    live.deactivate()
    assert torch.equal(module(ids), plain) and module.head is module.embed
    module(ids).sum().backward()
    assert module.embed.grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_made_in_inference_mode(family: tuple[Model, list[Path]], merged: Merged, backend: str) -> None:
    base, (one, two, _) = family
    with torch.inference_mode():
        state = state_of(base)
        live = deltapack.attach(state, backend=backend)
        live.activate({one: 1.0, two: 1.0})
    assert state["long"].is_inference() and holds(state, merged([one, two]))
    live.activate(two)
    assert holds(state, merged([two]))
    live.deactivate()
    assert holds(state, base)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_and_sharded_layers(pack_of: PackOf, merged: Merged, tmp_path: Path, backend: str) -> None:
    """q, k and v in one tensor, of which this rank holds every second half; down_proj by columns; a norm whole; an embedding elsewhere."""
    base = {
        "q": random_tensor(1, (64, 48), "bf16"),
        "k": random_tensor(2, (32, 48), "bf16"),
        "v": random_tensor(3, (32, 48), "bf16"),
        "down": random_tensor(4, (300, 500), "bf16"),
        "norm": random_tensor(5, (48,), "bf16"),
        "embed": random_tensor(6, (90, 48), "bf16"),
    }
    one, two = (pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0.5) for seed in (1, 2))

    def shard(model: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
        whole_ = state_of(model)
        fused = torch.cat([whole_["q"][32:], whole_["k"][16:], whole_["v"][16:]])
        return {"qkv": fused, "down_proj": whole_["down"][:, 250:].contiguous(), "norm": whole_["norm"]}

    names: dict[str, str | Slice | None] = {
        "q": Slice("qkv", (slice(0, 32),), (slice(32, 64),)),
        "k": Slice("qkv", (slice(32, 48),), (slice(16, 32),)),
        "v": Slice("qkv", (slice(48, 64),), (slice(16, 32),)),
        "down": Slice("down_proj", of=(slice(None), slice(250, 500))),
        "embed": None,
    }
    state = shard(base)
    live = deltapack.attach(state, tmp_path / "base.safetensors", names=names, backend=backend)
    for packs in ({one: 1.0}, {two: 0.5, one: 2.0}):
        live.activate(packs)
        wanted = shard(merged(list(packs), weights=list(packs.values())))
        assert all(torch.equal(state[name], wanted[name]) for name in state)
    live.deactivate()
    wanted = shard(base)
    assert all(torch.equal(state[name], wanted[name]) for name in state)
    state["qkv"][3, 3] += 1
    with pytest.raises(BaseMismatchError, match="the model differs from its base") as caught:
        deltapack.attach(state, tmp_path / "base.safetensors", names=names)
    assert caught.value.tensor == "q"
    with pytest.raises(RecipeError, match="need base="):
        deltapack.attach(state, names=names)
    for wrong, message in (
        ({"q": Slice("nothing")}, "does not hold a tensor of the base"),
        ({"q": Slice("qkv", (slice(0, 9),))}, "in another shape: expected .64, 48., found .9, 48."),
        ({"other": None}, "speaks of a tensor that the base does not have"),
        ({"down": Slice("down_proj", of=(slice(None), slice(0, 500, 2)))}, "a slice has a step"),
    ):
        with pytest.raises(RecipeError, match=message):
            deltapack.attach(state, tmp_path / "base.safetensors", names=names | wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_wrong_base_is_refused_before_anything_changes(family: tuple[Model, list[Path]], backend: str) -> None:
    base, (one, *_) = family
    state = state_of(base)
    state["long"][65_999] += 1
    before = {name: bytes_of(tensor) for name, tensor in state.items()}
    live = deltapack.attach(state, backend=backend)
    with pytest.raises(BaseMismatchError, match="other content than the one that the pack was made from") as caught:
        live.activate(one)
    assert (caught.value.tensor, caught.value.rule) == ("long", "R12") and live.current == {}
    assert before == {name: bytes_of(tensor) for name, tensor in state.items()}
    deltapack.attach(state, backend=backend, verify=False).activate(one)
    assert before != {name: bytes_of(tensor) for name, tensor in state.items()}


def test_other_tensors_are_refused(family: tuple[Model, list[Path]]) -> None:
    base, (one, *_) = family
    more = state_of(base) | {"rotary": torch.zeros(3, device=DEVICE)}
    deltapack.attach(more).activate(one)  # what the packs' base did not have stays as it is
    assert more["rotary"].tolist() == [0, 0, 0]
    more = state_of(base) | {"rotary": torch.zeros(3, device=DEVICE)}
    base_file = one.parent / "base.safetensors"
    live = deltapack.attach(more, base_file)
    live.activate(one)
    del more["long"]
    with pytest.raises(RecipeError, match="does not hold a tensor of the base"):
        deltapack.attach(more, base_file)
    with pytest.raises(RecipeError, match=r"in another dtype: expected bf16, found torch\.float32"):
        deltapack.attach(state_of(base) | {"long": torch.zeros(66_000, device=DEVICE)}, base_file)
    with pytest.raises(RecipeError, match="device meta"):
        deltapack.attach({"w": torch.zeros(3, device="meta")})
    with pytest.raises(RecipeError, match="neither a module nor a mapping"):
        deltapack.attach([])
    with pytest.raises(RecipeError, match="undo is unknown"):
        deltapack.attach({}, undo="never")  # type: ignore[arg-type]
    with pytest.raises(BackendError):
        deltapack.attach(more, backend="cpu" if DEVICE == "cuda" else "nonsense")


def test_names_and_ties_of_the_base(pack_of: PackOf, merged: Merged) -> None:
    base = {"a": random_tensor(1, (20, 20)), "b": random_tensor(1, (20, 20))}
    one = pack_of(base, tuned_model(base), drop_rate=0.5)
    state = {"model.a": to_torch(base["a"]), "model.b": to_torch(base["b"])}
    live = deltapack.attach(state, names={"a": "model.a", "b": "model.b"})
    live.activate(one)
    assert holds({name.removeprefix("model."): tensor for name, tensor in state.items()}, merged([one]))
    live.deactivate()
    tied = {"a": state["model.a"], "b": state["model.a"]}
    with pytest.raises(RecipeError, match="ties tensors that the base holds twice"):
        deltapack.attach(tied, one.parent / "base.safetensors")
    with pytest.raises(BaseMismatchError):
        deltapack.attach(tied).activate(one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_midway_leaves_the_model_as_it_was(
    family: tuple[Model, list[Path]], merged: Merged, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever tensor fails, with another pack active."""
    base, (one, two, _) = family
    state = state_of(base)
    live = deltapack.attach(state, backend=backend)
    live.activate({two: 0.5})
    wanted = merged([two], weights=[0.5])
    for failing in range(1, 4 if backend == "triton" else 7):
        with monkeypatch.context() as patch:
            fail_at(patch, backend, failing)
            with pytest.raises(MemoryError):
                live.activate({one: 1.0, two: 1.0})
        assert holds(state, wanted) and live.current == {str(two): 0.5}
    live.activate(one)
    assert holds(state, merged([one]))
    live.deactivate()
    assert holds(state, base)


def fail_at(patch: pytest.MonkeyPatch, backend: str, call: int) -> None:
    """Let the n-th piece of work run out of memory, once."""
    from deltapack.device import torch_kernels
    from deltapack.live import cpu_engine

    target: Any
    if backend == "triton":
        from deltapack.device import triton_engine

        target, name = triton_engine, "launch_of"
    else:
        target, name = (cpu_engine, "restore_chunk") if backend == "cpu" else (torch_kernels, "add_sparse")
    original, calls = getattr(target, name), []

    def sometimes(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise MemoryError
        return original(*arguments, **options)

    patch.setattr(target, name, sometimes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_packs_leave_the_model_alone(family: tuple[Model, list[Path]], merged: Merged, backend: str) -> None:
    base, (one, two, _) = family
    with deltapack.open_pack(one) as pack:
        end = pack["long"].entry.terms[0].blob.end
    data = bytearray(one.read_bytes())
    data[end - 1] ^= 1
    one.write_bytes(data)
    state = state_of(base)
    live = deltapack.attach(state, backend=backend)
    live.activate(two)
    with pytest.raises(ChecksumError, match="long"):
        live.activate({two: 1.0, one: 1.0})
    assert holds(state, merged([two])) and live.current == {str(two): 1.0}
    with pytest.raises(FormatError):
        live.activate(one.parent / "base.safetensors")
    assert holds(state, merged([two]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_stored_tensors_and_what_cannot_live(pack_of: PackOf, merged: Merged, backend: str) -> None:
    base = {"ids": whole("i64", np.arange(9)), "w": random_tensor(1, (12, 10)), "flags": whole("bool", [True, False])}
    tuned = {"ids": whole("i64", np.arange(9) * 2), "w": moved(base["w"], 1), "flags": whole("bool", [True, True])}
    stored = pack_of(base, tuned, "stored", exclude="w")
    mixed = pack_of(base, tuned_model(base, 4), "mixed", drop_rate=0.5)
    state = state_of(base)
    live = deltapack.attach(state, backend=backend)
    for packs in ({stored: 1.0}, {mixed: 1.0, stored: 0.5}, {mixed: 1.0}):
        live.activate(packs)
        assert holds(state, merged(list(packs), weights=list(packs.values())))
    live.deactivate()
    assert holds(state, base)
    grown = pack_of(base, {**base, "w": random_tensor(1, (14, 10))}, "grown")
    wider = pack_of(base, {**base, "w": moved(base["w"], 1, dtype="f64")}, "wider")
    new = pack_of(base, {**base, "new": random_tensor(1, (4,))}, "new")
    for pack, found in ((grown, "f32 .12, 10."), (wider, "f32 .12, 10."), (new, "no such tensor")):
        with pytest.raises(UnsupportedError, match=f"found {found}.*load_model"):
            live.activate(pack)
    assert holds(state, base)
    fewer = pack_of(base, {name: tensor for name, tensor in base.items() if name != "flags"}, "fewer")
    live.activate(fewer)
    assert live.notes == ["the fine-tune does not have the tensor 'flags'; the model keeps the base's"] and holds(state, base)


def test_packs_are_loaded_once_and_unloaded(family: tuple[Model, list[Path]]) -> None:
    base, (one, two, _) = family
    live = deltapack.attach(state_of(base), backend="torch")
    live.load(one)
    sent = live.resident_bytes
    live.activate(one)
    live.deactivate()
    live.activate(one)
    assert live.resident_bytes == sent > 0
    with pytest.raises(RecipeError, match="an active pack cannot be unloaded"):
        live.unload(one)
    live.activate(two)
    assert live.resident_bytes > sent
    live.unload(one)
    live.unload(one)
    with pytest.raises(RecipeError, match="a weight is not a finite number"):
        live.activate({one: float("nan")})
    with pytest.raises(RecipeError, match="not among the packs"):
        live.activate({one: 1.0}, prefer=two)
    live.close()
    assert live.resident_bytes == 0


def test_a_list_of_packs_and_how_a_model_calls_itself(family: tuple[Model, list[Path]], merged: Merged) -> None:
    base, (one, two, _) = family
    state = state_of(base)
    live, where = deltapack.attach(state, backend="torch"), next(iter(state.values())).device
    assert repr(live) == f"<LiveModel of {len(base)} tensors on {where}: the base>"
    live.activate([one, str(two)])
    assert holds(state, merged([one, two])) and live.current == {str(one): 1.0, str(two): 1.0}
    live.activate({one: 0.5})
    assert repr(live) == f"<LiveModel of {len(base)} tensors on {where}: base + {one} 0.5>"
    assert repr(live.activate({one: 0.5})) == f"_Scope(live={live!r})"
    live.activate([])
    assert holds(state, base)
    with pytest.raises(RecipeError, match="given twice"):
        live.activate([one, one])
    for base_of in (one, str(one), [one]):
        with pytest.raises(RecipeError, match="not a pack") as caught:
            deltapack.attach(state, base_of)  # type: ignore[arg-type]
        assert "activate() takes packs" in str(caught.value)
    for call in (live.load, live.unload):
        with pytest.raises(RecipeError, match="a pack is not a path"):
            call([one])  # type: ignore[arg-type]


def test_bytes_are_counted_while_another_thread_loads_and_unloads(family: tuple[Model, list[Path]]) -> None:
    base, (one, two, _) = family
    live = deltapack.attach(state_of(base), backend="torch")
    live.load(one)
    path, before = one.resolve(), live.resident_bytes

    class Meanwhile(dict[Any, Any]):
        def values(self) -> Any:
            live.load(two)
            live.unload(one)
            return super().values()

    live._packs[path] = replace(live._packs[path], resident=Meanwhile(live._packs[path].resident))
    assert live.resident_bytes == before > 0
    assert list(live._packs) == [two.resolve()]


@pytest.fixture
def large(pack_of: PackOf) -> Iterator[tuple[Model, Path]]:
    base = {"w": random_tensor(1, (CHUNK + 70_000,), "bf16")}
    yield base, pack_of(base, tuned_model(base), drop_rate=0.97)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logs_are_small_where_packs_are_sparse(large: tuple[Model, Path], merged: Merged, backend: str) -> None:
    base, pack = large
    state = state_of(base)
    live = deltapack.attach(state, backend=backend)
    live.activate(pack)
    assert holds(state, merged([pack]))
    assert live.undo_bytes < 0.2 * 2 * len(base["w"].bits)
    live.deactivate()
    assert holds(state, base)


@pytest.mark.parametrize("backend", BACKENDS)
def test_undo_takes_no_more_than_a_copy(pack_of: PackOf, merged: Merged, backend: str) -> None:
    """Packs that keep half of the elements, alone and together, and slices: a log of columns says nothing of those that are not held."""
    base = {"w": random_tensor(1, (300, 500), "bf16")}
    packs = [pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0.5, values="f32") for seed in (1, 2)]
    state = state_of(base)
    live = deltapack.attach(state, backend=backend)
    for chosen in (packs[:1], packs):
        live.activate(dict.fromkeys(chosen, 30.0))  # nearly all kept elements change
        assert holds(state, merged(chosen, weights=[30.0] * len(chosen)))
        logged = backend == "triton" and len(chosen) == 1  # without places, so smaller than a copy
        assert 0.49 < live.undo_bytes / (2 * 300 * 500) < 0.51 if logged else live.undo_bytes <= 2 * 300 * 500
    live.deactivate()
    assert holds(state, base)
    few = {"w": state["w"][:, 490:].contiguous()}
    names = {"w": Slice("w", of=(slice(None), slice(490, 500)))}
    live = deltapack.attach(few, packs[0].parent / "base.safetensors", names=names, backend=backend, undo="log")
    live.activate(packs[0])
    assert torch.equal(few["w"], state_of(merged(packs[:1]))["w"][:, 490:])
    if backend != "triton":  # its log has a place for all that the term keeps
        assert 0 < live.undo_bytes <= 6 * 300 * 10
    live.deactivate()
    assert torch.equal(few["w"], state["w"][:, 490:])


def test_two_interrupts_in_a_row_leave_a_way_back(pack_of: PackOf, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltapack.device import regions
    from deltapack.live import cpu_engine

    base = {name: random_tensor(seed, (40, 30), "bf16") for seed, name in enumerate("abcd")}
    one, two = (pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0.5) for seed in (1, 2))
    state, original = state_of(base, "cpu"), regions.write_chunk
    for first, second in ((1, 2), (3, 6), (4, 7)):
        live = deltapack.attach(state, backend="cpu", workers=1)
        live.activate(two)
        calls: list[int] = []

        def interrupted(*arguments: Any, calls: list[int] = calls, at: tuple[int, int] = (4 + first, 4 + second)) -> None:
            original(*arguments)
            calls.append(1)
            if len(calls) in at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(cpu_engine, "write_chunk", interrupted)
            with pytest.raises(KeyboardInterrupt):
                live.activate(one)
            assert len(calls) == 4 + second
        assert live.current == {}
        live.close()
        assert holds(state, base)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_autograd_notices_a_switch(pack_of: PackOf, backend: str) -> None:
    base = {"w": random_tensor(1, (30, 20))}
    weight = torch.nn.Parameter(state_of(base, "cpu")["w"])
    live = deltapack.attach({"w": weight}, backend=backend)
    loss = (weight * weight).sum()
    live.activate(pack_of(base, tuned_model(base), drop_rate=0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_language_model_speaks_as_the_restored_one(tmp_path: Path, backend: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=True)
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    packs = []
    for number in (1, 2):
        tuned = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn(parameter.shape, dtype=torch.float32) * 0.01 * number)
        tuned.save_pretrained(tmp_path / f"tuned{number}")
        packs.append(tmp_path / f"{number}.dpk")
        deltapack.compress(tmp_path / "base", tmp_path / f"tuned{number}", packs[-1], recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.merge(tmp_path / "base", packs, tmp_path / "merged", weights=[0.5, 0.75])
    deltapack.apply(tmp_path / "base", packs[0], tmp_path / "restored")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16).to(DEVICE)
    ids = torch.arange(20, device=DEVICE)[None]
    with torch.inference_mode():
        plain = model(ids).logits
        live = deltapack.attach(model, backend=backend)
        for folder, weights in (("restored", {packs[0]: 1.0}), ("merged", {packs[0]: 0.5, packs[1]: 0.75})):
            other = transformers.LlamaForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.bfloat16).to(DEVICE)
            with live.activate(weights):
                assert torch.equal(model(ids).logits, other(ids).logits)
                assert not torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain)
    assert builders.leftovers(tmp_path) == []
