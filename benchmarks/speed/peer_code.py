"""What peers without a command are asked to do; runs in the peers' own environment and imports nothing of this project.

    python peer_code.py TASK ARGUMENT...      # a task is a function of this file

A task prints its seconds as the last line where only a part of it counts.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path


def torch_save(base: str, tuned: str, out: str) -> None:
    """Plain torch: keep a tenth of the difference at random, int32 positions and rescaled bf16 values, as safetensors."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    torch.manual_seed(0)
    kept = {}
    for path in sorted(Path(tuned).glob("*.safetensors")):
        with safe_open(path, "pt") as new, safe_open(Path(base) / path.name, "pt") as old:
            for name in new.keys():  # noqa: SIM118  # it is no mapping
                delta = (new.get_tensor(name).float() - old.get_tensor(name).float()).flatten()
                positions = torch.nonzero(torch.rand(delta.numel()) < 0.1).flatten()
                kept[f"{name}.positions"] = positions.to(torch.int32)
                kept[f"{name}.values"] = (delta[positions] * 10).to(torch.bfloat16)
    save_file(kept, out)


def torch_apply(base: str, delta: str, out: str) -> None:
    """Plain torch: load each shard, add in place, save it."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    Path(out).mkdir()
    with safe_open(delta, "pt") as stored:
        for path in sorted(Path(base).glob("*.safetensors")):
            shard = load_file(path)
            for name, tensor in shard.items():
                tensor.view(-1).index_add_(0, stored.get_tensor(f"{name}.positions"), stored.get_tensor(f"{name}.values"))
            save_file(shard, Path(out) / path.name, {"format": "pt"})
    for path in Path(base).glob("*.json"):
        shutil.copy(path, out)


def torch_memory(base: str, delta: str) -> None:
    """Plain torch: add in place to weights in memory; only the additions count, the median of five after a first one."""
    from safetensors.torch import load_file

    model = {name: tensor for path in sorted(Path(base).glob("*.safetensors")) for name, tensor in load_file(path).items()}
    stored, seconds = load_file(delta), []
    for _ in range(6):
        start = time.perf_counter()
        for name, tensor in model.items():
            tensor.view(-1).index_add_(0, stored[f"{name}.positions"], stored[f"{name}.values"])
        seconds.append(time.perf_counter() - start)
    print(sorted(seconds[1:])[2])


def deltatensors_save(base: str, tuned: str, out: str) -> None:
    """The streaming function and the strategy that its page recommends."""
    import deltatensors  # type: ignore[import-not-found]

    deltatensors.save_delta_from_paths(out, tuned, base, strategy="int4")


def deltatensors_load(base: str, delta: str, out: str) -> None:
    """It returns numpy arrays of f32; they are rounded to bf16 and saved in the base's shards."""
    import deltatensors
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    state = deltatensors.load_delta_from_paths(delta, base)
    Path(out).mkdir()
    for path in sorted(Path(base).glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            tensors = {name: torch.from_numpy(state.pop(name)).to(torch.bfloat16) for name in shard.keys()}  # noqa: SIM118
        save_file(tensors, Path(out) / path.name, {"format": "pt"})


def zipnn_compress(tuned: str, out: str) -> None:
    """Each weight file as bytes of bf16 elements, as its scripts do."""
    from zipnn import ZipNN  # type: ignore[import-not-found]

    Path(out).mkdir()
    for path in sorted(Path(tuned).glob("*.safetensors")):
        tool = ZipNN(bytearray_dtype="bfloat16", input_format="byte")
        (Path(out) / f"{path.name}.znn").write_bytes(tool.compress(path.read_bytes()))


def zipnn_decompress(packed: str, out: str) -> None:
    """The way back."""
    from zipnn import ZipNN

    Path(out).mkdir()
    for path in sorted(Path(packed).glob("*.znn")):
        tool = ZipNN(bytearray_dtype="bfloat16", input_format="byte")
        (Path(out) / path.name.removesuffix(".znn")).write_bytes(tool.decompress(path.read_bytes()))


TASKS = (torch_save, torch_apply, torch_memory, deltatensors_save, deltatensors_load, zipnn_compress, zipnn_decompress)

if __name__ == "__main__":
    {task.__name__: task for task in TASKS}[sys.argv[1]](*sys.argv[2:])
