"""The engine guided by coverage: atheris, with our mutators in the place of its own; deltapack alone is instrumented."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from fuzz.bundles import Bundle, decode, encode
from fuzz.engine import Campaign, Kept, changed, count
from fuzz.protocol import Target
from fuzz.running import Runner

__all__ = ["instrumented", "run_atheris"]

_COMPILED = (
    "deltapack.kernels.cpu",
    "deltapack.kernels.reference.matrices",
    *(f"deltapack.device.triton_{name}" for name in ("decoding", "exact", "kernels", "rounding", "values")),
)
"""What a compiler reads: it knows no calls of a fuzzer."""
_MOST_BYTES = 1 << 20


def _atheris() -> Any:
    try:
        import atheris
    except ImportError as error:
        raise SystemExit("the engine guided by coverage is missing: pip install atheris") from error
    return atheris


@contextmanager
def instrumented() -> Iterator[None]:
    """Instrument what is imported of deltapack."""
    with _atheris().instrument_imports(include=["deltapack"], exclude=list(_COMPILED)):
        import deltapack.cli.main
        import deltapack.live.attaching

        assert deltapack
        for name in deltapack.__all__:
            getattr(deltapack, name)
        yield


class _Loop:
    """What libFuzzer calls; it keeps its own count, and ends the process in its own way."""

    def __init__(self, target: Target, runner: Runner, campaign: Campaign, kept: Kept, found: Path, until: float) -> None:
        self.target, self.runner, self.campaign, self.kept, self.found, self.until = target, runner, campaign, kept, found, until

    def one(self, data: bytes) -> None:
        """Run an input; findings are kept, and the run goes on."""
        if time.process_time() > self.until:
            raise KeyboardInterrupt
        bundle = decode(data)
        if bundle is not None and count(self.target, bundle, self.runner, self.campaign, self.kept, self.found):
            self.kept.add(bundle)

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Another input in the place of this one."""
        bundle = decode(data)
        if bundle is None:
            return data
        new = encode(changed(self.target, bundle, Random(seed), self.campaign))
        return new if len(new) <= most else data


def run_atheris(target: Target, seeds: Sequence[Bundle], runner: Runner, *, seconds: float, seed: int, kept: Kept, found: Path) -> Campaign:
    """Run for so many seconds of CPU.

    libFuzzer ends the process when it is done, so that it runs in a child of this one, which tells what came of it by a file.
    """
    atheris = _atheris()
    campaign, start = Campaign(target.name, "atheris"), time.process_time()
    assert kept.folder is not None
    corpus = kept.folder / "atheris"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, bundle in enumerate([*seeds, *kept.inputs()]):
        (corpus / f"seed-{number:05d}").write_bytes(encode(bundle))
    loop = _Loop(target, runner, campaign, kept, found, start + seconds)
    options = [
        "fuzz",
        str(corpus),
        f"-seed={seed + 1}",
        f"-max_len={_MOST_BYTES}",
        "-timeout=600",
        "-rss_limit_mb=8192",
        "-print_final_stats=1",
    ]
    options += ["-len_control=0", "-use_value_profile=0", f"-artifact_prefix={kept.folder}/", "-verbosity=1"]
    log = kept.folder / "atheris.log"
    with _stderr_to(log):
        atheris.Setup(options, loop.one, custom_mutator=loop.mutate, enable_python_coverage=True)
        with suppress(KeyboardInterrupt, SystemExit):
            atheris.Fuzz()
    campaign.cpu, campaign.edges = time.process_time() - start, _edges(log)
    kept.done()
    return campaign


@contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    sys.stderr.flush()
    saved = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _edges(log: Path) -> int:
    """What libFuzzer last said of edges."""
    words = log.read_text("utf-8", "replace").split()
    found = [int(after) for word, after in pairwise(words) if word == "cov:" and after.isdigit()]
    return max(found, default=0)
