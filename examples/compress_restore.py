"""Pack a fine-tune, restore it, and look at what the pack costs.

Usage: python examples/compress_restore.py [BASE FINETUNED [OUT_FOLDER]]

Without arguments it uses the models that `deltapack demo` leaves in ./deltapack-demo.
"""

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
    paths = [Path(argument) for argument in sys.argv[1:]] or [demo / "base", demo / "code-finetuned"]
    main(paths[0], paths[1], paths[2] if len(paths) > 2 else Path("."))
