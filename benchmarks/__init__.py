"""Scripts that measure deltapack and write benchmarks/RESULTS.md and benchmarks/results/; run one with `python -m benchmarks.sizes`."""
