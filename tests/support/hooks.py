"""What deltapack uses of hosts, as their sources have it: which file, which name, which arguments."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HOOKS", "Hook", "found_in"]


@dataclass(frozen=True)
class Hook:
    """A name in a file of a host.

    Attributes:
        file: Path from the folder that holds the package.
        name: Its name, with that of its class.
        arguments: Those of a function, as far as deltapack relies on them; of anything else none.
    """

    file: str
    name: str
    arguments: tuple[str, ...] | None = None


_LOADER, _TRANSFER = "vllm/model_executor/model_loader", "vllm/distributed/weight_transfer"
_SGLANG, _TRL, _VERL = "sglang/srt", "trl/experimental/async_grpo", "verl/checkpoint_engine/base.py"
_PREPARE = ("self", "model_name_or_path", "subfolder", "revision", "fall_back_to_pt", "allow_patterns_overrides")
_SOURCE = ("model_or_path", "revision", "subfolder", "prefix", "fall_back_to_pt", "allow_patterns_overrides", "is_unused_weight")
HOOKS = (
    Hook(f"{_LOADER}/__init__.py", "register_model_loader", ("load_format",)),
    Hook(f"{_LOADER}/__init__.py", "_LOAD_FORMAT_TO_MODEL_LOADER"),
    Hook(f"{_LOADER}/default_loader.py", "DefaultModelLoader.__init__", ("self", "load_config")),
    Hook(f"{_LOADER}/default_loader.py", "DefaultModelLoader.get_all_weights", ("self", "model_config", "model")),
    Hook(f"{_LOADER}/default_loader.py", "DefaultModelLoader._get_weights_iterator", ("self", "source")),
    Hook(f"{_LOADER}/default_loader.py", "DefaultModelLoader._prepare_weights", _PREPARE),
    *(Hook(f"{_LOADER}/default_loader.py", f"DefaultModelLoader.Source.{name}") for name in _SOURCE),
    Hook(f"{_LOADER}/ep_weight_filter.py", "should_skip_weight", ("weight_name", "local_expert_ids")),
    Hook("vllm/config/load.py", "LoadConfig.load_format"),
    Hook("vllm/config/load.py", "LoadConfig.model_loader_extra_config"),
    Hook("vllm/config/parallel.py", "ParallelConfig.worker_extension_cls"),
    Hook("vllm/plugins/__init__.py", "DEFAULT_PLUGINS_GROUP"),
    Hook("vllm/distributed/parallel_state.py", "get_tp_group", ()),
    Hook("vllm/distributed/parallel_state.py", "get_pp_group", ()),
    Hook("vllm/distributed/parallel_state.py", "GroupCoordinator.cpu_group"),
    Hook("vllm/v1/worker/gpu_worker.py", "Worker.get_model", ("self",)),
    Hook("vllm/v1/worker/gpu_model_runner.py", "GPUModelRunner.reload_weights", ("self", "weights_iterator")),
    Hook(f"{_TRANSFER}/factory.py", "WeightTransferEngineFactory.register_engine", ("cls", "name", "module_path_or_cls", "class_name")),
    Hook(f"{_TRANSFER}/factory.py", "WeightTransferEngineFactory._registry"),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferInitInfo"),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferUpdateInfo"),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferEngine.__init__", ("self", "config", "vllm_config", "device", "model")),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferEngine.init_transfer_engine", ("self", "init_info")),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferEngine.start_weight_update", ("self",)),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferEngine.receive_weights", ("self", "update_info")),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferEngine.finish_weight_update", ("self",)),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferEngine.shutdown", ("self",)),
    Hook(f"{_TRANSFER}/base.py", "WeightTransferEngine.supports_draft_weight_update"),
    Hook(f"{_SGLANG}/arg_groups/fields/model.py", "Model.custom_weight_loader"),
    Hook(f"{_SGLANG}/utils/common.py", "dynamic_import", ("func_path",)),
    Hook(f"{_SGLANG}/runtime_context.py", "get_server_args", ()),
    Hook(f"{_SGLANG}/distributed/parallel_state.py", "get_tp_group", ()),
    Hook(f"{_SGLANG}/distributed/parallel_state.py", "get_pp_group", ()),
    Hook(f"{_SGLANG}/entrypoints/engine.py", "Engine.update_weights_from_tensor", ("self", "named_tensors", "load_format")),
    Hook(f"{_SGLANG}/entrypoints/engine.py", "Engine.begin_weight_update", ("self",)),
    Hook(f"{_SGLANG}/entrypoints/engine.py", "Engine.end_weight_update", ("self",)),
    Hook(f"{_TRL}/async_grpo_trainer.py", "AsyncGRPOTrainer.__init__", ("self", "weight_transfer")),
    *(
        Hook(f"{_TRL}/async_grpo_trainer.py", f"WeightTransferProtocol.{name}", ("self", *more))
        for name, *more in (("init_weight_transfer",), ("pause",), ("send_weights", "iterator"), ("resume",), ("destroy",))
    ),
    Hook(f"{_TRL}/vllm_client.py", "VLLMClient.wait_for_server_ready", ("self",)),
    Hook(f"{_TRL}/vllm_client.py", "VLLMClient.init_weight_transfer_engine", ("self", "init_info")),
    Hook(f"{_TRL}/vllm_client.py", "VLLMClient.update_weights", ("self", "update_info")),
    *(Hook(f"{_TRL}/vllm_client.py", f"VLLMClient.{name}", ("self",)) for name in ("pause", "resume", "start_weight_update")),
    Hook(f"{_TRL}/vllm_client.py", "VLLMClient.finish_weight_update", ("self",)),
    Hook(_VERL, "CheckpointEngineRegistry.register", ("backend",)),
    Hook(_VERL, "CheckpointEngine.wire_format"),
    Hook(_VERL, "CheckpointEngine.prepare", ("self",)),
    Hook(_VERL, "CheckpointEngine.build_topology", ("cls", "actor_wg_world_size", "rollout_world_size", "metadata")),
    Hook(_VERL, "CheckpointEngine.init_process_group", ("self",)),
    Hook(_VERL, "CheckpointEngine.finalize", ("self",)),
    Hook(_VERL, "CheckpointEngine.send_weights", ("self", "weights", "global_steps")),
    Hook(_VERL, "CheckpointEngine.receive_weights", ("self", "global_steps")),
)


def found_in(folder: Path, hook: Hook) -> str | None:
    """Return what is wrong with a hook in the folder that holds the host's package; none where it is as expected."""
    file = folder / hook.file
    if not file.is_file():
        return "there is no such file"
    body, node = ast.parse(file.read_text("utf-8")).body, None
    for part in hook.name.split("."):
        node = next((one for one in body if part in _names(one)), None)
        if node is None:
            return f"there is no {part!r}"
        body = node.body if isinstance(node, ast.ClassDef) else []
    if hook.arguments is None:
        return None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return "it is no function"
    given = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    missing = [name for name in hook.arguments if name not in given]
    needed = given[: len(node.args.posonlyargs) + len(node.args.args) - len(node.args.defaults)]
    more = [name for name in needed if name not in hook.arguments] if hook.name.rpartition(".")[2] != "__init__" else []
    return f"its arguments are {', '.join(given)}" if missing or more else None


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
