"""Methods of vLLM's workers that put packs on a running server.

    vllm serve BASE --worker-extension-cls deltapack.integrations.vllm.worker.DeltapackWorker

    llm.collective_rpc("deltapack_activate", kwargs={"packs": {"math.dpk": 0.5, "code.dpk": 0.5}})
    llm.collective_rpc("deltapack_deactivate")
    llm.reset_prefix_cache()

vLLM runs them in every worker, between steps. They succeed in all workers of the engine, or change nothing in any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltapack.checking import as_items
from deltapack.errors import RecipeError, UnsupportedError
from deltapack.live.served import ServedModel, among
from deltapack.live.wanted import Wanted, restored_weights
from deltapack.sources.hub import find_base

__all__ = ["DeltapackWorker", "exchange", "serve"]

_CACHES = ("reset_lora_state", "reset_encoder_cache", "reset_mm_cache")
"""What a runner of vLLM forgets when its weights change."""


class DeltapackWorker:
    """What is mixed into vLLM's worker class; each method returns a status, which is JSON."""

    def deltapack_activate(
        self, packs: Any, weights: Sequence[float] | None = None, base: str | None = None, **how: Any
    ) -> Mapping[str, Any]:
        """Make the model base + packs, whatever was active before.

        Args:
            packs: A path, a list of paths or of `{"path", "weight"}`, or an object of weights by path; paths as the workers see them.
            weights: Weights of a list of paths.
            base: The checkpoint that the server was started with, where it is not found by the server's own name for it.
            how: As of `LiveModel.activate`: `method`, `density`, `parameters`, `semantics`, `prefer`.

        Raises:
            DeltapackError: In all workers; nothing was changed.
        """
        if weights is not None:
            paths, numbers = as_items("packs", packs, "paths, where weights are given"), as_items("weights", weights, "numbers")
            if len(numbers) != len(paths):
                raise RecipeError("packs and weights are not of one length", expected=len(paths), found=len(numbers))
            packs = [{"path": path, "weight": weight} for path, weight in zip(paths, numbers, strict=True)]
        wanted = Wanted.parse({"packs": packs}, "deltapack_activate")
        return _changed(self, _served(self, base).activate(wanted.packs, **how))

    def deltapack_mix(self, packs: Any, method: str = "ties", **how: Any) -> Mapping[str, Any]:
        """Make the model a merge of packs by a method; see `deltapack_activate`.

        Raises:
            DeltapackError: In all workers; nothing was changed.
        """
        return DeltapackWorker.deltapack_activate(self, packs, method=method, **how)

    def deltapack_follow(self, chain: Sequence[str], base: str | None = None) -> Mapping[str, Any]:
        """Make the model what a chain of packs gives; steps that it has taken are not taken again.

        Raises:
            DeltapackError: In all workers; nothing was changed.
        """
        return _changed(self, _served(self, base).follow(chain))

    def deltapack_deactivate(self) -> Mapping[str, Any]:
        """Bring the base back, bit for bit."""
        served = vars(self).get("_deltapack_served")
        return {"packs": {}, "steps": []} if served is None else _changed(self, served.deactivate())

    def deltapack_reload(self, packs: Any = (), chain: Sequence[str] = (), base: str | None = None) -> Mapping[str, Any]:
        """Load base + packs anew by vLLM's own way of loading: slower than `deltapack_activate`, and for every kind of layer.

        Without packs the base is loaded. What is in place must be the base before `deltapack_activate` works again.

        Raises:
            DeltapackError: Base and packs do not fit; nothing was changed where headers say so, else load once more.
        """
        wanted = Wanted.parse({"chain": chain} if chain else {"packs": packs}, "deltapack_reload")
        served = vars(self).pop("_deltapack_served", None)
        if served is not None:
            served.close()
        self.model_runner.reload_weights(weights_iterator=restored_weights(_base(self.vllm_config.model_config, base), wanted))  # type: ignore[attr-defined]
        return {"packs": {str(path): weight for path, weight in wanted.packs.items()}, "reloaded": True}

    def deltapack_status(self, base: str | None = None) -> Mapping[str, Any]:
        """Return what is active, and what no pack can change, and why.

        Raises:
            DeltapackError: Packs cannot be put on this model.
        """
        return _served(self, base).status()


def serve(model: Any, vllm_config: Any, base: str | None = None) -> ServedModel:
    """Make a model of vLLM ready for packs.

    Raises:
        BaseMismatchError: It does not hold the base.
        RecipeError: The server was started with packs.
        UnsupportedError: The model is quantised, or its loader cannot be followed.
    """
    config = vllm_config.model_config
    if config.quantization is not None:
        hint = "deltapack_reload loads base + packs as vLLM loads a checkpoint; or serve the folder that `deltapack apply` writes."
        found = f"quantization {config.quantization}"
        raise UnsupportedError("quantised layers do not hold the base's elements", path=config.model, found=found, hint=hint)
    if vllm_config.load_config.load_format == "deltapack":
        from deltapack.integrations.vllm.loader import wanted_at_start

        if wanted_at_start(vllm_config.load_config).packs:
            hint = "Start it with the base alone, or use deltapack_reload."
            raise RecipeError("the server was started with packs, and packs are put on the base", path=config.model, hint=hint)
    return ServedModel(model, lambda: _base(config, base), model.load_weights, exchange=exchange)


def exchange(said: Any) -> list[Any]:
    """Give what this worker says to all workers of the engine: those of its tensor and pipeline parallelism."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return among((get_tp_group(), get_pp_group()), said)


def _base(config: Any, base: str | None) -> Path:
    """Return where the base is: what is said, or what the server was started with."""
    return find_base(base).folder if base is not None else find_base(config.model, config.revision).folder


def _served(worker: Any, base: str | None) -> ServedModel:
    """Return the worker's model, made ready when it is first asked for."""
    if "_deltapack_served" not in vars(worker):
        worker._deltapack_served = serve(worker.get_model(), worker.vllm_config, base)
    served: ServedModel = worker._deltapack_served
    return served


def _changed(worker: Any, status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Have the runner forget what the weights before have left."""
    for name in _CACHES:
        reset = getattr(worker.model_runner, name, None)
        if reset is not None:
            reset()
    return status
