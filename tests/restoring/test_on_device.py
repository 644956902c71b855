"""`apply` and `merge` on a device write the very files that they write on the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import (
    CHUNK,
    Tensor,
    cast,
    edited,
    leftovers,
    mixed_model,
    moved,
    random_tensor,
    read_folder,
    read_model,
    tuned_model,
    write_file,
    write_folder,
)
from support.commands import Run
from support.fixtures import PackOf
from support.interpreting import DEVICE

import deltapack
from deltapack.errors import BaseMismatchError, ChecksumError, RecipeError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base, and packs of a fine-tune and of one with more rows."""
    base = mixed_model()
    grown = tuned_model(base, 3) | {"c": random_tensor(3, (44, 9), "f16"), "new": random_tensor(8, (7,))}
    grown["c"].bits[:40] = moved(base["c"], 1).bits
    write_folder(tmp_path / "base", base)
    packs = []
    for name, tuned in (("one", tuned_model(base, 1)), ("two", grown)):
        write_folder(tmp_path / name, tuned)
        packs.append(tmp_path / f"{name}.dpk")
        deltapack.compress(tmp_path / "base", tmp_path / name, packs[-1], recipe=deltapack.Recipe(drop_rate=0.5))
    return tmp_path / "base", packs


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [None, "f32", "bf16"])
def test_the_same_files(folders: tuple[Path, list[Path]], tmp_path: Path, backend: str, dtype: str | None) -> None:
    base, (one, two) = folders
    done: list[tuple[int, int]] = []
    options: dict[str, Any] = {"dtype": dtype, "force": True}
    for call in (
        lambda out, **more: deltapack.apply(base, two, out, **options, **more),
        lambda out, **more: deltapack.apply(base, one, out, weight=0.3, **options, **more),
        lambda out, **more: deltapack.merge(base, [two, one], out, weights=[0.5, 1.5], **options, **more),
    ):
        host = call(tmp_path / "host")
        device = call(tmp_path / "device", device=DEVICE, backend=backend, progress=lambda *now: done.append(now))
        assert read_folder(tmp_path / "device") == read_folder(tmp_path / "host")
        place = "cuda:0" if DEVICE == "cuda" else "cpu"
        assert [note for note in device.notes if note not in host.notes] == [f"decoded on device {place} by backend {backend}: as asked"]
        assert device.tensor_bytes == host.tensor_bytes == done[-1][0] == done[-1][1]
        assert [part for part, _ in done] == sorted(part for part, _ in done)
        done.clear()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_exact_packs(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a base of another type; the host restores only what has no base of its shape."""
    from deltapack.device.exact_work import ExactWork
    from deltapack.restoring import on_device

    base = {"few": random_tensor(1, (40, 5), "bf16"), "near": random_tensor(2, (200,), "f32"), "wider": random_tensor(3, (200,), "f32")}
    near = Tensor("f32", (base["near"].bits.view("<u4") + np.arange(200, dtype=np.uint32) % 3).view("<f4"))
    tuned = {"few": edited(base["few"], 7, 3), "near": near, "wider": cast(base["wider"].f64, "bf16"), "new": random_tensor(4, (9,))}
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(*paths, tmp_path / "pack.dpk", recipe=deltapack.Recipe(exact=True))
    place, _ = on_device.place_of(DEVICE, backend)
    assert place is not None
    works, kind = list[str](), type(place.engine)
    switch = kind.switch

    def watched(self: Any, undo: Any, todo: Any, mode: Any, done: Any) -> None:
        works.extend(work.exact.ready.name for work in todo if isinstance(work, ExactWork))
        switch(self, undo, todo, mode, done)

    monkeypatch.setattr(kind, "switch", watched)
    deltapack.apply(paths[0], tmp_path / "pack.dpk", tmp_path / "out.safetensors", device=DEVICE, backend=backend)
    assert read_model(tmp_path / "out.safetensors") == tuned
    assert set(works) == {"few", "near", "wider"}


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_batches_and_chunks(pack_of: PackOf, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltapack.restoring import on_device

    monkeypatch.setattr(on_device, "_BATCH_BYTES", size)
    base = {"long": random_tensor(1, (CHUNK + 5,), "bf16")} | {f"{number}": random_tensor(number, (77, 9), "bf16") for number in range(5)}
    pack = pack_of(base, tuned_model(base), drop_rate=0.95)
    for backend in ("auto", "torch"):
        deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / f"{backend}.safetensors", device=DEVICE, backend=backend)
    deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "host.safetensors")
    for backend in ("auto", "torch"):
        assert (tmp_path / f"{backend}.safetensors").read_bytes() == (tmp_path / "host.safetensors").read_bytes()


def test_what_is_wrong_leaves_nothing(pack_of: PackOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltapack.device.torch_engine import TorchEngine

    base = mixed_model()
    pack, out = pack_of(base, tuned_model(base), drop_rate=0.5), tmp_path / "out.safetensors"
    other = write_file(tmp_path / "other.safetensors", base | {"a": edited(base["a"], 7, 0)})
    with pytest.raises(BaseMismatchError, match="other content"):
        deltapack.apply(other, pack, out, backend="torch")
    with pytest.raises(RecipeError, match="not the name of a device"):
        deltapack.apply(tmp_path / "base.safetensors", pack, out, device="nonsense")
    with pytest.raises(RecipeError, match="device and backend are for checkpoints"):
        deltapack.merge(tmp_path / "base.safetensors", [pack], tmp_path / "out.dpk", backend="torch")
    with monkeypatch.context() as patch, pytest.raises(ChecksumError, match="not what the pack promises"):
        patch.setattr(TorchEngine, "switch", lambda *arguments: None)
        deltapack.apply(tmp_path / "base.safetensors", pack, out, backend="torch")
    assert not out.exists() and leftovers(tmp_path) == []


def test_the_command_line(folders: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, (one, two) = folders
    for command in (["apply", base, one], ["merge", base, one, two]):
        for out, options in (("host", []), ("device", ["--device", DEVICE, "--backend", "torch"])):
            done = Run()(*command, "-o", tmp_path / out, "--force", *options)
            assert done.exit_code == 0, done.output
            assert ("by backend torch" in " ".join(done.output.split())) is bool(options)
        assert read_folder(tmp_path / "device") == read_folder(tmp_path / "host")
    # In a process of its own, as it ends with the exit code of a user.
    wrong = [sys.executable, "-m", "deltapack", "apply", str(base), str(one), "-o", str(tmp_path / "x"), "--device", "cuda:99"]
    refused = subprocess.run(wrong, capture_output=True, text=True)
    assert refused.returncode == 5 and "cannot be used" in " ".join(refused.stderr.split())
