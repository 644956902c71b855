"""What `deltapack doctor` sees, and that it sees what is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.backends import BACKENDS, load
from support.builders import decode_by_spec, read_model

import deltapack
from deltapack import kernels
from deltapack.cli.main import cli
from deltapack.doctor import checkup, known
from deltapack.doctor.checkup import examine
from deltapack.doctor.known import KNOWN, Known, digest_of, write_pair
from deltapack.errors import CheckpointError


def test_all_is_well_here() -> None:
    found = examine()
    assert found.ok and all(check.found for check in found.checks)
    assert found.deltapack == deltapack.__version__ and found.versions["numpy"] == np.__version__
    assert sum("known bits" in check.name for check in found.checks) == len(KNOWN)


def test_what_extras_bring_is_looked_for() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    table = "\n".join(line.partition("# ")[0] for line in table.splitlines())
    extras = dict(re.findall(r"^([\w-]+) = (\[.*?\])$", table, re.MULTILINE | re.DOTALL))
    assert {"gpu", "hub", "mount", "ray"} <= set(extras)
    for extra in set(extras) - {"docs", "fuzz", "peers", "stores", "test"}:
        for name in re.findall(r"\"([\w-]+)", extras[extra]):
            assert name in checkup.LIBRARIES, f"{extra}: {name}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("one", KNOWN, ids=lambda one: one.name)
def test_the_bits_are_those_of_every_backend_and_of_the_specification(
    one: Known, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = write_pair(tmp_path, "float32")
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "active", lambda: load(backend))
        deltapack.compress(base, tuned, tmp_path / "x.dpk", recipe=one.recipe)
        deltapack.apply(base, tmp_path / "x.dpk", tmp_path / "out.safetensors")
    assert digest_of(tmp_path / "out.safetensors") == one.digest != digest_of(tuned)
    assert decode_by_spec(read_model(base), tmp_path / "x.dpk") == read_model(tmp_path / "out.safetensors")


def test_other_bits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tuple(replace(one, digest="0" * 64) for one in KNOWN)
    monkeypatch.setattr(checkup, "KNOWN", wrong)
    found = examine()
    assert not found.ok
    assert all("other bits" in check.found and not check.ok for check in found.checks if "known bits" in check.name)
    assert next(check for check in found.checks if "budget" in check.name).ok
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1 and " NO " in result.stdout and "do not use this installation" in result.stdout


def test_an_exact_pack_that_gives_another_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: str(path).encode())
    assert [check.ok for check in examine().checks if "exact" in check.name] == [False]


def test_an_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise CheckpointError("the disk is on fire")

    monkeypatch.setattr(checkup, "apply", broken)
    found = examine()
    assert not found.ok and any("the disk is on fire" in check.found for check in found.checks)


def test_libraries_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "find_spec", lambda _: None)
    monkeypatch.setattr(checkup, "LIBRARIES", ("numpy", "no-such-library"))
    found = examine()
    told = {check.name: check.found for check in found.checks}
    assert found.ok and "pip install numba" in told["loops on the CPU"] and "not installed" in told["torch"]
    assert found.versions == {"numpy": np.__version__, "no-such-library": None}


def test_which_loops_compute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(value: str | None) -> str:
        if value is None:
            monkeypatch.delenv("DELTAPACK_LOOPS", raising=False)
        else:
            monkeypatch.setenv("DELTAPACK_LOOPS", value)
        (found,) = [check for check in examine().checks if check.name == "loops on the CPU"]
        return ("" if found.ok else "NO ") + found.found

    assert told("numpy").startswith("numpy, several times slower, as DELTAPACK_LOOPS")
    assert told("often") == "NO DELTAPACK_LOOPS has a value that means nothing: expected auto, numba, numpy, found often"
    pytest.importorskip("numba")
    assert told(None) == "numba; numpy in a command on up to 1,048,576 weights, for which numba takes longer to start"
    assert told("numba") == "numba, as DELTAPACK_LOOPS asks for it"


def test_where_compiled_loops_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    from deltapack.kernels.cpu import keeping

    def told() -> str:
        return next(check.found for check in examine().checks if check.name == "compiled loops")

    monkeypatch.setattr(keeping, "home_of_loops", lambda: tmp_path)
    assert told() == f"kept in {tmp_path}"
    monkeypatch.setattr(keeping, "home_of_loops", lambda: None)
    assert "NUMBA_CACHE_DIR names another folder" in told()
    monkeypatch.setenv("DELTAPACK_LOOPS", "numpy")
    assert told() == "none: numpy's are not compiled"


def test_the_pair_is_the_same_everywhere(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, "float32")
    assert digest_of(base)[:16] == "f6d8d4377af95272" and digest_of(tuned)[:16] == "f6ca25e8e66f5e7e"
    assert known.write_pair(tmp_path, "float16")[0].stat().st_size < base.stat().st_size


def test_the_command_as_json() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    said = json.loads(result.stdout)
    assert result.exit_code == 0 and said["ok"] and said["workers"] >= 1 and {"name", "ok", "found"} <= said["checks"][0].keys()
    assert CliRunner().invoke(cli, ["doctor", "--quiet"]).stdout == ""
