from __future__ import annotations

import torch

from deltapack.demo.model import ModelSize, initial_parameters
from deltapack.demo.muon import Muon
from deltapack.demo.training import Schedule, bits_per_byte, fine_tune, train

SIZE = ModelSize(layers=1, width=32, heads=2, inner=64, context=32)
TEXT = b"the quick brown fox jumps over the lazy dog; " * 100
SCHEDULE = Schedule(steps=20, rate=0.02, matrix_rate=0.03)


def test_training_learns_and_leaves_the_start_alone() -> None:
    start = initial_parameters(SIZE, 0)
    copy = {name: tensor.clone() for name, tensor in start.items()}
    trained = train(start, SIZE, [TEXT], SCHEDULE, seed=1)
    assert all(torch.equal(start[name], copy[name]) for name in start)
    # The output layer starts at zero: every byte is as likely.
    assert round(bits_per_byte(start, SIZE, TEXT, 8), 3) == 8.0
    assert bits_per_byte(trained, SIZE, TEXT, 8) < 4.0


def test_fine_tuning_keeps_the_norms() -> None:
    base = train(initial_parameters(SIZE, 0), SIZE, [TEXT], SCHEDULE, seed=1)
    tuned = fine_tune(base, SIZE, TEXT[::-1], Schedule(steps=3, rate=1e-3), seed=2)
    unchanged = {name for name in base if torch.equal(base[name], tuned[name])}
    assert unchanged == {name for name in base if "norm" in name}


def test_progress_counts_every_step() -> None:
    seen: list[tuple[int, int]] = []
    schedule = Schedule(steps=3, rate=0.01, matrix_rate=0.01)
    train(initial_parameters(SIZE, 0), SIZE, [TEXT, TEXT], schedule, seed=1, progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_muon_moves_every_direction_alike() -> None:
    matrix = torch.zeros(24, 8, requires_grad=True)
    matrix.grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 8)
    Muon([matrix]).step(1.0)
    singular = torch.linalg.svdvals(matrix.detach())
    assert float(singular.max() / singular.min()) < 4.0  # 100 before
    assert matrix.grad is None
