"""Packs on a GPU: time of decoding, switching and undoing against the copy bandwidth of the device and against what else one could do.

Usage: python -m benchmarks.gpu [--sizes 1B 7B] [--packs 1 2 4 8]

Weights are synthetic, made on the device; packs are compressed from synthetic layers of the same shapes and sent once for each layer, so
bytes and kernels are those of a whole model. Times are medians; every ratio is of one run; peers run on an eighth of the tensors. Without
CUDA it says so, checks the kernels in Triton's interpreter on a tiny model, keeps nothing, and ends with 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

import deltapack
from benchmarks.command import keep
from benchmarks.results import Cell, Section, Table, machine
from deltapack.device.backends import choose, resolve_device
from deltapack.device.engine import Engine
from deltapack.device.regions import region_of
from deltapack.device.resident import ResidentPack, send
from deltapack.device.work import Saved, UndoMode, Work
from deltapack.dtypes import BY_NAME
from deltapack.format.reader import PackReader

BF16 = BY_NAME["bf16"]
REPEATS = 7
PACK_HEADERS = ("model", "G weights", "packs", "MB on the GPU", "bits/weight", "decode and send ms")
HEADERS = ("model", "what", "ms", "GB/s", "x copy")
NOTES = (
    "Weights and packs are synthetic, of the shapes of a decoder: bf16, drop rate 0.9, int4, seeded. Times are from the call to the end of "
    "the last kernel, medians of 7.",
    "GB/s: the weights read and written once, by the time. Copy: all weights to another place on the GPU.",
    "Planned anew: the tables that stay the same are made, too, as when a mix of packs is first asked for; its composition is not in it.",
    'By copy: whole tensors are kept to undo the packs (`undo="copy"`), not the replaced elements.',
    "Peers: all weights from pinned memory, `add_` of a dense difference, `index_add_` of a tenth; on an eighth of the tensors, scaled.",
)


@dataclass(frozen=True)
class Shape:
    """A decoder: layers, width, width of the MLP, vocabulary."""

    layers: int
    hidden: int
    inner: int
    vocabulary: int

    @property
    def layer(self) -> dict[str, tuple[int, int]]:
        square = (self.hidden, self.hidden)
        mlp = {"gate": (self.inner, self.hidden), "up": (self.inner, self.hidden), "down": (self.hidden, self.inner)}
        return {"q": square, "k": square, "v": square, "o": square, **mlp}

    @property
    def ends(self) -> dict[str, tuple[int, int]]:
        return {"embed": (self.vocabulary, self.hidden), "head": (self.vocabulary, self.hidden)}


SHAPES = {"tiny": Shape(2, 64, 176, 300), "1B": Shape(22, 2048, 5632, 32_000), "7B": Shape(32, 4096, 11_008, 32_000)}


@dataclass(frozen=True)
class Subject:
    """A model on a device and packs for it.

    Attributes:
        weights: Tensors of every layer, by name of layer and tensor.
        packs: For each pack, for each layer, what is resident.
        files: For each pack, the files of a layer and of the ends.
    """

    weights: dict[tuple[str, str], torch.Tensor]
    packs: list[dict[str, ResidentPack]]
    files: list[tuple[Path, Path]]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.weights.values())

    def works(self, chosen: Sequence[int], weight: float = 1.0) -> list[Work]:
        works = []
        for (layer, name), tensor in self.weights.items():
            terms = [
                (resident, float(resident.ready.term.factor) * weight)
                for number in chosen
                for resident in self.packs[number][layer].terms.values()
                if resident.ready.entry.name == name
            ]
            works.append(Work(region_of(tensor, tensor.shape), BF16, tuple(terms)))
        return works


def write_packs(folder: Path, shape: Shape, count: int) -> list[tuple[Path, Path]]:
    """Compress synthetic fine-tunes of one layer and of the ends."""
    pairs: list[tuple[Path, Path]] = []
    for number in range(count):
        pair = []
        for part, shapes in (("layer", shape.layer), ("ends", shape.ends)):
            torch.manual_seed(number)
            base = {name: (torch.randn(size) * 0.02).to(torch.bfloat16) for name, size in shapes.items()}
            tuned = {name: (tensor.float() + torch.randn(tensor.shape) * 1e-3).to(torch.bfloat16) for name, tensor in base.items()}
            save_file(base, folder / "base.safetensors")
            save_file(tuned, folder / "tuned.safetensors")
            pair.append(folder / f"{part}-{number}.dpk")
            recipe = deltapack.Recipe(drop_rate=0.9, seed=number)
            deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", pair[-1], recipe=recipe)
        pairs.append((pair[0], pair[1]))
    return pairs


def make_subject(folder: Path, shape: Shape, count: int, device: torch.device) -> tuple[Subject, float, int]:
    """Return the model and the packs, and seconds and bytes of sending one pack."""
    layers = [f"layer {number}" for number in range(shape.layers)]
    sizes = {(layer, name): size for layer in layers for name, size in shape.layer.items()}
    sizes |= {("ends", name): size for name, size in shape.ends.items()}
    weights = {key: (torch.randn(size, device=device) * 0.02).to(torch.bfloat16) for key, size in sizes.items()}
    files, packs, seconds = write_packs(folder, shape, count), [], []
    for layer_file, ends_file in files:
        with PackReader(layer_file) as layer_pack, PackReader(ends_file) as ends_pack:
            wait(device)
            start = time.perf_counter()
            resident = {layer: send(layer_pack, device, os.cpu_count() or 1) for layer in layers}
            resident["ends"] = send(ends_pack, device, os.cpu_count() or 1)
            wait(device)
            seconds.append(time.perf_counter() - start)
        packs.append(resident)
    return Subject(weights, packs, files), statistics.median(seconds), sum(part.nbytes for part in packs[0].values())


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(device: torch.device, action: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> float:
    """Return the median seconds of an action, after two runs that do not count."""
    times = []
    for _ in range(REPEATS + 2):
        prepare()
        wait(device)
        start = time.perf_counter()
        action()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


@dataclass
class State:
    """What is active, so that each measured action starts from where it should."""

    engine: Engine
    saved: list[Saved]

    def to(self, works: Sequence[Work], mode: UndoMode = "log") -> None:
        done: list[Saved] = []
        self.engine.switch(self.saved, works, mode, done)
        self.saved = done


def rows_of(subject: Subject, engine: Engine, device: torch.device, counts: Sequence[int]) -> list[tuple[str, float]]:
    """Measure; rows of what was done and seconds."""
    state, tensors = State(engine, []), list(subject.weights.values())
    before = [tensor.clone() for tensor in tensors] if device.type == "cpu" else [tensor[:1].clone() for tensor in tensors]
    rows = [("copy within the device", copying(tensors, device))]
    anew: list[Work] = []

    def plan_anew() -> None:
        state.to([])
        anew[:] = subject.works([0])

    rows.append(("activate 1, planned anew", median(device, lambda: state.to(anew), plan_anew)))
    for count in counts:
        works = subject.works(range(count), 1 / count)
        activate, back = partial(state.to, works), partial(state.to, [])
        rows.append((f"activate {count}", median(device, activate, back)))
        rows.append((f"undo {count}", median(device, back, activate)))
    copied = partial(state.to, works, "copy")
    rows.append((f"activate {count}, by copy", median(device, copied, back)))
    rows.append((f"undo {count}, by copy", median(device, back, copied)))
    one, other = subject.works([0]), subject.works([len(subject.packs) - 1])
    rows.append(("switch", median(device, lambda: state.to(other), lambda: state.to(one))))
    state.to([])
    after = [tensor if device.type == "cpu" else tensor[:1] for tensor in tensors]
    assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(before, after, strict=True)), "the base is not back"
    return rows + peers(tensors, device)


def copying(tensors: Sequence[torch.Tensor], device: torch.device) -> float:
    copies = [torch.empty_like(tensor) for tensor in tensors]
    return median(device, lambda: [copy.copy_(tensor) for copy, tensor in zip(copies, tensors, strict=True)])


def peers(tensors: Sequence[torch.Tensor], device: torch.device) -> list[tuple[str, float]]:
    """The other ways: all weights from pinned memory, a dense sum, a sparse sum of torch; on an eighth of the tensors, scaled."""
    some = list(tensors)[: max(1, len(tensors) // 8)]
    scale = sum(tensor.nbytes for tensor in tensors) / sum(tensor.nbytes for tensor in some)
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type == "cuda").copy_(tensor) for tensor in some]
    loading = median(device, lambda: [one.copy_(other, non_blocking=True) for one, other in zip(some, pinned, strict=True)])
    rows = [("peer: all weights from pinned memory", loading)]
    zeros = [torch.zeros_like(tensor) for tensor in some]
    rows.append(("peer: dense sum", median(device, lambda: [one.add_(other) for one, other in zip(some, zeros, strict=True)])))
    flat = [tensor.view(-1) for tensor in some]
    indices = [torch.arange(0, len(tensor), 10, device=device) for tensor in flat]
    parts = [(one, index, zero.view(-1)[: len(index)]) for one, index, zero in zip(flat, indices, zeros, strict=True)]
    adding = median(device, lambda: [one.index_add_(0, index, zero) for one, index, zero in parts])
    rows.append(("peer: sparse sum (index_add_)", adding))
    return [(name, seconds * scale) for name, seconds in rows]


def report(size: str, subject: Subject, sent: tuple[float, int], rows: Sequence[tuple[str, float]]) -> tuple[list[Cell], list[list[Cell]]]:
    """Return rows of the two tables."""
    weights, copy = subject.nbytes // 2, rows[0][1]
    times: list[list[Cell]] = [[size, what, 1e3 * seconds, 2 * subject.nbytes / seconds / 1e9, seconds / copy] for what, seconds in rows]
    return [size, weights / 1e9, len(subject.packs), sent[1] / 1e6, 8 * sent[1] / weights, 1e3 * sent[0]], times


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["1B", "7B"])
    parser.add_argument("--packs", nargs="+", type=int, default=[1, 2, 4, 8])
    given = parser.parse_args(arguments)
    sizes, counts = given.sizes, given.packs
    if not torch.cuda.is_available():
        print("There is no CUDA device: nothing is measured. The kernels run in Triton's interpreter on a tiny model instead.")
        os.environ["TRITON_INTERPRET"] = "1"
        sizes, counts = ["tiny"], [1, 2]
    device = resolve_device("cuda" if torch.cuda.is_available() else "cpu")
    choice = choose("triton", device)
    assert choice.engine is not None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, backend {choice}")
    packs, times = list[list[Cell]](), list[list[Cell]]()
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            subject, seconds, nbytes = make_subject(Path(folder), SHAPES[size], max(counts), device)
        if device.type == "cpu":
            check(subject, choice.engine)
            continue
        pack, rows = report(size, subject, (seconds, nbytes), rows_of(subject, choice.engine, device, counts))
        packs.append(pack)
        times += rows
    if packs:
        section = section_of(f"{name}, {machine()}, triton {version('triton')}", packs, times)
        print(section.markdown())
        keep(section)
    return 0


def section_of(place: str, packs: Sequence[Sequence[Cell]], times: Sequence[Sequence[Cell]]) -> Section:
    tables = (
        Table("packs", "Packs on a GPU", PACK_HEADERS, tuple(map(tuple, packs))),
        Table("times", "Activating, switching and undoing packs on a GPU", HEADERS, tuple(map(tuple, times))),
    )
    return Section("GPU", "python -m benchmarks.gpu", tables, NOTES, place=place)


def check(subject: Subject, engine: Engine) -> None:
    """Compare the interpreted kernels with the torch operations, bit by bit: activate, mix, switch, undo."""
    plain = choose("torch", torch.device("cpu")).engine
    assert plain is not None
    twin = Subject({key: tensor.clone() for key, tensor in subject.weights.items()}, subject.packs, subject.files)
    before = [tensor.clone() for tensor in subject.weights.values()]
    states = State(engine, []), State(plain, [])
    for chosen in ([0], [0, 1], [1], []):
        states[0].to(subject.works(chosen) if chosen else [])
        states[1].to(twin.works(chosen) if chosen else [])
        pairs = list(zip(subject.weights.values(), twin.weights.values(), strict=True))
        assert all(torch.equal(one.view(torch.int16), other.view(torch.int16)) for one, other in pairs), chosen
    assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(before, subject.weights.values(), strict=True))
    print("Interpreted kernels and torch operations give the same bits: activate, mix, switch, undo.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
