"""deltapack in SGLang: a custom weight loader that puts packs on a running server, in place and in slices.

    python -m sglang.launch_server --model-path BASE --custom-weight-loader deltapack.integrations.sglang.load

    engine.begin_weight_update()
    engine.update_weights_from_tensor(deltapack.integrations.sglang.request({"math.dpk": 1.0}), load_format=LOADER)
    engine.end_weight_update()

SGLang calls `load` in every process of tensor parallelism. A request is one small tensor that names packs, which are read there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from deltapack.errors import RecipeError
from deltapack.format.reader import PackReader
from deltapack.live.served import ServedModel, among
from deltapack.live.wanted import Wanted
from deltapack.sources.hub import find_base

__all__ = ["LOADER", "TENSOR", "load", "request"]

LOADER = "deltapack.integrations.sglang.load"
"""What `--custom-weight-loader` and `load_format` name."""
TENSOR = "deltapack"
"""What the tensor is called that names packs."""
_SERVED = "_deltapack_served"
"""The attribute of a model that was made ready; what refers to the model lives and ends with it."""


def request(packs: Any = (), *, chain: Iterable[str | Path] = (), base: str | Path | None = None) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors that ask a server for packs, for a chain, or, without either, for the base.

    Packs are opened here, because an error in a custom weight loader ends a server of SGLang.

    Args:
        packs: Weights of packs by path, or a list of packs; paths as the server sees them.
        chain: Packs that follow one another.
        base: The checkpoint that the server was started with, where it is not found by the server's own name for it.

    Raises:
        FormatError: A pack is damaged, or none.
        RecipeError: Both are given, or are none.
    """
    links = [str(path) for path in chain]
    said = {"chain": links} if links else {"packs": packs}
    if links and packs:
        raise RecipeError("packs and a chain are given", expected="one of them")
    wanted = Wanted.parse(said, "the request")
    for path in wanted.packs:
        with PackReader(path):
            pass
    text = {"packs" if not wanted.chain else "chain": [{"path": str(path), "weight": weight} for path, weight in wanted.packs.items()]}
    data = json.dumps(text | ({} if base is None else {"base": str(base)})).encode()
    return [(TENSOR, torch.frombuffer(bytearray(data), dtype=torch.uint8))]


def load(model: torch.nn.Module, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Put the packs of a request on a model; SGLang calls this.

    Raises:
        DeltapackError: In all processes; nothing was changed.
    """
    tensors = dict(named_tensors)
    if tensors.keys() != {TENSOR}:
        hint = "Make the tensors with deltapack.integrations.sglang.request."
        raise RecipeError(
            "this is no request for packs", expected=f"one tensor {TENSOR!r}", found=", ".join(tensors)[:60] or "none", hint=hint
        )
    try:
        said = json.loads(bytes(tensors[TENSOR].cpu().to(torch.uint8).tolist()))
        base = said.pop("base", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise RecipeError("the request for packs is no object of JSON", found=str(error)) from error
    wanted = Wanted.parse(said, "the request")
    if _SERVED not in vars(model):
        vars(model)[_SERVED] = _serve(model, base)
    served: ServedModel = vars(model)[_SERVED]
    if not wanted.packs:
        served.deactivate()
    elif wanted.chain:
        served.follow(list(wanted.packs))
    else:
        served.activate(wanted.packs)


def _serve(model: Any, base: str | None) -> ServedModel:
    """Make a model of SGLang ready for packs."""
    from sglang.srt.distributed.parallel_state import get_pp_group, get_tp_group
    from sglang.srt.runtime_context import get_server_args

    args = get_server_args()
    return ServedModel(
        model,
        lambda: find_base(base or args.model_path, None if base else args.revision).folder,
        model.load_weights,
        exchange=lambda said: among((get_tp_group(), get_pp_group()), said),
    )
