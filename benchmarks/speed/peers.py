"""Other tools on the same checkpoints: what they make of a fine-tune, how they bring it back, how they merge."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.checkpoints import cache_folder
from benchmarks.processes import run_command
from benchmarks.results import Cell, progress
from benchmarks.speed.candidates import clear, command_candidate, in_memory, in_memory_name, two_states, weight_files
from benchmarks.speed.checks import check_large
from benchmarks.speed.inputs import DEFAULT, Bench
from benchmarks.timing import Candidate, Group, Peaks, Rounds, interleave

__all__ = [
    "HEADERS", "MERGEKIT", "PATCH_FROM", "Peer", "Tools", "measure_merges", "measure_peers", "measure_slowest", "patch_from", "peer_rows",
]  # fmt: skip

HEADERS = (
    "task", "tool", "seconds", "min..max", "runs", "GB/s", "peak RSS MB", "output MB",
    "deltapack is x faster", "deltapack needs x less memory",
)  # fmt: skip
MERGEKIT = "mergekit task_arithmetic"
PATCH_FROM = "zstd -3 --patch-from"
OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "TRANSFORMERS_VERBOSITY": "error"}
MERGEKIT_PARAMETERS: Mapping[str, Mapping[str, float]] = {
    "task_arithmetic": {"weight": 0.3},
    "dare_linear": {"weight": 0.3, "density": 0.1},
    "ties": {"weight": 0.3, "density": 0.1},
    "sce": {},
    "model_stock": {},
}
Command = Sequence[str | Path]


@dataclass(frozen=True)
class Peer:
    """A tool at a task.

    Attributes:
        candidate: What to time.
        out: What it writes.
        restores: The folder whose weight files it must give back bit for bit; none where it is lossy.
    """

    candidate: Candidate
    out: Path | None = None
    restores: Path | None = None


@dataclass(frozen=True)
class Tools:
    """Makes peers; a tool that is missing becomes a peer that fails with the reason."""

    bench: Bench
    peaks: Peaks
    make_environment: bool = True

    @property
    def base(self) -> Path:
        return self.bench.base

    @property
    def tuned(self) -> Path:
        return self.bench.family.tuned[0]

    def folder(self, name: str) -> Path:
        return self.bench.scratch / f"peer-{name}"

    def system(self, name: str, tool: str, out: Path, commands: Callable[[], Sequence[Command]], *, lossless: bool = False) -> Peer:
        """A program of the system that works on one weight file after the other."""
        if shutil.which(tool) is None:
            return Peer(_failing(name, f"{tool} is not on the PATH: apt-get install {tool}"))

        def run() -> object:
            out.mkdir()
            return command_candidate(name, commands(), self.peaks, None).call()

        return Peer(Candidate(name, run, lambda: clear(out)), out, self.tuned if lossless else None)

    def python(self, name: str, out: Path | None, *words: str | Path, lossless: bool = False, module: bool = False) -> Peer:
        """A task of `benchmarks.peers`, or with `module` a program of the peers' environment."""
        try:
            folder = peers.environment(cache_folder(), make=self.make_environment)
        except peers.PeersUnavailableError as error:
            return Peer(_failing(name, str(error)))
        program: Command = [peers.python_of(folder).with_name(str(words[0])), *words[1:]]
        command = program if module else peers.task_command(folder, *words)
        return Peer(command_candidate(name, [command], self.peaks, out, OFFLINE), out, self.tuned if lossless else None)

    def pairs(self) -> Iterator[tuple[Path, Path]]:
        """Yield the weight files of the fine-tune and the base's of the same name."""
        for path in weight_files(self.tuned):
            yield path, self.base / path.name

    def compressors(self) -> list[Peer]:
        zstd1, xdelta = self.folder("zstd"), self.folder("xdelta3")
        return [
            self.system("zstd -1", "zstd", zstd1, lambda: [["zstd", "-q", "-1", new, "-o", zstd1 / new.name] for new, _ in self.pairs()]),
            patch_from(self.bench, self.peaks),
            self.system("xdelta3", "xdelta3", xdelta, lambda: [_xdelta("-e", old, new, xdelta) for new, old in self.pairs()]),
            self.python("zipnn", self.folder("zipnn"), "zipnn_compress", self.tuned, self.folder("zipnn")),
            self.python("deltatensors int4", self.folder("dt"), "deltatensors_save", self.base, self.tuned, self.folder("dt")),
            self.python("plain torch, 10 % kept", self.folder("torch"), "torch_save", self.base, self.tuned, self.folder("torch")),
        ]

    def restorers(self) -> list[Peer]:
        """The way back, from what `compressors` left."""
        zstd1, patch, xdelta = (self.folder(name) for name in ("zstd", "patch", "xdelta3"))
        out = {name: self.folder(f"{name}-back") for name in ("zstd", "patch", "xdelta3", "zipnn", "dt", "torch")}
        unzstd = ["zstd", "-q", "-d", "--long=31", "--memory=2048MB"]
        return [
            self.system(
                "zstd -d", "zstd", out["zstd"],
                lambda: [["zstd", "-q", "-d", zstd1 / new.name, "-o", out["zstd"] / new.name] for new, _ in self.pairs()], lossless=True,
            ),
            self.system(
                "zstd -d --patch-from", "zstd", out["patch"],
                lambda: [[*unzstd, f"--patch-from={old}", patch / new.name, "-o", out["patch"] / new.name] for new, old in self.pairs()],
                lossless=True,
            ),
            self.system(
                "xdelta3 -d", "xdelta3", out["xdelta3"],
                lambda: [_xdelta("-d", old, xdelta / new.name, out["xdelta3"]) for new, old in self.pairs()], lossless=True,
            ),
            self.python("zipnn, decompress", out["zipnn"], "zipnn_decompress", self.folder("zipnn"), out["zipnn"], lossless=True),
            self.python("deltatensors, load and save", out["dt"], "deltatensors_load", self.base, self.folder("dt"), out["dt"]),
            self.python("plain torch, index_add_ and save", out["torch"], "torch_apply", self.base, self.folder("torch"), out["torch"]),
        ]  # fmt: skip

    def in_memory(self) -> Candidate:
        """Plain torch, which times its own additions."""
        name = "plain torch, index_add_ in memory"
        try:
            folder = peers.environment(cache_folder(), make=self.make_environment)
        except peers.PeersUnavailableError as error:
            return _failing(name, str(error))

        def run() -> float:
            done = run_command(peers.task_command(folder, "torch_memory", self.base, self.folder("torch")), OFFLINE)
            return float(done.output.strip().splitlines()[-1])

        return Candidate(name, run)

    def mergekit(self, method: str, count: int = 4) -> Peer:
        """Merge full fine-tunes: the four there are, and of more the same once more under other names."""
        out, recipe = self.folder(f"mergekit-{method}-{count}"), self.bench.scratch / f"{method}-{count}.yml"
        models = [{"model": str(path), "parameters": MERGEKIT_PARAMETERS[method]} for path in self._fine_tunes(count)]
        # JSON is YAML.
        recipe.write_text(json.dumps({"merge_method": method, "base_model": str(self.base), "models": models, "dtype": "bfloat16"}))
        words: Command = ["mergekit-yaml", recipe, out, "--no-copy-tokenizer", "--quiet"]
        return self.python(f"mergekit {method}" + ("" if count == 4 else f" of {count}"), out, *words, module=True)

    def _fine_tunes(self, count: int) -> Iterator[Path]:
        for number in range(count):
            path = self.folder(f"fine-tune-{number}")
            if not path.exists():
                path.symlink_to(self.bench.family.tuned[number % len(self.bench.family.tuned)].resolve(), target_is_directory=True)
            yield path


def patch_from(bench: Bench, peaks: Peaks) -> Peer:
    """Run zstd -3 --patch-from on one weight file after the other."""
    tools = Tools(bench, peaks)
    out = tools.folder("patch")
    command = ["zstd", "-q", "-3", "--long=31"]
    return tools.system(
        PATCH_FROM, "zstd", out, lambda: [[*command, f"--patch-from={old}", new, "-o", out / new.name] for new, old in tools.pairs()]
    )


def _xdelta(way: str, source: Path, path: Path, out: Path) -> Command:
    """Its window over the source covers the file, which its default of 64 MB does not."""
    return ["xdelta3", way, "-q", "-B", str(max(1 << 26, source.stat().st_size)), "-s", source, path, out / path.name]


def _failing(name: str, reason: str) -> Candidate:
    def fail() -> None:
        raise peers.PeersUnavailableError(reason)

    return Candidate(name, fail)


def measure_peers(bench: Bench, rounds: Rounds, *, make_environment: bool) -> Iterator[tuple[Cell, ...]]:
    """Time compressing one fine-tune, bringing it back, and adding it in memory."""
    peaks: dict[str, float] = {}
    tools = Tools(bench, peaks, make_environment)
    packing, applying = bench.compress(DEFAULT, 2), bench.apply(DEFAULT, 2)
    for task, verb, others in (("compress", packing, tools.compressors()), ("restore", applying, tools.restorers())):
        progress(f"peers: {task}")
        own = verb.command(peaks)
        samples = interleave([own, verb.candidate(), *(peer.candidate for peer in others)], rounds)
        wrong = {peer.candidate.name: _differs(peer) for peer in others if samples[peer.candidate.name].seconds}
        wrong[own.name] = wrong[verb.name] = check_large(bench, DEFAULT, verb.verb)
        sizes = {peer.candidate.name: peer.out for peer in others} | {own.name: verb.out, verb.name: verb.out}
        yield from peer_rows(task, Group(bench.family.nbytes, samples, peaks, wrong), own.name, sizes)
    yield from _in_memory_rows(tools, rounds)


def _in_memory_rows(tools: Tools, rounds: Rounds) -> Iterator[tuple[Cell, ...]]:
    base, state = two_states(tools.bench.base)
    own = in_memory_name(2)
    ours = [one for one in in_memory(tools.bench.pack(DEFAULT), base, state) if one.name == own]
    samples = interleave([*ours, tools.in_memory()], rounds)
    wrong = {own: check_large(tools.bench, DEFAULT, "add_to")}
    yield from peer_rows("in memory", Group(tools.bench.family.nbytes, samples, tools.peaks, wrong), own, {})


def measure_merges(bench: Bench, rounds: Rounds, *, make_environment: bool) -> Group:
    """Time merging four packs, and mergekit on the four full fine-tunes."""
    peaks: dict[str, float] = {}
    tools = Tools(bench, peaks, make_environment)
    merge = bench.merge(4, 2)
    others = [tools.mergekit(method) for method in ("task_arithmetic", "dare_linear", "ties")]
    samples = interleave([merge.command(peaks), merge.candidate(), *(peer.candidate for peer in others)], rounds)
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
