"""What peers are asked to do, as far as it runs without their environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import peers
from benchmarks.speed.inputs import Bench


def run_task(*words: str | Path) -> str:
    """Run a task as the benchmark does, in this environment."""
    command = [sys.executable, *peers.task_command(Path("unused"), *words)[1:]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_torch_keeps_a_tenth_and_adds_it_back(bench: Bench, tmp_path: Path) -> None:
    base, tuned = bench.base, bench.family.tuned[0]
    run_task("torch_save", base, tuned, tmp_path / "delta")
    run_task("torch_apply", base, tmp_path / "delta", tmp_path / "out")
    assert 0 < float(run_task("torch_memory", base, tmp_path / "delta").splitlines()[-1]) < 60
    delta, name = load_file(tmp_path / "delta"), "model.embed_tokens.weight"
    before, after, wanted = (
        {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}[name].flatten()
        for folder in (base, tmp_path / "out", tuned)
    )
    positions = delta[f"{name}.positions"].long()
    assert 0.09 < len(positions) / before.numel() < 0.11
    expected = before.clone()
    expected[positions] += ((wanted.float() - before.float())[positions] * 10).to(torch.bfloat16)
    assert torch.equal(after.view(torch.int16), expected.view(torch.int16)) and not torch.equal(after, before)
    assert (tmp_path / "out" / "config.json").exists()


def test_a_missing_environment_is_said(tmp_path: Path) -> None:
    with pytest.raises(peers.PeersUnavailableError, match=r"python -m benchmarks\.peers$"):
        peers.environment(tmp_path, make=False)
    assert not list(tmp_path.iterdir())
