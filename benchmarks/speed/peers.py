"""Other tools on the same checkpoints: what they make of a fine-tune, how they bring it back, how they merge."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.results import Cell, progress
from benchmarks.speed import memory_apply
from benchmarks.speed.checks import check_large
from benchmarks.speed.floors import weight_files
from benchmarks.speed.inputs import DEFAULT, Bench
from benchmarks.speed.peer_tools import Peer, Tools
from benchmarks.speed.rows import Group
from benchmarks.timing import Rounds, interleave

__all__ = ["HEADERS", "MERGEKIT", "measure_merges", "measure_peers", "measure_slowest", "peer_rows"]

HEADERS = (
    "task", "tool", "seconds", "min..max", "runs", "GB/s", "peak RSS MB", "output MB",
    "deltapack is x faster", "deltapack needs x less memory",
)  # fmt: skip
MERGEKIT = "mergekit task_arithmetic"


def measure_peers(bench: Bench, rounds: Rounds, *, make_environment: bool) -> Iterator[tuple[Cell, ...]]:
    """Time compressing one fine-tune, bringing it back, and adding it in memory."""
    peaks: dict[str, float] = {}
    tools = Tools(bench, peaks, make_environment)
    packing, applying = bench.compress(DEFAULT, 2), bench.apply(DEFAULT, 2)
    for task, verb, peers in (("compress", packing, tools.compressors()), ("restore", applying, tools.restorers())):
        progress(f"peers: {task}")
        own = verb.command(peaks)
        samples = interleave([own, verb.candidate(), *(peer.candidate for peer in peers)], rounds)
        wrong = {peer.candidate.name: _differs(peer) for peer in peers if samples[peer.candidate.name].seconds}
        wrong[own.name] = wrong[verb.name] = check_large(bench, DEFAULT, verb.verb)
        sizes = {peer.candidate.name: peer.out for peer in peers} | {own.name: verb.out, verb.name: verb.out}
        yield from peer_rows(task, Group(bench.family.nbytes, samples, peaks, wrong), own.name, sizes)
    yield from _in_memory_rows(tools, rounds)


def _in_memory_rows(tools: Tools, rounds: Rounds) -> Iterator[tuple[Cell, ...]]:
    base = memory_apply.read_state(tools.bench.base)
    state = {name: np.empty_like(tensor) for name, tensor in base.items()}
    own = memory_apply.name_of(2)
    ours = [one for one in memory_apply.candidates(tools.bench.pack(DEFAULT), base, state) if one.name == own]
    samples = interleave([*ours, tools.in_memory()], rounds)
    wrong = {own: check_large(tools.bench, DEFAULT, "add_to")}
    yield from peer_rows("in memory", Group(tools.bench.family.nbytes, samples, tools.peaks, wrong), own, {})


def measure_merges(bench: Bench, rounds: Rounds, *, make_environment: bool) -> Group:
    """Time merging four packs, and mergekit on the four full fine-tunes."""
    peaks: dict[str, float] = {}
    tools = Tools(bench, peaks, make_environment)
    merge = bench.merge(4, 2)
    peers = [tools.mergekit(method) for method in ("task_arithmetic", "dare_linear", "ties")]
    samples = interleave([merge.command(peaks), merge.candidate(), *(peer.candidate for peer in peers)], rounds)
    wrong = check_large(bench, DEFAULT, "merge", 4)
    return Group(bench.family.nbytes, samples, peaks, {name: wrong for name in samples if name.startswith("merge of")})


def measure_slowest(bench: Bench) -> Iterator[tuple[Cell, ...]]:
    """Time zstd -19 once, on a model that is small enough for it."""
    peaks: dict[str, float] = {}
    tools, packing = Tools(bench, peaks), bench.compress(DEFAULT, 2)
    out = tools.folder("zstd19")
    peer = tools.system("zstd -19", "zstd", out, lambda: [["zstd", "-q", "-19", new, "-o", out / new.name] for new, _ in tools.pairs()])
    own = packing.command(peaks)
    samples = interleave([own, peer.candidate], Rounds(fast=1, slow=1))
    outs = {own.name: packing.out, "zstd -19": out}
    yield from peer_rows("compress", Group(bench.family.nbytes, samples, peaks), own.name, outs)


def peer_rows(task: str, group: Group, own: str, outs: Mapping[str, Path | None]) -> Iterator[tuple[Cell, ...]]:
    """Yield a row of each tool; `own` is what they are compared with."""
    for name, sample in group.samples.items():
        seconds, peak, ours = sample.median, group.peaks.get(name), group.peaks.get(own)
        out = outs.get(name)
        size = _size(out) / 1e6 if out is not None and out.exists() and seconds else None
        shown = f"deltapack: {name}" if name.startswith(("compress,", "apply ", "merge of")) else name
        yield (
            task, shown, seconds if seconds is not None else f"none: {sample.reason}", sample.spread, len(sample.seconds),
            group.nbytes / 1e9 / seconds if seconds else None, peak, size, group.ratio(name, own),
            peak / ours if seconds and peak and ours else None,
        )  # fmt: skip


def _differs(peer: Peer) -> str:
    if peer.restores is None or peer.out is None:
        return ""
    same = all(filecmp.cmp(path, peer.out / path.name, shallow=False) for path in weight_files(peer.restores))
    return "" if same else "not the fine-tune's bytes"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
