"""Element types without a row of their own travel as bytes: read, packed, restored, merged, loaded; sizes that cannot be are refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import ROOT, write_folder

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.dtypes import BY_SAFETENSORS, named
from deltapack.errors import CheckpointError, MergeConflictError, UnsupportedError

Raw = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Type in the header, shape and bytes of each tensor."""

TYPES: Raw = {
    "f4": ("F4", (8, 8), bytes(range(32))),
    "f6": ("F6_E2M3", (4, 3), bytes(range(9))),
    "f6b": ("F6_E3M2", (8,), bytes(range(6))),
    "fnuz": ("F8_E4M3FNUZ", (3,), b"\x80\x7f\xff"),
    "fnuz5": ("F8_E5M2FNUZ", (), b"\x80"),
    "e8m0": ("F8_E8M0", (2,), b"\xff\x7f"),
    "c64": ("C64", (2,), bytes(range(16))),
    "c128": ("C128", (2,), bytes(range(32))),
    "new": ("F3_X_9", (8, 2), bytes(range(6))),
    "empty": ("F3_X_9", (0, 5), b""),
    "unheard": ("7BIT", (0,), b""),
}


def write_raw(path: Path, tensors: Raw, metadata: Any = None) -> Path:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))
    return path


def read_raw(path: Path) -> Raw:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: (row["dtype"], tuple(row["shape"]), data[start + row["data_offsets"][0] : start + row["data_offsets"][1]])
        for name, row in header.items()
    }


def floats(seed: int) -> tuple[str, tuple[int, ...], bytes]:
    base, noise = (np.random.default_rng(number).normal(0, 0.02, (64, 64)) for number in (0, seed))
    return "F32", (64, 64), (base + 0.1 * noise).astype("<f4").tobytes()


def changed(row: tuple[str, tuple[int, ...], bytes]) -> tuple[str, tuple[int, ...], bytes]:
    return row[0], row[1], bytes(byte ^ 0x55 for byte in row[2])


def test_every_type_is_unchanged_stored_new_and_removed(tmp_path: Path) -> None:
    base = (
        {"w": floats(1)}
        | TYPES
        | {f"gone.{name}": row for name, row in TYPES.items()}
        | {f"other.{name}": row for name, row in TYPES.items()}
    )
    tuned = (
        {"w": floats(2)}
        | TYPES
        | {f"new.{name}": row for name, row in TYPES.items()}
        | {f"other.{name}": changed(row) for name, row in TYPES.items()}
    )
    paths = write_raw(tmp_path / "base.safetensors", base), write_raw(tmp_path / "tuned.safetensors", tuned)
    pack = tmp_path / "x.dpk"
    deltapack.compress(*paths, pack)
    with deltapack.open_pack(pack) as opened:
        kinds = {name: opened[name].kind for name in opened}
        assert opened["f4"].dtype == "raw4:F4" and opened["new"].dtype == "raw3:F3_X_9" and opened["c64"].dtype == "c64"
    assert {kinds[name] for name in TYPES} == {"unchanged"} and {kinds[f"gone.{name}"] for name in TYPES} == {"removed"}
    assert {kinds[f"other.{name}"] for name, row in TYPES.items() if row[2]} == {"stored"}
    report = deltapack.apply(paths[0], pack, tmp_path / "out.safetensors")
    assert report.verified
    restored = read_raw(tmp_path / "out.safetensors")
    assert {name: row for name, row in restored.items() if name != "w"} == {name: row for name, row in tuned.items() if name != "w"}
    assert deltapack.verify(pack, paths[0]).result_digests
    deltapack.verify(pack)
    with open_checkpoint(tmp_path / "out.safetensors") as again:
        assert {name: info.dtype.safetensors for name, info in again.tensors.items()} == {name: row[0] for name, row in tuned.items()}


def test_the_decoder_of_the_specification_restores_them(tmp_path: Path) -> None:
    decoder = runpy.run_path(str(ROOT / "spec" / "reference_decoder.py"))
    base, tuned = {"w": floats(1)} | TYPES, {"w": floats(1)} | {name: changed(row) for name, row in TYPES.items()}
    paths = write_raw(tmp_path / "base.safetensors", base), write_raw(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(*paths, tmp_path / "x.dpk")
    restored = decoder["restore"](tmp_path / "x.dpk", decoder["load_safetensors"](paths[0]))
    decoder["save_safetensors"](tmp_path / "out.safetensors", restored, {"format": "pt"})
    assert read_raw(tmp_path / "out.safetensors") == tuned


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F4", (3,), 1),
        ("F4", (3,), 2),
        ("F4", (2, 2), 4),
        ("F6_E2M3", (2,), 2),
        ("F8_E4M3FNUZ", (4,), 2),
        ("NEW", (2,), 0),
        ("C64", (2,), 8),
    ],
)
def test_sizes_that_cannot_be(tmp_path: Path, dtype: str, shape: tuple[int, ...], size: int) -> None:
    path = write_raw(tmp_path / "x.safetensors", {"q": (dtype, shape, bytes(size))})
    with pytest.raises((CheckpointError, UnsupportedError)) as error:
        open_checkpoint(path)
    assert (error.value.tensor, error.value.path) == ("q", path)


def test_a_type_has_one_width_in_a_file(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", {"a": ("NEW", (4,), bytes(2)), "b": ("NEW", (4,), bytes(4))})
    with pytest.raises(CheckpointError, match="do not fit the shape") as error:
        open_checkpoint(path)
    assert error.value.tensor == "b"


def test_packs_that_change_one_differently_are_a_conflict_by_name(tmp_path: Path) -> None:
    base, packs = write_raw(tmp_path / "base.safetensors", {"w": floats(1)} | TYPES), []
    for number in range(2):
        row = changed(TYPES["f4"]) if number else (*TYPES["f4"][:2], bytes(32))
        tuned = write_raw(tmp_path / f"{number}.safetensors", {"w": floats(2 + number)} | TYPES | {"f4": row})
        packs.append(tmp_path / f"{number}.dpk")
        deltapack.compress(base, tuned, packs[-1])
    with pytest.raises(MergeConflictError) as error:
        deltapack.merge(base, packs, tmp_path / "out.safetensors")
    assert error.value.tensor == "f4"
    deltapack.merge(base, packs, tmp_path / "out.safetensors", prefer=packs[1])
    assert read_raw(tmp_path / "out.safetensors")["f4"] == changed(TYPES["f4"])
    deltapack.merge(base, packs, tmp_path / "both.dpk", prefer=packs[1])
    deltapack.apply(base, tmp_path / "both.dpk", tmp_path / "again.safetensors")
    assert read_raw(tmp_path / "again.safetensors") == read_raw(tmp_path / "out.safetensors")


def torch_types() -> dict[str, torch.Tensor]:
    byte = torch.arange(32, dtype=torch.uint8)
    found = {name: getattr(torch, name, None) for name in ("float4_e2m1fn_x2", "float8_e4m3fnuz", "float8_e5m2fnuz")}
    return {name: byte.reshape(8, 4).view(dtype) for name, dtype in found.items() if dtype is not None}


def test_torch_files_have_them_too(tmp_path: Path) -> None:
    tensors = torch_types()
    assert "float8_e4m3fnuz" in tensors
    tensors["turned"] = tensors["float8_e4m3fnuz"].t()
    torch.save(tensors | {"w": torch.ones(64, 64)}, tmp_path / "x.bin")
    safetensors = write_raw(tmp_path / "x.safetensors", {"w": ("F32", (64, 64), np.full(4096, 1.01, "<f4").tobytes())})
    deltapack.compress(safetensors, tmp_path / "x.bin", tmp_path / "x.dpk")
    deltapack.apply(safetensors, tmp_path / "x.dpk", tmp_path / "out.safetensors")
    restored = read_raw(tmp_path / "out.safetensors")
    assert restored["float8_e5m2fnuz"] == ("F8_E5M2FNUZ", (8, 4), bytes(range(32)))
    assert restored["turned"] == ("F8_E4M3FNUZ", (4, 8), np.arange(32, dtype=np.uint8).reshape(8, 4).T.tobytes())
    if "float4_e2m1fn_x2" in tensors:
        assert restored["float4_e2m1fn_x2"] == ("F4", (8, 8), bytes(range(32)))


def test_loading_gives_the_types_of_torch(tmp_path: Path) -> None:
    base = {"w": floats(1)} | {name: TYPES[name] for name in ("fnuz", "fnuz5", "c64")}
    if "float4_e2m1fn_x2" in torch_types():
        base["f4"] = TYPES["f4"]
    paths = write_raw(tmp_path / "base.safetensors", base), write_raw(tmp_path / "tuned.safetensors", base | {"w": floats(2)})
    deltapack.compress(*paths, tmp_path / "x.dpk")
    state = deltapack.load_state_dict(paths[0], tmp_path / "x.dpk")
    assert state["fnuz"].dtype == torch.float8_e4m3fnuz
    assert state["fnuz"].view(torch.uint8).tolist() == list(TYPES["fnuz"][2])
    if "f4" in base:
        assert state["f4"].shape == (8, 4) and state["f4"].view(torch.uint8).flatten().tolist() == list(range(32))


def test_loading_a_type_that_torch_has_not_says_so(tmp_path: Path) -> None:
    base = {"w": floats(1), "f6": TYPES["f6"]}
    paths = write_raw(tmp_path / "base.safetensors", base), write_raw(tmp_path / "tuned.safetensors", base | {"w": floats(2)})
    deltapack.compress(*paths, tmp_path / "x.dpk")
    with pytest.raises(UnsupportedError, match=r"deltapack\.apply") as error:
        deltapack.load_state_dict(paths[0], tmp_path / "x.dpk")
    assert (error.value.tensor, error.value.found) == ("f6", "F6_E2M3")


def test_an_unchanged_tensor_of_four_bits_in_a_folder(tmp_path: Path) -> None:
    """A model with one quantised tensor that the fine-tune left alone."""
    for name, seed in (("base", 1), ("ft", 2)):
        write_folder(tmp_path / name, {})
        write_raw(tmp_path / name / "model.safetensors", {"w": floats(seed), "q": TYPES["f4"]}, {"format": "pt"})
    report = deltapack.compress(tmp_path / "base", tmp_path / "ft", tmp_path / "x.dpk")
    assert report.kinds == {"delta": 1, "unchanged": 1}
    deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out")
    assert read_raw(tmp_path / "out" / "model.safetensors")["q"] == TYPES["f4"]


@pytest.mark.parametrize("name", ["raw4:F4", "raw6:F6_E2M3", "raw3:X", "raw999:_"])
def test_names_of_raw_types(name: str) -> None:
    dtype = named(name)
    assert dtype is not None and str(dtype) == name and not dtype.is_delta
    assert BY_SAFETENSORS.get(dtype.safetensors, dtype) == dtype
