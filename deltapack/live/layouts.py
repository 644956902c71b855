"""A model in memory whose tensors lie in another layout than those that packs speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deltapack.checkpoint import TensorInfo
from deltapack.composing.arranged import agreed_arrangements
from deltapack.device.fused import holder_of
from deltapack.device.model_tensors import ModelTensors
from deltapack.errors import UnsupportedError
from deltapack.format.reader import PackReader

__all__ = ["arranged_model"]


def arranged_model(model: ModelTensors, packs: Sequence[PackReader]) -> ModelTensors:
    """Return a model as the base of packs: what they make of others it must hold itself, in the layout of the fine-tune.

    Raises:
        MergeConflictError: The packs make different tensors of the same base.
        UnsupportedError: The model holds the base in another layout than the packs want.
    """
    wanted = agreed_arrangements(packs)
    tensors = dict(model.tensors)
    for name, arrangement in wanted.items():
        held = tensors.get(name)
        if held is None or held.shape != arrangement.shape:
            raise UnsupportedError(
                "the pack is of a fine-tune in another layout: it makes this tensor of others, which a live model cannot",
                path=packs[0].path,
                tensor=name,
                expected=f"a model that holds it, {list(arrangement.shape)}",
                found=f"a model of the base's layout, with {arrangement.label}" if held is None else list(held.shape),
                hint="Build the model with deltapack.load_model, or attach to it without base= if it has the fine-tune's layout.",
            )
        tensors[name] = replace(held, arranged=arrangement)
    for pack in packs:
        for entry in pack.index.entries:
            of = entry.base.name if entry.base is not None and entry.kind != "removed" else None
            if of is not None and model.aliases.get(of, of) not in tensors:
                holder = holder_of(of, _headers(pack), tensors)
                if holder is not None:
                    raise UnsupportedError(
                        "the model holds this tensor of the base fused with others",
                        path=pack.path,
                        tensor=of,
                        expected="a tensor of its own",
                        found=f"{holder!r}, {list(tensors[holder].shape)}",
                        hint="Give the checkpoint that the model was loaded from: attach(model, base).",
                    )
    return replace(model, tensors=tensors) if wanted else model


def _headers(pack: PackReader) -> dict[str, TensorInfo]:
    """Return types and shapes of the base's tensors as a pack states them."""
    bases = (entry.base for entry in pack.index.entries if entry.base is not None)
    return {base.name: TensorInfo(base.name, base.dtype, base.shape, "") for base in bases if base.arranged is None}
