"""The load format `deltapack`: vLLM loads base + packs as it loads a checkpoint, and none is written.

    vllm serve BASE --load-format deltapack --model-loader-extra-config '{"packs": [{"path": "math.dpk", "weight": 1.0}]}'

The base is the folder that vLLM resolves for BASE, local or in the cache. Each tensor is made when vLLM's model asks for the next one, so
names, fusing, tensor parallelism and types are vLLM's own work, as they are for the checkpoint that `deltapack apply` writes.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from typing import Any

import torch
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from deltapack.errors import RecipeError, UnsupportedError
from deltapack.live.wanted import KEYS, Wanted, restored_weights

__all__ = ["DeltapackModelLoader", "wanted_at_start"]

_EXTRA = "--model-loader-extra-config"


def wanted_at_start(load_config: Any) -> Wanted:
    """Return the packs that a server of this load format is started with.

    Raises:
        RecipeError: They are not named as they should be.
    """
    extra = load_config.model_loader_extra_config
    if not isinstance(extra, dict):
        raise RecipeError(f"{_EXTRA} is no object of JSON", expected='{"packs": ["math.dpk"]}', found=repr(extra)[:60])
    return Wanted.parse({key: value for key, value in extra.items() if key in KEYS}, _EXTRA)


class DeltapackModelLoader(DefaultModelLoader):  # type: ignore[misc]
    """Loads base + packs; without packs, the base."""

    def __init__(self, load_config: Any) -> None:
        self.wanted = wanted_at_start(load_config)
        own = copy.copy(load_config)
        # vLLM's loader reads the format once more, to choose among the files of a folder.
        own.load_format = "hf"
        own.model_loader_extra_config = {key: value for key, value in load_config.model_loader_extra_config.items() if key not in KEYS}
        super().__init__(own)
        self._model: str | None = None

    def get_all_weights(self, model_config: Any, model: torch.nn.Module) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Yield names and tensors of base + packs, then what the model takes from elsewhere.

        Raises:
            DeltapackError: Base and packs do not fit, or are damaged; or the checkpoint is quantised.
        """
        quantised = model_config.quantization
        if quantised is not None and self.wanted.packs and _is_of_checkpoint(model_config):
            hint = "Serve the folder that `deltapack apply` writes."
            raise UnsupportedError(
                "the checkpoint is quantised, and its layers are loaded together", found=f"quantization {quantised}", hint=hint
            )
        self._model = model_config.model
        yield from super().get_all_weights(model_config, model)

    def _get_weights_iterator(self, source: Any) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Yield the tensors of a source: made of base and packs, if it is the model itself."""
        if source.model_or_path != self._model or source.subfolder is not None or not self.wanted.packs:
            yield from super()._get_weights_iterator(source)
            return
        folder, *_ = self._prepare_weights(
            source.model_or_path, source.subfolder, source.revision, source.fall_back_to_pt, source.allow_patterns_overrides
        )
        unused = source.is_unused_weight or (lambda name: False)
        for name, tensor in restored_weights(folder, self.wanted, skip=lambda name: self._is_skipped(name) or unused(name)):
            yield source.prefix + name, tensor

    def _is_skipped(self, name: str) -> bool:
        """Whether it is of an expert that other ranks have."""
        return bool(should_skip_weight(name, self.local_expert_ids))


def _is_of_checkpoint(model_config: Any) -> bool:
    """Whether the checkpoint itself is quantised, and not its layers by vLLM as they are loaded."""
    return getattr(model_config.hf_config, "quantization_config", None) is not None
