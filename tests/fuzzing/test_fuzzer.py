"""The fuzzer finds what it is there to find: each oracle with a fault of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import IO

import numpy as np
import pytest
import torch

from deltapack.errors import FormatError
from fuzz import watching
from fuzz.__main__ import main
from fuzz.bundles import Bundle, decode, encode
from fuzz.engine import Kept, run
from fuzz.interpreting import OutOfBounds, check_addresses
from fuzz.packfile import Blob, put_together, take_apart
from fuzz.protocol import Finding, Scratch, Target
from fuzz.running import Runner
from fuzz.spec import reference_decoder
from fuzz.targets import TARGETS
from fuzz.targets.vectors import PACK_NAME, vectors


def target_of(check: Callable[[Scratch], None], change: Callable[[Bundle, Random], Bundle] | None = None) -> Target:
    def longer(bundle: Bundle, rng: Random) -> Bundle:
        return {"a": bundle["a"] + bytes([rng.randrange(256)])}

    return Target("own", "a target of a test", lambda folder: [{"a": b"seed"}], change or longer, check, (), "read")


def fault_of(act: Callable[[Scratch], object]) -> str:
    def check(scratch: Scratch) -> None:
        act(scratch)

    with Runner(target_of(check)) as runner:
        return runner.run({"a": b"seed", "b/c": b""}).fault


def test_several_targets_are_bounded_one_after_another() -> None:
    """Each by what the process has by then; a limit that the system has set stays."""
    code = """
import resource, sys
from fuzz.watching import bound_memory
hard = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY if hard < 0 else hard, hard))
limits = []
for _ in range(2):
    bound_memory()
    limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    held = bytearray(1 << 28)
print(*limits)
"""
    for hard in (-1, 4 << 30):
        done = subprocess.run(
            [sys.executable, "-c", code, str(hard)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
        )
        first, second = map(int, done.stdout.split())
        assert (first < second) if hard < 0 else (first == second == hard)


def test_a_file_to_replay_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pack", "--replay", str(tmp_path / "none")])
    assert "there is no file" in capsys.readouterr().err


def test_packs_come_together_as_they_were() -> None:
    spec = reference_decoder()
    for name, pack, _ in vectors():
        document = take_apart(pack)
        assert document is not None, name
        again = take_apart(put_together(document))
        assert again == document, name
        assert spec.read_prologue(put_together(document))[1] == spec.read_prologue(pack)[1], name


def test_a_changed_blob_has_checksums_that_fit() -> None:
    pack = next(pack for name, pack, _ in vectors() if name == "example")
    document = take_apart(pack)
    assert document is not None
    blob = document.index["tensors"][0]["terms"][0]["blob"]
    assert isinstance(blob, Blob) and blob.chunks is not None
    codes, raw = blob.chunks[0].streams[1]
    blob.chunks[0].streams[1] = bytes([codes[0] ^ 1]), raw
    spec = reference_decoder()
    changed = put_together(document)
    assert changed[64:] != pack[64:]
    stored, length = spec.read_prologue(changed)
    index = spec.parse_canonical(spec.unzstd(stored, length))
    assert list(spec.term_addends(changed, index["tensors"][0]["terms"][0], index["tensors"][0], np.float32(1)))


def test_mutants_get_past_the_checksums() -> None:
    """Of packs changed in their blobs, more than half can be opened, and all have the hash of their prologue."""
    target, rng, spec = TARGETS["codec-gaps"], Random(1), reference_decoder()
    seeds = [{PACK_NAME: pack} for _, pack, _ in vectors()][:40]
    opened = 0
    for seed in seeds:
        pack = target.change(seed, rng)[PACK_NAME]
        spec.read_prologue(pack)
        try:
            spec.check_index(spec.parse_canonical(spec.unzstd(*spec.read_prologue(pack))))
            opened += 1
        except spec.Invalid:
            continue
    assert opened > len(seeds) // 2


def test_inputs_of_several_files_are_one_string_of_bytes() -> None:
    bundle = {"a/b.json": b"{}", "é": bytes(300), "x": b""}
    data = encode(bundle)
    assert decode(data) == bundle
    for cut in range(1, len(data) - 1):
        found = decode(data[:cut])
        assert found is None or set(found) < set(bundle)


def test_the_same_seed_makes_the_same_inputs(tmp_path: Path) -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []

        def check(scratch: Scratch) -> None:
            seen.append((scratch.inputs / "a").read_bytes())
            scratch.note(f"read {seen[-1][-1] % 3}")

        target = target_of(check)
        with Runner(target) as runner:
            run(target, target.seeds(tmp_path), runner, runs=30, seconds=0, seed=seed, kept=Kept(None, target), found=tmp_path)
        return seen

    assert inputs(1) == inputs(1) != inputs(2)


def test_a_finding_is_made_small_and_can_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(scratch: Scratch) -> None:
        data = (scratch.inputs / "a").read_bytes() if (scratch.inputs / "a").exists() else b""
        if b"x" in data:
            raise KeyError("planted")

    target = target_of(check, lambda bundle, rng: {"a": rng.randbytes(20) + b"x" + rng.randbytes(20), "b": b"not needed"})
    with Runner(target) as runner:
        campaign = run(target, target.seeds(tmp_path), runner, runs=5, seconds=0, seed=0, kept=Kept(None, target), found=tmp_path / "found")
        ((fault, path),) = campaign.faults.items()
        assert fault.startswith("KeyError") and campaign.faults_seen[fault] == 5
        kept = decode(path.read_bytes())
        assert kept is not None and set(kept) == {"a"} and b"x" in kept["a"] and len(kept["a"]) < 8
        assert runner.run(kept).fault == fault
    assert f"python -m fuzz own --replay {path}" in capsys.readouterr().out


def test_errors_of_ours_are_no_findings() -> None:
    def check(scratch: Scratch) -> None:
        done, error = scratch.attempt("read", refuse)
        assert not done and isinstance(error, FormatError)
        assert scratch.labels == ["read: FormatError R9: expected ~ of ~"]

    def refuse() -> None:
        raise FormatError("expected 5 of 'w'", rule="R9")

    assert fault_of(check) == ""


def test_what_a_target_must_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def knock(scratch: Scratch) -> None:
        with socket.socket() as own:
            own.connect_ex(("127.0.0.1", 9))

    def raises(scratch: Scratch) -> None:
        scratch.attempt("read", lambda: [][0])

    assert fault_of(raises).startswith("IndexError")
    assert "outside" in fault_of(lambda scratch: (tmp_path / "x").write_text(""))
    assert "outside" in fault_of(lambda scratch: os.mkdir(tmp_path / "y"))
    assert "outside" in fault_of(lambda scratch: os.rename(scratch.inputs / "a", tmp_path / "z"))
    assert "outside" in fault_of(knock)
    assert "input changed" in fault_of(lambda scratch: (scratch.inputs / "a").write_text(""))
    assert "beside the inputs" in fault_of(lambda scratch: (scratch.inputs / "new").write_text("x"))
    assert "left behind" in fault_of(lambda scratch: (scratch.folder / ".out.partial").write_text("x"))
    files: list[IO[str]] = []
    assert "left open" in fault_of(lambda scratch: files.extend(open(scratch.folder / f"{n}", "w") for n in range(3)))  # noqa: SIM115
    for file in files:
        file.close()
    monkeypatch.setattr(watching, "_GROWTH", 1 << 20)
    child = os.fork()  # whose most memory is not yet that of tests before
    if child == 0:
        status = 1
        try:
            status = 0 if "memory" in fault_of(lambda scratch: bytearray(b"1") * (3 << 30 >> 2)) else 1
        finally:
            os._exit(status)  # whatever comes, the rest of the tests is not run twice
    assert os.waitpid(child, 0)[1] == 0


def test_what_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(scratch: Scratch) -> None:
        while True:
            try:
                scratch.note("")
                scratch.labels.clear()
            except Exception:
                continue

    monkeypatch.setattr(watching, "_CPU_SECONDS", 0.2)
    assert "time" in fault_of(spin)
    monkeypatch.setattr(watching, "_WALL_SECONDS", 0.2)
    assert "time" in fault_of(lambda scratch: time.sleep(60))


def test_kernels_are_kept_to_tensors() -> None:
    pytest.importorskip("triton")
    from support import interpreting

    if interpreting.DEVICE != "cpu":
        pytest.skip("kernels run on a GPU, not in the interpreter")
    assert check_addresses()
    from triton.runtime import interpreter

    from deltapack.device.torch_kernels import BITS

    memory = torch.arange(16, dtype=BITS[4])
    checked = interpreter._interpreter
    checked.look()
    inside = np.array([memory.data_ptr() + 4 * place for place in (0, 15)], np.uint64)
    zeros, all_ = np.zeros(2, np.int32), np.ones(2, bool)
    assert checked.load(inside, all_, zeros, np.dtype(np.int32)).tolist() == [0, 15]
    beside = inside + np.uint64(4)
    with pytest.raises(OutOfBounds, match="reads 1 elements"):
        checked.load(beside, all_, zeros, np.dtype(np.int32))
    with pytest.raises(OutOfBounds, match="writes"):
        checked.store(beside, zeros, all_)
    checked.store(beside, zeros + 7, np.array([True, False]))  # what a mask hides is not touched
    assert memory.tolist()[:3] == [0, 7, 2]
    assert issubclass(OutOfBounds, Finding)
