"""Our own engine: inputs made by chance from a seed, those that reach something new are changed again; the same in every run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from zlib import crc32

from fuzz.bundles import Bundle, decode, encode
from fuzz.protocol import Target, outcome_of
from fuzz.running import Result, Runner, save

__all__ = ["Campaign", "Kept", "changed", "count", "minimal", "run"]

_POOL, _SHALLOW = 1024, 0.1


@dataclass
class Campaign:
    """What a run came to.

    Attributes:
        target: Name of the target.
        engine: `own` or `atheris`.
        inputs: Inputs that were run.
        cpu: Seconds of CPU.
        labels: How many inputs reached what.
        faults: Findings: what tells one apart from others, and where its first input is.
        depth: Inputs that got past the first check.
        edges: Edges of deltapack's code that an engine guided by them counted.
        faults_seen: How many inputs showed each finding.
    """

    target: str
    engine: str = "own"
    inputs: int = 0
    cpu: float = 0.0
    labels: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Path] = field(default_factory=dict)
    depth: int = 0
    edges: int = 0
    faults_seen: Counter[str] = field(default_factory=Counter)

    def add(self, target: Target, result: Result) -> bool:
        """Count a result; whether it reached something that none did before."""
        self.inputs += 1
        self.depth += any(label.startswith(target.reached) for label in result.labels)
        fresh = [label for label in dict.fromkeys(result.labels) if label not in self.labels]
        self.labels.update(dict.fromkeys(result.labels, 1))
        return bool(fresh)


class Kept:
    """Where inputs are kept between runs: those that reached something new, and findings."""

    def __init__(self, folder: Path | None, target: Target) -> None:
        self.folder = None if folder is None else folder / target.name

    def inputs(self) -> list[Bundle]:
        """What earlier runs kept, in the order of its names."""
        if self.folder is None or not (self.folder / "corpus").is_dir():
            return []
        found = [decode(path.read_bytes()) for path in sorted((self.folder / "corpus").iterdir())]
        return [bundle for bundle in found if bundle is not None]

    def add(self, bundle: Bundle) -> None:
        """Keep an input."""
        if self.folder is not None:
            data = encode(bundle)
            (self.folder / "corpus").mkdir(parents=True, exist_ok=True)
            (self.folder / "corpus" / f"{crc32(data):08x}-{len(data)}").write_bytes(data)

    def now(self, bundle: Bundle) -> None:
        """Write the input that is about to run, in case that it ends the process."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "current").write_bytes(encode(bundle))

    def done(self) -> None:
        """No input is running."""
        if self.folder is not None:
            (self.folder / "current").unlink(missing_ok=True)


def run(
    target: Target,
    seeds: Sequence[Bundle],
    runner: Runner,
    *,
    runs: int,
    seconds: float,
    seed: int,
    kept: Kept,
    found: Path,
    tell: Callable[[str], None] = print,
) -> Campaign:
    """Run seeds, then changed inputs until one of the budgets is used.

    Args:
        target: What is fuzzed.
        seeds: The first inputs.
        runner: Runs them.
        runs: How many inputs beside the seeds, if `seconds` is 0.
        seconds: Seconds of CPU instead.
        seed: Where chance starts: the same budget of inputs and the same seed make the same inputs.
        kept: Where to keep inputs.
        found: Where to keep findings.
        tell: Gets lines for people.
    """
    rng, campaign, start = Random(f"{target.name} {seed}"), Campaign(target.name), time.process_time()
    deep, rest = list(seeds), list[Bundle]()
    for bundle in seeds:
        count(target, bundle, runner, campaign, kept, found, tell)
    for bundle in kept.inputs():
        before = campaign.depth
        count(target, bundle, runner, campaign, kept, found, tell)
        (deep if campaign.depth > before else rest).append(bundle)
    number = 0
    while (time.process_time() - start < seconds) if seconds else (number < runs):
        number += 1
        pool = rest if rest and rng.random() < _SHALLOW else deep  # what is refused at once is no good start, mostly
        bundle = changed(target, pool[rng.randrange(len(pool))], rng, campaign)
        before = campaign.depth
        if count(target, bundle, runner, campaign, kept, found, tell):
            pool = deep if campaign.depth > before else rest
            pool[_POOL:] = []
            pool.append(bundle)
            kept.add(bundle)
    campaign.cpu = time.process_time() - start
    kept.done()
    return campaign


def changed(target: Target, bundle: Bundle, rng: Random, campaign: Campaign) -> Bundle:
    """Change an input once or twice; where a mutator cannot work on it, which is counted, it stays as it is."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        try:
            bundle = target.change(bundle, rng)
        except Exception as error:
            campaign.labels[f"mutator: {outcome_of(error)}"] += 1
    return bundle


def count(
    target: Target, bundle: Bundle, runner: Runner, campaign: Campaign, kept: Kept, found: Path, tell: Callable[[str], None] = print
) -> bool:
    """Run an input, keep what it found, count what it reached; whether that is new."""
    kept.now(bundle)
    result = runner.run(bundle)
    if result.fault:
        campaign.faults_seen[result.fault] += 1
        if result.fault not in campaign.faults:
            bundle = minimal(target, bundle, runner, result.fault)
            campaign.faults[result.fault] = path = save(result, bundle, found, len(campaign.faults))
            tell(f"{target.name}: {result.fault}\n    python -m fuzz {target.name} --replay {path}")
    return campaign.add(target, result)


def minimal(target: Target, bundle: Bundle, runner: Runner, fault: str, most: int = 200) -> Bundle:
    """Leave out files, then pieces of files, as long as the same is found; checksums are not made to fit, which few findings bear."""
    tries = 0
    for name in list(bundle):
        without = {other: content for other, content in bundle.items() if other != name}
        tries += 1
        if without and runner.run(without).fault == fault:
            bundle = without
    for name in list(bundle):
        size = len(bundle[name]) // 2
        while size >= 1 and tries < most:
            at = 0
            while at < len(bundle[name]) and tries < most:
                shorter = {**bundle, name: bundle[name][:at] + bundle[name][at + size :]}
                tries += 1
                if runner.run(shorter).fault == fault:
                    bundle = shorter
                else:
                    at += size
            size //= 4
    return bundle
