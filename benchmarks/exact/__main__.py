"""How small and how fast exact packs are: `python -m benchmarks.exact [--quick] [--json]`.

Pairs and steps of trainings that are not in the cache are fetched and trained first, which takes some minutes.
"""

from __future__ import annotations

import sys

from benchmarks.command import main
from benchmarks.exact.inputs import real_cases, step_case, step_runs, trained_cases
from benchmarks.exact.packs import file_table
from benchmarks.exact.sizes import size_tables, step_tables
from benchmarks.exact.speed import speed_table
from benchmarks.exact.thresholds import VARIANTS, threshold_tables
from benchmarks.pairs import real_pairs
from benchmarks.results import Section

NOTES = (
    "Share: of the bytes of the fine-tune's elements; x payload: how many times the bytes of deltapack's payload. Payload: the chunks of "
    "all tensors, decoded and compared. Alone: without the base.",
    "A, B1, B2: real pairs (`benchmarks/assets.py`), as they are and rounded; f8_e4m3fn after scaling each tensor by a power of two. "
    "The other pairs, and the steps, were trained for this study (`benchmarks/exact/training.py`), and no threshold was tuned on them.",
    "Steps: AdamW at two rates, weights cast to bf16 from the f32 master at each step; each is stored against the one before.",
    "Entropy: bits of the codec's symbols given class and exponent of the base, with the counts of each chunk, after what its table "
    "predicts, and all raw bits; tables, classes and ends of streams for nothing. Entropy, model: of plain differences given the "
    "exponent, with the counts of the whole model. Over: percent above.",
    "Tools get all elements end to end in one file, those of the base in another; zstd with a window that holds both. deltatensors is "
    "asked to drop nothing; it has no lossless form. Gaps + values as in PULSE: the smaller of gaps in bytes and in words.",
    "Seconds are CPU time of one core. Speed: medians, all tools in turns, beside a copy of the fine-tune in memory. Full chunks: all "
    "tensors end to end.",
    "Thresholds: all pairs and four steps of each training; more % is against the encoder as it is.",
)


def measure(quick: bool = False) -> Section:
    """Return the tables."""
    real, missing = real_cases(quick)
    cases = real if quick else [*real, *trained_cases()]
    steps = [] if quick else [step_case(run, folder, step) for run, folder in step_runs() for step in (2, 10, 50, 100)]
    tables = list(size_tables(cases))
    if not quick:
        tables += step_tables()
        tables.append(file_table(real_pairs()[0]))
    quickly = {"A", "B1", "adamw, decay 0.1"}
    tables.append(speed_table([case for case in cases if case.name in quickly], 1 if quick else 5))
    tables += threshold_tables([*cases, *steps], VARIANTS[:1] if quick else VARIANTS)
    return Section("Exact packs", "python -m benchmarks.exact", tuple(tables), (*NOTES, *missing))


if __name__ == "__main__":
    sys.exit(main(measure))
