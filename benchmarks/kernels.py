"""Compile the Triton kernels for GPUs that need not be there, and say what the compiler made of it.

Usage: python -m benchmarks.kernels [--json]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from deltapack.dtypes import BY_NAME
from deltapack.kernels.exact_numbers import numbers_of

PROCESSES = 4
"""Each compiles one variant after the other, and takes half a gigabyte."""
ARCHITECTURES = (80, 90)
ONE_TERM = dict(KINDS=1, VALUES=1, SCALES=1, DROPS=False, UNDO=False, LOG=False, COLLECT=False, SLICED=False, ALIGNED=True)
STRATIFIED = ONE_TERM | dict(KINDS=32, VALUES=32, SCALES=2)
FACTORS = ONE_TERM | dict(KINDS=16, VALUES=64, SCALES=0)
EVERYTHING = dict(KINDS=63, VALUES=127, SCALES=15, DROPS=True, UNDO=True, LOG=True, COLLECT=True, SLICED=True, ALIGNED=False)
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"seeded int4, {dtype}": ONE_TERM | {"dtype": dtype} for dtype in ("bf16", "f16", "f32", "f64", "f8_e4m3fn", "f8_e5m2")},
    "seeded int4, undo and log": ONE_TERM | {"UNDO": True, "LOG": True},
    "seeded int4, several terms": ONE_TERM | {"COLLECT": True, "LOG": True},
    "seeded int4, columns": ONE_TERM | {"SLICED": True},
    "gaps int4": ONE_TERM | {"KINDS": 2},
    "wide gaps int4": ONE_TERM | {"KINDS": 4},
    "bitmap int4": ONE_TERM | {"KINDS": 8},
    "all bf16": ONE_TERM | {"KINDS": 16, "VALUES": 8},
    "stratified ternary": STRATIFIED,
    "stratified ternary, rows": STRATIFIED | {"SCALES": 4, "DROPS": True},
    "factors": FACTORS,
    "what budgets give": STRATIFIED | {"KINDS": 48, "VALUES": 107, "SCALES": 7, "DROPS": True, "COLLECT": True, "UNDO": True, "LOG": True},
    "f32 base, bf16 result": ONE_TERM | {"source": "f32", "COLLECT": True},
    "everything, bf16": EVERYTHING,
    "everything, f64": EVERYTHING | {"dtype": "f64"},
}
EXACT: dict[str, dict[str, Any]] = {
    **{f"exact symbols, {dtype}": {"dtype": dtype, "LANES": 32} for dtype in ("bf16", "f16", "f32", "f64", "f8_e4m3fn", "f8_e5m2", "i32")},
    **{f"exact symbols, bf16, lanes: {lanes}": {"dtype": "bf16", "LANES": lanes} for lanes in (1, 4, 8)},
    **{f"exact bytes of planes, lanes: {lanes}": {"dtype": "u8", "LANES": lanes, "PLANE": True} for lanes in (1, 4, 8, 32)},
    "exact tables": {},
    **{f"exact planes, {dtype}": {"dtype": dtype} for dtype in ("bf16", "f32", "f64", "u8")},
}


@dataclass(frozen=True)
class Compiled:
    """What came out: registers a thread, bytes of shared memory a program, of stack a thread, and counts of instructions."""

    variant: str
    architecture: int
    registers: int
    shared: int
    stack: int
    fused: int
    flushing: int
    local: int
    wide_loads: int
    wide_stores: int
    barriers: int


@dataclass(frozen=True)
class Source:
    """A kernel and what it is compiled with: addresses, aligned to 16 bytes; numbers; constants; options."""

    kernel: Any
    addresses: dict[str, str]
    numbers: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]


def source_of(name: str) -> Source:
    """Return what a variant of `VARIANTS` or `EXACT` is compiled from."""
    from deltapack.device import triton_kernels
    from deltapack.device.triton_rounding import DTYPES

    if name in EXACT:
        return exact_source(EXACT[name])
    given = dict(VARIANTS[name])
    target = given.pop("dtype", "bf16")
    source = given.pop("source", target)
    blocks = {"BLOCK": triton_kernels.BLOCK, "WINDOW": triton_kernels.WINDOW}
    constants = {"SOURCE": DTYPES[source], "TARGET": DTYPES[target], **given, **blocks}
    pointers = {"tasks": "*i64", "terms": "*i64", "owners": "*i64", "scratch": "*i32", "states": "*i32", "violation": "*i64"}
    options = triton_kernels.options(
        kinds=given["KINDS"],
        values=given["VALUES"],
        scales=given["SCALES"],
        heavy="f64" in (source, target) or (given["COLLECT"] and source != target),
    )
    return Source(triton_kernels.switch_tiles, pointers, {"count": "i32", "most": "i32"}, constants, options)


def exact_source(given: dict[str, Any]) -> Source:
    """Return what a variant of `EXACT` is compiled from."""
    from deltapack.device import triton_exact
    from deltapack.device.exact_launch import JOIN_BLOCK, TABLE_BLOCK, constants_of

    if "dtype" not in given:
        return Source(triton_exact.expand_tables, {"rows": "*i64"}, {}, {"BLOCK": TABLE_BLOCK}, {})
    numbers = numbers_of(BY_NAME[given["dtype"]])
    if "LANES" not in given:
        constants = {"WIDTH": numbers.width, "SIGNED": numbers.signed, "BLOCK": JOIN_BLOCK}
        return Source(triton_exact.join_planes, {"rows": "*i64"}, {}, constants, {})
    constants = constants_of(numbers, given.get("PLANE", False), given["LANES"], warps=1)
    return Source(triton_exact.decode_symbols, {"rows": "*i64", "violation": "*i64"}, {"count": "i32"}, constants, {"num_warps": 1})


def compile_variant(name: str, architecture: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = source_of(name)
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(source.addresses))}
    signature = source.addresses | source.numbers | dict.fromkeys(source.constants, "constexpr")
    text = ASTSource(source.kernel, signature, source.constants, aligned)
    kernel = triton.compile(text, target=GPUTarget("cuda", architecture, 32), options=source.options)
    ptx = kernel.asm["ptx"]
    registers, stack = resources(kernel.asm["cubin"])
    return Compiled(
        name,
        architecture,
        registers,
        kernel.metadata.shared,
        stack,
        fused=len(re.findall(r"\bfma\.rn\.f(?:32|64)", ptx)),
        flushing=len(re.findall(r"\.ftz\b", ptx)),
        local=len(re.findall(r"\b(?:ld|st)\.local", ptx)),
        wide_loads=len(re.findall(r"\bld\.global[.\w:]*\.v4\.b32", ptx)),
        wide_stores=len(re.findall(r"\bst\.global[.\w:]*\.v4\.b32", ptx)),
        barriers=len(re.findall(r"\bbar(?:rier)?\.", ptx)),
    )


def resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of stack (spilled registers lie there) of a thread, as `cuobjdump` says."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def compile_all() -> list[Compiled]:
    names, architectures = zip(*product((*VARIANTS, *EXACT), ARCHITECTURES), strict=True)
    with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1)) as pool:
        return list(pool.map(compile_variant, names, architectures))


def main(arguments: list[str]) -> None:
    # The interpreter, if it is asked for, would take the place of the compiler.
    os.environ.pop("TRITON_INTERPRET", None)
    rows = compile_all()
    if "--json" in arguments:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print("| variant | GPU | registers | shared bytes | stack | fused | 16-byte loads, stores |\n|---|---|---|---|---|---|---|")
    for row in rows:
        wide = f"{row.wide_loads}, {row.wide_stores}"
        print(f"| {row.variant} | sm_{row.architecture} | {row.registers} | {row.shared} | {row.stack} | {row.fused} | {wide} |")


if __name__ == "__main__":
    main(sys.argv[1:])
