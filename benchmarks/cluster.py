"""Calls on a Ray cluster of one and two nodes of a core each, on this machine, beside as many threads: what spreading costs."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import deltapack
from benchmarks.checkpoints import Family, build, llama_of_size
from benchmarks.command import main
from benchmarks.results import Cell, Section, Table, progress
from deltapack.cluster.ray_engine import RayEngine

HEADERS = ("what", "cores", "threads s", "cluster s", "cluster GB/s", "x threads")
ROUNDS = 3
TASK_ELEMENTS = 16 << 20
"""Less than usual: the model is small, and each core should have several tasks."""


def measure(quick: bool) -> Section:
    size, rounds = (0.05, 1) if quick else (0.49, ROUNDS)
    family = build(llama_of_size(size), 2)
    return Section(
        "Cluster",
        "python -m benchmarks.cluster",
        (Table("commands", f"Calls on a Ray cluster, {family.nbytes / 1e9:.2f} GB", HEADERS, tuple(_rows(family, rounds))),),
        (
            f"Median of {rounds} calls after one that starts processes; bf16, files in the page cache; {TASK_ELEMENTS:,} elements a task.",
            "A node is a raylet with one core on this machine, so nodes share memory and disk: this shows what spreading itself costs.",
            "compress writes the pack, and plans budgets, on the machine that was asked; tensors are encoded by the nodes.",
        ),
    )


@contextmanager
def _nodes(count: int) -> Iterator[RayEngine]:
    """A cluster of nodes with one core each."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 500 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(count - 1):
        cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with RayEngine(task_elements=TASK_ELEMENTS) as engine:
            yield engine
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def _calls(family: Family, folder: Path) -> dict[str, Callable[..., object]]:
    base, packs = family.base, [folder / "0.dpk", folder / "1.dpk"]
    for tuned, pack in zip(family.tuned, packs, strict=True):
        deltapack.compress(base, tuned, pack, recipe=deltapack.Recipe(drop_rate=0.9))
    tuned, out = family.tuned[0], folder / "out"
    dare, exact = deltapack.Recipe(drop_rate=0.9), deltapack.Recipe(exact=True)
    return {
        "compress, 0.9": lambda **how: deltapack.compress(base, tuned, folder / "new.dpk", recipe=dare, force=True, **how),
        "compress, exact": lambda **how: deltapack.compress(base, tuned, folder / "new.dpk", recipe=exact, force=True, **how),
        "compress, balanced": lambda **how: deltapack.compress(base, tuned, folder / "new.dpk", force=True, **how),
        "apply to folder": lambda **how: deltapack.apply(base, packs[0], out, force=True, **how),
        "merge of 2 to folder, ties": lambda **how: deltapack.merge(base, packs, out, method="ties", force=True, **how),
    }


def _rows(family: Family, rounds: int) -> Iterator[tuple[Cell, ...]]:
    with TemporaryDirectory() as name:
        calls = _calls(family, Path(name))
        for cores in (1, 2):
            with _nodes(cores) as engine:
                for what, call in calls.items():
                    progress(f"{what}, {cores} cores")
                    call(engine=engine)
                    threads, cluster = list[float](), list[float]()
                    for _ in range(rounds):
                        threads.append(_seconds(call, workers=cores))
                        cluster.append(_seconds(call, workers=1, engine=engine))
                    ours = median(cluster)
                    yield what, cores, median(threads), ours, family.nbytes / ours / 1e9, ours / median(threads)


def _seconds(call: Callable[..., object], **how: Any) -> float:
    start = time.perf_counter()
    call(**how)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main(measure))
