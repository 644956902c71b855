"""Which backend serves, and that nobody can tell from the bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.backends import load

from deltapack.errors import BackendError
from deltapack.kernels import LITTLE, active, choice, reference, working_on
from deltapack.kernels.choice import LOOPS


@dataclass(frozen=True)
class Tensor:
    numel: int


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has computed nothing yet."""
    monkeypatch.delenv(LOOPS, raising=False)
    monkeypatch.setattr(choice, "_past", [0])
    choice._loaded.cache_clear()
    yield
    choice._loaded.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_numba_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("deltapack.kernels.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("deltapack.kernels.cpu", raising=False)
    with pytest.warns(RuntimeWarning, match="numba cannot be imported"):
        assert active() is reference


@pytest.mark.usefixtures("fresh")
def test_with_numba_the_compiled_loops_serve() -> None:
    assert active() is load("cpu")


@pytest.mark.usefixtures("fresh")
def test_the_reference_serves_while_there_is_little_to_do() -> None:
    with working_on([Tensor(LITTLE // 2), Tensor(LITTLE // 2 - 1)]):
        assert active() is reference
        with working_on([Tensor(1)]):
            assert active() is reference
        assert active() is reference
    assert active() is load("cpu")  # nobody says how much there is to do


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("times", [(LITTLE + 1, 1), (LITTLE // 2 + 1, 2)])
def test_the_compiled_loops_serve_where_there_is_much_to_do(times: tuple[int, int]) -> None:
    with working_on([Tensor(times[0])], times[1]):
        assert active() is load("cpu")


@pytest.mark.usefixtures("fresh")
def test_many_little_things_are_much() -> None:
    for _ in range(4):
        with working_on([Tensor(LITTLE // 4)]):
            assert active() is reference
    with pytest.raises(KeyError), working_on([Tensor(1)]):
        assert active() is load("cpu")
        raise KeyError
    assert not choice._works


@pytest.mark.usefixtures("fresh")
def test_compiled_loops_that_are_loaded_serve_from_then_on() -> None:
    assert active() is load("cpu")
    with working_on([Tensor(1)]):
        assert active() is load("cpu")


@pytest.mark.usefixtures("fresh")
def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOOPS, "numpy")
    assert active() is reference
    monkeypatch.setenv(LOOPS, "numba")
    with working_on([Tensor(1)]):
        assert active() is load("cpu")
    monkeypatch.setenv(LOOPS, "fast")
    with pytest.raises(BackendError, match=r"DELTAPACK_LOOPS .* expected auto, numba, numpy, found fast"):
        active()


def command(folder: Path, loops: str, words: str) -> set[str]:
    """Run a command in a new process and return the libraries that it has imported; `HERE` is the folder."""
    code = """
import sys
from deltapack.cli.main import cli
try:
    cli.main(sys.argv[1:], standalone_mode=False)
finally:
    import json
    print("\\nloaded", json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    variables = {**os.environ, LOOPS: loops}
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.split("\nloaded ")[1]))


COMMANDS = {
    "a.dpk": "compress base a -o a.dpk",
    "b.dpk": "compress base b -o b.dpk --drop-rate 0.5 --values int4",
    "exact.dpk": "compress base a -o exact.dpk --exact",
    "fits.dpk": "compress base a -o fits.dpk --target-bits 1",
    "della.dpk": "compress base b -o della.dpk --sparsify della --drop-rate 0.5",
    "applied": "apply base b.dpk -o applied",
    "restored": "apply base exact.dpk -o restored",
    "merged": "merge base a.dpk b.dpk -o merged --method ties --density 0.5",
    "merged.dpk": "merge base a.dpk b.dpk -o merged.dpk",
    "verified": "verify b.dpk --base base",
    "inspected": "inspect b.dpk",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[set[str], dict[str, bytes]]]]:
    """What each command has imported and written, with the loops that it takes by itself and with numba's."""
    found: dict[str, dict[str, tuple[set[str], dict[str, bytes]]]] = {}
    for loops in ("auto", "numba"):
        folder = tmp_path_factory.mktemp(loops)
        rng = np.random.default_rng(5)
        shapes = {"model.layers.0.mlp.up_proj.weight": (128, 300), "model.embed_tokens.weight": (500, 64), "model.norm.weight": (64,)}
        base = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
        for name in ("base", "a", "b"):
            (folder / name).mkdir()
            change = 0 if name == "base" else 0.002
            weights = {key: value + np.float32(change) * rng.normal(0, 1, value.shape).astype(np.float32) for key, value in base.items()}
            save_file(weights, folder / name / "model.safetensors")
            (folder / name / "config.json").write_text("{}")
        found[loops] = {}
        for out, words in COMMANDS.items():
            loaded = command(folder, loops, words)
            files = {
                str(path.relative_to(folder)): path.read_bytes() for path in [folder / out, *(folder / out).rglob("*")] if path.is_file()
            }
            found[loops][out] = loaded, files
    return found


@pytest.mark.parametrize("out", COMMANDS)
def test_a_little_model_needs_no_numba_and_its_bits_are_the_same(
    out: str, outputs: dict[str, dict[str, tuple[set[str], dict[str, bytes]]]]
) -> None:
    loaded, files = outputs["auto"][out]
    assert not loaded & {"numba", "llvmlite", "scipy", "torch", "transformers", "matplotlib"}
    with_numba, same = outputs["numba"][out]
    assert ("numba" in with_numba) == (out != "inspected")
    assert files == same and bool(files) == (out not in ("verified", "inspected"))
