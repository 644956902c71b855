"""What vLLM calls in each of its processes: it makes the load format and the backend of weight transfer known."""

from __future__ import annotations

import logging

__all__ = ["NAME", "register"]

NAME = "deltapack"
"""The load format, and the backend of weight transfer."""
_LOG = logging.getLogger(__name__)


def register() -> None:
    """Make vLLM know packs; called again it does nothing.

    vLLM calls this whether packs are wanted or not. So a version that lacks what is used here is told of in the log, and starts without.
    """
    for what, make in (("load format", _load_format), ("backend of weight transfer", _weight_transfer)):
        try:
            make()
        except (ImportError, AttributeError) as error:
            _LOG.warning("the %s %r is not there, as this vLLM is another one than deltapack was made for (0.33.0): %s", what, NAME, error)


def _load_format() -> None:
    from vllm.model_executor import model_loader

    from deltapack.integrations.vllm.loader import DeltapackModelLoader

    if model_loader._LOAD_FORMAT_TO_MODEL_LOADER.get(NAME) is not DeltapackModelLoader:
        model_loader.register_model_loader(NAME)(DeltapackModelLoader)


def _weight_transfer() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, "deltapack.integrations.vllm.transfer", "DeltapackWeightTransferEngine")
