"""Merge two fine-tunes of one base from their packs, into a folder and into one merged pack.

Usage: python examples/merge.py [BASE A.dpk B.dpk [OUT_FOLDER]]

Without arguments it uses what `deltapack demo` leaves in ./deltapack-demo.
"""

import argparse
import sys
from pathlib import Path

import deltapack


def main(base: Path, packs: list[Path], out: Path) -> None:
    """Merge with weights 0.6 and 0.4."""
    report = deltapack.merge(base, packs, out / "merged", weights=[0.6, 0.4], force=True)
    print(f"{report.out}: {report.tensors} tensors")

    # A merged pack is the packs' own terms with their weights: applying it gives the same bits as the folder above.
    merged = deltapack.merge(base, packs, out / "merged.dpk", weights=[0.6, 0.4], force=True)
    deltapack.apply(base, merged.out, out / "from-merged-pack", force=True)
    one, other = (out / name / "model.safetensors" for name in ("merged", "from-merged-pack"))
    print("same bits:", one.read_bytes() == other.read_bytes())


if __name__ == "__main__":
    demo = Path("deltapack-demo")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?", metavar="BASE")
    parser.add_argument("packs", type=Path, nargs="*", metavar="A.dpk B.dpk [OUT_FOLDER]")
    given = parser.parse_args()
    if given.base is None:
        given.base, given.packs = demo / "base", [demo / f"{name}-drop0.9.dpk" for name in ("code", "prose")]
    if len(given.packs) not in (2, 3):
        parser.error("a base needs two packs")
    try:
        main(given.base, given.packs[:2], given.packs[2] if len(given.packs) == 3 else Path())
    except deltapack.DeltapackError as error:
        sys.exit(f"Error: {error}")
