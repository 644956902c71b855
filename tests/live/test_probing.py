"""Loaders that do more than to write elements: the model stays as it was, and is refused in a sentence where it cannot be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltapack.checkpoint import open_checkpoint
from deltapack.errors import UnsupportedError
from deltapack.live.loader_layout import find_served_tensors

Weights = Iterable[tuple[str, torch.Tensor]]


def small() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    with torch.no_grad():
        for number, (name, tensor) in enumerate(held(model).items()):
            if name != "1.num_batches_tracked":
                tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 100 * number)
    return model


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def replacing(model: nn.Module, weights: Weights) -> None:
    for name, tensor in weights:
        module, _, leaf = name.rpartition(".")
        new = tensor if leaf in model.get_submodule(module)._buffers else nn.Parameter(tensor)
        setattr(model.get_submodule(module), leaf, new)


def replacing_half(model: nn.Module, weights: Weights) -> None:
    def half() -> Iterator[tuple[str, torch.Tensor]]:
        for number, item in enumerate(weights):
            if number == 2:
                raise KeyError("half way")
            yield item

    replacing(model, half())


def assigning(model: nn.Module, weights: Weights) -> None:
    model.load_state_dict(dict(weights), strict=False, assign=True)


def swapping(model: nn.Module, weights: Weights) -> None:
    for name, tensor in weights:
        new = torch.zeros(tensor.shape)
        torch.utils.swap_tensors(  # type: ignore[no-untyped-call]
            held(model)[name], nn.Parameter(new) if "weight" in name or "bias" in name else new
        )


def setting_data(model: nn.Module, weights: Weights) -> None:
    for name, tensor in weights:
        held(model)[name].data = torch.ones(tensor.shape)


def deleting(model: nn.Module, weights: Weights) -> None:
    del model[0]  # type: ignore[operator]


@pytest.fixture
def check(tmp_path: Path) -> Callable[[Callable[[nn.Module, Weights], Any]], Any]:
    """Follow a loader; the very tensors of the model are in their places afterwards, with their elements."""

    def follow(load: Callable[[nn.Module, Weights], Any]) -> Any:
        model = small()
        base = tmp_path / "base.safetensors"
        save_file({name: tensor.detach() for name, tensor in held(model).items() if tensor.dim()}, base, {"format": "pt"})
        before = {name: (id(tensor), tensor.detach().clone()) for name, tensor in held(model).items()}
        try:
            with open_checkpoint(base) as checkpoint:
                return find_served_tensors(model, checkpoint, lambda weights: load(model, weights))
        finally:
            assert {name: id(tensor) for name, tensor in held(model).items()} == {name: known for name, (known, _) in before.items()}
            for name, (_, elements) in before.items():
                assert held(model)[name].device.type == "cpu" and torch.equal(held(model)[name], elements)

    return follow


@pytest.mark.parametrize("load", [replacing, assigning, swapping, setting_data, deleting], ids=lambda load: load.__name__)
def test_tensors_that_a_loader_replaces_are_put_back(load: Any, check: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"the model's own loader replaces tensors of the model\. They are back; serve"):
        check(load)


def test_so_they_are_after_an_error_half_way(check: Any) -> None:
    with pytest.raises(UnsupportedError, match="cannot be followed: found KeyError: 'half way'"):
        check(replacing_half)


def test_writes_to_lists_of_tensors(check: Any) -> None:
    """They were run on the model's own memory."""

    def copies(model: nn.Module, weights: Weights) -> None:
        rows = list(weights)
        torch._foreach_copy_([held(model)[name].data for name, _ in rows], [tensor for _, tensor in rows])

    def doubles(model: nn.Module, weights: Weights) -> None:
        for name, tensor in weights:
            held(model)[name].data.copy_(tensor)
        torch._foreach_mul_([model[0].weight.data, model[0].bias.data], 2)  # type: ignore[index]

    found = check(copies)
    assert set(found.regions) == {"0.weight", "0.bias", "1.running_mean", "1.running_var"} and found.refused == {}
    found = check(doubles)
    assert set(found.regions) == {"1.running_mean", "1.running_var"}
    assert found.refused == dict.fromkeys(("0.weight", "0.bias"), "the loader computes what the model holds from it")
