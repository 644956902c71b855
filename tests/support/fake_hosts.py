"""Stand-ins for what deltapack uses of vLLM and SGLang, with the names and arguments that `support.hooks` has checked in their sources."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

__all__ = ["LoadConfig", "ModelConfig", "install_sglang", "install_vllm", "vllm_config"]


@dataclass
class LoadConfig:
    load_format: str = "auto"
    model_loader_extra_config: Any = field(default_factory=dict)


@dataclass
class ModelConfig:
    model: str
    revision: str | None = None
    quantization: str | None = None
    hf_config: Any = field(default_factory=SimpleNamespace)


def vllm_config(model: str, load: LoadConfig | None = None, **options: Any) -> Any:
    return SimpleNamespace(model_config=ModelConfig(model, **options), load_config=load or LoadConfig())


class DefaultModelLoader:
    @dataclass
    class Source:
        model_or_path: str
        revision: str | None
        subfolder: str | None = None
        prefix: str = ""
        fall_back_to_pt: bool = True
        allow_patterns_overrides: list[str] | None = None
        is_unused_weight: Any = None

    def __init__(self, load_config: LoadConfig) -> None:
        unexpected = load_config.model_loader_extra_config.keys() - {"enable_multithread_load", "num_threads", "enable_weights_track"}
        if unexpected:
            raise ValueError(f"Unexpected extra config keys for load format {load_config.load_format}: {unexpected}")
        self.load_config, self.local_expert_ids = load_config, None

    def _prepare_weights(
        self,
        model_name_or_path: str,
        subfolder: str | None,
        revision: str | None,
        fall_back_to_pt: bool,
        allow_patterns_overrides: list[str] | None,
    ) -> tuple[str, list[str], bool, str]:
        if self.load_config.load_format != "hf":
            raise ValueError(f"Unknown load_format: {self.load_config.load_format}")
        return model_name_or_path, [model_name_or_path], True, ""

    def _get_weights_iterator(self, source: Source) -> Iterator[tuple[str, torch.Tensor]]:
        _, files, *_ = self._prepare_weights(source.model_or_path, None, None, True, None)
        return ((source.prefix + name, tensor) for file in files for name, tensor in load_file(file).items())

    def get_all_weights(self, model_config: ModelConfig, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        unused = getattr(model, "is_unused_checkpoint_weight", None)
        yield from self._get_weights_iterator(self.Source(model_config.model, model_config.revision, is_unused_weight=unused))
        for source in getattr(model, "secondary_weights", ()):
            yield from self._get_weights_iterator(source)


def should_skip_weight(weight_name: str, local_expert_ids: set[int] | None) -> bool:
    return local_expert_ids is not None and any(
        f".experts.{number}." in weight_name for number in range(9) if number not in local_expert_ids
    )


class WeightTransferEngine:
    supports_draft_weight_update = True
    init_info_cls: Any
    update_info_cls: Any

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        self.config, self.vllm_config, self.device, self.model = config, vllm_config, device, model


class WeightTransferEngineFactory:
    _registry: ClassVar[dict[str, Any]] = {}

    @classmethod
    def register_engine(cls, name: str, module_path_or_cls: str, class_name: str | None = None) -> None:
        if name in cls._registry:
            raise ValueError(f"Weight transfer engine '{name}' is already registered.")
        cls._registry[name] = (module_path_or_cls, class_name)


class _Groups:
    """Groups of one process."""

    world_size = 1
    cpu_group = None


def _modules(monkeypatch: pytest.MonkeyPatch, contents: dict[str, dict[str, Any]], room: str) -> None:
    """Put modules in the place of a host's, and have deltapack's room for it read anew."""
    for name, content in contents.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            path = ".".join(parts[:length])
            if path not in sys.modules or path == name:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
            if length > 1:
                monkeypatch.setattr(sys.modules[path.rpartition(".")[0]], parts[length - 1], sys.modules[path], raising=False)
        vars(sys.modules[name]).update(content)
    for name in [name for name in sys.modules if name.startswith(f"deltapack.integrations.{room}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda heard, said, group: heard.__setitem__(0, said))


def install_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Install a vLLM; return its load formats."""
    formats: dict[str, Any] = {}
    factory = type("WeightTransferEngineFactory", (WeightTransferEngineFactory,), {"_registry": {}})
    contents: dict[str, dict[str, Any]] = {
        "vllm.model_executor.model_loader": {
            "_LOAD_FORMAT_TO_MODEL_LOADER": formats,
            "register_model_loader": lambda load_format: lambda made: formats.setdefault(load_format, made),
        },
        "vllm.model_executor.model_loader.default_loader": {"DefaultModelLoader": DefaultModelLoader},
        "vllm.model_executor.model_loader.ep_weight_filter": {"should_skip_weight": should_skip_weight},
        "vllm.distributed.parallel_state": {"get_tp_group": _Groups, "get_pp_group": _Groups},
        "vllm.distributed.weight_transfer.factory": {"WeightTransferEngineFactory": factory},
        "vllm.distributed.weight_transfer.base": {
            "WeightTransferEngine": WeightTransferEngine,
            "WeightTransferInitInfo": type("WeightTransferInitInfo", (), {}),
            "WeightTransferUpdateInfo": type("WeightTransferUpdateInfo", (), {}),
        },
    }
    _modules(monkeypatch, contents, "vllm")
    return formats


def install_sglang(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Install an SGLang whose server was started with a model."""
    contents: dict[str, dict[str, Any]] = {
        "sglang.srt.distributed.parallel_state": {"get_tp_group": _Groups, "get_pp_group": _Groups},
        "sglang.srt.runtime_context": {"get_server_args": lambda: SimpleNamespace(model_path=model, revision=None)},
    }
    _modules(monkeypatch, contents, "sglang")
