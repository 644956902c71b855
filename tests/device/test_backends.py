"""Which backend is chosen, and that one that cannot run says why."""

from __future__ import annotations

import pytest
import torch
from support.interpreting import DEVICE

from deltapack.device import backends
from deltapack.device.backends import choose, resolve_device
from deltapack.errors import BackendError, RecipeError

CPU = torch.device("cpu")


def test_auto_takes_numba_on_the_cpu() -> None:
    choice = choose("auto", CPU)
    assert (choice.name, choice.engine) == ("cpu", None) and str(choice) == "cpu: the tensors are on the CPU"


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_an_explicit_choice_is_kept(name: str) -> None:
    """On the device of the tests: kernels stay interpreted, or compiled, as they were when they were first imported."""
    if name == "triton":
        pytest.importorskip("triton")
    engine = choose(name, resolve_device(DEVICE)).engine
    assert engine is not None and engine.name == name


def test_triton_without_its_interpreter_does_not_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"the tensors are on the CPU.*TRITON_INTERPRET"):
        choose("triton", CPU)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"triton is not installed.*pip install triton"):
        choose("triton", CPU)
    choice = choose("auto", torch.device("meta"))
    assert (choice.name, choice.reason) == ("torch", "triton is not installed")


def test_auto_elsewhere_takes_torch() -> None:
    pytest.importorskip("triton")
    choice = choose("auto", torch.device("mps"))
    assert choice.name == "torch" and "mps" in choice.reason


def test_the_cpu_backend_stays_on_the_cpu() -> None:
    with pytest.raises(BackendError, match="runs on the CPU only: found device meta"):
        choose("cpu", torch.device("meta"))


def test_an_unknown_backend() -> None:
    with pytest.raises(BackendError, match="expected one of auto, cpu, torch, triton, found cudnn"):
        choose("cudnn", CPU)


def test_devices() -> None:
    assert resolve_device(None) == resolve_device("cpu") == CPU
    for name in ("cuda:99", "xpu"):
        with pytest.raises(BackendError, match=r"this device cannot be used: (this torch|torch (sees|has)|the GPUs here)"):
            resolve_device(name)
    for name in ("nonsense", "", "cuda:x", "cuda:-1"):
        with pytest.raises(RecipeError, match=f"not the name of a device: expected cpu, cuda, cuda:N or another of torch, found '{name}'"):
            resolve_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_takes_triton_on_a_gpu() -> None:
    assert choose("auto", resolve_device("cuda")).name == "triton"
