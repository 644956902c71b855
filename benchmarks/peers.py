"""The environment of the peers that come from the package index, pinned and apart from deltapack's own, and what they do in it.

    python -m benchmarks.peers             # make it in the cache folder of `benchmarks.checkpoints`, print where it is
    python -I peers.py TASK ARGUMENT...    # in that environment: a task is a function of this file

zstd and xdelta3 come from the system: `apt-get install zstd xdelta3`. A task prints its seconds as the last line where only a part of
it counts. As tasks run where deltapack is not installed, nothing of this project is imported at the top.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

__all__ = ["PINS", "TASKS", "PeersUnavailableError", "environment", "python_of", "task_command"]

PINS = (
    "torch==2.13.0",  # in the same command, so that nothing replaces it by a build for GPUs
    "transformers==5.23.0",
    "mergekit==0.1.5",
    "peft==0.21.2",
    "zipnn==0.5.4",
    "deltatensors==0.2.0",
    "safetensors==0.8.0",
)
_TIMEOUT_SECONDS = 1200


class PeersUnavailableError(RuntimeError):
    """The environment is not there and cannot be made."""


def environment(home: Path, *, make: bool = True) -> Path:
    """Return the folder of the environment.

    Args:
        home: The folder it is in.
        make: Whether to make it where it is missing.

    Raises:
        PeersUnavailableError: It is missing, or cannot be made.
    """
    key = hashlib.sha256(repr((sys.version_info[:2], PINS)).encode()).hexdigest()[:12]
    folder = home / f"peers-{key}"
    done = folder / "complete"
    if done.exists():
        return folder
    if not make:
        raise PeersUnavailableError(f"{folder} is not there: make it with python -m benchmarks.peers")
    print(f"... installing peers into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
        command = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise PeersUnavailableError(f"no environment for the peers: {error}") from error
    if result.returncode:
        said = [line for line in result.stderr.strip().splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise PeersUnavailableError(f"pip cannot install the peers: {said[-1]}")
    done.touch()
    return folder


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / "bin" / "python"


def task_command(folder: Path, *words: str | Path) -> list[str | Path]:
    """Return the command that does a task in an environment; without this file's folder, whose modules would hide installed ones."""
    return [python_of(folder), "-I", Path(__file__).resolve(), *words]


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
    import deltatensors

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
    from zipnn import ZipNN

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


def zipnn_elements(kind: str, tuned: str, base: str = "") -> None:
    """Elements end to end on one thread, or what is left of them after those of a base; bytes and seconds of both ways as JSON."""
    from zipnn import ZipNN

    def tool() -> ZipNN:
        return ZipNN(bytearray_dtype=kind, input_format="byte", threads=1, delta_compressed_type="byte" if base else 0)

    source, other = Path(tuned).read_bytes(), {"delta_second_data": Path(base).read_bytes()} if base else {}
    times = [time.process_time()]
    packed = tool().compress(bytearray(source), **other)  # it may write into what it is given
    times.append(time.process_time())
    back = tool().decompress(packed, **other)
    times.append(time.process_time())
    if bytes(back) != source:
        raise RuntimeError("zipnn did not bring the elements back")
    print(json.dumps([len(packed), times[1] - times[0], times[2] - times[1]]))


def deltatensors_all(base: str, tuned: str, out: str) -> None:
    """Its sparse form with nothing dropped, the nearest that it has to lossless; bytes, seconds, percent of elements that differ."""
    import deltatensors
    import torch
    from safetensors.torch import load_file

    times = [time.process_time()]
    deltatensors.save_delta_from_paths(out, tuned, base, strategy="sparse", sparsity=0.0)
    times.append(time.process_time())
    state = deltatensors.load_delta_from_paths(out, base)
    times.append(time.process_time())
    wrong = whole = 0
    for path in Path(tuned).glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            word = torch.int32 if tensor.element_size() == 4 else torch.int16
            wrong += int((torch.from_numpy(state[name]).to(tensor.dtype).view(word) != tensor.view(word)).sum())
            whole += tensor.numel()
    print(json.dumps([Path(out).stat().st_size, times[1] - times[0], times[2] - times[1], 100 * wrong / whole]))


TASKS = (
    torch_save, torch_apply, torch_memory, deltatensors_save, deltatensors_load, deltatensors_all,
    zipnn_compress, zipnn_decompress, zipnn_elements,
)  # fmt: skip


def main(words: list[str]) -> int:
    """Do a task, or make the environment where none is named."""
    if words:
        {task.__name__: task for task in TASKS}[words[0]](*words[1:])
        return 0
    from benchmarks.checkpoints import cache_folder

    try:
        print(environment(cache_folder()))
    except PeersUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
