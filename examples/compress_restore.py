"""Pack a fine-tune, restore it, and look at what the pack costs.

Usage: python examples/compress_restore.py [BASE FINETUNED [OUT_FOLDER]]

Without arguments it uses the models that `deltapack demo` leaves in ./deltapack-demo.
"""

import argparse
import sys
from pathlib import Path

import deltapack


def main(base: Path, finetuned: Path, out: Path) -> None:
    """Compress `finetuned` at two drop rates and restore the smaller pack."""
    for drop_rate in (0.9, 0.99):
        recipe = deltapack.Recipe(drop_rate=drop_rate)
        pack = out / f"drop-{drop_rate}.dpk"
        report = deltapack.compress(base, finetuned, pack, recipe=recipe, force=True)
        print(f"{pack}: {report.pack_bytes:,} bytes, {report.ratio:.1f} times smaller, {report.delta_bits_per_weight:.3f} bits per weight")
        for warning in report.warnings:
            print("  warning:", warning)

    # Every base tensor and every restored tensor is checked against the digests in the pack.
    restored = deltapack.apply(base, pack, out / "restored", force=True)
    print(f"{restored.out}: {restored.tensors} tensors, verified: {restored.verified}")


if __name__ == "__main__":
    demo = Path("deltapack-demo")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?", default=demo / "base", metavar="BASE")
    parser.add_argument("finetuned", type=Path, nargs="?", metavar="FINETUNED")
    parser.add_argument("out", type=Path, nargs="?", default=Path(), metavar="OUT_FOLDER")
    given = parser.parse_args()
    if given.finetuned is None and given.base != demo / "base":
        parser.error("a base needs a fine-tune")
    try:
        main(given.base, given.finetuned or demo / "code-finetuned", given.out)
    except deltapack.DeltapackError as error:
        sys.exit(f"Error: {error}")
