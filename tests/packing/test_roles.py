"""Which role each tensor has: golden tables of whole models, and the traps among names."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from deltapack.dtypes import BY_NAME, BY_TORCH, DType
from deltapack.packing.roles import ROLES, SETTABLE, roles_of

GOLDEN = Path(__file__).with_name("roles.json")
WRITTEN = re.compile(r"(\S+) (\w+)\[(.*?)\]")


class Tensor(NamedTuple):
    dtype: DType
    shape: tuple[int, ...]


def table(tensors: dict[str, Any]) -> dict[str, str]:
    """Return roles of tensors given as `name: [dtype, *shape]` or `name: dtype`."""
    given = {name: Tensor(BY_NAME[spec[0]], tuple(spec[1:])) for name, spec in tensors.items()}
    return roles_of(given)


def golden() -> dict[str, dict[str, list[Any]]]:
    return json.loads(GOLDEN.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", ["bert", "clip", "gpt2", "llama", "mamba", "mixtral", "resnet", "whisper"])
def test_the_routing_table_of_a_model(model: str) -> None:
    rows = golden()[model]
    found = table({name: [dtype, *shape] for name, (dtype, shape, _) in rows.items()})
    assert found == {name: role for name, (_, _, role) in rows.items()}
    assert set(found.values()) <= set(ROLES)


class Block(torch.nn.Module):
    """A residual block as torchvision has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(8, 8, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.downsample = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1, bias=False), torch.nn.BatchNorm2d(16))


class ResNet(torch.nn.Module):
    """A ResNet in small, with the names of torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 8, 7, bias=False), torch.nn.BatchNorm2d(8)
        self.layer1 = torch.nn.Sequential(Block())
        self.fc = torch.nn.Linear(16, 40)


def tiny_models() -> dict[str, torch.nn.Module]:
    """Build the models of the golden file from the installed transformers."""
    import transformers as hf

    text: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99}
    vision: dict[str, Any] = {key: text[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    speech: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    pictures = vision | {"image_size": 32, "patch_size": 8}
    return {
        "bert": hf.BertForSequenceClassification(hf.BertConfig(**text | {"num_labels": 10})),
        "clip": hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=pictures, projection_dim=32)),
        "gpt2": hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=99, n_positions=64)),
        "llama": hf.LlamaForCausalLM(hf.LlamaConfig(**text)),
        "mamba": hf.MambaForCausalLM(hf.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=99, state_size=16)),
        "mixtral": hf.MixtralForCausalLM(hf.MixtralConfig(**text, num_local_experts=4, num_key_value_heads=2)),
        "resnet": ResNet(),
        "whisper": hf.WhisperForConditionalGeneration(
            hf.WhisperConfig(
                **speech, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=99, pad_token_id=0, bos_token_id=1, eos_token_id=2
            )
        ),
    }


def golden_of(model: torch.nn.Module) -> dict[str, list[Any]]:
    """Return what the golden file has for a model; each tensor of the state dict once."""
    seen: dict[int, str] = {}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if seen.setdefault(tensor.data_ptr(), name) == name or tensor.numel() == 0:
            tensors[name] = Tensor(BY_TORCH[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
    roles = roles_of(tensors)
    return {name: [tensor.dtype.name, list(tensor.shape), roles[name]] for name, tensor in tensors.items()}


def test_the_golden_models_are_those_of_the_installed_transformers() -> None:
    pytest.importorskip("transformers")
    if int(version("transformers").split(".")[0]) < 5:
        pytest.skip("transformers 4 names experts otherwise")
    assert {name: golden_of(model) for name, model in tiny_models().items()} == golden()


KINDS: list[tuple[str, str]] = [
    ("statistic", "bn.running_var f32[64]"),
    ("statistic", "bn.moving_variance f32[64]"),
    ("statistic", "m.weight_u f32[64], m.weight_v f32[32]"),
    ("statistic", "vq._codebook.embed f32[1, 512, 64], vq._codebook.cluster_size f32[1, 512]"),
    ("statistic", "rope.inv_freq f32[64]"),
    ("statistic", "h.0.attn.bias f32[1, 1, 1024, 1024]"),
    ("statistic", "pos_encoder.pe f32[1, 5000, 64]"),
    ("statistic", "fc.activation_post_process.scale f32[1]"),
    ("statistic", "alphas_cumprod f32[1000], betas f32[1000], sqrt_one_minus_alphas_cumprod f32[1000]"),
    ("integer", "bn.num_batches_tracked i64[]"),
    ("vector", "m.A_log f32[4096, 16], m.D f32[4096], m.dt_bias f32[4096]"),
    ("vector", "logit_scale f32[]"),
    ("vector", "blocks.0.ls1.gamma f32[1024]"),
    ("vector", "cls_token f32[1, 1, 768]"),
    ("vector", "gate.e_score_correction_bias f32[256]"),
    ("vector", "x.k_scale.weight f32[64]"),
    ("weight", "flat f32[1048577]"),
    ("vector", "m.weight_g f32[512, 1], w.q f32[1048576]"),
    ("weight", "m.W_q f32[64, 64], m.W_k f32[64, 64]"),
    ("weight", "wpe.weight f32[1024, 64], embed_positions.weight f32[448, 64]"),
    ("weight", "l.weight f8_e4m3fn[64, 64]"),
    ("quantised", "l.weight f8_e4m3fn[64, 64], l.weight_scale_inv f32[1, 1], l.input_scale f32[]"),
    ("quantised", "e.gate_up_proj f8_e4m3fn[4, 64, 64], e.gate_up_proj_scale f32[4, 1, 1]"),
    ("quantised", "l.qweight i32[8, 64], l.qzeros i32[1, 8], l.scales f16[1, 64], l.g_idx i32[64]"),
    ("quantised", "l.weight u8[512, 1], l.weight.absmax f32[64], l.weight.quant_map f32[16]"),
    ("quantised", "l.weight u8[512, 1], l.weight.quant_state.bitsandbytes__nf4 u8[80], l.weight.nested_absmax f32[4]"),
    ("quantised", "l.weight i8[64, 64], l.SCB f32[64], l.weight_format u8[]"),
    ("quantised", "e.down_proj_blocks u8[4, 64, 2, 16], e.down_proj_scales u8[4, 64, 2]"),
    ("quantised", "l.weight_packed i32[64, 8], l.weight_scale bf16[64, 1], l.weight_shape i64[2]"),
    ("quantised", "l.weight u8[64, 32], l.weight_scale f8_e4m3fn[64, 4], l.weight_scale_2 f32[], l.input_scale f32[]"),
    ("quantised", "l.W_q u8[64, 64], l.scale f16[64, 1], l.zero f16[64, 1]"),
    ("quantised", "l.weight._data i8[64, 64], l.weight._scale f32[64, 1]"),
    ("quantised", "l.weight f8_e4m3fn[64, 64], l.scale_weight f32[], l.scale_input f32[]"),
    ("quantised", "l.weight u32[64, 8], l.scales bf16[64, 1], l.biases bf16[64, 2]"),
    ("quantised", "l.weight f8_e4m3fn[64, 64], l.weights_scaling_factor f32[], l.weight_amax f32[]"),
    ("quantised", "l.weight i8[64, 64], l.weight_offset f32[64], l.dequant_scale f32[64], l.quant_scale f32[64]"),
    ("quantised", "l.weight:qdata i8[64, 64], l.weight:scale f32[64, 2], l.weight:zero_point f32[64, 2]"),
    ("quantised", "l.weight.tensor_impl.int_data i8[64, 64], l.weight.tensor_impl.scale f32[64, 2]"),
    ("quantised", "l.mlp1_weight.blocks u8[4, 64, 32], l.mlp1_weight.scales bf16[4, 64, 4]"),
    ("quantised", "l.qweight i8[64, 32], l.wscales bf16[4, 64], l.wzeros bf16[4, 64]"),
    ("quantised", "l.indices i32[64, 32], l.centroids.weight f16[1, 4096], l.res_centroids.weight f16[1, 4096], l.weight_scale f16[64]"),
    ("quantised", "l.weight i8[64, 64], l.weight_quantizer.scale f32[64, 1]"),
    ("quantised", "e.gate_up_proj f8_e4m3fn[4, 64, 64], e.gate_up_proj_input_scale f32[4], e.gate_up_proj_scale f32[4, 1, 1]"),
    ("quantised", "q/qweight i32[8, 64], q/scales f16[1, 64], a.self_attn.k_scale f32[], a.w13_input_scale f32[4]"),
    ("quantised", "l.B i32[8, 64], l.s f16[1, 64]"),
    ("quantised", "l.qweight i8[64, 32], l.wscales bf16[1, 64], l.weight_scales f16[64]"),
    ("statistic", "bn/running_var f32[64], image_normalizer/mean f32[1, 768], x/inv_freq f32[64]"),
    ("statistic", "vq.codebook.embed_sum f32[2048, 256], vq.codebook.cluster_usage f32[2048], vq.codebook._initialized f32[1]"),
    ("statistic", "normalize_inputs.buffer_state.min f32[14], normalize_inputs.buffer_state.max f32[14]"),
    ("vector", "a.k_scale f32[1], a.logit_scale f32[]"),
]
"""Tensors of one checkpoint as `name type[shape]`, and the role that all of them have."""


@pytest.mark.parametrize(("role", "text"), KINDS)
def test_a_kind_of_tensor(role: str, text: str) -> None:
    tensors = {name: [dtype, *map(int, filter(None, shape.split(", ")))] for name, dtype, shape in WRITTEN.findall(text)}
    assert table(tensors) == dict.fromkeys(tensors, role)


def test_neighbours_count() -> None:
    """A bias beside codes stays a vector; weight norm's `weight_v` is learned, spectral norm's is not."""
    assert table({"l.qweight": ["i32", 8, 64], "l.scales": ["f16", 1, 64], "l.bias": ["f16", 64]})["l.bias"] == "vector"
    assert table({"m.weight_g": ["f32", 64, 1], "m.weight_v": ["f32", 64, 64]})["m.weight_v"] == "weight"
    assert table({"m.weight_scale_inv": ["f32", 1, 1], "m.weight": ["bf16", 64, 64]})["m.weight"] == "weight"


def test_what_a_user_may_set_is_a_role() -> None:
    assert set(SETTABLE) < set(ROLES)
