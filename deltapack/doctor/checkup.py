"""What is installed, which code computes, and whether it gives the bits that it must."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltapack import kernels
from deltapack._version import __version__
from deltapack.doctor.known import KNOWN, digest_of, write_pair
from deltapack.errors import BackendError, DeltapackError
from deltapack.kernels.choice import kept_in
from deltapack.packing.budget import Budget
from deltapack.packing.compressing import compress
from deltapack.packing.recipe import Recipe
from deltapack.parallel import resolve_workers
from deltapack.restoring.applying import apply
from deltapack.sources.locks import scratch

__all__ = ["Check", "Checkup", "examine"]

LIBRARIES = (
    *("numpy", "scipy", "numba", "safetensors", "zstandard", "xxhash", "click"),
    *("torch", "triton", "transformers", "peft", "matplotlib"),
    *("huggingface-hub", "urllib3", "fsspec", "s3fs", "gcsfs", "mfusepy", "ray", "vllm", "sglang", "model-signing", "pyopenssl"),
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        ok: Whether it is as it must be.
        found: What was found, and what to do where it is not.
    """

    name: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Checkup:
    """What was found.

    Attributes:
        deltapack: Its version.
        python: Python's version.
        system: Operating system and processor.
        workers: Threads that are used unless told otherwise.
        versions: Of libraries, by name; `None` of those that are not installed.
        checks: What was looked at.
    """

    deltapack: str
    python: str
    system: str
    workers: int
    versions: dict[str, str | None]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether all is as it must be."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON-ready values."""
        return asdict(self) | {"ok": self.ok}


def examine() -> Checkup:
    """Look at this installation; packs a small pair of models in a temporary folder and restores it by every code that runs here."""
    checks = [_loops(), _cache(), *_devices()]
    with scratch() as folder:
        for name, test in _tests(Path(folder)):
            try:
                found = test()
            except (DeltapackError, OSError, ImportError) as error:
                found = str(error)
            checks.append(Check(name, not found, found or "as it must be"))
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    versions = {name: _version(name) for name in LIBRARIES}
    return Checkup(__version__, platform.python_version(), system, resolve_workers(None), versions, tuple(checks))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _loops() -> Check:
    """Which loops compute on the CPU; numpy's give the same bits several times slower, which is no fault.

    numba's, once they are loaded here, serve in this process however little there is to do, so that it is they that are tried.
    """
    if find_spec("numba") is None:
        return Check("loops on the CPU", True, "numpy, several times slower: pip install numba")
    try:
        asked = kernels.asked()
    except BackendError as error:
        return Check("loops on the CPU", False, str(error))
    if asked == "numpy":
        return Check("loops on the CPU", True, "numpy, several times slower, as DELTAPACK_LOOPS asks for it")
    if kernels.fastest() is kernels.reference:
        return Check("loops on the CPU", True, "numpy, as numba cannot be imported")
    few = f"; numpy in a command on up to {kernels.LITTLE:,} weights, for which numba takes longer to start"
    return Check("loops on the CPU", True, "numba" + (few if asked == "auto" else ", as DELTAPACK_LOOPS asks for it"))


def _cache() -> Check:
    """Whether compiled loops are kept; without, each process compiles them anew."""
    try:
        compiled = kernels.asked() != "numpy" and kernels.fastest() is not kernels.reference
    except BackendError:  # told of by the check of loops
        compiled = False
    if not compiled:
        return Check("compiled loops", True, "none: numpy's are not compiled")
    home = kept_in()
    if home is not None:
        return Check("compiled loops", True, f"kept in {home}")
    return Check("compiled loops", True, "no folder can be written, each process compiles its own: NUMBA_CACHE_DIR names another folder")


def _devices() -> Iterator[Check]:
    if find_spec("torch") is None:
        yield Check("torch", True, "not installed: no live models, no GPU, no state dicts of PyTorch")
        return
    import torch

    from deltapack.device.backends import choose

    if not torch.cuda.is_available():
        yield Check("GPU", True, "torch sees none; packs are restored on the CPU")
        return
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        yield Check(f"GPU {number}", True, f"{torch.cuda.get_device_name(device)}, {choose('auto', device)}")


def _tests(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield tests with their names; each returns what is wrong, or nothing."""
    for known in KNOWN:
        yield f"{known.name}, known bits", lambda known=known: _known_bits(folder, known.recipe, known.digest)  # type: ignore[misc]
    yield "trits, there and back", lambda: _there_and_back(folder, Recipe(drop_rate=0.5, values="ternary"))
    yield "a budget, there and back", lambda: _there_and_back(folder, Recipe(budget=Budget(bits=2.0)))
    yield "an exact pack, there and back", lambda: _exact(folder)
    yield from ((f"{name}, the same bits", test) for name, test in _others(folder))


def _known_bits(folder: Path, recipe: Recipe, digest: str, **options: Any) -> str:
    base, tuned = write_pair(folder, "float32")
    compress(base, tuned, folder / "known.dpk", recipe=recipe, force=True)
    found = digest_of(_restored(base, folder / "known.dpk", **options))
    return "" if found == digest else f"other bits ({found[:16]} for {digest[:16]}): do not use this installation, and report it"


def _there_and_back(folder: Path, recipe: Recipe) -> str:
    """Digests in the pack are compared with what is restored: an error says so."""
    base, tuned = write_pair(folder, "float16")
    compress(base, tuned, folder / "budget.dpk", recipe=recipe, force=True)
    _restored(base, folder / "budget.dpk")
    return ""


def _exact(folder: Path) -> str:
    base, tuned = write_pair(folder, "float16")
    compress(base, tuned, folder / "exact.dpk", recipe=Recipe(exact=True), force=True)
    same = _restored(base, folder / "exact.dpk").read_bytes() == tuned.read_bytes()
    return "" if same else "the file is another: do not use this installation, and report it"


def _others(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield tests of code for devices, as far as it runs here."""
    if find_spec("torch") is None:
        return
    import torch

    known = KNOWN[0]
    yield "torch", lambda: _known_bits(folder, known.recipe, known.digest, device="cpu", backend="torch")
    if torch.cuda.is_available():
        yield "GPU", lambda: _known_bits(folder, known.recipe, known.digest, device="cuda")


def _restored(base: Path, pack: Path, **options: Any) -> Path:
    out = pack.with_suffix(".safetensors")
    out.unlink(missing_ok=True)
    apply(base, pack, out, **options)
    return out
