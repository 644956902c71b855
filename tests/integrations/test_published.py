"""A pack that was pushed loads by plain `from_pretrained`, from its repository and from the folder that `pull` makes: apply's bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hub import Repo, asks, served
from support.languages import save_tokenizer

import deltapack

transformers = pytest.importorskip("transformers")
hooks = pytest.importorskip("deltapack.integrations.transformers")
if not hasattr(transformers.quantizers.base.HfQuantizer, "get_new_dtype"):
    pytest.skip("this transformers has not the hooks", allow_module_level=True)


def bits_of(model: Any) -> dict[str, bytes]:
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_a_pushed_pack_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **sizes)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-2 * torch.randn(parameter.shape).to(parameter.dtype))
    model.save_pretrained(tmp_path / "tuned")
    save_tokenizer(tmp_path / "tuned")
    pack = tmp_path / "math.dpk"
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", pack, recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.apply(tmp_path / "base", pack, tmp_path / "applied")
    wanted = bits_of(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "applied"))
    with served() as hub:
        asks(monkeypatch, hub, tmp_path / "cache")
        repo = hub.repos["org/base"] = Repo()
        repo.commit({path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
        report = deltapack.push(pack, "me/math", base="org/base")
        repo.commit({"model.safetensors": b"of another commit"})
        deltapack.pull("me/math", tmp_path / "pulled")
        for place in (tmp_path / "pulled", "me/math"):
            loaded = transformers.AutoModelForCausalLM.from_pretrained(place)
            assert bits_of(loaded) == wanted
            assert transformers.AutoTokenizer.from_pretrained(place)("abc")["input_ids"]
        assert 'AutoModelForCausalLM.from_pretrained("me/math")' in report.card
