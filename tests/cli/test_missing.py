"""What a command says where a library that it needs is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Pair

CODE = """
import sys
sys.modules[sys.argv.pop(1)] = None
from deltapack.cli.main import main
main()
"""
INSTALL = "Install it with pip."
CASES = [
    ("huggingface_hub", "export PACK --to transformers --base org/name -o out", "pip install 'deltapack[hub]'"),
    ("torch", "apply BASE PACK -o out --device cuda", f"this needs torch, which cannot be imported. {INSTALL}"),
    ("torch", "demo", f"this needs torch, which cannot be imported. {INSTALL}"),
    ("torch", "compress old.pt old.pt -o out.dpk", "pip install torch"),
    ("triton", "apply BASE PACK -o out --device cpu --backend triton", "pip install triton"),
]


def run_without(library: str, words: str, pair: Pair, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process that cannot import a library."""
    named = {"PACK": str(pair.pack), "BASE": str(pair.base)}
    command = [sys.executable, "-c", CODE, library, *(named.get(word, word) for word in words.split())]
    variables = {**os.environ, "TRITON_INTERPRET": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("library", "words", "sentence"), CASES)
def test_a_missing_library_is_told_in_a_sentence(library: str, words: str, sentence: str, pair: Pair, tmp_path: Path) -> None:
    if library == "triton":
        pytest.importorskip("torch")
    # The beginning of a file of torch before 1.6, which only torch reads.
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    done = run_without(library, words, pair, tmp_path)
    said = " ".join(done.stderr.split())
    assert said.startswith("Error: ") and sentence in said and library in said, done.stderr
    assert "Traceback" not in said and done.returncode in (1, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["old.pt"]


def test_without_numba_a_command_works(pair: Pair, tmp_path: Path) -> None:
    done = run_without("numba", "apply BASE PACK -o out", pair, tmp_path)
    assert done.returncode == 0 and "out" in done.stdout, done.stderr


def test_a_missing_part_of_the_package_is_no_matter_for_pip(pair: Pair, tmp_path: Path) -> None:
    done = run_without("deltapack.restoring", "apply BASE PACK -o out", pair, tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and INSTALL not in done.stderr
