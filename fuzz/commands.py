"""What the command line does with one target."""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from random import Random

from fuzz.bundles import Bundle, decode
from fuzz.engine import Campaign, Kept, run
from fuzz.environment import CACHE
from fuzz.protocol import Target
from fuzz.running import Runner
from fuzz.watching import bound_memory

__all__ = ["COLUMNS", "command"]

COLUMNS = ("target", "engine", "cpu_minutes", "inputs", "deep_percent", "kinds_reached", "edges", "findings")


def command(target: Target, options: argparse.Namespace) -> int:
    """Run a target; return 1 where something was found."""
    if options.replay:
        return max(_replay(target, path) for path in options.replay)
    with tempfile.TemporaryDirectory(prefix="seeds-") as folder:
        seeds = list(target.seeds(Path(folder)))
    long = bool(options.seconds or options.coverage)
    kept = Kept(options.corpus or (CACHE / "corpus" if long else None), target)
    found = options.found / target.name
    if options.coverage:
        from fuzz.covering import covered

        own = kept.inputs()
        print(covered(target, [*seeds, *Random(options.seed).sample(own, min(options.runs, len(own)))]))
        return 0
    bound_memory()
    with Runner(target) as runner:
        if options.atheris:
            from fuzz.atheris_engine import run_atheris

            campaign = run_atheris(target, seeds, runner, seconds=options.seconds, seed=options.seed, kept=kept, found=found)
        else:
            campaign = run(target, seeds, runner, runs=options.runs, seconds=options.seconds, seed=options.seed, kept=kept, found=found)
    tell(target, campaign, options.labels)
    if options.table:
        _append(options.table, campaign)
    return 1 if campaign.faults else 0


def _replay(target: Target, path: Path) -> int:
    bundle: Bundle | None = decode(path.read_bytes())
    if bundle is None:
        print(f"{path}: no input of this fuzzer")
        return 2
    bound_memory()
    with Runner(target) as runner:
        result = runner.run(bundle)
    print("\n".join(result.labels))
    print(result.detail or "nothing is wrong")
    return 1 if result.fault else 0


def tell(target: Target, campaign: Campaign, labels: bool) -> None:
    """Print what a run came to."""
    share = 100 * campaign.depth / max(1, campaign.inputs)
    print(
        f"{target.name}: {campaign.inputs} inputs in {campaign.cpu:.0f} s of CPU, {share:.0f} % past the first check, "
        f"{len(campaign.labels)} kinds of outcomes, {len(campaign.faults)} findings"
    )
    if labels:
        for label, count in campaign.labels.most_common():
            print(f"  {count:7} {label}")


def _append(path: Path, campaign: Campaign) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        share = round(100 * campaign.depth / max(1, campaign.inputs))
        row = (campaign.target, campaign.engine, f"{campaign.cpu / 60:.2f}", campaign.inputs, share, len(campaign.labels), campaign.edges)
        writer.writerow((*row, len(campaign.faults)))
