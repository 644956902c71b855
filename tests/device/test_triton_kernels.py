"""The Triton kernels compile for GPUs that need not be there, to code without what would change its bits or slow it down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """All variants, compiled in a process of its own: in this one the kernels may be interpreted.

    That takes a minute, so the next run finds them in pytest's cache; Triton's keys are hashes of all that a kernel is made of.
    """
    assert request.config.cache is not None
    command = [sys.executable, "-m", "benchmarks.kernels", "--json"]
    environment = {"TRITON_CACHE_DIR": str(request.config.cache.mkdir("triton")), "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_every_variant_compiles(compiled: list[dict[str, Any]]) -> None:
    from benchmarks.kernels import ARCHITECTURES, EXACT, VARIANTS

    wanted = {(name, gpu) for name in (*VARIANTS, *EXACT) for gpu in ARCHITECTURES}
    assert {(row["variant"], row["architecture"]) for row in compiled} == wanted
    for row in compiled:
        print(row)


def test_nothing_is_fused_or_flushed(compiled: list[dict[str, Any]]) -> None:
    assert [row for row in compiled if row["fused"] or row["flushing"]] == []


def test_nothing_is_spilled(compiled: list[dict[str, Any]]) -> None:
    assert [row for row in compiled if row["local"] or row["stack"]] == []


def test_sums_of_several_terms_move_16_bytes_at_once(compiled: list[dict[str, Any]]) -> None:
    rows = [row for row in compiled if row["variant"] == "seeded int4, several terms"]
    assert rows and all(row["wide_loads"] >= 3 and row["wide_stores"] >= 3 for row in rows)


def test_lanes_of_exact_tiles_meet_in_registers(compiled: list[dict[str, Any]]) -> None:
    """A tile's lanes lie in one warp: nothing goes through shared memory, no lane waits at a barrier, and 32 warps find room."""
    rows = [row for row in compiled if row["variant"].startswith(("exact symbols", "exact bytes"))]
    assert rows and all((row["shared"], row["barriers"]) == (0, 0) and row["registers"] <= 64 for row in rows)


def test_fused_products_would_be_found(tmp_path: Path) -> None:
    """The search of the PTX finds what it looks for, once fusion is allowed."""
    code = """
import re, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import kernel
for allowed in (True, False):
    source = ASTSource(kernel.add, {"a": "*fp32"}, {})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": allowed}).asm["ptx"]
    print(len(re.findall(r"\\bfma\\.rn\\.f(?:32|64)", ptx)) > 0)
"""
    kernel = """
import triton, triton.language as tl
@triton.jit
def add(a):
    tl.store(a, tl.load(a) * tl.load(a + 1) + tl.load(a + 2))
"""
    (tmp_path / "kernel.py").write_text(kernel)
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True", "False"], done.stderr
