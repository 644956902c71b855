"""How small may a pack be? Foresee it, make packs of some sizes, measure them on a text, and take the smallest that keeps enough.

Usage: python examples/choose_size.py BASE FINETUNED TEXT [OUT_FOLDER] [--keep R] [--bits B ...]

TEXT is a plain text of what the fine-tune learned, which no model was trained on. It needs transformers; other models are measured by
`deltapack.evaluate(..., score=...)`. The table goes to OUT_FOLDER/packs.html, too, and the analysis to OUT_FOLDER/difference.html.
"""

import argparse
import sys
from pathlib import Path

import deltapack


def main(base: Path, finetuned: Path, text: Path, out: Path, keep: float, sizes: list[float]) -> None:
    """Analyze, compress and evaluate."""
    out.mkdir(exist_ok=True)
    analysis = deltapack.analyze(base, finetuned, html=out / "difference.html", force=True)
    print(analysis.recommendation)
    packs = []
    for bits in sizes:
        packs.append(out / f"{bits:g}-bits.dpk")
        deltapack.compress(base, finetuned, packs[-1], recipe=deltapack.Recipe(budget=deltapack.Budget(bits=bits)), force=True)
    report = deltapack.evaluate(base, finetuned, packs, text=text, html=out / "packs.html", force=True)
    for row in report.rows:
        kept = "" if row.retention is None else f", keeps {100 * row.retention:.1f} %"
        print(f"{row.name}: {row.bytes:,} bytes, KL {row.kl:.4f}, loss {row.value:.4f}{kept}")
    for warning in report.warnings:
        print("warning:", warning)
    enough = [row for row in report.rows[2:] if row.retention is not None and row.retention >= keep]
    print(f"the smallest that keeps {100 * keep:g} %:", min(enough, key=lambda row: row.bytes).name if enough else "none of these")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "finetuned", "text"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument("out", type=Path, nargs="?", default=Path(), metavar="OUT_FOLDER")
    parser.add_argument("--keep", type=float, default=0.95, metavar="R")
    parser.add_argument("--bits", type=float, nargs="+", default=[1, 0.25, 0.1, 0.05], metavar="B")
    given = parser.parse_args()
    try:
        main(given.base, given.finetuned, given.text, given.out, given.keep, given.bits)
    except deltapack.DeltapackError as error:
        sys.exit(f"Error: {error}")
