"""How fast, and with how much memory, beside the floors of the machine and other tools: `python -m benchmarks.speed`.

`inputs` makes checkpoints and packs, `verbs` the things to time, `floors` what the machine needs at least, `checks` compares every
path with the reference decoder before it gets a time. `grid`, `reach`, `peers`, `curves` and `startup` measure, `targets` judges.
"""
