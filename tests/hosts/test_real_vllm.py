"""Packs on models of an installed vLLM, on the CPU: its own classes and loaders, alone and in two slices."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import deltapack

pytestmark = pytest.mark.hosts
SCRIPT = Path(__file__).with_name("serve_on_cpu.py")
SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2},
    **{"vocab_size": 101, "max_position_embeddings": 64},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SMALL),
    "tied": ("Qwen2", SMALL | {"tie_word_embeddings": True}),
    "fused": ("Phi3", SMALL | {"pad_token_id": 0}),
    "experts": ("Qwen3Moe", SMALL | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}


@functools.cache
def why_not() -> str:
    """Why vLLM cannot be imported here; nothing where it can."""
    code = "import sys, types; sys.modules.setdefault('vllm._C', types.ModuleType('vllm._C')); import vllm.model_executor.models.llama"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def write_models(folder: Path, kind: str) -> None:
    import transformers

    name, settings = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(folder / "tuned")
    deltapack.compress(folder / "base", folder / "tuned", folder / "p.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.compress(folder / "base", folder / "tuned", folder / "exact.dpk", recipe=deltapack.Recipe(exact=True))
    deltapack.apply(folder / "base", folder / "p.dpk", folder / "applied")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_models_of_vllm(kind: str, ranks: int, tmp_path: Path) -> None:
    if why_not():
        pytest.skip(f"vllm cannot be imported here: {why_not()}")
    write_models(tmp_path, kind)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = [[sys.executable, str(SCRIPT), str(tmp_path), str(rank), str(ranks), str(port)] for rank in range(ranks)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        found = json.loads(out.strip().rpartition("\n")[2])
        assert found and all(found.values()), found
