"""`adapter_config.json` of an exported LoRA: alpha is the rank everywhere, so that factors count as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from deltapack.checkpoint import config_of
from deltapack.exporting.modules import Modules
from deltapack.exporting.opening import Opened
from deltapack.exporting.routing import Factored, Routes

__all__ = ["adapter_config", "shortest_names"]


def adapter_config(opened: Opened, routes: Routes, ranks: Mapping[Factored, int], modules: Modules) -> dict[str, Any]:
    """Return the settings that PEFT reads.

    Args:
        opened: Pack and base.
        routes: What becomes of tensors.
        ranks: Rank of each weight with factors.
        modules: The modules of the model.
    """
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 8
    names = [item.module for item in ranks]
    patterns = {_pattern(item.module, names): rank for item, rank in ranks.items() if rank != usual}
    targets = shortest_names(names, modules.kinds.keys())
    return {
        "alpha_pattern": patterns,
        "auto_mapping": None,
        "base_model_name_or_path": opened.named.repo or str(opened.named.folder.resolve()),
        "bias": "all" if routes.biases else "none",
        "fan_in_fan_out": any(item.kind == "turned" for item in ranks),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(routes.saved) or None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": patterns,
        "revision": opened.named.revision if opened.named.repo else None,
        "target_modules": targets,
        "task_type": _task(opened),
        "use_dora": False,
        "use_rslora": False,
    }


def shortest_names(wanted: Collection[str], known: Collection[str]) -> list[str]:
    """Return names for `target_modules`: ends of names where all modules with that end are wanted, else whole names.

    >>> shortest_names(["h.0.up", "h.1.up", "h.0.down"], ["h", "h.0", "h.1", "h.0.up", "h.1.up", "h.0.down", "h.1.down"])
    ['h.0.down', 'up']
    """
    held = set(wanted)
    ends = Counter(name.rpartition(".")[2] for name in known)
    own = Counter(name.rpartition(".")[2] for name in held)
    return sorted({end if own[end] == ends[end] else name for name in held for end in (name.rpartition(".")[2],)})


def _pattern(module: str, names: Collection[str]) -> str:
    """Return the expression that PEFT finds a module by; whole names end others only where one model lies in another."""
    return f"^{module}" if any(name.endswith(f".{module}") for name in names) else module


def _task(opened: Opened) -> str | None:
    """Return PEFT's word for a language model; of other tasks PEFT adds modules by itself, so nothing is said."""
    found = config_of(opened.restored).get("architectures")
    first = str(found[0]) if isinstance(found, list) and found else ""
    return "CAUSAL_LM" if first.endswith(("ForCausalLM", "LMHeadModel")) and "Double" not in first else None
