"""Names and shapes of well-known models, tiny, as older and newer programs write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from deltapack.checkpoint import TensorInfo
from deltapack.dtypes import BY_NAME

Shapes = Mapping[str, tuple[int, ...]]


def infos(shapes: Shapes, dtype: str = "bf16") -> dict[str, TensorInfo]:
    """Return tensors of these names and shapes."""
    return {name: TensorInfo(name, BY_NAME[dtype], shape, "x") for name, shape in shapes.items()}


def renamed(shapes: Shapes, *rules: tuple[str, str]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes under new names, and from new to old names; each rule is one replacement at its first occurrence."""
    names = {}
    for name in shapes:
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new, count=1)
        names[new] = name
    assert len(names) == len(shapes)
    return {new: shapes[old] for new, old in names.items()}, names


def llama(prefix: str = "model.", layers: int = 3, width: int = 16, head: str = "lm_head.weight") -> dict[str, tuple[int, ...]]:
    """A decoder as Llama, Qwen and Mistral have it."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (40, width), f"{prefix}norm.weight": (width,)}
    for layer in range(layers):
        here = f"{prefix}layers.{layer}"
        for name, rows in (("q", width), ("k", 8), ("v", 8), ("o", width)):
            shapes[f"{here}.self_attn.{name}_proj.weight"] = (rows, width)
        shapes |= {f"{here}.mlp.{name}_proj.weight": (24, width) for name in ("gate", "up")}
        shapes |= {f"{here}.mlp.down_proj.weight": (width, 24)}
        shapes |= {f"{here}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes | ({head: (40, width)} if head else {})


def clip_tower(prefix: str, layers: int = 2, width: int = 12) -> dict[str, tuple[int, ...]]:
    """A tower of CLIP: text and vision differ in their embeddings only."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}final_layer_norm.{end}": (width,) for end in ("weight", "bias")}
    for layer in range(layers):
        here = f"{prefix}encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{here}.self_attn.{name}.weight": (width, width), f"{here}.self_attn.{name}.bias": (width,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{here}.{norm}.weight": (width,), f"{here}.{norm}.bias": (width,)}
        shapes |= {f"{here}.mlp.fc1.weight": (48, width), f"{here}.mlp.fc1.bias": (48,)}
        shapes |= {f"{here}.mlp.fc2.weight": (width, 48), f"{here}.mlp.fc2.bias": (width,)}
    return shapes


def qwen_visual(prefix: str = "visual.", blocks: int = 2, width: int = 12) -> dict[str, tuple[int, ...]]:
    """The vision tower of Qwen2-VL."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}patch_embed.proj.weight": (width, 3, 2, 4, 4), f"{prefix}merger.ln_q.weight": (width,)}
    shapes |= {f"{prefix}merger.mlp.{n}.weight": (16, 16) for n in (0, 2)} | {f"{prefix}merger.mlp.{n}.bias": (16,) for n in (0, 2)}
    for block in range(blocks):
        here = f"{prefix}blocks.{block}"
        shapes |= {f"{here}.attn.qkv.weight": (36, width), f"{here}.attn.proj.weight": (width, width)}
        shapes |= {f"{here}.norm{n}.weight": (width,) for n in (1, 2)}
        shapes |= {f"{here}.mlp.fc1.weight": (48, width), f"{here}.mlp.fc2.weight": (width, 48)}
    return shapes


def bert(prefix: str = "bert.", layers: int = 2, width: int = 12) -> dict[str, tuple[int, ...]]:
    """An encoder as BERT and RoBERTa have it, with the old names of norms, and a pooler."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.{n}_embeddings.weight": (rows, width) for n, rows in (("word", 30), ("position", 20), ("token_type", 2))
    }
    norms = [f"{prefix}embeddings.LayerNorm"]
    linears = {f"{prefix}pooler.dense": (width, width)}
    for layer in range(layers):
        here = f"{prefix}encoder.layer.{layer}"
        linears |= {f"{here}.attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        linears |= {
            f"{here}.attention.output.dense": (width, width),
            f"{here}.intermediate.dense": (48, width),
            f"{here}.output.dense": (width, 48),
        }
        norms += [f"{here}.attention.output.LayerNorm", f"{here}.output.LayerNorm"]
    shapes |= {f"{name}.{end}": (width,) for name in norms for end in ("gamma", "beta")}
    return (
        shapes
        | {f"{name}.weight": shape for name, shape in linears.items()}
        | {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    )


def gpt2(prefix: str = "transformer.", layers: int = 2, width: int = 12) -> dict[str, tuple[int, ...]]:
    """GPT-2, with its matrices transposed as there."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}wte.weight": (40, width), f"{prefix}wpe.weight": (20, width)}
    norms = [f"{prefix}ln_f"]
    for layer in range(layers):
        here = f"{prefix}h.{layer}"
        for name, rows, columns in (
            ("attn.c_attn", width, 36),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 48),
            ("mlp.c_proj", 48, width),
        ):
            shapes |= {f"{here}.{name}.weight": (rows, columns), f"{here}.{name}.bias": (columns,)}
        norms += [f"{here}.ln_1", f"{here}.ln_2"]
    return shapes | {f"{name}.{end}": (width,) for name in norms for end in ("weight", "bias")}


def llava(tower: str = "vision_tower", projector: str = "multi_modal_projector.linear_1") -> dict[str, tuple[int, ...]]:
    """A language and a vision tower side by side, as LLaVA, Gemma 3 and Mllama were written at first."""
    language = llama("language_model.model.", head="language_model.lm_head.weight")
    ends = {f"{projector}.weight": (16, 12), f"{projector}.bias": (16,)}
    return language | clip_tower(f"{tower}.vision_model." if tower == "vision_tower" else f"{tower}.") | ends


def wav2vec(layers: int = 2) -> dict[str, tuple[int, ...]]:
    """A convolution with weight norm before some layers."""
    conv = "encoder.pos_conv_embed.conv"
    shapes: dict[str, tuple[int, ...]] = {f"{conv}.weight_g": (1, 1, 8), f"{conv}.weight_v": (12, 3, 8), f"{conv}.bias": (12,)}
    return shapes | clip_tower("", layers)


NEW_LLAVA = ((r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head", "lm_head"))
NORMS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
WEIGHT_NORM = ((r"weight_g$", "parametrizations.weight.original0"), (r"weight_v$", "parametrizations.weight.original1"))
Layout = tuple[Callable[[], Shapes], tuple[tuple[str, str], ...]]
LAYOUTS: dict[str, Layout] = {
    "qwen2-vl": (lambda: llama() | qwen_visual(), ((r"^model\.", "model.language_model."), (r"^visual\.", "model.visual."))),
    "llava": (llava, (*NEW_LLAVA, (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."))),
    "gemma3": (
        lambda: llava(projector="multi_modal_projector.mm_soft_emb_norm"),
        (*NEW_LLAVA, (r"^(vision_tower|multi_modal_projector)\.", r"model.\1.")),
    ),
    "mllama": (
        lambda: llava("vision_model", "multi_modal_projector"),
        (*NEW_LLAVA, (r"^(vision_model|multi_modal_projector)\.", r"model.\1.")),
    ),
    "the language tower of a llava": (
        lambda: {name: shape for name, shape in llava().items() if name.startswith("language")},
        ((r"^language_model\.", ""),),
    ),
    "a doubled model": (lambda: llama("model.language_model.model."), ((r"language_model\.model\.", "language_model."),)),
    "bert without its prefix": (bert, ((r"^bert\.", ""),)),
    "bert's old norms": (bert, NORMS),
    "bert's old norms, without its prefix": (bert, (*NORMS, (r"^bert\.", ""))),
    "roberta as bert": (lambda: bert("roberta."), ((r"^roberta\.", "bert."),)),
    "roberta's prefix": (lambda: bert(""), ((r"^", "roberta."),)),
    "gpt2 without its prefix": (gpt2, ((r"^transformer\.", ""),)),
    "gpt2's other prefix": (gpt2, ((r"^transformer\.", "model."),)),
    "sentence transformers": (lambda: bert(""), ((r"^", "0.auto_model."),)),
    "weight norm": (wav2vec, WEIGHT_NORM),
    "attention renamed": (llama, ((r"\.self_attn\.", ".attention."),)),
    "attention and towers renamed": (llama, ((r"\.self_attn\.", ".attention."), (r"^model\.", "model.language_model."))),
    "compiled": (llama, ((r"^", "_orig_mod."),)),
    "compiled layers": (llama, ((r"(layers\.\d+)", r"\1._orig_mod"),)),
    "ddp of a compiled model with a new layout": (llama, ((r"^model\.", "model.language_model."), (r"^", "module._orig_mod."))),
    "fsdp with checkpoints": (
        llama,
        ((r"^", "_fsdp_wrapped_module."), (r"(layers\.\d+)", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module")),
    ),
    "peft": (llama, ((r"^", "base_model.model."), (r"(q_proj|v_proj)\.", r"\1.base_layer."))),
    "deepspeed": (llama, ((r"^", "module._forward_module."),)),
    "a training state": (llama, ((r"^", "model_state_dict.module."),)),
}
"""Shapes of the older layout, and the rules that make the newer one of it."""
