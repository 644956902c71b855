"""Look inside a pack: entries, sparse matrices, what was kept.

Usage: python examples/open_pack.py PACK
"""

import argparse
import sys

import numpy as np

import deltapack


def main(path: str) -> None:
    """Print the five largest differences of a pack."""
    with deltapack.open_pack(path) as pack:
        print(pack, "made by", pack.index.created_by, "with", dict(pack.index.recipe))
        entries = [entry for entry in pack.values() if entry.kind == "delta" and entry.nnz]
        for entry in sorted(entries, key=lambda entry: -entry.nnz)[:5]:
            delta = entry.to_scipy()  # CSR, rescaled as `apply` adds it
            density = entry.nnz / max(1, entry.entry.numel)
            norm = np.sqrt(np.square(delta.data, dtype=np.float64).sum())
            print(f"{entry.name}: {list(entry.shape)} {entry.dtype}, density {density:.3f}, {entry.stored_bytes:,} bytes, norm {norm:.3g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", metavar="PACK")
    try:
        main(parser.parse_args().pack)
    except deltapack.DeltapackError as error:
        sys.exit(f"Error: {error}")
