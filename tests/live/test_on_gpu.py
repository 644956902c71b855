"""What only a GPU has: graphs that were captured before a pack came, and streams."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.builders import Model, bytes_of, random_tensor, tuned_model
from support.fixtures import Merged, PackOf

import deltapack

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def family(pack_of: PackOf) -> tuple[Model, list[Path]]:
    base = {"weight": random_tensor(1, (300, 250), "bf16")}
    return base, [pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0.5) for seed in (1, 2)]


def on_gpu(model: Model) -> torch.Tensor:
    tensor = model["weight"]
    return torch.from_numpy(tensor.bits.view("i2").copy()).view(torch.bfloat16).reshape(tensor.shape).cuda()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_graph_sees_the_packs(family: tuple[Model, list[Path]], merged: Merged, backend: str) -> None:
    base, packs = family
    weight, given = on_gpu(base), torch.randn(4, 250, dtype=torch.bfloat16, device="cuda")
    live = deltapack.attach({"weight": weight}, backend=backend)
    torch.nn.functional.linear(given, weight)  # what is made at the first call is made outside of the graph
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = torch.nn.functional.linear(given, weight)
    for chosen in (packs[:1], packs, packs[1:], []):
        live.activate(dict.fromkeys(chosen, 1.0))
        graph.replay()
        wanted = merged(chosen) if chosen else base
        assert torch.equal(result, torch.nn.functional.linear(given, on_gpu(wanted)))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_work_waits_for_what_the_stream_does_before(family: tuple[Model, list[Path]], merged: Merged, backend: str) -> None:
    """The base arrives late, on the current stream, which is not the default one."""
    base, packs = family
    weight, arriving = torch.zeros(300, 250, dtype=torch.bfloat16, device="cuda"), on_gpu(base)
    live = deltapack.attach({"weight": weight}, backend=backend, verify=False)
    live.load(packs[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
        weight.copy_(arriving)
        live.activate(packs[0])
        assert bytes_of(weight) == merged(packs[:1])["weight"].raw
        live.deactivate()
        assert bytes_of(weight) == base["weight"].raw
