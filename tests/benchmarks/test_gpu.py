"""The benchmark of the GPU runs where there is none, and the paper model is what the page shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it measures, for minutes")
def test_without_cuda_it_says_so_and_checks_the_kernels() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "There is no CUDA device: nothing is measured." in done.stdout and "give the same bits" in done.stdout


def test_what_it_measures(tmp_path: Path) -> None:
    """The measuring code, with the torch operations on the CPU."""
    from benchmarks import gpu
    from deltapack.device.backends import choose

    device = torch.device("cpu")
    engine = choose("torch", device).engine
    assert engine is not None
    subject, seconds, nbytes = gpu.make_subject(tmp_path, gpu.SHAPES["tiny"], 2, device)
    pack, times = gpu.report("tiny", subject, (seconds, nbytes), gpu.rows_of(subject, engine, device, [1, 2]))
    assert len(pack) == len(gpu.PACK_HEADERS) and {len(row) for row in times} == {len(gpu.HEADERS)}
    out = gpu.section_of("a GPU", [pack], times).markdown()
    for name in ("activate 1, planned anew", "activate 1", "activate 2", "undo 2", "activate 2, by copy", "switch"):
        assert f"| tiny | {name} |" in out
    for name in ("all weights from pinned memory", "dense sum", "sparse sum (index_add_)"):
        assert f"| tiny | peer: {name} |" in out


def test_the_page_shows_the_paper_model() -> None:
    from benchmarks.gpu_model import sections

    assert sections() in (ROOT / "docs" / "performance.md").read_text("utf-8")
