"""Strace sees what the system is asked for: no call of our code goes around the layer, and an interrupted call is made again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.builders import ROOT
from support.fault_runs import Bench
from support.verbs import files_of

SYSTEM = {
    **{"open": ("open", "create"), "read": ("read",), "pread64": ("pread",), "preadv": ("preadv",), "write": ("write",)},
    **{"pwrite64": ("pwrite",), "fsync": ("fsync",), "ftruncate": ("ftruncate",), "copy_file_range": ("copy_file_range",)},
    **{"rename": ("rename", "replace"), "link": ("link",), "unlink": ("unlink", "remove", "rmdir"), "mkdir": ("mkdir",)},
    "renameat2": ("renameat2",),
}
"""Calls of the system, and what they are to the layer."""
ALIKE = {
    **{"openat": "open", "renameat": "rename", "linkat": "link", "unlinkat": "unlink", "rmdir": "unlink"},
    **{"mkdirat": "mkdir", "preadv2": "preadv"},
}
COUNTING = """
import json, os, sys
from support.nursery import traced
asked = json.loads(sys.argv[1])
code, layer = traced(asked, [], [""])
layer.root = "/nowhere"
print(json.dumps([code, layer.calls]))
sys.stdout.flush()
os._exit(code)
"""


def strace(*options: str) -> list[str]:
    """Return the begin of a command line that traces what follows it; tests are skipped where that cannot be."""
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed, or may not trace")
    return [found, "-f", "-qq", *options]


def in_strace(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT / 'tests'}:{ROOT}"
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "DELTAPACK_LOOPS": "numpy", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*command, sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("name", "old"), [("apply", True), ("compress in parts", False), ("export transformers", False)])
def test_no_call_goes_around(name: str, old: bool, runs: Bench, tmp_path: Path) -> None:
    case, trace = runs.case(name, old), tmp_path / "trace"
    command = strace("-y", "-s", "0", "-o", str(trace), "-e", f"trace={','.join([*SYSTEM, *ALIKE])}")
    runs.clear(case)
    asked = {
        "arguments": case.verb.arguments(runs.inputs, runs.out(case), force=old),
        "root": str(runs.root),
        "fault": None,
        "record": None,
    }
    done = in_strace(command, "-c", COUNTING, json.dumps(asked))
    assert done.returncode == 0, done.stderr
    code, calls = json.loads(done.stdout)
    assert code == 0 and runs.content(case) == case.complete
    seen = counted(trace.read_text(errors="replace"), str(runs.root))
    ours = Counter(calls)
    told = Counter({system: sum(ours[call] for call in names) for system, names in SYSTEM.items()})
    assert +told == seen


def counted(trace: str, root: str) -> Counter[str]:
    """Count calls below a folder, but those by which a folder is listed, which the layer counts as listing it."""
    found: Counter[str] = Counter()
    for line in trace.splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\((.*)", line)
        if match and root in match[2] and "O_DIRECTORY" not in match[2]:
            found[ALIKE.get(match[1], match[1])] += 1
    return found


@pytest.mark.parametrize("name", ["apply", "compress", "split"])
def test_interrupted_calls_are_made_again(name: str, runs: Bench) -> None:
    """Every second call by which outputs are written, or inputs are read, returns EINTR: Python makes each again (PEP 475)."""
    case = runs.case(name, False)
    paths = [word for path in files_of(runs.inputs) for word in ("-P", str(path))]
    for calls, where in (("preadv,preadv2,pwrite64,fsync,ftruncate", []), ("openat,read,pread64,preadv,preadv2", paths)):
        command = strace("-o", str(runs.root / "trace"), "-e", f"trace={calls}", "-e", f"inject={calls}:error=EINTR:when=1+2", *where)
        runs.clear(case)
        done = in_strace(command, "-m", "deltapack", *case.verb.arguments(runs.inputs, runs.out(case)))
        assert done.returncode == 0, done.stderr
        assert runs.content(case) == case.complete
        assert "INJECTED" in (runs.root / "trace").read_text(errors="replace")
