"""The whole demo: learn, compress, restore, merge, measure. Every figure comes from the run itself."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from deltapack.checkpoint.manifest import MANIFEST, check_own, is_kind, manifest_of
from deltapack.checkpoint.replace import swap_in
from deltapack.demo.corpus import Corpus, Folders, read_corpus
from deltapack.demo.model import ModelSize, initial_parameters, load_model, save_model
from deltapack.demo.outcome import DOMAINS, DemoReport, Row
from deltapack.demo.picture import PICTURE, demo_page
from deltapack.demo.training import Progress, Schedule, bits_per_byte, fine_tune, train
from deltapack.errors import OutputError
from deltapack.format.atomic import claimed, fsync_tree, sweep, temporary_sibling, writing
from deltapack.format.placing import seen_at
from deltapack.kinds import FOLDER, check_output_name
from deltapack.merging.merge import merge
from deltapack.packing.compressing import compress
from deltapack.packing.recipe import Recipe
from deltapack.parallel import ordered_map, resolve_workers
from deltapack.restoring.applying import apply

__all__ = ["DOMAINS", "DemoReport", "DemoSize", "Row", "run_demo"]

_SEED = 1
_KIND = "demo"


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does.

    Attributes:
        text_bytes: Size of each of the texts.
        model: Shape of the model.
        base: How to train the base.
        fine_tune: How to fine-tune it.
        windows: Number of windows that a model is measured on, of one context each.
        drop_rates: Drop rates to compress at, beside the budget that `compress` takes by itself.
        merge_rate: The one of these whose packs are merged.
        merge_weight: Weight of each pack in the merge.
    """

    text_bytes: int = 500_000
    model: ModelSize = field(default_factory=ModelSize)
    base: Schedule = field(default_factory=lambda: Schedule(steps=270, rate=0.02, matrix_rate=0.03))
    fine_tune: Schedule = field(default_factory=lambda: Schedule(steps=70, rate=4e-4))
    windows: int = 128
    drop_rates: tuple[float, ...] = (0.5, 0.9, 0.99)
    merge_rate: float = 0.9
    merge_weight: float = 0.6


def run_demo(
    folder: str | Path,
    *,
    echo: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    force: bool = False,
    size: DemoSize | None = None,
    sources: Folders | None = None,
) -> DemoReport:
    """Train a base and two fine-tunes, then compress, restore, merge and measure them.

    Args:
        folder: Where to leave everything; it appears when the demo is done, and not if it is interrupted.
        echo: Called with a line of text as each stage starts.
        progress: Called with (steps done, steps in all) while the base learns, then while the fine-tunes do.
        workers: Number of threads of packing and of models fine-tuned at a time; every core if None.
        force: Replace an earlier demo in `folder`, where nothing was added to it or changed in it since.
        size: How much to do; the full demo if None.
        sources: Where to read text; the running interpreter's folders if None.

    Raises:
        OutputError: `folder` exists and `force` is False, it holds what no demo wrote, or it cannot be written.
        RecipeError: `folder` is called as a file of weights.
        DeltapackError: The installation holds too little text.
    """
    out, what, threads = Path(folder), size or DemoSize(), resolve_workers(workers)
    check_output_name(out, FOLDER)
    _check(out, force)
    before = torch.get_num_threads()
    # The operations are so small that a second thread saves a tenth when the machine is idle, costs many times that
    # when it is not, and makes the figures depend on the machine. Two fine-tunes at a time is the better use of it.
    torch.set_num_threads(1)
    try:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            there, unfinished = seen_at(out), temporary_sibling(out)
            with claimed(out), ExitStack() as stack:
                stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
                (unfinished / "restored").mkdir(parents=True)
                report = _Demo(unfinished, what, threads, echo or (lambda line: None), progress).run(sources)
                (unfinished / PICTURE).write_text(demo_page(report), "utf-8")
                (unfinished / MANIFEST).write_bytes(manifest_of(unfinished, _KIND))
                _check(out, force)  # a minute has passed: look again
                fsync_tree(unfinished)
                swap_in(unfinished, out, there)
        return replace(report, folder=out)
    finally:
        torch.set_num_threads(before)


def _check(out: Path, force: bool) -> None:
    """Refuse a folder that is there, unless it is empty or, with `force`, holds an earlier demo as it was left and nothing else."""
    with writing(out):
        if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
            return
        if not out.is_dir() or out.is_symlink():
            raise OutputError("the output exists and is no folder", path=out, hint="Choose another name.")
        if not force:
            sweep(out)
            hint = "Choose another, or replace the demo in it with --force." if is_kind(out, _KIND) else "Choose another: no demo is in it."
            raise OutputError("the folder exists", path=out, hint=hint)
        check_own(out, _KIND)


class _Demo:
    """One run: the stages in order, and the clock of each kind of work."""

    def __init__(self, out: Path, size: DemoSize, workers: int, echo: Callable[[str], None], progress: Progress | None) -> None:
        self.out, self.size, self.workers, self.echo, self.progress = out, size, workers, echo, progress
        self.seconds = {"train": 0.0, "pack": 0.0, "measure": 0.0}
        self.held_out: dict[str, bytes] = {}
        self.base_loss: dict[str, float] = {}
        self.tuned_loss: dict[str, float] = {}

    def run(self, sources: Folders | None) -> DemoReport:
        """Run all stages."""
        start = time.perf_counter()
        self.echo("reading text: the standard library, torch's sources, numpy's docstrings")
        corpus = read_corpus(self.size.text_bytes, sources)
        self.held_out = {"code": corpus.code.held_out, "prose": corpus.prose.held_out}
        parameters = self._train(corpus)
        self.seconds["train"] = time.perf_counter() - start
        rows = self._originals()
        for domain in DOMAINS:
            rows.append(self._pack(domain, f"{domain}.dpk", Recipe()))
            rows += [self._pack(domain, _pack_name(domain, rate), Recipe(drop_rate=rate)) for rate in self.size.drop_rates]
        merged = tuple(_pack_name(domain, self.size.merge_rate) for domain in DOMAINS)
        rows.append(self._merge(merged))
        return DemoReport(
            folder=self.out,
            rows=tuple(rows),
            parameters=parameters,
            merge_weight=self.size.merge_weight,
            merged=merged,
            train_seconds=self.seconds["train"],
            pack_seconds=self.seconds["pack"],
            measure_seconds=self.seconds["measure"],
        )

    def _train(self, corpus: Corpus) -> int:
        shape = self.size.model
        start = initial_parameters(shape, _SEED)
        count = sum(tensor.numel() for tensor in start.values())
        self.echo(f"training a base of {count:,} parameters on the standard library")
        trained = train(start, shape, corpus.general, self.size.base, seed=_SEED, progress=self.progress)
        save_model(self.out / "base", trained, shape)
        base, _ = load_model(self.out / "base")  # rounded to bf16, as anyone who fine-tunes it gets it
        self.echo("fine-tuning it on code and on prose")

        def tune(rank: int) -> dict[str, Tensor]:
            text, progress = (corpus.code, corpus.prose)[rank].train, self.progress if rank == 0 else None
            return fine_tune(base, shape, text, self.size.fine_tune, seed=_SEED + 1 + rank, progress=progress)

        for domain, tuned in zip(DOMAINS, ordered_map(tune, range(len(DOMAINS)), self.workers), strict=True):
            save_model(self.out / f"{domain}-finetuned", tuned, shape)
        return count

    def _originals(self) -> list[Row]:
        self.echo("measuring them on files they have not seen")
        self.base_loss = self._measure("base", DOMAINS)
        rows = [Row("base", "base", self._weights("base"), self.base_loss, {})]
        for domain in DOMAINS:
            name = f"{domain}-finetuned"
            loss = self._measure(name, DOMAINS)
            self.tuned_loss[domain] = loss[domain]
            rows.append(Row(name, "fine-tune", self._weights(name), loss, {}))
        return rows

    def _pack(self, domain: str, name: str, recipe: Recipe) -> Row:
        self.echo(f"compressing, restoring and measuring {name}")
        start = time.perf_counter()
        base, pack, restored = self.out / "base", self.out / name, f"restored/{Path(name).stem}"
        compress(base, self.out / f"{domain}-finetuned", pack, recipe=recipe, workers=self.workers)
        apply(base, pack, self.out / restored, workers=self.workers)
        self.seconds["pack"] += time.perf_counter() - start
        loss = self._measure(restored, (domain,))
        return Row(name, "pack", pack.stat().st_size, loss, self._retention(loss))

    def _merge(self, packs: tuple[str, ...]) -> Row:
        self.echo(f"merging {' and '.join(packs)}")
        start = time.perf_counter()
        paths, weights = [self.out / pack for pack in packs], [self.size.merge_weight] * len(packs)
        merge(self.out / "base", paths, self.out / "merged", weights=weights, workers=self.workers)
        self.seconds["pack"] += time.perf_counter() - start
        loss = self._measure("merged", DOMAINS)
        return Row("merged", "merge", 0, loss, self._retention(loss))

    def _measure(self, name: str, domains: tuple[str, ...]) -> dict[str, float]:
        start = time.perf_counter()
        parameters, shape = load_model(self.out / name)
        loss = {domain: bits_per_byte(parameters, shape, self.held_out[domain], self.size.windows) for domain in domains}
        self.seconds["measure"] += time.perf_counter() - start
        return loss

    def _retention(self, loss: Mapping[str, float]) -> dict[str, float]:
        gains = {domain: self.base_loss[domain] - self.tuned_loss[domain] for domain in loss}
        return {domain: (self.base_loss[domain] - loss[domain]) / gain for domain, gain in gains.items() if gain > 0}

    def _weights(self, name: str) -> int:
        return (self.out / name / "model.safetensors").stat().st_size


def _pack_name(domain: str, rate: float) -> str:
    return f"{domain}-drop{rate:g}.dpk"
