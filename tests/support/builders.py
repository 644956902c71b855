"""Tiny checkpoints and what they must become, made without the package: by hand, with numpy and torch."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
TILE, CHUNK = 1 << 16, 1 << 20
FLOATS = ("f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2")
STORAGE = {
    **{"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "f8_e4m3fn": "|u1", "f8_e5m2": "|u1"},
    **{"i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "|i1", "u8": "|u1", "bool": "|u1"},
}
SAFETENSORS = {name: name.upper() for name in STORAGE} | {"f8_e4m3fn": "F8_E4M3", "f8_e5m2": "F8_E5M2"}
NAMES = {theirs: ours for ours, theirs in SAFETENSORS.items()}
TORCH = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8_e4m3fn": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Tensor:
    """An element type, and the elements as an array of the numpy type that holds their bits."""

    dtype: str
    bits: np.ndarray[Any, Any]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dtype, self.shape, self.raw) == (other.dtype, other.shape, other.raw)

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape, self.raw))

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)}, {self.raw[:16].hex()}...)"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.bits.shape)

    @property
    def raw(self) -> bytes:
        return self.bits.tobytes()

    @property
    def f64(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The values, exact."""
        if self.dtype not in TORCH or self.dtype in ("f64", "f32", "f16"):
            return self.bits.astype(np.float64)
        flat = torch.from_numpy(self.bits.reshape(-1).copy())
        return flat.view(TORCH[self.dtype]).double().numpy().reshape(self.shape)


Model = dict[str, Tensor]


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor of torch, on any device."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def cast(values: np.ndarray[Any, Any], dtype: str) -> Tensor:
    """Round f32 or f64 values by torch; to the narrow types through f32, as spec/06-arithmetic.md wants."""
    flat = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).copy())
    if dtype != "f64":
        flat = flat.float()
    out = flat.to(TORCH[dtype])
    if dtype == "bf16":
        out = out.view(torch.uint16)
    elif dtype.startswith("f8"):
        out = out.view(torch.uint8)
    return Tensor(dtype, out.numpy().astype(STORAGE[dtype]).reshape(np.shape(values)))


def mean(tensors: Sequence[np.ndarray[Any, Any]], dtype: str) -> Tensor:
    """The mean of raw bits, added in f64 in the order given."""
    values = [Tensor(dtype, bits).f64 for bits in tensors]
    return cast(sum(values[1:], values[0]) / len(values), dtype)


def whole(dtype: str, values: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Integers, booleans or raw bits."""
    array = np.asarray(values).astype(STORAGE[dtype])
    return Tensor(dtype, array if shape is None else array.reshape(tuple(shape)))


def random_tensor(seed: int, shape: Sequence[int], dtype: str = "f32", scale: float = 0.5) -> Tensor:
    return cast(np.random.default_rng(seed).normal(0, scale, tuple(shape)), dtype)


def moved(tensor: Tensor, seed: int, scale: float = 0.01, dtype: str | None = None) -> Tensor:
    """The tensor plus Gaussian noise, in `dtype`."""
    noise = np.random.default_rng(seed).normal(0, scale, tensor.shape)
    return cast(tensor.f64 + noise, dtype or tensor.dtype)


def edited(tensor: Tensor, index: int, bits: Any) -> Tensor:
    """The tensor with one element, counted flat, set to other bits."""
    out = tensor.bits.copy()
    out.reshape(-1)[index] = bits
    return Tensor(tensor.dtype, out)


def small_model(seed: int = 0, dtype: str = "f32") -> Model:
    """Three float tensors, one over a tile long, and an integer buffer."""
    return {
        "embed.weight": random_tensor(seed, (70, 32), dtype),
        "layer.bias": random_tensor(seed + 1, (700,), dtype),
        "layer.weight": random_tensor(seed + 2, (257, 259), dtype),
        "positions": whole("i64", np.arange(40)),
    }


def mixed_model() -> Model:
    """Floats of three types, a tensor without elements and an integer buffer."""
    return {
        "a": random_tensor(1, (60, 50), "bf16"),
        "b": random_tensor(2, (900,), "f32"),
        "c": random_tensor(3, (40, 9), "f16"),
        "empty": random_tensor(4, (0, 3)),
        "ids": whole("i64", np.arange(5)),
    }


def tuned_model(base: Mapping[str, Tensor], seed: int = 100, dtype: str | None = None, scale: float = 0.01) -> Model:
    """Every float tensor moved, the others as they are."""
    floats = {name: tensor for name, tensor in base.items() if tensor.dtype in FLOATS}
    return dict(base) | {name: moved(tensor, seed + number, scale, dtype) for number, (name, tensor) in enumerate(floats.items())}


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file, in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in tensors.items():
        size = len(tensor.raw)
        header[name] = {
            "dtype": SAFETENSORS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.raw for tensor in tensors.values()))
    return path


def write_folder(path: Path, tensors: Mapping[str, Tensor], files: Mapping[str, str] | None = None) -> Path:
    """A Hugging Face folder of one safetensors file."""
    path.mkdir()
    write_file(path / "model.safetensors", tensors)
    for name, text in {"config.json": "{}\n", **(files or {})}.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


def read_file(path: Path) -> Model:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    out = {}
    for name, info in header.items():
        begin, end = (start + offset for offset in info["data_offsets"])
        dtype = NAMES[info["dtype"]]
        out[name] = Tensor(dtype, np.frombuffer(data[begin:end], STORAGE[dtype]).reshape(info["shape"]))
    return out


def read_model(path: Path) -> Model:
    """All tensors of a safetensors file or of all such files of a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in read_file(file).items()}


def read_folder(path: Path) -> dict[str, bytes]:
    """Every file of a folder, by relative name, but the list of what was written."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != ".deltapack.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def add_by_hand(
    base: Tensor, positions: np.ndarray[Any, Any], values: np.ndarray[Any, Any], dtype: str, shape: Sequence[int] = ()
) -> Tensor:
    """Section 6.2 of the specification for a sum that is already in one piece."""
    flat = base.bits.reshape(-1)
    count = int(np.prod(shape, dtype=np.int64)) if shape else len(flat)
    plain = Tensor(base.dtype, flat[:count])
    out = plain.bits.copy() if base.dtype == dtype else cast(plain.f64, dtype).bits.copy()
    kept = Tensor(base.dtype, plain.bits[positions]).f64
    if "f64" in (base.dtype, dtype):
        total: np.ndarray[Any, Any] = kept + values.astype(np.float64)
    else:
        total = kept.astype(np.float32) + values.astype(np.float32)
    out[positions] = cast(total, dtype).bits
    return Tensor(dtype, out.reshape(tuple(shape) or base.shape))


@cache
def reference_decoder() -> ModuleType:
    """spec/reference_decoder.py as a module."""
    spec = importlib.util.spec_from_file_location("reference_decoder", ROOT / "spec" / "reference_decoder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module


def decode_by_spec(base: Mapping[str, Tensor], pack: Path, **options: Any) -> Model:
    """What the reference decoder makes of a pack."""
    given = {name: (tensor.dtype, tensor.shape, tensor.raw) for name, tensor in base.items()}
    result = reference_decoder().restore(pack, given, **options)
    return {name: Tensor(dtype, np.frombuffer(raw, STORAGE[dtype]).reshape(shape)) for name, (dtype, shape, raw) in result.items()}


def leftovers(folder: Path) -> Iterable[str]:
    """Unfinished outputs."""
    return sorted(path.name for path in folder.iterdir() if path.name.endswith((".partial", ".deltapack.lock")))
