"""Scripts that measure deltapack and write benchmarks/RESULTS.md; run one with `python -m benchmarks.sizes`."""
