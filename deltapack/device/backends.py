"""Which code decodes on which device, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from deltapack.device.engine import Engine
from deltapack.device.torch_engine import TorchEngine
from deltapack.errors import BackendError, RecipeError

__all__ = ["BACKENDS", "Choice", "choose", "resolve_device"]

BACKENDS = ("auto", "cpu", "torch", "triton")
_INSTALL = "Install it with `pip install triton`, or take --backend torch."


@dataclass(frozen=True)
class Choice:
    """A backend for a device.

    Attributes:
        name: `cpu` (numba or numpy), `torch` or `triton`.
        reason: Why this one.
        engine: What does the works; `None` for `cpu`, which needs none.
    """

    name: str
    reason: str
    engine: Engine | None

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device of this name; the CPU unless given.

    Raises:
        BackendError: There is no such device here.
        RecipeError: No device has such a name.
    """
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise RecipeError("not the name of a device", expected="cpu, cuda, cuda:N or another of torch", found=repr(device)) from error
    try:
        torch.empty(1, dtype=torch.uint8, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        what = f"this device cannot be used: {_why_not(found)}"
        raise BackendError(what, found=device, hint="Take --device cpu.") from error
    return torch.device("cuda", torch.cuda.current_device()) if found.type == "cuda" and found.index is None else found


def _why_not(device: torch.device) -> str:
    """Return why torch has no such device here, in words of ours."""
    if device.type != "cuda":
        return f"torch has no device of type {device.type} here"
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch was built without CUDA"
    count = torch.cuda.device_count()
    if count and device.index is not None and device.index >= count:
        return f"the GPUs here are {', '.join(f'cuda:{number}' for number in range(count))}"
    return "torch sees no GPU that works here"


def choose(backend: str, device: torch.device) -> Choice:
    """Choose a backend for a device.

    Args:
        backend: One of `BACKENDS`; `auto` takes the fastest one that runs.
        device: Where the tensors are.

    Raises:
        BackendError: The backend does not run on this device or machine.
    """
    if backend == "auto":
        return _fastest(device)
    if backend == "cpu":
        if device.type != "cpu":
            raise BackendError("backend cpu runs on the CPU only", found=f"device {device}", hint="Take --backend torch or triton.")
        return Choice("cpu", "as asked", None)
    if backend == "torch":
        return Choice("torch", "as asked", TorchEngine())
    if backend == "triton":
        problem = _without_triton(device)
        if problem:
            raise BackendError(f"backend triton cannot run: {problem}", found=f"device {device}", hint=_INSTALL)
        return Choice("triton", "as asked", _triton(device))
    raise BackendError("no such backend", expected="one of " + ", ".join(BACKENDS), found=backend)


def _fastest(device: torch.device) -> Choice:
    if device.type == "cpu":
        return Choice("cpu", "the tensors are on the CPU", None)
    problem = _without_triton(device)
    if problem:
        return Choice("torch", problem, TorchEngine())
    return Choice("triton", f"the tensors are on {device}", _triton(device))


def _without_triton(device: torch.device) -> str:
    """Return why Triton cannot run on a device; empty where it can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        if torch.version.hip:
            return "the kernels are not tested on ROCm"
        major, minor = torch.cuda.get_device_capability(device)
        return "" if major >= 8 else f"the GPU has compute capability {major}.{minor}, 8.0 is needed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device.type == "cpu":
        return "the tensors are on the CPU (with TRITON_INTERPRET=1 in the environment its interpreter runs there, slowly)"
    return f"it is not used on devices of type {device.type}"


def _triton(device: torch.device) -> Engine:
    from deltapack.device.triton_engine import TritonEngine

    return TritonEngine(device)
