"""How small and how fast exact packs are: `python -m benchmarks.exact [pairs] [steps] [speed] [thresholds] [--quick] [--json]`.

Without a part, all. Pairs and steps of trainings that are not in the cache are fetched and trained first, which takes some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from benchmarks.command import main
from benchmarks.exact.folders import folder_table
from benchmarks.exact.inputs import real_cases, step_case, step_runs, trained_cases
from benchmarks.exact.packs import file_table
from benchmarks.exact.sizes import size_tables, step_tables
from benchmarks.exact.speed import speed_table
from benchmarks.exact.thresholds import VARIANTS, threshold_tables
from benchmarks.pairs import real_pairs
from benchmarks.results import Section
from benchmarks.timing import Rounds

__all__ = ["PARTS", "measure_pairs", "measure_speed", "measure_steps", "measure_thresholds"]

SHARES = (
    "Pack: the whole file, made by compress and applied, every bit compared. Payload: what tensors take in it. Both, and what tools make, "
    "as shares of the bytes of the fine-tune's elements. Alone: all tensors without the base.",
    "Entropy: bits of the codec's symbols given class and exponent of the base, with the counts of each chunk, after what its table "
    "predicts, and all raw bits; tables, classes and ends of streams for nothing. Entropy, model: of plain differences given the "
    "exponent, with the counts of the whole model. Over: percent of the payload above the one, over it: above the other.",
    "Bounds held: at most 5 % over the entropy, 10 % where less than 3 % changed; and smaller than what every tool made.",
)
TOOLS = (
    "Tools get all elements end to end in one file, those of the base in another; zstd has a window that holds both. deltatensors has no "
    "lossless form: it is asked to drop nothing. Gaps + values as PULSE: the smaller of gaps in bytes and in words. Seconds are CPU time "
    "of one core.",
)
CASES = (
    "A, B1, B2: real pairs (`benchmarks/assets.py`), as they are and rounded; f8_e4m3fn after scaling each tensor by a power of two. "
    "The other pairs, and the steps, were trained for this study (`benchmarks/exact/training.py`); no threshold was tuned on them.",
)


def measure_pairs(quick: bool = False) -> Section:
    """Return the tables of pairs and of whole checkpoints."""
    real, missing = real_cases(quick)
    tables = list(size_tables(real if quick else [*real, *trained_cases()]))
    if not quick:
        tables.append(file_table(real_pairs()[0]))
    files = "Whole checkpoints: shares of the weight files. Tensors of `.bin` files come back, the container does not."
    return Section("Exact pairs", "python -m benchmarks.exact pairs", tuple(tables), (*CASES, *SHARES, *TOOLS, files, *missing))


def measure_steps(quick: bool = False) -> Section:
    """Return the tables of steps of a training."""
    trained = "AdamW at two rates, weights cast to bf16 from the f32 master at each step; each step is stored against the one before."
    return Section("Exact steps", "python -m benchmarks.exact steps", step_tables(quick), (trained, *SHARES, *TOOLS))


def measure_speed(quick: bool = False) -> Section:
    """Return the table of speeds."""
    real, missing = real_cases(quick)
    cases = real if quick else [case for case in real if case.name == "A"]
    notes = "Medians of rounds in which all tools take their turn, beside a copy in memory. Full chunks: all tensors end to end."
    tables = (speed_table(cases, 1 if quick else 3), folder_table(0.02 if quick else 0.98, Rounds(once_seconds=0.0) if quick else Rounds()))
    folders = "Folders: made-up bf16 weights and differences, files in the page cache; deltapack syncs what it writes."
    return Section("Exact speed", "python -m benchmarks.exact speed", tables, (notes, folders, *CASES, *missing))


def measure_thresholds(quick: bool = False) -> Section:
    """Return the tables of thresholds."""
    real, missing = real_cases(quick)
    steps = [] if quick else [step_case(run, folder, step) for run, folder in step_runs() for step in (1, 3, 10, 100)]
    cases = real if quick else [*real, *trained_cases(), *steps]
    note = "More %: bytes of all chunks of a pair, against the encoder as it is."
    tables = threshold_tables(cases, VARIANTS[:1] if quick else VARIANTS)
    return Section("Exact thresholds", "python -m benchmarks.exact thresholds", tables, (note, *CASES, *missing))


PARTS: Mapping[str, Callable[[bool], Section]] = {
    "pairs": measure_pairs,
    "steps": measure_steps,
    "speed": measure_speed,
    "thresholds": measure_thresholds,
}


def run(words: list[str]) -> int:
    """Measure the parts that are named, or all."""
    options = [word for word in words if word.startswith("-")]
    named = [word for word in words if word not in options] or list(PARTS)
    unknown = [word for word in named if word not in PARTS]
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    return max(main(PARTS[name], options) for name in named)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
