"""A fixed budget of changed inputs through every target of `fuzz/`; `DELTAPACK_EXAMPLES=10` tries 25 times as many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from support import interpreting  # noqa: F401  so that Triton's kernels are interpreted, where there is no GPU
from support.laws import SHARE

from fuzz.bundles import decode
from fuzz.engine import Kept, run
from fuzz.environment import CACHE
from fuzz.running import Runner
from fuzz.spec import ROOT
from fuzz.targets import TARGETS

RUNS, SEEDS = 24, 12
SLOW = {"device": (4, 3), "pack": (16, 8), "side-files": (8, 1), "compress-recipe": (8, 3), "tokenizers": (8, 2)}
"""Inputs and seeds where an input takes more than a few hundredths of a second."""

FOUND = Path(__file__).parent / "inputs"
INPUTS = sorted(path.relative_to(FOUND).as_posix() for path in FOUND.rglob("*") if path.is_file())
"""What the fuzzer found, each a kind of its own; `python -m fuzz TARGET --replay FILE` runs one."""


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_with_a_fixed_budget(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    runs, most = SLOW.get(name, (RUNS, SEEDS))
    (tmp_path / "seeds").mkdir()
    seeds = list(target.seeds(tmp_path / "seeds"))
    assert seeds
    seeds = Random(name).sample(seeds, min(most, len(seeds)))
    with Runner(target) as runner:
        runs = max(runs, round(runs * SHARE))
        campaign = run(target, seeds, runner, runs=runs, seconds=0, seed=0, kept=Kept(None, target), found=tmp_path / "found")
    assert not campaign.faults, [path.with_suffix(".txt").read_text() for path in campaign.faults.values()]
    assert campaign.inputs == len(seeds) + runs
    assert campaign.depth >= campaign.inputs // 20, campaign.labels  # or else it tests nothing but the first check


@pytest.mark.parametrize("name", INPUTS)
def test_what_was_found_is_mended(name: str) -> None:
    target = TARGETS[name.partition("/")[0]]
    bundle = decode((FOUND / name).read_bytes())
    assert bundle is not None
    with Runner(target) as runner:
        result = runner.run(bundle)
    assert not result.fault, result.detail
    assert result.labels


@pytest.mark.slow
def test_the_fuzzer_lets_loops_check_their_indices() -> None:
    script = """
from fuzz.environment import prepare
prepare()
import numpy as np
from deltapack.kernels.cpu.bits import compiled, load_u64

def beside(array, place):
    return array[place]

def word_beside(array, place):
    return load_u64(array, place)

for loop, place in ((beside, 3), (word_beside, np.uint64(17))):
    try:
        compiled(loop)(np.zeros(3), place)
    except IndexError:
        print("refused")
print(compiled(word_beside)(np.ones(3, np.uint8).repeat(8), np.uint64(16)) == 0x0101010101010101)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\nrefused\nTrue\n"


@pytest.mark.slow
def test_compiled_loops_keep_to_their_arrays() -> None:
    """As the fuzzer runs them: every index of every loop is checked. They are compiled anew for that, once a machine."""
    command = [sys.executable, "-m", "fuzz", "codec-*", "--runs", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(" 0 findings") == sum(name.startswith("codec-") for name in TARGETS)
    assert any((CACHE / "loops").iterdir())
