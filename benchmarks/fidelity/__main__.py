"""How small can a fine-tune be? This tool's packs and every other data-free method at equal size, on models that are made for it.

    python -m benchmarks.fidelity                    # the study: hours, most of them training, once; what is measured is kept
    python -m benchmarks.fidelity "gpt perl"         # these fine-tunes, with what is kept of the others
    python -m benchmarks.fidelity --tables           # the tables and pictures of what is kept, nothing measured
    python -m benchmarks.fidelity --fresh            # nothing that is kept counts, but for the models
    python -m benchmarks.fidelity --quick            # a trial on the demo's models, writes nothing

The tables of docs/fidelity.md are written anew, too. What is kept lies beside the models, in the cache of `benchmarks.checkpoints`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import command
from benchmarks.assets import AssetsUnavailableError
from benchmarks.checkpoints import cache_folder
from benchmarks.fidelity import merges
from benchmarks.fidelity.page import write_page
from benchmarks.fidelity.plots import draw
from benchmarks.fidelity.report import means, tables
from benchmarks.fidelity.running import Kept, Result
from benchmarks.fidelity.study import PLAN, QUICK, SUBJECTS, Plan, measure_subject
from benchmarks.results import DATA, Section, progress

__all__ = ["main", "measure"]

COMMAND = "python -m benchmarks.fidelity"
NOTES = (
    "KL: mean over held-out tokens (pair B1: reactions) of the divergence of the restored model's distribution from the fine-tune's, in "
    "nats, in f32. Retention: share of the fine-tune's gain in held-out loss that is left. Control: loss on text of the base, which "
    "hardly tells methods apart. Noise: squared error of the restored differences over their square.",
    "deltapack: bits of the whole file that `compress` wrote, restored by `apply`. Others: order-0 entropy of their codes, entropy of the "
    "positions that depend on the delta, nothing for positions that a seed gives again and nothing for a container; vectors whole, 16 "
    "bits each.",
    "Every model is small and every fine-tune short; SmolLM2's weights were dequantised from 4 bits. Spread: largest minus smallest over "
    "the seeds. B1 has no labels here: its classes are compared with the fine-tune's.",
)


def measure(plan: Plan, names: Sequence[str], kept: Kept, plots: Path | None, wanted: Sequence[str] = ()) -> Section:
    """Return the tables of fine-tunes; those that are not wanted are measured no further.

    Args:
        plan: How much is measured.
        names: Fine-tunes that are shown.
        kept: Results that there are, and where new ones go.
        plots: The folder for pictures; none are drawn without.
        wanted: Fine-tunes that are measured; the others show what is kept of them. All if there are none.
    """
    results: list[Result] = []
    missing: list[str] = []
    for name in names:
        if wanted and name not in wanted:
            results += [result for result in kept if result.subject == name]
            continue
        try:
            results += measure_subject(name, plan, kept)
        except (AssetsUnavailableError, ImportError) as error:
            missing.append(f"{name}: not measured, {error}")
    made = [table for table in tables(results) if table.rows]
    if plots is not None:
        try:
            drawn = draw(means(results), plots)
            made = [replace(table, plot=name) for table, name in zip(made, drawn, strict=False)] + made[len(drawn) :]
        except ImportError as error:
            missing.append(f"no pictures: {error}; install deltapack[plot]")
    return Section("Fidelity study", COMMAND, tuple(made), (*NOTES, *missing))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FINE-TUNE", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--quick", action="store_true", help="a trial, a minute or two; writes nothing")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.names if name not in SUBJECTS]:
        parser.error(f"no such fine-tune: {', '.join(unknown)}")
    if options.quick:
        with TemporaryDirectory() as scratch:
            section = measure(QUICK, options.names or ("demo code",), Kept(Path(scratch) / "results.jsonl"), None)
    else:
        path = cache_folder() / "fidelity-results.jsonl"
        if options.fresh:
            path.unlink(missing_ok=True)
        wanted = ("nothing",) if options.tables else options.names
        section = measure(PLAN, tuple(SUBJECTS), Kept(path), DATA, wanted)
        command.keep(section)
        write_page()
        progress(f"kept in {path}")
    print(json.dumps(asdict(section), indent=1) if options.json else section.markdown())
    if not (options.quick or options.tables or options.names):
        command.main(merges.measure, [])
    return 0


if __name__ == "__main__":
    sys.exit(main())
