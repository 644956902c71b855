"""Each invalid vector has one fault, and each check of the reference decoder is the only one that refuses some vector.

A file with two faults proves nothing about the check that it is named after: without that check it is refused all the same.
"""

from __future__ import annotations

import ast
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_vectors import INVALID, ROOT, VECTORS, companion, reference, tensors

SOURCE = ROOT / "spec" / "reference_decoder.py"
Fault = tuple[str, int]  # rule, line of the check in the reference decoder

# Files that cannot be broken in one way only.
TWICE = {
    "v1-bad-R1-unfinished.dpk": "zeros are no magic, and no hash",
}


def all_faults(name: str) -> list[Fault]:
    """Every check of the reference decoder that a vector fails, as far as it can be read after a failed check."""
    faults: list[Fault] = []

    def need(condition: object, rule: str, message: str) -> None:
        if not condition:
            fault = rule, sys._getframe(1).f_lineno
            if fault not in faults:
                faults.append(fault)

    namespace = types.ModuleType("collecting_decoder")
    sys.modules[namespace.__name__] = namespace
    exec(compile(SOURCE.read_text("utf-8"), str(SOURCE), "exec"), namespace.__dict__)
    decoder: Any = namespace
    decoder.need = need
    base = INVALID[name]["base"]
    try:
        decoder.read_pack(VECTORS / name)
        decoder.side_files(VECTORS / name)
        if base:
            decoder.restore(VECTORS / name, tensors(companion(base)["base"]))
    except decoder.Invalid as error:
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        faults.append((error.rule, trace.tb_lineno))
    except Exception:
        assert faults, name  # what a failed check should have kept out
    return faults
