"""One rank of a vLLM on the CPU: its own model classes and loaders, without its engine. `test_real_vllm.py` starts it.

Usage: serve_on_cpu.py FOLDER RANK RANKS PORT, where FOLDER holds `base`, `applied`, `tuned`, `p.dpk` and `exact.dpk`. It prints JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

Bits = dict[str, bytes]


def bits(model: Any) -> Bits:
    """What parameters hold."""
    return {name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in model.named_parameters()}


def main(folder: Path, rank: int, ranks: int, port: int) -> dict[str, bool]:
    """Load, put packs on, and take them off; return what was as it must be."""
    if importlib.util.find_spec("vllm._C") is None:  # compiled for CUDA; nothing of it is called here
        sys.modules["vllm._C"] = ModuleType("vllm._C")
    from vllm.config import CompilationConfig, DeviceConfig, LoadConfig, ModelConfig, ParallelConfig, VllmConfig, set_current_vllm_config
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    from deltapack.integrations.vllm.plugin import register
    from deltapack.integrations.vllm.worker import DeltapackWorker

    register()
    register()

    def config_of(name: str) -> Any:
        return ModelConfig(model=str(folder / name), dtype="bfloat16", enforce_eager=True, skip_tokenizer_init=True)

    parallel = ParallelConfig(tensor_parallel_size=ranks, distributed_executor_backend="external_launcher" if ranks > 1 else None)
    device, compiling = DeviceConfig(device="cpu"), CompilationConfig(mode=0)
    config = VllmConfig(model_config=config_of("base"), parallel_config=parallel, device_config=device, compilation_config=compiling)

    def made(name: str, **load: Any) -> Any:
        config.compilation_config.static_forward_context.clear()
        with set_default_torch_dtype(torch.bfloat16), torch.device("cpu"):
            model = initialize_model(vllm_config=config, model_config=config.model_config)
        get_model_loader(LoadConfig(use_tqdm_on_load=False, **load)).load_weights(model, config_of(name))
        return model

    packs = {str(folder / "p.dpk"): 1.0}
    out: dict[str, bool] = {}
    with set_current_vllm_config(config):
        init_distributed_environment(ranks, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(ranks)
        model = made("base")
        base, applied = bits(model), bits(made("applied"))
        out["packs change it"] = base != applied
        out["load format"] = bits(made("base", load_format="deltapack", model_loader_extra_config={"packs": packs})) == applied
        worker: Any = type("Worker", (DeltapackWorker,), {"get_model": lambda self: model})()
        worker.vllm_config, worker.model_runner = config, object()
        out["nothing is refused"] = worker.deltapack_status()["refused"] == {}
        worker.deltapack_activate(packs)
        out["activate"] = bits(model) == applied
        worker.deltapack_deactivate()
        out["deactivate"] = bits(model) == base
        worker.deltapack_follow([str(folder / "exact.dpk")])
        out["follow"] = bits(model) == bits(made("tuned"))
        worker.deltapack_deactivate()
        engine = WeightTransferEngineFactory.create_engine(WeightTransferConfig(backend="deltapack"), config, torch.device("cpu"), model)
        engine.init_transfer_engine(engine.parse_init_info({}))
        engine.receive_weights(engine.parse_update_info({"packs": packs}))
        out["weight transfer"] = bits(model) == applied
        engine.receive_weights(engine.parse_update_info({}))
        out["and back"] = bits(model) == base
    return out


if __name__ == "__main__":
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_TARGET_DEVICE": "cpu"}
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))))
