"""examples/rl_weight_sync.py: what TRL and verl call, without them; tests/hosts looks at their sources."""

from __future__ import annotations

import asyncio
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.builders import bytes_of, random_tensor, write_file
from support.served import ServedLlama, llama_checkpoint, loaded

from deltapack.live.served import ServedModel

EXAMPLE = Path(__file__).parents[2] / "examples" / "rl_weight_sync.py"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    write_file(
        folder / "model.safetensors", {name: random_tensor(number, *form) for number, (name, form) in enumerate(llama_checkpoint().items())}
    )
    (folder / "config.json").write_text("{}")
    return folder


def trained(weights: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor + (torch.rand(tensor.shape, generator=generator) < 0.05) * 0.01).to(tensor.dtype) for name, tensor in weights.items()
    }


def same(one: Tensors, two: Tensors) -> bool:
    return one.keys() == two.keys() and all(bytes_of(tensor) == bytes_of(two[name]) for name, tensor in one.items())


def test_it_runs_as_it_says(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, str(base), str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.count("bit for bit: True") == 2


class Client:
    """A server of one process behind the methods of TRL's `VLLMClient`."""

    def __init__(self, model: ServedLlama) -> None:
        self.model, self.calls = model, list[str]()
        self.chains: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append(name)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.served = ServedModel(self.model, lambda: Path(init_info["base"]), self.model.load_weights, workers=1)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append("update_weights")
        assert update_info.keys() == {"chain"}
        self.served.follow(update_info["chain"])


def test_trl(base: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    weights = load_file(base / "model.safetensors")
    client = Client(loaded(ServedLlama(), weights))
    transfer = example["PackTransfer"](client, example["PackWriter"](base, tmp_path / "run" / "packs"))
    transfer.init_weight_transfer()
    for step in range(1, 4):
        weights = trained(weights, step)
        transfer.pause()
        transfer.send_weights(iter(weights.items()))
        transfer.resume()
        assert same(client.model.state_dict(), loaded(ServedLlama(), weights).state_dict())
        assert len(client.served.status()["steps"]) == step
    transfer.destroy()
    assert client.calls == [
        "wait_for_server_ready",
        *["pause", "start_weight_update", "update_weights", "finish_weight_update", "resume"] * 3,
    ]


def test_verl(base: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    weights, engines = load_file(base / "model.safetensors"), list[Any]()
    for _ in range(3):
        engines.append(example["PackEngine"](1 << 20, str(base), str(tmp_path / "run" / "packs")))
        assert engines[-1].prepare() == {}
    actors, rollouts = example["PackEngine"].build_topology(2, 1, [{}] * 3)
    ranks = [*actors["rank"], *rollouts["rank"]]
    assert ranks == [0, 1, -1]
    for engine, rank in zip(engines, ranks, strict=True):
        engine.init_process_group(rank=rank)

    async def receive(step: int) -> Tensors:
        return {name: tensor async for name, tensor in engines[2].receive_weights(global_steps=step)}

    for step in (1, 2):
        weights = trained(weights, step)
        for engine in engines[:2]:
            asyncio.run(engine.send_weights(iter(weights.items()), global_steps=step))
        assert same(asyncio.run(receive(step)), weights)
    with pytest.raises(ValueError, match="which step"):
        asyncio.run(engines[0].send_weights(iter(()), global_steps=None))
