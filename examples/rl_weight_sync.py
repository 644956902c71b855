"""Ship the weights of an RL training to its rollout workers as a chain of exact packs: what changed since the step before, bit for bit.

Usage: python examples/rl_weight_sync.py BASE OUT_FOLDER [--steps N]

Without a trainer at hand this changes some weights at random, writes a pack a step, and has a rollout model in memory catch up.

With TRL the same goes through `AsyncGRPOTrainer(weight_transfer=PackTransfer(...))` to a server that was started with
`vllm serve BASE --weight-transfer-config '{"backend": "deltapack"}'`; with verl through `checkpoint_engine.backend=deltapack` and
`checkpoint_engine.custom_backend_module` set to this module. Both need the packs' folder where trainer and servers see it.
"""

import argparse
import shutil
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import deltapack
from deltapack.live.wanted import Wanted, restored_weights
from deltapack.runs.links import read_run

Weights = Iterable[tuple[str, torch.Tensor]]


class PackWriter:
    """The trainer's side: each step becomes a pack in a folder, and the chain that gives it is what is sent."""

    def __init__(self, base: Path, packs: Path) -> None:
        self.base, self.packs = base, packs
        packs.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, weights: Weights) -> list[str]:
        """Pack the weights of a step, under the base's names, and return the paths of its chain."""
        folder = self.packs.parent / f"checkpoint-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}, folder / "model.safetensors", {"format": "pt"}
        )
        deltapack.pack_step(self.packs, folder, step, base=self.base, going_back=True)
        shutil.rmtree(folder)
        return self.chain(step)

    def chain(self, step: int) -> list[str]:
        """Return the paths of the packs that give a step, from the base on."""
        run = read_run(self.packs)
        return [str(link.path.resolve()) for link in run.chain(run.of(step))]


class PackTransfer:
    """TRL's `WeightTransferProtocol`: `AsyncGRPOTrainer` calls it at each sync; `client` is TRL's `VLLMClient` or another one like it."""

    def __init__(self, client: Any, writer: PackWriter) -> None:
        self.client, self.writer, self.step = client, writer, 0

    def init_weight_transfer(self) -> None:
        """Make the server ready; called once."""
        self.client.wait_for_server_ready()
        self.client.init_weight_transfer_engine({"base": str(self.writer.base.resolve())})

    def pause(self) -> None:
        """Freeze requests and clear caches."""
        self.client.pause()

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Write a pack, and name its chain; the server takes the steps that it has not."""
        self.step += 1
        chain = self.writer.write(self.step, iterator)
        self.client.start_weight_update()
        self.client.update_weights({"chain": chain})
        self.client.finish_weight_update()

    def resume(self) -> None:
        """Go on."""
        self.client.resume()

    def destroy(self) -> None:
        """Nothing is held."""


class PackEngine:
    """What verl's `CheckpointEngine` wants: the actor's first rank writes packs, rollout workers read base and chain from the folder."""

    wire_format = "named_tensors"

    def __init__(self, bucket_size: int, base: str, packs: str, is_master: bool = False) -> None:
        self.writer, self.is_master = PackWriter(Path(base), Path(packs)), is_master

    def prepare(self) -> dict[str, Any]:
        """Nothing to allocate."""
        return {}

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]) -> tuple[Any, Any]:
        """Tell each process its rank; the file system is the topology."""
        return {"rank": list(range(actor_wg_world_size))}, {"rank": [-1] * rollout_world_size}

    def init_process_group(self, rank: int) -> None:
        """The first rank of the actor writes."""
        self.is_master = rank == 0

    def finalize(self) -> None:
        """Nothing to free."""

    async def send_weights(self, weights: Weights, global_steps: int | None = None) -> None:
        """Write the pack of a step; other ranks take part in gathering the tensors."""
        if self.is_master:
            self.writer.write(_step(global_steps), weights)
        else:
            for _ in weights:
                pass

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Yield the weights of a step, made of base and chain one by one, their digests compared."""
        chain = self.writer.chain(_step(global_steps))
        for item in restored_weights(self.writer.base, Wanted.parse({"chain": chain}, "the step")):
            yield item


def _step(global_steps: int | None) -> int:
    if global_steps is None:
        raise ValueError("verl has to say which step it is")
    return global_steps


def register_with_verl() -> bool:
    """Make verl know the engine; return whether verl is there."""
    try:
        from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
    except ImportError:
        return False
    CheckpointEngineRegistry.register("deltapack")(type("DeltapackCheckpointEngine", (PackEngine, CheckpointEngine), {}))
    return True


register_with_verl()


def main(base: Path, out: Path, steps: int) -> None:
    """Change weights at random, pack each step, and have a model in memory catch up every second step."""
    weights = load_file(base / "model.safetensors")
    writer = PackWriter(base, out / "packs")
    rollout = {name: tensor.clone() for name, tensor in weights.items()}
    live = deltapack.attach(rollout, base)
    for step in range(1, steps + 1):
        for tensor in weights.values():
            tensor += (torch.rand(tensor.shape) < 0.01) * 1e-3
        chain = writer.write(step, weights.items())
        print(f"step {step}: {Path(chain[-1]).stat().st_size:,} bytes for {sum(tensor.nbytes for tensor in weights.values()):,}")
        if step % 2 == 0:
            for pack in chain[len(live.steps) :]:
                live.step(pack)
            same = all(torch.equal(rollout[name], tensor) for name, tensor in weights.items())
            print(f"  the rollout model took {len(live.steps)} steps, bit for bit: {same}")
    live.deactivate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("out", type=Path, metavar="OUT_FOLDER")
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    try:
        main(given.base, given.out, given.steps)
    except deltapack.DeltapackError as error:
        sys.exit(f"error: {error}")
