"""Packs of the specification's vectors as inputs, and what the specification says of changed ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from deltapack.errors import LimitError
from fuzz.bundles import Bundle
from fuzz.mutators.packs import changed_pack
from fuzz.protocol import Finding
from fuzz.spec import ROOT, reference_decoder

__all__ = [
    "BASE_NAME",
    "PACK_NAME",
    "VECTORS",
    "Tensor",
    "agree",
    "base_bytes",
    "base_of",
    "by_spec",
    "change",
    "compiled",
    "elements_declared",
    "loops",
    "packs_alone",
    "seeds_of",
    "tensors_of",
    "vectors",
]

VECTORS = ROOT / "tests" / "vectors"
_MOST_BASE = 1 << 21
PACK_NAME, BASE_NAME = "a.dpk", "base/model.safetensors"
Tensor = tuple[str, tuple[int, ...], bytes]


def tensors_of(rows: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a companion file of a vector."""
    return {
        n: (row["dtype"], tuple(row["shape"]), b"".join(bytes.fromhex(word) * times for word, times in row["data"]))
        for n, row in rows.items()
    }


def vectors(most: int = _MOST_BASE) -> Iterator[tuple[str, bytes, dict[str, Tensor]]]:
    """Valid vectors of the specification: name, pack, base; those whose base is larger than `most` bytes are left out."""
    for path in sorted(VECTORS.glob("v1-ok-*.dpk")):
        document = json.loads(path.with_suffix(".json").read_text("utf-8"))
        base = tensors_of(document["base"])
        if sum(len(raw) for _, _, raw in base.values()) <= most and path.stat().st_size < 1 << 15:
            yield path.stem.removeprefix("v1-ok-"), path.read_bytes(), base


def base_bytes(base: dict[str, Tensor], folder: Path) -> bytes:
    """A base as a safetensors file."""
    reference_decoder().save_safetensors(folder / "base.safetensors", base, {})
    return (folder / "base.safetensors").read_bytes()


@contextmanager
def _base_files() -> Iterator[dict[str, bytes]]:
    document = json.loads((VECTORS / "base_files.json").read_text("utf-8"))
    yield {name: bytes.fromhex(text) for name, text in document["files"].items()}


def seeds_of(
    folder: Path, keep: Callable[[str, dict[str, Any]], bool] = lambda name, index: True, most: int = _MOST_BASE
) -> Sequence[Bundle]:
    """Vectors with their bases as inputs, those of which `keep` says so from name and index."""
    found = []
    spec = reference_decoder()
    with _base_files() as files:
        for name, pack, base in vectors(most):
            index = spec.read_pack(VECTORS / f"v1-ok-{name}.dpk")["index"]
            if keep(name, index):
                bundle = {PACK_NAME: pack, BASE_NAME: base_bytes(base, folder)}
                if index["files"] is None or any(file.get("base") or "blob" not in file for file in index["files"]):
                    bundle |= {f"base/{file}": content for file, content in files.items()}
                found.append(bundle)
    return found


def base_of(bundle: Bundle) -> dict[str, Tensor] | None:
    """The base of an input; none where it cannot be read."""
    header_bytes = int.from_bytes(bundle[BASE_NAME][:8], "little")
    header = json.loads(bundle[BASE_NAME][8 : 8 + header_bytes])
    spec, start, tensors = reference_decoder(), 8 + header_bytes, {}
    for name, row in header.items():
        if name != "__metadata__":
            begin, end = row["data_offsets"]
            tensors[name] = spec.dtype_of_header(row, end - begin), tuple(row["shape"]), bundle[BASE_NAME][start + begin : start + end]
    return tensors


def packs_alone(folder: Path) -> Sequence[Bundle]:
    """Vectors without their bases."""
    return [{PACK_NAME: pack} for _, pack, _ in vectors()]


def change(parts: tuple[str, ...], bundle: Bundle, rng: Random) -> Bundle:
    """Change the pack of an input."""
    if BASE_NAME not in bundle:
        return {**bundle, PACK_NAME: changed_pack(bundle[PACK_NAME], rng, parts)}
    files = {name.removeprefix("base/"): content for name, content in bundle.items() if name.startswith("base/") and name != BASE_NAME}
    return {**bundle, PACK_NAME: changed_pack(bundle[PACK_NAME], rng, parts, base_of(bundle), files)}


def by_spec(act: Callable[[], Any]) -> tuple[str, Any]:
    """What the reference decoder does: "done" and a result, "refused" and the rule, or "unknown", where it has limits of its own."""
    spec = reference_decoder()
    try:
        with np.errstate(all="ignore"):
            return "done", act()
    except spec.Invalid as error:
        return "refused", error.rule
    except spec.Conflict:
        return "refused", "conflict"
    except (MemoryError, RecursionError, OverflowError, ValueError, OSError) as error:
        return "unknown", type(error).__name__


def agree(step: str, ours: bool, error: Any, said: str, rule: Any) -> None:
    """Both decoders accept, or both refuse.

    Raises:
        Finding: They do not.
    """
    if said == "unknown" or isinstance(error, LimitError):
        return
    if not ours and "names one base and holds the digests of another" in str(error):  # section 3.5: a reader MAY compare them
        return
    if ours and said == "refused":
        raise Finding(f"{step}: accepted by the package, refused by the specification ({rule})")
    if not ours and said == "done":
        raise Finding(f"{step}: refused by the package ({error}), accepted by the specification")


def elements_declared(index: Any) -> int:
    """Elements that a pack speaks of, in its result and its base."""
    bases = sum(entry.base.numel for entry in index.entries if entry.base is not None)
    return int(sum(entry.numel for entry in index.entries if entry.in_result) + bases)


@contextmanager
def loops(module: Any) -> Iterator[None]:
    """Compute with one package of loops."""
    with mock.patch("deltapack.kernels.active", lambda: module):
        yield


def compiled() -> Any:
    """The compiled loops."""
    from deltapack.kernels import cpu

    return cpu
