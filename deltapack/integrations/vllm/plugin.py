"""What vLLM calls in each of its processes: it makes the load format and the backend of weight transfer known."""

from __future__ import annotations

__all__ = ["NAME", "register"]

NAME = "deltapack"
"""The load format, and the backend of weight transfer."""


def register() -> None:
    """Make vLLM know packs; called again it does nothing."""
    from vllm import model_executor  # noqa: F401  # before its loaders, which import one another in a circle otherwise
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor import model_loader

    from deltapack.integrations.vllm.loader import DeltapackModelLoader

    if model_loader._LOAD_FORMAT_TO_MODEL_LOADER.get(NAME) is not DeltapackModelLoader:
        model_loader.register_model_loader(NAME)(DeltapackModelLoader)
    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, "deltapack.integrations.vllm.transfer", "DeltapackWeightTransferEngine")
