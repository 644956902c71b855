"""How fast, and with how much memory, beside the floors of the machine and other tools: `python -m benchmarks.speed`.

From the ground up: `candidates` are the things to time, `inputs` makes checkpoints and packs for them, `checks` compares every path with
the reference decoder before it gets a time, `peers` calls other tools, `groups` and `curves` measure, `targets` judges, `profile` shows
where the time of a row goes.
"""
